"""The first rows that an old index finds, ordered by a fused search: nothing is stored for it.

Each query's first n rows by the old model's embeddings are the candidates. Their fused rows are
made of what is stored, on the way, and the candidates ordered by the distance to the fused query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column
from fct_tf.gallery.reader import Gallery
from fct_tf.models import info as infos
from fct_tf.retrieval import distances, exact, two_columns
from fct_tf.upgrade.inputs import Transformation, find_sources

if TYPE_CHECKING:
    from fct_tf.ann.index import Index

BLOCK_ROWS, BLOCK_QUERIES = 8192, 32


def rerank(
    model: Transformation,
    source_queries: np.ndarray,
    target_queries: np.ndarray,
    candidates: np.ndarray,
    source_rows: np.ndarray,
    side_info: np.ndarray | None = None,
    *,
    k: int | None = None,
    distance: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Orders candidates by their fused distance.

    A row that is a candidate of several queries goes through the transformation once.

    Args:
      model: gallery side of a fused search.
      source_queries: float [q, d_source], of the old model.
      target_queries: float [q, d_target], of the new model.
      candidates: int [q, n], gallery rows of each query; -1 where there is none.
      source_rows: float [g, d_source], the old model's of the gallery.
      side_info: float [g, d_side], where the transformation reads it.
      k: how many of each query are wanted, the nearest; None: all n.
      distance: of fused rows; by default that of the fused search.

    Returns:
      rows int64 [q, k] and distances float64 [q, k], ascending, of equal distances the first
      rows; -1 and infinity where there is none.

    Raises:
      InputError: `model` is no fused search.
    """
    queries = _blocks(model.query_side(), source_queries, target_queries)
    needed = np.unique(candidates[candidates >= 0])
    stored = [source_rows[needed]] + ([] if side_info is None else [side_info[needed]])
    fused = _blocks(model, *stored)
    nearest = np.full((len(candidates), candidates.shape[1] if k is None else k), -1, np.int64)
    apart = np.full(nearest.shape, np.inf)
    # Few queries at a time: each is compared with the candidates of all of these.
    for start in range(0, len(candidates), BLOCK_QUERIES):
        part = slice(start, start + BLOCK_QUERIES)
        asked, place = np.nonzero(candidates[part] >= 0)
        rows, numbers = np.unique(candidates[part][asked, place], return_inverse=True)
        block = distances.Distances(
            queries[part],
            fused[np.searchsorted(needed, rows)],
            distance or model.info["distance"],
        ).block(slice(0, len(queries[part])))
        others = np.ones(block.entries.shape, bool)
        others[asked, numbers] = False
        block.entries[others] = np.inf
        near, apart[part] = block.nearest(nearest.shape[1])
        nearest[part] = np.append(rows, -1)[near]
    return nearest, apart


