"""The training of an embedding model as a classifier; BCT and its like are terms of the loss."""

from pathlib import Path

import tensorflow as tf
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.config.checks import check_keys, check_model, check_numbers
from fct_tf.data import datasets
from fct_tf.models import artifact, backbone, preprocess
from fct_tf.training import compatibility, loop, losses, margins, old_model, optimizers, schedules


@loop.alone
def train(
    config: ConfigDict,
    name: str,
    workdir: str | Path,
    *,
    seed: int = 0,
    existing: runs.Existing = "refuse",
    old: str | Path | None = None,
    gallery: str | Path | None = None,
    column: str = "",
) -> Path:
    """Trains `config.models[name]` and returns the path of its artifact.

    The new model sees augmented views of the images in all terms. What the terms `l2`,
    `triplet`, `contrastive` and the distillation of `bct` compare it with is the stored old
    embedding of the clean image: one row read instead of one pass of the old backbone.

    Args:
      config: the experiment.
      name: which of its models.
      workdir: gets `artifact/`.
      seed: of the initial weights, the order of the images and their augmentation.
      existing: what to do with a run that is there already.
      old: artifact of the model to be compatible with; needed by `bct`.
      gallery: table with the old embeddings of the training images, matched by id; not needed
        by `bct` where no image of an unseen class counts.
      column: their column; empty: `embedding_<compatibility.old>`.

    Raises:
      InputError: unknown model, missing data, an image without an old embedding, or a working
        directory of other settings or that another process works in.
    """
    if name not in config.models:
        raise InputError(f"``model={name}``: not in the experiment ({', '.join(config.models)})")
    section, key = config.models[name], f"models.{name}"
    if "column" in section:
        raise InputError(f"{key}.column: {section.column!r} is stored, there is nothing to train")
    check_keys(section, schema.model(), f"{key}.")
    check_numbers(section, f"{key}.")
    check_model(section, key)
    strategy = loop.setup(config.training, seed)
    images = datasets.load(
        config.dataset.train,
        classes=schema.class_subset(section.classes, f"{key}.classes"),
        **schema.load_arguments(config.dataset),
    )
    settings = {
        "model": _recorded(section),
        "dataset": images.fingerprint,
        "image_size": config.dataset.image_size,
        "preprocess": config.dataset.preprocess,
        "seed": seed,
    }
    term, head = section.compatibility, section.head
    frozen: old_model.OldModel | None = None
    if term.method != "none":
        frozen = old_model.open_old(term, f"{key}.compatibility", images, old, gallery, column)
        settings["old"] = frozen.recorded
    elif old or gallery:
        raise InputError(f"{key}.compatibility.method is none: leave ``old`` and ``gallery`` out")
    output = Path(workdir) / "artifact"
    if runs.begin(workdir, output, settings, existing, write=loop.is_chief(strategy)):
        return output

    num_classes = len(images.classes)
    if not num_classes:
        raise InputError(f"{images.name}: its images have no labels; a classifier needs them")
    num_outputs = section.num_outputs or num_classes
    if num_outputs < num_classes:
        raise InputError(f"{key}.num_outputs={num_outputs}: there are {num_classes} classes")
    if frozen:
        frozen = old_model.read(frozen, term, images)
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
            num_outputs, network.embedding_dim, seed + 1, network.dtype
        )
        schedule = schedules.learning_rate(section, steps_per_epoch, total_steps)
        optimizer = optimizers.build(section.optimizer, schedule)
        variables = model.trainable_variables
        if term.classification:
            variables = variables + classifier.trainable_variables
        optimizer.build(variables)

    def compatibility_loss(frozen, embedding, batch):
        embedding, labels = compatibility.match_dims(embedding, frozen.dim), batch["label"]
        if term.method == "l2":
            return losses.mse(embedding, batch["old"])
        if term.method == "triplet":
            return compatibility.triplet(embedding, batch["old"], labels, term.margin)
        if term.method == "contrastive":
            return compatibility.contrastive(embedding, batch["old"], labels, term.temperature)
        return compatibility.bct(
            embedding,
            tf.gather(frozen.labels, labels),
            frozen.classifier,
            batch.get("old"),
            smoothing=section.label_smoothing,
            scale=frozen.scale,
            temperature=term.distil_temperature,
        )

    def train_step(batch, phase):
        del phase
        pixels = preprocess.apply(batch["image"], preprocessing)
        with tf.GradientTape() as tape:
            embedding = model(pixels, training=True)
            loss = tf.zeros([], embedding.dtype)
            if term.classification:
                logits = margins.logits(head, embedding, classifier.kernel, batch["label"])
                terms = losses.cross_entropy(logits, batch["label"], section.label_smoothing)
                loss += tf.reduce_sum(terms)
            if frozen:
                loss += term.weight * tf.reduce_sum(compatibility_loss(frozen, embedding, batch))
            loss /= batch_size
        gradients = tape.gradient(loss, variables)
        optimizers.descend(optimizer, gradients, variables, section.optimizer)
        return loss

    def epoch_batches(epoch: int, skip: int) -> tf.data.Dataset:
        batches = datasets.train_batches(
            images,
            batch_size,
            seed=seed,
            epoch=epoch,
            augment=section.augment,
            skip_batches=skip,
        )
        return old_model.with_embeddings(batches, frozen) if frozen else batches

    loop.run(
        train_step,
        epoch_batches,
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
        scale = margins.settings(head).get("scale")
        weights = (classifier.kernel.numpy()[:, :num_classes], images.classes)
        artifact.save(
            output,
            model,
            "backbone",
            {
                "name": name,
                "preprocessing": preprocessing,
                "distance": "cosine" if section.backbone.normalize or scale else "l2",
                "compatible_with": [frozen.space] if frozen else [],
                "classifier_scale": scale,
                "training": settings,
                "facts": {
                    "images": images.num_examples,
                    "classes": num_classes,
                    "parameters": model.count_params() + classifier.count_params(),
                    "steps": total_steps,
                    "batch size": batch_size,
                },
            },
            classifier=weights if term.classification else None,
        )
    return output


def _recorded(section: ConfigDict) -> dict:
    """A model's settings as its run is recognised by.

    The classes are part of the images' fingerprint; where their file lies makes no difference.
    """
    return {key: value for key, value in schema.to_dict(section).items() if key != "classes"}
