"""Backfilling curves where the rest of the rows is corrected by those that are backfilled.

Rows that the new model has embedded are pairs: they say how far the transformation is off, and
`train_transformation --pairs=GALLERY --backfilled=COLUMN --base=..` fits a kernel correction to
them. Here that is done at every point of a curve, so that its distance from the plain curve is
what retraining after each budget brings. Rows move at every point: 22 fits and full evaluations.
"""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from fct_tf.backfill import curves
from fct_tf.backfill.curves import Curves, Side
from fct_tf.models import kernel
from fct_tf.retrieval import exact

MAX_CENTRES = 4096  # As of a training. With a quarter of them mAP was 1 to 2 points lower.


def per_query(
    query: Side,
    inputs: Mapping[str, np.ndarray],
    gallery: Side,
    order: np.ndarray,
    distance: str = "l2",
    *,
    unit_length: bool = False,
    max_centres: int = MAX_CENTRES,
    seed: int = 0,
    progress: str = "",
) -> Curves:
    """Rank and average precision of every labelled query at all points of one order.

    Args:
      query, gallery, distance: as `backfilling.per_query`.
      inputs: role -> float [g, d]: what the transformation read (`source_embedding`, perhaps
        `side_info`) and what it made of it (`embedding`).
      order: int [g], a permutation of the rows.
      unit_length: bring corrected rows to length one, as where their space compares by cosine.
      max_centres, seed: of the correction, see `kernel.fit`.
      progress: label of the progress bar; none when empty.
    """
    new, ids, labels = gallery
    ranks, precisions = [], []
    counts = curves.replaced(len(new)).tolist()
    for count in tqdm(counts, progress, unit="point", disable=None if progress else True):
        is_known = np.zeros(len(new), bool)
        is_known[order[:count]] = True
        mixed = _corrected(inputs, is_known, new, unit_length, max_centres, seed)
        mixed[is_known] = new[is_known]
        measures = exact.per_query(*query, mixed, ids, labels, distance)
        ranks.append(measures.rank)
        precisions.append(measures.average_precision)
    return Curves(
        curves.replaced(len(new)),
        measures.position,
        np.array(ranks)[None],
        np.array(precisions)[None],
        measures.self_removed,
    )


def _corrected(
    inputs: Mapping[str, np.ndarray],
    known: np.ndarray,
    new: np.ndarray,
    unit_length: bool,
    max_centres: int,
    seed: int,
) -> np.ndarray:
    """T(old) with the correction that the known rows teach, if they teach any: float32 [g, d]."""
    mixed = np.array(inputs["embedding"], np.float32)
    if known.all() or not known.any():
        return mixed
    pairs = {role: values[known] for role, values in inputs.items()}
    residual = new[known] - pairs["embedding"].astype(np.float64)
    fitted = kernel.fit(pairs, residual, max_centres=max_centres, seed=seed)
    if not fitted.helps:
        return mixed
    for start in range(0, len(mixed), kernel.BLOCK_ROWS):
        part = slice(start, start + kernel.BLOCK_ROWS)
        mixed[part] += fitted({role: values[part] for role, values in inputs.items()})
    if unit_length:
        mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
    return mixed
