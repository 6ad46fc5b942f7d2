"""Trains the side-information model: what is stored beside each old embedding for later.

SimCLR (NT-Xent between two augmented views, arXiv 2002.05709), the best choice of the FCT paper
(arXiv 2112.02805). It is trained on the *old* data only; the projection head is dropped
afterwards.

  python -m fct_tf.train_side_info --config=configs/omniglot.py --workdir=runs/side_info
"""

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.experiments.validate import validate
from fct_tf.training.side_info import train


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    cli.define_config(values)
    flag_groups.define_training(values)


def main(values: flags.FlagValues) -> None:
    """Trains the experiment's side-information model."""
    validate(values.config)
    print(train(**cli.arguments(values, train, existing=cli.existing(values))))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
