"""The old index of a fused search, kept as it is: what it finds is ordered by both embeddings.

The rows of a fused search need not be stored. The index of the old model's rows gives its first
ones for the query's old embedding, and these are ordered by the fused distance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fct_tf.ann.searcher import Searcher


@dataclass(frozen=True)
class Rerank:
    """How the rows of a case are found by the index of another column.

    Attributes:
      order: (old model's queries float [q, d_source], new model's float [q, d_target], candidates
        int [q, n], the stored rows float [g, d] of each column, `k`, `distance`) -> rows int64
        [q, k] and distances float64 [q, k], ascending; as `fct_tf.upgrade.rerank.rerank` of a
        model.
      queries: columns of the queries: the old model's and the new one's.
      stored: columns of the rows: the old model's, which is indexed, and the side-information
        where it is read.
      first: how many rows of each query are ordered, and no fewer than are asked for.
    """

    order: Callable[..., tuple[np.ndarray, np.ndarray]]
    queries: tuple[str, str]
    stored: tuple[str, ...]
    first: int


class RerankedSearcher:
    """Searches as a `Searcher` does, of queries that are [old | new] embeddings side by side.

    The transformation runs in threads of its own, whatever `threads` a search is given.
    """

    def __init__(self, index: Searcher, how: Rerank, rows: Mapping[str, np.ndarray], first: int):
        self.settings, self.nbytes, self.queries = index.settings, index.nbytes, how.queries
        self._index, self._order, self._first = index, how.order, first
        self._stored = [rows[name] for name in how.stored]

    def search(
        self, queries: np.ndarray, k: int, *, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search`: rows int64 [q, k] and distances float64 [q, k].

        Args:
          queries: float [q, d_source + d_target].
        """
        old, new = np.split(queries, [self._stored[0].shape[1]], axis=1)
        near, _ = self._index.search(old, max(k, self._first), threads=threads)
        return self._order(old, new, near, *self._stored, k=k, distance=self._index.distance)
