"""How well two ways of searching agree, query by query, and paired comparisons of them.

Without labels, the new model's own ranking (new/new) is all there is to agree with, and that is
no accuracy. On Omniglot a linear map shared 4 points more of the new model's top-10 than the old
gallery did, 13 of its top-100 and a rank correlation of 0.78 instead of 0.57, and retrieved 7
points worse. Only the overlap of the nearest row (-4 points) told so.

Definitions. A case searches n rows by each of them in turn, the row itself left out.

* overlap@k: share of a query's k nearest rows that are among its k nearest in the reference. Of
  rows at one distance the first count, in both, so that equal rankings have overlap 1. By chance
  it is k / (n - 1): it says little where k is not far below n.
* spearman: correlation of the ranks that two cases give to the n - 1 rows, ties averaged
  (Spearman 1904); 0 where one of them has all rows at one distance.

All values are kept per query, so that two cases are compared on the same queries: the interval
of the mean difference is far narrower than those of the two means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import distances, exact, metrics

# Name of a metric -> float [queries], NaN where the query has none.
Values = Mapping[str, np.ndarray]
# Rows that are looked at together where no distances are needed.
BLOCK_ROWS = 65536


@dataclass(frozen=True)
class Estimate:
    """A mean over queries, and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0: not clear."""
        return int(self.low > 0) - int(self.high < 0)


class Case(NamedTuple):
    """Queries and the gallery rows of the same items: row i of both is item i.

    query, gallery: float [n, d]. distance: `l2` or `cosine`.
    """

    query: np.ndarray
    gallery: np.ndarray
    distance: str


def rankings(
    cases: Mapping[str, Case],
    reference: Case,
    queries: np.ndarray,
    ks: Sequence[int],
    progress: str = "",
) -> dict[str, dict[str, np.ndarray]]:
    """Agreement of each case's ranking with the reference's.

    Args:
      cases: by name, all over the same n items, n >= 3.
      reference: what they are held against; its dimension may be another one.
      queries: int [q], the items that search.
      ks: of overlap@k, each from 1 to n - 1.
      progress: label of the progress bar; none when empty.

    Returns:
      Name of the case -> `overlap@k` for each k and `spearman`, float64 [q] each.

    Raises:
      InputError: unknown distance or different dimensions within a case.
    """
    names = [*(f"overlap@{k}" for k in ks), "spearman"]
    agreements = {case: {name: np.empty(len(queries)) for name in names} for case in cases}

    def sides(case: Case) -> distances.Distances:
        return distances.Distances(case.query[queries], case.gallery, case.distance, precise=True)

    of_cases, of_reference = {name: sides(case) for name, case in cases.items()}, sides(reference)

    def measure(part: slice) -> None:
        true_order, true_ranks = _ranking(of_reference, part, queries)
        for name, case in of_cases.items():
            order, ranks = _ranking(case, part, queries)
            for row, at in enumerate(range(part.start, part.stop)):
                for k in ks:
                    shared = np.intersect1d(order[row, :k], true_order[row, :k], assume_unique=True)
                    agreements[name][f"overlap@{k}"][at] = len(shared) / k
                agreements[name]["spearman"][at] = _correlation(ranks[row], true_ranks[row])

    distances.run(measure, distances.blocks(len(queries), 2 * len(reference.gallery)), progress)
    return agreements


def _ranking(
    sides: distances.Distances, part: slice, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Order of all rows but each query's own, and their ranks as distances from the middle rank.

    Returns:
      (order int64 [block, n - 1], ranks float64 [block, n]; 0 for the query's own row).
    """
    order, farther = sides.block(part, queries[part]).order()
    order, farther = order[:, :-1], farther[:, :-1]  # The own row stands last.
    ranks = np.zeros((len(order), order.shape[1] + 1))
    for row, (rows, starts) in enumerate(zip(order, map(np.flatnonzero, farther), strict=True)):
        ends = np.append(starts[1:], len(rows))
        # Rows `start` to `end - 1` at one distance share the mean of these numbers.
        ranks[row, rows] = np.repeat((starts + ends - len(rows)) / 2, ends - starts)
    return order, ranks


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    # Not `a @ b`: its threads wait for each other where every core has a thread of ours already.
    products = (np.einsum("i,i->", *pair) for pair in ((a, b), (a, a), (b, b)))
    covariance, *variances = map(float, products)
    size = np.sqrt(variances[0] * variances[1])
    return covariance / size if size > 0 else 0.0


