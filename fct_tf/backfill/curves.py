"""Backfilling curves: how good a gallery is while its rows are re-embedded one after the other.

FastFill (arXiv 2303.04766) replaces the transformed rows of a gallery by the new model's own in
the order of a policy. A curve has 22 points, with the first `floor(i * G / 21)` of the G rows
replaced at point i = 0..21: from new/T(old) to new/new. The area under the curve (AUC) is the
plain mean of its 22 values, for each metric of `metrics`.

All points of all orders are computed at once, exactly. Only distances to matching rows are
thresholds of a query, and each row contributes to the counts at them by the interval between two
thresholds that its distance lies in. So the distances to T(old) and to new are looked up once, and
a row changes the counts only at the point where it is replaced, and only if the two intervals
differ: for most rows, which are far from the query before and after, nothing happens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import distances, exact, metrics

POINTS = 22
# Of vectors float [n, d], n ids and n labels.
Side = tuple[np.ndarray, Sequence[str] | np.ndarray, Sequence[str | None] | np.ndarray]


@dataclass(frozen=True)
class Curves:
    """What each labelled query achieved at every point of every order.

    rows: int64 [22], gallery rows replaced at each point. position: int64 [q], the queries' rows
    among all queries. rank: int64 [orders, 22, q] and average_precision: float64
    [orders, 22, q], as in `exact.PerQuery`: 0 and NaN where no row matches. self_removed: bool
    [q].
    """

    rows: np.ndarray
    position: np.ndarray
    rank: np.ndarray
    average_precision: np.ndarray
    self_removed: np.ndarray


def replaced(rows: int) -> np.ndarray:
    """int64 [22]: how many of `rows` rows are replaced at each point."""
    return np.arange(POINTS) * rows // (POINTS - 1)


def per_query(
    query: Side,
    transformed: np.ndarray,
    gallery: Side,
    orders: Sequence[np.ndarray],
    distance: str = "l2",
    block: int | None = None,
    progress: str = "",
) -> Curves:
    """Rank of the nearest match and average precision of every query, at all points.

    Args:
      query: (new model's embeddings float [q, d], q ids, q labels or None).
      transformed: float [g, d], the gallery's rows before they are replaced, T(old).
      gallery: (float [g, d] of the new model, that replace them, g ids, g labels or None).
      orders: each int [g], a permutation of the rows: the first one is replaced first.
      distance: `l2` or `cosine`.
      block: queries per block; by default as many as fit `distances.BLOCK_BYTES`.
      progress: label of the progress bar; none when empty.

    Raises:
      InputError: an order that is no permutation, unknown distance or different shapes.
    """
    vectors, ids, labels = gallery
    count = len(vectors)
    if np.shape(transformed) != np.shape(vectors):
        raise InputError(
            f"transformed rows have shape {np.shape(transformed)}, new ones {np.shape(vectors)}; "
            "they must be the same rows in one space"
        )
    by_label = exact.by_label(query[1], query[2], ids, labels)
    states = [np.asarray(side)[by_label.order] for side in (transformed, vectors)]
    sides = distances.Distances(query[0][by_label.position], np.concatenate(states), distance)
    points = _points(orders, count)[by_label.order]
    shape = (points.shape[1], POINTS, len(by_label.position))
    rank, precision = np.zeros(shape, np.int64), np.full(shape, np.nan)

    def measure(part: slice) -> None:
        block = sides.block(part)
        own = by_label.own[part]
        has_own = np.flatnonzero(own >= 0)
        for state in (0, count):
            block.entries[has_own, own[has_own] + state] = np.inf
        for at, rows, bins in _bins(block, by_label.first[part], by_label.last[part]):
            own_rows = slice(by_label.first[part][at], by_label.last[part][at])
            curves = _curves(rows, bins, own_rows, points)
            rank[:, :, part.start + at], precision[:, :, part.start + at] = curves

    parts = distances.blocks(len(by_label.position), 2 * count, block)
    distances.run(measure, parts, progress)
    return Curves(replaced(count), by_label.position, rank, precision, by_label.own >= 0)


def _points(orders: Sequence[np.ndarray], count: int) -> np.ndarray:
    """int64 [g, orders]: from which point on a row is replaced; 22 are added per order before."""
    points = np.empty((count, len(orders)), np.int64)
    # The row at place p is replaced at the first point with more than p rows replaced.
    of_place = np.searchsorted(replaced(count), np.arange(count), side="right")
    for at, order in enumerate(orders):
        if not np.array_equal(np.sort(order), np.arange(count)):
            raise InputError(
                f"order {at} is no order of {count} rows: each row's number must be in it once"
            )
        points[order, at] = of_place + at * POINTS
    return points


def _bins(
    block: distances.Block, first: np.ndarray, last: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Which interval between thresholds each row lies in, in both states, by exact distances.

    Args:
      block: queries against the rows in the first state and, behind them, in the second.
      first, last: int [block], the rows that match each query; infinite entries do not count.

    Yields:
      (query, rows, bins) for each query with a match: the rows that are no farther than its
      farthest threshold in either state, int64 [n], and how many of its thresholds are nearer
      than they are, int64 [2, n]. Thresholds are the matching rows' distances in both states.
    """
    count = block.entries.shape[1] // 2
    states = block.entries.reshape(len(block.entries), 2, count)
    thresholds, top = [], np.full(len(first), -np.inf)
    for at, (entries, start, stop) in enumerate(zip(states, first, last, strict=True)):
        match_distances = np.sort(entries[:, start:stop], axis=None)
        thresholds.append(match_distances[: np.searchsorted(match_distances, np.inf)])
        if len(thresholds[-1]):
            top[at] = thresholds[-1][-1]
    slack, limit = block.limits(top)
    binned, pairs = [], []
    for at in np.flatnonzero(np.isfinite(top)).tolist():
        rows = np.flatnonzero(states[at].min(axis=0) <= limit[at])
        near = states[at][:, rows]
        bins = thresholds[at].searchsorted(near - slack[at])
        close = thresholds[at].searchsorted(near + slack[at], side="right") > bins
        state, row = np.nonzero(close if slack[at] else np.zeros_like(close))
        binned.append((at, rows, bins, state, row))
        pairs.append((np.full(len(row), at), rows[row] + state * count))
    if not binned:
        return
    exact_of = block.exact(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    ends = np.cumsum([len(side) for side, _ in pairs])
    for (at, rows, bins, state, row), end in zip(binned, ends, strict=True):
        if len(row):
            near = exact_of[end - len(row) : end]
            matching = (first[at] <= rows[row]) & (rows[row] < last[at])
            bins[state, row] = np.sort(near[matching]).searchsorted(near)
        yield at, rows, bins


def _curves(
    rows: np.ndarray, bins: np.ndarray, matching: slice, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank and average precision of one query, [orders, 22] each.

    Args:
      rows, bins: of `_bins`; bins[0] before a row is replaced, bins[1] after it.
      matching: the rows of its label, of which at least one is not its own.
      points: of `_points`.
    """
    of_label = np.flatnonzero((matching.start <= rows) & (rows < matching.stop))
    size = 2 * len(of_label) + 1
    of_all = np.bincount(bins[0], minlength=size)
    moved = np.flatnonzero(bins[0] != bins[1])
    all_rows = _counts(of_all, bins[:, moved], points[rows[moved]])
    bins, of_matching = bins[:, of_label], points[rows[of_label]]
    matching_rows = _counts(np.bincount(bins[0], minlength=size), bins, of_matching)

    # [orders * 22, matching]: the threshold that a matching row lies at, then its place in counts.
    place = np.arange(POINTS * points.shape[1])[:, None]
    replaced_at = np.repeat(of_matching.T, POINTS, axis=0)
    current = np.where(place < replaced_at, bins[0], bins[1]) + place * size
    hits, seen = matching_rows.ravel()[current], all_rows.ravel()[current]
    nearest = current.min(axis=1)
    rank = 1 + all_rows.ravel()[nearest] - matching_rows.ravel()[nearest]
    shape = (-1, POINTS)
    return rank.reshape(shape), np.mean(hits / seen, axis=1).reshape(shape)


def _counts(at_start: np.ndarray, bins: np.ndarray, points: np.ndarray) -> np.ndarray:
    """int64 [orders, 22, thresholds + 1]: rows at or below each threshold, at each point.

    Args:
      at_start: int [thresholds + 1], rows in each interval before any is replaced.
      bins: int [2, n], the intervals of rows before and after they are replaced.
      points: int [n, orders], of these rows.
    """
    size, orders = len(at_start), points.shape[1]
    place = points * size
    gone, come = (
        np.bincount((place + of[:, None]).ravel(), minlength=orders * POINTS * size) for of in bins
    )
    change = (come - gone).reshape(orders, POINTS, size)
    change[:, 0] += at_start
    return change.cumsum(axis=1).cumsum(axis=2)


def curve(
    found: Curves,
    order: int,
    num_gallery: int,
    ks: Sequence[int],
    queries: np.ndarray | slice = slice(None),
) -> list[dict]:
    """The 22 points of one order: `share` and `rows` replaced, `cmc`, `map`.

    Args:
      found: of `per_query`.
      order: which of its orders.
      num_gallery: gallery rows.
      ks: ranks of CMC.
      queries: which of the labelled queries count; all by default.

    Returns:
      Metrics are fractions, None where no query has a match.
    """
    rank, precision = found.rank[order][:, queries], found.average_precision[order][:, queries]
    return [
        {
            "share": int(rows) / num_gallery if num_gallery else 0.0,
            "rows": int(rows),
            "cmc": metrics.cmc(rank[point], ks),
            "map": metrics.mean_average_precision(precision[point]),
        }
        for point, rows in enumerate(found.rows)
    ]


def values(points: Sequence[dict], metric: str) -> list[float | None]:
    """A metric along a curve: `map`, or the k of a CMC@k."""
    return [point["map"] if metric == "map" else point["cmc"][metric] for point in points]


def auc(points: Sequence[dict], ks: Sequence[int]) -> dict[str, float | None]:
    """Plain mean of the 22 values, by k as text and `map`; None where there are none."""
    means: dict[str, float | None] = {}
    for name in [*map(str, ks), "map"]:
        measured = [value for value in values(points, name) if value is not None]
        means[name] = float(np.mean(measured)) if len(measured) == len(points) else None
    return means


def by_group(
    found: Curves, order: int, num_gallery: int, groups: np.ndarray, ks: Sequence[int]
) -> dict:
    """Curves of groups of queries, and how far the best and the worst group lie apart.

    As FastFill looks at groups that are rare in the data: rows are replaced in one order for
    all, which may serve one group before the other.

    Args:
      found, order, num_gallery, ks: as `curve`.
      groups: object [all queries], a name or None: left out and counted.

    Returns:
      `num_queries_without_group`, `groups`: name -> `num_queries`, `num_queries_without_match`,
      `auc`, `curve`, and `gap`: `auc` and `curve` of the difference between the largest and the
      smallest value that a group has at a point; None where less than two groups have values.
    """
    of_query = groups[found.position]
    records, matched = {}, []
    for name in sorted({group for group in of_query if group is not None}):
        queries = np.flatnonzero(of_query == name)
        points = curve(found, order, num_gallery, ks, queries)
        area = auc(points, ks)
        records[str(name)] = {
            "num_queries": len(queries),
            "num_queries_without_match": int(np.sum(found.rank[order, 0, queries] == 0)),
            "auc": area,
            "curve": points,
        }
        if area["map"] is not None:
            matched.append(points)
    gap = None
    if len(matched) > 1:
        spread = {}
        for key in [*map(str, ks), "map"]:
            table = np.array([values(points, key) for points in matched], np.float64)
            spread[key] = np.ptp(table, axis=0).tolist()
        points = [
            {**point, "cmc": {str(k): spread[str(k)][at] for k in ks}, "map": spread["map"][at]}
            for at, point in enumerate(matched[0])
        ]
        gap = {"auc": auc(points, ks), "curve": points}
    return {
        "num_queries_without_group": sum(group is None for group in of_query),
        "groups": records,
        "gap": gap,
    }
