"""Trains a transformation from the old to the new space on columns of a table; no image is read.

h(old embedding, side-information) approximates the new embedding (arXiv 2112.02805, section 3).
Writes WORKDIR/artifact and WORKDIR/saved_model, which upgrade_gallery and TF Serving load.

  python -m fct_tf.train_transformation --method=fct --gallery=train.lance \\
      --source=embedding_old --target=embedding_new --workdir=runs/fct

--method chooses settings by the number of rows: `fct` trains the paper's network, started from the
ridge-affine map (12 passes over the rows, at least 300 steps), `fastfill` also learns a
log-variance for each row, `affine` and `procrustes` are solved for in seconds. Below about 5,000
rows `affine` is likely to be the best of them. With --config an experiment file says all of it,
and --name which of its transformations is meant:

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=fct \\
      --gallery=train.lance --source=embedding_old --side_info=side_info \\
      --target=embedding_new --workdir=runs/fct

Pairs, a sample of the gallery itself that the new model has re-embedded (sample_gallery makes it),
mend what training rows of other classes cannot teach. On a trained transformation it takes seconds:

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=fct_pairs \\
      --gallery=train.lance --source=embedding_old --side_info=side_info \\
      --target=embedding_new --pairs=pairs.lance --base=runs/fct --workdir=runs/fct_pairs

Rows that backfill_gallery has embedded are such pairs: --pairs=photos.lance
--backfilled=embedding_fct takes them from the gallery itself and keeps them in
WORKDIR/pairs.lance, for `upgrade_gallery --pairs`.

The same with the columns the other way round makes a query-side map, T(new)/old: it runs over the
new model's queries, and the gallery stays as it is.

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=affine_query \\
      --gallery=train.lance --source=embedding_new --target=embedding_old \\
      --workdir=runs/affine_query

Fused search keeps the old model on the queries and compares with both models at once. On classes
that neither model has seen it retrieves better than the old model alone, with no image read:

  python -m fct_tf.train_transformation --method=affine --fused --gallery=train.lance \\
      --source=embedding_old --target=embedding_new --workdir=runs/fused

FastFill (arXiv 2303.04766) also asks that the new model's classifier, which stays as it is, gets
the transformed embeddings right, and learns how far each of them may be off: with
discriminative_weight above 0 name the new model's artifact, --classifier=runs/new/artifact.
"""

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.config.methods import METHODS

FUSED = "Fused search:"


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    what = flag_groups.Group(values, "What is trained:")
    cli.define_config(values, required=False, heading=what.heading)
    text = "Without --config: what to train, with settings for the number of rows."
    what.choice("method", text, None, METHODS)
    text = "Which of the experiment's transformations; with --method, what to call it."
    what.string("name", text)
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Table of training rows, e.g. train.lance@3.")
    read.required("source", "Embedding column to map from.")
    read.required("target", "Embedding column to map to.")
    read.string("side_info", "Column of the side-information.")
    text = "Artifact of the new model, or its classifier as .npz or .npy file."
    read.string("classifier", text)
    text = "Label names, one a line, of a --classifier in a .npy file."
    read.string("classifier_labels", text)
    pairs = flag_groups.Group(values, "Pairs of the gallery itself:")
    pairs.string("pairs", "Table of gallery rows re-embedded by the new model (sample_gallery).")
    text = "Column of --pairs, a gallery: the rows backfilled in it are pairs."
    pairs.string("backfilled", text)
    text = "For --backfilled: gallery it was made from, if it has one of its own."
    pairs.string("sources", text)
    text = "Working directory of the transformation that the pairs shall correct."
    pairs.string("base", text)
    fusion = flag_groups.Group(values, FUSED)
    text = "With --method: a fused search, of the old and the new model at once."
    fusion.boolean("fused", text)
    fusion.number("weight", "The share of the old model.", 0.5)
    fusion.boolean("choose_weight", "Take the weight that retrieves best in --pairs.")
    fusion.boolean("whiten", "Make differences within a label alike.")
    fusion.integer("dims", "So many values a row; 0: those of both models.", 0, 0)
    flag_groups.define_training(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Trains the transformation that the flags name."""
    if (values.config is None) == (values.method is None):
        raise InputError(
            f"name an experiment with --config, or a method with --method ({', '.join(METHODS)}); "
            "one of them"
        )
    if values.config is not None and not values.name:
        names = ", ".join(values.config.transformations)
        raise InputError(f"--name: which of the experiment's transformations? There are: {names}")
    more = {"existing": cli.existing(values)}
    fusion = _fusion(values)
    # TensorFlow: not for --help or a wrong flag.
    from fct_tf.experiments.validate import validate
    from fct_tf.training.by_method import train_by_method
    from fct_tf.training.transformation import train

    given = cli.arguments(values, train, **more)
    if values.method:
        del given["config"]
        settings = {"fusion": fusion} if fusion else {}
        workdir = train_by_method(values.method, **given, settings=settings)
    else:
        validate(values.config)
        workdir = train(**given)
    print(workdir / "saved_model")


def _fusion(values: flags.FlagValues) -> dict:
    """What the flags say of fused search; empty without --fused."""
    group = flag_groups.of(values)[FUSED]
    for flag in group:
        if flag.present and (values.config is not None or not values.fused):
            advice = "an experiment says it itself, in fusion" if values.config else "add --fused"
            raise InputError(f"--{flag.name}: {advice}")
    if values.choose_weight and values["weight"].present:
        raise InputError("--weight: --choose_weight takes it from --pairs; leave one of them out")
    return {flag.name: flag.value for flag in group if flag.name != "fused"} if values.fused else {}


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
