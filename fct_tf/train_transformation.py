"""Trains the FCT transformation on the columns of a gallery; no image is read.

h(old embedding, side-information) approximates the new embedding (arXiv 2112.02805, section 3).
Writes WORKDIR/artifact and WORKDIR/saved_model, which upgrade_gallery and TF Serving load.

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=fct \\
      --gallery=train.lance --source=embedding_old --side_info=side_info \\
      --target=embedding_new --workdir=runs/fct

A sample of the gallery itself that the new model has re-embedded (sample_gallery makes it) mends
what training rows of other classes cannot teach; this takes seconds on a trained transformation:

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=fct_pairs \\
      --gallery=train.lance --source=embedding_old --side_info=side_info \\
      --target=embedding_new --pairs=pairs.lance --base=runs/fct --workdir=runs/fct_pairs

The same with the columns the other way round makes a query-side map, T(new)/old: it runs over the
new model's queries, and the gallery stays as it is.

  python -m fct_tf.train_transformation --config=configs/omniglot.py --name=affine_query \\
      --gallery=train.lance --source=embedding_new --target=embedding_old \\
      --workdir=runs/affine_query
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging
from ml_collections import ConfigDict

from fct_tf import cli, runs
from fct_tf import config as schema
from fct_tf.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import artifact, transformation
from fct_tf.serving import export
from fct_tf.training import closed_form, loop, losses, optimizers, rows, schedules, selection
from fct_tf.validation import validate

INPUTS = ("source_embedding", "side_info")  # of the transformation; the target is beside them
MADE = (*runs.TRAINING, "candidates", selection.SCORES, selection.BEST)


@dataclass(frozen=True)
class Task:
    """What a transformation is fitted on and how; `galleries` are the table and the pairs."""

    name: str
    config: ConfigDict
    galleries: Sequence[table.Gallery]
    columns: dict[str, table.Column]  # by role: source_embedding, target, perhaps side_info
    seed: int

    @property
    def section(self) -> ConfigDict:
        return self.config.transformations[self.name]


def train(
    config: ConfigDict,
    name: str,
    gallery_uri: str,
    source: str,
    target: str,
    workdir: str | Path,
    *,
    side_info: str = "",
    pairs: str = "",
    base: str | Path = "",
    seed: int = 0,
    existing: runs.Existing = "refuse",
) -> Path:
    """Trains `config.transformations[name]` and returns `workdir`.

    Args:
      config: the experiment.
      name: which of its transformations.
      gallery_uri: the table of training rows; labels serve the choice on held-out classes only.
      source, target: embedding columns to map from and to.
      workdir: gets `artifact/` and `saved_model/`.
      side_info: column of the side-information; empty for none.
      pairs: table of gallery rows with the same columns, where the experiment wants pairs.
      base: working directory or artifact of the transformation that is the base.
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
    for given, flag, wanted in (
        (side_info, "side_info", section.side_info),
        (pairs, "pairs", section.pairs.share),
        (base, "base", section.base),
    ):
        if bool(given) != bool(wanted):
            told = f"name it with --{flag}" if wanted else f"leave --{flag} out"
            raise InputError(f"{key}.{flag}{'.share' * (flag == 'pairs')} is {wanted!r}: {told}")
    if section.compose:
        raise InputError(
            f"{key}.compose: there is nothing to train; train {', '.join(section.compose)}, then "
            "upgrade the gallery with one after the other"
        )
    strategy = loop.setup(config.training, seed)
    galleries = [table.open_gallery(uri) for uri in (gallery_uri, pairs) if uri]
    names = {"source_embedding": source, "target": target}
    if side_info:
        names["side_info"] = side_info
    columns = {role: galleries[0].column(column) for role, column in names.items()}
    for gallery in galleries:
        if not gallery.num_rows:
            raise InputError(f"{gallery.path}: has no rows; name a table with some")
    for column in columns.values():
        _check_same_space(galleries, column)
    spaces = {role: column.space for role, column in columns.items()}
    start = _open_base(base, spaces) if base else None
    settings = {
        "transformation": _recorded(section),
        "spaces": spaces,
        # They are trained on in the table's order.
        **{role: rows.ids_sha256(g) for role, g in zip(("rows", "pairs"), galleries, strict=False)},
        **({"base": start.space} if start else {}),
        "seed": seed,
    }
    workdir = Path(workdir)
    output = workdir / "saved_model"
    chief = loop.is_chief(strategy)
    if runs.begin(workdir, output, settings, existing, makes=MADE, write=chief):
        return workdir

    task = Task(name, config, galleries, columns, loop.stage_seed(seed, key))
    model: Any = start.model if start else None
    chosen: dict = {}
    facts: dict = {}
    started = time.perf_counter()
    if not start:
        model, chosen, facts = _fit(task, strategy, workdir)
        started = time.perf_counter() if facts else started  # A training counts its own time.
    if pairs and section.pairs.method == "kernel":
        model, correction = closed_form.correct(model, galleries[1], columns, section, task.seed)
        chosen = {**chosen, "correction": correction}
    if section.map != "mlp" or "correction" in chosen:
        facts = {**facts, "fit_s": time.perf_counter() - started}
    parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    if chief:
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
                "side_info_model": columns["side_info"].model if side_info else None,
                "target_model": columns["target"].model,
                "distance": columns["target"].distance,
                "compatible_with": [spaces["target"]],
                "training": settings,
                "chosen": chosen,
                "facts": {
                    "rows": galleries[0].num_rows,
                    **({"pairs": galleries[1].num_rows} if pairs else {}),
                    "parameters": parameters,
                    **facts,
                },
            },
            overwrite=True,
        )
        # Last, since its presence says that the run has finished.
        export.export_transformation(workdir / "artifact", output)
    return workdir


