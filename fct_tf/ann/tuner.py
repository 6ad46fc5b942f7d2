"""Finds the settings of an index that search fastest at a wanted recall.

A full sweep builds every combination and searches each in many ways. This one prunes:

- Settings of a build are tried one after the other, from the defaults on, on a sample of the rows:
  leaves first, where the defaults have none. What is faster stays; numbers of leaves are told by
  the square root of the rows, so that they mean the same on the whole.
- Settings of a search need no build: `effort` finds those that reach the recall with least effort.
- The winner is built of all rows and its search settings are found anew, against exact search.
"""

import dataclasses
import math
import time
from dataclasses import dataclass, field

import numpy as np
from absl import logging

from fct_tf.ann.effort import Build, Case
from fct_tf.ann.searcher import Searcher, cores
from fct_tf.ann.settings import EXACT_ROWS, Settings
from fct_tf.common.errors import InputError
from fct_tf.common.provenance import library_versions, processor

SAMPLE_ROWS = 100_000
# What another build has to gain, beyond what times of a busy machine differ by.
_GAIN = 1.02


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
    tuned = Found(
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
    best.searcher.settings, best.searcher.recall = settings, best.recall
    if not tuned.reached:
        logging.warning(
            "recall@%d of %s was not reached: the best is %.4f, with %s; exact search has 1",
            *(k, recall, tuned.recall, best.told),
        )
    logging.info("recall@%d %.4f at %.0f queries/s: %s", k, tuned.recall, qps, best.told)
    return tuned


def space(settings: Settings, num_rows: int, dim: int, distance: str) -> list[list[list[dict]]]:
    """What is tried: groups of directions of changes.

    In a direction changes are tried as long as each is better than the one before. Once one of a
    direction was, the other directions of its group are left out.
    """
    leaves, block = settings.num_leaves, settings.dimensions_per_block
    of_leaves: list[list[list[dict]]] = []
    if leaves:
        more = [{"num_leaves": min(leaves * times, num_rows // 8)} for times in (2, 4)]
        of_leaves.append([more, [{"num_leaves": max(1, leaves // times)} for times in (2, 4)]])
    if settings.score != "ah":
        return of_leaves
    groups = [*of_leaves, [[{"reordering_data": "bfloat16"}, {"reordering_data": "int8"}]]]
    sizes = ([2 * block, 3 * block], [max(1, block // 2)])
    groups.append([[{"dimensions_per_block": one} for one in way if one <= dim] for way in sizes])
    if distance == "cosine":
        # What ScaNN has for inner products alone: codes of what is left of a row beside the centre
        # of its leaf, and with SOAR a second leaf for each row.
        inner = {"residual_quantization": True}
        if leaves:
            groups.insert(1, [[{**inner, "soar_lambda": 1.5}], [inner]])
        # Of squared L2 ScaNN makes the same codes with any threshold.
        groups.append([[{"anisotropic_quantization_threshold": None}]])
    return groups


def _best_build(case: Case, until: float | None, changeable: bool) -> tuple[Build, int]:
    """The fastest of the builds that are tried one change after another, and how many were."""
    best, tried = case.build(None), 1
    num_rows, dim = case.rows.shape
    logging.info("%d rows: recall %.4f, with %s", num_rows, best.recall, best.told)
    groups = space(best.settings, num_rows, dim, case.distance)
    scanned = best.settings.score == "ah" and not best.settings.num_leaves
    leaves = _leaves(num_rows) if scanned else {}
    if best.recall < case.wanted and best.settings.score == "ah":
        # What codes lose, no number of leaves brings back: the rows of a leaf themselves do.
        rows_themselves = {"score": "brute_force", "reordering_num_neighbors": 0}
        groups = [[[{**leaves, **rows_themselves}]], *groups[: 0 if scanned else 1]]
    elif scanned:
        groups = [[[leaves]], *groups]
    while groups:
        directions, *groups = groups
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
        if scanned and best.settings.num_leaves:
            scanned, groups = False, space(best.settings, num_rows, dim, case.distance)
    return best, tried


def _leaves(num_rows: int) -> dict:
    """The change from codes of all rows to leaves."""
    usual = Settings.for_rows(num_rows, 2, num_leaves=round(2 * num_rows**0.5))
    names = ("num_leaves", "num_leaves_to_search", "dimensions_per_block", "training_sample_size")
    return {name: getattr(usual, name) for name in names}


def _changed(settings: Settings, change: dict) -> Settings:
    """With the change, and no more leaves searched than there are."""
    leaves = change.get("num_leaves", settings.num_leaves)
    searched = min(settings.num_leaves_to_search, leaves)
    return dataclasses.replace(settings, **{"num_leaves_to_search": searched, **change})


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
