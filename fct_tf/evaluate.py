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
"""

from pathlib import Path

from absl import flags

from fct_tf.common import cli, files
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import Gallery, open_gallery
from fct_tf.retrieval import exact, records


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "gallery", None, "Gallery, e.g. photos.lance@live.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "gallery_column", None, "Column that is searched.", required=True, flag_values=values
    )
    flags.DEFINE_string("query", "", "Gallery of the queries; --gallery if empty.", values)
    flags.DEFINE_string(
        "query_column", None, "Column of the queries.", required=True, flag_values=values
    )
    flags.DEFINE_string("output", None, "JSON file to write.", required=True, flag_values=values)
    flags.DEFINE_string(
        "per_class_output", "", "Also write results by label: .csv or .json.", values
    )
    flags.DEFINE_list("ks", ["1", "5"], "Ranks k of CMC@k.", flag_values=values)
    flags.DEFINE_enum(
        "distance", "", ["", "l2", "cosine"], "Of rows; empty: that of the gallery column.", values
    )
    flags.DEFINE_enum(
        "search", "exact", ["exact", "scann"], "ScaNN gives CMC and its recall.", values
    )
    flags.DEFINE_string(
        "index", "", "For --search=scann: the column's index, as build_index makes it.", values
    )
    flags.DEFINE_integer(
        "rerank", 0, "Order so many first rows by --transformation; 0: none.", 0, None, values
    )
    flags.DEFINE_string("transformation", "", "For --rerank: SavedModel of a fused search.", values)
    flags.DEFINE_string(
        "target", "", "For --rerank: the new model's column of the queries; else by space.", values
    )
    flags.DEFINE_string(
        "side_info", "", "For --rerank: column of the gallery; else by space.", values
    )
    flags.DEFINE_string(
        "exclude_same",
        "",
        "Column such as camera: rows of a query's own label and the same value there do not count "
        "for it, as in re-identification. Rows without a value stay.",
        values,
    )
    flags.DEFINE_integer("bootstrap", 1000, "Resamples of the intervals; 0: none.", 0, None, values)
    flags.DEFINE_integer("seed", 0, "Seed of the resamples.", 0, None, values)
    flags.DEFINE_boolean("allow_space_mismatch", False, "Compare spaces that do not fit.", values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    try:
        ks = sorted({int(k) for k in values.ks})
    except ValueError:
        raise InputError(f"--ks={','.join(values.ks)}: whole numbers, e.g. --ks=1,5") from None
    per_class = values.per_class_output
    if per_class and not per_class.endswith((".csv", ".json")):
        raise InputError(f"--per_class_output={per_class}: the name must end with .csv or .json")
    files.check_output_file(values.output, values.overwrite, "--output")
    if per_class:
        files.check_output_file(per_class, values.overwrite, "--per_class_output")
        if Path(per_class).absolute() == Path(values.output).absolute():
            raise InputError(f"--per_class_output={per_class}: is --output; name another file")
    gallery = open_gallery(values.gallery)
    query_gallery = open_gallery(values.query) if values.query else gallery
    made = exact.evaluate_queries(
        query_gallery,
        values.query_column,
        gallery,
        values.gallery_column,
        ks=ks,
        distance=values.distance or None,
        approximate=_approximate(values, query_gallery, gallery),
        bootstrap=values.bootstrap,
        seed=values.seed,
        exclude_same=values.exclude_same,
        allow_space_mismatch=values.allow_space_mismatch,
        progress="evaluate",
    )
    evaluation = records.Evaluation(*made)
    if per_class:
        rows = evaluation.by_class()
        if per_class.endswith(".json"):
            files.write_json(per_class, rows)
        else:
            files.atomic_write_text(per_class, records.to_csv(rows))
    files.write_json(values.output, evaluation.record)
    print(f"{evaluation} -> {values.output}")


def _approximate(values: flags.FlagValues, query_gallery: Gallery, gallery: Gallery):
    if values.rerank:
        if values.search != "exact" or values.index:
            raise InputError("--rerank: of the exact first rows; leave --search and --index out")
        if not values.transformation:
            raise InputError("--rerank: name the fused search with --transformation")
        from fct_tf.upgrade import rerank

        return rerank.reranking(
            values.transformation,
            values.rerank,
            query_gallery,
            values.query_column,
            gallery,
            values.gallery_column,
            target=values.target,
            side_info=values.side_info,
        )
    for name in ("transformation", "target", "side_info"):
        if values[name].value:
            raise InputError(f"--{name}: goes with --rerank; leave it out")
    if values.search == "exact":
        if values.index:
            raise InputError("--index: goes with --search=scann; leave one out")
        return None
    from fct_tf.ann import evaluation

    return evaluation.searching(values.index)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
