"""Finds the settings of an index that search fastest at a wanted recall.

A full sweep builds every combination and searches each in many ways. This one prunes:

- Settings of a build are tried one after the other, from the defaults on, on a sample of the rows.
  What is faster stays; numbers of leaves are told by the square root of the rows, so that they
  mean the same on the whole.
- Settings of a search need no build. For each number of rows reordered, the least number of leaves
  that reaches the recall is found by halving. A number of rows that saves no leaves over a smaller
  one is left out, and only the others are timed: in turn, and by processor time, which hardly
  depends on what else the machine does.
- The winner is built of all rows and its search settings are found anew, against exact search.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import logging

from fct_tf.ann import benchmark
from fct_tf.ann.searcher import Searcher, cores
from fct_tf.ann.settings import EXACT_ROWS, Settings
from fct_tf.common.errors import InputError
from fct_tf.common.provenance import library_versions, processor
from fct_tf.retrieval import exact

SAMPLE_ROWS, QUERIES = 100_000, 1000
# Numbers of rows reordered, times k.
REORDERED = (1, 2, 3, 5, 10, 20, 50)
# What another build has to gain, beyond what times of a busy machine differ by.
_GAIN = 1.02
_ROUNDS, _SECONDS = 5, 0.1
# Twice the leaves that raise the recall by less are as good as all.
_FLAT = 5e-4

Search = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What the tuner found.

    settings: of the build and of the search. recall: recall@k of `num_queries` queries against
    exact search of all rows. qps: queries per second, in one call, with `threads` threads (None:
    one per core). reached: whether `recall` is the wanted one or more. sample_rows: rows that the
    builds were compared on. seconds: that it took. machine: that it was found on.
    searcher: the index of all rows with these settings, no part of the JSON.
    """

    settings: Settings
    recall: float
    qps: float
    wanted_recall: float
    reached: bool
    k: int
    threads: int | None
    distance: str
    num_rows: int
    dim: int
    num_queries: int
    sample_rows: int
    builds: int
    seconds: float
    machine: dict
    searcher: Searcher = field(repr=False, compare=False)

    def to_json(self) -> dict:
        """As an object of JSON."""
        names = [one.name for one in dataclasses.fields(self) if one.name != "searcher"]
        return {
            **{name: getattr(self, name) for name in names},
            "settings": self.settings.to_json(),
        }


def tune(
    rows: np.ndarray,
    distance: str,
    recall: float,
    *,
    k: int = 10,
    queries: np.ndarray | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    changeable: bool = True,
) -> Found:
    """The settings of most queries per second at recall@k of `recall`.

    Args:
      rows: float [n, d].
      distance: `l2` or `cosine`.
      recall: wanted share of the true k nearest rows, above 0, 1 at most.
      queries: float [q, d]; by default some of the rows, each without itself.
      threads: of the searches that are timed; None: one for each core, and all queries in one call.
      seconds: after so many no further build is tried; what is then best is still built of all
        rows. None: as long as it takes.
      seed: of the samples.
      changeable: only settings under which ScaNN can replace rows (`Settings.can_change`).

    Raises:
      InputError: a recall or k that cannot be, or rows that cannot be indexed.
    """
    if not 0 < recall <= 1:
        raise InputError(f"recall={recall}: must be above 0, and 1 at most")
    most = max(len(rows), EXACT_ROWS) - 1  # Few rows are searched exactly, whatever k is.
    if not 1 <= k <= most:
        raise InputError(f"k={k}: must be from 1 to {most} for {len(rows)} rows")
    started = time.perf_counter()
    case = Case.of(rows, distance, recall, k, queries, threads, seed)
    sample = case.sample(SAMPLE_ROWS, seed)
    until = None if seconds is None else started + seconds
    best, tried = _best_build(sample, until, changeable)
    if len(sample.rows) < len(rows):
        settings = _resized(best.settings, len(sample.rows), *rows.shape)
        logging.info("building it of all %d rows", len(rows))
        best = case.build(settings)
        tried += 1
    qps = case.qps(best)
    settings = dataclasses.replace(best.settings, **best.search)
    found = Found(
        settings=settings,
        recall=best.recall,
        qps=float(f"{qps:.6g}"),
        wanted_recall=recall,
        reached=best.recall >= recall,
        k=k,
        threads=threads,
        distance=distance,
        num_rows=len(rows),
        dim=rows.shape[1],
        num_queries=len(case.queries),
        sample_rows=len(sample.rows),
        builds=tried,
        seconds=round(time.perf_counter() - started, 1),
        machine={"processor": processor(), "cores": cores(), "versions": library_versions()},
        searcher=best.searcher,
    )
    best.searcher.settings = settings
    if not found.reached:
        logging.warning(
            "recall@%d of %s was not reached: the best is %.4f, with %s; exact search has 1",
            *(k, recall, found.recall, best.told),
        )
    logging.info("recall@%d %.4f at %.0f queries/s: %s", k, found.recall, qps, best.told)
    return found


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
        found = effort.reaching(lambda search: self.recall(searcher, search), self.wanted)
        builds = [Build(searcher, *one) for one in found]
        return builds[int(np.argmax(self.race(builds)))]

    def recall(self, searcher: Searcher, search: Search) -> float:
        """Recall@k of the queries."""
        return self.truth.recall(self._search(searcher, search), self.k)

    def _search(self, searcher: Searcher, search: Search) -> np.ndarray:
        more = self.k + (self.own is not None)
        found, _ = searcher.search(self.queries, more, threads=self.threads, **search)
        if self.own is None:
            return found
        # The own row goes to the end, where it does not count; the others keep their order.
        order = np.argsort(found == self.own[:, None], axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1)[:, : self.k]

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
        found: list[tuple[Search, float]] = []
        nearest: tuple[Search, float] = ({}, -1.0)
        fewest = self.most + 1
        for count in self.counts if self.reordered else [None]:
            fixed = {} if count is None else {self.reordered: count}

            def measured(leaves: int, fixed=fixed) -> tuple[Search, float]:
                search = {**({self.leaves: leaves} if self.leaves else {}), **fixed}
                return search, recall_of(search)

            one = self._least(measured, wanted, fewest)
            if one[1] >= wanted:
                found.append(one)
                fewest = one[0].get(self.leaves, 0)
            elif one[1] > nearest[1]:
                nearest = one
            if found and fewest <= self.least:
                break
        return found or [nearest]

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


