"""Why an order by FastFill's uncertainty may lose against random orders on known classes.

FastFill (arXiv 2303.04766) re-embeds first the rows whose loss it predicts to be largest, squared
error plus cross-entropy of T(old) under the frozen new classifier. A part of that loss stays when a
row is re-embedded: the cross-entropy of its new embedding. Measured on the rows of a study whose
new model knows all classes, on those of its gallery and on as many training images of each class:

- AUC of orders over five random ones, paired by query: by the predicted `uncertainty`, and by what
  only an oracle knows: `squared_error`, `loss`, and `removable`, what of it re-embedding removes;
- the same among the rows that the new classifier gets right, with a growing share of the others
  beside them, and among as many random rows;
- rows in fifths by uncertainty: what each brings when it alone is re-embedded, how many of the
  queries' first places it then takes, and how many of these are right.

  python benchmarks/uncertainty_by_fifths.py --workdir=runs/tiny_imagenet100 \\
      --transformations=fastfill,fastfill_no_side_info \\
      --output=results/uncertainty_tiny_imagenet100.json

Beside them uncertainty_tiny_imagenet100_heteroscedastic.json, of an uncertainty that is learnt
without the discriminative term (--transformations=heteroscedastic), which is trained by

  python -m fct_tf.train_transformation --config=configs/tiny_imagenet100.py \\
      --name=fastfill_no_side_info --gallery=SEED/rows/train/gallery.lance \\
      --source=embedding_old --target=embedding_new --workdir=SEED/heteroscedastic \\
      --config.transformations.fastfill_no_side_info.discriminative_weight=0.0 \\
      --config.training.threads=1

with SEED=runs/tiny_imagenet100/seed_0.
"""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import numpy as np
from absl import flags

from fct_tf.backfill import calibration, curves, policies
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.common.files import write_records
from fct_tf.common.provenance import library_versions
from fct_tf.gallery import table
from fct_tf.models import saved_model
from fct_tf.retrieval import exact, metrics
from fct_tf.training import frozen_classifier, losses, margins
from fct_tf.upgrade import sample
from fct_tf.upgrade.inputs import find_sources

NEW = "embedding_new"
METRICS = ("top1", "top5", "map")
SEED, RANDOM_ORDERS, PARTS, RESAMPLES = 0, 5, 5, 1000
WRONG_SHARES = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Rows:
    """Rows that are queries and gallery at once.

    ids, labels: object [n] of str. new, transformed: float32 [n, d]. log_variance, squared_error,
    cross_entropy (of the transformed embedding), cross_entropy_new: float64 [n]. right: bool [n],
    whether the classifier gets the new embedding right. distance: `l2` or `cosine`.
    """

    ids: np.ndarray
    labels: np.ndarray
    new: np.ndarray
    transformed: np.ndarray
    log_variance: np.ndarray
    squared_error: np.ndarray
    cross_entropy: np.ndarray
    cross_entropy_new: np.ndarray
    right: np.ndarray
    distance: str = "l2"

    def take(self, rows: np.ndarray) -> "Rows":
        arrays = {name: part for name, part in vars(self).items() if name != "distance"}
        return replace(self, **{name: part[rows] for name, part in arrays.items()})

    def values(self) -> dict[str, np.ndarray]:
        """By what rows are put in order, the largest first: float64 [n] each."""
        loss = self.squared_error + self.cross_entropy
        return {
            "uncertainty": self.log_variance,
            "squared_error": self.squared_error,
            "loss": loss,
            "removable": loss - self.cross_entropy_new,
        }


