"""The fusion of a trained transformation: scales, whitening, leading directions, weight.

`fct_tf.models.fusion` has the formulas. All of it is solved for, in seconds; the rows are read into
memory.
"""

from collections import Counter

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
# Mean squares below this share of those of the rows are what rounding to float32 leaves.
ROUNDING = float(4 * np.finfo(np.float32).eps) ** 2


def check(task: Task) -> None:
    """Refuses what `fuse` could not do, before anything is trained.

    Raises:
      InputError: more dimensions than both spaces have; labels are needed and do not serve; rows
        that are all the same.
    """
    section, key = task.section.fusion, f"{task.key}.fusion"
    both = task.dims["source_embedding"] + task.dims["target"]
    if section.dims > both:
        raise InputError(f"{key}.dims: {section.dims}, but both spaces together have {both}")
    if section.whiten or section.dims:
        closed_form.held_out(task.galleries[0])  # T is fitted out of fold over classes.
    if section.whiten and max(_labels(task.galleries[0]).values(), default=0) < 2:
        raise InputError(
            f"{task.galleries[0].path}: no label has two rows, and whitening learns from such "
            f"rows; set {key}.whiten to False"
        )
    if section.choose_weight:
        counts = _labels(task.galleries[1])
        lacks = "no label has two rows" if max(counts.values(), default=0) < 2 else ""
        if not lacks and sum(counts.values()) == max(counts.values()):
            lacks = "all its labels are the same"
        if lacks:
            raise InputError(
                f"{task.galleries[1].path}: {lacks}, so no weight can be chosen by the pairs; set "
                f"{key}.choose_weight to False"
            )
    for role in ("source_embedding", "target"):
        name = task.columns[role].name
        _scale(task, role, task.galleries[0].read([name]).vectors[name], 1.0)


def _labels(gallery: table.Gallery) -> Counter:
    """Label -> number of rows."""
    counts: Counter = Counter()
    for rows in gallery.batches([], 65536, with_labels=True):
        if rows.labels is not None:
            counts.update(label for label in rows.labels if label is not None)
    return counts


def fuse(task: Task, model: keras.Model, uncorrected: keras.Model) -> tuple[keras.Model, dict]:
    """`model` with a fusion behind it, and what was chosen as JSON.

    Args:
      task: its `section.fusion` says how.
      model: the transformation, corrected by pairs where it is.
      uncorrected: the same before that.

    Raises:
      InputError: as `check`; differences within labels are no more than rounding.
    """
    section, both = task.section.fusion, task.dims["source_embedding"] + task.dims["target"]
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
            try:
                projection = whitening(queries, stored, _classes(rows))
            except InputError as error:
                raise InputError(
                    f"{task.galleries[0].path}: {error.marked}; set {task.key}.fusion.whiten to "
                    "False"
                ) from None
        if section.dims:
            projection = projection @ leading(stored @ projection, section.dims)
        network = _plain(task, vectors, weight, projection)
    return fusion.gallery_side(model, network), {"weight": weight, **chosen}


def scale(vectors: np.ndarray, distance: str, weight: float) -> float:
    """sqrt(weight) / s, where s^2 is the mean squared distance of two rows.

    Args:
      vectors: float [n, d], training rows; they count with length one where `distance` is cosine.

    Raises:
      InputError: all rows are the same, or differ by no more than rounding.
    """
    values = vectors.astype(np.float64)
    if distance == "cosine":
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    spread = 2 * values.var(axis=0).sum()
    if not spread > ROUNDING * np.mean(np.sum(values**2, axis=1)):
        same = "have one direction" if distance == "cosine" else "are the same"
        raise InputError(f"all rows {same}, by which no fused search can compare")
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
      InputError: no class has two rows, or those of one class differ by no more than rounding.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    others = (counts - 1.0)[classes]
    if not others.any():
        raise InputError("no label has two rows, and whitening learns from such rows")
    q, g = queries.astype(np.float64), rows.astype(np.float64)
    size = np.mean(np.sum(g**2, axis=1))
    # About the middle of its class: the same differences, and no great sums to cancel out.
    middle = (_sums(q + g, classes) / (2 * counts[:, None]))[classes]
    q, g = q - middle, g - middle
    # The sum over i and j of (q_i - g_j)(q_i - g_j)', written out; pairs i = j taken out.
    cross = _sums(q, classes).T @ _sums(g, classes) - q.T @ g
    total = (q * others[:, None]).T @ q + (g * others[:, None]).T @ g - cross - cross.T
    moment = total / others.sum()
    if not np.trace(moment) > ROUNDING * size:
        raise InputError("rows of one label are all the same, and whitening learns how they differ")
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
        _scale(task, roles[0], vectors[roles[0]], weight),
        _scale(task, roles[1], vectors[roles[1]], 1 - weight),
    )
    dims = (task.dims[roles[0]], task.dims[roles[1]])
    return fusion.build(distances, scales, dims, projection)


