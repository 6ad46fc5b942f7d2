"""What a transformation is trained on and how, checked before anything is written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import copies
from fct_tf.common.errors import InputError
from fct_tf.config.checks import check_keys, check_numbers, check_transformation
from fct_tf.gallery import table
from fct_tf.models import artifact, fusion
from fct_tf.training import frozen_classifier, loop, rows


@dataclass(frozen=True)
class Task:
    """A transformation to be trained; `open_task` makes one.

    Attributes:
      name: of the transformation in the experiment `config`.
      galleries: the training table, and perhaps that of the pairs.
      columns: by role: `source_embedding`, `target`, perhaps `side_info`.
      base: the transformation that is only to be corrected, if any.
      classifier: the new model's, where the discriminative term takes it.
      labels: int32 [rows of all galleries], the rows' classes in `classifier`, -1: none.
      seed: as the user gave it.
    """

    name: str
    config: ConfigDict
    galleries: Sequence[table.Gallery]
    columns: dict[str, table.Column]
    base: artifact.Artifact | None
    classifier: frozen_classifier.FrozenClassifier | None
    labels: np.ndarray | None
    seed: int

    @property
    def section(self) -> ConfigDict:
        return self.config.transformations[self.name]

    @property
    def key(self) -> str:
        """Of the section, for messages."""
        return f"transformations.{self.name}"

    @property
    def stage_seed(self) -> int:
        """Of the initial weights and the order of rows."""
        return loop.stage_seed(self.seed, self.key)

    @property
    def fitted_on(self) -> Sequence[table.Gallery]:
        """The tables of the map itself: pairs that only correct it are not among them."""
        return self.galleries[:1] if self.section.pairs.method == "kernel" else self.galleries

    @property
    def fused(self) -> bool:
        """Whether a fusion goes behind the map."""
        return schema.is_fused(self.section)

    @property
    def spaces(self) -> dict[str, str]:
        return {role: column.space for role, column in self.columns.items()}

    @property
    def dims(self) -> dict[str, int]:
        return {role: column.dim for role, column in self.columns.items()}

    @property
    def unit_length(self) -> bool:
        """Whether the target's embeddings have length one."""
        return self.columns["target"].distance == "cosine"

    def settings(self) -> dict:
        """All that the result depends on, as JSON."""
        settings = {
            "transformation": recorded(self.section),
            "spaces": self.spaces,
            # They are trained on in the table's order.
            **{
                role: rows.ids_sha256(gallery)
                for role, gallery in zip(("rows", "pairs"), self.galleries, strict=False)
            },
            "seed": self.seed,
        }
        if self.base:
            settings["base"] = self.base.space
        if self.classifier and self.labels is not None:
            settings["classifier"] = self.classifier.fingerprint
            settings["labels"] = hashlib.sha256(self.labels.astype("<i4").tobytes()).hexdigest()
        return settings


