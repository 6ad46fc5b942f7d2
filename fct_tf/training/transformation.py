"""The training of a transformation on the columns of a gallery; no image is read."""

import contextlib
import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import export, transformation
from fct_tf.training import (
    closed_form,
    fused,
    loop,
    losses,
    margins,
    optimizers,
    rows,
    schedules,
)
from fct_tf.training.task import Task, open_task, save
from fct_tf.upgrade.backfilled import staged_pairs

INPUTS = ("source_embedding", "side_info")  # of the transformation; the target is beside them


@loop.alone
def train(
    config: ConfigDict,
    name: str,
    gallery: str,
    source: str,
    target: str,
    workdir: str | Path,
    *,
    side_info: str = "",
    pairs: str = "",
    backfilled: str = "",
    sources: str = "",
    base: str | Path = "",
    classifier: str | Path = "",
    classifier_labels: str | Path = "",
    seed: int = 0,
    existing: runs.Existing = "refuse",
) -> Path:
    """Trains `config.transformations[name]` and returns `workdir`.

    Args:
      config: the experiment.
      name: which of its transformations.
      gallery: the table of training rows; labels serve the choice of the ridge and the
        discriminative term only.
      source, target: embedding columns to map from and to.
      workdir: gets `artifact/` and `saved_model/`.
      side_info: column of the side-information; empty for none.
      pairs: table of gallery rows with the same columns, where the experiment wants pairs.
      backfilled: a transformed column of `pairs`, which is the gallery itself then: the rows
        backfilled in that column are the pairs.
      sources: the gallery that this column was made from, if it lies in a gallery of its own.
      base: working directory or artifact of the transformation that is the base.
      classifier: of the model behind `target`, for the discriminative term: its artifact or a
        file, see `fct_tf.training.frozen_classifier.open_classifier`.
      classifier_labels: its label names, where it is a `.npy` file.
      seed: of the initial weights and the order of rows.
      existing: what to do with a run that is there already.

    Raises:
      InputError: unknown name or column, too few rows, a classifier that does not fit, a working
        directory of other settings or that another process works in.
    """
    if backfilled:
        if not pairs:
            raise InputError(
                f"``backfilled={backfilled}``: of which gallery? name it with ``pairs``"
            )
        if config.training.strategy == "multi_worker":
            raise InputError(
                f"``backfilled={backfilled}``: not with training.strategy multi_worker; let "
                "sample_gallery --backfilled make the table of pairs first"
            )
    elif sources:
        raise InputError(f"``sources={sources}``: goes with ``backfilled``; leave it out")
    workdir = Path(workdir)
    kept, output = workdir / "pairs.lance", workdir / "saved_model"
    started = existing != "overwrite" and any(
        os.path.lexists(workdir / name) for name in runs.TRAINING
    )
    with (
        staged_pairs(pairs, backfilled, target, kept, sources=sources, started=started)
        if backfilled
        else contextlib.nullcontext(pairs)
    ) as pairs_uri:
        task = open_task(
            config,
            name,
            gallery,
            source,
            target,
            side_info=side_info,
            pairs=str(pairs_uri),
            base=base,
            classifier=classifier,
            classifier_labels=classifier_labels,
            seed=seed,
        )
        if task.fused:
            fused.check(task)
        strategy = loop.setup(config.training, seed)
        settings = task.settings()
        chief = loop.is_chief(strategy)
        if runs.begin(workdir, output, settings, existing, write=chief):
            return workdir
    if backfilled:
        moved = [task.galleries[0], table.open_gallery(str(kept))]
        task = dataclasses.replace(task, galleries=moved)

    model: Any = task.base.model if task.base else None
    chosen: dict = {}
    facts: dict = {}
    begun = time.perf_counter()
    if not task.base:
        model, chosen, facts = _fit(task, strategy, workdir)
        begun = time.perf_counter() if facts else begun  # A training counts its own time.
    uncorrected = model
    if pairs and task.section.pairs.method == "kernel":
        pairs_given = (task.galleries[1], task.columns, task.section, task.stage_seed)
        model, correction = closed_form.correct(model, *pairs_given)
        chosen = {**chosen, "correction": correction}
    if task.fused:
        model, fusion = fused.fuse(task, model, uncorrected)
        chosen = {**chosen, "fusion": fusion}
    if task.section.map != "mlp" or "correction" in chosen or task.base:
        facts = {**facts, "fit_s": time.perf_counter() - begun}
    if chief:
        save(task, model, workdir / "artifact", settings, chosen, facts)
        # Last, since its presence says that the run has finished.
        export.export_transformation(workdir / "artifact", output)
    return workdir


