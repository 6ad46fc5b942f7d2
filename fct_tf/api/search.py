"""The nearest rows of queries in memory, also ordered anew by a fused search; the index for it."""

import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fct_tf.api.arguments import EngineName, PathLike
from fct_tf.api.transformation import Transformation
from fct_tf.common.annotations import numbers
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import open_engine
from fct_tf.gallery import reader
from fct_tf.gallery.columns import check_finite
from fct_tf.models import info as infos
from fct_tf.retrieval import exact

if TYPE_CHECKING:
    from fct_tf.ann.index import Index
    from fct_tf.api.gallery import Gallery


class Neighbours(NamedTuple):
    """ids: object [q, k] of str, None where the gallery has fewer rows. distances: float32 [q, k],
    ascending, infinity there; squared L2, or 1 - cosine."""

    ids: np.ndarray
    distances: np.ndarray


def search(
    self: "Gallery",
    vectors: Any,
    column: str,
    k: int = 10,
    method: Literal["exact", "scann"] = "exact",
    *,
    index: PathLike | None = None,
    distance: str = "",
    rerank: Transformation | PathLike | None = None,
    target_vectors: Any = None,
    candidates: int = 100,
) -> Neighbours:
    """The k nearest rows of each query.

    A search of the old model's column or index gets what a fused search finds by ordering its
    first rows, with nothing stored:

        gallery.search(old, "embedding_old", rerank=fused, target_vectors=new)

    Args:
      vectors: float [q, d], of the space of `column` or of one that fits it; or one, [d].
      column: that is searched.
      k: number of neighbours.
      method: `exact`, or `scann` by an `index` that `build_index` made of this column.
      distance: `l2` or `cosine`; by default the column's.
      rerank: a fused search that orders the first `candidates` rows; the distances returned
        are its own.
      target_vectors: float [q, d_target], or one, [d_target]: with `rerank`, the same queries
        embedded by the new model.
      candidates: with `rerank`, how many rows to order, at least k.

    Raises:
      InputError: an unknown column, other dimensions, NaN or infinity, k below 1; no fused
        search, or one that reads another column than this.
    """
    if k < 1:
        raise InputError(f"k={k}: must be at least 1")
    if rerank is None:
        if target_vectors is not None:
            raise InputError("target_vectors: goes with rerank; leave it out")
        return nearest(self._opened, vectors, column, k, method, index, distance)
    if k > candidates:
        raise InputError(f"candidates={candidates}: must be at least k={k}")
    first = nearest(self._opened, vectors, column, candidates, method, index, distance)
    fused = rerank if isinstance(rerank, Transformation) else Transformation.load(rerank)
    sides = (vectors, target_vectors)
    return reranked(self._opened, fused.loaded, sides, column, first.ids, k)


def build_index(
    self: "Gallery",
    column: str,
    output: PathLike,
    *,
    recall: float | None = None,
    shards: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    engine: EngineName = "local",
    spark_master: str = "",
    progress: str = "",
    **settings: Any,
) -> "Index":
    """Builds the ScaNN index of a column, for `search`.

    Args:
      column: an embedding column.
      output: directory to make.
      recall: find the settings of most queries per second at this recall@10.
      shards: build it in so many, each of some fragments of the gallery.
      threads: that build; None: one for each core.
      overwrite: replace an index there.
      seed: of the search for settings.
      engine: `spark` to build shards on a cluster: the session there is, or one on `spark_master`.
      progress: label of the progress bar; none when empty.
      **settings: of ScaNN by their names, such as `num_leaves`; the others by number of rows.

    Raises:
      InputError: see `fct_tf.ann.index.build`.
    """
    from fct_tf.ann.index import build

    with open_engine(engine, spark_master) as opened:
        return build(
            self._opened,
            column,
            os.fspath(output),
            settings,
            recall=recall,
            shards=shards,
            threads=threads,
            overwrite=overwrite,
            seed=seed,
            engine=opened,
            progress=progress,
        )


def nearest(
    gallery: reader.Gallery,
    vectors: Any,
    column: str,
    k: int,
    method: str,
    index: PathLike | None,
    distance: str,
) -> Neighbours:
    """The k nearest rows of each query; see `fct_tf.Gallery.search`."""
    searched = gallery.column(column)
    by = distance or searched.distance
    whose = f"column {column!r} of {gallery.path}"
    queries = _queries(vectors, "vectors", searched.dim, whose, by)
    if method == "scann":
        if index is None or distance:
            raise InputError(
                "method='scann': searches an index by the distance it was built with; name it "
                "(index=PATH, see build_index) and leave distance out"
            )
        from fct_tf.ann.index import open_index

        neighbours = open_index(index).search(queries, k, space=searched)
        return Neighbours(neighbours.ids, neighbours.distances)
    if method != "exact":
        raise InputError(f"method={method!r}: it must be 'exact' or 'scann'")
    if index is not None:
        raise InputError("index: goes with method='scann'; leave it out")
    rows = gallery.read([column])
    numbers, distances = exact.search(queries, rows.vectors[column], k, by)
    return Neighbours(_of_numbers(rows.ids, numbers), distances)


def reranked(
    gallery: reader.Gallery,
    fused: Any,
    vectors: tuple[Any, Any],
    column: str,
    found: np.ndarray,
    k: int,
) -> Neighbours:
    """The k nearest of the rows that were found for each query, by a fused search.

    Args:
      gallery: with what the fused search reads.
      fused: its gallery side, see `fct_tf.upgrade.inputs.Transformation`.
      vectors: the queries, float [q, d_source] of the old model and [q, d_target] of the new one.
      column: the old model's, that was searched.
      found: object [q, n], ids of the rows; None where there is none.
      k: at most n.
    """
    from fct_tf.upgrade.inputs import find_sources
    from fct_tf.upgrade.rerank import rerank

    infos.check_fused(fused.info, str(fused.path), "rerank")
    if vectors[1] is None:
        raise InputError("target_vectors: rerank needs the queries as the new model embeds them")
    dims, name = fused.query_side().dims, fused.info["name"]
    queries, new = (
        _queries(values, argument, dims[role], name)
        for values, argument, role in zip(
            vectors, ("vectors", "target_vectors"), dims, strict=False
        )
    )
    if len(new) != len(queries):
        raise InputError(f"target_vectors: {len(new)} queries, vectors has {len(queries)}")
    named = {"source_embedding": column}
    called = {"source_embedding": "column"}
    sources = find_sources(gallery, fused, named, allow_mismatch=None, arguments=called)
    ids = np.array(sorted({one for row in found for one in row if one is not None}), object)
    rows = gallery.take(list(ids), list({one.name for one in sources.values()}))
    stored = [rows.vectors[one.name] for one in sources.values()]
    candidates = exact.row_numbers(found.ravel(), ids).reshape(found.shape)
    numbers, distances = rerank(fused, queries, new, candidates, *stored, k=k)
    return Neighbours(_of_numbers(ids, numbers), distances.astype(np.float32))


def _of_numbers(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    # -1, where there are fewer rows than were asked for, takes the last: None.
    return np.append(ids, np.array([None]))[numbers]


def _queries(vectors: Any, name: str, dim: int, whose: str, distance: str = "") -> np.ndarray:
    """float32 [q, dim] of what a search is given."""
    queries = np.atleast_2d(numbers(vectors, name))
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise InputError(f"{name}: shape {list(queries.shape)}; {whose} has {dim} values per row")
    check_finite(queries, range(len(queries)), name, distance)
    return queries