def closeness(upgraded: np.ndarray, new: np.ndarray, distance: str) -> dict[str, np.ndarray]:
    """How near each upgraded embedding comes to the new model's own of the same item.

    Args:
      upgraded, new: float [n, d].
      distance: `cosine` compares the vectors at length 1, as the search does.

    Returns:
      float64 [n] each: `cosine`, and `explained_variance`, 1 - |upgraded - new|^2 / mean over
      rows of |new - mean of new|^2, whose mean over the rows is the explained variance
      (uniformly averaged over the total variance, not per dimension). It is left out where all
      new rows are alike.
    """
    parts = [slice(at, at + BLOCK_ROWS) for at in range(0, len(new), BLOCK_ROWS)]

    def read(side: np.ndarray, part: slice) -> np.ndarray:
        rows = side[part].astype(np.float64)
        return rows / _lengths(rows)[:, None] if distance == "cosine" else rows

    mean = np.sum([read(new, part).sum(axis=0) for part in parts], axis=0) / len(new)
    cosine, error, spread = (np.empty(len(new)) for _ in range(3))
    for part in parts:
        a, b = read(upgraded, part), read(new, part)
        cosine[part] = np.einsum("ij,ij->i", a, b) / (_lengths(a) * _lengths(b))
        error[part] = np.square(a - b).sum(axis=1)
        spread[part] = np.square(b - mean).sum(axis=1)
    variance = spread.mean()
    # Rows that are all alike differ from their mean by its rounding.
    if variance <= 1e-12 * (mean @ mean):
        return {"cosine": cosine}
    return {"cosine": cosine, "explained_variance": 1 - error / variance}


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Norms, 1 for a row of zeros: its cosine is 0 with everything."""
    lengths = np.linalg.norm(rows, axis=1)
    return np.where(lengths == 0, 1, lengths)


def per_query_metrics(found: exact.PerQuery, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """`cmc@k` (0 or 1) and `map` (average precision) of each labelled query.

    Args:
      found: what each labelled query achieved.
      ks: ranks of CMC.

    Returns:
      float64 [labelled queries] each, NaN where no row matches. `map` is left out where nobody
      has an average precision, as with ScaNN.
    """
    matched = found.rank > 0
    values = {f"cmc@{k}": np.where(matched, found.rank <= k, np.nan) for k in ks}
    if not np.isnan(found.average_precision).all():
        values["map"] = found.average_precision
    return values


def intervals(values: Values, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Means over the queries that have all the values, with 95 % bootstrap intervals.

    Args:
      values: float [queries] by name.
      resamples: of the bootstrap over queries, at least 1.
      seed: of the resamples.

    Raises:
      InputError: no query has all the values.
    """
    return _estimates(list(values), _complete([values])[0], resamples, seed)


def paired_difference(
    a: Values, b: Values, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Mean of a - b over the same queries, for every metric that both have.

    Both sides of a pair are drawn together, so what makes a query easy or hard for both cancels.
    Queries without a value on either side are left out. Arguments and errors as `intervals`.
    """
    names = [name for name in a if name in b]
    left, right = _complete([{name: side[name] for name in names} for side in (a, b)])
    return _estimates(names, left - right, resamples, seed)


def gap_shares(
    value: Values, base: Values, top: Values, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate | None]:
    """Share of the gap from `base` to `top` that `value` closes, for every metric that all have.

    (mean of value - mean of base) / (mean of top - mean of base), BCT's update gain (arXiv
    2003.11942); below 0 where `value` is worse than `base`. The interval holds the 2.5th to
    97.5th percentile of the ratios of the resamples, numerator and denominator drawn together;
    resamples in which the gap is 0 are left out.

    Returns:
      None where the gap is not clearly above 0: a share of nothing says nothing. Arguments and
      errors as `intervals`.
    """
    names = [name for name in value if name in base and name in top]
    sides = [{name: side[name] for name in names} for side in (value, base, top)]
    values, bases, tops = _complete(sides)
    gaps = _estimates(names, tops - bases, resamples, seed)
    gain, gap = (_resampled(side - bases, resamples, seed) for side in (values, tops))
    shares: dict[str, Estimate | None] = {}
    for column, name in enumerate(names):
        shares[name] = None
        if gaps[name].sign > 0:
            # Of few queries a resample may have no gap at all, and no share of it.
            some = gap[:, column] != 0
            low, high = np.percentile(gain[some, column] / gap[some, column], [2.5, 97.5])
            mean = (values - bases)[:, column].mean() / gaps[name].mean
            shares[name] = Estimate(float(mean), float(low), float(high))
    return shares


def _complete(sides: Sequence[Values]) -> list[np.ndarray]:
    """float64 [kept queries, metrics] of each side: queries with all values on all sides."""
    tables = [np.stack(list(side.values()), axis=1).astype(np.float64) for side in sides]
    kept = ~np.any([np.isnan(table).any(axis=1) for table in tables], axis=0)
    if not kept.any():
        raise InputError("no query has a value in every case: there is nothing to compare")
    return [table[kept] for table in tables]


def _estimates(
    names: Sequence[str], table: np.ndarray, resamples: int, seed: int
) -> dict[str, Estimate]:
    low, high = metrics.bootstrap(table, resamples, seed)
    columns = zip(names, table.mean(axis=0), low, high, strict=True)
    return {name: Estimate(float(mean), float(a), float(b)) for name, mean, a, b in columns}


def _resampled(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """float64 [resamples, metrics]: the means that `metrics.bootstrap` takes percentiles of."""
    generator, queries = np.random.default_rng(seed), len(table)
    means = np.empty((resamples, table.shape[1]))
    for row in range(resamples):
        drawn = generator.integers(0, queries, queries, dtype=np.int32)
        means[row] = np.bincount(drawn, minlength=queries) @ table / queries
    return means
