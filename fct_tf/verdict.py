"""Says before the switch whether an upgraded gallery is compatible, in one line.

Needs rows of the gallery that the new model has embedded too: a table with --new, matched by id
with the gallery's --old and --upgraded (T(old)). Every row searches the others, three times:
old/old as today, new/T(old) as after the switch, new/new as if all had been embedded anew.

    python -m fct_tf.verdict --gallery=photos.lance --old=embedding_old \\
        --upgraded=embedding_fct --new=embedding_new --sample=sample.lance --exclude=pairs.lance

Where --upgraded lies in a gallery of its own, --sources names the one that has --old.

With labels, the criterion is BCT's (arXiv 2003.11942): compatible if M(new, T(old)) > M(old, old),
for CMC (top-k) and mAP, judged by the 95 % bootstrap intervals of the paired differences:

  compatible      better by at least one metric, worse by none
  not compatible  worse by at least one, better by none
  undecided       all intervals include 0, or one metric says better and another worse

Without labels there is no verdict, only how much of the new model's own ranking the upgrade has
and how much leaving the gallery alone has. More of it may still mean worse retrieval.

Exit status: 0 whatever the verdict is, 2 bad input. With --require_compatible, for a pipeline
that must not switch by mistake, 3 unless the verdict is `compatible`.

Two things the numbers cannot know. Among the few rows of a sample a match is easier to find than
in the whole gallery: levels are too high and differences not those of the gallery, so take as
many rows as you can. And rows that the transformation was trained on flatter it: leave them out
with --exclude.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from absl import flags, logging

from fct_tf import cli, files
from fct_tf.errors import InputError
from fct_tf.gallery.columns import Column, Rows, check_spaces
from fct_tf.gallery.derived import open_sources
from fct_tf.gallery.reader import Gallery, open_gallery
from fct_tf.report import sentence
from fct_tf.report.sentence import NEW, OLD, UPGRADED
from fct_tf.retrieval import agreement, exact, identity

NOT_COMPATIBLE_STATUS = 3
# With fewer rows hardly any difference is clear.
FEW_ROWS = 100


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""

    def string(name, text, default=None):
        flags.DEFINE_string(name, default, text, required=default is None, flag_values=values)

    def ranks(name, text, default):
        flags.DEFINE_list(name, default, text, flag_values=values)

    def integer(name, text, default, lowest):
        flags.DEFINE_integer(name, default, text, lowest, flag_values=values)

    def boolean(name, text):
        flags.DEFINE_boolean(name, False, text, flag_values=values)

    string("gallery", "Gallery with --old and --upgraded, e.g. photos.lance@7.")
    string("old", "Column of the old model.")
    string("upgraded", "Column that was made from it for the new model's queries: T(old).")
    string("new", "Column of the new model.")
    string("sample", "Table with --new, matched by id; empty: --gallery has it in every row.", "")
    string("sources", "Gallery with --old, if --upgraded lies in one of its own.", "")
    string("exclude", "Table whose ids are left out: the rows that T was trained on.", "")
    string("output", "JSON file to write; none if empty.", "")
    ranks("ks", "Ranks k of CMC@k.", "1,5")
    ranks("overlap_ks", "k of the top-k overlap; those above rows - 1 are left out.", "1,10,100")
    integer("bootstrap", "Resamples of the intervals.", 1000, 100)
    integer("seed", "Seed of the resamples and of --max_queries.", 0, 0)
    integer("max_queries", "Queries drawn to compare rankings, not for CMC; 0: all.", 2000, 0)
    boolean("table", "Print all numbers below the line.")
    boolean("require_compatible", "Exit with 3 unless the verdict is compatible.")
    boolean("allow_space_mismatch", "Compare different spaces.")
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    ks, overlap_ks = _ranks("ks", values.ks), _ranks("overlap_ks", values.overlap_ks)
    if values.output:
        files.check_output_file(values.output, values.overwrite, "--output")
    gallery = open_gallery(values.gallery)
    sources = None
    if values.sources or values.old not in gallery.columns:
        sources = open_sources(gallery, gallery.column(values.upgraded), values.sources)
    record = judge(
        gallery,
        values.old,
        values.upgraded,
        values.new,
        sample=open_gallery(values.sample) if values.sample else None,
        sources=sources,
        exclude=open_gallery(values.exclude) if values.exclude else None,
        ks=ks,
        overlap_ks=overlap_ks,
        bootstrap=values.bootstrap,
        seed=values.seed,
        max_queries=values.max_queries,
        allow_space_mismatch=values.allow_space_mismatch,
        progress="verdict",
    )
    if values.output:
        files.write_json(values.output, record)
    print(record["sentence"] + (f" -> {values.output}" if values.output else ""))
    if values.table:
        print(sentence.details(record))
    if values.require_compatible and record["verdict"] != "compatible":
        raise SystemExit(NOT_COMPATIBLE_STATUS)


def _ranks(flag: str, texts: list[str]) -> list[int]:
    try:
        ks = sorted({int(text) for text in texts})
    except ValueError:
        ks = []
    if not ks or ks[0] < 1:
        raise InputError(f"--{flag}={','.join(texts)}: whole numbers from 1, e.g. --{flag}=1,5")
    return ks


def judge(
    gallery: Gallery,
    old: str,
    upgraded: str,
    new: str,
    *,
    sample: Gallery | None = None,
    sources: Gallery | None = None,
    exclude: Gallery | None = None,
    ks: Sequence[int] = (1, 5),
    overlap_ks: Sequence[int] = (1, 10, 100),
    bootstrap: int = 1000,
    seed: int = 0,
    max_queries: int = 2000,
    allow_space_mismatch: bool = False,
    progress: str = "",
) -> dict:
    """The verdict on an upgraded column, as the record that --output gets.

    Args:
      gallery: has the columns `old` and `upgraded`; `old` not if there are `sources`.
      old, upgraded, new: embedding columns; the spaces of the latter two must fit.
      sample: has the column `new`, by default what has `old`. Rows are matched by id.
      sources: has the column `old`, by default `gallery`. Rows are matched by id.
      exclude: rows of its ids are neither queries nor searched.
      ks: ranks of CMC.
      overlap_ks: k of overlap@k; those above rows - 1 are left out.
      bootstrap: resamples of the intervals.
      seed: of the resamples and of the queries drawn.
      max_queries: at most so many queries for the agreement of rankings; 0 for all.
      allow_space_mismatch: compare `new` with `upgraded` whatever their spaces are.
      progress: label of the progress bars; none when empty.

    Returns:
      `verdict` (`compatible`, `not compatible`, `undecided` or `without labels`) and `sentence`;
      `columns` (of which table), counts `num_*`, `level`, `resamples`, `seed`. `labels` is None
      without labelled rows that have a match, else it has per case, for `difference` (new/T(old)
      - old/old) and for `gap_share` the estimates of `cmc@k` and `map`; a share is None where
      new/new is not clearly above old/old. `agreement` has `overlap@k` and `spearman` with
      new/new, of both cases and their `difference`, and the `chance` of overlap@k. `closeness`
      of T(old) to new has `cosine` and `explained_variance`. An estimate is
      `{"mean", "low", "high"}`, in fractions.

    Raises:
      InputError: missing column, spaces or dimensions that do not fit, bad rows, fewer than
        three rows left.
    """
    before = sources or gallery
    source = sample or before
    columns = [before.column(old), gallery.column(upgraded), source.column(new)]
    check_spaces(columns[2], columns[1], allow_mismatch=allow_space_mismatch)
    if columns[0].space == columns[2].space:
        raise InputError(
            f"columns {old!r} and {new!r} lie in one space (model {columns[0].model}): there is no "
            "upgrade to judge"
        )
    rows, vectors, counts = _read(gallery, before, columns, source, exclude)
    count = len(rows.ids)
    left_out = f"{counts['num_excluded']} excluded, {counts['num_not_in_gallery']} not in gallery"
    few = f"{source.path}: {count} rows to judge by ({left_out})"
    if count < 3:
        raise InputError(f"{few}; embed more rows of the gallery with the new model")
    if count < FEW_ROWS:
        logging.warning("%s: the intervals are wide", few)
    if counts["num_backfilled"]:
        logging.warning(
            "%s: the new model itself made %d of these %d rows of %r; the verdict is on a gallery "
            "with as large a share of them",
            *(gallery.path, counts["num_backfilled"], count, upgraded),
        )
    overlap_ks = [k for k in overlap_ks if k < count]
    if not overlap_ks:
        raise InputError(f"--overlap_ks: a row has only {count - 1} others; name a smaller k")
    cases = {
        OLD: agreement.Case(vectors["old"], vectors["old"], columns[0].distance),
        UPGRADED: agreement.Case(vectors["new"], vectors["upgraded"], columns[1].distance),
        NEW: agreement.Case(vectors["new"], vectors["new"], columns[2].distance),
    }
    near = agreement.closeness(vectors["upgraded"], vectors["new"], columns[1].distance)
    draws = (bootstrap, seed)
    record = {
        "columns": {
            "old": exact.describe(before, columns[0]),
            "upgraded": exact.describe(gallery, columns[1]),
            "new": exact.describe(source, columns[2]),
        },
        "num_rows": count,
        "num_gallery": gallery.num_rows,
        **counts,
        "level": 0.95,
        "resamples": bootstrap,
        "seed": seed,
        "labels": _labelled(cases, rows, ks, draws, progress),
        "agreement": _agreement(cases, overlap_ks, max_queries, draws, progress),
        "closeness": _plain(agreement.intervals(near, *draws)),
    }
    verdict, told = sentence.conclude(record)
    return {"verdict": verdict, "sentence": told, **record}


def _read(
    gallery: Gallery,
    before: Gallery,
    columns: list[Column],
    source: Gallery,
    exclude: Gallery | None,
) -> tuple[Rows, dict[str, np.ndarray], dict[str, int]]:
    """Rows (ids and labels), their vectors `old`, `upgraded` and `new`, and counts."""
    old, upgraded, new = columns
    for gallery_read in (gallery, before, source):
        gallery_read.check_rows()
    excluded = {i for rows in exclude.batches([], 65536) for i in rows.ids} if exclude else set()
    # Where the sample has the old embeddings too, they tell whether equal ids are equal rows.
    probe = source.columns.get(old.name, new)
    probe = probe if (probe.space, probe.dim) == (old.space, old.dim) else new
    made = source.read([new.name, probe.name], with_labels=True)
    wanted = set(made.ids) - excluded
    found = {i for rows in gallery.batches([], 65536) for i in rows.ids if i in wanted}
    kept = np.array([i in found for i in made.ids], bool)
    counts = {
        "num_excluded": len(made) - len(wanted),
        "num_not_in_gallery": len(wanted) - len(found),
    }
    vectors = {name: values[kept] for name, values in made.vectors.items()}
    made = Rows(made.ids[kept], np.asarray(made.labels)[kept], vectors)
    origin = f"{upgraded.name}_origin"
    fields = [origin] if origin in gallery.dataset.schema.names else []
    beside = [old.name] if before is gallery else []
    stored = gallery.take(list(made.ids), [upgraded.name, *beside], fields=fields)
    replaced = stored if beside else before.take(list(made.ids), [old.name])
    assert made.labels is not None and stored.labels is not None
    warning = identity.doubt(made, probe, replaced, old, np.arange(len(made)))
    if warning:
        logging.warning("%s and %s: %s", source.path, before.path, warning)
    counts["num_backfilled"] = sum(int(np.sum(stored.fields[f] == "backfilled")) for f in fields)
    # A gallery that was imported without labels is judged by those of its sample.
    pairs = zip(stored.labels, made.labels, strict=True)
    labels = np.array([b if a is None else a for a, b in pairs], object)
    roles = {"old": (replaced, old), "upgraded": (stored, upgraded), "new": (made, new)}
    vectors = {role: rows.vectors[column.name] for role, (rows, column) in roles.items()}
    return Rows(made.ids, labels), vectors, counts


def _labelled(cases, rows: Rows, ks, draws: tuple[int, int], progress: str) -> dict | None:
    assert rows.labels is not None
    sides = (rows.ids, rows.labels)
    if all(label is None for label in rows.labels):
        return None
    found = {
        name: exact.per_query(
            case.query, *sides, case.gallery, *sides, case.distance, progress=progress and name
        )
        for name, case in cases.items()
    }
    ranks = found[OLD].rank
    if not ranks.any():
        logging.warning("no row has the label of another: CMC and mAP have nothing to find")
        return None
    values = {name: agreement.per_query_metrics(case, ks) for name, case in found.items()}
    made = {name: _plain(agreement.intervals(case, *draws)) for name, case in values.items()}
    difference = agreement.paired_difference(values[UPGRADED], values[OLD], *draws)
    shares = agreement.gap_shares(values[UPGRADED], values[OLD], values[NEW], *draws)
    return {
        "num_queries": len(ranks),
        "num_queries_without_label": len(rows.ids) - len(ranks),
        "num_queries_without_match": int(np.sum(ranks == 0)),
        **made,
        "difference": _plain(difference),
        "gap_share": _plain(shares),
    }


def _agreement(cases, ks: list[int], max_queries: int, draws, progress: str) -> dict:
    count = len(cases[NEW].query)
    queries = np.random.default_rng(draws[1]).permutation(count)[: max_queries or None]
    judged = {name: cases[name] for name in (OLD, UPGRADED)}
    found = agreement.rankings(judged, cases[NEW], np.sort(queries), ks, progress)
    difference = agreement.paired_difference(found[UPGRADED], found[OLD], *draws)
    return {
        "num_queries": len(queries),
        **{name: _plain(agreement.intervals(case, *draws)) for name, case in found.items()},
        "difference": _plain(difference),
        "chance": {f"overlap@{k}": k / (count - 1) for k in ks},
    }


def _plain(estimates) -> dict[str, dict | None]:
    return {name: asdict(value) if value else None for name, value in estimates.items()}


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