def read(path: Path, transformation: Path, model: Path, like: Rows | None = None) -> Rows:
    """All rows of a table, transformed; with `like` only as many of each label as that has.

    Raises:
      InputError: no log-variance, or a row of no class that the new model knows.
    """
    gallery = table.open_gallery(path)
    transform = saved_model.load_transformation(transformation)
    if not transform.has_log_variance:
        raise InputError(f"{transformation}: returns no log_variance; name a FastFill one")
    classifier = frozen_classifier.open_classifier(model, gallery.column(NEW))
    names = [column.name for column in find_sources(gallery, transform, {}).values()]
    rows, classes = gallery.read([NEW, *names], with_labels=True), classifier.numbers([gallery])
    assert rows.labels is not None
    if (classes < 0).any():
        raise InputError(
            f"{path}: has rows of classes that {model} does not know; name a study whose new model "
            "was trained on all of them"
        )
    kept = sample.order(rows.ids, SEED)
    if like is not None:
        left, chosen = Counter(like.labels), []
        for row in kept:
            if left[rows.labels[row]]:
                left[rows.labels[row]] -= 1
                chosen.append(row)
        kept = np.array(chosen)
    outputs = transform(*(rows.vectors[name][kept] for name in names))
    transformed, new = outputs["embedding"], rows.vectors[NEW][kept]
    logits, logits_new = (
        margins.frozen_logits(side, classifier.weights, classifier.scale).numpy()
        for side in (transformed, new)
    )
    return Rows(
        ids=rows.ids[kept],
        labels=rows.labels[kept],
        new=new,
        transformed=transformed,
        log_variance=as_numpy(outputs["log_variance"]),
        squared_error=as_numpy(losses.mse(transformed, new)),
        cross_entropy=as_numpy(losses.discriminative(logits, classes[kept])),
        cross_entropy_new=as_numpy(losses.discriminative(logits_new, classes[kept])),
        right=logits_new.argmax(axis=1) == classes[kept],
        distance=gallery.column(NEW).distance,
    )


def as_numpy(values) -> np.ndarray:
    return np.asarray(values, np.float64)


def descending(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rows with the largest values first, as policy `uncertainty` orders them: int64 [n]."""
    return policies.uncertainty(policies.Candidates(ids, values), SEED)


def random_orders(ids: np.ndarray) -> list[np.ndarray]:
    """Those of the study's backfilling curves (`policy_curves`)."""
    seeds = [np.random.SeedSequence([SEED, number]) for number in range(RANDOM_ORDERS)]
    return [sample.order(ids, int(seed.generate_state(1, np.uint64)[0])) for seed in seeds]


def achieved(rank: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """float64 [..., queries with a match, metrics] of ranks and precisions [..., queries]."""
    matched = (rank > 0).reshape(-1, rank.shape[-1])[0]
    values = np.stack([rank == 1, rank <= 5, precision], axis=-1)
    return values[..., matched, :].astype(np.float64)


def named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, map(float, values), strict=True))


def areas(rows: Rows) -> dict:
    """AUC of orders, and of what they gain over random orders the interval over queries."""
    values, side = rows.values(), (rows.new, rows.ids, rows.labels)
    orders = random_orders(rows.ids) + [descending(rows.ids, by) for by in values.values()]
    found = curves.per_query(side, rows.transformed, side, orders, rows.distance)
    per_query = achieved(found.rank, found.average_precision)  # [orders, 22, queries, metrics]
    area = per_query.mean(axis=1)
    random = area[:RANDOM_ORDERS].mean(axis=0)
    made: dict = {
        "num_rows": len(rows.ids),
        "num_queries": len(random),
        "start": named(per_query[0, 0].mean(axis=0)),
        "end": named(per_query[0, -1].mean(axis=0)),
        "auc": {"random": named(random.mean(axis=0))},
        "over_random": {},
    }
    for name, own in zip(values, area[RANDOM_ORDERS:], strict=True):
        gain = own - random
        low, high = metrics.bootstrap(gain, RESAMPLES, SEED)
        made["auc"][name] = named(own.mean(axis=0))
        made["over_random"][name] = {
            "mean": named(gain.mean(axis=0)),
            "low": named(low),
            "high": named(high),
        }
    return made


