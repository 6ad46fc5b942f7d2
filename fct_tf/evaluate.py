"""Evaluates a query column against a gallery column: CMC, mAP and their 95 % intervals.

Every query searches the whole gallery, its own row (same id) left out. The result is one JSON
file; fractions, not percent.

    python -m fct_tf.evaluate --gallery=test.lance@live --gallery_column=embedding_fct \\
        --query_column=embedding_new --output=results.json
"""

import csv
import io
from pathlib import Path

from absl import flags

from fct_tf import cli, files
from fct_tf.errors import InputError
from fct_tf.gallery.reader import open_gallery
from fct_tf.retrieval import exact, metrics


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
        "distance", "", ["", "l2", "cosine"], "Empty: the gallery column's own.", values
    )
    flags.DEFINE_enum(
        "search", "exact", ["exact", "scann"], "ScaNN gives CMC and its recall.", values
    )
    flags.DEFINE_string(
        "index", "", "For --search=scann: the column's index, as build_index makes it.", values
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
    flags.DEFINE_boolean("allow_space_mismatch", False, "Compare different spaces.", values)
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
    record, found, labels = exact.evaluate_queries(
        query_gallery,
        values.query_column,
        gallery,
        values.gallery_column,
        ks=ks,
        distance=values.distance or None,
        search=values.search,
        index=values.index,
        bootstrap=values.bootstrap,
        seed=values.seed,
        exclude_same=values.exclude_same,
        allow_space_mismatch=values.allow_space_mismatch,
        progress="evaluate",
    )
    if per_class:
        rows = by_class(found, labels, ks)
        if per_class.endswith(".json"):
            files.write_json(per_class, rows)
        else:
            files.atomic_write_text(per_class, _csv(rows))
    files.write_json(values.output, record)
    print(f"{summary(record)} -> {values.output}")


def summary(record: dict) -> str:
    """The metrics of a results.json record in percent, on one line."""
    parts = [f"CMC@{k} {_percent(value)}" for k, value in record["cmc"].items()]
    if record["search"] == "exact":
        parts.append(f"mAP {_percent(record['map'])}")
    else:
        parts.append(f"recall {_percent(record['search']['recall'])}")
    case = f"{record['query']['column']}/{record['gallery']['column']}"
    return f"{case}: {', '.join(parts)} ({record['num_queries']} queries)"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"


def by_class(found: exact.PerQuery, labels, ks) -> list[dict]:
    """CMC and mAP by query label, in label order.

    Args:
      found: what each labelled query achieved.
      labels: object [queries], the labels of all queries.
      ks: ranks of CMC.

    Returns:
      One record per label: `label`, `num_queries`, `num_queries_without_match`, `cmc@k`, `map`;
      the metrics are null where no query of the label has a match.
    """
    members: dict[str, list[int]] = {}
    for number, position in enumerate(found.position):
        members.setdefault(labels[position], []).append(number)
    rows = []
    for label in sorted(members):
        rank = found.rank[members[label]]
        row: dict = {
            "label": label,
            "num_queries": len(rank),
            "num_queries_without_match": int((rank == 0).sum()),
        }
        row |= {f"cmc@{k}": value for k, value in metrics.cmc(rank, ks).items()}
        row["map"] = metrics.mean_average_precision(found.average_precision[members[label]])
        rows.append(row)
    return rows


def _csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
