"""The fusion of a trained transformation: scales, whitening, leading directions, weight.

`fct_tf.models.fusion` has the formulas. All of it is solved for, in seconds; the rows are read into
memory.
"""

import keras
import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import fusion, kernel, linear
from fct_tf.retrieval import exact, metrics
from fct_tf.training import closed_form
from fct_tf.training.task import Task

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(1, 10))
FOLDS = 5
RIDGE = 1.0  # Of the whitening, as a multiple of the mean variance of a direction.


def fuse(task: Task, model: keras.Model, uncorrected: keras.Model) -> tuple[keras.Model, dict]:
    """`model` with a fusion behind it, and what was chosen as JSON.

    Args:
      task: its `section.fusion` says how.
      model: the transformation, corrected by pairs where it is.
      uncorrected: the same before that.

    Raises:
      InputError: labels are needed and there are none; more dimensions than both spaces have.
    """
    section, both = task.section.fusion, task.dims["source_embedding"] + task.dims["target"]
    if section.dims > both:
        raise InputError(
            f"{task.key}.fusion.dims: {section.dims}, but both spaces together have {both}"
        )
    rows = task.galleries[0].read([c.name for c in task.columns.values()], with_labels=True)
    vectors = {role: rows.vectors[column.name] for role, column in task.columns.items()}
    weight: float = section.weight
    chosen: dict = {}
    if section.choose_weight:
        weight, chosen = _choose_weight(task, vectors, uncorrected)
    network = _plain(task, vectors, weight)
    projection = None
    if section.whiten or section.dims:
        stored = _rows(network, vectors["source_embedding"], _out_of_fold(task, rows, vectors))
        projection = np.eye(both)
        if section.whiten:
            queries = _rows(network, vectors["source_embedding"], vectors["target"])
            projection = whitening(queries, stored, _classes(rows))
        if section.dims:
            projection = projection @ leading(stored @ projection, section.dims)
        network = _plain(task, vectors, weight, projection)
    return fusion.gallery_side(model, network), {"weight": weight, **chosen}


def scale(vectors: np.ndarray, distance: str, weight: float) -> float:
    """sqrt(weight) / s, where s^2 is the mean squared distance of two rows.

    Args:
      vectors: float [n, d], training rows; they count with length one where `distance` is cosine.

    Raises:
      InputError: all rows are the same.
    """
    values = vectors.astype(np.float64)
    if distance == "cosine":
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    spread = 2 * values.var(axis=0).sum()
    if not spread > 0:
        raise InputError("fusion: all training rows are the same; train on rows that differ")
    return float(np.sqrt(weight / spread))


