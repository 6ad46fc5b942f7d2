"""Whether a model change is compatible, from what each query achieved before and after it.

A case is query/gallery and M one of its metrics. Before the change it is old/old; after it
new/old (BCT) or new/T(old) (FCT), here called *upgraded*. Definitions:

* Criterion (BCT, arXiv 2003.11942): compatible if M(upgraded) > M(old/old).
* Update gain (BCT): (M(upgraded) - M(old/old)) / (M(new*/new*) - M(old/old)), new* being the same
  architecture trained without compatibility. `agreement.gap_shares` has it with an interval.
* Negative flips (arXiv 2011.09161): share of queries right before and wrong after. Users notice
  what breaks, even where the mean has risen.
* Of a chain of versions, M_ij being version i's queries on version j's gallery: AC, the share of
  pairs i > j with M_ij > M_jj, and AM, the mean of M_ij over i >= j (after CoReS, arXiv
  2111.07632).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import agreement
from fct_tf.retrieval.agreement import Estimate
from fct_tf.retrieval.exact import PerQuery

# Of the queries' ids before and after; None where both cases have the same rows in one order.
Ids = tuple[Sequence[str] | np.ndarray, Sequence[str] | np.ndarray] | None


class Flips(NamedTuple):
    """Shares of queries: right before and wrong after, and wrong before and right after."""

    negative: Estimate
    positive: Estimate


class Chain(NamedTuple):
    """AC, average compatibility (None for a single version), and AM, average of the metric."""

    ac: float | None
    am: float


def update_gain(old: float, upgraded: float, best: float) -> float | None:
    """Share of what a new model without compatibility gains that the upgraded case gains.

    Args:
      old: M(old/old).
      upgraded: M(new/old) or M(new/T(old)).
      best: M(new*/new*).

    Returns:
      1 where nothing is lost, below 0 where the upgrade is worse than old/old; None where new*/new*
      is no better than old/old: a share of nothing says nothing.
    """
    return (upgraded - old) / (best - old) if best > old else None


def criterion(
    old: PerQuery,
    upgraded: PerQuery,
    ks: Sequence[int] = (1, 5),
    ids: Ids = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """M(upgraded) - M(old/old) over the queries that both have, with paired intervals.

    Args:
      old, upgraded: what each query achieved.
      ks: ranks of CMC.
      ids: of the queries of either case, if they are not the same rows in one order.
      resamples: of the bootstrap over queries, at least 1.
      seed: of the resamples.

    Returns:
      `cmc@k` for each k and, unless by ScaNN, `map`. The criterion holds where `mean` is above
      0; that is clear where `sign` is 1.

    Raises:
      InputError: no query has a match in both cases.
    """
    before, after = (agreement.per_query_metrics(case, ks) for case in _both(old, upgraded, ids))
    return agreement.paired_difference(after, before, resamples, seed)


def negative_flips(
    old: PerQuery,
    upgraded: PerQuery,
    k: int = 1,
    ids: Ids = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Flips:
    """Queries that change between right and wrong, of those with a match in both cases.

    Args:
      k: a query is right where its nearest match has rank <= k.
      others: as for `criterion`, errors too.
    """
    return Flips(**agreement.intervals(flips(old, upgraded, k, ids), resamples, seed))


def flips(old: PerQuery, upgraded: PerQuery, k: int = 1, ids: Ids = None) -> dict[str, np.ndarray]:
    """`negative` and `positive` flips of each query that both have: 0 or 1, NaN without a match.

    Args:
      as for `negative_flips`.
    """
    before, after = (found.rank for found in _both(old, upgraded, ids))
    matched = (before > 0) & (after > 0)
    was, is_now = before <= k, after <= k
    found = {"negative": was & ~is_now, "positive": ~was & is_now}
    return {name: np.where(matched, flip, np.nan) for name, flip in found.items()}


def chain(matrix: np.ndarray | Sequence[Sequence[float]]) -> Chain:
    """AC and AM of a chain of model versions.

    Args:
      matrix: float [versions, versions], row i the queries of version i, column j the gallery of
        version j. Above the diagonal nothing is read: nobody searches with an older model.

    Raises:
      InputError: not a square matrix of one version or more, or a value missing (NaN).
    """
    table = np.asarray(matrix, np.float64)
    if table.ndim != 2 or not len(table) or table.shape[0] != table.shape[1]:
        raise InputError(
            f"compatibility matrix of shape {list(table.shape)}: one row and one column per version"
        )
    below = np.tril_indices(len(table), -1)
    lower = table[np.tril_indices(len(table))]
    if np.isnan(lower).any():
        raise InputError("compatibility matrix: a value on or below the diagonal is missing (NaN)")
    better = table[below] > np.diag(table)[below[1]]
    return Chain(float(better.mean()) if len(better) else None, float(lower.mean()))


def _both(old: PerQuery, upgraded: PerQuery, ids: Ids) -> list[PerQuery]:
    """What the queries achieved that both cases have, in one order."""
    keys = [case.position for case in (old, upgraded)]
    if ids is not None:
        keys = [np.asarray(side).astype(str)[key] for side, key in zip(ids, keys, strict=True)]
    shared = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)[1:]
    return [
        replace(case, **{name: values[rows] for name, values in vars(case).items()})
        for case, rows in zip((old, upgraded), shared, strict=True)
    ]
