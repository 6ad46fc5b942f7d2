"""Trains the FCT transformation on the columns of a gallery; no image is read.

h(old embedding, side-information) approximates the new embedding (arXiv 2112.02805, section 3).
Writes WORKDIR/artifact and WORKDIR/saved_model, which upgrade_gallery and TF Serving load.

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=fct \
      --gallery=train.lance --source=embedding_old --side_info=side_info \
      --target=embedding_new --workdir=runs/fct
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags, logging
from ml_collections import ConfigDict

from fct_tf import cli, runs
from fct_tf import config as schema
from fct_tf.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.reader import to_rows
from fct_tf.models import artifact, transformation
from fct_tf.serving import export
from fct_tf.training import loop, losses, optimizers, schedules
from fct_tf.validation import validate

INPUTS = ("source_embedding", "side_info")  # of the transformation; the target is beside them


def train(
    config: ConfigDict,
    name: str,
    gallery_uri: str,
    source: str,
    target: str,
    workdir: str | Path,
    *,
    side_info: str = "",
    seed: int = 0,
    existing: runs.Existing = "refuse",
) -> Path:
    """Trains `config.transformations[name]` and returns `workdir`.

    Args:
      config: the experiment.
      name: which of its transformations.
      gallery_uri: the table of training rows, labels not needed.
      source, target: embedding columns to map from and to.
      workdir: gets `artifact/` and `saved_model/`.
      side_info: column of the side-information; empty for none.
      seed: of the initial weights and the order of rows.
      existing: what to do with a run that is there already.

    Raises:
      InputError: unknown name or column, too few rows, a working directory of other settings.
    """
    validate(config)
    if name not in config.transformations:
        known = ", ".join(config.transformations)
        raise InputError(f"--name={name}: not in the experiment's transformations ({known})")
    section, key = config.transformations[name], f"transformations.{name}"
    if section.side_info != bool(side_info):
        told = "name the column with --side_info" if section.side_info else "leave --side_info out"
        raise InputError(f"{key}.side_info is {section.side_info}: {told}")
    strategy = loop.setup(config.training, seed)
    gallery = table.open_gallery(gallery_uri)
    columns = {"source_embedding": gallery.column(source), "target": gallery.column(target)}
    if section.side_info:
        columns["side_info"] = gallery.column(side_info)
    dims = {role: column.dim for role, column in columns.items()}
    spaces = {role: column.space for role, column in columns.items()}
    settings = {
        "transformation": schema.to_dict(section),
        "spaces": spaces,
        "rows": _ids_sha256(gallery),  # They are trained on in the table's order.
        "seed": seed,
    }
    workdir = Path(workdir)
    output = workdir / "saved_model"
    if runs.begin(workdir, output, settings, existing, write=loop.is_chief(strategy)):
        return workdir

    seed = loop.stage_seed(seed, key)
    batch_size = section.batch_size
    views = max(1, section.views)
    steps_per_epoch = gallery.num_rows // views // batch_size
    total_steps = schema.duration_steps(section, "train", steps_per_epoch, key)
    with strategy.scope():
        model = transformation.build(
            dims["source_embedding"],
            dims["target"],
            dims.get("side_info"),
            hidden=section.hidden,
            bn_momentum=section.bn_momentum,
            bn_epsilon=section.bn_epsilon,
            initializer=section.initializer,
            dtype=section.dtype,
            normalize=columns["target"].distance == "cosine",
            seed=seed,
            sync_batch_norm=strategy.num_replicas_in_sync > 1,
        )
        schedule = schedules.learning_rate(section, steps_per_epoch, total_steps)
        optimizer = optimizers.build(section.optimizer, schedule)
        variables = model.trainable_variables
        optimizer.build(variables)

    def train_step(batch, phase):
        batch_norm_frozen = phase == 1
        inputs = {role: batch[role] for role in INPUTS if role in batch}
        with tf.GradientTape() as tape:
            # The transformation has no layer but BatchNorm that knows of `training`.
            embedding = model(inputs, training=not batch_norm_frozen)["embedding"]
            loss = tf.reduce_sum(losses.mse(embedding, batch["target"])) / batch_size
        gradients = tape.gradient(loss, variables)
        optimizers.descend(optimizer, gradients, variables, section.optimizer)
        return loss

    failures: list[InputError] = []
    read = _reader(gallery, columns, section.memory_gb, failures)
    freeze_step = math.ceil(section.freeze_bn_after * total_steps)

    def epoch_batches(epoch: int, skip: int) -> tf.data.Dataset:
        order = row_order(gallery.num_rows, views, seed, epoch)[: steps_per_epoch * batch_size]
        batches = order.reshape(steps_per_epoch, batch_size)[skip:]
        return read(tf.data.Dataset.from_tensor_slices(batches)).prefetch(2)

    loop.run(
        train_step,
        epoch_batches,
        {"model": model.variables, "optimizer": optimizer.variables},
        strategy=strategy,
        workdir=workdir,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        batch_size=batch_size,
        training=config.training,
        learning_rate=schedule,
        phases=(0, freeze_step),
        name=f"train {name}",
        unit="rows",
        failures=failures,
    )
    if loop.is_chief(strategy):
        artifact.save(
            workdir / "artifact",
            model,
            "transformation",
            {
                "name": name,
                "source_space": spaces["source_embedding"],
                "side_info_space": spaces.get("side_info"),
                "target_space": spaces["target"],
                "source_model": columns["source_embedding"].model,
                "side_info_model": columns["side_info"].model if section.side_info else None,
                "target_model": columns["target"].model,
                "distance": columns["target"].distance,
                "compatible_with": [spaces["target"]],
                "training": settings,
                "facts": {
                    "rows": gallery.num_rows,
                    "parameters": sum(int(np.prod(v.shape)) for v in variables),
                    "steps": total_steps,
                    "batch size": batch_size,
                },
            },
            overwrite=True,
        )
        # Last, since its presence says that the run has finished.
        export.export_transformation(workdir / "artifact", output)
    return workdir


def row_order(num_rows: int, views: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of one epoch in training order, int64.

    An epoch is a pass over as many rows as there are images: with several views of each image,
    as many epochs as views go through all rows once.
    """
    cycle, part = divmod(epoch, views)
    rows_per_epoch = num_rows // views
    order = np.random.default_rng([seed, cycle]).permutation(num_rows)
    return order[part * rows_per_epoch : (part + 1) * rows_per_epoch]


