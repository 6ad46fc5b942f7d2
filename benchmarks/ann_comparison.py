"""ScaNN beside faiss and hnswlib: queries per second at a wanted recall, on the same rows.

Each library is tuned in the same way. Some indices of it are built; of each, and for each number of
rows that are reordered, the least effort is found that reaches the recall, as the tuner does it
(`fct_tf.ann.effort.Effort`). The fastest of those with one thread and with all cores are measured
again: all libraries in turn, in rounds of which the median counts, all queries in one call.
`qps_single` is one query a call with one thread, as ann-benchmarks measures.

Building takes hours, searching minutes, and a busy machine spoils what is measured. So there are
two stages: the first builds and saves what is not there yet, the second loads and measures.
`build_s` is by the clock with all cores; `build_cpu_s` of the processor hardly depends on what
else the machine does.

  python benchmarks/ann_comparison.py --stage=build --workdir=runs/ann \\
      --gallery=rows128.lance --queries=queries128.lance \\
      --gallery=rows384.lance --queries=queries384.lance
  python benchmarks/ann_comparison.py --stage=search --workdir=runs/ann \\
      --output=results/ann_comparison.json

ann_rows.py makes the galleries.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
from absl import flags

from fct_tf.ann import benchmark, build_process
from fct_tf.ann.effort import REORDERED, Effort
from fct_tf.ann.peers import LIBRARIES, told
from fct_tf.ann.searcher import cores
from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.common.files import check_output_file, make_dir, read_json, write_json, write_records
from fct_tf.common.provenance import library_versions
from fct_tf.gallery import table
from fct_tf.report import pareto
from fct_tf.retrieval import exact

K = 10
WANTED = (0.9, 0.95, 0.99)
# Queries that tune and that exact search is measured with; all the others are measured with all.
TUNING_QUERIES, EXACT_QUERIES = 2000, 100
RACE_ROUNDS, RACE_SECONDS = 3, 0.1
PEERS = ("faiss-cpu", "hnswlib")
MOST_CANDIDATES = 4096  # Of the graphs: rows that a search keeps.


def builds(num_rows: int, dim: int, distance: str) -> Iterator[tuple[str, dict]]:
    """(library, settings) of the indices that are built, those that take long at the end."""
    half, usual, twice = (round(times * num_rows**0.5) for times in (1, 2, 4))
    bfloat16 = {"reordering_data": "bfloat16"}
    for count in (usual, half, twice):
        yield "scann", {"num_leaves": count, **bfloat16}
    # Codes of one dimension each: they tell rows apart that lie very near each other.
    for count in (usual, twice):
        yield "scann", {"num_leaves": count, **bfloat16, "dimensions_per_block": 1}
    if distance == "cosine":
        # What ScaNN has for inner products alone.
        for count in (usual, half):
            inner = {"num_leaves": count, **bfloat16, "residual_quantization": True}
            yield "scann", inner
            yield "scann", {**inner, "soar_lambda": 1.5}
    for count in (usual, half, twice):
        yield "faiss_ivf", {"nlist": count, "m": dim // 2}
    yield "faiss_ivf", {"nlist": usual, "m": dim // 4}
    # The same graph in two libraries; the slower one to build is built once.
    yield "hnswlib", {"M": 16}
    yield "faiss_hnsw", {"M": 16}
    yield "hnswlib", {"M": 32}


@dataclass(frozen=True)
class Data:
    """Rows, queries and their true neighbours, kept in a directory as .npy files."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def distance(self) -> str:
        return read_json(self.directory / "data.json")["distance"]

    def load(self, name: str) -> np.ndarray:
        """`rows` float32 [n, d], `queries` float32 [q, d] or `neighbors` int64 [q, K]."""
        return np.load(self.directory / f"{name}.npy", allow_pickle=False)


