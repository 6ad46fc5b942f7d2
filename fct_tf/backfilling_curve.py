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

from pathlib import Path

from absl import flags

from fct_tf.backfill import corrected, curve_order, evaluate
from fct_tf.common import cli, files
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import open_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, text, default=None):
        flags.DEFINE_string(name, default, text, required=default is None, flag_values=values)

    string("gallery", "Gallery with both columns, e.g. photos.lance@7.")
    string("column", "Transformed column whose rows are replaced: T(old).")
    string("target_column", "Column of the new model's embeddings, which replace them.")
    string("query", "Gallery of the queries; --gallery if empty.", "")
    string("query_column", "The new model's column there; --target_column if empty.", "")
    flags.DEFINE_list(
        "policies",
        "random",
        "uncertainty, random, distance, ranks, file:PATH.",
        flag_values=values,
    )
    flags.DEFINE_integer("random_orders", 5, "Orders of the policy random.", 1, None, values)
    flags.DEFINE_list("corrected", "", "Policies to correct the rest by, see above.", values)
    flags.DEFINE_integer(
        "max_centres",
        corrected.MAX_CENTRES,
        "Of the correction; fewer are faster, and correct less.",
        1,
        None,
        values,
    )
    string("groups", "Groups of queries: column:NAME, or a file of lines label<TAB>group.", "")
    string("output", "JSON file to write.")
    string("plot", "Also draw the curves: .svg, .png or .pdf.", "")
    flags.DEFINE_list("ks", ["1", "5"], "Ranks k of CMC@k.", flag_values=values)
    flags.DEFINE_enum(
        "distance", "", ["", "l2", "cosine"], "Of rows; empty: that of --column.", values
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random orders.", 0, None, values)
    flags.DEFINE_boolean("allow_space_mismatch", False, "Compare spaces that do not fit.", values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    try:
        ks = sorted({int(k) for k in values.ks})
    except ValueError:
        raise InputError(f"--ks={','.join(values.ks)}: whole numbers, e.g. --ks=1,5") from None
    curve_order.check_policies(
        values.policies, values.random_orders, values.corrected, "--policies"
    )
    if not values.policies:
        raise InputError("--policies is empty; name at least one")
    plot = values.plot
    if plot and not plot.endswith((".svg", ".png", ".pdf")):
        raise InputError(f"--plot={plot}: the name must end with .svg, .png or .pdf")
    files.check_output_file(values.output, values.overwrite, "--output")
    if plot:
        files.check_output_file(plot, values.overwrite, "--plot")
        if Path(plot).absolute() == Path(values.output).absolute():
            raise InputError(f"--plot={plot}: is --output; name another file")
    gallery = open_gallery(values.gallery)
    records = evaluate.evaluate(
        open_gallery(values.query) if values.query else gallery,
        values.query_column or values.target_column,
        gallery,
        values.column,
        values.target_column,
        values.policies,
        random_orders=values.random_orders,
        groups=values.groups,
        ks=ks,
        distance=values.distance or None,
        seed=values.seed,
        allow_space_mismatch=values.allow_space_mismatch,
        corrected=values.corrected,
        max_centres=values.max_centres,
        progress="backfilling curve",
    )
    # Only here: it takes longer to import than a short curve to compute.
    from fct_tf.report import backfilling, backfilling_plots

    made = backfilling.rows(records)
    if plot:
        files.make_parent(plot)
        backfilling_plots.curves(made, plot)
    files.write_json(values.output, records)
    print(f"{backfilling.text(records)}\n-> {values.output}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
