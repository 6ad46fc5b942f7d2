"""Deviations from the paper's transformation, one at a time, on stored rows alone.

Needs a directory with `train.lance` and `test.lance`, galleries with the columns
`embedding_old`, `side_info` and `embedding_new`. For each seed: the paper's transformation with
and without side-information, the same with one setting changed, and the closed-form maps; each is
trained on the former, upgrades a copy of the latter, and is evaluated there.

  python benchmarks/reference_rows.py --config=configs/omniglot.py --rows=DIR \\
      --workdir=runs/reference_rows --output=results/reference_rows.json
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import machine
from absl import flags
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import cli
from fct_tf.common.files import write_json
from fct_tf.common.provenance import library_versions
from fct_tf.experiments.validate import validate
from fct_tf.gallery import table
from fct_tf.report import table as report_table
from fct_tf.retrieval import exact
from fct_tf.training import transformation
from fct_tf.upgrade import upgrade

OLD, NEW, SIDE_INFO = "embedding_old", "embedding_new", "side_info"


DEVIATIONS: dict[str, dict] = {
    "fct": {},
    "fct_affine_init": {"affine_init": True},
    "fct_narrow": {"hidden": 512},
    "fct_dropout": {"dropout": 0.2},
    "fct_mixing": {"mixing": 0.5},
    "fct_ranking": {"ranking_weight": 0.3},
    # Epoch and regularisation chosen on a tenth of the training classes.
    "fct_selected": {"validation": {"share": 0.1, "l2": (2.0**-15, 1e-3)}},
}


def experiment(config: ConfigDict) -> ConfigDict:
    """The experiment's maps of the gallery, without pairs and with every deviation."""
    paper = config.transformations.fct
    config.evaluation.backfilling.update(policies=(), transformations=())  # Of other names.
    for name, section in list(config.transformations.items()):
        if section.pairs.share or section.side == "query":
            del config.transformations[name]
    for name, settings in DEVIATIONS.items():
        section = paper.copy_and_resolve_references()
        section.validation.update(settings.get("validation", {}))
        section.update({key: v for key, v in settings.items() if key != "validation"})
        config.transformations[name] = section
    return config


def copy_of_test(rows: Path, workdir: Path) -> Path:
    """The gallery that is upgraded; errors as `table.open_gallery`."""
    gallery = workdir / "test.lance"
    if not gallery.exists():
        for name in ("train.lance", "test.lance"):
            table.open_gallery(str(rows / name))
        shutil.copytree(rows / "test.lance", gallery, copy_function=shutil.copyfile)
    return gallery


def measure(config, rows: Path, workdir: Path) -> list[dict]:
    """Records of old/old, new/new, and of each transformation and seed."""
    validate(config)
    transformations = config.transformations
    gallery = copy_of_test(rows, workdir)

    def record(case: str, method: str, query: str, column: str, seed: int) -> dict:
        opened = table.open_gallery(str(gallery))
        found = exact.evaluate(opened, query, opened, column, ks=tuple(config.evaluation.ks))
        for side in ("query", "gallery"):  # Not where this machine keeps them.
            found[side]["path"] = Path(found[side]["path"]).name
        side_info = method in transformations and transformations[method].side_info
        keys = {"method": method, "case": case, "side_info": side_info}
        return {**found, **keys, "seed": seed}

    records = []
    for seed in config.seeds:
        records.append(record("old/old", "independent", OLD, OLD, seed))
        for name, section in transformations.items():
            trained = transformation.train(
                config,
                name,
                str(rows / "train.lance"),
                OLD,
                NEW,
                workdir / f"seed_{seed}" / name,
                side_info=SIDE_INFO if section.side_info else "",
                seed=seed,
                existing="skip",
            )
            column = f"{name}_{seed}"
            upgrade.upgrade(
                str(gallery),
                trained / "saved_model",
                column,
                source=OLD,
                side_info=SIDE_INFO if section.side_info else None,
                existing="skip",
            )
            records.append(record(f"new/T(old) {name}", name, NEW, column, seed))
        records.append(record("new/new", "independent", NEW, NEW, seed))
    return records


def define_flags(values: flags.FlagValues) -> None:
    cli.define_config(values)
    for name, text in (
        ("rows", "Directory with train.lance and test.lance."),
        ("workdir", "Directory of the trainings and the upgraded copy of test.lance."),
        ("output", "JSON file of records; NAME.run.json gets settings and versions."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)


def write(
    records: list[dict],
    config: ConfigDict,
    output: str,
    text: Callable[[list[dict]], str] = report_table.text,
) -> None:
    """Writes the records, with the settings and versions behind them beside them, and prints."""
    write_json(output, records)
    write_json(
        Path(output).with_suffix(".run.json"),
        {
            "command": machine.command(sys.argv),
            "config": schema.to_dict(config),
            "versions": library_versions(),
        },
    )
    print(text(records))


def main(values: flags.FlagValues) -> None:
    config = experiment(values.config)
    write(measure(config, Path(values.rows), Path(values.workdir)), config, values.output)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