def prepare(gallery: str, queries: str, column: str, workdir: Path) -> Data:
    """Writes what the stages read, if it is not there for these versions of the galleries.

    Raises:
      InputError: galleries or column that cannot be read, or that differ in their space.
    """
    sides = [table.open_gallery(path) for path in (gallery, queries)]
    columns = [side.column(column) for side in sides]
    if columns[0].space != columns[1].space:
        raise InputError(f"{queries}: column {column!r} is of another space than in {gallery}")
    data = Data(make_dir(workdir / Path(sides[0].path).stem))
    about = {
        "column": column,
        "distance": columns[0].distance,
        "versions": [side.version for side in sides],
        "num_rows": [side.num_rows for side in sides],
    }
    done = data.directory / "data.json"
    if done.exists() and read_json(done) == about:
        return data
    rows, asked = (side.read([column], with_ids=False).vectors[column] for side in sides)
    print(f"{data.name}: true neighbours of {len(asked)} queries", flush=True)
    neighbors, _ = exact.search(asked, rows, K, columns[0].distance)
    for name, array in (("rows", rows), ("queries", asked), ("neighbors", neighbors)):
        np.save(data.directory / f"{name}.npy", array)
    write_json(done, about)
    return data


def place(data: Data, library: str, settings: dict) -> Path:
    """The directory of an index."""
    return data.directory / f"{library} {told(settings)}".replace(", ", " ")


def in_a_process(directory: Path) -> None:
    """Builds what `job.json` in a directory says; see `fct_tf.ann.build_process`."""
    subprocess.run([sys.executable, "-m", "fct_tf.ann.build_process", str(directory)], check=True)


def build(data: Data) -> None:
    """Builds the indices that are not there, each in a process of its own."""
    num_rows, dim = np.load(data.directory / "rows.npy", mmap_mode="r").shape
    for library, settings in builds(num_rows, dim, data.distance):
        directory = place(data, library, settings)
        job = {
            "rows": str(data.directory.resolve() / "rows.npy"),
            "distance": data.distance,
            "library": library,
            "settings": settings,
            "threads": None,
        }
        built = directory / build_process.BUILT
        if built.exists() and read_json(directory / build_process.JOB) == job:
            continue
        shutil.rmtree(directory, ignore_errors=True)
        make_dir(directory)
        write_json(directory / build_process.JOB, job)
        started = time.perf_counter()
        in_a_process(directory)
        told_s = time.perf_counter() - started
        print(f"{directory.name}: {told_s:.0f} s, {read_json(built)}", flush=True)


def effort(library: str, settings: dict) -> Effort:
    """What a search of an index may spend."""
    counts = [times * K for times in REORDERED]
    if library == "scann":
        return Effort(
            *("num_leaves_to_search", settings["num_leaves"], "reordering_num_neighbors", counts)
        )
    if library == "faiss_ivf":
        return Effort("nprobe", settings["nlist"], "k_factor", REORDERED)
    return Effort({"hnswlib": "ef", "faiss_hnsw": "efSearch"}[library], MOST_CANDIDATES, least=K)


