"""What a change of the model does to approximate search, case by case: recall, CMC, speed, cost.

A case is queries of one column that search rows of another: old/old, new/T(old), new/new. Of each
an index is built and measured. Where two cases in a row have the same queries, rows of the one can
take the place of rows of the other, as backfilling lets them. Shares of such rows, drawn at random,
are measured between the two. Beside the index that is built of them stands the first case's index,
which keeps its leaves and codes while the rows that have changed are upserted. A fused search can
do without an index of its own: the old model's finds rows, which are ordered anew (`reranked`).

Recall is told of two truths. Of the exact neighbours of the case itself: what an index loses. Of
those of the last case, the goal of the change: what the change has lost so far, with exact search
beside, which tells what of that is the index's. The row with a query's id does not count for it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from fct_tf.ann import benchmark, evaluation, peers, scann_files
from fct_tf.ann.reranked import Rerank, RerankedSearcher
from fct_tf.ann.searcher import Searcher, cores
from fct_tf.ann.settings import Settings
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import NO_DIRECTION, Rows, named_rows, without_direction
from fct_tf.retrieval import exact, metrics

BUILT, KEPT, RERANKED = "built", "kept", "reranked"
# Of an exact search of all queries.
_LONG_S = 1.0


@dataclass(frozen=True)
class Case:
    """Queries and the rows that they search, by the names of their columns.

    rerank: of the rows of a fused search, how they are found without being stored.
    """

    name: str
    query: str
    gallery: str
    rerank: Rerank | None = None

    @property
    def queries(self) -> list[str]:
        """All columns that are read of the queries."""
        return [self.query, *(self.rerank.queries if self.rerank else ())]

    @property
    def rows(self) -> list[str]:
        """All columns that are read of the rows."""
        return [self.gallery, *(self.rerank.stored if self.rerank else ())]


@dataclass(frozen=True)
class Measuring:
    """What is measured of each index.

    ks: recall@k. cmc: CMC@k of queries with labels; empty: none. The others are as those of
    `sweep.Measuring`. k: neighbours of the searches that are timed, for the first
    `timed_queries`.
    """

    k: int = 10
    ks: tuple[int, ...] = (1, 10, 100)
    cmc: tuple[int, ...] = (1, 5)
    threads: int | None = None
    rounds: int = 3
    seconds: float = 0.3
    timed_queries: int = 1000


@dataclass(frozen=True)
class State:
    """A case, or what lies between one and the next: `share` of its rows are those of `target`.

    goes_on: whether its rows come from those of the state before by upserts.
    """

    case: Case
    target: str = ""
    share: float = 0.0
    goes_on: bool = False

    @property
    def name(self) -> str:
        if not self.target:
            return self.case.name
        return f"{self.case.name}, {100 * self.share:g} % backfilled"


def states(cases: Sequence[Case], shares: Sequence[float]) -> list[State]:
    """The cases, and the backfilled states between those with the same queries.

    Raises:
      InputError: no case, one twice, or shares that do not rise between 0 and 1.
    """
    if not cases or len({(one.query, one.gallery) for one in cases}) < len(cases):
        raise InputError("cases: one or more, each once")
    check_shares(shares, "backfilled")
    planned = [State(cases[0])]
    for before, case in zip(cases, cases[1:], strict=False):
        goes_on = before.query == case.query
        for share in shares if goes_on else ():
            planned.append(State(before, case.gallery, share, True))
        planned.append(State(case, goes_on=goes_on))
    return planned


def check_shares(shares: Sequence[float], key: str) -> None:
    """Refuses, by the name of the setting, shares that do not rise between 0 and 1."""
    if list(shares) != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
        listed = ",".join(f"{share:g}" for share in shares)
        raise InputError(f"{key}={listed}: rising shares of the rows, above 0 and below 1")


def measure(
    queries: Rows,
    rows: Rows,
    cases: Sequence[Case],
    distance: str,
    *,
    shares: Sequence[float] = (0.2, 0.5),
    settings: Settings | None = None,
    measuring: Measuring = Measuring(),  # noqa: B008 (it is frozen)
    seed: int = 0,
    progress: str = "",
) -> list[dict]:
    """Builds, changes and measures the indices of all cases.

    Args:
      queries, rows: with ids and the columns of the cases; with labels there is CMC.
      cases: in the order of the change.
      distance: `l2` or `cosine`.
      shares: of the rows, backfilled between two cases.
      settings: of the indices; by default those for the number of rows.
      seed: of the order in which rows are backfilled.
      progress: label of the progress bar, a step for each state; none if empty.

    Returns:
      A record for each index: `case`, `query`, `gallery`, `target`, `backfilled`, `index` (`built`
      of these rows, `kept` and upserted, or `reranked`: the old model's, as it is), `rows_changed`
      (put in by building, or by upserts since the index was built), `seconds` and `cpu_seconds`
      that this took, `recall`, `recall_of_last`, `exact_recall_of_last`, `cmc`, `exact_cmc`,
      `qps`, `exact_qps`, `latency_ms`, `settings`, `bytes`; of a `reranked` one `rerank`, the
      number of rows that are ordered for a query.

    Raises:
      InputError: cases or shares that cannot be, too few rows, rows that cannot be indexed,
        settings under which ScaNN cannot change rows.
    """
    planned = states(cases, shares)
    indexed = {case.gallery for case in cases}
    indexed |= {case.rerank.stored[0] for case in cases if case.rerank}
    rows = _with_direction(rows, indexed, distance)
    most = max(*measuring.ks, measuring.k)
    if most >= len(rows):
        raise InputError(f"{len(rows)} rows have no {most} neighbours; give a smaller k")
    if settings and not settings.can_change and any(state.goes_on for state in planned):
        raise InputError("ScaNN cannot change rows under these settings (SOAR, int8); leave them")
    ask = _Asked(queries, rows, distance, measuring)
    scann_files.available()  # Loading ScaNN is no part of the first build.
    order = np.random.default_rng(seed).permutation(len(rows))
    goal = ask.truth(cases[-1].query, rows.vectors[cases[-1].gallery])
    records: list[dict] = []
    kept: Searcher | None = None
    changed, spent = 0, np.zeros(2)
    for place, state in enumerate(tqdm(planned, desc=progress, disable=None if progress else True)):
        logging.info("%s", state.name)
        vectors = rows.vectors[state.case.gallery]
        if state.target:
            put = order[: round(state.share * len(rows))]
            vectors = vectors.copy()
            vectors[put] = rows.vectors[state.target][put]
        threads = measuring.threads
        built, cost = _timed(Searcher.build, vectors, distance, settings, threads=threads)
        indices: list[tuple] = [(BUILT, built, len(rows), cost)]
        if state.goes_on:
            assert kept is not None
            now = round(state.share * len(rows)) if state.target else len(rows)
            numbers = order[changed:now]
            _, more = _timed(kept.upsert, numbers, vectors[numbers])
            changed, spent = now, spent + more
            indices.append((KEPT, kept, changed, spent))
        how = None if state.target else state.case.rerank
        if how:
            old = Searcher.build(rows.vectors[how.stored[0]], distance, settings, threads=threads)
            indices.append((RERANKED, ask.reranked(old, how, rows), 0, np.zeros(2)))
        about = {
            "case": state.name,
            "query": state.case.query,
            "gallery": state.case.gallery,
            "target": state.target or None,
            "backfilled": state.share,
        }
        measured = ask.measured(state.case.query, vectors, [one[1] for one in indices], goal)
        for (index, _, count, seconds), values in zip(indices, measured, strict=True):
            cost_of = {"seconds": _rounded(seconds[0]), "cpu_seconds": _rounded(seconds[1])}
            records.append({**about, "index": index, "rows_changed": count, **cost_of, **values})
            if how and index == RERANKED:
                records[-1]["rerank"] = how.first
        if not state.target and place + 1 < len(planned) and planned[place + 1].goes_on:
            kept, changed, spent = built, 0, np.zeros(2)
    return records


class _Asked:
    """The queries, and how an index is measured by them."""

    def __init__(self, queries: Rows, rows: Rows, distance: str, measuring: Measuring):
        self._vectors, self._distance, self._m = queries.vectors, distance, measuring
        self._own = exact.row_numbers(queries.ids, rows.ids)
        self._most = max(*measuring.ks, measuring.k)
        self._codes = None
        if measuring.cmc and queries.labels is not None and rows.labels is not None:
            codes, self._row_codes = exact.label_codes(queries.labels, rows.labels)
            labelled = np.flatnonzero(codes > -2)
            if len(labelled):
                self._codes, self._labelled = codes[labelled], labelled

    def reranked(self, old: Searcher, how: Rerank, rows: Rows) -> RerankedSearcher:
        """By the old model's index; a query's own row is found beside those that are ordered."""
        first = how.first + bool(np.any(self._own >= 0))
        return RerankedSearcher(old, how, rows.vectors, first)

    def truth(self, query: str, vectors: np.ndarray) -> benchmark.Truth:
        """The exact neighbours of queries."""
        asked = self._vectors[query]
        near = exact.search(asked, vectors, self._most, self._distance, self._own)[0]
        apart = benchmark.true_distances(vectors, asked, near, self._distance)
        order = np.argsort(apart, axis=1, kind="stable")
        near, apart = (np.take_along_axis(one, order, axis=1) for one in (near, apart))
        return benchmark.Truth(vectors, asked, self._distance, near, apart)

    def measured(
        self,
        query: str,
        vectors: np.ndarray,
        searchers: Sequence[Searcher | RerankedSearcher],
        goal: benchmark.Truth,
    ) -> Iterator[dict]:
        """Of each searcher of these vectors what a record says; they are timed in turn."""
        m, truth = self._m, self.truth(query, vectors)
        exact_neighbours = {k: truth.neighbors[:, :k] for k in m.ks}
        exact_cmc, exact_qps = self._cmc(query, vectors), self._exact_qps(query, vectors)
        rounds = benchmark.measure(
            [
                benchmark.Point(searcher, {}, self._asked(query, searcher)[: m.timed_queries])
                for searcher in searchers
            ],
            self._vectors[query][: m.timed_queries],
            m.k,
            threads=m.threads,
            rounds=m.rounds,
            seconds=m.seconds,
        )
        for searcher, measured in zip(searchers, rounds, strict=True):
            neighbours = {k: self._others(searcher, self._asked(query, searcher), k) for k in m.ks}
            yield {
                "recall": {str(k): _rounded(truth.recall(neighbours[k], k)) for k in m.ks},
                "recall_of_last": _shared(neighbours, goal),
                "exact_recall_of_last": _shared(exact_neighbours, goal),
                "cmc": self._cmc(query, vectors, searcher),
                "exact_cmc": exact_cmc,
                **benchmark.summary(measured),
                "exact_qps": exact_qps,
                "threads": m.threads or cores(),
                "settings": evaluation.described(searcher.settings),
                "bytes": searcher.nbytes,
            }

    def _exact_qps(self, query: str, vectors: np.ndarray) -> dict[str, float]:
        """Queries per second of exact search, the best round: one thread, and all of them.

        What takes long differs little from round to round, and is measured once.
        """
        m, asked = self._m, self._vectors[query][: self._m.timed_queries]
        index = peers.ExactIndex(vectors, self._distance)

        def search(threads: int | None) -> float:
            best = 0.0
            for _ in range(m.rounds):
                _, (seconds, _) = _timed(index.search, asked, m.k, threads=threads)
                best = max(best, len(asked) / seconds)
                if seconds > _LONG_S:
                    break
            return _rounded(best)

        return {"batched": search(1), "parallel": search(m.threads)}

    def _asked(self, query: str, searcher: Searcher | RerankedSearcher) -> np.ndarray:
        """The queries as a searcher reads them, float32 [q, d]."""
        if not isinstance(searcher, RerankedSearcher):
            return self._vectors[query]
        return np.concatenate([self._vectors[name] for name in searcher.queries], axis=1)

    def _others(
        self, searcher: Searcher | RerankedSearcher, asked: np.ndarray, k: int
    ) -> np.ndarray:
        """The k rows found, int64 [q, k], without the queries' own."""
        neighbours, _ = searcher.search(asked, k + 1, threads=self._m.threads)
        order = np.argsort(neighbours == self._own[:, None], axis=1, kind="stable")
        return np.take_along_axis(neighbours, order, axis=1)[:, :k]

    def _cmc(
        self,
        query: str,
        vectors: np.ndarray,
        searcher: Searcher | RerankedSearcher | None = None,
    ) -> dict[str, float | None] | None:
        """By a searcher of these vectors, or by exact search; None where there are no labels."""
        if self._codes is None:
            return None
        asked, most = self._vectors[query][self._labelled], max(self._m.cmc)
        k = 2 * most + 1
        if searcher:
            read = self._asked(query, searcher)[self._labelled]
            neighbours = searcher.search(read, k, threads=self._m.threads)[0]
        else:
            neighbours = exact.search(asked, vectors, k, self._distance)[0]
        own = self._own[self._labelled]
        rank = evaluation.ranks(
            *(asked, self._codes, own, vectors, self._row_codes, neighbours, self._distance),
            max_rank=most,
        )
        return metrics.cmc(rank, self._m.cmc)


def _shared(found: dict[int, np.ndarray], goal: benchmark.Truth) -> dict[str, float]:
    """Mean share of the goal's k nearest rows that are among the k found, by k."""
    result = {}
    for k, rows in found.items():
        true = goal.neighbors[:, :k]
        same = (rows[:, :k, None] == true[:, None, :]) & (true[:, None, :] >= 0)
        result[str(k)] = _rounded(same.any(axis=1).mean())
    return result


def _timed(work: Callable[..., Any], *arguments, **settings) -> tuple[Any, np.ndarray]:
    """What it returns, and (seconds by the clock, of the processor)."""
    before = np.array([time.perf_counter(), time.process_time()])
    result = work(*arguments, **settings)
    return result, np.array([time.perf_counter(), time.process_time()]) - before


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _with_direction(rows: Rows, columns: set[str], distance: str) -> Rows:
    """Without the rows that no cosine index takes."""
    if distance != "cosine":
        return rows
    bad = np.any([without_direction(rows.vectors[name]) for name in columns], axis=0)
    if not bad.any():
        return rows
    logging.warning("%s %s: left out, in all cases", named_rows(rows.ids, bad), NO_DIRECTION)
    return rows.without(set(rows.ids[bad]))
