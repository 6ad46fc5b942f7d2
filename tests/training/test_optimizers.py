"""Optimizer trajectories against PyTorch's update rules, written in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf.common.errors import InputError
from fct_tf.models import transformation
from fct_tf.training import optimizers
from tests import replicas

L2 = 2.0**-3


def gradients(steps=7):
    return np.random.default_rng(0).normal(size=(steps, 5)).astype(np.float32)


def trajectory(config, learning_rate, l2):
    variable = keras.Variable(np.linspace(-1, 1, 5), dtype="float32")
    optimizer = optimizers.build(config, learning_rate)
    optimizer.build([variable])
    values = []
    for gradient in gradients():
        with_l2 = optimizers.add_l2([tf.constant(gradient)], [variable], l2)
        optimizer.apply_gradients(zip(with_l2, [variable], strict=True))
        values.append(variable.numpy())
    return np.array(values)


def test_sgd_with_momentum_and_l2():
    config = schema.sgd()
    w, buffer, expected = np.linspace(-1, 1, 5), np.zeros(5), []
    for gradient in gradients():
        gradient = gradient + L2 * w
        buffer = 0.875 * buffer + gradient
        w = w - 0.1 * buffer
        expected.append(w)
    np.testing.assert_allclose(trajectory(config, 0.1, L2), expected, rtol=1e-4, atol=1e-6)


def test_adam_with_coupled_l2():
    config = schema.adam()
    w, m, v, expected = np.linspace(-1, 1, 5), np.zeros(5), np.zeros(5), []
    for t, gradient in enumerate(gradients(), 1):
        gradient = gradient + L2 * w
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(w)
    np.testing.assert_allclose(trajectory(config, 0.01, L2), expected, rtol=1e-4, atol=1e-6)


def test_l2_is_the_gradient_of_half_the_squared_norm():
    variables = [keras.Variable(tf.range(4.0)), keras.Variable(tf.ones([2, 3]))]
    with tf.GradientTape() as tape:
        penalty = sum(0.5 * L2 * tf.reduce_sum(tf.square(v.value)) for v in variables)
    expected = tape.gradient(penalty, [v.value for v in variables])
    zeros = [tf.zeros(v.shape) for v in variables]
    for found, wanted in zip(optimizers.add_l2(zeros, variables, L2), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_l2_applies_to_everything():
    model = transformation.build(3, 2, hidden=4)
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    zeros = [tf.zeros(v.shape) for v in variables]
    everything = optimizers.add_l2(zeros, variables, L2)
    assert all(np.all(g.numpy() == np.float32(L2)) for g in everything)


def test_without_l2_and_without_gradient():
    variables = [keras.Variable(tf.ones(2)), keras.Variable(tf.ones(2))]
    gradient = tf.constant([3.0, 4.0])
    assert optimizers.add_l2([gradient, None], variables, 0.0) == [gradient, None]
    found = optimizers.add_l2([None, gradient], variables, L2)
    assert found[0] is None
    np.testing.assert_allclose(found[1], [3.0 + L2, 4.0 + L2], rtol=1e-6)
    with pytest.raises(ValueError):
        optimizers.add_l2([gradient], variables, L2)


def test_two_replicas_step_as_one_device(two_devices):
    """Shares of gradient and L2 are summed over replicas by the optimizer."""
    strategy = replicas.strategy()
    data = np.random.default_rng(1).normal(size=(10, 5)).astype(np.float32)

    def step(batch, variable, optimizer, num_replicas):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.linalg.matvec(batch, variable) ** 2) / 10
        found = tape.gradient(loss, [variable])
        found = optimizers.add_l2(found, [variable], L2, num_replicas=num_replicas)
        optimizer.apply_gradients(zip(found, [variable], strict=True))

    def make():
        variable = keras.Variable(np.linspace(-1, 1, 5), dtype="float32")
        optimizer = optimizers.build(schema.sgd(), 0.1)
        optimizer.build([variable])
        return variable, optimizer

    single = make()
    with strategy.scope():
        mirrored = make()

    @tf.function
    def replicated(batch):
        strategy.run(lambda x: step(x, *mirrored, 2), args=(batch,))

    for _ in range(5):
        step(tf.constant(data), *single, 1)
        replicated(replicas.split(data))
    np.testing.assert_allclose(mirrored[0].numpy(), single[0].numpy(), rtol=1e-5)


def test_settings_reach_the_optimizer():
    config = schema.adam()
    config.beta_1, config.beta_2, config.epsilon = 0.8, 0.9, 1e-4
    adam = optimizers.build(config, 0.5)
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.8, 0.9, 1e-4)
    assert adam.weight_decay is None  # Keras' decay is decoupled, another thing
    config = schema.sgd()
    config.name = "lars"
    with pytest.raises(InputError, match="optimizer.name: 'lars' is not one of sgd, adam"):
        optimizers.build(config, 0.5)