@dataclass(frozen=True)
class Candidate:
    """An index and a search of it that reaches the recall of `queries` that it was tuned with."""

    library: str
    directory: Path
    index: Any
    effort: Effort
    search: dict
    recall: float

    @property
    def point(self) -> benchmark.Point:
        return benchmark.Point(self.index, self.search)

    def confirmed(self, truth: benchmark.Truth, wanted: float) -> "Candidate":
        """The same with as much more effort as the recall of all queries needs."""
        search = dict(self.search)
        while True:
            found, _ = self.index.search(truth.queries, K, **search)
            recall = truth.recall(found, K)
            spent = search[self.effort.leaves]
            if recall >= wanted or spent >= self.effort.most:
                return replace(self, search=search, recall=recall)
            search[self.effort.leaves] = min(self.effort.most, spent + max(1, spent // 50))


def candidates(data: Data, truth: benchmark.Truth) -> dict[float, list[Candidate]]:
    """By wanted recall, what is worth being measured of all indices that are built."""
    found: dict[float, list[Candidate]] = {wanted: [] for wanted in WANTED}
    for built in sorted(data.directory.glob(f"*/{build_process.BUILT}")):
        if "error" in read_json(built):
            print(f"{built.parent.name}: {read_json(built)['error']}")
            continue
        job = read_json(built.with_name(build_process.JOB))
        library = job["library"]
        index = LIBRARIES[library].load(built.with_name(build_process.INDEX))
        recalls: dict[str, float] = {}

        def recall_of(search: dict, index=index, recalls=recalls) -> float:
            if told(search) not in recalls:
                rows, _ = index.search(truth.queries, K, **search)
                recalls[told(search)] = truth.recall(rows, K)
            return recalls[told(search)]

        spending = effort(library, job["settings"])
        for wanted in WANTED:
            for search, recall in spending.reaching(recall_of, wanted):
                one = Candidate(library, built.parent, index, spending, search, recall)
                found[wanted] += [one] if recall >= wanted else []
        print(f"{data.name}: {built.parent.name}: {len(recalls)} searches tried", flush=True)
    return found


def fastest(candidates: list[Candidate], queries: np.ndarray, threads: int) -> list[Candidate]:
    """The fastest of each library, by a short race."""
    best: dict[int, float] = {}
    for _ in range(RACE_ROUNDS):
        for place, one in enumerate(candidates):
            speed = benchmark.qps(one.index, queries, K, threads, RACE_SECONDS, **one.search)
            best[place] = max(best.get(place, 0), speed)
    found: dict[str, tuple[float, Candidate]] = {}
    for place, one in enumerate(candidates):
        if best[place] > found.get(one.library, (0.0, one))[0]:
            found[one.library] = (best[place], one)
    return [one for _, one in found.values()]


def search(data: Data, rounds: int, seconds: float) -> list[dict]:
    """Records of one data set."""
    rows, queries, neighbors = (data.load(name) for name in ("rows", "queries", "neighbors"))
    truth = benchmark.Truth.of(rows, queries, data.distance, K, neighbors)
    few = slice(0, TUNING_QUERIES)
    tuning = benchmark.Truth.of(rows, queries[few], data.distance, K, neighbors[few])
    records = []
    for wanted, those in candidates(data, tuning).items():
        chosen: dict[str, tuple[Candidate, list[int]]] = {}
        for threads in (1, cores()):
            for one in fastest(those, queries[few], threads):
                one = one.confirmed(truth, wanted)
                key = f"{one.directory.name} {told(one.search)}"
                chosen.setdefault(key, (one, []))[1].append(threads)
        points = [one.point for one, _ in chosen.values()]
        measured = benchmark.measure(points, queries, K, rounds=rounds, seconds=seconds)
        for (one, modes), of_point in zip(chosen.values(), measured, strict=True):
            records += [record(data, one, wanted, mode, of_point) for mode in dict.fromkeys(modes)]
            print(told(records[-1]), flush=True)
    return records + exact_records(data, rows, queries, seconds)


def exact_records(data: Data, rows: np.ndarray, queries: np.ndarray, seconds: float) -> list[dict]:
    """The same of exact search, with few queries."""
    index = LIBRARIES["exact"].build(rows, data.distance)
    points = [benchmark.Point(index, {})]
    measured = benchmark.measure(points, queries[:EXACT_QUERIES], K, rounds=1, seconds=seconds)
    about = {"data": data.name, "library": "exact", "wanted_recall": 1.0, "recall": 1.0}
    about |= {"build_s": 0.0, "bytes": index.nbytes, "settings": {}}
    return [
        about | {"threads": threads, **speeds(measured[0], threads)}
        for threads in dict.fromkeys((1, cores()))
    ]


def speeds(measured: list[dict], threads: int) -> dict:
    """Medians of the rounds of a point."""
    found = benchmark.summary(measured)["qps_median"]
    if threads == 1:
        return {"qps": found["batched"], "qps_single": found["single"]}
    return {"qps": found["parallel"]}


def record(data: Data, one: Candidate, wanted: float, threads: int, measured: list[dict]) -> dict:
    """A record of results/ann_comparison.json."""
    built = read_json(one.directory / build_process.BUILT)
    settings = read_json(one.directory / build_process.JOB)["settings"]
    return {
        **{"data": data.name, "library": one.library, "threads": threads},
        **{"wanted_recall": wanted, "recall": round(one.recall, 5)},
        **speeds(measured, threads),
        **{name: built[name] for name in ("build_s", "build_cpu_s", "bytes")},
        "peak_build_bytes": built.get("peak_memory_bytes"),
        "settings": {**settings, **one.search},
    }


def against_peers(records: list[dict]) -> list[dict]:
    """ScaNN's queries per second as a multiple of those of the best other library."""
    found = []
    cases = {(one["data"], one["wanted_recall"], one["threads"]) for one in records}
    for case in sorted(cases):
        qps = {
            one["library"]: one["qps"]
            for one in records
            if (one["data"], one["wanted_recall"], one["threads"]) == case
        }
        scann = qps.pop("scann", None)
        if scann is not None and qps:
            best = max(qps, key=lambda name: qps[name])
            names = zip(("data", "wanted_recall", "threads"), case, strict=True)
            found.append({**dict(names), "best_peer": best, "ratio": round(scann / qps[best], 3)})
    return found


def draw(records: list[dict], folder: Path) -> None:
    """Recall against queries per second, a plot of each data set and number of threads."""
    for name, threads in sorted({(one["data"], one["threads"]) for one in records}):
        points: dict[str, list[tuple[float, float]]] = {}
        for one in records:
            if (one["data"], one["threads"]) == (name, threads):
                points.setdefault(one["library"], []).append((one["recall"], one["qps"]))
        pareto.plot(
            points,
            folder / f"ann_comparison_{name}_{threads}.svg",
            recall=f"recall@{K}",
            speed="queries per second",
            title=f"{name}, {threads} thread{'s' if threads > 1 else ''}",
        )


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "stage", None, ["build", "search"], "What to do.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "workdir", None, "Directory of the indices.", required=True, flag_values=values
    )
    for name, text in (("gallery", "Gallery with the rows"), ("queries", "and its queries")):
        flags.DEFINE_multi_string(name, [], f"{text}; may be repeated.", flag_values=values)
    flags.DEFINE_string("column", "embedding_new", "Of both.", flag_values=values)
    for name, text in (("output", "JSON file to write"), ("plots", "Directory for plots")):
        flags.DEFINE_string(name, "", f"{text}, of the second stage.", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Of the measurements.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 0.5, "Of each, at least.", lower_bound=0, flag_values=values)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    workdir = Path(values.workdir)
    if values.stage == "build":
        if len(values.gallery) != len(values.queries) or not values.gallery:
            raise InputError("--gallery and --queries: name both, as often as one another")
        for pair in zip(values.gallery, values.queries, strict=True):
            build(prepare(*pair, values.column, workdir))
        return
    check_output_file(values.output, values.overwrite, "output")
    datas = [Data(done.parent) for done in sorted(workdir.glob("*/data.json"))]
    if not datas:
        raise InputError(f"{workdir}: nothing is built here; begin with --stage=build")
    records = [one for data in datas for one in search(data, values.rounds, values.seconds)]
    ratios = against_peers(records)
    result = {
        "what": f"queries per second at recall@{K} of a wanted size, median of {values.rounds} "
        "rounds in which all libraries take turns",
        "command": machine.command(sys.argv),
        "cpu": machine.cpu(),
        "cores": cores(),
        "versions": library_versions(PEERS),
        "data": {data.name: read_json(data.directory / "data.json") for data in datas},
        "results": records,
        "scann_against_best_peer": ratios,
    }
    write_records(values.output, result)
    for one in ratios:
        print(told(one))
    if values.plots:
        draw([one for one in records if one["library"] != "exact"], make_dir(values.plots))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
