"""Retrieval metrics from distances and ranks; nothing here knows embeddings.

Definitions. Let a query have P matching rows (same label, itself removed) and let `all(t)` and
`matching(t)` count the rows and the matching rows at a distance <= t.

* Rank of its nearest match at distance t: `1 + all(t) - matching(t)`, so a non-matching row at
  the same distance comes first, and a model that maps everything to one point scores nothing.
  CMC@k is the share of queries with rank <= k.
* Average precision: `1/P * sum over matching rows at t of matching(t) / all(t)`. Rows at one
  distance are one threshold, as in `sklearn.metrics.average_precision_score`.

Queries without any match have neither; they are left out of both and counted.
"""

from collections.abc import Sequence

import numpy as np


def rank_and_precision(
    of_matching: np.ndarray, of_all: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the nearest match and average precision of q queries.

    Args:
      of_matching, of_all: int [n], `matching(t)` and `all(t)` at the distances of the matching
        rows, one query after the other, each one's nearest row first.
      offset: int [q + 1], those of query i stand from offset[i] to offset[i + 1].

    Returns:
      (rank int64 [q], average precision float64 [q]); 0 and NaN where a query has no match.
    """
    matches = np.diff(offset)
    matched = np.flatnonzero(matches)
    first = offset[matched]
    rank = np.zeros(len(matches), np.int64)
    precision = np.full(len(matches), np.nan)
    if len(matched):
        rank[matched] = 1 + of_all[first] - of_matching[first]
        precision[matched] = np.add.reduceat(of_matching / of_all, first) / matches[matched]
    return rank, precision


def cmc(rank: np.ndarray, ks: Sequence[int]) -> dict[str, float | None]:
    """Share of queries with a match whose nearest match has rank <= k, for each k.

    Args:
      rank: int [queries], 0 for a query without match.
      ks: the values of k.

    Returns:
      k as text -> share; None where no query has a match.
    """
    ranked = rank[rank > 0]
    return {str(k): float(np.mean(ranked <= k)) if len(ranked) else None for k in ks}


def mean_average_precision(average_precision: np.ndarray) -> float | None:
    """Mean over the queries with a match, None if there are none.

    Args:
      average_precision: float [queries], NaN for a query without match.
    """
    with_match = average_precision[~np.isnan(average_precision)]
    return float(np.mean(with_match)) if len(with_match) else None


def bootstrap(values: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap intervals of column means, rows drawn with replacement.

    Args:
      values: float [queries, metrics].
      resamples: number of drawn samples.
      seed: of the draws.

    Returns:
      (low, high), each float [metrics].
    """
    generator = np.random.default_rng(seed)
    queries = len(values)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        drawn = generator.integers(0, queries, queries, dtype=np.int32)
        means[row] = np.bincount(drawn, minlength=queries) @ values / queries
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high
