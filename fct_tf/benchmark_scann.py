"""Measures recall and speed of ScaNN over its settings, beside other libraries where installed.

    python -m fct_tf.benchmark_scann --gallery=photos.lance --column=embedding_new --output=bench
    python -m fct_tf.benchmark_scann --hdf5=glove-100-angular.hdf5 --output=bench

The queries of a gallery are rows of its own that are left out of the index, or --query's. --hdf5
reads the data sets of ann-benchmarks (euclidean and angular). faiss and hnswlib come with
pip install 'fct_tf[ann]'; beside them goes exact search, this project's and faiss' flat index.

Settings that are not given have defaults for the number of rows: a build with the usual ones, and
each of them changed by itself. Given lists are combined. Those of other libraries are given as
--faiss_ivf="nlist=1024,2048;nprobe=1,2,4,8".

Through a change of the model: cases of queries and rows, in its order, each with an index built of
its rows; and where two cases have the same queries, shares of the rows backfilled between them,
with an index built anew and with the first one kept and its rows upserted.

    python -m fct_tf.benchmark_scann --gallery=photos.lance --output=across \\
        --cases=embedding_old:embedding_old,embedding_new:embedding_fct,embedding_new:embedding_new

writes across.json, across.md and across.svg.

A sweep writes benchmark.json (every point), benchmark.md (those that no other point of their
library beats) and recall_qps_*.svg. One that was stopped goes on when started again.
"""

from pathlib import Path

from absl import flags

from fct_tf.ann import benchmark_flags, peers
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.experiments import ann_benchmark


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
    string("hdf5", "Data set of ann-benchmarks, an HDF5 file.")
    number(
        "num_queries", -1, -1, "Number of queries; 0: all; -1: 1,000 of a gallery, all of a file."
    )
    flags.DEFINE_enum(
        "distance", "", ["", "l2", "cosine"], "Of rows; empty: that of the column.", values
    )
    flags.DEFINE_list(
        "libraries", "", f"Which of {', '.join(peers.LIBRARIES)}; all installed if empty.", values
    )
    flags.DEFINE_list(
        "cases",
        "",
        "Cases of a change, in its order, each QUERY_COLUMN:GALLERY_COLUMN.",
        flag_values=values,
    )
    for name, shown, text in (
        ("backfilled", ["0.2", "0.5"], "Shares of the rows between two cases of one query column."),
        ("cmc", ["1", "5"], "With --cases, CMC@k where there are labels."),
    ):
        flags.DEFINE_list(name, shown, text, flag_values=values)
    for name, (_, text) in benchmark_flags.SCANN.items():
        flags.DEFINE_list(name, "", f"ScaNN, a list: {text}", flag_values=values)
    for name in benchmark_flags.PEERS:
        string(name, f"Settings of {name}: name=value,value;name=value.")
    number("k", 10, 1, "Neighbours of the searches that are timed.")
    flags.DEFINE_list("ks", ["1", "10", "100"], "Recall@k of these.", flag_values=values)
    number("threads", 0, 0, "Threads of builds and of the parallel searches; 0: one per core.")
    number("rounds", 3, 1, "Times that every point is measured; the best counts.")
    flags.DEFINE_float("seconds", 0.3, "Seconds of each measurement.", 0, None, values)
    number("seed", 0, 0, "Seed of the choice of queries.")
    string("ann_benchmarks", "Directory for result files that ann-benchmarks can plot.")
    flags.DEFINE_boolean("allow_space_mismatch", False, "Search a space that does not fit.", values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    at = Path(values.output)
    if at.exists() and not at.is_dir():
        raise InputError(f"--output={at}: is a file; name a directory")
    (ann_benchmark.across_change if values.cases else ann_benchmark.sweep_settings)(values, at)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
