"""Identity verification (1:1): TAR at FAR and the ROC from all pairs of labelled rows.

A label is an identity. Rows without label are left out: nobody knows whether they are the same.
Every query is compared with every gallery row of another id. With one column as both sides each
pair is met from both ends; with two columns these are two comparisons.

* Threshold at false accept rate f: of N different-label pairs, `floor(f N)` may pass; it is the
  (`floor(f N)` + 1)-th smallest of their distances.
* A pair passes where its distance is *strictly* below it. So at most f N different-label pairs
  pass, fewer where some lie at the threshold itself, and a model that maps everything to one
  point passes nothing. No other threshold with a false accept rate of f or less lets more pass.
* TAR@FAR is the share of same-label pairs that pass.

As in BCT (arXiv 2003.11942) on IJB-C, but over single images instead of templates.

Exact, in memory that does not grow with the different-label pairs: their distances are counted in
bins by their upper 16 bits (float32 above 0 sort as their bits do), then, in a second pass, those
of the bins that hold a threshold by their lower 16. Same-label pairs are kept, 4 bytes each. Pairs
that lie closer to a threshold than products may be off are counted by their exact distances in a
third pass. The ROC rests on the bins alone: a pair or two of millions may stand in the next one.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import distances, exact

Labels = Sequence[str | None] | np.ndarray
# Of vectors float [n, d], n ids and n labels.
Side = tuple[np.ndarray, Sequence[str] | np.ndarray, Labels]

_BINS = 1 << 16
_INFINITE = 0x7F80  # The bin of infinity, where pairs that do not count stand.
# Distances below it, zero and what rounding makes of it, are one.
_NEAREST = np.finfo(np.float32).smallest_normal
_ROC_POINTS = 100


@dataclass(frozen=True)
class Verification:
    """Same-label pairs that pass at each of F false accept rates.

    position: int64 [q], the rows of the labelled queries. num_same: int64 [q], each one's
    same-label pairs; passed: int64 [q, F], those that pass. num_different: all different-label
    pairs; false_accepts: int64 [F], those that pass. thresholds: float64 [F], distances (squared
    L2, or 1 - cosine). roc: float64 [points, 2], false and true accept rate at thresholds that
    are spread over all rates.
    """

    fars: tuple[float, ...]
    thresholds: np.ndarray
    position: np.ndarray
    num_same: np.ndarray
    passed: np.ndarray
    num_different: int
    false_accepts: np.ndarray
    roc: np.ndarray

    @property
    def tar(self) -> np.ndarray:
        """float64 [F]: TAR@FAR over all same-label pairs."""
        return self.passed.sum(axis=0) / self.num_same.sum()


def allowed(rate: float, count: int) -> int:
    """`floor(rate * count)`, of the decimal number that is meant: 0.29 of 100 are 29."""
    if not 0 < rate < 1:
        raise InputError(f"rate {rate}: false accept and alarm rates lie between 0 and 1")
    return math.floor(Fraction(repr(float(rate))) * int(count))


class Pairs(NamedTuple):
    """Labelled queries (`position`) and, in columns `first` to `last`, their same-label rows.

    own: the row with the query's own id, -1: none.
    """

    position: np.ndarray
    first: np.ndarray
    last: np.ndarray
    own: np.ndarray
    num_gallery: int
    sides: distances.Distances

    @property
    def num_same(self) -> np.ndarray:
        """int64 [q]: each query's same-label rows, its own left out."""
        return self.last - self.first - ((self.first <= self.own) & (self.own < self.last))

    @property
    def num_different(self) -> np.ndarray:
        """int64 [q]: each query's different-label rows, one of its own id left out."""
        return self.num_gallery - (self.own >= 0) - self.num_same

    def parts(self, block: int | None = None) -> list[slice]:
        """The blocks of queries, of `block` or of as many as fit `distances.BLOCK_BYTES`."""
        return list(distances.blocks(len(self.position), self.num_gallery, block))

    def block(self, part: slice) -> distances.Block:
        """Some of the queries; own rows at infinity."""
        return self.sides.block(part, self.own[part])

    def table(self, block: distances.Block) -> np.ndarray:
        """float32 [block, gallery], distances over `sides.scale`; infinite for own rows."""
        own = self.sides.own[block.part, None].astype(block.entries.dtype)
        return np.maximum((block.entries + own).astype(np.float32, copy=False), _NEAREST)

    def slack(self, limit: float) -> np.ndarray:
        """float64 [q]: how far off, at `limit`, entries of `table` may be; 0 where none is."""
        slack = self.sides.slack(slice(None), limit - self.sides.own)
        if self.sides.dtype == np.float32 and not slack.any():
            return slack
        return slack + 2.0**-22 * (limit + self.sides.own)