def _recorded(section: ConfigDict) -> dict:
    """A transformation's settings as its run is recognised by.

    Where it is used, on the gallery or on queries, is of no account; `compose` is for those that
    are not trained.
    """
    recorded = schema.to_dict(section)
    del recorded["side"], recorded["compose"]
    return recorded


def _check_same_space(galleries: Sequence[table.Gallery], column: table.Column) -> None:
    there = galleries[-1].column(column.name)
    if there.space != column.space:
        raise InputError(
            f"{galleries[-1].path}: column {column.name!r} is of {there.model} ({there.space}), in "
            f"{galleries[0].path} of {column.model} ({column.space}); embed both with one model"
        )


def _open_base(path: str | Path, spaces: dict[str, str]) -> artifact.Artifact:
    path = Path(path)
    base = artifact.load(path / "artifact" if (path / "artifact").is_dir() else path)
    roles = {"source_space": "source_embedding", "side_info_space": "side_info"}
    for key, role in {**roles, "target_space": "target"}.items():
        if base.info.get(key) != spaces.get(role):
            raise InputError(
                f"{path}: its {key} is {base.info.get(key)}, the column's is {spaces.get(role)}; "
                "name a transformation between these columns' models"
            )
    if "correction" in base.info.get("chosen", {}):
        raise InputError(f"{path}: is corrected by pairs already; name the one that it came from")
    return base


def _fit(
    task: Task, strategy: tf.distribute.Strategy, workdir: Path
) -> tuple[keras.Model, dict, dict]:
    """The map without its correction, what was chosen on held-out classes, and facts."""
    section = task.section
    kernel = section.pairs.method == "kernel"
    galleries = task.galleries[:1] if kernel else task.galleries
    if section.map != "mlp":
        affine, chosen = closed_form.fit_affine(galleries, task.columns, section)
        dims = {role: column.dim for role, column in task.columns.items()}
        unit_length = task.columns["target"].distance == "cosine"
        return (
            transformation.build_affine(
                dims["source_embedding"], dims.get("side_info"), affine, normalize=unit_length
            ),
            chosen,
            {},
        )
    tried = []
    for l2 in section.validation.l2 or (section.optimizer.l2,):
        directory = workdir / "candidates" / f"{l2:g}" if section.validation.l2 else workdir
        tried.append((l2, *_train_network(task, strategy, directory, galleries, l2)))
    l2, model, facts, score = max(tried, key=lambda one: selection.value(one[3]) if one[3] else 0)
    if score is None:
        return model, {}, facts
    chosen = {"l2": l2, **score, "tried": {f"{one[0]:g}": one[3] for one in tried}}
    logging.info("%s: chosen on held-out classes: %s", task.name, chosen)
    return model, chosen, facts


