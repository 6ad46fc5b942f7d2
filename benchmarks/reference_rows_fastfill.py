"""In which order to backfill, and what FastFill's ingredients bring, on stored rows alone.

Needs a directory with `train.lance` and `test.lance`, galleries with the columns
`embedding_old`, `side_info` and `embedding_new`, and `new_classifier.npy`, the new model's
classifier [classes, d] whose rows are the labels of `train.lance` in alphabetical order. For every
seed FCT, FastFill and each of its ingredients alone are trained on `train.lance` and upgrade a copy
of `test.lance`; then the backfilling curves of that gallery by policy: five random orders,
`uncertainty` (the log-variance, where there is one), `distance` (an oracle) and `ranks`, which
learns at every point from the rows backfilled by then (`fct_tf.backfill.priority`). Records with
`corrected` true: what remains transformed is corrected by those rows too, as by retraining on them.
Curves that are finished are kept in WORKDIR/COLUMN.json, whatever is changed later.

  python benchmarks/reference_rows_fastfill.py --config=configs/omniglot.py --rows=DIR \\
      --workdir=runs/reference_rows_fastfill --output=results/reference_rows_fastfill.json
"""

from pathlib import Path

import matplotlib
import numpy as np
import reference_rows
from absl import flags
from ml_collections import ConfigDict

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fct_tf.backfill import curves as backfilling
from fct_tf.backfill import evaluate
from fct_tf.common import cli
from fct_tf.common.files import atomic_write_text, read_json, write_json
from fct_tf.experiments.validate import validate
from fct_tf.gallery import table
from fct_tf.report import backfilling as tables
from fct_tf.training import transformation
from fct_tf.upgrade import upgrade

OLD, NEW, SIDE_INFO = reference_rows.OLD, reference_rows.NEW, reference_rows.SIDE_INFO
METHODS: dict[str, dict] = {  # What each changes in FCT's settings.
    "fct_no_side_info": {},
    "fastfill_no_side_info": {"discriminative_weight": 1.0, "uncertainty": "heteroscedastic"},
    # Each ingredient of FastFill alone.
    "discriminative_no_side_info": {"discriminative_weight": 1.0},
    "heteroscedastic_no_side_info": {"uncertainty": "heteroscedastic"},
    "head_no_side_info": {"uncertainty": "head"},
    "fct": {},
    "fastfill": {"discriminative_weight": 1.0, "uncertainty": "heteroscedastic"},
    "heteroscedastic": {"uncertainty": "heteroscedastic"},
}
# Those with the policy `ranks`, and which of their curves are corrected too.
LEARNT: dict[str, tuple[str, ...]] = {
    "fct_no_side_info": ("random", "ranks"),
    "fastfill_no_side_info": ("ranks",),
    "heteroscedastic_no_side_info": (),
}
KS = (1, 5)


def experiment(config: ConfigDict) -> ConfigDict:
    """The experiment with FCT and FastFill, without pairs, in bfloat16."""
    recipe = config.transformations.fct
    config.evaluation.backfilling.update(
        policies=(), transformations=(), corrected=()
    )  # Of other names.
    for name in list(config.transformations):
        del config.transformations[name]
    for name, changes in METHODS.items():
        section = recipe.copy_and_resolve_references()
        side_info = not name.endswith("_no_side_info")
        section.update(side_info=side_info, dtype="bfloat16", **changes)
        config.transformations[name] = section
    return config


def upgraded(config: ConfigDict, name: str, seed: int, rows: Path, workdir: Path) -> str:
    """Trains a transformation and upgrades the gallery with it: the name of the new column."""
    section = config.transformations[name]
    labels = workdir / "labels.txt"
    if not labels.exists():
        known = table.open_gallery(str(rows / "train.lance")).read([], with_labels=True).labels
        assert known is not None
        atomic_write_text(labels, "".join(f"{label}\n" for label in sorted(set(known))))
    classified = bool(section.discriminative_weight)
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
        classifier=rows / "new_classifier.npy" if classified else "",
        classifier_labels=labels if classified else "",
    )
    column = f"{name}_{seed}"
    upgrade.upgrade(
        str(reference_rows.copy_of_test(rows, workdir)),
        trained / "saved_model",
        column,
        source=OLD,
        side_info=SIDE_INFO if section.side_info else None,
        existing="skip",
    )
    return column


def curves(gallery: Path, name: str, column: str, seed: int) -> list[dict]:
    """The records of one upgraded column, in the order of every policy."""
    opened = table.open_gallery(str(gallery))
    policies = ["random", "distance"]
    if evaluate.has_uncertainty(opened, column):
        policies.append("uncertainty")
    if name in LEARNT:
        policies.append("ranks")
    records = evaluate.evaluate(
        *(opened, NEW, opened, column, NEW, policies),
        ks=KS,
        seed=seed,
        corrected=LEARNT.get(name, ()),
        progress=f"{name}, seed {seed}",
    )
    for record in records:
        for side in ("query", "gallery", "target"):  # The same for all, but for this machine.
            del record[side]
        record |= {"method": name, "side_info": not name.endswith("_no_side_info")}
    return records


def measure(config: ConfigDict, rows: Path, workdir: Path) -> list[dict]:
    """Records of results.json, for every seed, method and policy."""
    validate(config)
    records = []
    for seed in config.seeds:
        for name in config.transformations:
            column = upgraded(config, name, seed, rows, workdir)
            gallery = reference_rows.copy_of_test(rows, workdir)
            kept = workdir / f"{column}.json"
            if not kept.exists():
                write_json(kept, curves(gallery, name, column, seed))
            records += read_json(kept)
    return records


def plot(records: list[dict], path: str) -> None:
    """What each policy gains over random orders along the curve, mean over the seeds."""
    made = {(row.method, row.name): row.curves for row in tables.rows(records)}
    styles = {
        "ranks": "C0-",
        "uncertainty": "C3-",
        "distance": "k--",  # an oracle
        "random, rest corrected": "C2:",
        "ranks, rest corrected": "C0:",
    }
    figure, axes = plt.subplots(len(LEARNT), 3, figsize=(10, 8), sharex=True, layout="constrained")
    xs = 100 * np.arange(backfilling.POINTS) / (backfilling.POINTS - 1)
    for row, method in zip(axes, LEARNT, strict=True):
        for ax, metric in zip(row, ("top-1", "top-5", "mAP"), strict=True):
            ax.axhline(0, color="0.6", linewidth=1)
            for policy, style in styles.items():
                if (method, policy) in made:
                    found, base = (made[method, name][metric] for name in (policy, "random"))
                    gain = found.mean(axis=0) - base.mean(axis=0)
                    ax.plot(xs, 100 * gain, style, label=policy)
            ax.set_title(f"{method}, {metric}", fontsize=9)
            ax.grid(alpha=0.3)
        row[0].set_ylabel("above random (points)")
    for ax in axes[-1]:
        ax.set_xlabel("rows backfilled (%)")
    lines = [pair for ax in axes.flat for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    by_label = {label: line for line, label in lines}
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=5)
    figure.savefig(path)
    plt.close(figure)


def main(values: flags.FlagValues) -> None:
    config = experiment(values.config)
    records = measure(config, Path(values.rows), Path(values.workdir))
    reference_rows.write(records, config, values.output, tables.text)
    plot(records, str(Path(values.output).with_suffix(".svg")))


if __name__ == "__main__":
    cli.run(__doc__, main, reference_rows.define_flags)