def _fit(
    task: Task, strategy: tf.distribute.Strategy, workdir: Path
) -> tuple[keras.Model, dict, dict]:
    """The map without its correction, what was chosen to solve for it, and facts."""
    section = task.section
    if section.map != "mlp":
        affine, chosen = closed_form.fit_affine(task.fitted_on, task.columns, section)
        dims = (task.dims["source_embedding"], task.dims.get("side_info"))
        return transformation.build_affine(*dims, affine, normalize=task.unit_length), chosen, {}
    model, facts = _train_network(task, strategy, workdir)
    return model, {}, facts


def _train_network(
    task: Task, strategy: tf.distribute.Strategy, workdir: Path
) -> tuple[keras.Model, dict]:
    """Trains the paper's network; returns it and facts."""
    section, columns, galleries = task.section, task.columns, task.fitted_on
    count = galleries[0].num_rows
    with_pairs = len(galleries) > 1
    pair_rows = np.arange(count, count + galleries[-1].num_rows) if with_pairs else None
    batch_size = section.batch_size
    steps_per_epoch = count // batch_size
    total_steps = schema.duration_steps(section, "train", steps_per_epoch, task.key)
    affine = None
    if section.affine_init:
        affine, _ = closed_form.fit_affine(galleries, columns, section)
    with strategy.scope():
        model = transformation.build(
            task.dims["source_embedding"],
            task.dims["target"],
            task.dims.get("side_info"),
            hidden=section.hidden,
            affine=affine,
            log_variance=section.uncertainty != "none",
            bn_momentum=section.bn_momentum,
            bn_epsilon=section.bn_epsilon,
            dtype=section.dtype,
            normalize=task.unit_length,
            seed=task.stage_seed,
            sync_batch_norm=strategy.num_replicas_in_sync > 1,
        )
        schedule = schedules.learning_rate(section, steps_per_epoch, total_steps)
        optimizer = optimizers.build(section.optimizer, schedule)
        variables = model.trainable_variables
        optimizer.build(variables)
    weights = tf.constant(task.classifier.weights) if task.classifier else None

    def train_step(batch, phase):
        batch_norm_frozen = phase == 1
        inputs = {role: batch[role] for role in INPUTS if role in batch}
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=not batch_norm_frozen)
            embedding = outputs["embedding"]
            loss = losses.mse(embedding, batch["target"])
            if task.classifier:
                logits = margins.frozen_logits(embedding, weights, task.classifier.scale)
                loss += section.discriminative_weight * losses.discriminative(
                    logits, batch["label"], section.label_smoothing
                )
            if section.uncertainty == "heteroscedastic":
                loss = losses.heteroscedastic(loss, outputs["log_variance"])
            loss = tf.reduce_sum(loss) / batch_size
        gradients = tape.gradient(loss, variables)
        optimizers.descend(optimizer, gradients, variables, section.optimizer)
        return loss

    failures: list[InputError] = []
    read = rows.reader(galleries, columns, section.memory_gb, failures)
    if task.labels is not None:
        read = rows.with_labels(read, task.labels)
    freeze_step = math.ceil(section.freeze_bn_after * total_steps)
    loop.run(
        train_step,
        rows.epoch_batches(read, section, count, pair_rows, steps_per_epoch, task.stage_seed),
        {"model": model.variables, "optimizer": optimizer.variables},
        strategy=strategy,
        workdir=workdir,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        batch_size=batch_size,
        training=task.config.training,
        learning_rate=schedule,
        phases=(0, freeze_step),
        name=f"train {task.name}",
        unit="rows",
        failures=failures,
    )
    return model, {"steps": total_steps, "batch size": batch_size}