def _train_network(
    task: Task,
    strategy: tf.distribute.Strategy,
    workdir: Path,
    galleries: Sequence[table.Gallery],
    l2: float,
) -> tuple[keras.Model, dict, dict | None]:
    """Trains the paper's network; returns it, facts, its score on held-out classes if any are."""
    section, columns, seed = task.section, task.columns, task.seed
    key = f"transformations.{task.name}"
    gallery, count = galleries[0], galleries[0].num_rows
    validating = bool(section.validation.share)
    mask = selection.held_out(gallery, section.validation.share) if validating else None
    trained = np.arange(count) if mask is None else np.flatnonzero(~mask)
    with_pairs = len(galleries) > 1
    pair_rows = np.arange(count, count + galleries[-1].num_rows) if with_pairs else None
    batch_size = section.batch_size
    views = max(1, section.views)
    steps_per_epoch = len(trained) // views // batch_size
    total_steps = schema.duration_steps(section, "train", steps_per_epoch, key)
    affine = None
    if section.affine_init:
        affine, _ = closed_form.fit_affine(galleries, columns, section, left_out=mask)
    dims = {role: column.dim for role, column in columns.items()}
    with strategy.scope():
        model = transformation.build(
            dims["source_embedding"],
            dims["target"],
            dims.get("side_info"),
            hidden=section.hidden,
            dropout=section.dropout,
            affine=affine,
            bn_momentum=section.bn_momentum,
            bn_epsilon=section.bn_epsilon,
            initializer=section.initializer,
            dtype=section.dtype,
            normalize=columns["target"].distance == "cosine",
            seed=seed,
            sync_batch_norm=strategy.num_replicas_in_sync > 1,
        )
        schedule = schedules.learning_rate(section, steps_per_epoch, total_steps)
        settings = ConfigDict({**section.optimizer, "l2": l2})
        optimizer = optimizers.build(settings, schedule)
        variables = model.trainable_variables
        optimizer.build(variables)

    def train_step(batch, phase):
        batch_norm_frozen = phase == 1
        inputs = {role: batch[role] for role in INPUTS if role in batch}
        with tf.GradientTape() as tape:
            # `training` is BatchNorm's, and with it dropout's.
            embedding = model(inputs, training=not batch_norm_frozen)["embedding"]
            loss = losses.mse(embedding, batch["target"])
            if section.ranking_weight:
                ranked = losses.ranking(batch["target"], embedding, section.ranking_temperature)
                loss += section.ranking_weight * ranked
            loss = tf.reduce_sum(loss) / batch_size
        gradients = tape.gradient(loss, variables)
        optimizers.descend(optimizer, gradients, variables, settings)
        return loss

    failures: list[InputError] = []
    read = rows.reader(galleries, columns, section.memory_gb, failures)
    freeze_step = math.ceil(section.freeze_bn_after * total_steps)

    def epoch_batches(epoch: int, skip: int) -> tf.data.Dataset:
        order = trained[rows.epoch_order(len(trained), views, seed, epoch)]
        batches = order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)
        if pair_rows is not None:
            share = section.pairs.batch_share
            batches = rows.with_pairs(batches, pair_rows, share, seed, epoch)
        dataset = read(tf.data.Dataset.from_tensor_slices(batches[skip:]))
        if section.mixing:
            dataset = rows.mixed(dataset, batches.shape, section.mixing, seed, epoch, skip)
        return dataset.prefetch(2)

    select = None
    if mask is not None:
        held = selection.read_rows(gallery, columns, mask, section.validation.max_rows)
        roles = {role: column.name for role, column in columns.items()}
        select = selection.Selection(model, held, roles, workdir, loop.is_chief(strategy))
    loop.run(
        train_step,
        epoch_batches,
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
        after_epoch=select.after_epoch if select else None,
        failures=failures,
    )
    facts = {"steps": total_steps, "batch size": batch_size}
    return model, facts, select.take_best() if select else None


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
    string("pairs", "", "Table of gallery rows re-embedded by the new model (sample_gallery).")
    string("base", "", "Working directory of the transformation that the pairs shall correct.")
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
        pairs=values.pairs,
        base=values.base,
        seed=values.seed,
        existing=existing,
    )
    print(workdir / "saved_model")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
