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

writes across.json, across.md and across.svg. With --rerank a fused search is measured by the old
model's index as well, which is left as it is: what it finds is ordered by the fused distance.

    python -m fct_tf.benchmark_scann --gallery=photos.lance --output=across --rerank=100 \\
        --transformation=runs/fused \\
        --cases=embedding_old:embedding_old,embedding_fused_query:embedding_fused

A sweep writes benchmark.json (every point), benchmark.md (those that no other point of their
library beats) and recall_qps_*.svg. One that was stopped goes on when started again.
"""

from pathlib import Path

from absl import flags

from fct_tf.ann import benchmark_flags, peers
from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.experiments import ann_benchmark


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.string("gallery", "Gallery, e.g. photos.lance@live; or --hdf5.")
    read.string("column", "Column of the gallery that is searched.")
    text = "Gallery of the queries; rows of --gallery, left out of the index, if empty."
    read.string("query", text)
    read.string("query_column", "Column of the queries; --column if empty.")
    read.string("hdf5", "Data set of ann-benchmarks, an HDF5 file.")
    text = "Number of queries; 0: all; -1: 1,000 of a gallery, all of a file."
    read.integer("num_queries", text, -1, -1)
    read.integer("seed", "Seed of the choice of queries.", 0, 0)
    change = flag_groups.Group(values, "Through a change of the model:")
    text = "Cases of a change, in its order, each QUERY_COLUMN:GALLERY_COLUMN."
    change.list("cases", text)
    text = "Shares of the rows between two cases of one query column."
    change.list("backfilled", text, "0.2,0.5")
    text = "Of --transformation's rows: order so many that the old model's index finds; 0: none."
    change.integer("rerank", text, 0, 0)
    change.string("transformation", "For --rerank: SavedModel of a fused search.")
    text = "For --rerank: the new model's column of the queries; otherwise found by its space."
    change.string("target", text)
    text = "For --rerank: column of the gallery; otherwise found by its space."
    change.string("side_info", text)
    change.list("cmc", "With --cases, CMC@k where there are labels.", "1,5")
    measured = flag_groups.Group(values, flag_groups.METRICS)
    text = f"Which of {', '.join(peers.LIBRARIES)}; all installed if empty."
    measured.list("libraries", text)
    measured.integer("k", "Neighbours of the searches that are timed.", 10, 1)
    measured.list("ks", "Recall@k of these.", "1,10,100")
    flag_groups.define_distance(values, "the column")
    settings = flag_groups.Group(values, "Settings of the libraries:")
    for name, (_, text) in benchmark_flags.SCANN.items():
        settings.list(name, f"ScaNN, a list: {text}")
    for name in benchmark_flags.PEERS:
        settings.string(name, f"Settings of {name}: name=value,value;name=value.")
    run = flag_groups.Group(values, flag_groups.RUN)
    text = "Threads of builds and of the parallel searches; 0: one per core."
    run.integer("threads", text, 0, 0)
    run.integer("rounds", "Times that every point is measured; the best counts.", 3, 1)
    run.number("seconds", "Seconds of each measurement.", 0.3, 0)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "Directory to write.")
    text = "Directory for result files that ann-benchmarks can plot."
    written.string("ann_benchmarks", text)
    flag_groups.define_space_mismatch(values, "Search a space that does not fit.")
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Measures what the flags name."""
    at = Path(values.output)
    if at.exists() and not at.is_dir():
        raise InputError(f"--output={at}: is a file; name a directory")
    for name in () if values.cases else ("rerank", "transformation", "target", "side_info"):
        if values[name].value:
            raise InputError(f"--{name}: goes with --cases; leave it out")
    (ann_benchmark.across_change if values.cases else ann_benchmark.sweep_settings)(values, at)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
