"""Heads over angles against their formulas, where the cosine is near one, and in a training."""

import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf.training import losses, margins

N, D, CLASSES = 13, 5, 7


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(N, D)).astype(np.float32) * 3,
        rng.normal(size=(D, CLASSES)).astype(np.float32),
        rng.integers(0, CLASSES, N),
    )


def angles(embedding, weights):
    """By arctan2 of the parts along and across the class's weights, float64."""
    unit = weights.astype(np.float64) / np.linalg.norm(weights, axis=0)
    along = embedding.astype(np.float64) @ unit
    across = embedding[:, :, None] - along[:, None, :] * unit[None]
    return np.arctan2(np.linalg.norm(across, axis=1), along)


FORMULAS = {
    "normface": lambda t, m: np.cos(t),
    "cosface": lambda t, m: np.cos(t) - m,
    "arcface": lambda t, m: np.where(t + m < np.pi, np.cos(t + m), np.cos(t) - m * np.sin(m)),
}


@pytest.mark.parametrize("margin", [None, 0.1, 1.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_logits(given, name, margin):
    embedding, weights, labels = given
    head = schema.head(name, scale=20.0, margin=None if name == "normface" else margin)
    t = angles(embedding, weights)
    expected = np.cos(t)
    m = margins.settings(head)["margin"]
    for i, label in enumerate(labels):
        expected[i, label] = FORMULAS[name](t[i, label], m)
    found = margins.logits(head, tf.constant(embedding), weights, labels)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, 20 * expected, rtol=1e-4, atol=1e-4)


def test_linear_logits(given):
    embedding, weights, labels = given
    found = margins.logits(schema.head(), embedding, weights, labels)
    np.testing.assert_allclose(found, embedding @ weights, rtol=1e-5, atol=1e-5)
    assert margins.settings(schema.head()) == {}


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_where_the_cosine_is_one(name):
    """Along, against, nearly along the own class; and an embedding of zeros."""
    weights = tf.constant([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    embedding = tf.constant([[2.0, 0, 0], [-3, 0, 0], [1, 1e-4, 0], [1, 1e-20, 0], [0, 0, 0]])
    with tf.GradientTape() as tape:
        tape.watch([embedding, weights])
        logits = margins.logits(schema.head(name), embedding, weights, [0] * 5)
        loss = losses.cross_entropy(logits, [0] * 5, 0.1)
    for gradient in tape.gradient(loss, [embedding, weights]):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient[:4]).max() < 1e3  # One of zeros has no direction yet.


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.5])
def test_arcface_falls_with_the_angle(margin):
    t = np.linspace(0, np.pi, 400).astype(np.float32)
    embedding = np.stack([np.cos(t), np.sin(t)], axis=1)
    logits = margins.arcface(embedding, tf.eye(2), np.zeros(400, int), 1.0, margin).numpy()[:, 0]
    assert np.all(np.diff(logits) < 1e-6) and np.ptp(logits) > 1


def test_defaults_are_the_papers():
    assert margins.settings(schema.head("arcface")) == {"scale": 64.0, "margin": 0.5}
    assert margins.settings(schema.head("cosface", margin=0.2)) == {"scale": 64.0, "margin": 0.2}
