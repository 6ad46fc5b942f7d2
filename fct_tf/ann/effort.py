"""The least that a search has to spend for a wanted recall: leaves searched, rows reordered.

For each number of rows reordered, the least number of leaves that reaches the recall is found by
halving. A number of rows that saves no leaves over a smaller one is left out, and only the others
are timed: in turn, and by processor time, which hardly depends on what else the machine does.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_tf.ann import benchmark
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.retrieval import exact

QUERIES = 1000
# Numbers of rows reordered, times k.
REORDERED = (1, 2, 3, 5, 10, 20, 50)
_ROUNDS, _SECONDS = 5, 0.1
# Twice the leaves that raise the recall by less are as good as all.
_FLAT = 5e-4

Search = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """What a search may spend: how many leaves (or the like), and how many rows it reorders.

    leaves: name of the setting, "" for none; from `least` to `most`. reordered: name of the
    setting, "" for none, and the numbers that are tried, ascending.
    """

    leaves: str
    most: int
    reordered: str = ""
    counts: Sequence[float] = ()
    least: int = 1

    def reaching(
        self, recall_of: Callable[[Search], float], wanted: float
    ) -> list[tuple[Search, float]]:
        """The searches that reach a recall and spend less than any other, in one way or another.

        Args:
          recall_of: measures the recall of a search.

        Returns:
          (search, recall), with ever more rows reordered and ever fewer leaves; if none reaches
          the recall, the one that comes nearest.
        """
        searches: list[tuple[Search, float]] = []
        nearest: tuple[Search, float] = ({}, -1.0)
        fewest = self.most + 1
        for count in self.counts if self.reordered else [None]:
            fixed = {} if count is None else {self.reordered: count}

            def measured(leaves: int, fixed=fixed) -> tuple[Search, float]:
                search = {**({self.leaves: leaves} if self.leaves else {}), **fixed}
                return search, recall_of(search)

            one = self._least(measured, wanted, fewest)
            if one[1] >= wanted:
                searches.append(one)
                fewest = one[0].get(self.leaves, 0)
            elif one[1] > nearest[1]:
                nearest = one
            if searches and fewest <= self.least:
                break
        return searches or [nearest]

    def _least(
        self, measured: Callable[[int], tuple[Search, float]], wanted: float, limit: int
    ) -> tuple[Search, float]:
        """The search of fewest leaves below `limit` that reaches it, or the best that there is."""
        if not self.leaves:
            return measured(0)
        if limit <= self.most:
            # A smaller number of rows needed `limit`: whether this one saves any at all.
            low, high = self.least - 1, limit - 1
            best = measured(high)
            if best[1] < wanted:
                return best
        else:
            low, high = self.least - 1, self.least
            best = measured(high)
            while best[1] < wanted and high < self.most:
                low, high = high, min(2 * high, self.most)
                more = measured(high)
                if more[1] < best[1] + _FLAT and more[1] < wanted:
                    return max(best, more, key=lambda one: one[1])
                best = more
            if best[1] < wanted:
                return best
        while high - low > max(1, low // 50):
            middle = (low + high) // 2
            one = measured(middle)
            if one[1] >= wanted:
                high, best = middle, one
            else:
                low = middle
        return best


@dataclass(frozen=True)
class Build:
    """A built index with the search settings that are best for it."""

    searcher: Searcher
    search: Search
    recall: float

    @property
    def settings(self) -> Settings:
        return self.searcher.settings

    @property
    def told(self) -> str:
        """What is not as it is by default, in a line."""
        usual = Settings()
        settings = dataclasses.replace(self.settings, **self.search)
        shown = {"num_leaves", "num_leaves_to_search", "reordering_num_neighbors"}
        return ", ".join(
            f"{name}={value}"
            for name, value in settings.to_json().items()
            if name in shown or value != getattr(usual, name)
            if name != "training_sample_size"
        )


@dataclass(frozen=True)
class Case:
    """Rows, and queries whose true neighbours among them are known.

    own: int64 [q], the row that each query is and that does not count for it; None: none is.
    """

    rows: np.ndarray
    distance: str
    wanted: float
    k: int
    queries: np.ndarray
    own: np.ndarray | None
    threads: int | None
    truth: benchmark.Truth

    @classmethod
    def of(cls, rows, distance, wanted, k, queries, threads, seed) -> "Case":
        """With `QUERIES` of the queries or of the rows; arguments as of `tune`."""
        generator = np.random.default_rng(seed)
        source = rows if queries is None else queries
        chosen = np.sort(generator.permutation(len(source))[:QUERIES])
        own = chosen if queries is None else None
        return cls._with_truth(rows, distance, wanted, k, source[chosen], own, threads)

    @classmethod
    def _with_truth(cls, rows, distance, wanted, k, queries, own, threads) -> "Case":
        neighbors, _ = exact.search(queries, rows, k, distance, own)
        near = np.sort(benchmark.true_distances(rows, queries, neighbors, distance), axis=1)
        truth = benchmark.Truth(rows, queries, distance, neighbors, near)
        return cls(rows, distance, wanted, k, queries, own, threads, truth)

    def sample(self, count: int, seed: int) -> "Case":
        """The same with `count` of the rows, those among them that are queries."""
        if count >= len(self.rows):
            return self
        order = np.random.default_rng([seed, 1]).permutation(len(self.rows))
        if self.own is not None:
            # First the queries' own rows, which are to be there.
            order = np.concatenate([self.own, order[~np.isin(order, self.own)]])
        kept = np.sort(order[:count])
        own = None if self.own is None else np.searchsorted(kept, self.own)
        few = (self.rows[kept], self.distance, self.wanted, self.k, self.queries, own, self.threads)
        return self._with_truth(*few)

    def build(self, settings: Settings | None) -> Build:
        """Builds it (None: the defaults) and finds how it is searched fastest.

        Raises:
          InputError: rows or settings that do not fit each other.
        """
        searcher = Searcher.build(self.rows, self.distance, settings)
        settings = searcher.settings
        if searcher.is_exact:
            return Build(searcher, {}, 1.0)
        effort = Effort(
            "num_leaves_to_search" if settings.num_leaves else "",
            settings.num_leaves,
            "reordering_num_neighbors" if settings.reordering_num_neighbors else "",
            [times * self.k for times in REORDERED if times * self.k <= len(self.rows)],
        )
        searches = effort.reaching(lambda search: self.recall(searcher, search), self.wanted)
        builds = [Build(searcher, *one) for one in searches]
        return builds[int(np.argmax(self.race(builds)))]

    def recall(self, searcher: Searcher, search: Search) -> float:
        """Recall@k of the queries."""
        return self.truth.recall(self._search(searcher, search), self.k)

    def _search(self, searcher: Searcher, search: Search) -> np.ndarray:
        more = self.k + (self.own is not None)
        neighbours, _ = searcher.search(self.queries, more, threads=self.threads, **search)
        if self.own is None:
            return neighbours
        # The own row goes to the end, where it does not count; the others keep their order.
        order = np.argsort(neighbours == self.own[:, None], axis=1, kind="stable")
        return np.take_along_axis(neighbours, order, axis=1)[:, : self.k]

    def race(
        self, builds: Sequence[Build], rounds: int = _ROUNDS, seconds: float | None = None
    ) -> list[float]:
        """Queries of each per second of processor time, the best of rounds that they take turns in.

        By the clock a busy machine would decide which is faster.
        """
        seconds = _SECONDS if seconds is None else seconds
        best = [0.0] * len(builds)
        for _ in range(rounds if len(builds) > 1 else 1):
            for place, one in enumerate(builds):
                best[place] = max(best[place], self._rate(one, seconds))
        return best

    def _rate(self, build: Build, seconds: float) -> float:
        passes, started = 0, time.process_time()
        while True:
            build.searcher.search(self.queries, self.k, threads=self.threads, **build.search)
            passes += 1
            elapsed = max(time.process_time() - started, 1e-9)
            if elapsed >= seconds:
                return passes * len(self.queries) / elapsed

    def qps(self, build: Build) -> float:
        """Queries per second by the clock, the best of some rounds."""
        arguments = (build.searcher, self.queries, self.k, self.threads, _SECONDS)
        return max(benchmark.qps(*arguments, **build.search) for _ in range(_ROUNDS))
