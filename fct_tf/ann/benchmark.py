"""How well and how fast an index searches: recall against exact search, queries per second.

Recall@k is the share of the k nearest rows that a search for k finds. It counts by distance, as
ann-benchmarks does: a found row counts if it is no farther than the true k-th neighbour, so that of
rows at equal distances any will do. Distances are computed from the rows, not taken from the index.
ann-benchmarks lets a row be farther by 0.001 in addition (`EPSILON`). Where neighbours are closer
than that to one another, as unit vectors can be, this says more than was found; so both are told.

Speed is measured in three ways: `single`, one query a call and one thread, as ann-benchmarks does;
`batched`, all queries in one call and one thread; `parallel`, the same with many threads. Points
that are to be compared are measured in turn, round by round, so that what else the machine does
falls on all of them; of the rounds the best counts, and the median is told.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact

EPSILON = 1e-3
# Distances in float64 of one row, computed twice, differ by less than this share of them.
_ROUNDING = 1e-9
MODES = ("single", "batched", "parallel")
# Threads that OpenMP keeps spinning after a search are asleep after so long.
PAUSE_S = 0.02
# Of slow searches so many single queries are timed, and as many as fit ten times the seconds.
_SINGLE_QUERIES = 100
# Queries whose given neighbours are found again.
_CHECKED = 20
# Pairs whose distance is computed at a time.
_PAIR_VALUES = 1 << 22


@dataclass(frozen=True)
class Truth:
    """The true nearest neighbours of queries.

    rows: float [n, d]. queries: float [q, d]. neighbors: int64 [q, m], ascending by distance.
    distances: float64 [q, m], squared, or 1 - cosine.
    """

    rows: np.ndarray
    queries: np.ndarray
    distance: str
    neighbors: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        queries: np.ndarray,
        distance: str,
        k: int,
        neighbors: np.ndarray | None = None,
    ) -> "Truth":
        """The k nearest rows, by exact search or, if given, from `neighbors`, int [q, >= k].

        Raises:
          InputError: `neighbors` are not the nearest rows, as far as some queries show.
        """
        if neighbors is None or neighbors.shape[1] < k:
            neighbors = exact.search(queries, rows, k, distance)[0]
        else:
            _check(rows, queries, distance, k, neighbors)
        distances = true_distances(rows, queries, neighbors, distance)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return cls(
            rows,
            queries,
            distance,
            np.take_along_axis(neighbors, order, axis=1),
            np.take_along_axis(distances, order, axis=1),
        )

    def recall(self, found: np.ndarray, k: int, epsilon: float = 0.0) -> float:
        """Mean recall@k of found rows, int [q, >= k], -1 for none. `epsilon`: see `recall`."""
        near = true_distances(self.rows, self.queries, found[:, :k], self.distance)
        return recall(near, self.distances, k, self.distance, epsilon)


def true_distances(
    rows: np.ndarray, queries: np.ndarray, found: np.ndarray, distance: str
) -> np.ndarray:
    """float64 [q, k]: distances of the rows found, int [q, k], squared or 1 - cosine.

    Infinity where there is no row (-1).
    """
    result = np.full(found.shape, np.inf)
    step = max(1, _PAIR_VALUES // max(1, found.shape[1] * rows.shape[1]))
    for start in range(0, len(found), step):
        part = slice(start, start + step)
        near = _units(rows[found[part]], distance)  # Row -1 is one too, and left out below.
        difference = near - _units(queries[part, None], distance)
        squared = np.einsum("qkd,qkd->qk", difference, difference)
        if distance == "cosine":
            # A row of zeros has cosine 0 with everything.
            zero = np.logical_not(near.any(axis=2) & queries[part].any(axis=1, keepdims=True))
            squared[zero] = 2
            squared /= 2
        result[part] = np.where(found[part] >= 0, squared, np.inf)
    return result


def recall(
    found: np.ndarray, true: np.ndarray, k: int, distance: str = "l2", epsilon: float = 0.0
) -> float:
    """Mean share of k found rows that are no farther than the true k-th neighbour.

    Args:
      found: float64 [q, >= k], true distances of the found rows; infinity for none.
      true: float64 [q, >= k], distances of the true neighbours, ascending.
      distance: `l2` (both squared) or `cosine`.
      epsilon: by which a row may be farther and counts all the same. Of l2 it is added to the
        distance itself, not to its square, as ann-benchmarks does.
    """
    limit = true[:, k - 1 : k]
    if distance == "l2":
        found, limit = np.sqrt(found[:, :k]), np.sqrt(limit)
    reached = found[:, :k] <= limit * (1 + _ROUNDING) + epsilon
    return float(np.mean(reached & np.isfinite(found[:, :k])))


def qps(
    index: Any,
    queries: np.ndarray,
    k: int,
    threads: int | None = None,
    seconds: float = 0.5,
    **settings: Any,
) -> float:
    """Queries per second of whole passes over `queries`, all in one call, for `seconds` or more.

    Args:
      index: of `peers`, or a `searcher.Searcher`.
      threads: None is one per core.
      settings: of the search.
    """
    passes, started = 0, time.perf_counter()
    while True:
        index.search(queries, k, threads=threads, **settings)
        passes += 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return passes * len(queries) / elapsed


def latencies(
    index: Any, queries: np.ndarray, k: int, seconds: float = 0.5, **settings: Any
) -> np.ndarray:
    """Seconds of each of the queries searched alone in one thread, over passes of `seconds`.

    Returns:
      float64 [m]: whole passes over the queries; or, where one pass would take more than ten times
      `seconds`, a part of one, 100 queries at least.
    """
    times: list[float] = []
    passed = 0.0
    while True:
        for row in range(len(queries)):
            query = queries[row : row + 1]
            started = time.perf_counter()
            index.search(query, k, threads=1, **settings)
            times.append(time.perf_counter() - started)
            passed += times[-1]
            if passed > 10 * seconds and len(times) >= _SINGLE_QUERIES:
                return np.array(times)
        if passed >= seconds:
            return np.array(times)


@dataclass(frozen=True)
class Point:
    """An index, the settings that it is searched with, and queries if it reads others."""

    index: Any
    settings: Mapping[str, Any]
    queries: np.ndarray | None = None


def measure(
    points: Sequence[Point],
    queries: np.ndarray,
    k: int,
    *,
    threads: int | None = None,
    rounds: int = 3,
    seconds: float = 0.5,
    on_round: Callable[[int, int, dict, np.ndarray], None] | None = None,
    skip: Callable[[int, int], bool] = lambda place, number: False,
) -> list[list[dict]]:
    """Measures the points in turn, `rounds` times.

    Args:
      threads: of the mode `parallel`; None is one per core.
      seconds: of each mode, in each round.
      on_round: called with (place of the point, number of the round, what was measured, seconds
        of single queries) after each.
      skip: (place, round) -> whether it is left out.

    Returns:
      For each point its rounds: `qps` of the modes, and `latency_ms` with `p50`, `p95`, `p99`.
    """
    measured: list[list[dict]] = [[] for _ in points]
    for number in range(rounds):
        for place, point in enumerate(points):
            if skip(place, number):
                continue
            asked = queries if point.queries is None else point.queries
            search = (point.index, asked, k)
            time.sleep(PAUSE_S)
            # What the first call sets up is no part of any.
            point.index.search(asked[:1], k, threads=1, **point.settings)
            single = latencies(*search, seconds, **point.settings)
            batched = qps(*search, 1, seconds, **point.settings)
            parallel = qps(*search, threads, seconds, **point.settings)
            p50, p95, p99 = np.percentile(single * 1e3, [50, 95, 99])
            speeds = {
                "qps": {"single": 1 / single.mean(), "batched": batched, "parallel": parallel},
                "latency_ms": {"p50": p50, "p95": p95, "p99": p99},
            }
            speeds = {name: _floats(values) for name, values in speeds.items()}
            measured[place].append(speeds)
            if on_round:
                on_round(place, number, speeds, single)
    return measured


def summary(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict:
    """Of the rounds of a point the best, and the median of its queries per second."""
    speeds = {mode: [one["qps"][mode] for one in rounds] for mode in MODES}
    return {
        "qps": {mode: max(values) for mode, values in speeds.items()},
        "qps_median": {mode: float(np.median(values)) for mode, values in speeds.items()},
        "latency_ms": {
            name: min(one["latency_ms"][name] for one in rounds) for name in rounds[0]["latency_ms"]
        },
    }


def _check(rows, queries, distance: str, k: int, neighbors: np.ndarray) -> None:
    """Refuses neighbours that exact search does not confirm for `_CHECKED` of the queries."""
    chosen = np.linspace(0, len(queries) - 1, min(_CHECKED, len(queries))).astype(int)
    near = exact.search(queries[chosen], rows, k, distance)[0]
    claimed, true = (
        np.sort(true_distances(rows, queries[chosen], row_numbers, distance), axis=1)[:, k - 1]
        for row_numbers in (neighbors[chosen], near)
    )
    # They may have been found in float32.
    wrong = np.flatnonzero(claimed > true * (1 + EPSILON) + EPSILON**2)
    if len(wrong):
        raise InputError(
            f"neighbors of query {chosen[wrong[0]]} are not its {k} nearest rows by {distance}; "
            "leave neighbors out to have them computed"
        )


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _units(vectors: np.ndarray, distance: str) -> np.ndarray:
    """float64, of unit length where the distance is cosine."""
    vectors = np.asarray(vectors, np.float64)
    if distance != "cosine":
        return vectors
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
