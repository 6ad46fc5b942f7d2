"""ScaNN beside faiss and hnswlib: queries per second at a wanted recall, on the same rows.

Each library is tuned in the same way. Some indices of it are built; of each, and for each number of
rows that are reordered, the least search effort is found that reaches the recall (see
`fct_tf.ann.tuner`); the fastest of those are measured again, all libraries in turn, in rounds of
which the median counts. One thread and all cores, queries in one call each; `qps_single` is one
query a call. Half of the queries tune, the other half measures.

Building takes hours, searching minutes, and a busy machine spoils what is measured there. So there
are two stages: the first builds and saves what is not yet there, the second loads and measures.
`build_s` is by the clock, with all cores; `build_cpu_s` is what does not depend on what else the
machine did.

  python benchmarks/ann_comparison.py --stage=build --workdir=runs/ann \\
      --gallery=rows128.lance --queries=queries128.lance \\
      --gallery=rows384.lance --queries=queries384.lance
  python benchmarks/ann_comparison.py --stage=search --workdir=runs/ann \\
      --output=results/ann_comparison.json

The galleries are made by ann_rows.py.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from absl import flags

from fct_tf import cli
from fct_tf.ann import build_process
from fct_tf.ann.peers import LIBRARIES, told
from fct_tf.errors import InputError
from fct_tf.files import check_output_file, make_dir, read_json, write_json
from fct_tf.gallery import table
from fct_tf.provenance import library_versions
from fct_tf.retrieval import exact

K = 10
WANTED = (0.9, 0.95, 0.99)
# What the truth is kept for: more than K, so that a recall of more can be asked for later.
NEIGHBOURS = 100


def builds(num_rows: int, dim: int, distance: str) -> Iterator[tuple[str, dict]]:
    """(library, settings) of the indices that are built, those that take long at the end."""
    root = num_rows**0.5
    leaves = [round(times * root) for times in (1, 2, 4)]
    for count in leaves:
        yield "faiss_ivf", {"nlist": count, "m": dim // 2}
    yield "faiss_ivf", {"nlist": leaves[1], "m": dim // 4}
    for m in (16, 32):
        yield "hnswlib", {"M": m}
        yield "faiss_hnsw", {"M": m}


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
        """`rows` float32 [n, d], `queries` float32 [q, d] or `neighbors` int64 [q, NEIGHBOURS]."""
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
    neighbors, _ = exact.search(asked, rows, NEIGHBOURS, columns[0].distance)
    for name, array in (("rows", rows), ("queries", asked), ("neighbors", neighbors)):
        np.save(data.directory / f"{name}.npy", array)
    write_json(done, about)
    return data


def place(data: Data, library: str, settings: dict) -> Path:
    """The directory of an index."""
    return data.directory / f"{library} {told(settings)}".replace(", ", " ")


def build(data: Data) -> None:
    """Builds the indices that are not there, each in a process of its own."""
    shape = np.load(data.directory / "rows.npy", mmap_mode="r").shape
    for library, settings in builds(*shape, data.distance):
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
        command = [sys.executable, "-m", "fct_tf.ann.build_process", str(directory)]
        subprocess.run(command, check=True)
        told_s = time.perf_counter() - started
        print(f"{directory.name}: {told_s:.0f} s, {read_json(built)}", flush=True)


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
    flags.DEFINE_string("output", "", "JSON file of the second stage.", flag_values=values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    workdir = Path(values.workdir)
    if values.stage == "build":
        if len(values.gallery) != len(values.queries) or not values.gallery:
            raise InputError("--gallery and --queries: name both, as often as one another")
        for pair in zip(values.gallery, values.queries, strict=True):
            build(prepare(*pair, values.column, workdir))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
