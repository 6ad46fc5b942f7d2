"""One transformation trained on images in every epoch, and on rows that were embedded once.

images: every batch is augmented and goes through the old, the side-information and the new model,
in every epoch, as the FCT authors' code does it. rows: the images are embedded once, as they are,
and the epochs read the stored vectors; the embedding counts as part of the time. Trainer,
experiment, seed, initial weights, order of the rows and number of steps are the same. Images are
held decoded in memory, so that neither way pays for decoding. Both ways end in an upgrade of the
same gallery, searched exactly by the new model's embeddings. quick: rows again, the same network
started from the ridge-affine map, so that half an epoch is enough.

  python benchmarks/rows_vs_images.py --config=configs/omniglot.py --name=fct \\
      --models=runs/omniglot/seed_0 --output=results/rows_vs_images.json

--models is a seed's directory of a study, with NAME/artifact of each model. The gallery is copied
from its rows/gallery, or embedded where that is missing. Target: ten times as fast, at an
accuracy within half a point.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fct_tf  # isort: skip  # noqa: F401  Before TensorFlow, which it sets up.
import machine
import numpy as np
import tensorflow as tf
from absl import flags
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.common.files import write_records
from fct_tf.data import datasets
from fct_tf.experiments.validate import validate
from fct_tf.ingest import embed_images
from fct_tf.models import artifact
from fct_tf.retrieval import two_columns
from fct_tf.training import rows, transformation
from fct_tf.upgrade import upgrade

MIN_SPEEDUP = 10.0
MAX_POINTS = 0.5
ACCURACIES = ("top_1", "top_5", "map")
QUICK: dict[str, Any] = {
    "affine_init": True,
    "train_epochs": 0,
    "train_steps": 40,
    "warmup_epochs": 0,
    "warmup_steps": 0,
    "dtype": "bfloat16",
}


def measure(config: ConfigDict, name: str, models_dir: Path, folder: Path, seed: int) -> dict:
    """Trains both ways below `folder` and returns times and accuracies."""
    validate(config)
    if name not in config.transformations:
        raise InputError(f"--name={name}: not in the experiment's transformations")
    section = config.transformations[name]
    if section.map != "mlp" or section.pairs.share:
        raise InputError(
            f"--name={name}: not trained once on the clean training images alone; name one that is"
        )
    models = models_of(config, name, models_dir)
    images, batch_size = load_images(config, "train"), config.training.embed_batch_size
    gallery = folder / "gallery.lance"
    there = models_dir / "rows" / "gallery" / "gallery.lance"
    if there.is_dir():
        shutil.copytree(there, gallery, copy_function=shutil.copyfile)
    else:
        embed(load_images(config, "gallery"), models, gallery, batch_size)
    columns = {role: column for role, (column, _) in models.items()}

    def train(way: str, settings: dict | None = None) -> None:
        wanted = config.copy_and_resolve_references()
        wanted.transformations[name].update(settings or {})
        transformation.train(
            wanted,
            name,
            str(folder / "train.lance"),
            columns["source_embedding"],
            columns["target"],
            folder / way,
            side_info=columns.get("side_info", ""),
            seed=seed,
        )

    augment = config.models[section.target].augment
    reader = ImagesReader(images, models, augment, seed)
    embedding = seconds(lambda: embed(images, models, folder / "train.lance", batch_size))
    training = seconds(lambda: train("rows"))
    quick = seconds(lambda: train("quick", QUICK))
    with mock.patch.object(rows, "reader", reader):
        on_images = seconds(lambda: train("images"))
    steps_per_epoch = images.num_examples // section.batch_size
    steps = schema.duration_steps(section, "train", steps_per_epoch, f"transformations.{name}")
    epochs = -(-steps // steps_per_epoch)
    # The trainer may have changed what it reads through; then both ways would be the same.
    if reader.epochs != epochs:
        raise RuntimeError(f"{reader.epochs} epochs of images were read instead of {epochs}")
    accuracy = {
        way: evaluate(config, folder / way, str(gallery), f"trained_on_{way}", columns)
        for way in ("images", "rows", "quick")
    }
    on_rows = [a + b for a, b in zip(embedding, training, strict=True)]
    quickly = [a + b for a, b in zip(embedding, quick, strict=True)]
    speedup = on_images[0] / on_rows[0]
    points, quick_points = (
        {key: 100 * (accuracy[way][key] - accuracy["images"][key]) for key in ACCURACIES}
        for way in ("rows", "quick")
    )
    return {
        "transformation": name,
        "images": machine.without_directories(images.name),
        "num_images": images.num_examples,
        "image_size": images.image_size,
        "augment": schema.to_dict(augment),
        "epochs": epochs,
        "steps": steps,
        "batch_size": section.batch_size,
        "seed": seed,
        "on_images": {
            "seconds": round(on_images[0], 1),
            "processor_s": round(on_images[1], 1),
            "images_per_s": round(steps * section.batch_size / on_images[0], 1),
            "accuracy": accuracy["images"],
        },
        "on_rows": {
            "seconds": round(on_rows[0], 1),
            "processor_s": round(on_rows[1], 1),
            "embedding_s": round(embedding[0], 1),
            "embedding_processor_s": round(embedding[1], 1),
            "embedded_images_per_s": round(images.num_examples / embedding[0], 1),
            "training_s": round(training[0], 1),
            "training_processor_s": round(training[1], 1),
            "rows_per_s": round(steps * section.batch_size / training[0], 1),
            "accuracy": accuracy["rows"],
        },
        "times_as_fast": round(speedup, 2),
        # Where other programs run too, this says more: it does not count the time they take.
        "times_as_fast_processor_time": round(on_images[1] / on_rows[1], 2),
        # With ever more epochs the embedding, done once, no longer counts.
        "times_as_fast_at_most": round(on_images[0] / training[0], 2),
        "points_above_images": {key: round(value, 2) for key, value in points.items()},
        "quick": {
            "settings": QUICK,
            "seconds": round(quickly[0], 1),
            "processor_s": round(quickly[1], 1),
            "training_s": round(quick[0], 1),
            "training_processor_s": round(quick[1], 1),
            "accuracy": accuracy["quick"],
            "times_as_fast": round(on_images[0] / quickly[0], 2),
            "times_as_fast_processor_time": round(on_images[1] / quickly[1], 2),
            "points_above_images": {key: round(v, 2) for key, v in quick_points.items()},
        },
        "targets": {"times_as_fast": MIN_SPEEDUP, "points": MAX_POINTS},
        "passed": speedup >= MIN_SPEEDUP and all(v >= -MAX_POINTS for v in points.values()),
    }


def models_of(config: ConfigDict, name: str, directory: Path) -> dict[str, tuple[str, Path]]:
    """role -> (column, artifact) of what the transformation reads and predicts."""
    section = config.transformations[name]
    names = {"source_embedding": section.source, "target": section.target}
    found = {role: (f"embedding_{model}", directory / model) for role, model in names.items()}
    if section.side_info:
        found["side_info"] = ("side_info", directory / "side_info")
    return {role: (column, path / "artifact") for role, (column, path) in found.items()}


def load_images(config: ConfigDict, role: str) -> datasets.ImageSet:
    """The training or gallery images of the experiment."""
    subset = config.dataset.gallery_classes if role == "gallery" else None
    classes = schema.class_subset(subset, "dataset.gallery_classes") if subset else None
    arguments = schema.load_arguments(config.dataset)
    return datasets.load(config.dataset[role], classes=classes, **{**arguments, "cache": "memory"})


def embed(images: datasets.ImageSet, models: dict, path: Path, batch_size: int) -> str:
    """A gallery with a column for each model."""
    for column, model in models.values():
        embed_images.embed_gallery(str(path), images, str(model), column, batch_size=batch_size)
    return str(path)


class ImagesReader:
    """Takes the place of `rows.reader`: what is read are images, embedded anew in every epoch.

    A row's number is its image's, as `embed` wrote them. An epoch's views are a function of seed,
    epoch and image. `epochs` counts those that were read.
    """

    def __init__(self, images: datasets.ImageSet, models: dict, augment: ConfigDict, seed: int):
        self.epochs = 0
        batches = datasets.eval_batches(images, 1024).as_numpy_iterator()
        pixels = np.concatenate([batch["image"] for batch in batches])
        with tf.device("CPU:0"):
            self._pixels = tf.constant(pixels)
        self._images, self._augment, self._seed = images, augment, seed
        self._networks = {role: artifact.load(path).embed for role, (_, path) in models.items()}

    def __call__(self, galleries, columns, memory_gb, failures) -> rows.Read:
        del galleries, columns, memory_gb, failures
        return self._read

    def _read(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        view, self.epochs = self.epochs, self.epochs + 1
        dataset = batches.map(lambda row: {"image": tf.gather(self._pixels, row), "index": row})
        views = datasets.augmented(dataset, self._images, self._augment, seed=self._seed, view=view)
        return views.map(
            lambda batch: {role: run(batch["image"]) for role, run in self._networks.items()}
        )


def evaluate(config: ConfigDict, trained: Path, gallery: str, column: str, columns: dict) -> dict:
    """Upgrades the gallery and searches it by the new model's embeddings: fractions."""
    request = upgrade.Upgrade(
        gallery,
        trained / "saved_model",
        column,
        source=columns["source_embedding"],
        side_info=columns.get("side_info", ""),
    )
    upgraded = request.run().gallery
    record = two_columns.evaluate(
        upgraded, columns["target"], upgraded, column, ks=(1, 5), bootstrap=0
    )
    return {"top_1": record["cmc"]["1"], "top_5": record["cmc"]["5"], "map": record["map"]}


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Time on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def define_flags(values: flags.FlagValues) -> None:
    """The benchmark's flags."""
    cli.define_config(values)
    for name, text in (
        ("name", "Which of the experiment's transformations."),
        ("models", "A seed's directory of a study of this experiment."),
        ("output", "JSON file to write."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of both trainings.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Measures, prints what came out, writes the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(
            values.config, values.name, Path(values.models), Path(folder), values.seed
        )
    record = {
        "benchmark": "rows_vs_images",
        **machine.about(sys.argv),
        **measured,
        "settings": schema.to_dict(values.config.transformations[values.name]),
    }
    write_records(values.output, record)
    for way in ("on_images", "on_rows", "quick"):
        scores = ", ".join(f"{k} {100 * v:.1f} %" for k, v in record[way]["accuracy"].items())
        print(f"{way.replace('_', ' ')}: {record[way]['seconds']:,} s, {scores}")
    print(
        f"rows: {record['times_as_fast']} times as fast, "
        f"{record['times_as_fast_processor_time']} by processor time, at most "
        f"{record['times_as_fast_at_most']} with more epochs; "
        f"targets {'passed' if record['passed'] else 'missed'}; quick: "
        f"{record['quick']['times_as_fast']} times as fast, "
        f"{record['quick']['times_as_fast_processor_time']} by processor time"
    )


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
