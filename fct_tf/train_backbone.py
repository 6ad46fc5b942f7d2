"""Trains one embedding model (old, new, or any version of it) as a classifier.

Where the experiment gives the model a `compatibility`, a second term keeps its embeddings
comparable with those of an older model: BCT's influence loss (arXiv 2003.11942), or regression,
triplet or contrastive loss onto the older model's stored embeddings.

Writes WORKDIR/artifact (the model, its classifier and model.json), WORKDIR/checkpoints,
WORKDIR/tensorboard and WORKDIR/metrics.jsonl. Started again, it continues.

  python -m fct_tf.train_backbone --config=configs/omniglot.py --model=old --workdir=runs/old
  python -m fct_tf.train_backbone --config=my.py --model=new --workdir=runs/new \\
      --old=runs/old/artifact --gallery=train.lance --column=embedding_old
"""

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.experiments.validate import validate
from fct_tf.training.backbone import train


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    cli.define_config(values)
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("model", "Which of the experiment's models.")
    read.string("old", "Artifact of the model to be compatible with.")
    read.string("gallery", "Table with that model's embeddings of the training images.")
    text = "Their column; by default embedding_<that model's name in the experiment>."
    read.string("column", text)
    flag_groups.define_training(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Trains the model that the flags name."""
    validate(values.config)
    more = {"name": values.model, "existing": cli.existing(values)}
    print(train(**cli.arguments(values, train, **more)))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
