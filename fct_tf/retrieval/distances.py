"""Distances between queries and a gallery in blocks, and their order as exact arithmetic has it.

Distances are squared L2, or 1 - cosine. A block of them is a matrix product, which is fast and
rounds: rows whose distances differ by less than its rounding error could come out in any order.
So a block is used for what it settles, and what it does not is computed again:

1. Both sides are shifted by the gallery's median and scaled by a power of two. Neither changes a
   ranking; rows that are all alike become zeros, and a few rows far away move no median.
2. `Distances.slack` bounds how far two entries of a block may be off. Entries that differ by more
   are in their true order.
3. Where the order of closer ones matters, their distances are computed from the rows themselves
   (`Distances.exact`), to all digits of float64, and what is equal on paper is a tie.

So ranks depend neither on the processor nor on its linear algebra library. Where the shift leaves
rows that are long against their distances (groups far apart), the product is taken in float64:
float32 would settle nothing. Where all numbers are small integers the product is exact as it is.

The bound. Let u be the unit roundoff and n = d, or 16 sqrt(d) where that is less: the worst case of
d additions grows with d, what rounding errors that are independent add up to with its root (Higham
and Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4, here at more than 10 times its usual size).
An entry |g|^2 - 2 q g of rows of lengths |q| and |g| at distance D is off by at most

    u (2 (n + 2) |q| |g| + 4 |g|^2 + 2 D (|q| + |g|) + 8 D s),

the terms of the product, of the norm and the last subtraction, of the shift's rounding, and, for
cosines, of rows that were scaled to length s, which may move them 4 u s apart. A row at distance D
has |g| <= |q| + D, so that rows far away loosen nothing for those that are near.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import DISTANCES
from fct_tf.retrieval import pairs

# Entries of one block, per thread.
BLOCK_BYTES = 1 << 24
# Rows that the shift is estimated from, and queries that the bound is tried on.
SAMPLE_ROWS, SAMPLE_QUERIES = 1024, 64
# Pairs whose distance is computed from the rows at a time; where there are many, each pair of
# vectors is taken once: rows that are there several times are what makes so many.
PAIRS, MANY_PAIRS = 8192, 1 << 17
# A table that tells which values are near some intervals has so many places.
_BINS = 1024
# Float64 is taken where float32 may be off by this share of the distance to a near row.
_TOO_COARSE = 2.0**-9
# Where squared lengths are further apart than this, float32 loses digits to underflow.
_TOO_FAR = 2.0**80


class Distances:
    """All distances from queries to gallery rows.

    Attributes:
      dtype: of the blocks, float32 or float64.
      scale: float; an entry of a block plus its query's `own`, times it, is the distance.
      own: float64 [q], squared lengths of the shifted queries, which no ranking needs.
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        distance: str = "l2",
        precise: bool = False,
        one_length: bool | None = None,
    ):
        """Prepares both sides.

        Args:
          query: float [q, d]; what float32 holds of it counts.
          gallery: float [g, d], likewise.
          distance: `l2` (squared) or `cosine` (1 - cosine). A row of zeros has cosine 0 with
            everything.
          precise: take products in float64 anyway: where the order of all rows matters, float32
            leaves many of them to be computed again.
          one_length: of cosines, whether all rows have one length, those of other parts of the
            gallery too, so that none need be scaled; None: see these.

        Raises:
          InputError: unknown distance, different dimensions, or numbers near float32's end.
        """
        if distance not in DISTANCES:
            raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")
        if query.shape[1] != gallery.shape[1]:
            raise InputError(
                f"queries have {query.shape[1]} dimensions, gallery rows have {gallery.shape[1]}"
            )
        self._rows = [np.asarray(side, np.float32) for side in (query, gallery)]
        self._lengths = (
            [pairs.lengths(side) for side in self._rows] if distance == "cosine" else None
        )
        self._factor = 1.0
        if self._lengths and len(query) and len(gallery):
            length = self._lengths[0][0]
            if one_length is None:
                one_length = all((lengths == length).all() for lengths in self._lengths)
            if length > 0 and one_length:
                # Rows of one length, such as codes of -1 and 1, need not be scaled.
                self._lengths, self._factor = None, 0.5 / length**2
        self._check_sizes()
        self._prepare(np.float32)
        if self._rounding and (precise or self._is_exact(np.float64) or self._is_coarse()):
            self._prepare(np.float64)

    def _check_sizes(self) -> None:
        """Refuses rows whose lengths, or twice a difference of two, float32 cannot hold."""
        largest = max(float(max(s.max(initial=0), -s.min(initial=0))) for s in self._rows)
        limit = np.finfo(np.float32).max / (4 * max(1, self._rows[0].shape[1]) ** 0.5)
        if largest > limit:
            raise InputError(
                f"embeddings with numbers as great as {largest:.3g}, {limit:.3g} is the most that "
                "distances can be computed of; leave these rows out, or divide all by one number"
            )

    @functools.cached_property
    def _first(self) -> list[np.ndarray]:
        """int64 [n] of either side: the first row with the same vector as each."""
        first_rows = []
        for side in self._rows:
            _, first, inverse = np.unique(side, axis=0, return_index=True, return_inverse=True)
            first_rows.append(first[inverse.reshape(-1)])
        return first_rows

    def _prepare(self, dtype: Any) -> None:
        """Shifts and scales both sides, in `dtype`."""
        self.dtype = dtype
        sides = self._units(dtype)
        self._shift = shift(sides[1])
        query, gallery = (side - self._shift for side in sides)
        largest = max(float(np.abs(side).max(initial=0)) for side in (query, gallery))
        self._exponent = int(np.floor(np.log2(largest))) if largest > 0 else 0
        self._query = np.ldexp(query, 1 - self._exponent, out=query)  # Twice, for 2 q g.
        self._gallery = np.ldexp(gallery, -self._exponent, out=gallery)
        norms = np.einsum("ij,ij->i", gallery, gallery, dtype=np.float64)
        self._norms = norms.astype(dtype)
        self._longest = float(np.sqrt(norms.max(initial=0)))
        self.own = np.einsum("ij,ij->i", query, query, dtype=np.float64) / 4
        # For unit vectors |q - g|^2 = 2 - 2 cos.
        self.scale = 4.0**self._exponent * (0.5 if self._lengths else self._factor)
        self._rounding = 0.0 if self._is_exact(dtype) else float(np.finfo(dtype).eps) / 2

    def _units(self, dtype: Any) -> list[np.ndarray]:
        """The rows; for cosines at length 1, and rows of zeros in a dimension of their own."""
        if not self._lengths:
            return [side.astype(dtype, copy=False) for side in self._rows]
        zeros = [lengths == 0 for lengths in self._lengths]
        units = [
            side / np.where(zero, 1, lengths).astype(dtype)[:, None]
            for side, lengths, zero in zip(self._rows, self._lengths, zeros, strict=True)
        ]
        if zeros[0].any() or zeros[1].any():
            none = [np.zeros(len(zero), dtype) for zero in zeros]
            units[0] = np.column_stack([units[0], zeros[0].astype(dtype), none[0]])
            units[1] = np.column_stack([units[1], none[1], zeros[1].astype(dtype)])
        return units

    def _is_exact(self, dtype: Any) -> bool:
        """Whether all numbers are multiples of one so large that products are not rounded."""
        if self._lengths and any((np.frexp(side)[0] != 0.5).any() for side in self._lengths):
            return False
        # Numbers of so many digits have products and sums of d of them that `dtype` holds.
        dims = max(1, self._query.shape[1])
        digits = (np.finfo(dtype).nmant - 4 - int(np.ceil(np.log2(dims)))) // 2
        sides = self._units(np.float32)
        # First a few: most galleries are no integers.
        for part in (sides[0][:16], sides[1][:16], *sides, self._shift):
            multiples = np.ldexp(part, digits - self._exponent)
            if not np.array_equal(multiples, np.rint(multiples)):
                return False
        return True

    def _is_coarse(self) -> bool:
        """Whether rounding hides much of the distances from many queries to near rows: a sample."""
        if not len(self._query) or not len(self._gallery):
            return False
        asked = np.arange(0, len(self._query), len(self._query) // SAMPLE_QUERIES + 1)
        query = self._query[asked].astype(np.float64)
        gallery = self._gallery[:: len(self._gallery) // SAMPLE_ROWS + 1].astype(np.float64)
        norms = np.einsum("ij,ij->i", gallery, gallery)
        if max(self._longest**2, self.own.max()) > _TOO_FAR * np.median(norms):
            return True
        near = np.quantile(norms - query @ gallery.T, 0.02, axis=1)
        slack = self.slack(asked, near)
        return bool(np.mean(slack > _TOO_COARSE * (near + self.own[asked])) > 0.1)

    def slack(self, queries: Any, entries: np.ndarray) -> np.ndarray:
        """How much two entries of a block may lie apart and yet be in the wrong order.

        Args:
          queries: int [n] or slice of n.
          entries: float [n], of a block of each query. The bound holds for entries up to here.

        Returns:
          float64 [n].
        """
        own = self.own[queries]
        length = np.sqrt(own)
        terms = min(self._query.shape[1], 16 * self._query.shape[1] ** 0.5) + 2
        # The entry itself is off by a bound as of two rows as long as the query.
        squared = np.maximum(entries + own, 0) + 8 * terms * self._rounding * own
        unit = 2.0**-self._exponent if self._lengths else 0.0
        apart = np.sqrt(squared) + 4 * self._rounding * unit
        other = np.minimum(self._longest, length + apart)
        bound = 2 * terms * length * other + 4 * other**2 + 2 * apart * (length + other + 4 * unit)
        return 2.1 * self._rounding * bound

    def block(self, part: slice, exclude: np.ndarray | None = None) -> "Block":
        """The queries of a slice against all gallery rows.

        Args:
          part: of the queries.
          exclude: int [block], a gallery row that does not count for each query, -1: none.
        """
        entries = self._query[part] @ self._gallery.T
        np.subtract(self._norms, entries, out=entries)
        if exclude is not None:
            rows = np.flatnonzero(exclude >= 0)
            entries[rows, exclude[rows]] = np.inf
        return Block(self, part, entries)

    def exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Distances of pairs, from the rows themselves: float64 [n].

        Squared L2 is what float64 holds of the true value, and cosine distances are rounded to 44
        bits: what is equal on paper is a tie. Either is the same from both sides.

        Args:
          queries, rows: int [n] each.
        """
        if len(queries) > MANY_PAIRS:
            query, row = (self._first[0][queries], self._first[1][rows])
            pair, back = np.unique(query * len(self._rows[1]) + row, return_inverse=True)
            if len(pair) < len(queries) // 2:
                return self.exact(*np.divmod(pair, len(self._rows[1])))[back]
        distances = np.empty(len(queries))
        for start in range(0, len(queries), PAIRS):
            part = slice(start, start + PAIRS)
            query = self._rows[0][queries[part]].astype(np.float64)
            gallery = self._rows[1][rows[part]].astype(np.float64)
            if self._lengths:
                lengths = self._lengths[0][queries[part]], self._lengths[1][rows[part]]
                distances[part] = pairs.cosine(query, gallery, *lengths)
            else:
                distances[part] = self._factor * pairs.squared(query, gallery)
        return distances


@dataclass(frozen=True)
class Block:
    """Some queries against all gallery rows.

    Attributes:
      of: whose rows these are.
      part: of the queries.
      entries: float [block, g], see `Distances.scale`. Callers set pairs that do not count to
        infinity.
    """

    of: Distances
    part: slice
    entries: np.ndarray

    def exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`Distances.exact` of queries that are numbered within the block."""
        return self.of.exact(queries + self.part.start, rows)

    def limits(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(slack, the largest entry that may belong below `entries`), each of the block's dtype.

        Args:
          entries: float [block], one of each query; infinite where every row counts.
        """
        finite = np.isfinite(entries)
        finite_entries = np.where(finite, entries, 0).astype(np.float64)
        asked = np.arange(self.part.start, self.part.start + len(entries))
        slack = self.of.slack(asked, finite_entries).astype(self.of.dtype)
        return slack, np.where(finite, entries + slack, np.finfo(self.of.dtype).max)

    def nearest(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query, of equal distances the first rows.

        Returns:
          rows int64 [block, k] and distances float64 [block, k], ascending; -1 and infinity where
          fewer rows count.
        """
        entries = self.entries
        rows = np.full((len(entries), k), -1, np.int64)
        distances = np.full((len(entries), k), np.inf)
        kept = min(k, entries.shape[1])
        if kept == 0 or not len(entries):
            return rows, distances
        last = entries.min(1) if kept == 1 else np.partition(entries, kept - 1, axis=1)[:, kept - 1]
        query, row = np.nonzero(entries <= self.limits(last)[1][:, None])
        distance = self.exact(query, row)
        order = np.lexsort((row, distance, query))
        query = query[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        order, query, place = (of[place < kept] for of in (order, query, place))
        rows[query, place], distances[query, place] = row[order], distance[order]
        return rows, distances

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows of each query, nearest first; of equal distances the first rows.

        Returns:
          (order int64 [block, g], farther bool [block, g]: whether each is farther than the one
          before it, true for the first).
        """
        order = np.argsort(self.entries, axis=1)
        ascending = np.take_along_axis(self.entries, order, axis=1)
        finite = np.isfinite(ascending)
        top = np.where(finite, ascending, -np.inf).max(axis=1, initial=-np.inf)
        slack, _ = self.limits(top)
        with np.errstate(invalid="ignore"):  # Infinite less infinite.
            close = np.diff(ascending, axis=1) <= slack[:, None]
        farther = np.ones(order.shape, bool)
        # Rows that are close to the one before or behind them, in groups.
        member = np.zeros(order.shape, bool)
        member[:, 1:] |= close
        member[:, :-1] |= close
        query, place = np.nonzero(member)
        starts = np.ones(order.shape, bool)
        starts[:, 1:] = ~close
        group, row = np.cumsum(starts[member]), order[member]
        distance = self.exact(query, row)
        by_distance = np.lexsort((row, distance, group))
        order[query, place] = row[by_distance]
        distance = distance[by_distance]
        same = (group[1:] == group[:-1]) & (distance[1:] == distance[:-1])
        farther[query[1:][same], place[1:][same]] = False
        return order, farther

    def counts(
        self, first: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many rows are no farther than each of a query's own.

        Args:
          first, last: int [block], the own rows of each query; those at infinity do not count.

        Returns:
          (of_own, of_all, offset): int64 [n] each, own rows and all rows that are as near or
          nearer, for the own rows of all queries, nearest first; those of query i stand from
          offset[i] to offset[i + 1].
        """
        marks, top = [], np.empty(len(first), self.of.dtype)
        for at, (row, start, stop) in enumerate(zip(self.entries, first, last, strict=True)):
            own = np.sort(row[start:stop])
            own = own[: np.searchsorted(own, np.inf)]
            top[at] = own[-1] if len(own) else -np.inf
            marks.append(own)
        offset = np.concatenate([[0], np.cumsum([len(own) for own in marks])])
        of_own = np.arange(1, offset[-1] + 1) - np.repeat(offset[:-1], np.diff(offset))
        of_all = np.empty(offset[-1], np.int64)
        slack, limit = self.limits(top)
        close, groups = [], 0
        for at, own in enumerate(marks):
            if not len(own):
                continue
            row = self.entries[at]
            columns = np.flatnonzero(row <= limit[at])
            near = row.take(columns)
            ordered = np.sort(near)
            low = ordered.searchsorted(own - slack[at])
            high = ordered.searchsorted(own + slack[at], side="right")
            of_all[offset[at] : offset[at + 1]] = high
            if not slack[at]:
                of_own[offset[at] : offset[at + 1]] = own.searchsorted(own, side="right")
            elif (high - low > 1).any():
                # Own rows that share no row within the slack settle apart from each other.
                apart = np.flatnonzero(low[1:] >= high[:-1])
                starts, ends = np.append(0, apart + 1), np.append(apart, len(own) - 1)
                many = high[ends] - low[starts] > 1
                starts, ends = starts[many], ends[many]
                members, group = between(near, own[starts] - slack[at], own[ends] + slack[at])
                query = np.full(len(members), at)
                close.append(
                    (query, columns[members], groups + group, offset[at] + starts, low[starts])
                )
                groups += len(starts)
        if close:
            pairs_and_groups = [np.concatenate(parts) for parts in zip(*close, strict=True)]
            self._settle(pairs_and_groups, first, last, offset, of_own, of_all)
        return of_own, of_all, offset

    def _settle(self, pairs_and_groups, first, last, offset, of_own, of_all) -> None:
        """Counts again, by exact distances, for groups of rows that lie closer than the slack.

        Args:
          pairs_and_groups: query, row and group, int [m], the pairs in these groups, which are
            numbered from 0; then place and nearer, int [groups], where the first own row of each
            stands in the counts, and how many rows are nearer than the group.
          others: as in `counts`.
        """
        query, row, group, place, nearer = pairs_and_groups
        distance = self.exact(query, row)
        order = np.lexsort((distance, group))
        query, row, group, distance = (of[order] for of in (query, row, group, distance))
        is_own = (first[query] <= row) & (row < last[query])
        # Rows at one distance are counted together: up to the last of them.
        changes = (group[1:] != group[:-1]) | (distance[1:] != distance[:-1])
        ends = np.append(np.flatnonzero(changes), len(row) - 1)
        end = ends[np.concatenate([[0], np.cumsum(changes)])][is_own]
        of_group = group[is_own]
        start = np.searchsorted(group, np.arange(len(place)))[of_group]
        upto = np.cumsum(is_own)
        before = (upto - is_own)[start]
        at = place[of_group] + upto[is_own] - 1 - before
        of_all[at] = nearer[of_group] + end + 1 - start
        of_own[at] = place[of_group] - offset[query[is_own]] + upto[end] - before


def between(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which values lie in one of some intervals, and in which: (places, intervals), int [n] both.

    Args:
      values: float [m].
      low, high: float [k], bounds of intervals that do not overlap, ascending.
    """
    # Most values are left out by a table of bins, in one pass without a search.
    width = high[-1] - low[0]
    scale = _BINS / width if width > 0 else width
    first, last = (
        np.minimum((edge - low[0]) * scale, _BINS).astype(np.int64) for edge in (low, high)
    )
    holds = np.bincount(first, minlength=_BINS + 2) - np.bincount(last + 1, minlength=_BINS + 2)
    places = np.flatnonzero((values >= low[0]) & (values <= high[-1]))
    bins = np.minimum((values[places] - low[0]) * scale, _BINS).astype(np.int32)
    places = places[(np.cumsum(holds) > 0)[bins]]
    kept = values[places]
    interval = high.searchsorted(kept)
    within = low[interval] <= kept
    return places[within], interval[within]


def shift(gallery: np.ndarray) -> np.ndarray:
    """What to subtract from rows so that few of their digits say where they all are.

    Args:
      gallery: float [g, d].

    Returns:
      The same type [d], near the median of each dimension, which a few rows far away do not move,
      on a grid of the size of its spread, so that integers are shifted by an integer.
    """
    if not len(gallery):
        return np.zeros(gallery.shape[1], gallery.dtype)
    sample = np.sort(gallery[:: len(gallery) // SAMPLE_ROWS + 1].astype(np.float64), axis=0)
    middle = sample[len(sample) // 2]
    spread = sample[len(sample) * 3 // 4] - sample[len(sample) // 4]
    grid = 2.0 ** np.floor(np.log2(np.where(spread > 0, spread, 1)))
    return np.where(spread > 0, np.round(middle / grid) * grid, middle).astype(gallery.dtype)


def blocks(queries: int, gallery: int, size: int | None = None) -> Iterator[slice]:
    """Slices of the queries, of `size` or of as many as fit `BLOCK_BYTES`."""
    # At least 16: products of fewer rows read the whole gallery for too little work.
    size = size or max(16, min(1024, BLOCK_BYTES // (4 * max(1, gallery))))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def run(
    work: Callable[[slice], None],
    blocks: Iterator[slice],
    progress: str = "",
    threads: int | None = None,
) -> None:
    """Runs `work` on every block in one thread per core: NumPy sorts without Python's lock."""
    todo = list(blocks)
    if threads is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        threads = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    with ThreadPoolExecutor(max(1, min(threads or 1, len(todo)))) as pool:
        done = pool.map(work, todo)
        for _ in tqdm(done, progress, len(todo), disable=None if progress else True):
            pass
