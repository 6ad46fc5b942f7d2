"""Approximate search with ScaNN: an index of one column, CMC from it, and its recall.

ScaNN (Guo et al., arXiv 1908.10396) partitions the rows into leaves, scores the nearest leaves
with compressed codes and computes the true distance of the best of those again. Importing it
loads TensorFlow, so this module is imported only when ScaNN is asked for.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scann

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import DISTANCES
from fct_tf.retrieval import distances, exact

# Below this number of rows exact search is as fast as an index.
BRUTE_FORCE_ROWS = 2000
# Queries that the recall is measured with.
RECALL_QUERIES = 1000


@dataclass(frozen=True)
class Parameters:
    """How an index is built and searched; `num_leaves` 0 is no index: all rows, exactly.

    `reorder` rows of the approximate ranking get their true distance.
    """

    num_leaves: int
    num_leaves_to_search: int
    reorder: int

    @classmethod
    def of_size(cls, num_rows: int) -> "Parameters":
        """Usual values: 2 sqrt(rows) leaves, a fifteenth of them searched, 100 rows reordered."""
        if num_rows < BRUTE_FORCE_ROWS:
            return cls(0, 0, 0)
        leaves = round(2 * num_rows**0.5)
        return cls(leaves, max(1, round(leaves / 15)), 100)


class Index:
    """A ScaNN index of float [g, d]; rows are numbered as they come."""

    def __init__(self, gallery: np.ndarray, distance: str, parameters: Parameters | None = None):
        """Builds the index.

        Args:
          gallery: float [g, d], g >= 1.
          distance: `l2` (squared) or `cosine` (1 - cosine).
          parameters: by default those for g rows.

        Raises:
          InputError: unknown distance, no rows, or fewer rows than the index needs.
        """
        if distance not in DISTANCES:
            raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")
        if not len(gallery):
            raise InputError("an index needs at least one row")
        self.distance = distance
        self.num_rows = len(gallery)
        self.parameters = parameters or Parameters.of_size(len(gallery))
        if not self.parameters.num_leaves:
            # Not ScaNN's brute force: in float32 it would lose what exact search settles.
            self._rows = gallery
            return
        # ScaNN computes in float32: long rows that differ by little would lose what tells them
        # apart. So cosines too are distances of what is left of unit vectors after a shift.
        self._shift, self._exponent = np.zeros(gallery.shape[1], np.float32), 0
        rows = self._side(gallery)
        self._shift = distances.shift(rows)
        largest = float(np.abs(rows - self._shift).max(initial=0))
        self._exponent = int(np.floor(np.log2(largest))) if largest > 0 else 0
        builder = scann.scann_ops_pybind.builder(self._side(gallery), 10, "squared_l2")
        builder = builder.tree(
            num_leaves=self.parameters.num_leaves,
            num_leaves_to_search=self.parameters.num_leaves_to_search,
            training_sample_size=min(len(gallery), 250_000),
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
        builder = builder.reorder(self.parameters.reorder)
        try:
            self._searcher = builder.build()
        except RuntimeError as error:
            raise InputError(f"ScaNN cannot index {len(gallery)} rows: {error}") from None

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query, as far as the index finds them.

        Args:
          query: float [q, d].
          k: number of neighbours.

        Returns:
          indices int64 [q, k] and distances float32 [q, k], ascending; -1 and infinity where
          there is no row.
        """
        if not self.parameters.num_leaves:
            return exact.search(query, self._rows, k, self.distance)
        indices = np.full((len(query), k), -1, np.int64)
        result = np.full((len(query), k), np.inf, np.float32)
        if len(query):
            found, values = self._searcher.search_batched_parallel(
                self._side(query),
                final_num_neighbors=min(k, self.num_rows),
                pre_reorder_num_neighbors=max(k, self.parameters.reorder),
            )
            width = found.shape[1]
            there = np.isfinite(values) & (found.astype(np.int64) < self.num_rows)
            scale = 4.0**self._exponent * (0.5 if self.distance == "cosine" else 1.0)
            indices[:, :width] = np.where(there, found, -1)
            result[:, :width] = np.where(there, values * scale, np.inf)
        return indices, result

    def _side(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self.distance == "cosine":
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            vectors = vectors / np.where(norms == 0, 1, norms).astype(np.float32)
        return np.ldexp(vectors - self._shift, -self._exponent)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Mean share of the true neighbours that were found. int [q, k] both, -1 for none."""
    shares = [
        np.isin(right[right >= 0], row).mean()
        for row, right in zip(found, true, strict=True)
        if (right >= 0).any()
    ]
    return float(np.mean(shares)) if shares else 0.0


def per_query(
    query: np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    query_labels: Sequence[str | None] | np.ndarray,
    gallery: np.ndarray,
    gallery_ids: Sequence[str] | np.ndarray,
    gallery_labels: Sequence[str | None] | np.ndarray,
    distance: str = "l2",
    *,
    max_rank: int = 5,
    parameters: Parameters | None = None,
    seed: int = 0,
) -> tuple[exact.PerQuery, dict]:
    """Rank of the nearest match that ScaNN finds, for every labelled query.

    Ranks are as `exact.per_query` defines them, but only those up to `max_rank` are told apart:
    a query whose match is farther, or not found, has rank g + 1. Average precision is NaN: it
    needs the whole ranking. Arguments as there.

    Returns:
      (results, description for results.json: parameters, and recall@k of `RECALL_QUERIES`
      queries against exact search).
    """
    index = Index(gallery, distance, parameters)
    codes, gallery_codes = exact.label_codes(query_labels, gallery_labels)
    labelled = np.flatnonzero(codes > -2)
    own = exact.row_numbers(query_ids, gallery_ids)[labelled]
    # Twice the rank: ties at the end of a shorter list could hide rows that count.
    k = 2 * max_rank + 1
    indices, _ = index.search(query[labelled], k)
    # What was found is ranked by its exact distances.
    near = np.full(indices.shape, np.inf)
    asked, place = np.nonzero((indices >= 0) & (indices != own[:, None]))
    sides = distances.Distances(query[labelled], gallery, distance)
    near[asked, place] = sides.exact(asked, indices[asked, place])
    match = gallery_codes[indices] == codes[labelled, None]
    match &= np.isfinite(near) & (codes[labelled, None] >= 0)
    nearest = np.where(match, near, np.inf).min(axis=1)
    before = (near <= nearest[:, None]) & ~match & np.isfinite(near)
    rank = np.where(np.isfinite(nearest), 1 + before.sum(axis=1), len(gallery) + 1)
    # A tie that the list cuts off counts against the match, as all ties do.
    last = np.where(np.isfinite(near), near, -np.inf).max(axis=1)
    cut = (indices[:, -1] >= 0) & (nearest >= last)
    rank[cut | (rank > max_rank)] = len(gallery) + 1
    matches = np.bincount(gallery_codes[gallery_codes >= 0], minlength=codes.max(initial=0) + 1)
    itself = (own >= 0) & (gallery_codes[own] == codes[labelled])
    rank[(codes[labelled] < 0) | (matches[codes[labelled]] - itself <= 0)] = 0

    sample = np.random.default_rng(seed).permutation(len(labelled))[:RECALL_QUERIES]
    true, _ = exact.search(query[labelled[sample]], gallery, max_rank, distance, own[sample])
    found = np.where(indices[sample] == own[sample, None], -1, indices[sample])
    first = np.argsort(found < 0, axis=1, kind="stable")[:, :max_rank]
    description = {
        "name": "scann",
        **asdict(index.parameters),
        "recall": recall(np.take_along_axis(found, first, axis=1), true),
        "recall_at": max_rank,
        "recall_queries": len(sample),
    }
    missing = np.full(len(labelled), np.nan)
    return exact.PerQuery(labelled, rank, missing, own >= 0), description
