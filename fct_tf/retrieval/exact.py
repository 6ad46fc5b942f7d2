"""Exact search, exact CMC and mAP, and the results.json record of two columns.

Everything runs over blocks of queries, so memory does not grow with queries x gallery.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from fct_tf.errors import InputError
from fct_tf.gallery.columns import Column, check_spaces
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import distances, identity, metrics


@dataclass(frozen=True)
class PerQuery:
    """What each labelled query achieved; all arrays have one entry per labelled query.

    position: int64, the query's row among all queries. rank: int64, rank of its nearest match, 0
    where no row matches. average_precision: float64, NaN where no row matches. self_removed:
    bool, whether the gallery had a row of its id.
    """

    position: np.ndarray
    rank: np.ndarray
    average_precision: np.ndarray
    self_removed: np.ndarray


class ByLabel(NamedTuple):
    """A gallery whose rows of one label stand together, and where its queries find their own.

    position: int64 [q], the labelled queries' rows among all queries. order: int64 [g], the
    gallery's rows, so that `gallery[order][first[i]:last[i]]` match query i, itself included.
    own: int64 [q], the row among `gallery[order]` with the query's id, -1 where there is none.
    """

    position: np.ndarray
    order: np.ndarray
    first: np.ndarray
    last: np.ndarray
    own: np.ndarray


def search(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    distance: str = "l2",
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery rows of each query; of equal distances the first rows.

    Args:
      query: float [q, d].
      gallery: float [g, d].
      k: number of neighbours.
      distance: `l2` (squared) or `cosine` (1 - cosine).
      exclude: int [q], a gallery row left out for each query (-1: none), or None.

    Returns:
      indices int64 [q, k] and distances float32 [q, k], ascending; -1 and infinity where the
      gallery has fewer than k rows.
    """
    sides = distances.Distances(query, gallery, distance)
    indices = np.empty((len(query), k), np.int64)
    values = np.empty((len(query), k), np.float32)

    def nearest(part: slice) -> None:
        block = sides.block(part, None if exclude is None else exclude[part])
        indices[part], values[part] = block.nearest(k)

    distances.run(nearest, distances.blocks(len(query), len(gallery)))
    return indices, values


def per_query(
    query: np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    query_labels: Sequence[str | None] | np.ndarray,
    gallery: np.ndarray,
    gallery_ids: Sequence[str] | np.ndarray,
    gallery_labels: Sequence[str | None] | np.ndarray,
    distance: str = "l2",
    block: int | None = None,
    progress: str = "",
) -> PerQuery:
    """Rank of the nearest match and average precision of every labelled query.

    The gallery row with a query's own id is removed for that query. Gallery rows without label
    (None) are distractors, queries without label are left out.

    Args:
      query: float [q, d], with q ids and labels.
      gallery: float [g, d], with g ids and labels.
      distance: `l2` or `cosine`.
      block: queries per block; by default as many as fit `distances.BLOCK_BYTES`.
      progress: label of the progress bar; none when empty.

    Raises:
      InputError: unknown distance or different dimensions.
    """
    labelled, order, first, last, own = by_label(
        query_ids, query_labels, gallery_ids, gallery_labels
    )
    sides = distances.Distances(query[labelled], gallery[order], distance)
    rank = np.zeros(len(labelled), np.int64)
    precision = np.full(len(labelled), np.nan)

    def measure(part: slice) -> None:
        counts = sides.block(part, own[part]).counts(first[part], last[part])
        rank[part], precision[part] = metrics.rank_and_precision(*counts)

    distances.run(measure, distances.blocks(len(labelled), len(gallery), block), progress)
    return PerQuery(labelled, rank, precision, own >= 0)


def evaluate(
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    gallery_column: str,
    **settings,
) -> dict:
    """The results.json record of queries (`query_column`) against a gallery column.

    Settings and errors: see `evaluate_queries`, which returns what each query achieved as well.
    """
    return evaluate_queries(query_gallery, query_column, gallery, gallery_column, **settings)[0]