def _blocks(model: Transformation, *inputs: np.ndarray) -> np.ndarray:
    """float32 [n, d], of a block of rows at a time."""
    vectors = np.empty((len(inputs[0]), model.dims["embedding"]), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        vectors[part] = model(*(values[part] for values in inputs))["embedding"]
    return vectors


@dataclass(frozen=True)
class Reranking:
    """What `two_columns.evaluate_queries` asks: CMC by the old model's first rows, ordered anew.

    Attributes:
      model: gallery side of a fused search.
      first: how many rows of each query are ordered.
      query_gallery, gallery: with the columns that it reads.
      query_sources, sources: role -> column, of either.
      index: of the old model's column, that finds the first rows; None: they are found exactly.
    """

    model: Transformation
    first: int
    query_gallery: Gallery
    gallery: Gallery
    query_sources: dict[str, Column]
    sources: dict[str, Column]
    index: Index | None = None

    def check(self, gallery: Gallery, column: Column, distance: str) -> None:
        """The columns have been found for this one already; an index must be of it."""
        if self.index:
            from fct_tf.ann import evaluation

            evaluation.check_index(self.index, gallery, column, distance)

    def per_query(
        self, query: exact.Side, stored: exact.Side, distance: str, *, max_rank: int, seed: int
    ) -> tuple[exact.PerQuery, dict]:
        """As `exact.per_query`; ranks behind the first rows are g + 1, average precision NaN."""
        if max_rank > self.first:
            raise InputError(
                f"``rerank={self.first}``: orders so many rows, CMC@{max_rank} needs more"
            )
        codes, gallery_codes = exact.label_codes(query[2], stored[2])
        labelled = np.flatnonzero(codes > -2)
        codes = codes[labelled]
        own = exact.row_numbers(query[1], stored[1])[labelled]
        asked = query[0][labelled]
        near = self._first_rows(asked, stored, own, distance)
        target = _of_ids(
            self.query_gallery, self.query_sources["target_embedding"], query[1][labelled]
        )
        side = None
        if "side_info" in self.sources:
            side = _of_ids(self.gallery, self.sources["side_info"], stored[1])
        rows, fused_distances = rerank(self.model, asked, target, near, stored[0], side)
        match = (gallery_codes[rows] == codes[:, None]) & (codes[:, None] >= 0) & (rows >= 0)
        nearest = np.where(match, fused_distances, np.inf).min(axis=1, initial=np.inf)
        # A tie counts against the match, as everywhere.
        before = (fused_distances <= nearest[:, None]) & ~match & (rows >= 0)
        reached = np.isfinite(nearest)
        rank = np.where(reached, 1 + before.sum(axis=1), len(stored[0]) + 1)
        matches = np.bincount(gallery_codes[gallery_codes >= 0], minlength=codes.max(initial=0) + 1)
        itself = (own >= 0) & (gallery_codes[own] == codes)
        none = (codes < 0) | (matches[codes] - itself <= 0)
        rank[none] = 0
        description = {
            "name": "rerank",
            "rerank": self.first,
            "transformation": str(self.model.path),
            "space": self.model.info["fused_space"],
            "target_column": self.query_sources["target_embedding"].name,
            "distance": self.model.info["distance"],
            # Of queries with a match, those that have one among the rows that are ordered.
            "reached": float(np.mean(reached[~none])) if not none.all() else None,
        }
        if self.index:
            description["index"] = {
                "path": self.index.path,
                "generation": self.index.manifest["generation"],
            }
        missing = np.full(len(labelled), np.nan)
        return exact.PerQuery(labelled, rank, missing, own >= 0), description

    def _first_rows(
        self, asked: np.ndarray, stored: exact.Side, own: np.ndarray, distance: str
    ) -> np.ndarray:
        """int64 [q, first]: of each query the first rows but its own, -1 where there is none."""
        if self.index is None:
            return exact.search(asked, stored[0], self.first, distance, exclude=own)[0]
        index_rows, _ = self.index.searcher.search(asked, self.first + 1)
        rows = exact.row_numbers(self.index.ids.to_pylist(), stored[1])
        rows = np.where(index_rows >= 0, rows[index_rows], -1)
        rows = np.where(rows == own[:, None], -1, rows)
        kept = np.argsort(rows < 0, axis=1, kind="stable")[:, : self.first]
        return np.take_along_axis(rows, kept, axis=1)


def reranking(
    transformation: str | Transformation,
    first: int,
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    gallery_column: str,
    *,
    target: str = "",
    side_info: str = "",
    allow_space_mismatch: bool = False,
    index: Index | None = None,
) -> Reranking:
    """Evaluation by re-ranking, for `two_columns.evaluate_queries`.

    Args:
      transformation: SavedModel of a fused search, see `fct_tf.models.saved_model.locate`.
      first: how many rows of each query to order, at least 1.
      query_column, gallery_column: the old model's.
      target: the new model's column of `query_gallery`; by default found by its space.
      side_info: column of `gallery`; by default found by its space, where it is read.
      allow_space_mismatch: read the columns that are named whatever their spaces are.
      index: finds the first rows; None: they are found exactly.

    Raises:
      InputError: no fused search, no such column, columns in other spaces than it reads.
    """
    if first < 1:
        raise InputError(f"``rerank={first}``: how many rows to order, at least 1")
    model: Transformation
    if callable(transformation):
        model = transformation
    else:
        from fct_tf.models import saved_model

        model = saved_model.load_transformation(transformation)
    infos.check_fused(model.info, str(model.path), "``rerank``")
    names = {"source_embedding": query_column, "target_embedding": target}
    query_sources = find_sources(
        query_gallery,
        model.query_side(),
        names,
        allow_mismatch=allow_space_mismatch,
        arguments={"source_embedding": "query_column"},
    )
    names = {"source_embedding": gallery_column, "side_info": side_info}
    sources = find_sources(
        gallery,
        model,
        names,
        allow_mismatch=allow_space_mismatch,
        arguments={"source_embedding": "gallery_column"},
    )
    return Reranking(model, first, query_gallery, gallery, query_sources, sources, index)


def searching(
    sides: tuple[Gallery, str, Gallery, str],
    *,
    search: str = "exact",
    index: str = "",
    transformation: str | Transformation = "",
    first: int = 0,
    target: str = "",
    side_info: str = "",
    allow_space_mismatch: bool = False,
) -> two_columns.Approximate | None:
    """What searches in place of the exact search of all rows; None for that.

    Args:
      sides: the queries' gallery and column, and the gallery and column that are searched.
      search: `exact`, or `scann` by the `index` at this path; empty: one that is built in memory.
      transformation, first, target, side_info, allow_space_mismatch: re-rank the first rows, of
        the exact search or of the `index`, as `reranking`; not with an empty transformation.

    Raises:
      InputError: arguments that do not go together; as `reranking`; no index there.
    """
    if search not in ("exact", "scann"):
        raise InputError(f"``search={search}``: it must be exact or scann")
    if transformation:
        if (search == "scann") != bool(index):
            raise InputError(
                "``rerank``: of the exact first rows, or with ``search=scann`` of those that the "
                "``index`` of the column finds; give both or none"
            )
        opened = None
        if index:
            from fct_tf.ann import evaluation

            approximate = evaluation.searching(index)
            opened = approximate.index if approximate else None
        return reranking(
            transformation,
            first,
            *sides,
            target=target,
            side_info=side_info,
            allow_space_mismatch=allow_space_mismatch,
            index=opened,
        )
    for name, given in (("target", target), ("side_info", side_info)):
        if given:
            raise InputError(f"``{name}``: goes with ``rerank``; leave it out")
    if search == "scann":
        from fct_tf.ann import evaluation

        return evaluation.searching(index)
    if index:
        raise InputError("``index``: goes with ``search=scann``; leave it out")
    return None


def _of_ids(gallery: Gallery, column: Column, ids: np.ndarray) -> np.ndarray:
    """A column's vectors in the order of ids, all of which the gallery has."""
    rows = gallery.read([column.name])
    return rows.vectors[column.name][exact.row_numbers(ids, rows.ids)]