def alone(rows: Rows, part: np.ndarray) -> dict:
    """What these rows are, int [p], and what it brings to re-embed them and no others."""
    mixed = rows.transformed.copy()
    mixed[part] = rows.new[part]
    before, after, new = (
        exact.per_query(rows.new, rows.ids, rows.labels, side, rows.ids, rows.labels, rows.distance)
        for side in (rows.transformed, mixed, rows.new)
    )
    gain = achieved(after.rank, after.average_precision).mean(axis=0)
    gain -= achieved(before.rank, before.average_precision).mean(axis=0)
    themselves = np.arange(len(mixed))
    nearest = exact.search(rows.new, mixed, 1, rows.distance, exclude=themselves)[0][:, 0]
    theirs, right = np.isin(nearest, part), rows.labels[nearest] == rows.labels
    return {
        "squared_error": float(rows.squared_error[part].mean()),
        "classifier_accuracy": float(rows.right[part].mean()),
        "new_new": named(achieved(new.rank[part], new.average_precision[part]).mean(axis=0)),
        "gain": named(gain),
        "first_places": float(theirs.mean()),
        "first_places_right": float(right[theirs].mean()),
        "others_right": float(right[~theirs].mean()),
    }


def mean(records: list[dict]) -> dict:
    """The mean of records, key by key."""
    return {
        key: mean([record[key] for record in records])
        if isinstance(value, dict)
        else float(np.mean([record[key] for record in records]))
        for key, value in records[0].items()
    }


def measure(rows: Rows) -> dict:
    """All numbers of these rows, as JSON; fractions."""
    told = {**rows.values(), "cross_entropy_new": rows.cross_entropy_new}
    certainty, randoms = told.pop("uncertainty"), random_orders(rows.ids)
    fifths = np.array_split(descending(rows.ids, certainty), PARTS)
    right, wrong = (randoms[0][rows.right[randoms[0]] == kind] for kind in (True, False))
    mixtures = []
    for share in WRONG_SHARES:
        part = np.concatenate([right, wrong[: round(share * len(wrong))]])
        gain = areas(rows.take(part))["over_random"]
        mixtures.append(
            {
                "wrong_share": share,
                "classifier_accuracy": float(rows.right[part].mean()),
                "over_random": {name: found["mean"] for name, found in gain.items()},
            }
        )
    return {
        "classifier_accuracy": float(rows.right.mean()),
        "mean": {name: float(values.mean()) for name, values in told.items()},
        "spearman_with_uncertainty": {
            # What may be below 0 is shifted; ranks stay.
            name: calibration.measure(certainty, values - values.min())["spearman"]
            for name, values in told.items()
        },
        "all_rows": areas(rows),
        "rows_classified_right": areas(rows.take(right)),
        "with_wrong_rows": mixtures,
        "as_many_random_rows": areas(rows.take(randoms[0][: len(right)])),
        "fifths_by_uncertainty": [alone(rows, part) for part in fifths],
        "random_fifth": mean([alone(rows, order[: len(fifths[0])]) for order in randoms]),
    }


def define_flags(values: flags.FlagValues) -> None:
    for name, text in (
        ("workdir", "Working directory of a study whose new model knows all classes."),
        ("output", "JSON file to write."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)
    flags.DEFINE_list(
        "transformations", ["fastfill"], "Names of FastFill transformations.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    seed = Path(values.workdir) / f"seed_{SEED}"
    model = seed / "new" / "artifact"
    made: dict = {}
    for name in values.transformations:
        galleries = [seed / "rows" / part / "gallery.lance" for part in ("gallery", "train")]
        gallery = read(galleries[0], seed / name, model)
        train = read(galleries[1], seed / name, model, like=gallery)
        made[name] = {"gallery": measure(gallery), "train": measure(train)}
        for part, found in made[name].items():
            for order, gain in found["all_rows"]["over_random"].items():
                told = ", ".join(f"{key} {100 * gain['mean'][key]:+.2f}" for key in METRICS)
                print(f"{name}, {part}, by {order} over random orders: {told}")
    record = {"command": machine.command(sys.argv), "versions": library_versions()}
    write_records(values.output, {**record, "transformations": made})


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
