"""Settings, initialisers and normalisation that all networks of this package share."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError

DTYPES = ("float32", "bfloat16", "float64")


class Settings:
    """The settings of one network, and a seed for each of its layers.

    Args:
      seed: the same seed gives the same initial weights; every layer draws from its own stream.
      bn_momentum, bn_epsilon: of BatchNorm, as Keras counts the momentum.
      dtype: `float32`; `bfloat16` arithmetic on float32 variables; or `float64`, slow, to compare
        computations: float32's rounding can flip a ReLU, which is no small difference any more.
      sync_batch_norm: BatchNorm's statistics over all replicas.

    Raises:
      InputError: an unknown dtype.
    """

    def __init__(
        self,
        seed: int,
        *,
        bn_momentum: float = 0.9,
        bn_epsilon: float = 1e-5,
        dtype: str = "float32",
        sync_batch_norm: bool = False,
    ):
        check_choice(dtype, DTYPES, "dtype")
        self.momentum = bn_momentum
        self.epsilon = bn_epsilon
        self.synchronized = sync_batch_norm
        self.policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
        self.output = "float64" if dtype == "float64" else "float32"  # of embeddings
        self._seeds = np.random.default_rng(seed)

    @classmethod
    def of(cls, config: Any, seed: int) -> "Settings":
        """The settings that `config` has as attributes, the papers' values for the others."""
        names = ("bn_momentum", "bn_epsilon", "dtype", "sync_batch_norm")
        given = {name: getattr(config, name) for name in names if hasattr(config, name)}
        return cls(seed, **given)

    def next_seed(self) -> int:
        return int(self._seeds.integers(2**31 - 1))

    def kernel(self) -> keras.initializers.Initializer:
        """Uniform in +-1/sqrt(fan_in), as torch.nn.Linear and Conv2d start; with its own seed."""
        seed = self.next_seed()
        return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)

    def bias(self, fan_in: int) -> keras.initializers.Initializer:
        """PyTorch draws biases from +-1/sqrt(fan_in) too."""
        bound = fan_in**-0.5
        return keras.initializers.RandomUniform(-bound, bound, seed=self.next_seed())

    def batch_norm(self, name: str) -> keras.layers.BatchNormalization:
        fused = not self.synchronized and self.output == "float32"  # There is no other one.
        layer = FusedBatchNormalization if fused else keras.layers.BatchNormalization
        return layer(
            momentum=self.momentum,
            epsilon=self.epsilon,
            synchronized=self.synchronized,
            dtype=self.policy,
            name=name,
        )


def check_choice(value: str, choices: tuple[str, ...], key: str) -> None:
    if value not in choices:
        raise InputError(f"{key}: {value!r} is not one of {', '.join(choices)}")


@keras.saving.register_keras_serializable(package="fct_tf")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' BatchNormalization in one fused TensorFlow operation (one cuDNN call on a GPU).

    Keras computes the moments, their use and the gradient in separate operations: slower, and
    on a GPU bound by memory. Weights and configuration are the same, so `plain` can turn one
    into the other. The running variance is that of the batch, as Keras' is, so that one device
    and several synchronised replicas agree (PyTorch's is larger by n / (n - 1)).

    Inputs: float32 or bfloat16 [batch, ..., channels].
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        channels = inputs.shape[-1]
        # The fused operation takes images; other ranks are images of one pixel.
        images = inputs if len(inputs.shape) == 4 else tf.reshape(inputs, [-1, 1, 1, channels])
        learn = bool(training and self.trainable)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            images,
            self.gamma,
            self.beta,
            mean=None if learn else self.moving_mean,
            variance=None if learn else self.moving_variance,
            epsilon=self.epsilon,
            is_training=learn,
        )
        if learn:
            count = tf.cast(tf.size(images) // channels, tf.float32)
            variance *= (count - 1.0) / count  # The operation returns the unbiased one.
            rate = 1.0 - self.momentum
            self.moving_mean.assign_sub((self.moving_mean - mean) * rate)
            self.moving_variance.assign_sub((self.moving_variance - variance) * rate)
        return outputs if images is inputs else tf.reshape(outputs, tf.shape(inputs))


@keras.saving.register_keras_serializable(package="fct_tf")
class SmallImageConv2D(keras.layers.Conv2D):
    """Keras' Conv2D; on images of hardly more than a pixel it is one matrix product.

    A ResNet's last stage sees such images where the input has 32 pixels, and convolution kernels
    are made for large ones: of the 3x3 kernel on a single pixel they compute all nine products,
    eight of them with padding. Here each product of a pixel with a part of the kernel stands once
    in a dense matrix. Weights, configuration and the function are the same, rounding apart.

    Inputs: float [batch, height, width, channels].
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        sizes = inputs.shape[1:3]
        if self.data_format != "channels_last" or self.groups > 1 or None in sizes:
            return super().call(inputs)
        taps = [self._taps(axis, size) for axis, size in enumerate(sizes)]
        height, width = self.kernel_size
        blocks = taps[0].size * taps[1].size
        padded = any(np.any((t < 0) | (t >= k)) for t, k in zip(taps, (height, width), strict=True))
        if padded or blocks > 2 * height * width or max(self.dilation_rate) > 1:
            return super().call(inputs)
        channels = inputs.shape[-1]
        # Not gathered or sliced: the gradient of this is a sum of matrices, put side by side.
        kernel = tf.unstack(tf.reshape(self.kernel, [height * width, channels, self.filters]))
        matrix = tf.concat(
            [
                tf.concat([kernel[y * width + x] for y in rows for x in columns], axis=1)
                for rows in taps[0]
                for columns in taps[1]
            ],
            axis=0,
        )
        outputs = tf.matmul(tf.reshape(inputs, [-1, matrix.shape[0]]), matrix)
        outputs = tf.reshape(outputs, [-1, taps[0].shape[1], taps[1].shape[1], self.filters])
        return self.activation(outputs + self.bias if self.use_bias else outputs)

    def _taps(self, axis: int, size: int) -> np.ndarray:
        """Which place of the kernel joins an input to an output: int [inputs, outputs]."""
        kernel, stride = self.kernel_size[axis], self.strides[axis]
        same = self.padding == "same"
        outputs = -(-size // stride) if same else max(0, (size - kernel) // stride + 1)
        before = max(0, (outputs - 1) * stride + kernel - size) // 2 if same else 0
        return np.arange(size)[:, None] + before - stride * np.arange(outputs)


# What is computed in a faster way, and the layer of Keras that computes the same.
_PLAIN: dict[type, type[keras.layers.Layer]] = {
    FusedBatchNormalization: keras.layers.BatchNormalization,
    SmallImageConv2D: keras.layers.Conv2D,
}


def plain(model: keras.Model) -> keras.Model:
    """A copy of `model` built of Keras' own layers only, with the same weights.

    Such a model is read by `keras.saving.load_model` on machines without this package.
    """

    def plain_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind = _PLAIN.get(type(layer), type(layer))
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=plain_layer)
    copy.set_weights(model.get_weights())
    return copy
