"""A threshold of distances carried over to other spaces, at an equal false accept rate.

Who takes rows nearer than 0.62 for the same has chosen a false accept rate, though he may not know
it. Another model's distances are others; the threshold that keeps the rate is found on one set of
rows in all spaces. Definitions, those of `verification` (distances are squared L2 or 1 - cosine,
a pair passes strictly below the threshold, each pair is met from both ends):

* Of N different-label pairs, A pass the threshold t of the first case. In another case it becomes
  the (A + 1)-th smallest distance of its N different-label pairs, so that A of them pass, or fewer
  where some tie. Carried over to its own space a threshold lets the same pairs pass.
* Without labels all pairs of different rows count: quantiles of all distances.
* Intervals are 95 % bootstrap intervals over identities (labels, or rows where there are none),
  drawn once for all cases. A pair counts once for each draw of either end, w_i w_j; it is taken
  as w_i + w_j - 1, which leaves out what is small of second order (Hajek's projection), so that
  counts of each row suffice. The interval of a carried threshold u runs from quantile to quantile
  of its distances, at the rates A/N f(t) / f(u) of the resamples, with f(t) and f(u) the rates at
  t in the first case and at u in the other, each over that of all rows: the same draws move both,
  and what they have in common cancels. (Bahadur's representation of quantiles, with a factor
  instead of a term: no rate is negative, and draws move small rates by less than large ones.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import distances, verification
from fct_tf.retrieval.agreement import Case, Estimate


class Passing(NamedTuple):
    """Pairs nearer than each of T thresholds.

    same: int64 [q, T], same-label pairs of each query. different: int64 [q, T], different-label
    pairs that have each row at either end. total: int64 [T], different-label pairs.
    """

    same: np.ndarray
    different: np.ndarray
    total: np.ndarray


@dataclass(frozen=True)
class Carried:
    """A threshold in another case, and what it lets pass there.

    value: the distance and its interval. num_false_accepts: different-label pairs that pass. tar:
    share of same-label pairs that pass, and `tar_difference` to the first case, paired; None
    where there are no such pairs.
    """

    value: Estimate
    num_false_accepts: int
    tar: Estimate | None
    tar_difference: Estimate | None


@dataclass(frozen=True)
class Translated:
    """A threshold of the first case, and what becomes of it in the others.

    far: share of the `num_pairs` different-label pairs that pass; `num_false_accepts` do.
    """

    threshold: float
    num_pairs: int
    num_false_accepts: int
    far: Estimate
    tar: Estimate | None
    cases: dict[str, Carried]


def passing(pairs: verification.Pairs, thresholds: Sequence[float], progress: str = "") -> Passing:
    """Counts the pairs strictly below each threshold, exactly, in one pass over blocks.

    Args:
      pairs: of the same rows on both sides.
      thresholds: distances.
    """
    # Own rows stand at infinity and must stay beyond.
    limits = np.minimum(np.array(thresholds) / pairs.sides.scale, np.finfo(np.float32).max)
    slacks = [pairs.slack(limit) for limit in limits]
    shape, lock = (len(pairs.position), len(limits)), Lock()
    same, by_query = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    by_row = np.zeros((pairs.num_gallery, len(limits)), np.int64)

    def count(part: slice) -> None:
        block = pairs.block(part)
        table = pairs.table(block)
        for at, (threshold, limit, slack) in enumerate(
            zip(thresholds, limits, slacks, strict=True)
        ):
            near = slack[part, None]
            nearer = table < limit - near
            query, row = np.nonzero(~nearer & (table <= limit + near) & (near > 0))
            nearer[query, row] = block.exact(query, row) < threshold
            for one, number in zip(nearer, range(part.start, part.stop), strict=True):
                own_label = slice(pairs.first[number], pairs.last[number])
                same[number, at] = np.count_nonzero(one[own_label])
                one[own_label] = False
            by_query[part, at] = nearer.sum(axis=1)
            row_counts = nearer.sum(axis=0)
            with lock:
                by_row[:, at] += row_counts

    distances.run(count, iter(pairs.parts()), progress)
    return Passing(same, by_query + by_row[pairs.own], by_query.sum(axis=0))


def translate(
    cases: Mapping[str, Case],
    ids: np.ndarray,
    labels: np.ndarray | None,
    thresholds: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
    progress: str = "",
) -> list[Translated]:
    """Carries thresholds of the first case over to the others.

    Args:
      cases: by name, all over the same n items.
      ids: object [n] of str.
      labels: object [n] of str or None, at least two different ones; items without are left out.
        None: all pairs of different items count as different.
      thresholds: distances of the first case.
      resamples: of the bootstrap, at least 1.
      seed: of the resamples.
      progress: label of the progress bars; none when empty.

    Raises:
      InputError: no pair passes a threshold, or all do: names the limits that the rows can tell.
    """
    thresholds, identities = [float(value) for value in thresholds], labels
    if identities is None:
        identities = ids
    (first, case), *others = cases.items()
    bar = progress and f"{progress}, thresholds of {first}"
    pairs = _pairs(case, ids, identities)
    before = passing(pairs, thresholds, bar)
    number = int(pairs.num_different.sum())
    _check(pairs, before.total, number, thresholds, labels is not None)
    # [resamples, ..]: how often identities count, summed over the rows as the columns say.
    weights = _Weights(pairs, identities, (resamples, seed))
    fars, tars = weights.far(before), weights.tar(before.same)
    after: dict[str, list[Carried]] = {}
    for name, case in others:
        bar = progress and f"{progress}, thresholds of {name}"
        pairs = _pairs(case, ids, identities)
        settled = verification.at_ranks(pairs, before.total.tolist(), progress=bar).settled
        values = [value for value, _, _ in settled]
        passed = passing(pairs, values, bar)
        moved = weights.moved(before) / weights.moved(passed)
        low, high = verification.percentiles(before.total * moved)
        ends = np.clip([np.floor(low), np.ceil(high)], 0, number - 1).astype(int)
        limits = verification.at_ranks(pairs, ends.ravel().tolist(), progress=bar).settled
        lows, highs = np.array([value for value, _, _ in limits]).reshape(2, -1).tolist()
        shares = weights.tar(passed.same)
        after[name] = [
            Carried(
                Estimate(values[at], lows[at], highs[at]),
                int(passed.total[at]),
                _estimate(weights.share(passed.same[:, at]), shares[:, at]),
                _estimate(
                    weights.share(passed.same[:, at] - before.same[:, at]),
                    shares[:, at] - tars[:, at],
                ),
            )
            for at in range(len(thresholds))
        ]
    return [
        Translated(
            threshold,
            number,
            int(before.total[at]),
            Estimate(
                float(before.total[at] / number), *map(float, verification.percentiles(fars[:, at]))
            ),
            _estimate(weights.share(before.same[:, at]), tars[:, at]),
            {name: carried[at] for name, carried in after.items()},
        )
        for at, threshold in enumerate(thresholds)
    ]


def _pairs(case: Case, ids: np.ndarray, identities: np.ndarray) -> verification.Pairs:
    query, gallery = ((vectors, ids, identities) for vectors in (case.query, case.gallery))
    return verification.label_pairs(query, gallery, case.distance)


def _check(
    pairs: verification.Pairs, passed: np.ndarray, number: int, thresholds, labelled: bool
) -> None:
    """Refuses thresholds that no pair passes, or all: another space's could be anything there."""
    of = f"{number} pairs of different {'labels' if labelled else 'rows'}"
    for threshold, count in zip(thresholds, passed.tolist(), strict=True):
        if 0 < count < number:
            continue
        end = verification.at_ranks(pairs, [0 if count == 0 else number - 1]).settled[0][0]
        which, bound = ("none", "above") if count == 0 else ("all", "up to")
        raise InputError(
            f"``threshold={threshold:g}``: {which} of {of} lie below it; these rows can tell of "
            f"thresholds {bound} {end:.6g}: name one there, or take a larger sample"
        )