def open_task(
    config: ConfigDict,
    name: str,
    gallery_uri: str,
    source: str,
    target: str,
    *,
    side_info: str = "",
    pairs: str = "",
    base: str | Path = "",
    classifier: str | Path = "",
    classifier_labels: str | Path = "",
    seed: int = 0,
) -> Task:
    """Opens all that `config.transformations[name]` is trained on and checks that it fits.

    Arguments as those of the command `train_transformation`.

    Raises:
      InputError: what is wrong, in one line.
    """
    if name not in config.transformations:
        transformations = ", ".join(config.transformations)
        raise InputError(
            f"``name={name}``: not in the experiment's transformations ({transformations})"
        )
    section = config.transformations[name]
    check_keys(section, schema.transformation(), f"transformations.{name}.")
    check_numbers(section, f"transformations.{name}.")
    schema.duration_steps(section, "train", 1, f"transformations.{name}")
    check_transformation(config, name)
    for given, flag, setting, needed in (
        (side_info, "side_info", "side_info", section.side_info),
        (pairs, "pairs", "pairs.share", section.pairs.share),
        (base, "base", "base", section.base),
        (classifier, "classifier", "discriminative_weight", section.discriminative_weight),
    ):
        if bool(given) != bool(needed):
            remedy = f"name it with ``{flag}``" if needed else f"leave ``{flag}`` out"
            raise InputError(f"transformations.{name}.{setting} is {needed!r}: {remedy}")
    if section.compose:
        raise InputError(
            f"transformations.{name}.compose: there is nothing to train; train "
            f"{', '.join(section.compose)}, then upgrade the gallery with one after the other"
        )
    if classifier_labels and not classifier:
        raise InputError("``classifier_labels``: is of a ``classifier``, and none is named")
    galleries = [table.open_gallery(uri) for uri in (gallery_uri, pairs) if uri]
    names = {"source_embedding": source, "target": target}
    if side_info:
        names["side_info"] = side_info
    columns = {role: galleries[0].column(column) for role, column in names.items()}
    for gallery in galleries:
        gallery.check_rows()
    for column in columns.values():
        _check_same_space(galleries, column)
    start = _open_base(base, columns) if base else None
    frozen = labels = None
    if classifier:
        frozen = frozen_classifier.open_classifier(classifier, columns["target"], classifier_labels)
        labels = frozen.numbers(galleries)
    return Task(name, config, galleries, columns, start, frozen, labels, seed)


def save(
    task: Task, model: keras.Model, path: Path, settings: dict, chosen: dict, facts: dict
) -> None:
    """Writes the artifact of a trained `model`: what was chosen, and facts for the report."""
    columns, spaces = task.columns, task.spaces
    parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    counts = [gallery.num_rows for gallery in task.galleries]
    distance = columns["target"].distance
    if task.fused:
        distance = fusion.distance((columns["source_embedding"].distance, distance))
    artifact.save(
        path,
        model,
        "fused" if task.fused else "transformation",
        {
            "name": task.name,
            "source_space": spaces["source_embedding"],
            "side_info_space": spaces.get("side_info"),
            "target_space": spaces["target"],
            "source_model": columns["source_embedding"].model,
            "side_info_model": columns["side_info"].model if "side_info" in columns else None,
            "target_model": columns["target"].model,
            "distance": distance,
            "compatible_with": [] if task.fused else [spaces["target"]],
            "training": settings,
            "chosen": chosen,
            "facts": {
                **dict(zip(("rows", "pairs"), counts, strict=False)),
                "parameters": parameters,
                **facts,
            },
        },
        overwrite=True,
    )


def recorded(section: ConfigDict) -> dict:
    """A transformation's settings as its run is recognised by.

    Where it is used, on the gallery or on queries, makes no difference to the training.
    """
    left_out = ("side", "compose")
    settings = {key: value for key, value in schema.to_dict(section).items() if key not in left_out}
    # Once a choice: with it, runs made so far are still recognised.
    return settings | {"pairs": settings["pairs"] | {"draw": "random"}}


def _check_same_space(galleries: Sequence[table.Gallery], column: table.Column) -> None:
    other = galleries[-1].column(column.name)
    if other.space != column.space:
        raise InputError(
            f"{galleries[-1].path}: column {column.name!r} is of {other.model} ({other.space}), in "
            f"{galleries[0].path} of {column.model} ({column.space}); embed both with one model"
        )


def _open_base(path: str | Path, columns: dict[str, table.Column]) -> artifact.Artifact:
    path = copies.local(path)
    base = artifact.load(path)
    roles = {"source_space": "source_embedding", "side_info_space": "side_info"}
    for key, role in {**roles, "target_space": "target"}.items():
        expected = columns[role].space if role in columns else None
        if base.info.get(key) != expected:
            raise InputError(
                f"{path}: its {key} is {base.info.get(key)}, the column's is {expected}; "
                "name a transformation between these columns' models"
            )
    if base.kind != "transformation":
        raise InputError(f"{path}: is a fused search itself; name the transformation in it")
    if "correction" in base.info.get("chosen", {}):
        raise InputError(f"{path}: is corrected by pairs already; name the one that it came from")
    return base
