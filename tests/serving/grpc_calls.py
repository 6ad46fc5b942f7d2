"""Calls of a model server over gRPC, and what they answer."""

import grpc
import pytest
import tensorflow as tf


def error_of(call, *args, **kwargs) -> tuple[str, str]:
    """The code and the text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code().name, caught.value.details()


def example_of(x: float) -> tf.train.Example:
    return tf.train.Example(
        features=tf.train.Features(
            feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[x]))}
        )
    )
