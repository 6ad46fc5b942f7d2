"""Says what re-embedding a part of an upgraded gallery brings: backfilling curves and their AUC.

The rows of T(old) are replaced by the new model's own (--target_column), a twenty-first of the
gallery at a time, in the order of each policy, and the new model's queries search each of these
22 galleries. AUC is the plain mean of the 22 values, as in FastFill (arXiv 2303.04766).

    python -m fct_tf.backfilling_curve --gallery=test.lance --column=embedding_fct \\
        --target_column=embedding_new --policies=uncertainty,random,distance --output=curve.json

Of a fused search --target_column, and --query_column where the queries have a gallery of their own,
are made by upgrade_gallery --side=query: a re-embedded row is that of both embeddings.

Policies: `uncertainty` (largest log-variance of the transformation first), `random`, `distance`
(those that moved most first: an oracle that no one has before the rows are re-embedded), `ranks`
(learns from the rows replaced so far which others are missed most), and `file:PATH` (one id a
line). --groups also gives each group of queries its own curve.

--corrected=ranks,random also gives these policies the curve where the rest of the rows is corrected
by those replaced so far, as `train_transformation --base --pairs=GALLERY --backfilled=COLUMN` and
upgrade_gallery do: what retraining after each budget brings. It takes 22 full evaluations.
"""

from absl import flags

from fct_tf.backfill import corrected, curve_order, evaluate
from fct_tf.common import cli, files, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import open_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Gallery with both columns, e.g. photos.lance@7.")
    read.required("column", "Transformed column whose rows are replaced: T(old).")
    read.required("target_column", "Column of the new model's embeddings, which replace them.")
    read.string("query", "Gallery of the queries; --gallery if empty.")
    read.string("query_column", "The new model's column there; --target_column if empty.")
    which = flag_groups.Group(values, "In which order rows are replaced:")
    which.list("policies", "uncertainty, random, distance, ranks, file:PATH.", "random")
    which.integer("random_orders", "Orders of the policy random.", 5, 1)
    which.integer("seed", "Seed of the random orders.", 0, 0)
    which.list("corrected", "Policies to correct the rest by, see above.")
    text = "Of the correction; fewer are faster, and correct less."
    which.integer("max_centres", text, corrected.MAX_CENTRES, 1)
    measured = flag_groups.Group(values, flag_groups.METRICS)
    text = "Groups of queries: column:NAME, or a file of lines label<TAB>group."
    measured.string("groups", text)
    measured.list("ks", "Ranks k of CMC@k.", "1,5")
    flag_groups.define_distance(values, "--column")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "JSON file to write.")
    written.string("plot", "Also draw the curves: .svg, .png or .pdf.")
    flag_groups.define_space_mismatch(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Measures what the flags name."""
    ks = cli.whole_numbers(values, "ks")
    policies = (values.policies, values.random_orders, values.corrected)
    curve_order.check_policies(*policies, "--policies")
    if not values.policies:
        raise InputError("--policies is empty; name at least one")
    cli.check_output_files(values, output=(), plot=(".svg", ".png", ".pdf"))
    gallery = open_gallery(values.gallery)
    queries = open_gallery(values.query) if values.query else gallery
    records = evaluate.evaluate(
        **cli.arguments(
            values,
            evaluate.evaluate,
            gallery=gallery,
            query_gallery=queries,
            query_column=values.query_column or values.target_column,
            ks=ks,
            distance=values.distance or None,
            progress="backfilling curve",
        )
    )
    # Only here: it takes longer to import than a short curve to compute.
    from fct_tf.report import backfilling, backfilling_plots

    if values.plot:
        files.make_parent(values.plot)
        backfilling_plots.curves(backfilling.rows(records), values.plot)
    files.write_json(values.output, records)
    print(f"{backfilling.text(records)}\n-> {values.output}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
