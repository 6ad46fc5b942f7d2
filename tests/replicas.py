"""One strategy of two logical CPU devices for all tests of a process.

A second MirroredStrategy over the same devices would number its collective operations as the
first did, and TensorFlow would take one for the other.
"""

import functools

import tensorflow as tf

from fct_tf import config as schema
from fct_tf.training import loop


@functools.cache
def strategy() -> tf.distribute.Strategy:
    """The strategy that training itself uses with two devices."""
    training = schema.experiment("test").training
    training.strategy, training.devices = "mirrored", 2
    return loop.setup(training, seed=0)


def split(value) -> tf.distribute.DistributedValues:
    """The two halves of a batch, one for each replica."""
    half = len(value) // 2
    return strategy().experimental_distribute_values_from_function(
        lambda context: tf.constant(value[half * context.replica_id_in_sync_group :][:half])
    )