def evaluate_queries(
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    gallery_column: str,
    *,
    ks: Sequence[int] = (1, 5),
    distance: str | None = None,
    search: str = "exact",
    bootstrap: int = 1000,
    seed: int = 0,
    without: Collection[str] = (),
    allow_space_mismatch: bool = False,
    progress: str = "",
) -> tuple[dict, PerQuery, np.ndarray]:
    """Evaluates a query column against a gallery column.

    Args:
      query_gallery, gallery: may be the same gallery; a query's own id is removed.
      ks: CMC is reported at these ranks.
      distance: `l2` or `cosine`; None takes the gallery column's.
      search: `exact`, or `scann` (CMC only, with ScaNN's recall against exact).
      bootstrap: resamples for the 95 % intervals; 0 for none.
      seed: of the resamples.
      without: ids that are left out of queries and gallery.
      allow_space_mismatch: compare different spaces all the same.
      progress: label of the progress bar; none when empty.

    Returns:
      (record of results.json, what each labelled query achieved, labels object [queries]).

    Raises:
      InputError: spaces or dimensions that do not fit, no labelled query, bad rows.
    """
    if not ks or min(ks) < 1:
        raise InputError(f"ks {list(ks)}: ranks start at 1")
    if search not in ("exact", "scann"):
        raise InputError(f"search {search!r}: it must be exact or scann")
    a, b = query_gallery.column(query_column), gallery.column(gallery_column)
    check_spaces(a, b, allow_mismatch=allow_space_mismatch)
    distance = distance or b.distance
    same = query_gallery.dataset is gallery.dataset or (
        query_gallery.path == gallery.path and query_gallery.version == gallery.version
    )
    rows = gallery.read(
        [gallery_column, *({query_column} - {gallery_column} if same else ())], with_labels=True
    )
    queries = rows if same else query_gallery.read([query_column], with_labels=True)
    if len(without):
        without = set(without)
        rows = rows.without(without)
        queries = rows if same else queries.without(without)
    labels, gallery_labels = queries.labels, rows.labels
    assert labels is not None and gallery_labels is not None
    if all(label is None for label in labels):
        raise InputError(
            f"{query_gallery.path}: no query has a label; evaluation needs labels, import the "
            "embeddings with import_gallery --labels into a new gallery"
        )
    query = (queries.vectors[query_column], queries.ids, labels)
    stored = (rows.vectors[gallery_column], rows.ids, gallery_labels)
    how: object = "exact"
    scann_index = _scann() if search == "scann" else None
    if scann_index:
        found, how = scann_index.per_query(*query, *stored, distance, max_rank=max(ks), seed=seed)
    else:
        found = per_query(*query, *stored, distance, progress=progress)
    if not same:
        own = row_numbers(queries.ids, rows.ids)
        own[[label is None for label in labels]] = -1
        warning = identity.doubt(queries, a, rows, b, own)
        if warning:
            logging.warning("%s and %s: %s", query_gallery.path, gallery.path, warning)
    if not (found.rank > 0).any():
        logging.warning(
            "no query of %s has a row of its label in %s", query_gallery.path, gallery.path
        )
    record = {
        "query": describe(query_gallery, a),
        "gallery": describe(gallery, b),
        "num_queries": len(found.position),
        "num_queries_without_label": len(labels) - len(found.position),
        "num_queries_without_match": int(np.sum(found.rank == 0)),
        "num_self_removed": int(np.sum(found.self_removed)),
        "num_gallery": len(rows),
        "distance": distance,
        "search": how,
        "cmc": metrics.cmc(found.rank, ks),
        "map": metrics.mean_average_precision(found.average_precision),
        "confidence": confidence(found, ks, bootstrap, seed),
    }
    return record, found, labels


def _scann():
    """The module, which imports TensorFlow, or None with a warning where ScaNN does not load."""
    try:
        from fct_tf.retrieval import scann_index
    except Exception as error:  # Beside another TensorFlow it fails with that one's own errors.
        logging.warning("ScaNN cannot be imported (%s); searching exactly", error)
        return None
    return scann_index


def describe(gallery: Gallery, column: Column) -> dict:
    """Which column of which version of which gallery, for results.json."""
    return {
        "path": gallery.path,
        "version": gallery.version,
        "column": column.name,
        "space": column.space,
        "model": column.model,
    }


def confidence(found: PerQuery, ks: Sequence[int], resamples: int, seed: int) -> dict | None:
    """95 % bootstrap intervals over the queries with a match, as in results.json."""
    ranked = found.rank > 0
    if not resamples or not ranked.any():
        return None
    values = [found.rank[ranked] <= k for k in ks] + [found.average_precision[ranked]]
    low, high = metrics.bootstrap(np.stack(values, axis=1).astype(np.float64), resamples, seed)
    intervals = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    has_mean = not np.isnan(found.average_precision[ranked]).any()
    return {
        "level": 0.95,
        "resamples": resamples,
        "cmc": {str(k): interval for k, interval in zip(ks, intervals, strict=False)},
        "map": intervals[-1] if has_mean else None,
    }


def by_label(query_ids, query_labels, gallery_ids, gallery_labels) -> ByLabel:
    """Puts the rows of one label together, so that the matches of a query are one slice."""
    codes, gallery_codes = label_codes(query_labels, gallery_labels)
    order = np.argsort(gallery_codes, kind="stable")
    position = np.flatnonzero(codes > -2)
    codes = codes[position]
    first, last = (np.searchsorted(gallery_codes[order], codes, side) for side in ("left", "right"))
    # A label that the gallery does not have (-1) must not match the rows without label.
    last[codes < 0] = first[codes < 0]
    own = row_numbers(query_ids, gallery_ids)[position]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    own = np.where(own >= 0, place[own] if len(place) else -1, -1)
    return ByLabel(position, order, first, last, own)


def label_codes(query_labels, gallery_labels) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers: -1 no such label in the gallery or a row without, -2 unlabelled query."""
    texts = [
        pa.array(list(labels), from_pandas=True).cast(pa.string())
        for labels in (query_labels, gallery_labels)
    ]
    known = pc.unique(texts[1].drop_null())
    query, gallery = (pc.index_in(text, value_set=known).fill_null(-1) for text in texts)
    codes = query.to_numpy().astype(np.int64)
    codes[texts[0].is_null().to_numpy(zero_copy_only=False)] = -2
    return codes, gallery.to_numpy().astype(np.int64)


def row_numbers(query_ids, gallery_ids) -> np.ndarray:
    """int64 [q]: the gallery row with each query's id, -1 where there is none."""
    ids = pa.array(list(gallery_ids), pa.string())
    found = pc.index_in(pa.array(list(query_ids), pa.string()), value_set=ids)
    return found.fill_null(-1).to_numpy().astype(np.int64)
