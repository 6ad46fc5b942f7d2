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

Negative flips, queries right before (the nearest row has their label) and wrong after, are what
users notice. --groups=camera judges the queries of each camera as well: a slice that loses can be
left on the old model. Slices of fewer than 20 queries are too small for an interval, and where
nothing changes one slice of 40 seems to lose by each metric, by chance.

--threshold=0.62 tells what a cut by distance is now: the distance that as many pairs of different
labels pass as passed the old one (without labels: of all pairs), and what becomes of pairs of one
label. Distances are squared L2 or 1 - cosine; who cuts by plain L2 gives its square and takes the
root of the answer. An old threshold that no pair passes is refused: these rows cannot tell.

Of a fused column the queries are a column too, in the same space (--query_column).

Exit status: 0 whatever the verdict is, 2 bad input. With --require_compatible, for a pipeline
that must not switch by mistake, 3 unless the verdict is `compatible`; with
--require_compatible_slices, 3 also if a slice is clearly worse by a metric.

Two things the numbers cannot know. Among the few rows of a sample a match is easier to find than
in the whole gallery: levels are too high and differences not those of the gallery, so take as
many rows as you can. And rows that the transformation was trained on flatter it: leave them out
with --exclude.
"""

from absl import flags

from fct_tf.common import cli, files, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import open_gallery
from fct_tf.upgrade.judge import NOT_COMPATIBLE_STATUS, Verdict, judge, open_old


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Gallery with --old and --upgraded, e.g. photos.lance@7.")
    read.required("old", "Column of the old model.")
    text = "Column that was made from it for the new model's queries: T(old)."
    read.required("upgraded", text)
    read.required("new", "Column of the new model.")
    text = "Table with --new, matched by id; empty: --gallery has it in every row."
    read.string("sample", text)
    read.string("sources", "Gallery with --old, if --upgraded lies in one of its own.")
    read.string(
        "query_column",
        "Column of --sample whose rows search --upgraded; empty: --new, and for a fused column the "
        "one column in its space.",
    )
    text = (
        "Column of --gallery to compare --upgraded with too, searched by --new; a fused one by the "
        "queries in its space."
    )
    read.string("against", text)
    text = "Table whose ids are left out: the rows that T was trained on."
    read.string("exclude", text)
    measured = flag_groups.Group(values, flag_groups.METRICS)
    measured.string(
        "groups",
        "Column such as camera, of texts or whole numbers, or label: each value's queries are also "
        "judged by themselves.",
    )
    measured.repeated(
        flags.DEFINE_multi_float,
        "threshold",
        "Distance in the space of --old (squared L2, or 1 - cosine, as search_index and "
        "verify_identities print them) to be translated; may be repeated.",
    )
    measured.list("ks", "Ranks k of CMC@k.", "1,5")
    text = "k of the top-k overlap; those above rows - 1 are left out."
    measured.list("overlap_ks", text, "1,10,100")
    measured.integer("bootstrap", "Resamples of the intervals.", 1000, 100)
    measured.integer("seed", "Seed of the resamples and of --max_queries.", 0, 0)
    text = "Queries drawn to compare rankings, not for CMC; 0: all."
    measured.integer("max_queries", text, 2000, 0)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.string("output", "JSON file to write; none if empty.")
    written.boolean("table", "Print all numbers below the line.")
    written.boolean("require_compatible", "Exit with 3 unless the verdict is compatible.")
    text = "With --groups: as --require_compatible, and 3 too if a slice is clearly worse."
    written.boolean("require_compatible_slices", text)
    flag_groups.define_space_mismatch(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Judges what the flags name."""
    if values.require_compatible_slices and not values.groups:
        raise InputError("--require_compatible_slices: needs --groups=COLUMN to know the slices")
    if values.output:
        cli.check_output_files(values, output=())
    gallery = open_gallery(values.gallery)
    given = {
        "gallery": gallery,
        "sample": open_gallery(values.sample) if values.sample else None,
        "sources": open_old(gallery, values.old, values.upgraded, values.sources),
        "exclude": open_gallery(values.exclude) if values.exclude else None,
        "thresholds": values.threshold,
        **{name: cli.whole_numbers(values, name) for name in ("ks", "overlap_ks")},
    }
    verdict = Verdict(judge(**cli.arguments(values, judge, **given, progress="verdict")))
    if values.output:
        files.write_json(values.output, verdict.record)
    print(verdict.sentence + (f" -> {values.output}" if values.output else ""))
    if values.table:
        print(verdict.details())
    required = values.require_compatible or values.require_compatible_slices
    harmed = values.require_compatible_slices and verdict.losing_slices
    if required and (harmed or not verdict.compatible):
        raise SystemExit(NOT_COMPATIBLE_STATUS)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
