"""Trains the FCT or FastFill transformation on the columns of a gallery; no image is read.

h(old embedding, side-information) approximates the new embedding (arXiv 2112.02805, section 3).
Writes WORKDIR/artifact and WORKDIR/saved_model, which upgrade_gallery and TF Serving load.

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=fct \\
      --gallery=train.lance --source=embedding_old --side_info=side_info \\
      --target=embedding_new --workdir=runs/fct

A sample of the gallery itself that the new model has re-embedded (sample_gallery makes it) mends
what training rows of other classes cannot teach; this takes seconds on a trained transformation:

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

FastFill (arXiv 2303.04766) also asks that the new model's classifier, which stays as it is, gets
the transformed embeddings right, and learns how far each of them may be off: with
discriminative_weight above 0 name the new model's artifact, --classifier=runs/new/artifact.
"""

from absl import flags

from fct_tf.common import cli, runs
from fct_tf.experiments.validate import validate
from fct_tf.training.transformation import train


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""
    cli.define_config(values)

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("name", None, "Which of the experiment's transformations.", required=True)
    string("gallery", None, "Table of training rows, e.g. train.lance@3.", required=True)
    string("source", None, "Embedding column to map from.", required=True)
    string("target", None, "Embedding column to map to.", required=True)
    string("side_info", "", "Column of the side-information.")
    string("pairs", "", "Table of gallery rows re-embedded by the new model (sample_gallery).")
    string("backfilled", "", "Column of --pairs, a gallery: the rows backfilled in it are pairs.")
    string("sources", "", "For --backfilled: gallery it was made from, if it has one of its own.")
    string("base", "", "Working directory of the transformation that the pairs shall correct.")
    string("classifier", "", "Artifact of the new model, or its classifier as .npz or .npy file.")
    string("classifier_labels", "", "Label names, one a line, of a --classifier in a .npy file.")
    cli.define_training(values)


def main(values: flags.FlagValues) -> None:
    """Trains the transformation that the flags name."""
    validate(values.config)
    existing: runs.Existing = "overwrite" if values.overwrite else "refuse"
    workdir = train(
        values.config,
        values.name,
        values.gallery,
        values.source,
        values.target,
        values.workdir,
        side_info=values.side_info,
        pairs=values.pairs,
        backfilled=values.backfilled,
        sources=values.sources,
        base=values.base,
        classifier=values.classifier,
        classifier_labels=values.classifier_labels,
        seed=values.seed,
        existing=existing,
    )
    print(workdir / "saved_model")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
