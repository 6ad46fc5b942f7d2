"""The transformation network against its description, computed once more in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf.models import transformation
from tests import replicas


def trainable_count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def rows(n, **dims):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(n, dim)).astype(np.float32) for name, dim in dims.items()}


def randomize(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.path.endswith("variance"):
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
        elif not weight.path.endswith("kernel"):
            weight.assign(rng.normal(0.5, 0.3, weight.shape))


def numpy_transformation(model, source, side, epsilon=1e-5):
    def dense_bn(x, name):
        x = x @ model.get_layer(name).kernel.numpy().astype(np.float64)
        gamma, beta, mean, variance = (w.numpy() for w in model.get_layer(f"{name}_bn").weights)
        return np.maximum((x - mean) / np.sqrt(variance + epsilon) * gamma + beta, 0)

    first = dense_bn(dense_bn(source, "source1"), "source2")
    second = dense_bn(dense_bn(side, "side1"), "side2")
    x = dense_bn(dense_bn(np.concatenate([first, second], axis=1), "mixer1"), "mixer2")
    last = model.get_layer("mixer3")
    return x @ last.kernel.numpy() + last.bias.numpy()


def test_parameters_of_the_paper():
    """5,712,000, counted by hand; no side-information has the same shape."""
    branch = 128 * 256 + 2 * 256 + 256 * 256 + 2 * 256
    mixer = 512 * 2048 + 2 * 2048 + 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
    assert 2 * branch + mixer == 5_712_000
    assert trainable_count(transformation.build(128, 128, 128)) == 5_712_000
    assert trainable_count(transformation.build(128, 128)) == 5_712_000


def test_forward_pass_equals_numpy():
    model = transformation.build(5, 7, 3, hidden=11)
    randomize(model)
    inputs = rows(13, source_embedding=5, side_info=3)
    outputs = model(inputs, training=False)
    assert list(outputs) == ["embedding"] and outputs["embedding"].dtype == tf.float32
    expected = numpy_transformation(model, inputs["source_embedding"], inputs["side_info"])
    np.testing.assert_allclose(outputs["embedding"], expected, rtol=1e-4, atol=1e-4)


def test_without_side_information_the_source_is_fed_twice():
    model = transformation.build(5, 7, hidden=11)
    randomize(model)
    assert list(model.input) == ["source_embedding"]
    inputs = rows(13, source_embedding=5)
    source = inputs["source_embedding"]
    expected = numpy_transformation(model, source, source)
    np.testing.assert_allclose(model(inputs)["embedding"], expected, rtol=1e-4, atol=1e-4)


def test_pytorch_biases_and_seeds():
    first, second = (transformation.build(5, 700, hidden=16, seed=3) for _ in range(2))
    bias = first.get_layer("mixer3").bias.numpy()
    assert 0.95 < np.abs(bias).max() * 4 <= 1  # uniform in +-1/sqrt(16)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    other = transformation.build(5, 700, hidden=16, seed=4)
    assert not np.array_equal(bias, other.get_layer("mixer3").bias.numpy())


def test_batch_norm_in_inference_mode_while_training():
    """Second half of the paper's training: statistics frozen, everything else still learns."""
    model = transformation.build(5, 7, 3, hidden=11)
    randomize(model)
    frozen = [w.numpy() for w in model.non_trainable_weights]
    inputs = rows(13, source_embedding=5, side_info=3)
    expected = numpy_transformation(model, inputs["source_embedding"], inputs["side_info"])
    with tf.GradientTape() as tape:
        embedding = model(inputs, training=False)["embedding"]
        loss = tf.reduce_sum(embedding**2)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-4)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in gradients)
    for before, after in zip(frozen, model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(before, after.numpy())
    model(inputs, training=True)
    assert not np.array_equal(frozen[0], model.non_trainable_weights[0].numpy())


def test_bfloat16():
    full = transformation.build(64, 32, 16, hidden=128)
    half = transformation.build(64, 32, 16, hidden=128, dtype="bfloat16")
    assert {w.dtype for w in half.weights} == {"float32"}
    inputs = rows(101, source_embedding=64, side_info=16)
    expected = full(inputs, training=True)["embedding"].numpy()
    found = half(inputs, training=True)["embedding"]
    assert found.dtype == tf.float32
    assert 0 < np.abs(found.numpy() - expected).max() < 0.05 * np.abs(expected).max()


def test_normalized_target():
    model = transformation.build(5, 7, hidden=11, normalize=True)
    embedding = model(rows(13, source_embedding=5))["embedding"].numpy()
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)


def test_two_replicas_equal_one(two_devices):
    """A step on two halves with synchronised BatchNorm gives the gradients of the whole."""
    strategy = replicas.strategy()
    inputs = rows(26, source_embedding=5, side_info=3)
    with strategy.scope():
        model = transformation.build(5, 7, 3, hidden=11, sync_batch_norm=True)
    single = transformation.build(5, 7, 3, hidden=11)

    def gradients(network, batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(batch, training=True)["embedding"] ** 2) / 26
        return tape.gradient(loss, network.trainable_variables)

    halves = {name: replicas.split(value) for name, value in inputs.items()}

    @tf.function
    def replicated(batch):
        shares = strategy.run(lambda x: gradients(model, x), args=(batch,))
        return [strategy.reduce("sum", share, axis=None) for share in shares]

    expected = gradients(single, inputs)
    for found, wanted in zip(replicated(halves), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("side", [True, False])
def test_it_starts_from_an_affine_map(side, normalize):
    rng = np.random.default_rng(6)
    affine = rng.normal(size=(8 if side else 5, 7)), rng.normal(size=7)
    inputs = rows(13, source_embedding=5, **({"side_info": 3} if side else {}))
    settings = {"normalize": normalize, "affine": affine}
    start = transformation.build(5, 7, 3 if side else None, hidden=11, **settings)
    alone = transformation.build_affine(5, 3 if side else None, affine, normalize=normalize)
    expected = np.concatenate(list(inputs.values()), axis=1) @ affine[0] + affine[1]
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for model in (start, alone):
        assert set(model.input) == set(inputs)
        np.testing.assert_allclose(model(inputs)["embedding"], expected, atol=1e-5)
    # Network and map both learn.
    assert trainable_count(start) == trainable_count(
        transformation.build(5, 7, 3 if side else None, hidden=11)
    ) + trainable_count(alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_learns_a_linear_map(dtype):
    rng = np.random.default_rng(2)
    source = rng.normal(size=(512, 6)).astype(np.float32)
    target = source @ rng.normal(size=(6, 4)).astype(np.float32)
    model = transformation.build(6, 4, hidden=32, dtype=dtype)
    optimizer = keras.optimizers.Adam(1e-2)
    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            embedding = model({"source_embedding": source}, training=True)["embedding"]
            loss = tf.reduce_mean((embedding - target) ** 2)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    losses = [float(step()) for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]
