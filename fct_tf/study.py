"""Runs a whole model change: trains, embeds, upgrades, evaluates, and reports what it gained.

Every stage that has finished with the same settings and inputs is skipped, so the command can be
stopped and started again, or run again after a change of the experiment.

  python -m fct_tf.study --config=configs/quickstart.py --workdir=runs/glyphs

Leaves WORKDIR/results.json (one record per case and seed; those of upgrades say what was gained,
broken, lost and paid, see `fct_tf.experiments.comparison` and `fct_tf.experiments.costs`),
WORKDIR/run.json (settings, versions, command) and WORKDIR/report/index.html; where the experiment
asks for them also WORKDIR/backfilling.json (backfilling curves) and WORKDIR/chains.json (for each
chain of versions the matrix of queries against galleries, with its AC and AM).
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.files import read_json
from fct_tf.experiments import next_steps
from fct_tf.experiments.study import study
from fct_tf.report import console


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    cli.define_config(values)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required(
        "workdir", "Directory of everything that the study makes (one process at a time)."
    )


def main(values: flags.FlagValues) -> None:
    """Runs the experiment, prints its table and what to type next."""
    command = shlex.join(["python", "-m", "fct_tf.study", *sys.argv[1:]])
    records = study(values.config, values.workdir, command)
    workdir = Path(values.workdir)
    beside = [workdir / "chains.json", workdir / "backfilling.json"]
    print(console.text(records, *(read_json(path) if path.exists() else None for path in beside)))
    print(f"report: {workdir / 'report' / 'index.html'}\n")
    print(next_steps.text(values.config, records, workdir))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