def space(settings: Settings, num_rows: int, dim: int, distance: str) -> list[list[list[dict]]]:
    """What is tried: groups of directions of changes.

    In a direction changes are tried as long as each is better than the one before. Once one of a
    direction was, the other directions of its group are left out.
    """
    if not settings.num_leaves:
        return []
    leaves = settings.num_leaves
    groups: list[list[list[dict]]] = [
        [
            [{"num_leaves": min(leaves * times, num_rows // 8)} for times in (2, 4)],
            [{"num_leaves": max(1, leaves // times)} for times in (2, 4)],
        ],
        [[{"reordering_data": "bfloat16"}, {"reordering_data": "int8"}]],
        [[{"dimensions_per_block": size}] for size in (4, 1) if size <= dim],
    ]
    if distance == "cosine":
        # What ScaNN has for inner products alone: codes of what is left of a row beside the centre
        # of its leaf, and with SOAR a second leaf for each row.
        inner = {"residual_quantization": True}
        groups.insert(1, [[{**inner, "soar_lambda": 1.5}], [inner]])
        # Of squared L2 ScaNN makes the same codes with any threshold.
        groups.append([[{"anisotropic_quantization_threshold": None}]])
    return groups if settings.score == "ah" else groups[:1]


def _best_build(case: Case, until: float | None, changeable: bool) -> tuple[Build, int]:
    """The fastest of the builds that are tried one change after another, and how many were."""
    best, tried = case.build(None), 1
    num_rows, dim = case.rows.shape
    logging.info("%d rows: recall %.4f, with %s", num_rows, best.recall, best.told)
    groups = space(best.settings, num_rows, dim, case.distance)
    if best.recall < case.wanted and best.settings.score == "ah":
        # What codes lose, no number of leaves brings back: the rows of a leaf themselves do.
        groups = [[[{"score": "brute_force", "reordering_num_neighbors": 0}]], *groups[:1]]
    for directions in groups:
        for direction in directions:
            kept = False
            for change in direction:
                changed = _changed(best.settings, change)
                if changed == best.settings or (changeable and not changed.can_change):
                    continue
                if until is not None and time.perf_counter() > until:
                    logging.info("no time for more builds: %d were tried", tried)
                    return best, tried
                other = case.build(changed)
                tried += 1
                faster = _faster(case, other, best)
                logging.info("%s: %s", other.told, _told(other, faster))
                if faster <= _GAIN:
                    break
                best, kept = other, True
            if kept:
                break
    return best, tried


def _changed(settings: Settings, change: dict) -> Settings:
    """With the change, and no more leaves searched than there are."""
    leaves = change.get("num_leaves", settings.num_leaves)
    searched = min(settings.num_leaves_to_search, leaves)
    return dataclasses.replace(settings, num_leaves_to_search=searched, **change)


def _faster(case: Case, other: Build, best: Build) -> float:
    """How many times as fast as `best` another one is; 0 or infinity where recall decides."""
    if min(other.recall, best.recall) < case.wanted:
        return math.inf if other.recall > best.recall else 0.0
    speeds = case.race([other, best])
    return speeds[0] / speeds[1]


def _told(other: Build, faster: float) -> str:
    how = f"{faster:.2f} times the speed" if 0 < faster < math.inf else "by its recall"
    kept = "kept" if faster > _GAIN else "no better"
    return f"recall {other.recall:.4f}, {how}: {kept}"


def _resized(settings: Settings, before: int, now: int, dim: int) -> Settings:
    """The settings of a sample for all rows."""
    leaves = round(settings.num_leaves * math.sqrt(now / before))
    usual = Settings.for_rows(now, dim, num_leaves=leaves)
    kept = {
        name: getattr(usual, name)
        for name in ("num_leaves", "num_leaves_to_search", "training_sample_size")
    }
    return dataclasses.replace(settings, **kept)
