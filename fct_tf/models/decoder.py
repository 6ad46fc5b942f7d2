"""The decoder of the autoencoder side-information; dropped after training."""

import math
from typing import Any

import keras

from fct_tf.models.layers import Settings

# Channels after each doubling, the last repeated.
WIDTHS = (256, 128, 64, 32)


def build(config: Any, image_size: int, seed: int = 0) -> keras.Model:
    """Maps embeddings back to preprocessed images.

    A dense layer makes a small image, of 4 to 7 pixels, that is doubled by nearest neighbours
    and convolved until it has the size of the images; what stands over is cropped.

    Args:
      config: the backbone's: `embedding_dim`, and as `backbone.build` `width`, `bn_momentum`,
        `bn_epsilon`, `initializer`, `dtype`, `sync_batch_norm`.
      image_size: height and width of the images, pixels.
      seed: of the initial weights.

    Returns:
      A model from float32 [batch, embedding_dim] to float32 [batch, image_size, image_size, 3].
    """
    settings = Settings.of(config, seed)
    factor = getattr(config, "width", 1.0)
    widths = [max(1, round(factor * width)) for width in WIDTHS]
    doublings = max(0, math.floor(math.log2(image_size / 4)))
    start = math.ceil(image_size / 2**doublings)

    embedding = keras.Input((config.embedding_dim,), name="embedding")
    x = keras.layers.Dense(
        start * start * widths[0],
        use_bias=False,
        kernel_initializer=settings.kernel(),
        dtype=settings.policy,
        name="start",
    )(embedding)
    x = keras.layers.Reshape((start, start, widths[0]), dtype=settings.policy, name="image")(x)
    x = settings.batch_norm("start_bn")(x)
    x = keras.layers.ReLU(dtype=settings.policy, name="start_relu")(x)
    for level in range(1, doublings + 1):
        name = f"level{level}"
        x = keras.layers.UpSampling2D(2, dtype=settings.policy, name=f"{name}_up")(x)
        x = _conv(x, widths[min(level, len(widths) - 1)], settings, name, settings.policy, False)
        x = settings.batch_norm(f"{name}_bn")(x)
        x = keras.layers.ReLU(dtype=settings.policy, name=f"{name}_relu")(x)
    x = _conv(x, 3, settings, "pixels", settings.output, True)
    excess = x.shape[1] - image_size
    x = keras.layers.Cropping2D(((0, excess), (0, excess)), dtype=settings.output, name="crop")(x)
    return keras.Model(embedding, x, name="decoder")


def _conv(x, filters: int, settings: Settings, name: str, dtype: str, bias: bool):
    return keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=bias,
        kernel_initializer=settings.kernel(),
        dtype=dtype,
        name=name,
    )(x)
