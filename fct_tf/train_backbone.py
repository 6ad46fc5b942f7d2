"""Trains one embedding model (old, new, or any version of it) as a classifier.

Writes WORKDIR/artifact (the model, its classifier and model.json), WORKDIR/checkpoints,
WORKDIR/tensorboard and WORKDIR/metrics.jsonl. Started again, it continues.

  python -m fct_tf.train_backbone --config=configs/omniglot.py --model=old --workdir=runs/old
"""

from pathlib import Path

import tensorflow as tf
from absl import flags
from ml_collections import ConfigDict

from fct_tf import cli, runs
from fct_tf import config as schema
from fct_tf.data import datasets
from fct_tf.errors import InputError
from fct_tf.models import artifact, backbone, preprocess
from fct_tf.training import loop, losses, optimizers, schedules
from fct_tf.validation import validate


def train(
    config: ConfigDict,
    name: str,
    workdir: str | Path,
    *,
    seed: int = 0,
    existing: runs.Existing = "refuse",
) -> Path:
    """Trains `config.models[name]` and returns the path of its artifact.

    Raises:
      InputError: unknown model, missing data, or a working directory of other settings.
    """
    validate(config)
    if name not in config.models:
        raise InputError(f"--model={name}: not in the experiment ({', '.join(config.models)})")
    section, key = config.models[name], f"models.{name}"
    strategy = loop.setup(config.training, seed)
    images = datasets.load(
        config.dataset.train,
        classes=schema.class_subset(section.classes, f"{key}.classes"),
        **schema.load_arguments(config.dataset),
    )
    settings = {
        "model": _recorded(section),
        "dataset": {"name": images.name, "fingerprint": images.fingerprint},
        "image_size": config.dataset.image_size,
        "preprocess": config.dataset.preprocess,
        "seed": seed,
    }
    output = Path(workdir) / "artifact"
    if runs.begin(workdir, output, settings, existing, write=loop.is_chief(strategy)):
        return output

    num_classes = len(images.classes)
    if not num_classes:
        raise InputError(f"{images.name}: its images have no labels; a classifier needs them")
    num_outputs = section.num_outputs or num_classes
    if num_outputs < num_classes:
        raise InputError(f"{key}.num_outputs={num_outputs}: there are {num_classes} classes")
    seed = loop.stage_seed(seed, key)
    batch_size = section.batch_size
    steps_per_epoch = images.num_examples // batch_size
    total_steps = schema.duration_steps(section, "train", steps_per_epoch, key)
    preprocessing = preprocess.preprocessing(
        config.dataset.preprocess, config.dataset.image_size, config.dataset.resize
    )
    with strategy.scope():
        network = loop.with_sync_batch_norm(section.backbone, strategy)
        model = backbone.build(network, config.dataset.image_size, seed)
        classifier = backbone.classifier(
            num_outputs, network.embedding_dim, network.initializer, seed + 1, network.dtype
        )
        schedule = schedules.learning_rate(section, steps_per_epoch, total_steps)
        optimizer = optimizers.build(section.optimizer, schedule)
        variables = model.trainable_variables + classifier.trainable_variables
        optimizer.build(variables)

    def train_step(batch, phase):
        del phase
        pixels = preprocess.apply(batch["image"], preprocessing)
        with tf.GradientTape() as tape:
            logits = classifier(model(pixels, training=True))
            loss = losses.cross_entropy(logits, batch["label"], section.label_smoothing)
            loss = tf.reduce_sum(loss) / batch_size
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
        ),
        {
            "model": model.variables,
            "classifier": classifier.variables,
            "optimizer": optimizer.variables,
        },
        strategy=strategy,
        workdir=workdir,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        batch_size=batch_size,
        training=config.training,
        learning_rate=schedule,
        name=f"train {name}",
    )
    if loop.is_chief(strategy):
        weights = classifier.kernel.numpy()[:, :num_classes]
        artifact.save(
            output,
            model,
            "backbone",
            {
                "name": name,
                "preprocessing": preprocessing,
                "distance": "cosine" if section.backbone.normalize else "l2",
                "compatible_with": [],
                "training": settings,
                "facts": {
                    "images": images.num_examples,
                    "classes": num_classes,
                    "parameters": model.count_params() + classifier.count_params(),
                    "steps": total_steps,
                    "batch size": batch_size,
                },
            },
            classifier=(weights, images.classes),
        )
    return output


def _recorded(section: ConfigDict) -> dict:
    """A model's settings as its run is recognised by; what is not in use stays out of them.

    So a run of before there was a choice of heads and compatibility is still the same run.
    """
    recorded = schema.to_dict(section)
    if section.head.name == "linear":
        del recorded["head"]
    if section.compatibility.method == "none":
        del recorded["compatibility"]
    return recorded


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""
    cli.define_config(values)
    flags.DEFINE_string(
        "model", None, "Which of the experiment's models.", required=True, flag_values=values
    )
    cli.define_training(values)


def main(values: flags.FlagValues) -> None:
    """Trains the model that the flags name."""
    existing: runs.Existing = "overwrite" if values.overwrite else "refuse"
    path = train(values.config, values.model, values.workdir, seed=values.seed, existing=existing)
    print(path)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
