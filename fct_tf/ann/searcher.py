"""A ScaNN searcher of rows in memory: built, searched, changed, saved and loaded.

Rows are numbered 0 to n-1. ScaNN computes in float32, where long rows that differ by little would
lose what tells them apart; so rows are shifted by their median and scaled by a power of two, and
cosines are distances of unit vectors treated likewise. Where ScaNN does not load, and for few
rows, the same interface searches exactly.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fct_tf.ann import fitting, scann_files
from fct_tf.ann.engines import ROWS, Exact, Scann, cores
from fct_tf.ann.settings import Settings
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import DISTANCES, check_finite, without_direction
from fct_tf.retrieval import distances

HEADER = "searcher.json"
# Settings suit a search for so many. Where more are asked for, more rows are reordered: as many for
# each neighbour, or `MOST_FOR_EACH`. Of 30,000 rows in clusters recall@100 and recall@500 are 0.84
# and 0.71 where k rows are reordered, 1.00 and 0.96 for three times k, 1.00 and 0.98 for four.
USUAL_K, MOST_FOR_EACH = 10, 4
# Rows that are prepared at a time.
_BLOCK_ROWS = 65536


class Searcher:
    """Searches float rows [n, d] that it holds. Made by `build`, `from_blocks` or `load`.

    Attributes:
      distance: `l2` (squared) or `cosine` (1 - cosine).
      dim: int. settings: what it was built with.
      is_exact: bool, whether it searches exactly, by choice or because ScaNN does not load.
      is_fallback: bool, whether it stands in for the one of ScaNN that was saved.
      recall: float, recall@10 of some of its rows as measured when it was built; None where that
        was not asked for.
    """

    def __init__(self, engine, distance: str, dim: int, settings: Settings, shift, exponent: int):
        self._engine = engine
        self.distance, self.dim, self.settings = distance, dim, settings
        self._shift, self._exponent = shift, exponent
        self.is_exact = isinstance(engine, Exact)
        self.is_fallback = False
        self.recall: float | None = 1.0 if self.is_exact else None

    @classmethod
    def build(
        cls,
        rows: np.ndarray,
        distance: str = "l2",
        settings: Settings | None = None,
        *,
        threads: int | None = None,
    ) -> "Searcher":
        """Builds it of float [n, d]; see `from_blocks`."""
        blocks = (rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS))
        count, dim = rows.shape
        return cls.from_blocks(blocks, count, dim, distance, settings, threads=threads)

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[np.ndarray],
        num_rows: int,
        dim: int,
        distance: str = "l2",
        settings: Settings | None = None,
        *,
        threads: int | None = None,
    ) -> "Searcher":
        """Builds it of rows that come block by block; they are there twice until ScaNN has them.

        Args:
          blocks: float [b, dim] each, `num_rows` rows in all.
          num_rows: at least 1.
          dim: values of a row.
          distance: `l2` or `cosine`.
          settings: by default those for so many rows.
          threads: that build it; None: one for each core.

        Raises:
          InputError: unknown distance, no rows, rows of other shapes, with NaN or infinity or,
            for cosine, of zeros; settings that do not fit.
        """
        rows, start = np.empty((num_rows, dim), np.float32), 0
        for block in blocks:
            if block.ndim != 2 or block.shape[1] != dim or start + len(block) > num_rows:
                raise InputError(f"a block of {block.shape}: {num_rows} rows x {dim} were told")
            rows[start : start + len(block)] = block
            start += len(block)
        if start != num_rows:
            raise InputError(f"{start} rows came, {num_rows} were told")
        return cls.taking(rows, distance, settings, threads=threads)

    @classmethod
    def taking(
        cls,
        rows: np.ndarray,
        distance: str,
        settings: Settings | None = None,
        *,
        threads: int | None = None,
        measured: bool = False,
    ) -> "Searcher":
        """As `from_blocks`, of float32 [n, d] that it may write over.

        Args:
          measured: measure its recall where settings are given too.
        """
        _check_distance(distance)
        num_rows, dim = rows.shape
        if num_rows < 1:
            raise InputError("an index needs at least one row")
        given = settings
        settings = settings or Settings.for_rows(num_rows, dim, distance)
        settings.check(num_rows, dim, distance)
        for part in _parts(num_rows):
            _check(rows[part], distance, part.start)
        shift, exponent = np.zeros(dim, np.float32), 0
        if settings.is_exact or not scann_files.available():
            return cls(Exact(rows, distance), distance, dim, settings, shift, exponent)
        if distance == "cosine":
            for part in _parts(num_rows):
                rows[part] = _units(rows[part])
        # An inner product is no distance of what is shifted.
        if not settings.wants_inner_product:
            shift = distances.shift(rows)
            rows -= shift
            largest = max(float(rows.max()), -float(rows.min()))
            exponent = int(np.floor(np.log2(largest))) if largest > 0 else 0
            np.ldexp(rows, -exponent, out=rows)
        threads = threads or cores()
        engine = Scann(scann_files.build(rows, settings, threads), settings, dim)
        recall = None
        if given is None:
            engine, recall = fitting.fitting(engine, rows, distance, threads)
        elif measured:
            recall = fitting.recall(engine, rows)
        searcher = cls(engine, distance, dim, engine.settings, shift, exponent)
        searcher.recall = recall
        return searcher

    @property
    def lacks_scann(self) -> bool:
        """Whether it searches exactly for want of ScaNN, here or where it was built."""
        return self.is_exact and not self.settings.is_exact

    @property
    def num_rows(self) -> int:
        return self._engine.num_rows

    @property
    def nbytes(self) -> int:
        """Bytes of memory that rows, codes and leaves take, by their sizes."""
        return self._engine.nbytes

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        num_leaves_to_search: int | None = None,
        reordering_num_neighbors: int | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query, as far as they are found.

        Args:
          queries: float [q, d].
          k: number of neighbours, at least 1.
          num_leaves_to_search, reordering_num_neighbors: instead of those of the settings. At
            least k rows are reordered; by the settings for k above 10 as many for each neighbour
            as for 10, or four.
          threads: None: one for each core; exact search uses what it likes.

        Returns:
          rows int64 [q, k] and distances float32 [q, k], ascending; -1 and infinity where no
          further row is found.

        Raises:
          InputError: queries of other dimensions, with NaN or infinity, k below 1.
        """
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"queries of shape {queries.shape}: must be rows of {self.dim} values")
        if k < 1:
            raise InputError(f"k={k}: must be 1 or more")
        _check_values(queries, self.distance, "queries")
        if self.is_exact or not self.num_rows or not len(queries):
            return self._engine.search(queries, k)
        prepared = self._prepared(queries)
        s = self.settings
        reordered = reordering_num_neighbors or _reordered(s, k)
        numbers, values = self._engine.search(
            prepared,
            min(k, self.num_rows),
            min(max(k, reordered), self.num_rows) if s.reordering_num_neighbors else -1,
            min(num_leaves_to_search or s.num_leaves_to_search, s.num_leaves) or -1,
            threads or cores(),
        )
        width = numbers.shape[1]
        valid = np.isfinite(values) & (numbers < self.num_rows)
        rows = np.full((len(queries), k), -1, np.int64)
        result = np.full((len(queries), k), np.inf, np.float32)
        rows[:, :width] = np.where(valid, numbers, -1)
        result[:, :width] = np.where(valid, self._distances(values), np.inf)
        if self.distance == "cosine":
            # A query of zeros has cosine 0 with everything.
            zero = ~queries.any(axis=1)
            result[zero] = np.where(rows[zero] >= 0, 1, np.inf)
        return rows, result

    def upsert(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
        """Replaces rows, and adds those numbered from `num_rows` on.

        Args:
          numbers: int [m], no two alike; new ones leave no gap.
          vectors: float [m, d].

        Raises:
          InputError: numbers or rows that do not fit, or settings under which ScaNN cannot.
        """
        numbers, vectors = np.asarray(numbers, np.int64), np.asarray(vectors)
        if vectors.shape != (len(numbers), self.dim):
            raise InputError(f"vectors of shape {vectors.shape}: {len(numbers)} x {self.dim} fit")
        new = np.sort(numbers[numbers >= self.num_rows])
        gap = not np.array_equal(new, self.num_rows + np.arange(len(new)))
        if gap or len(np.unique(numbers)) < len(numbers) or numbers.min(initial=0) < 0:
            raise InputError("numbers of rows: each once, and new ones without a gap")
        # ScaNN gives new rows the next numbers.
        order = np.argsort(numbers, kind="stable")
        for part in _parts(len(order)):
            rows = vectors[order[part]]
            _check(rows, self.distance, 0)
            rows = rows if self.is_exact else self._prepared(rows)
            self._engine.upsert(numbers[order[part]], rows)

    def delete(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Removes rows; the last ones take the numbers of those that are gone.

        Args:
          numbers: int [m], no two alike.

        Returns:
          (places, moved), int64 [r] each: the row that was `moved[i]` is `places[i]` now. All
          others keep their numbers.

        Raises:
          InputError: numbers that no row has, or settings under which ScaNN cannot.
        """
        numbers = np.asarray(numbers, np.int64)
        gone = np.unique(numbers)
        if len(gone) < len(numbers) or (len(gone) and not 0 <= gone[0] <= gone[-1] < self.num_rows):
            raise InputError(f"numbers of rows: each once, from 0 to {self.num_rows - 1}")
        # From the highest down, so that the row that fills a hole always stays.
        at: dict[int, int] = {}
        last = self.num_rows - 1
        for number in gone[::-1].tolist():
            mover = at.pop(last, last)
            if number != last:
                at[number] = mover
            last -= 1
        self._engine.delete(gone[::-1])
        places = np.array(sorted(at), np.int64)
        return places, np.array([at[place] for place in places.tolist()], np.int64)

    def rebalance(self) -> None:
        """Makes leaves and codes anew of the rows that are there; takes as long as building."""
        self._engine.rebalance()

    def save(self, directory: str | os.PathLike) -> None:
        """Writes it to a directory, which may be moved. No file of it is a pickle."""
        if self.is_fallback:
            raise InputError(
                "without ScaNN, which cannot be imported here, an index of ScaNN can be searched, "
                "and not changed"
            )
        directory = files.make_dir(directory)
        assets = self._engine.save(directory)
        header = {
            "distance": self.distance,
            "dim": self.dim,
            "num_rows": self.num_rows,
            "settings": self.settings.to_json(),
            "shift": self._shift.tolist(),
            "exponent": self._exponent,
            "assets": assets,
        }
        files.write_json(directory / HEADER, header)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Searcher":
        """The searcher of a directory that `save` wrote; exact where ScaNN does not load.

        Raises:
          InputError: a file is missing or broken.
        """
        directory = Path(directory)
        header = files.read_json(directory / HEADER)
        try:
            settings = Settings.from_json(header["settings"])
            dim, exponent = int(header["dim"]), int(header["exponent"])
            distance, assets = header["distance"], dict(header["assets"])
            shift = np.array(header["shift"], np.float32)
            count = int(header["num_rows"])
            if shift.shape != (dim,) or distance not in DISTANCES:
                raise ValueError("shift or distance")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{directory / HEADER}: broken ({error}); build it again") from None
        try:
            if ROWS in assets:
                rows = np.load(directory / ROWS, allow_pickle=False)
                engine: object = Exact(rows, distance)
            elif scann_files.available():
                engine = Scann(scann_files.load(directory, assets), settings, dim)
            else:
                # As the index holds them: shifted, scaled, of unit length for cosine.
                rows = scann_files.stored_rows(directory, assets)
                engine = Exact(np.ldexp(rows, exponent) + shift, distance)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{directory}: cannot be read ({files.one_line(error)}); build it again"
            ) from None
        searcher = cls(engine, distance, dim, settings, shift, exponent)
        searcher.is_fallback = searcher.is_exact and ROWS not in assets
        if searcher.num_rows != count:
            raise InputError(f"{directory}: {searcher.num_rows} rows, {count} were saved")
        return searcher

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self.distance == "cosine":
            vectors = _units(vectors)
        return np.ldexp(vectors - self._shift, -self._exponent)

    def _distances(self, values: np.ndarray) -> np.ndarray:
        # Rounded rows, and inner products of rounded units, are at times nearer than none is.
        if self.settings.wants_inner_product:
            return np.maximum(1 - values, 0)
        scale = np.float32(4.0**self._exponent * (0.5 if self.distance == "cosine" else 1))
        return np.maximum(values * scale, 0)


def _reordered(settings: Settings, k: int) -> int:
    """Rows to reorder in a search for k neighbours that does not say how many."""
    usual = settings.reordering_num_neighbors
    return max(usual, math.ceil(min(usual / USUAL_K, MOST_FOR_EACH) * k))


def _parts(count: int) -> Iterable[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, count, _BLOCK_ROWS))


def _check_distance(distance: str) -> None:
    if distance not in DISTANCES:
        raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")


def _check(rows: np.ndarray, distance: str, start: int) -> None:
    """Refuses rows that have no place in an index. start: number of the first."""
    _check_values(rows, distance, "rows", start)
    if distance == "cosine":
        bad = np.flatnonzero(without_direction(rows))
        if len(bad):
            raise InputError(
                f"row {start + bad[0]}: has no direction, which cosine compares; leave it out"
            )


def _check_values(rows: np.ndarray, distance: str, where: str, start: int = 0) -> None:
    with np.errstate(over="ignore"):
        rows = np.asarray(rows, np.float32)
    check_finite(rows, range(start, start + len(rows)), where, distance)


def _units(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms).astype(np.float32)
