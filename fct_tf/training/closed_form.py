"""Transformations, or parts of them, that are solved for instead of trained."""

import hashlib
from collections.abc import Sequence

import keras
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import kernel, linear, transformation

HELD_OUT = 0.1  # of the classes, for the ridge


def fit_affine(
    galleries: Sequence[table.Gallery],
    columns: dict[str, table.Column],
    section: ConfigDict,
) -> tuple[linear.Affine, dict]:
    """The affine or Procrustes map from the inputs' columns to the target's.

    The ridge is chosen on held-out classes of the first gallery. All rows are read into memory.

    Args:
      galleries: the training table and perhaps one of pairs, which then weighs
        `pairs.batch_share` of both.
      columns: `source_embedding`, perhaps `side_info`, `target`.
      section: of the transformation.

    Returns:
      (the map of the inputs side by side, what was chosen as JSON).
    """
    parts = [_vectors(gallery, columns) for gallery in galleries]
    x = np.concatenate([inputs(part) for part in parts])
    y = np.concatenate([part["target"] for part in parts])
    count = len(parts[0]["target"])
    share = section.pairs.batch_share if len(parts) > 1 else 0.0
    pairs = len(x) - count
    weights = np.repeat([(1 - share) / count, share / max(1, pairs)], [count, pairs])
    if section.map == "procrustes":
        return linear.procrustes(x, y, weights), {}
    mask = held_out(galleries[0])
    lam, errors = linear.choose_lambda(x[:count], y[:count], mask)
    logging.info("ridge %g of %s", lam, errors)
    chosen = {"ridge": lam, "mse": {str(key): error for key, error in errors.items()}}
    return linear.ridge_affine(x, y, lam, weights), chosen


def held_out(gallery: table.Gallery, share: float = HELD_OUT) -> np.ndarray:
    """Which rows are held out: bool [n], whole classes, rows without label by themselves.

    Rows of the training classes say little about rows of other classes: frozen models embed what
    they were trained on in tighter clusters. A class (a row without label) is held out if the hash
    of its name (its id) falls into the first `share` of all hashes: the same in every run and
    table. Of few classes at least one is held out and at least one is not.

    Raises:
      InputError: there are no two classes.
    """
    hashes: dict[str, int] = {}
    of_rows = []
    for rows in gallery.batches([], 65536, with_labels=True):
        labels = rows.labels if rows.labels is not None else [None] * len(rows)
        for name, label in zip(rows.ids, labels, strict=True):
            key = f"label {label}" if label is not None else f"id {name}"
            if key not in hashes:
                digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
                hashes[key] = int.from_bytes(digest, "big")
            of_rows.append(hashes[key])
    if len(hashes) < 2:
        raise InputError(
            f"{gallery.path}: all its rows are of one class, so none can be held out to choose the "
            "ridge by; train on rows of more classes"
        )
    low, high = min(hashes.values()), max(hashes.values())
    limit = min(max(int(share * 2**64), low + 1), high)
    return np.array([value < limit for value in of_rows], bool)


def correct(
    model: keras.Model,
    pairs: table.Gallery,
    columns: dict[str, table.Column],
    section: ConfigDict,
    seed: int,
) -> tuple[keras.Model, dict]:
    """`model` with a kernel correction fitted to the pairs, and what was chosen as JSON.

    Where no correction lowers the error on pairs held out, `model` is returned as it is.

    Args:
      model: a transformation.
      pairs: rows that both the old and the new model have embedded.
      columns, section: as `fit_affine`.
      seed: of the cross-validation's folds.
    """
    vectors = _vectors(pairs, columns)
    target = vectors.pop("target")
    output = model.predict(vectors, batch_size=1024, verbose=0)["embedding"]
    fitted = kernel.fit(
        {**vectors, "embedding": output},
        target - output.astype(np.float64),
        max_centres=section.pairs.max_centres,
        seed=seed,
    )
    logging.info("kernel correction: %s", fitted.chosen)
    if not fitted.helps:
        logging.warning("%s: the pairs teach no correction; none is made", pairs.path)
        return model, fitted.chosen
    unit_length = columns["target"].distance == "cosine"
    return transformation.corrected(model, fitted, normalize=unit_length), fitted.chosen


def _vectors(gallery: table.Gallery, columns: dict[str, table.Column]) -> dict[str, np.ndarray]:
    names = list(dict.fromkeys(column.name for column in columns.values()))
    vectors = gallery.read(names).vectors
    return {role: vectors[column.name] for role, column in columns.items()}


def inputs(vectors: dict[str, np.ndarray]) -> np.ndarray:
    """Source embedding and side-information side by side."""
    roles = [role for role in ("source_embedding", "side_info") if role in vectors]
    return np.concatenate([vectors[role] for role in roles], axis=1)
