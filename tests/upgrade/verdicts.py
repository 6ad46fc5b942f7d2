"""Galleries with an old column, upgraded ones and a new one, to be judged."""

import numpy as np
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_distances

from fct_tf.gallery import table
from fct_tf.upgrade import judge

SPACE = {name: table.imported_space(name) for name in ("old", "new", "T", "both")}


COUNT, CLASSES = 211, 12


NOISE = 1.8


def distances(case):
    if case.distance == "cosine":
        return cosine_distances(case.query.astype(float), case.gallery.astype(float))
    return np.square(case.query[:, None].astype(float) - case.gallery[None]).sum(axis=2)


def resampled(values, resamples, seed):
    """Means of resamples drawn as `metrics.bootstrap` draws them, row by row."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(values), len(values), np.int32) for _ in range(resamples))
    return np.array([values[drawn].mean(axis=0) for drawn in draws])


def column(name, dim, space, *compatible_with, kind="embedded"):
    made_by = {"model": f"{space} net"}
    return table.Column(
        name, dim, SPACE[space], compatible_with=compatible_with, created_by=made_by, kind=kind
    )


COLUMNS = {
    "old": column("old", 3, "old"),
    "new": column("new", 5, "new"),
    **{
        name: column(name, 5, "T", SPACE["new"])
        for name in ("perfect", "good", "middling", "useless")
    },
}


def data(labelled=True):
    generator = np.random.default_rng(5)
    classes = generator.integers(0, CLASSES, COUNT)
    old, new = (generator.standard_normal((CLASSES, dim))[classes] for dim in (3, 5))
    vectors = {
        "old": old + 0.8 * generator.standard_normal(old.shape),
        "new": new + 0.4 * generator.standard_normal(new.shape),
    }
    vectors["perfect"] = vectors["new"]
    vectors["good"] = vectors["new"] + 0.2 * generator.standard_normal(new.shape)
    vectors["middling"] = vectors["new"] + NOISE * generator.standard_normal(new.shape)
    vectors["useless"] = generator.standard_normal(new.shape)
    labels = np.array([f"c{value}" for value in classes], object)
    labels[::7] = None
    ids = np.array([f"row{row}" for row in range(COUNT)], object)
    vectors = {name: values.astype(np.float32) for name, values in vectors.items()}
    return table.Rows(ids, labels if labelled else None, vectors)


def some(rows, kept, *names):
    labels = None if rows.labels is None else rows.labels[kept]
    return table.Rows(rows.ids[kept], labels, {name: rows.vectors[name][kept] for name in names})


def judged(path, upgraded, **settings):
    gallery = table.open(path)
    return judge.judge(gallery, "old", upgraded, "new", bootstrap=200, **settings)


def slow(query, gallery, rows):
    """(CMC@1, CMC@5, mAP) of the labelled rows, one at a time."""
    ranks, precisions, _ = one_by_one(query, gallery, rows)
    return [np.mean(ranks <= 1), np.mean(ranks <= 5), np.mean(precisions)]


def one_by_one(query, gallery, rows):
    """Rank, average precision and id of each labelled row that has a match."""
    ranks, precisions, ids = [], [], []
    for vector, own, label in zip(query, rows.ids, rows.labels, strict=True):
        kept = rows.ids != own
        match = rows.labels[kept] == label
        if label is None or not match.any():
            continue
        distance = np.square(gallery[kept].astype(float) - vector).sum(axis=1)
        ranks.append(1 + np.sum(distance[~match] <= distance[match].min()))
        precisions.append(average_precision_score(match, -distance))
        ids.append(own)
    return np.array(ranks), np.array(precisions), ids


def means(estimates):
    return [value["mean"] for value in estimates.values()]


def flipped(rows, before, after):
    """(negative, positive) flips of each labelled query, and the queries' ids."""
    (was, _, ids), (now, _, _) = (
        one_by_one(rows.vectors[query], rows.vectors[gallery], rows)
        for query, gallery in (before, after)
    )
    return (was <= 1) & (now > 1), (was > 1) & (now <= 1), ids
