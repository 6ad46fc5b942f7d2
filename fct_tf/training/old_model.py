"""What the training of a compatible model takes from the old one: its classifier, its embeddings.

The old network itself is not needed. The embeddings come from a column of a gallery that holds
the training images; they are of the clean images, one row read instead of one backbone pass.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from fct_tf.common.errors import InputError
from fct_tf.data import datasets
from fct_tf.gallery import table
from fct_tf.models import artifact
from fct_tf.training import compatibility


@dataclasses.dataclass(frozen=True)
class OldModel:
    """The old model as one training needs it; `open_old` fills it, `read` the embeddings.

    Attributes:
      space, dim: of its embeddings.
      classifier: float32 [dim, old classes], where the method takes it.
      scale: of its cosine logits; None where they are linear.
      labels: int64 [classes], where each class stands in the classifier, -1: nowhere.
      recorded: what of it the training depends on, as JSON.
      embeddings: float32 [images, dim], by the images' index, once they are read and where the
        train step takes them.
    """

    space: str
    dim: int
    classifier: np.ndarray | None
    scale: float | None
    labels: np.ndarray
    recorded: dict[str, Any]
    gallery: table.Gallery | None
    column: str
    embeddings: tf.Tensor | None = None


def open_old(
    term: ConfigDict,
    key: str,
    images: datasets.ImageSet,
    old: str | Path | None,
    gallery: str | Path | None,
    column: str,
) -> OldModel:
    """Opens what the compatibility term needs and checks that it fits; reads no vector yet.

    Args:
      term: the section `compatibility` of a model.
      key: of the section, for messages.
      images: the training images.
      old: path of the old model's artifact; `bct` takes its classifier. The others do without.
      gallery: the table with the training images' old embeddings. `bct` needs none for
        `leave_out`, and where the old model knows all classes.
      column: their column; empty: `embedding_<old>`.

    Raises:
      InputError: something needed is not given, or artifact and column are of two models.
    """
    column = column or f"embedding_{term.old}"
    model = artifact.load(old) if old else None
    space, dim = (model.space, model.dim) if model else ("", 0)
    weights, scale, recorded = None, None, {}
    labels = np.zeros(0, np.int64)
    if term.method == "bct":
        if model is None:
            raise InputError(f"{key}.method is bct: name the old model's artifact with ``old``")
        if model.classifier is None:
            raise InputError(f"{old}: has no classifier, which bct needs; set another {key}.method")
        weights, names = model.classifier
        labels = compatibility.match_classes(images.classes, names)
        scale = model.classifier_scale if term.scale is None else term.scale
        recorded["classifier"] = model.info["files"]["classifier.npz"]
        if term.unseen == "leave_out" and (labels < 0).all():
            raise InputError(
                f"{key}.unseen is leave_out, and {old} knows none of the classes of {images.name} "
                "(they are matched by name): set it to synthesized"
            )
    opened = None
    if term.method != "bct" or (term.unseen != "leave_out" and (labels < 0).any()):
        if not gallery:
            raise InputError(
                f"{key}: needs the old embeddings of the training images; name their table with "
                "``gallery``, and their column with ``column``"
            )
        opened = table.open_gallery(gallery)
        stored = opened.column(column)
        if model and stored.space != space:
            raise InputError(
                f"{gallery}: column {column!r} is of the model {stored.model} (space "
                f"{stored.space}), not of {old} ({space}); embed the training images with that one"
            )
        space, dim = stored.space, stored.dim
    recorded["space"] = space
    return OldModel(space, dim, weights, scale, labels, recorded, opened, column)


def read(model: OldModel, term: ConfigDict, images: datasets.ImageSet) -> OldModel:
    """The old model with embeddings read and, where asked for, its classifier extended.

    Raises:
      InputError: an image is no row of the gallery; names its id.
    """
    if model.gallery is None:
        return model
    ids, labels = [], []
    with datasets.naming_unreadable_images():
        for batch in datasets.eval_batches(images, 256):
            ids += [i.decode() for i in batch["id"].numpy()]
            labels.append(batch["label"].numpy())
    embeddings = model.gallery.take(ids, [model.column]).vectors[model.column]
    if term.method != "bct" or term.unseen == "distil":
        with tf.device("CPU:0"):
            return dataclasses.replace(model, embeddings=tf.constant(embeddings))
    assert model.classifier is not None
    classifier, extended_labels = compatibility.synthesize(
        model.classifier,
        model.labels,
        embeddings,
        np.concatenate(labels),
        centred=term.unseen == "centred",
    )
    return dataclasses.replace(model, classifier=classifier, labels=extended_labels)


def with_embeddings(batches: tf.data.Dataset, model: OldModel) -> tf.data.Dataset:
    """Adds "old", the old embeddings float32 `[batch, dim]` by "index", where a step takes them."""
    if model.embeddings is None:
        return batches
    return batches.map(lambda batch: {**batch, "old": tf.gather(model.embeddings, batch["index"])})
