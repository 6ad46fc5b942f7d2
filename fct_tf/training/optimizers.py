"""Optimizers, and L2 regularisation as the papers' code applies it."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from fct_tf.common.errors import InputError


def build(config: Any, schedule: Any) -> keras.optimizers.Optimizer:
    """SGD with momentum, or Adam.

    Keras keeps the learning rate inside SGD's velocity, PyTorch outside: while the rate is
    constant they agree, after a change Keras' step lags by the memory of the momentum (about
    eight steps at 0.875).

    Build it inside the strategy's scope. The L2 term is not part of it: see `add_l2`.

    Args:
      config: attributes `name` (`sgd` or `adam`); for SGD `momentum`, for Adam
        `beta_1`, `beta_2`, `epsilon`.
      schedule: learning rate, a number or a `LearningRateSchedule`.

    Raises:
      InputError: an unknown name.
    """
    if config.name == "sgd":
        return keras.optimizers.SGD(schedule, momentum=config.momentum)
    if config.name == "adam":
        return keras.optimizers.Adam(
            schedule,
            beta_1=getattr(config, "beta_1", 0.9),
            beta_2=getattr(config, "beta_2", 0.999),
            epsilon=getattr(config, "epsilon", 1e-8),
        )
    raise InputError(f"optimizer.name: {config.name!r} is not one of sgd, adam")


def descend(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | None],
    variables: Sequence[keras.Variable],
    config: Any,
) -> None:
    """One step of the optimizer with the L2 term of `config` (`l2`).

    Called by every replica with its own gradients, whose sum over replicas is applied.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    gradients = add_l2(gradients, variables, config.l2, replicas)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def add_l2(
    gradients: Sequence[tf.Tensor | None],
    variables: Sequence[keras.Variable],
    l2: float,
    num_replicas: int = 1,
) -> list[tf.Tensor | None]:
    """Adds the gradient of l2/2 * |w|^2, that is l2 * w, to each gradient.

    Of all that is trained, BatchNorm's scale and offset and the biases too, as in the papers.

    This is PyTorch's `weight_decay`, coupled with momentum and Adam's moments; Keras'
    `weight_decay` is decoupled and `keras.regularizers.L2(l2)` has twice this gradient.

    Args:
      gradients: one replica's, in the order of `variables`; None stays None.
      variables: what is trained.
      l2: the papers' 2^-15, for example.
      num_replicas: Keras sums gradients over so many replicas, so each adds its share.
    """
    if not l2:
        return list(gradients)
    share = l2 / num_replicas
    return [
        gradient if gradient is None else gradient + share * tf.convert_to_tensor(variable)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]
