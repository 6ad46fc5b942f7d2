"""Measures recall and speed of ScaNN over its settings, beside other libraries where installed.

    python -m fct_tf.benchmark_scann --gallery=photos.lance --column=embedding_new --output=bench
    python -m fct_tf.benchmark_scann --hdf5=glove-100-angular.hdf5 --output=bench

The queries of a gallery are rows of its own that are left out of the index, or --query's. --hdf5
reads the data sets of ann-benchmarks (euclidean and angular). faiss and hnswlib come with
pip install 'fct_tf[ann]'; beside them goes exact search, this project's and faiss' flat index.

Settings that are not given have defaults for the number of rows: a build with the usual ones, and
each of them changed by itself. Given lists are combined. Those of other libraries are given as
--faiss_ivf="nlist=1024,2048;nprobe=1,2,4,8".

Writes benchmark.json (every point), benchmark.md (those that no other point of their library
beats) and recall_qps_*.svg. A sweep that was stopped goes on when started again.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from fct_tf import cli, files, runs
from fct_tf.ann import benchmark, benchmark_data, benchmark_report, hdf5, peers, sweep
from fct_tf.ann.benchmark_data import Data
from fct_tf.errors import InputError
from fct_tf.gallery.reader import open_gallery

# Lists of ScaNN's settings; text, as they come from the command line, to values.
SCANN = {
    "num_leaves": (int, "Leaves of the partition; 0: none."),
    "num_leaves_to_search": (int, "Leaves searched for a query."),
    "dimensions_per_block": (int, "Dimensions of a code."),
    "anisotropic_quantization_threshold": (float, "Of the codes; none: isotropic ones."),
    "reordering_num_neighbors": (int, "Rows that get their distance from --reordering_data."),
    "reordering_data": (str, "float32, bfloat16, int8."),
}
PEERS = [name for name in peers.LIBRARIES if name not in ("scann", "exact", "faiss_flat")]


def define_flags(values: flags.FlagValues) -> None:
    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, "", text, flag_values=values)

    def number(name: str, default: int, least: int, text: str) -> None:
        flags.DEFINE_integer(name, default, text, least, None, values)

    flags.DEFINE_string("output", None, "Directory to write.", required=True, flag_values=values)
    string("gallery", "Gallery, e.g. photos.lance@live; or --hdf5.")
    string("column", "Column of the gallery that is searched.")
    string("query", "Gallery of the queries; rows of --gallery, left out of the index, if empty.")
    string("query_column", "Column of the queries; --column if empty.")
    string("hdf5", "Data set of ann-benchmarks.")
    number("num_queries", -1, -1, "0: all; -1: 1,000 of a gallery, all of a file.")
    flags.DEFINE_enum("distance", "", ["", "l2", "cosine"], "Empty: the column's own.", values)
    flags.DEFINE_list(
        "libraries", "", f"Of {', '.join(peers.LIBRARIES)}; all installed if empty.", values
    )
    for name, (_, text) in SCANN.items():
        flags.DEFINE_list(name, "", f"ScaNN, a list: {text}", flag_values=values)
    for name in PEERS:
        string(name, f"Settings of {name}: name=value,value;name=value.")
    number("k", 10, 1, "Neighbours of the searches that are timed.")
    flags.DEFINE_list("ks", ["1", "10", "100"], "Recall@k of these.", flag_values=values)
    number("threads", 0, 0, "Of builds and of the parallel searches; 0: one per core.")
    number("rounds", 3, 1, "Times that every point is measured; the best counts.")
    flags.DEFINE_float("seconds", 0.3, "Of each measurement.", 0, None, values)
    number("seed", 0, 0, "Of the choice of queries.")
    string("ann_benchmarks", "Directory for result files that ann-benchmarks can plot.")
    flags.DEFINE_boolean("allow_space_mismatch", False, "Search another space.", values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    libraries, given = _libraries(values.libraries), _settings(values)
    ks = tuple(sorted(set(_values("--ks", values.ks, int))))
    if not ks or ks[0] < 1:
        raise InputError(f"--ks={','.join(values.ks)}: ranks start at 1")
    at = Path(values.output)
    if at.exists() and not at.is_dir():
        raise InputError(f"--output={at}: is a file; name a directory")
    files.refuse_existing(at / benchmark_report.OUTPUT, values.overwrite)
    data, threads = _data(values), values.threads or peers.cores()
    num_rows, dim = data.rows.shape
    builds = sweep.plan(libraries, num_rows, dim, values.k, given)
    about = {
        "data": {
            "name": data.name,
            "num_rows": num_rows,
            "dim": dim,
            "distance": data.distance,
            "num_queries": len(data.queries),
            "sha256": sweep.fingerprint(data),
        },
        "k": values.k,
        "ks": list(ks),
        "threads": threads,
        "rounds": values.rounds,
        "seconds": values.seconds,
    }
    measuring = sweep.Measuring(values.k, ks, threads, values.rounds, values.seconds)
    most = measuring.most(data)
    makes = (sweep.JOURNAL, sweep.WORK, *benchmark_report.MAKES)
    if values.overwrite and (at / runs.SETTINGS).exists():
        for name in makes:
            runs.remove(at / name)
    existing: runs.Existing = "overwrite" if values.overwrite else "refuse"
    runs.begin(at, at / benchmark_report.OUTPUT, about, existing, makes=makes)
    results = values.ann_benchmarks or None
    if results and not values.hdf5:
        data = _publish(data, most, results)
    records, failed = sweep.run(data, builds, at, measuring, results=results, progress="benchmark")
    print(benchmark_report.write(at, about, records, failed))


def _data(values: flags.FlagValues) -> Data:
    if bool(values.hdf5) == bool(values.gallery):
        raise InputError("give --gallery with --column, or --hdf5")
    count = values.num_queries
    if values.hdf5:
        for name in ("column", "query", "query_column", "distance"):
            if values[name].value:
                raise InputError(f"--{name} goes with --gallery; leave it out beside --hdf5")
        return hdf5.read(values.hdf5).first(max(count, 0))
    if not values.column:
        raise InputError("--gallery needs --column, the embedding column that is searched")
    return benchmark_data.of_gallery(
        open_gallery(values.gallery),
        values.column,
        open_gallery(values.query) if values.query else None,
        values.query_column,
        num_queries=1000 if count < 0 else count,
        distance=values.distance,
        seed=values.seed,
        allow_space_mismatch=values.allow_space_mismatch,
    )


def _publish(data: Data, most: int, directory: str) -> Data:
    """Writes the data set of a gallery: ann-benchmarks compares results with its distances."""
    k = min(len(data.rows), max(100, most))
    truth = benchmark.Truth.of(data.rows, data.queries, data.distance, k)
    data = replace(data, neighbors=truth.neighbors, numbers=None)
    hdf5.write(Path(directory) / "data" / f"{data.name}.hdf5", data, truth.distances)
    return data


def _libraries(asked: Sequence[str]) -> list[str]:
    """Those asked for, or all that are installed."""
    for name in asked:
        if name not in peers.LIBRARIES:
            near = cli.nearest(name, list(peers.LIBRARIES))
            raise InputError(f"--libraries: {name!r} is none of {', '.join(peers.LIBRARIES)}{near}")
        if not peers.LIBRARIES[name].installed:
            raise InputError(
                f"--libraries: {name} is not installed: {peers.LIBRARIES[name].install}"
            )
    return list(dict.fromkeys(asked)) or [
        name for name, library in peers.LIBRARIES.items() if library.installed
    ]


def _settings(values: flags.FlagValues) -> dict[str, dict[str, list]]:
    """Lists of settings by library, of those flags that are given."""
    told = {name: getattr(values, name) for name in (*SCANN, *PEERS)}
    given: dict[str, dict[str, list]] = {"scann": {}}
    for name, (kind, _) in SCANN.items():
        if told[name]:
            given["scann"][name] = _values(f"--{name}", told[name], kind)
    for library in PEERS:
        given[library] = {}
        for part in filter(None, told[library].split(";")):
            name, equals, listed = part.partition("=")
            if not equals or not listed:
                raise InputError(f"--{library}={part}: write name=value,value;name=value")
            kind = float if name.strip() == "k_factor" else int
            given[library][name.strip()] = _values(f"--{library}", listed.split(","), kind)
    return given


def _values(flag: str, texts: Sequence[str], kind: type) -> list:
    """The values of a list, each once."""
    try:
        found = [
            None if kind is float and text.strip() == "none" else kind(text.strip())
            for text in texts
        ]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{flag}={','.join(texts)}: must be {wanted}") from None
    if any(isinstance(value, (int, float)) and not 0 <= value < 2**31 for value in found):
        raise InputError(f"{flag}={','.join(texts)}: numbers from 0 on")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