def whitening(
    queries: np.ndarray, rows: np.ndarray, labels: np.ndarray, ridge: float = RIDGE
) -> np.ndarray:
    """The matrix that makes differences within a class alike in all directions.

    C is the second moment of the differences between the query side of row i and the gallery side
    of row j, i != j, of one class; the matrix is (C + ridge * mean(diag C) * I)^(-1/2).

    Args:
      queries: float [n, d], rows as queries.
      rows: float [n, d], the same as gallery rows, of a transformation that has not seen their
        class.
      labels: [n]; a class with one row tells nothing.

    Returns:
      float64 [d, d], symmetric.

    Raises:
      InputError: no class has two rows.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    others = (counts - 1.0)[classes]
    if not others.any():
        raise InputError("whiten: no label has two rows, and it learns from such rows; set it off")
    q, g = queries.astype(np.float64), rows.astype(np.float64)
    # The sum over i and j of (q_i - g_j)(q_i - g_j)', written out; pairs i = j taken out.
    cross = _sums(q, classes).T @ _sums(g, classes) - q.T @ g
    total = (q * others[:, None]).T @ q + (g * others[:, None]).T @ g - cross - cross.T
    moment = total / others.sum()
    values, directions = np.linalg.eigh(moment)
    values += ridge * np.trace(moment) / len(moment)
    return (directions / np.sqrt(values)) @ directions.T


def leading(rows: np.ndarray, dims: int) -> np.ndarray:
    """The directions in which rows differ most: float64 [d, dims], orthonormal columns."""
    _, directions = np.linalg.eigh(np.cov(rows, rowvar=False))
    return directions[:, ::-1][:, :dims]


def _sums(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    sums = np.zeros((classes.max() + 1, values.shape[1]))
    np.add.at(sums, classes, values)
    return sums


def _plain(task: Task, vectors, weight: float, projection: np.ndarray | None = None):
    """The fusion with this weight; `vectors` are the training rows by role."""
    roles = ("source_embedding", "target")
    distances = (task.columns[roles[0]].distance, task.columns[roles[1]].distance)
    scales = (
        scale(vectors[roles[0]], distances[0], weight),
        scale(vectors[roles[1]], distances[1], 1 - weight),
    )
    dims = (task.dims[roles[0]], task.dims[roles[1]])
    return fusion.build(distances, scales, dims, projection)


def _rows(network: keras.Model, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    inputs = {"source_embedding": source, "target_embedding": target}
    return network.predict(inputs, batch_size=4096, verbose=0)["embedding"]


def _out_of_fold(task: Task, rows: table.Rows, vectors) -> np.ndarray:
    """Training rows transformed by a map that has not seen their class: float32 [n, d_target].

    The map is solved for, ridge-affine where the transformation is a network: whitened by it or by
    networks trained on half of the classes, retrieval was the same within 0.1 points.
    """
    classes = _classes(rows)
    count = classes.max() + 1
    fold = np.random.default_rng(task.stage_seed).permutation(count)[classes] % FOLDS
    x, y = closed_form.inputs(vectors), vectors["target"]
    lam, _ = linear.choose_lambda(x, y, closed_form.held_out(task.galleries[0]))
    made = np.empty(y.shape, np.float32)
    for number in range(min(FOLDS, count)):
        held = fold == number
        rest = (x[~held], y[~held])
        rotates = task.section.map == "procrustes"
        affine = linear.procrustes(*rest) if rotates else linear.ridge_affine(*rest, lam)
        made[held] = linear.apply(affine, x[held])
    return made


def _classes(rows: table.Rows) -> np.ndarray:
    """Numbers of the labels, int [n]; a row without a label is a class of its own."""
    assert rows.labels is not None
    named = zip(rows.ids, rows.labels, strict=True)
    keys = [f"id {name}" if label is None else f"label {label}" for name, label in named]
    return np.unique(keys, return_inverse=True)[1]


def _choose_weight(task: Task, vectors, uncorrected: keras.Model) -> tuple[float, dict]:
    """The weight with the best mAP among the pairs, and what was tried, as JSON.

    Each pair is transformed without what it taught the correction itself.
    """
    pairs = task.galleries[1].read([c.name for c in task.columns.values()], with_labels=True)
    known = {role: pairs.vectors[column.name] for role, column in task.columns.items()}
    target = known.pop("target")
    transformed = uncorrected.predict(known, batch_size=1024, verbose=0)["embedding"]
    if task.section.pairs.method == "kernel":
        transformed = transformed + _corrections(task, {**known, "embedding": transformed}, target)
    assert pairs.labels is not None
    sides = (pairs.ids, pairs.labels)
    scores = {}
    for weight in WEIGHTS:
        network = _plain(task, vectors, weight)
        queries, stored = (
            _rows(network, known["source_embedding"], side) for side in (target, transformed)
        )
        by = fusion.distance(
            (task.columns["source_embedding"].distance, task.columns["target"].distance)
        )
        found = exact.per_query(queries, *sides, stored, *sides, by)
        score = metrics.mean_average_precision(found.average_precision)
        if score is None:
            raise InputError(
                f"{task.galleries[1].path}: no label has two rows, so no weight can be chosen by "
                f"the pairs; set {task.key}.fusion.choose_weight to False"
            )
        scores[weight] = score
    weight = max(scores, key=lambda one: scores[one])
    logging.info("%s: weight %g of %s", task.name, weight, scores)
    return weight, {"map_by_weight": {f"{key:g}": value for key, value in scores.items()}}


def _corrections(task: Task, blocks, target: np.ndarray) -> np.ndarray:
    """Of each pair, what the others teach: float64 [n, d_target]."""
    residual = target - blocks["embedding"].astype(np.float64)
    fold = np.random.default_rng(task.stage_seed).permutation(len(target)) % FOLDS
    made = np.zeros(residual.shape)
    for number in np.unique(fold):
        held = fold == number
        fitted = kernel.fit(
            {role: values[~held] for role, values in blocks.items()},
            residual[~held],
            max_centres=task.section.pairs.max_centres,
            seed=task.seed,
        )
        if fitted.helps:
            made[held] = fitted({role: values[held] for role, values in blocks.items()})
    return made
