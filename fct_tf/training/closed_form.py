"""Transformations, or parts of them, that are solved for instead of trained."""

from collections.abc import Sequence

import keras
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from fct_tf.gallery import table
from fct_tf.models import kernel, linear, transformation
from fct_tf.training import selection

HELD_OUT = 0.1  # of the classes, for the ridge, where `validation.share` names no share


def fit_affine(
    galleries: Sequence[table.Gallery],
    columns: dict[str, table.Column],
    section: ConfigDict,
    left_out: np.ndarray | None = None,
) -> tuple[linear.Affine, dict]:
    """The affine or Procrustes map from the inputs' columns to the target's.

    The ridge is chosen on held-out classes of the first gallery. All rows are read into memory.

    Args:
      galleries: the training table and perhaps one of pairs, which then weighs
        `pairs.batch_share` of both.
      columns: `source_embedding`, perhaps `side_info`, `target`.
      section: of the transformation.
      left_out: bool [rows of the first gallery], rows that the map must not know of: where it is
        only the start of what is chosen on them. None: all are fitted.

    Returns:
      (the map of the inputs side by side, what was chosen as JSON).
    """
    parts = [_vectors(gallery, columns) for gallery in galleries]
    x = np.concatenate([inputs(part) for part in parts])
    y = np.concatenate([part["target"] for part in parts])
    count = len(parts[0]["target"])
    fitted = np.ones(count, bool) if left_out is None else ~left_out
    share = section.pairs.batch_share if len(parts) > 1 else 0.0
    pairs = np.ones(len(x) - count)
    weights = np.concatenate(
        [(1 - share) * fitted / fitted.sum(), share * pairs / max(1, len(pairs))]
    )
    if section.map == "procrustes":
        return linear.procrustes(x, y, weights), {}
    mask = selection.held_out(galleries[0], section.validation.share or HELD_OUT)
    lam, errors = linear.choose_lambda(x[:count], y[:count], mask)
    logging.info("ridge %g of %s", lam, errors)
    chosen = {"ridge": lam, "mse": {str(key): error for key, error in errors.items()}}
    return linear.ridge_affine(x, y, lam, weights), chosen


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