def label_pairs(query: Side, gallery: Side, distance: str) -> Pairs:
    """Pairs of labelled rows; errors as `verify`."""
    codes, gallery_codes = exact.label_codes(query[2], gallery[2])
    position = np.flatnonzero(codes > -2)
    codes = codes[position]
    # Rows of one label stand together, so that the matches of a query are one slice.
    order = np.argsort(gallery_codes, kind="stable")[np.sum(gallery_codes < 0) :]
    first, last = (
        np.searchsorted(gallery_codes[order], codes, side=side)
        for side in ("left", "right")  # Both 0 for a label that the gallery does not have.
    )
    ids = np.asarray(query[1], object)[position], np.asarray(gallery[1], object)[order]
    own = exact.row_numbers(*ids)
    sides = distances.Distances(query[0][position], gallery[0][order], distance)
    return Pairs(position, first, last, own, len(order), sides)


def verify(
    query: Side,
    gallery: Side,
    fars: Sequence[float] = (1e-3, 1e-4),
    distance: str = "l2",
    block: int | None = None,
    progress: str = "",
) -> Verification:
    """Verification over all pairs of labelled rows with different ids.

    Args:
      query, gallery: (vectors float [n, d], n ids, n labels or None).
      fars: false accept rates, each between 0 and 1.
      distance: `l2` or `cosine`.
      block: queries per block; by default as many as fit `distances.BLOCK_BYTES`.
      progress: label of the progress bars, one for each pass; none when empty.

    Raises:
      InputError: no pair of one label, none of two, a rate out of bounds, unknown distance or
        different dimensions.
    """
    for far in fars:
        allowed(far, 0)
    pairs = label_pairs(query, gallery, distance)
    num_different = int(pairs.num_different.sum())
    if not num_different or not pairs.num_same.any():
        what = "one label" if num_different else "different labels"
        raise InputError(
            f"no two rows with {what} to compare; verification needs pairs of both kinds: label "
            "more rows"
        )
    ranks = [allowed(far, num_different) for far in fars]
    ranked = at_ranks(pairs, ranks, block, progress)
    return Verification(
        tuple(float(far) for far in fars),
        np.array([threshold for threshold, _, _ in ranked.settled]),
        pairs.position,
        pairs.num_same,
        np.stack([passed for _, passed, _ in ranked.settled], axis=1),
        num_different,
        np.array([accepts for _, _, accepts in ranked.settled], np.int64),
        _roc(ranked.upto, ranked.same[np.isfinite(ranked.same)]),
    )


class Ranked(NamedTuple):
    """What `at_ranks` finds.

    settled: for each rank (the distance below which so many different-label pairs lie, or fewer
    where some tie; same-label pairs of each query that pass, int64 [q]; different-label ones).
    same: float32 [same-label pairs], entries of `Pairs.table`, infinite for own rows. upto:
    different-label pairs by the upper bits of their entries, summed up.
    """

    settled: list[tuple[float, np.ndarray, int]]
    same: np.ndarray
    upto: np.ndarray


def at_ranks(
    pairs: Pairs, ranks: Sequence[int], block: int | None = None, progress: str = ""
) -> Ranked:
    """The (rank + 1)-th smallest distance of different-label pairs, for each rank, and what passes.

    Args:
      ranks: each from 0 to the number of different-label pairs less one.
      block, progress: as for `verify`.
    """
    first, last = pairs.first, pairs.last
    offset = _upto(last - first)
    same = np.empty(offset[-1], np.float32)
    coarse, lock = np.zeros(_BINS, np.int64), threading.Lock()

    def different(part: slice) -> np.ndarray:
        """Bits of the distances of different-label pairs; their same-label ones go to `same`."""
        table = pairs.table(pairs.block(part))
        for row, at in zip(table, range(part.start, part.stop), strict=True):
            same[offset[at] : offset[at + 1]] = row[first[at] : last[at]]
            row[first[at] : last[at]] = np.inf
        return table.view(np.uint32).ravel()

    def count(part: slice) -> None:
        histogram = np.bincount(different(part) >> 16, minlength=_BINS)
        with lock:
            coarse[:] += histogram

    # The same blocks in both passes: a product of another shape may round otherwise.
    parts = pairs.parts(block)
    distances.run(count, iter(parts), progress and f"{progress}, counting")
    coarse[_INFINITE:] = 0
    upto = np.cumsum(coarse)
    bins = np.searchsorted(upto, ranks, side="right")
    fine = {int(bin_): np.zeros(_BINS, np.int64) for bin_ in bins}

    def refine(part: slice) -> None:
        bits = different(part)
        for bin_, counts in fine.items():
            # Unsigned: what lies below the bin is far above it.
            inside = bits[bits - np.uint32(bin_ << 16) < _BINS] & (_BINS - 1)
            histogram = np.bincount(inside, minlength=_BINS)
            with lock:
                counts += histogram

    distances.run(refine, iter(parts), progress and f"{progress}, thresholds")
    limits = np.empty(len(ranks), np.uint32)
    for at, (rank, bin_) in enumerate(zip(ranks, bins.tolist(), strict=True)):
        below = upto[bin_] - coarse[bin_] + np.cumsum(fine[bin_]) - fine[bin_]
        limits[at] = (bin_ << 16) + np.searchsorted(below, rank, side="right") - 1
    settled = [
        _settle(pairs, parts, float(limit), int(rank), progress and f"{progress}, {at}")
        for at, (limit, rank) in enumerate(zip(limits.view(np.float32), ranks, strict=True), 1)
    ]
    return Ranked(settled, same, upto)


