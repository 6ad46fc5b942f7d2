"""A sweep of libraries and settings over one data set, which can be stopped and goes on.

The builds of the libraries take turns: the first build of each makes the first group, the second
of each the second. The indexes of a group are built, each in a process of its own; all points of
the group are then measured in turn, round by round. So few indexes are in memory, and what else
the machine does falls on all libraries alike.

What is measured is written to `journal.jsonl` at once. A sweep that was killed builds and measures
what the journal does not have, also of settings that were added meanwhile.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from fct_tf.ann import benchmark, build_process, hdf5
from fct_tf.ann.benchmark_data import Data
from fct_tf.ann.peers import LIBRARIES, Grid, Settings
from fct_tf.ann.searcher import cores
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.common.runs import remove

JOURNAL, WORK = "journal.jsonl", "unfinished"
Lists = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Measuring:
    """What is measured of each point.

    k: neighbours of the searches that are timed. ks: recall@k of these. threads: of builds and of
    the parallel searches; None is one per core. rounds, seconds: see `benchmark.measure`.
    """

    k: int = 10
    ks: tuple[int, ...] = (1, 10, 100)
    threads: int | None = None
    rounds: int = 3
    seconds: float = 0.3

    def most(self, data: Data) -> int:
        """The most neighbours that are asked for; `InputError` where there are not so many."""
        most = max(self.k, *self.ks)
        if most > len(data.rows):
            raise InputError(
                f"{data.name}: {len(data.rows)} rows have no {most} neighbours; give a smaller "
                "``k`` and ``ks``"
            )
        return most


@dataclass(frozen=True)
class Build:
    """An index of the sweep, and the settings that it is searched with."""

    library: str
    settings: Settings
    searches: list[Settings]

    @property
    def key(self) -> str:
        return files.sha256_json([self.library, dict(self.settings)])[:16]


def plan(
    libraries: Iterable[str], num_rows: int, dim: int, k: int, given: Mapping[str, Lists]
) -> list[Build]:
    """The builds and searches of a sweep.

    Args:
      given: values of settings by library, of builds and searches alike. Where none of a library's
        build settings is given, its defaults are built, and each changed by itself to the other
        values of the grid; else all combinations of what is given, with the defaults of the rest.
        Searches are all combinations.

    Raises:
      InputError: a setting that the library does not have.
    """
    builds = []
    for name in libraries:
        library, lists = LIBRARIES[name], dict(given.get(name, {}))
        grid = library.grid(num_rows, dim)
        searched = library.search_grid(k, {key: values[0] for key, values in grid.items()})
        unknown = [key for key in lists if key not in {**grid, **searched}]
        if unknown:
            raise InputError(
                f"{name}: no setting {unknown[0]!r} to sweep; there are: "
                f"{', '.join([*grid, *searched]) or 'none'}"
            )
        for settings in _combinations(grid, {key: lists[key] for key in lists if key in grid}):
            searches = {**library.search_grid(k, settings), **_only(lists, searched)}
            if "num_leaves_to_search" in searches:
                most = max(1, settings["num_leaves"])
                capped = [min(count, most) for count in searches["num_leaves_to_search"]]
                searches["num_leaves_to_search"] = list(dict.fromkeys(capped))
            builds.append(Build(name, settings, _product(searches)))
    return builds


def _combinations(grid: Grid, given: Lists) -> list[Settings]:
    defaults = {name: values[:1] for name, values in grid.items()}
    if given:
        return _product({**defaults, **given})
    alone = [{**defaults, name: [value]} for name, values in grid.items() for value in values[1:]]
    return [one for lists in [defaults, *alone] for one in _product(lists)]


def _product(lists: Lists) -> list[Settings]:
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _only(lists: Lists, names: Iterable[str]) -> dict:
    return {name: lists[name] for name in names if name in lists}


def run(
    data: Data,
    builds: Sequence[Build],
    directory: str | os.PathLike,
    measuring: Measuring = Measuring(),  # noqa: B008 (it is frozen)
    *,
    results: str | os.PathLike | None = None,
    alone: bool = True,
    progress: str = "",
) -> tuple[list[dict], list[dict]]:
    """Builds and measures what the journal in `directory` does not have.

    Args:
      data: rows and queries; true neighbours are those of the file, or found by exact search.
      results: also write ann-benchmarks' result files below this directory.
      alone: build each index in a process of its own, and tell its peak memory.
      progress: label of the progress bar, one step a build and a round of a point; none if empty.

    Returns:
      (records of the points measured, failed builds with their `error`).

    Raises:
      InputError: more neighbours asked for than there are rows, or nothing could be built.
    """
    most = measuring.most(data)
    journal = Journal(Path(directory) / JOURNAL)
    work = files.make_dir(Path(directory) / WORK)
    points = sum(len(build.searches) for build in builds)
    todo = len(builds) + points * measuring.rounds
    truth = benchmark.Truth.of(data.rows, data.queries, data.distance, most, data.neighbors)
    if not (work / "rows.npy").exists():
        with files.staging_dir(work / "rows.npy") as temporary:
            np.save(temporary / "rows.npy", data.rows, allow_pickle=False)
            os.replace(temporary / "rows.npy", work / "rows.npy")
    with tqdm(total=todo, desc=progress, disable=None if progress else True) as bar:
        for group in _groups(builds):
            _Group(group, data, truth, journal, work, measuring, results, bar.update).run(alone)
    failed = [entry for entry in journal.builds.values() if "error" in entry]
    records = [record for build in builds for record in _records(build, journal, measuring, data)]
    if not records:
        raise InputError(f"nothing could be built: {failed[0]['error']}")
    remove(work)
    return records, failed


class Journal:
    """What a sweep has measured so far, a line of JSON each, on the disk when `add` returns."""

    def __init__(self, path: Path):
        self._path = path
        self.builds: dict[str, dict] = {}
        self.recalls: dict[tuple[str, str], dict] = {}
        self.rounds: dict[tuple[str, str], dict[int, dict]] = {}
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            # A process that was killed may have left a part of a line.
            if lines[-1]:
                os.truncate(path, len(b"\n".join(lines[:-1])) + (len(lines) > 1))
            for number, line in enumerate(lines[:-1], 1):
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    raise InputError(
                        f"{path}: line {number} is broken; pass ``overwrite=True`` to begin anew"
                    ) from None

    def add(self, entry: dict) -> None:
        self._take(entry)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _take(self, entry: dict) -> None:
        if entry["kind"] == "build":
            self.builds[entry["build"]] = entry
            return
        key = (entry["build"], entry["search"])
        if entry["kind"] == "recall":
            self.recalls[key] = entry
        else:
            self.rounds.setdefault(key, {})[entry["round"]] = entry


@dataclass(frozen=True)
class _Group:
    """Builds whose points are measured in turn."""

    builds: Sequence[Build]
    data: Data
    truth: benchmark.Truth
    journal: Journal
    work: Path
    measuring: Measuring
    results: str | os.PathLike | None
    step: Callable[[int], Any]

    def run(self, alone: bool) -> None:
        points: list[benchmark.Point] = []
        keys: list[tuple[Build, Settings]] = []
        for build in self.builds:
            self.step(1)
            if all(self._missing(build, search) == 0 for search in build.searches):
                self.step(len(build.searches) * self.measuring.rounds)
                continue
            self._built(build, alone)
            if "error" in self.journal.builds[build.key]:
                self.step(len(build.searches) * self.measuring.rounds)
                continue
            place = self.work / build.key / build_process.INDEX
            index = LIBRARIES[build.library].load(place)
            for search in build.searches:
                points.append(benchmark.Point(index, search))
                keys.append((build, search))
        for point, (build, search) in zip(points, keys, strict=True):
            if _key(build, search) not in self.journal.recalls:
                self.journal.add(self._recall(point, build, search))

        def on_round(place: int, number: int, found: dict, single: np.ndarray) -> None:
            build, search = keys[place]
            key = _key(build, search)
            entry = {"kind": "round", "build": key[0], "search": key[1], "round": number}
            self.journal.add({**entry, **found})
            if self.results:
                self._write(points[place], build, search, number, single)
            self.step(1)

        def skip(place: int, number: int) -> bool:
            done = number in self.journal.rounds.get(_key(*keys[place]), {})
            self.step(int(done))
            return done

        m = self.measuring
        benchmark.measure(
            points,
            self.data.queries,
            m.k,
            threads=m.threads,
            rounds=m.rounds,
            seconds=m.seconds,
            on_round=on_round,
            skip=skip,
        )
        for build in self.builds:
            remove(self.work / build.key)

    def _missing(self, build: Build, search: Settings) -> int:
        return self.measuring.rounds - len(self.journal.rounds.get(_key(build, search), {}))

    def _built(self, build: Build, alone: bool) -> None:
        """Builds an index, unless it lies there since the sweep was stopped."""
        place = self.work / build.key
        job = {
            "rows": str((self.work / "rows.npy").absolute()),
            "distance": self.data.distance,
            "library": build.library,
            "settings": dict(build.settings),
            "threads": self.measuring.threads or cores(),
        }
        if not place.exists():
            with files.atomic_dir(place) as temporary:
                files.write_json(temporary / build_process.JOB, job)
                if alone:
                    _in_a_process(temporary)
                else:
                    build_process.build(temporary, alone=False)
        record = files.read_json(place / build_process.BUILT)
        if "error" in record:
            logging.warning("%s: %s", build.library, record["error"])
            record = {"library": build.library, "settings": dict(build.settings), **record}
            remove(place)
        self.journal.add({"kind": "build", "build": build.key, **record})

    def _recall(self, point: benchmark.Point, build: Build, search: Settings) -> dict:
        exact: dict[str, float] = {}
        near: dict[str, float] = {}
        for k in self.measuring.ks:
            # One thread, as for the result files: ScaNN may find others in batches of another size.
            neighbours, _ = point.index.search(self.data.queries, k, threads=1, **search)
            exact[str(k)] = round(self.truth.recall(neighbours, k), 6)
            near[str(k)] = round(self.truth.recall(neighbours, k, benchmark.EPSILON), 6)
        key = _key(build, search)
        names = {"kind": "recall", "build": key[0], "search": key[1]}
        return {**names, "recall": exact, "recall_within_epsilon": near}

    def _write(
        self, point, build: Build, search: Settings, number: int, single: np.ndarray
    ) -> None:
        """The result files of ann-benchmarks, whenever a round was the best so far."""
        queries, m = self.data.queries, self.measuring
        rounds = self.journal.rounds[_key(build, search)]
        speeds = {
            mode: {place: one["qps"][mode] for place, one in rounds.items()}
            for mode in ("single", "parallel")
        }
        best = [mode for mode, values in speeds.items() if values[number] == max(values.values())]
        if not best:
            return
        neighbours, _ = point.index.search(queries, m.k, threads=1, **search)
        distances = benchmark.true_distances(
            self.data.rows, queries, neighbours, self.data.distance
        )
        about = self.journal.builds[build.key]
        for mode in best:
            speed = max(speeds[mode].values())
            # Of slow searches not every query is timed, of fast ones each is several times.
            times = np.full(len(queries), 1 / speed)
            if mode == "single":
                times[: len(single)] = single[: len(queries)]
            hdf5.write_result(
                self.results or "",
                data=self.data.name,
                distance=self.data.distance,
                algorithm=build.library,
                settings={**build.settings, **search},
                neighbors=self.data.outside(neighbours),
                distances=distances,
                times=times,
                build_s=about["build_s"],
                best_search_s=1 / speed,
                index_bytes=about["bytes"],
                rounds=len(rounds),
                batch=mode == "parallel",
            )


def _records(build: Build, journal: Journal, measuring: Measuring, data: Data) -> Iterable[dict]:
    about = journal.builds.get(build.key, {})
    about = {name: value for name, value in about.items() if name not in ("kind", "build")}
    for search in build.searches:
        key = _key(build, search)
        if key in journal.rounds and key in journal.recalls:
            recalls = journal.recalls[key]
            yield {
                "library": build.library,
                "data": data.name,
                "k": measuring.k,
                "threads": measuring.threads or cores(),
                "settings": {"build": dict(build.settings), "search": dict(search)},
                "recall": recalls["recall"],
                "recall_within_epsilon": recalls["recall_within_epsilon"],
                **benchmark.summary(list(journal.rounds[key].values())),
                **about,
            }


def describe(data: Data) -> dict:
    """What a sweep says of its rows and queries."""
    num_rows, dim = data.rows.shape
    return {
        "name": data.name,
        "num_rows": num_rows,
        "dim": dim,
        "distance": data.distance,
        "num_queries": len(data.queries),
        "sha256": fingerprint(data),
    }


def fingerprint(data: Data) -> str:
    """SHA-256 of rows, queries and distance: whether a journal is of the same data."""
    digest = hashlib.sha256(f"{data.distance} {data.rows.shape} {data.queries.shape}".encode())
    for array in (data.rows, data.queries):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _groups(builds: Sequence[Build]) -> list[list[Build]]:
    by_library: dict[str, list[Build]] = {}
    for build in builds:
        by_library.setdefault(build.library, []).append(build)
    rows = itertools.zip_longest(*by_library.values())
    return [[build for build in row if build is not None] for row in rows]


def _key(build: Build, search: Settings) -> tuple[str, str]:
    return build.key, files.sha256_json(dict(search))[:16]


def _in_a_process(directory: Path) -> None:
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "fct_tf.ann.build_process", str(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if (directory / build_process.BUILT).exists():
        return
    if done.returncode >= 0:
        # A bug: what the process says of it is the best there is to say.
        raise RuntimeError(f"building ended with status {done.returncode}: {done.stderr}")
    killed = f"the build was killed by signal {-done.returncode}, maybe for want of memory"
    files.write_json(directory / build_process.BUILT, {"error": killed})
