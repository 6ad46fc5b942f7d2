"""Several searchers as one: what each of them finds, merged."""

from collections.abc import Sequence

import numpy as np

from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings


class Merged:
    """Searches the rows of all its parts, which are numbered on from part to part.

    Attributes:
      parts: searchers of one distance and dimension, at least one.
    """

    def __init__(self, parts: Sequence[Searcher]):
        self.parts = parts
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])

    @property
    def settings(self) -> Settings:
        """Of the largest part; the others may have been built with others."""
        return max(self.parts, key=lambda part: part.num_rows).settings

    @property
    def is_exact(self) -> bool:
        """Whether all parts search exactly."""
        return all(part.is_exact for part in self.parts)

    @property
    def lacks_scann(self) -> bool:
        """As of `Searcher`, of any part."""
        return any(part.lacks_scann for part in self.parts)

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        num_leaves_to_search: int | None = None,
        reordering_num_neighbors: int | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search`, of every part; of rows at one distance the first come first."""
        best: list[tuple[np.ndarray, np.ndarray]] = []
        for start, part in zip(self._starts, self.parts, strict=False):
            numbers, distances = part.search(
                queries,
                k,
                num_leaves_to_search=num_leaves_to_search,
                reordering_num_neighbors=reordering_num_neighbors,
                threads=threads,
            )
            # The rows of a part stand behind those of the parts before it, so that a stable sort
            # puts equal distances in their order, as long as each part does.
            best.append((np.where(numbers < 0, -1, numbers + start), distances))
            best = [_nearest(best, k)]
        return best[0]


def _nearest(
    found: Sequence[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first k of what was found, by distance; -1, at infinity, at the end."""
    rows, distances = (np.concatenate(sides, axis=1) for sides in zip(*found, strict=True))
    order = np.lexsort((rows, rows < 0, distances), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
