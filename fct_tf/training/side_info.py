"""The training of the side-information model: SimCLR on the old images."""

from pathlib import Path

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.config.checks import check_choice, check_numbers
from fct_tf.data import datasets
from fct_tf.models import artifact, backbone, preprocess
from fct_tf.training import loop, losses, optimizers, schedules


@loop.alone
def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    seed: int = 0,
    existing: runs.Existing = "refuse",
) -> Path:
    """Trains `config.side_info` and returns the path of its artifact.

    Raises:
      InputError: `side_info.method` is `none`, missing data, or a working directory of other
        settings or that another process works in.
    """
    section = config.side_info
    check_numbers(section, "side_info.")
    check_choice(section.method, ("simclr", "none"), "side_info.method")
    if section.method == "none":
        raise InputError("side_info.method: none needs no training; set simclr")
    strategy = loop.setup(config.training, seed)
    images = datasets.load(
        config.dataset.train,
        classes=schema.class_subset(section.classes, "side_info.classes"),
        **schema.load_arguments(config.dataset),
    )
    preprocessing = preprocess.preprocessing(
        config.dataset.preprocess, config.dataset.image_size, config.dataset.resize
    )
    settings = {
        # The classes are part of the images' fingerprint.
        "side_info": {k: v for k, v in schema.to_dict(section).items() if k != "classes"},
        "dataset": images.fingerprint,
        "preprocessing": preprocessing,
        "seed": seed,
    }
    output = Path(workdir) / "artifact"
    if runs.begin(workdir, output, settings, existing, write=loop.is_chief(strategy)):
        return output

    seed = loop.stage_seed(seed, "side_info")
    batch_size = section.batch_size
    steps_per_epoch = images.num_examples // batch_size
    total_steps = schema.duration_steps(section, "train", steps_per_epoch, "side_info")
    with strategy.scope():
        network = loop.with_sync_batch_norm(section.backbone, strategy)
        model = backbone.build(network, config.dataset.image_size, seed)
        head = _projection_head(network, section.projection_dim, seed)
        schedule = schedules.learning_rate(section, steps_per_epoch, total_steps)
        optimizer = optimizers.build(section.optimizer, schedule)
        variables = model.trainable_variables + head.trainable_variables
        optimizer.build(variables)

    def simclr_loss(batch):
        views = tf.concat([batch["image"], batch["image2"]], axis=0)
        projected = head(model(preprocess.apply(views, preprocessing), training=True))
        first, second = tf.split(projected, 2)
        return losses.nt_xent(first, second, section.temperature)

    def train_step(batch, phase):
        del phase
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(simclr_loss(batch)) / batch_size
        gradients = tape.gradient(loss, variables)
        optimizers.descend(optimizer, gradients, variables, section.optimizer)
        return loss

    loop.run(
        train_step,
        lambda epoch, skip: datasets.train_batches(
            images,
            batch_size,
            seed=seed,
            epoch=epoch,
            augment=section.augment,
            skip_batches=skip,
            views=2,
        ),
        {"model": model.variables, "head": head.variables, "optimizer": optimizer.variables},
        strategy=strategy,
        workdir=workdir,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        batch_size=batch_size,
        training=config.training,
        learning_rate=schedule,
        name=f"train {section.method}",
    )
    if loop.is_chief(strategy):
        artifact.save(
            output,
            model,
            "side_info",
            {
                "name": section.method,
                "preprocessing": preprocessing,
                "distance": "cosine" if section.backbone.normalize else "l2",
                "compatible_with": [],
                "training": settings,
                "facts": {
                    "images": images.num_examples,
                    "classes": len(images.classes),
                    "parameters": model.count_params(),
                    "steps": total_steps,
                    "batch size": batch_size,
                },
            },
        )
    return output


def _projection_head(network: ConfigDict, projection_dim: int, seed: int) -> keras.Model:
    """Dense, ReLU, Dense, as SimCLR's head; the loss normalises its output."""
    dim = network.embedding_dim
    dtype = "float64" if network.dtype == "float64" else "float32"
    inputs = keras.Input([dim], dtype=dtype)
    hidden = keras.layers.Dense(
        dim,
        activation="relu",
        kernel_initializer=keras.initializers.GlorotUniform(seed + 1),
        dtype=dtype,
    )(inputs)
    outputs = keras.layers.Dense(
        projection_dim,
        kernel_initializer=keras.initializers.GlorotUniform(seed + 2),
        dtype=dtype,
    )(hidden)
    return keras.Model(inputs, outputs)
