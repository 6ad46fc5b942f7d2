"""The Python API: what the commands do, from a notebook."""

import inspect
import json

import numpy as np
import pytest

import fct_tf
from fct_tf import api, inspect_gallery, train_transformation, upgrade_gallery, verdict
from fct_tf import evaluate as evaluate_command
from fct_tf.gallery import table

ROWS, CLASSES = 240, 12


def vectors(seed=0, count=ROWS):
    """Labels, and the embeddings of two models: the old one sees 6 of the new one's 8 numbers."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    means = np.random.default_rng(7).normal(size=(CLASSES, 8))
    new = means[labels] + 0.3 * rng.normal(size=(count, 8))
    mixing = np.random.default_rng(8).normal(size=(8, 6))
    old = new @ mixing + 0.5 * rng.normal(size=(count, 6))
    return [f"class {label}" for label in labels], old, new


def make(path, seed=0, prefix="row", **settings):
    labels, old, new = vectors(seed)
    ids = [f"{prefix}{i}" for i in range(ROWS)]
    both = {"embedding_old": old, "embedding_new": new}
    models = {"embedding_old": "old-net", "embedding_new": "new-net"}
    return fct_tf.Gallery.create(path, ids, both, labels, **{"model": models, **settings})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """An affine transformation, fitted once in a temporary directory of its own."""
    train = make(tmp_path_factory.mktemp("api") / "train.lance", seed=1, prefix="train")
    return fct_tf.Transformation.fit(train, "embedding_old", "embedding_new", method="affine")


@pytest.fixture
def gallery(tmp_path):
    return make(tmp_path / "photos.lance")


def test_twelve_lines(tmp_path, monkeypatch):
    """Open, fit, upgrade, judge and tag, on vectors made in memory and no file but its own."""
    monkeypatch.chdir(tmp_path)
    make("train.lance", seed=1, prefix="train"), make("photos.lance")

    gallery = fct_tf.Gallery.open("photos.lance")
    transformation = fct_tf.Transformation.fit(
        "train.lance", "embedding_old", "embedding_new", method="affine"
    )
    print(gallery.upgrade(transformation, "embedding_fct", dry_run=True))
    gallery.upgrade(transformation, "embedding_fct")
    verdict = gallery.judge("embedding_old", "embedding_fct", "embedding_new")
    if verdict.compatible:
        gallery.tag("live")
    print(verdict)

    assert verdict.verdict == "compatible" and verdict.sentence == str(verdict)
    live = fct_tf.Gallery.open("photos.lance@live")
    assert live.version == gallery.version == 2 and list(live.columns)[-1] == "embedding_fct"
    assert gallery.tags == {"live": 2}
