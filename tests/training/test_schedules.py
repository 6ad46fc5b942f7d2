"""Learning rates against the paper's formula, step by step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf.common.errors import InputError
from fct_tf.training import schedules


def section(name="cosine", per="epoch", **changes):
    config = schema.model(train_epochs=12, warmup_epochs=2, batch_size=128)
    config.optimizer.learning_rate = 0.1
    config.schedule.name, config.schedule.per = name, per
    for key, value in changes.items():
        target = config.schedule if key in config.schedule else config
        target[key] = value
    return config


def rates(config, steps_per_epoch, total_steps):
    schedule = schedules.learning_rate(config, steps_per_epoch, total_steps)
    return np.array([float(schedule(tf.constant(s, tf.int64))) for s in range(total_steps)])


def test_cosine_per_epoch_is_the_papers():
    found = rates(section(), 7, 12 * 7)
    epochs = np.arange(12)
    expected = np.where(
        epochs < 2, 0.1 * (epochs + 1) / 2, 0.05 * (1 + np.cos(np.pi * (epochs - 2) / 10))
    )
    np.testing.assert_allclose(found, np.repeat(expected, 7), rtol=1e-5)
    assert found[0] == pytest.approx(0.05) and found[2 * 7] == pytest.approx(0.1)


def test_cosine_per_step():
    found = rates(section(per="step"), 7, 84)
    steps = np.arange(84)
    expected = np.where(
        steps < 14, 0.1 * (steps + 1) / 14, 0.05 * (1 + np.cos(np.pi * (steps - 14) / 70))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_constant():
    found = rates(section("constant", warmup_epochs=3), 5, 30)
    expected = np.repeat([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1], 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_warm_up_in_steps_may_end_within_an_epoch():
    config = section(warmup_epochs=None, warmup_steps=5)
    found = rates(config, 10, 30)  # w = 0.5 epochs, E = 3
    expected = [0.1, *(0.05 * (1 + np.cos(np.pi * (e - 0.5) / 2.5)) for e in (1, 2))]
    np.testing.assert_allclose(found, np.repeat(expected, 10), rtol=1e-5)


def test_no_warm_up_and_warm_up_all_the_way():
    assert rates(section(warmup_epochs=0), 3, 36)[0] == pytest.approx(0.1)
    found = rates(section(warmup_epochs=12), 3, 36)
    np.testing.assert_allclose(found, np.repeat(0.1 * np.arange(1, 13) / 12, 3), rtol=1e-6)


def test_rate_stays_at_the_end_of_the_cosine():
    schedule = schedules.learning_rate(section(), 7, 84)
    assert float(schedule(84)) == pytest.approx(0, abs=1e-9)
    assert float(schedule(1000)) == pytest.approx(0, abs=1e-9)


def test_steps_beyond_the_precision_of_float32():
    """Step 2^24 and 2^24 + 1 are one float32; epochs are counted in integers."""
    config = section("cosine", warmup_epochs=0)  # Halfway after the first of two epochs.
    size = 2**24 + 1
    schedule = schedules.learning_rate(config, size, 2 * size)
    assert float(schedule(tf.constant(size - 1, tf.int64))) == pytest.approx(0.1)
    assert float(schedule(tf.constant(size, tf.int64))) == pytest.approx(0.05)


def test_in_an_optimizer_and_in_a_graph():
    schedule = schedules.learning_rate(section(), 1, 12)
    variable = keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.build([variable])

    @tf.function
    def step():
        optimizer.apply_gradients([(tf.constant([1.0]), variable)])

    values = [0.0]
    for _ in range(12):
        step()
        values.append(float(variable.numpy()[0]))
    np.testing.assert_allclose(-np.diff(values), rates(section(), 1, 12), rtol=1e-3, atol=1e-7)


def test_serialization():
    schedule = schedules.learning_rate(section(warmup_epochs=3), 7, 84)
    again = schedules.WarmupSchedule(**schedule.get_config())
    assert [float(again(s)) for s in (0, 20, 22)] == [float(schedule(s)) for s in (0, 20, 22)]
    optimizer = keras.optimizers.SGD(schedule)
    copy = keras.optimizers.SGD.from_config(optimizer.get_config())
    assert float(copy.learning_rate) == float(optimizer.learning_rate)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "cosin"}, "schedule.name: 'cosin' is not one of cosine, constant"),
        ({"per": "batch"}, "schedule.per: 'batch' is not one of epoch, step"),
        ({"warmup_epochs": 13}, "warm-up of 91 steps in a training of 84 steps"),
        ({"warmup_steps": 3}, "warmup_steps: .* given too"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        schedules.learning_rate(section(**changes), 7, 84)
