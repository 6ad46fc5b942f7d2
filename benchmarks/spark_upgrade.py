"""What Spark costs and brings on this machine: upgrades by it beside those by the local engine.

equal: a gallery is upgraded by the local engine, by `local[2]` and by a standalone master with two
workers of one core; the columns are compared to the bit.

speed: rows per second of the same upgrade by the local engine and by the cluster, in turn, from the
call to the commit, the session's start included. Target: 75 % of the local engine's.

memory: the most resident memory of a Python worker, of an executor's Java and of the driver while
that gallery and a small one are upgraded on the cluster. Target: that of a worker does not grow
with the gallery (10 % at most).

commit: an upgrade of a gallery of so many fragments, all of them recorded: what is left to do then
is timed, and the bytes of the manifest told.

reference: with --reference, two columns of a gallery of real rows: the results by the cluster
beside those in memory.

evaluate: as many queries as rows, on the cluster: seconds and memory; and fewer of both, beside
the results in memory.

  python benchmarks/spark_upgrade.py --output=results/spark_upgrade.json \\
      --reference=GALLERY:QUERY_COLUMN:GALLERY_COLUMN

Galleries are made in TMPDIR and removed: 21 GB with the sizes given here. The JSON is written after
each part; a part that is asked for by --sections takes the place of its own alone.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import upgrade_speed
from spark_cluster import Cluster, environment, watching_memory

MIN_OF_LOCAL = 0.75
MAX_MEMORY_GROWTH = 1.1
# Short ones first; `speed` tells `memory` too.
SECTIONS = ("commit", "equal", "reference", "speed", "evaluate")


def upgrade_here(path: str, work: str, column: str, batch_size: int, master: str) -> dict:
    """The process that upgrades, on a master or (empty) by itself; seconds, the import apart."""
    from fct_tf.engines.engine import open_engine
    from fct_tf.upgrade.upgrade import Upgrade

    start = time.perf_counter()
    with open_engine("spark" if master else "local", master) as engine:
        Upgrade(path, work, column, batch_size=batch_size, engine=engine).run()
        seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2)}


def evaluate_here(path: str, query: str, column: str, master: str) -> dict:
    """The process that evaluates; what comes out, and seconds."""
    from fct_tf.engines.engine import open_engine
    from fct_tf.gallery import table
    from fct_tf.retrieval import in_parts, two_columns

    gallery, start = table.open_gallery(path), time.perf_counter()
    with open_engine("spark" if master else "local", master) as engine:
        searching = in_parts.searching(engine) if master else None
        record = two_columns.evaluate(gallery, query, gallery, column, searching=searching)
        seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "cmc": record["cmc"], "map": record["map"]}


def child(folder: Path, name: str, *arguments: object) -> dict:
    """Runs one of the functions above in a process of its own, and watches its memory."""
    command = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(folder / "conf"), stdout=subprocess.PIPE, text=True
    )
    with watching_memory(os.getpid()) as peaks:
        told, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {**json.loads(told.splitlines()[-1]), "peak_bytes": peaks}


def measure_equal(folder: Path, arguments: argparse.Namespace, master: str) -> dict:
    """One gallery, a column by each."""
    work = upgrade_speed.make_transformation(folder, arguments.dim, arguments.hidden)
    path = make_gallery(folder, arguments.equal_rows, arguments)
    by = {"local": "", "local_2": "local[2]", "standalone": master}
    seconds = {
        name: child(folder, "upgrade", path, work, name, arguments.batch_size, where)["seconds"]
        for name, where in by.items()
    }
    told = {
        "rows": arguments.equal_rows,
        "fragments": -(-arguments.equal_rows // arguments.rows_per_file),
        "seconds": seconds,
        "passed": all(equal_columns(path, "local", name) for name in by),
    }
    return {"equal": told}


def equal_columns(path: str, a: str, b: str) -> bool:
    """Whether two columns of a gallery hold the same bits."""
    from fct_tf.gallery import table

    return all(
        rows.vectors[a].tobytes() == rows.vectors[b].tobytes()
        for rows in table.open_gallery(path).batches([a, b], with_ids=False)
    )


def measure_speed(folder: Path, arguments: argparse.Namespace, master: str) -> dict:
    """In turn: the machine's speed swings."""
    work = upgrade_speed.make_transformation(folder, arguments.dim, arguments.hidden)
    small = make_gallery(folder, arguments.small_rows, arguments)
    least = child(folder, "upgrade", small, work, "x", arguments.batch_size, master)["peak_bytes"]
    path = make_gallery(folder, arguments.rows, arguments)
    read, rounds = bytes_of(path), []
    for number in range(arguments.rounds):
        spent, peaks = {}, {}
        for name, where in {"local": "", "spark": master}.items():
            column = f"{name}_{number}"
            made = child(folder, "upgrade", path, work, column, arguments.batch_size, where)
            spent[name], peaks[name] = arguments.rows / made["seconds"], made["peak_bytes"]
        rounds.append(spent)
    ratio = float(np.median([spent["spark"] / spent["local"] for spent in rounds]))
    growth = {kind: round(peaks["spark"][kind] / least[kind], 3) for kind in least}
    written = (bytes_of(path) - read) / (2 * arguments.rounds)
    speed = {
        "rows": arguments.rows,
        "fragments": -(-arguments.rows // arguments.rows_per_file),
        "bytes_per_row": {
            "read": round(read / arguments.rows, 1),
            "written": round(written / arguments.rows, 1),
        },
        "rows_per_s": [{k: round(v) for k, v in spent.items()} for spent in rounds],
        "of_local": round(ratio, 3),
        "target": MIN_OF_LOCAL,
        "passed": ratio >= MIN_OF_LOCAL,
    }
    memory = {
        "sizes": [
            {"rows": arguments.small_rows, "peak_bytes": least},
            {"rows": arguments.rows, "peak_bytes": peaks["spark"]},
        ],
        "growth": growth,
        "target": MAX_MEMORY_GROWTH,
        "passed": growth["worker"] <= MAX_MEMORY_GROWTH,
    }
    return {"speed": speed, "memory": memory}


def bytes_of(path: str) -> int:
    """Of a gallery's data files."""
    return sum(file.stat().st_size for file in (Path(path) / "data").iterdir())


def measure_commit(folder: Path, arguments: argparse.Namespace, master: str) -> dict:
    """All fragments are staged here, by an engine that then stops; the rest is timed."""
    from fct_tf.gallery import table
    from fct_tf.upgrade.upgrade import Upgrade

    work = upgrade_speed.make_transformation(folder, arguments.commit_dim, 8)
    count = arguments.commit_fragments
    path = upgrade_speed.make_gallery(folder / "many.lance", count, arguments.commit_dim, 1)

    def staging(make: Any, units: Sequence[Any], tick: Any, name: str) -> Iterator[tuple]:
        for unit in units:
            yield unit, make(unit, tick)
        times.append(time.perf_counter())

    times: list[float] = []
    start = time.perf_counter()
    made = Upgrade(path, work, "x", engine=staging).run().gallery
    end = time.perf_counter()
    versions = Path(path) / "_versions"
    manifest = max(versions.glob("*.manifest"), key=lambda file: file.stat().st_mtime_ns)
    told = {
        "fragments": len(table.open_gallery(path).dataset.get_fragments()),
        "staged_s": round(times[0] - start, 2),
        "commit_s": round(end - times[0], 2),
        "manifest_bytes": manifest.stat().st_size,
        "version": made.version,
    }
    return {"commit": told}


def measure_reference(folder: Path, arguments: argparse.Namespace, master: str) -> dict:
    """Of a gallery of real rows."""
    if not arguments.reference:
        return {}
    path, *columns = arguments.reference.rsplit(":", 2)
    return {"reference": {"columns": columns, **beside(folder, master, path, *columns)}}


def measure_evaluate(folder: Path, arguments: argparse.Namespace, master: str) -> dict:
    """As many queries as rows."""
    count, dim = arguments.evaluate_rows, arguments.dim
    found = child(folder, "evaluate", make_labelled(folder, count, dim), "x", "x", master)
    few = arguments.evaluate_equal_rows
    equal = {"rows": few, **beside(folder, master, make_labelled(folder, few, dim), "x", "x")}
    told = {"rows": count, "dim": dim, "spark": found, "equal": equal, "passed": equal["passed"]}
    return {"evaluate": told}


def beside(folder: Path, master: str, path: str, query: str, column: str) -> dict:
    """Results by the cluster beside those in memory."""
    by = {"spark": master, "in_memory": ""}
    found: dict[str, Any] = {
        name: child(folder, "evaluate", path, query, column, where) for name, where in by.items()
    }
    same = [found["spark"][key] == found["in_memory"][key] for key in ("cmc", "map")]
    return {**found, "passed": all(same)}


def make_gallery(folder: Path, count: int, arguments: argparse.Namespace) -> str:
    path = folder / f"{count}.lance"
    return upgrade_speed.make_gallery(path, count, arguments.dim, arguments.rows_per_file)


def make_labelled(folder: Path, count: int, dim: int) -> str:
    """Rows around 20 times fewer centres, whose numbers are their labels."""
    from fct_tf.gallery import table

    generator = np.random.default_rng(0)
    classes = max(1, count // 20)
    centres = generator.normal(size=(classes, dim))

    def batches() -> Iterator[table.Rows]:
        for start in range(0, count, 1 << 16):
            numbers = np.arange(start, min(start + (1 << 16), count))
            label = generator.integers(0, classes, len(numbers))
            vectors = centres[label] + 1.2 * generator.normal(size=(len(numbers), dim))
            ids = np.array([f"gallery/{number:09d}.jpg" for number in numbers], object)
            labels = np.array([f"class {one}" for one in label], object)
            yield table.Rows(ids, labels, {"x": vectors.astype(np.float32)})

    path = folder / f"labelled_{count}.lance"
    table.create(path, batches(), [table.Column("x", dim, "a" * 64)], rows_per_file=1 << 16)
    return str(path)


def main(argv: Sequence[str]) -> None:
    """Measures, prints what came out, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--equal_rows", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small_rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8192)
    parser.add_argument("--rows_per_file", type=int, default=250_000)
    parser.add_argument("--commit_fragments", type=int, default=10_000)
    parser.add_argument("--commit_dim", type=int, default=8)
    parser.add_argument("--evaluate_rows", type=int, default=200_000)
    parser.add_argument("--evaluate_equal_rows", type=int, default=50_000)
    parser.add_argument("--reference", default="", help="GALLERY:QUERY_COLUMN:GALLERY_COLUMN")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.child:
        name, *given = arguments.child
        if name == "upgrade":
            path, work, column, batch_size, master = given
            print(json.dumps(upgrade_here(path, work, column, int(batch_size), master)))
        else:
            print(json.dumps(evaluate_here(*given)))
        return

    from fct_tf.common import files

    measures: dict[str, Callable[[Path, argparse.Namespace, str], dict]] = {
        "commit": measure_commit,
        "equal": measure_equal,
        "reference": measure_reference,
        "speed": measure_speed,
        "evaluate": measure_evaluate,
    }
    record: dict[str, Any] = {}
    if arguments.output and arguments.sections != SECTIONS and os.path.exists(arguments.output):
        record = files.read_json(arguments.output)
    record |= {
        "benchmark": "spark_upgrade",
        **machine.about(sys.argv),
        "dims": [arguments.dim] * 3,
        "hidden": arguments.hidden,
        "batch_size": arguments.batch_size,
        "rows_per_file": arguments.rows_per_file,
    }
    for name in arguments.sections:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            master = ""
            if name != "commit":
                cluster = Cluster(files.make_dir(Path(folder) / "cluster"))
                stack.callback(cluster.stop)
                master = cluster.master
            found = measures[name](Path(folder), arguments, master)
        print(f"{name}, {time.perf_counter() - start:.0f} s: {json.dumps(found)}", flush=True)
        record |= found
        if arguments.output:
            files.write_records(arguments.output, record)


if __name__ == "__main__":
    main(sys.argv[1:])
