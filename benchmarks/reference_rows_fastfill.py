"""In which order to backfill, on stored rows alone: curves and their AUC, three seeds.

Needs a directory with `train.lance` and `test.lance`, galleries with the columns
`embedding_old`, `side_info` and `embedding_new`, and `new_classifier.npy`, the new model's
classifier [classes, d] whose rows are the labels of `train.lance` in alphabetical order. For every
seed FCT and FastFill, with and without side-information, are trained on `train.lance` and upgrade
a copy of `test.lance`; then the backfilling curves of that gallery in the order of every policy:
`random` (five orders), `uncertainty` (FastFill's log-variance), `distance` (an oracle), and two
that learn after every twenty-first from the rows backfilled so far, the first of them random:
`error` and `ranks`, see `fct_tf.gallery.priority`. Records with `corrected` true are what
remains transformed corrected by those rows too, as pairs. AUC and curves in fractions.

  python benchmarks/reference_rows_fastfill.py --config=configs/omniglot.py --rows=DIR \
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

from fct_tf import cli, train_transformation
from fct_tf.files import atomic_write_text, read_json, write_json
from fct_tf.gallery import priority, sample, table, upgrade
from fct_tf.gallery.columns import Rows
from fct_tf.retrieval import backfilling, exact, metrics
from fct_tf.validation import validate

OLD, NEW, SIDE_INFO = reference_rows.OLD, reference_rows.NEW, reference_rows.SIDE_INFO
METHODS = ("fct_no_side_info", "fastfill_no_side_info")
CORRECTED = "fastfill_no_side_info"  # The method whose rows are corrected as well.
RANDOM_ORDERS = 5
KS = (1, 5)


def experiment(config: ConfigDict) -> ConfigDict:
    """The experiment with FCT and FastFill, without pairs, in bfloat16."""
    recipe = config.transformations.fct
    config.evaluation.backfilling.update(policies=(), transformations=())  # Of other names.
    for name in list(config.transformations):
        del config.transformations[name]
    for name in METHODS:
        section = recipe.copy_and_resolve_references()
        section.update(side_info=not name.endswith("_no_side_info"), dtype="bfloat16")
        if name.startswith("fastfill"):
            section.update(discriminative_weight=1.0, uncertainty="heteroscedastic")
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
    trained = train_transformation.train(
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


def learnt(rows: Rows, column: str, by: str, side_info: bool, seed: int, cache: Path) -> np.ndarray:
    """The order of `ranks` when the rows of every point are learnt from: int64 [n].

    The one of a finished point is kept in `cache`: a benchmark that was stopped goes on there.
    """
    order = start = np.load(cache) if cache.exists() else np.empty(0, np.int64)
    vectors = rows.vectors
    for order in priority.in_rounds(
        rows.ids,
        vectors[OLD],
        vectors[column],
        vectors[NEW],
        backfilling.replaced(len(rows))[1:],
        side_info=vectors[SIDE_INFO] if side_info else None,
        by=by,
        seed=seed,
        start=start,
    ):
        np.save(cache, order)
    return order


def corrected(rows: Rows, column: str, order: np.ndarray) -> list[dict]:
    """The curve where what is not backfilled is corrected, by the rows that are, at each point."""
    blocks = {"source_embedding": rows.vectors[OLD], "embedding": rows.vectors[column]}
    assert rows.labels is not None
    points = []
    for count in backfilling.replaced(len(rows)).tolist():
        known = np.zeros(len(rows), bool)
        known[order[:count]] = True
        new = rows.vectors[NEW]
        gallery = np.where(known[:, None], new, rows.vectors[column])
        if known.any() and not known.all():
            gallery = priority.predict(blocks, known, new[known])
        found = exact.per_query(new, rows.ids, rows.labels, gallery, rows.ids, rows.labels, "l2")
        points.append(
            {
                "share": count / len(rows),
                "rows": count,
                "cmc": metrics.cmc(found.rank, KS),
                "map": metrics.mean_average_precision(found.average_precision),
            }
        )
    return points


def curves(gallery: Path, name: str, column: str, seed: int, workdir: Path) -> list[dict]:
    """The records of one upgraded column, in the order of every policy."""
    side_info = not name.endswith("_no_side_info")
    opened = table.open_gallery(str(gallery))
    certainty = f"{column}_log_variance"
    fields = [certainty] if certainty in opened.dataset.schema.names else []
    rows = opened.read([OLD, NEW, SIDE_INFO, column], with_labels=True, fields=fields)
    assert rows.labels is not None
    new, transformed = rows.vectors[NEW], rows.vectors[column]
    orders: list[tuple[str, int | None, np.ndarray]] = [
        ("random", number, sample.order(rows.ids, 1000 * (seed + 1) + number))
        for number in range(RANDOM_ORDERS)
    ]
    orders.append(("distance", None, np.argsort(-np.linalg.norm(transformed - new, axis=1))))
    if fields:
        orders.append(("uncertainty", None, np.argsort(-rows.fields[certainty].astype(float))))
    for by in ("ranks",):
        cache = workdir / f"{column}_{by}.npy"
        orders.append((by, None, learnt(rows, column, by, side_info, seed, cache)))
    side = (new, rows.ids, rows.labels)
    found = backfilling.per_query(side, transformed, side, [order for _, _, order in orders])
    records = []

    def add(policy: str, number: int | None, points: list[dict], is_corrected: bool) -> None:
        records.append(
            {
                "method": name,
                "side_info": side_info,
                "seed": seed,
                "policy": policy,
                "order": number,
                "corrected": is_corrected,
                "auc": backfilling.auc(points, KS),
                "curve": points,
            }
        )

    for at, (policy, number, _) in enumerate(orders):
        add(policy, number, backfilling.curve(found, at, len(rows), KS), False)
    if name == CORRECTED:
        for policy, number, order in (orders[0], orders[-1]):
            add(policy, number, corrected(rows, column, order), True)
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
                write_json(kept, curves(gallery, name, column, seed, workdir))
            records += read_json(kept)
    return records


def mean(records: list[dict], method: str, policy: str, is_corrected: bool, metric: str):
    """float [22]: a metric along the curve, mean over seeds and random orders; None without."""
    wanted = (method, policy, is_corrected)
    found = [
        backfilling.values(record["curve"], metric)
        for record in records
        if (record["method"], record["policy"], record["corrected"]) == wanted
    ]
    return np.mean(np.array(found, float), axis=0) if found else None


def plot(records: list[dict], path: str) -> None:
    """What each policy gains over random orders along the curve."""
    titles = {"1": "top-1", "5": "top-5", "map": "mAP"}
    styles = {"ranks": "C0-", "error": "C1-", "uncertainty": "C3-", "distance": "k--"}
    figure, axes = plt.subplots(3, 3, figsize=(10, 8), sharex=True, layout="constrained")
    for row, method in zip(axes, METHODS, strict=True):
        for ax, (metric, title) in zip(row, titles.items(), strict=True):
            base = mean(records, method, "random", False, metric)
            ax.axhline(0, color="0.6", linewidth=1)
            for policy, style in styles.items():
                points = mean(records, method, policy, False, metric)
                if base is not None and points is not None:
                    told = "distance (oracle)" if policy == "distance" else policy
                    xs = 100 * np.arange(backfilling.POINTS) / (backfilling.POINTS - 1)
                    ax.plot(xs, 100 * (points - base), style, label=told)
            ax.set_title(f"{method}, {title}", fontsize=9)
            ax.grid(alpha=0.3)
        row[0].set_ylabel("above random (points)")
    for ax in axes[-1]:
        ax.set_xlabel("rows backfilled (%)")
    axes[-1][-1].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def text(records: list[dict]) -> str:
    """One line per method and policy: AUC, mean over seeds and the standard deviation of random."""
    lines = []
    for method in METHODS:
        kinds = {(r["policy"], r["corrected"]) for r in records if r["method"] == method}
        for policy, is_corrected in sorted(kinds):
            wanted = (method, policy, is_corrected)
            areas = [
                [100 * r["auc"][key] for key in ("1", "5", "map")]
                for r in records
                if (r["method"], r["policy"], r["corrected"]) == wanted
            ]
            told = " / ".join(f"{value:.2f}" for value in np.mean(areas, axis=0))
            more = ", corrected" if is_corrected else ""
            lines.append(f"{method:24}{policy + more:26}{told}  ({len(areas)})")
    return "\n".join(lines)


def main(values: flags.FlagValues) -> None:
    config = experiment(values.config)
    records = measure(config, Path(values.rows), Path(values.workdir))
    reference_rows.write(records, config, values.output, text)
    plot(records, str(Path(values.output).with_suffix(".svg")))


if __name__ == "__main__":
    cli.run(__doc__, main, reference_rows.define_flags)
