"""Evaluates a query column against a gallery column: CMC, mAP and their 95 % intervals.

Every query searches the whole gallery, its own row (same id) left out. The result is one JSON
file; fractions, not percent.

    python -m fct_tf.evaluate --gallery=test.lance@live --gallery_column=embedding_fct \\
        --query_column=embedding_new --output=results.json

With --rerank the old model's first rows are ordered by a fused search, of the old and the new
model's embeddings of the query: what a search does that stores nothing and upgrades nothing.

    python -m fct_tf.evaluate --gallery=test.lance --gallery_column=embedding_old \\
        --query_column=embedding_old --rerank=100 --transformation=runs/fused/saved_model \\
        --output=reranked.json

With --engine=spark a cluster searches, and no process holds the whole gallery; the results are the
same to the last digit.
"""

from absl import flags

from fct_tf.common import cli, files, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import open_engine
from fct_tf.gallery.reader import open_gallery
from fct_tf.retrieval import in_parts, records, two_columns
from fct_tf.upgrade import rerank


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Gallery, e.g. photos.lance@live.")
    read.required("gallery_column", "Column that is searched.")
    read.string("query", "Gallery of the queries; --gallery if empty.")
    read.required("query_column", "Column of the queries.")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "JSON file to write.")
    written.string("per_class_output", "Also write results by label: .csv or .json.")
    measured = flag_groups.Group(values, flag_groups.METRICS)
    measured.list("ks", "Ranks k of CMC@k.", "1,5")
    flag_groups.define_distance(values)
    measured.integer("bootstrap", "Resamples of the intervals; 0: none.", 1000, 0)
    measured.integer("seed", "Seed of the resamples.", 0, 0)
    measured.string(
        "exclude_same",
        "Column such as camera: rows of a query's own label and the same value there do not count "
        "for it, as in re-identification. Rows without a value stay.",
    )
    search = flag_groups.Group(values, "How it is searched:")
    search.choice("search", "ScaNN gives CMC and its recall.", "exact", ["exact", "scann"])
    text = (
        "For --search=scann: the column's index, as build_index makes it. With --rerank it finds "
        "the rows to order."
    )
    search.string("index", text)
    search.integer("rerank", "Order so many first rows by --transformation; 0: none.", 0, 0)
    search.string("transformation", "For --rerank: SavedModel of a fused search.")
    text = "For --rerank: the new model's column of the queries; otherwise found by its space."
    search.string("target", text)
    search.string("side_info", "For --rerank: column of the gallery; otherwise found by its space.")
    flag_groups.define_engine(values)
    flag_groups.define_space_mismatch(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Evaluates what the flags name."""
    ks = cli.whole_numbers(values, "ks")
    cli.check_output_files(values, output=(), per_class_output=(".csv", ".json"))
    if values.rerank and not values.transformation:
        raise InputError("--rerank: name the fused search with --transformation")
    if values.transformation and not values.rerank:
        raise InputError("--transformation: goes with --rerank; leave it out")
    gallery = open_gallery(values.gallery)
    queries = open_gallery(values.query) if values.query else gallery
    sides = (queries, values.query_column, gallery, values.gallery_column)
    given = cli.arguments(values, rerank.searching, sides=sides, first=values.rerank)
    approximate = rerank.searching(**given)
    more = {"gallery": gallery, "query_gallery": queries, "ks": ks, "approximate": approximate}
    more |= {"distance": values.distance or None, "progress": "evaluate"}
    with open_engine(values.engine, values.spark_master) as engine:
        more["searching"] = None if values.engine == "local" else in_parts.searching(engine)
        given = cli.arguments(values, two_columns.evaluate_queries, **more)
        evaluation_fields = two_columns.evaluate_queries(**given)
    evaluation = records.Evaluation(*evaluation_fields)
    if values.per_class_output:
        records.write_by_class(evaluation, values.per_class_output)
    files.write_json(values.output, evaluation.record)
    print(f"{evaluation} -> {values.output}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