def _scale(task: Task, role: str, vectors: np.ndarray, weight: float) -> float:
    """`scale` of a column's rows, which a message names."""
    column = task.columns[role]
    try:
        return scale(vectors, column.distance, weight)
    except InputError as error:
        raise InputError(
            f"{task.galleries[0].path}: column {column.name!r}: {error.marked}; train on rows that "
            "differ"
        ) from None


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
    transformed = np.empty(y.shape, np.float32)
    for number in range(min(FOLDS, count)):
        held = fold == number
        rest = (x[~held], y[~held])
        rotates = task.section.map == "procrustes"
        affine = linear.procrustes(*rest) if rotates else linear.ridge_affine(*rest, lam)
        transformed[held] = linear.apply(affine, x[held])
    return transformed


def _classes(rows: table.Rows) -> np.ndarray:
    """Numbers of the labels, int [n]; a row without a label is a class of its own."""
    assert rows.labels is not None
    named = zip(rows.ids, rows.labels, strict=True)
    keys = [f"id {name}" if label is None else f"label {label}" for name, label in named]
    return np.unique(keys, return_inverse=True)[1]


def _choose_weight(task: Task, vectors, uncorrected: keras.Model) -> tuple[float, dict]:
    """The weight with the best mAP among the pairs, and what was tried, as JSON.

    Each pair is transformed without what it taught itself, the correction or the map. Of equal
    weights the one nearest to one half is taken.
    """
    pairs = task.galleries[1].read([c.name for c in task.columns.values()], with_labels=True)
    pair_vectors = {role: pairs.vectors[column.name] for role, column in task.columns.items()}
    target = pair_vectors.pop("target")
    if task.section.pairs.method == "kernel":
        transformed = uncorrected.predict(pair_vectors, batch_size=1024, verbose=0)["embedding"]
        transformed = transformed + _corrections(
            task, {**pair_vectors, "embedding": transformed}, target
        )
    else:
        transformed = _refitted(task, vectors, {**pair_vectors, "target": target})
    assert pairs.labels is not None
    sides = (pairs.ids, pairs.labels)
    scores = {}
    for weight in WEIGHTS:
        network = _plain(task, vectors, weight)
        queries, stored = (
            _rows(network, pair_vectors["source_embedding"], side) for side in (target, transformed)
        )
        by = fusion.distance(
            (task.columns["source_embedding"].distance, task.columns["target"].distance)
        )
        per_query = exact.per_query(queries, *sides, stored, *sides, by)
        score = metrics.mean_average_precision(per_query.average_precision)
        assert score is not None  # `check` has seen a label with two rows.
        scores[weight] = score
    weight = max(scores, key=lambda one: (scores[one], -abs(one - 0.5)))
    logging.info("%s: weight %g of %s", task.name, weight, scores)
    return weight, {"map_by_weight": {f"{key:g}": value for key, value in scores.items()}}


def _refitted(task: Task, vectors, pairs) -> np.ndarray:
    """Of each pair, what a map fitted on the rows and the other pairs makes: float32 [n, d_target].

    The map is solved for, as in `_out_of_fold`.
    """
    x, y = closed_form.inputs(vectors), vectors["target"]
    more, targets = closed_form.inputs(pairs), pairs["target"]
    lam, _ = linear.choose_lambda(x, y, closed_form.held_out(task.galleries[0]))
    share = task.section.pairs.batch_share
    fold = np.random.default_rng(task.stage_seed).permutation(len(more)) % FOLDS
    transformed = np.empty(targets.shape, np.float32)
    for number in np.unique(fold):
        held = fold == number
        count = max(1, np.count_nonzero(~held))
        weights = np.repeat([(1 - share) / len(x), share / count], [len(x), len(more) - held.sum()])
        both = (np.concatenate([x, more[~held]]), np.concatenate([y, targets[~held]]))
        rotates = task.section.map == "procrustes"
        affine = (
            linear.procrustes(*both, weights)
            if rotates
            else linear.ridge_affine(*both, lam, weights)
        )
        transformed[held] = linear.apply(affine, more[held])
    return transformed


def _corrections(task: Task, blocks, target: np.ndarray) -> np.ndarray:
    """Of each pair, what the others teach: float64 [n, d_target]."""
    residual = target - blocks["embedding"].astype(np.float64)
    fold = np.random.default_rng(task.stage_seed).permutation(len(target)) % FOLDS
    corrections = np.zeros(residual.shape)
    for number in np.unique(fold):
        held = fold == number
        fitted = kernel.fit(
            {role: values[~held] for role, values in blocks.items()},
            residual[~held],
            max_centres=task.section.pairs.max_centres,
            seed=task.seed,
        )
        if fitted.helps:
            corrections[held] = fitted({role: values[held] for role, values in blocks.items()})
    return corrections