class _Weights:
    """Rates of resamples of the identities, the same draws for every case."""

    def __init__(self, pairs: verification.Pairs, identities: np.ndarray, draws: tuple[int, int]):
        drawn = verification.drawn_identities(identities, pairs.position, *draws)
        # Identities are small numbers of draws: a byte or two each.
        self._drawn = np.array([weight.astype(np.uint16) for weight in drawn])
        self._num_same, number = pairs.num_same, pairs.num_different
        self._total = int(number.sum())
        self._different = self._summed(2 * number[:, None]) - self._total

    def _summed(self, table: np.ndarray) -> np.ndarray:
        """float64 [resamples, T] of [q, T]."""
        return np.array([weight.astype(np.float64) @ table for weight in self._drawn])

    def far(self, found: Passing) -> np.ndarray:
        """float64 [resamples, T]: false accept rates."""
        passed = self._summed(found.different) - found.total
        return np.clip(passed / np.maximum(self._different, 1), 0, 1)

    def moved(self, found: Passing) -> np.ndarray:
        """float64 [resamples, T]: false accept rates over that of all rows.

        A thousandth at least, for of few pairs a resample may have none; 1 where no pair passes.
        """
        rates = self.far(found) * self._total / np.maximum(found.total, 1)
        return np.where(found.total > 0, np.maximum(rates, 1e-3), 1)

    def tar(self, same: np.ndarray) -> np.ndarray:
        """float64 [resamples, T]: true accept rates; NaN where a resample has no same pair."""
        number = self._summed(self._num_same[:, None])
        return self._summed(same) / np.where(number > 0, number, np.nan)

    def share(self, same: np.ndarray) -> float | None:
        """Of all same-label pairs; None where there are none."""
        number = int(self._num_same.sum())
        return float(same.sum() / number) if number else None


def _estimate(mean: float | None, values: np.ndarray) -> Estimate | None:
    if mean is None:
        return None
    return Estimate(mean, *map(float, np.nanpercentile(values, [2.5, 97.5])))