def _ids_sha256(gallery: table.Gallery) -> str:
    digest = hashlib.sha256()
    for rows in gallery.batches([], 65536):
        digest.update("\n".join([*rows.ids, ""]).encode("utf-8"))
    return digest.hexdigest()


def _reader(
    gallery: table.Gallery,
    columns: dict[str, table.Column],
    memory_gb: float,
    failures: list[InputError],
):
    """Maps a dataset of row numbers `[batch]` to batches of vectors, from memory or the table.

    What is wrong with a row is added to `failures` too: TensorFlow gives only text back.
    """
    names = {role: column.name for role, column in columns.items()}
    read_names = list(dict.fromkeys(names.values()))  # A column may have two roles.
    size_gb = gallery.num_rows * sum(4 * column.dim for column in columns.values()) / 1e9
    if size_gb <= memory_gb:
        vectors = gallery.read(read_names, with_ids=False).vectors
        with tf.device("CPU:0"):
            tensors = {role: tf.constant(vectors[name]) for role, name in names.items()}
        return lambda batches: batches.map(
            lambda rows: {role: tf.gather(tensor, rows) for role, tensor in tensors.items()}
        )
    logging.info("%.1f GB of rows: streamed from %s", size_gb, gallery.path)

    def read(rows: np.ndarray) -> list[np.ndarray]:
        # Lance reads rows in ascending order fastest; their order in a batch is of no account.
        taken = gallery.dataset.take(
            np.sort(rows).tolist(), columns=["id", *dict.fromkeys(names.values())]
        )
        batch = taken.combine_chunks().to_batches()[0]
        try:
            vectors = to_rows(batch, read_names, where=gallery.path).vectors
        except InputError as error:
            failures.append(error)
            raise
        return [vectors[name] for name in names.values()]

    def map_batch(rows):
        arrays = tf.numpy_function(read, [rows], [tf.float32] * len(names))
        for array, column in zip(arrays, columns.values(), strict=True):
            array.set_shape([rows.shape[0], column.dim])
        return dict(zip(names, arrays, strict=True))

    return lambda batches: batches.map(map_batch, num_parallel_calls=2)


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
    cli.define_training(values)


def main(values: flags.FlagValues) -> None:
    """Trains the transformation that the flags name."""
    existing: runs.Existing = "overwrite" if values.overwrite else "refuse"
    workdir = train(
        values.config,
        values.name,
        values.gallery,
        values.source,
        values.target,
        values.workdir,
        side_info=values.side_info,
        seed=values.seed,
        existing=existing,
    )
    print(workdir / "saved_model")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
