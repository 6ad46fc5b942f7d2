"""Every loss against its formula in NumPy."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from fct_tf.training import losses
from tests import replicas


def np_softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(13, 7)).astype(np.float32) * 5
    labels = rng.integers(0, 7, 13)
    target = np.eye(7)[labels] * (1 - smoothing) + smoothing / 7
    expected = -(target * np.log(np_softmax(logits.astype(np.float64)))).sum(axis=1)
    for dtype in (np.int32, np.int64):
        found = losses.cross_entropy(tf.constant(logits), labels.astype(dtype), smoothing)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cross_entropy_of_large_and_bfloat16_logits():
    logits = np.array([[1e4, 0, -1e4], [0, 1e4, 0]], np.float32)
    np.testing.assert_allclose(losses.cross_entropy(logits, [0, 1]), [0, 0])
    np.testing.assert_allclose(losses.cross_entropy(logits, [2, 0]), [2e4, 1e4])
    rounded = tf.cast([[1.5, 0.25]], tf.bfloat16)
    found = losses.cross_entropy(rounded, [1])
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, np.log1p(np.exp(1.25)), rtol=1e-6)


def test_cross_entropy_by_hand():
    """Two equal logits: p = 1/2 for each class whatever the smoothing, -log(1/2) = log 2."""
    np.testing.assert_allclose(losses.cross_entropy([[3.0, 3.0]], [1], 0.1), [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(11, 5), (3, 4, 4, 3)])
def test_mse(shape):
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    expected = ((a.astype(np.float64) - b) ** 2).reshape(shape[0], -1).mean(axis=1)
    np.testing.assert_allclose(losses.mse(a, b), expected, rtol=1e-6)
    half = losses.mse(tf.cast(a, tf.bfloat16), b)
    assert half.dtype == tf.float32


def numpy_nt_xent(first, second, temperature):
    """The definition, anchor by anchor."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similarity = np.exp(z @ z.T / temperature)
    n = len(first)
    loss = np.empty(2 * n)
    for i in range(2 * n):
        others = [similarity[i, k] for k in range(2 * n) if k != i]
        loss[i] = -np.log(similarity[i, (i + n) % (2 * n)] / sum(others))
    return (loss[:n] + loss[n:]) / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_nt_xent(n, temperature):
    rng = np.random.default_rng(2)
    first, second = (rng.normal(size=(n, 5)).astype(np.float32) * 3 for _ in range(2))
    found = losses.nt_xent(first, second, temperature)
    assert found.shape == (n,)
    np.testing.assert_allclose(
        found, numpy_nt_xent(first, second, temperature), rtol=1e-4, atol=1e-5
    )


def test_nt_xent_agrees_with_keras_cv():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras_cv

    rng = np.random.default_rng(3)
    first, second = (tf.constant(rng.normal(size=(17, 6)), tf.float32) for _ in range(2))
    oracle = keras_cv.losses.SimCLRLoss(temperature=0.5, reduction="none")(first, second)
    found = losses.nt_xent(first, second, 0.5)
    # keras-cv adds an image's two anchors; the paper averages over all anchors.
    np.testing.assert_allclose(2 * found, oracle, rtol=1e-5)


def test_nt_xent_of_collapsed_embeddings():
    """All vectors alike: each of the 2n - 1 others is as likely, log(2n - 1); finite gradients."""
    z = tf.ones([7, 4])
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = losses.nt_xent(z, z, 0.05)
    np.testing.assert_allclose(loss, np.full(7, np.log(13)), rtol=1e-5)
    assert np.isfinite(tape.gradient(loss, z).numpy()).all()


def test_nt_xent_over_two_replicas(two_devices):
    """Negatives and gradients cross replicas: two halves equal the whole batch."""
    rng = np.random.default_rng(4)
    first, second = (rng.normal(size=(14, 5)).astype(np.float32) for _ in range(2))

    def loss_and_gradients(a, b):
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            per_example = losses.nt_xent(a, b, 0.2)
            total = tf.reduce_sum(per_example) / 14
        return (per_example, *tape.gradient(total, [a, b]))

    strategy = replicas.strategy()

    @tf.function
    def replicated(a, b):
        return strategy.run(loss_and_gradients, args=(a, b))

    found = replicated(replicas.split(first), replicas.split(second))
    expected = loss_and_gradients(tf.constant(first), tf.constant(second))
    for parts, whole in zip(found, expected, strict=True):
        joined = np.concatenate(strategy.experimental_local_results(parts))
        np.testing.assert_allclose(joined, whole, rtol=1e-4, atol=1e-6)