def _settle(
    pairs: Pairs, parts: Sequence[slice], limit: float, rank: int, progress: str
) -> tuple[float, np.ndarray, int]:
    """The threshold near `limit` and what passes it, by exact distances of pairs close to it.

    Args:
      limit: entry of `Pairs.table` that is about the threshold.
      rank: so many different-label pairs may lie below the threshold.

    Returns:
      (threshold, same-label pairs of each query that pass, int64 [q], different-label ones).
    """
    slack, scale = pairs.slack(limit), pairs.sides.scale
    # The threshold itself may be off as well: by as much as most pairs, or more where that fails.
    room = float(np.median(slack))
    while True:
        interval = limit - slack - room, limit + slack + room
        passed, below, close = _around(pairs, parts, *interval, progress)
        if not slack.any():
            return limit * scale, passed, below
        query, of_same, different, times = close
        order = np.argsort(different)
        upto = below + np.cumsum(times[order])
        at = int(np.searchsorted(upto, rank, side="right"))
        if below <= rank and at < len(order):
            threshold = float(different[order[at]])
            if abs(threshold / scale - limit) <= room:
                np.add.at(passed, query, of_same < threshold)
                return threshold, passed, below + int(times[different < threshold].sum())
        room = 8 * room + limit / 1024


def _around(
    pairs: Pairs, parts: Sequence[slice], low: np.ndarray, high: np.ndarray, progress: str
) -> tuple[np.ndarray, int, list[np.ndarray]]:
    """Counts the pairs below an interval and measures those within it.

    Args:
      low, high: float64 [q], the interval of each query's entries of `Pairs.table`; where they
        are equal for all nothing is measured, since many pairs may tie there.

    Returns:
      (same-label pairs below of each query int64 [q], different-label ones in all, [query int64
      and exact distance float64 of each same-label pair within; distances of the different-label
      ones float64, each once, and how often it is there int64]).
    """
    passed, below, lock = np.zeros(len(pairs.position), np.int64), 0, threading.Lock()
    close: list[tuple[np.ndarray, ...]] = []
    measures = (low < high).any()

    def count(part: slice) -> None:
        nonlocal below
        block = pairs.block(part)
        table = pairs.table(block)
        nearer = table < low[part, None]
        first, last = pairs.first[part], pairs.last[part]
        passed[part] = [
            np.count_nonzero(row[start:stop])
            for row, start, stop in zip(nearer, first, last, strict=True)
        ]
        within = ~nearer & (table <= high[part, None]) & measures
        query, row = np.nonzero(within)
        distance = block.exact(query, row)
        same = (first[query] <= row) & (row < last[query])
        different = np.unique(distance[~same], return_counts=True)
        with lock:
            below += int(np.count_nonzero(nearer) - passed[part].sum())
            close.append((part.start + query[same], distance[same], *different))

    distances.run(count, iter(parts), progress)
    return passed, below, [np.concatenate(side) for side in zip(*close, strict=True)]


def _upto(values: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: how many of the values before each place are true."""
    return np.concatenate([[0], np.cumsum(values)])


def _roc(upto: np.ndarray, same: np.ndarray) -> np.ndarray:
    """float64 [points, 2]: rates at lower edges of bins, whose counts are exact."""
    below = np.concatenate([[0], upto[:_INFINITE]])
    counts = np.geomspace(1, upto[-1], _ROC_POINTS).round().astype(np.int64)
    edges = np.unique(np.searchsorted(below, np.append(0, counts), side="right") - 1)
    limits = (edges << 16).astype(np.uint32).view(np.float32)
    accepted = np.searchsorted(np.sort(same), limits, side="left")
    return np.stack([below[edges] / upto[-1], accepted / len(same)], axis=1)


def tar_intervals(
    found: Verification, labels: Labels, resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap intervals of TAR@FAR over the identities of the queries.

    Whole identities are drawn, since rows of one identity are easy or hard together. The
    thresholds stay as they are: what they owe to these identities is not in the interval.

    Args:
      found: of `verify`.
      labels: [queries], of all queries.
      resamples: of the bootstrap, at least 1.
      seed: of the resamples.

    Returns:
      (low, high), float64 [F] each.
    """
    asked = found.num_same > 0
    table = np.column_stack([found.passed, found.num_same])[asked]
    drawn = drawn_identities(labels, found.position[asked], resamples, seed)
    sums = np.array([weight @ table for weight in drawn])
    return percentiles(sums[:, :-1] / sums[:, -1:])


def drawn_identities(
    labels: Labels, position: np.ndarray, resamples: int, seed: int | Sequence[int]
) -> Iterator[np.ndarray]:
    """How often each query counts in each resample of their identities.

    Args:
      labels: [queries], of all queries.
      position: int [n], rows of the queries that count.

    Yields:
      int64 [n], the same for all queries of one label.
    """
    texts = np.asarray(labels, object)[position].astype(str)
    names, identity = np.unique(texts, return_inverse=True)
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(0, len(names), len(names))
        yield np.bincount(drawn, minlength=len(names))[identity]


def percentiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of each column of float [resamples, columns]."""
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low, high
