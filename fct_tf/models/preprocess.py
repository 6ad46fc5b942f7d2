"""From pixels to what a network reads; part of an embedding space's identity."""

from typing import TypedDict

import numpy as np
import tensorflow as tf

from fct_tf.errors import InputError
from fct_tf.image_size import Size, stored


class Preprocessing(TypedDict):
    """How images become network inputs: resize (done by the data pipeline), then scale."""

    size: int | list[int]  # pixels: height and width, or [height, width] where they differ
    resize: str  # bilinear_antialias or center_crop, see fct_tf.data.datasets
    mean: list[float]  # per channel, of values in 0..1
    std: list[float]


# x / 127.5 - 1; the mean and deviation of ImageNet; and x as it is, for models that scale inside.
SCALES = {
    "symmetric": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "raw": ([0.0, 0.0, 0.0], [1 / 255, 1 / 255, 1 / 255]),
}


def preprocessing(name: str, size: Size, resize: str = "bilinear_antialias") -> Preprocessing:
    """The preprocessing called `symmetric`, `imagenet` or `raw`.

    Raises:
      InputError: an unknown name.
    """
    if name not in SCALES:
        raise InputError(f"preprocess: {name!r} is not one of {', '.join(SCALES)}")
    mean, std = SCALES[name]
    return {"size": stored(size), "resize": resize, "mean": list(mean), "std": list(std)}


def apply(images: tf.Tensor, settings: Preprocessing) -> tf.Tensor:
    """(images / 255 - mean) / std.

    Args:
      images: uint8 or float [batch, height, width, 3], values in 0..255.
      settings: see `Preprocessing`.

    Returns:
      float32 [batch, height, width, 3].
    """
    # One multiplication and one addition per pixel; the constants are rounded once.
    mean, std = np.array(settings["mean"]), np.array(settings["std"])
    scale, offset = np.float32(1.0 / (255.0 * std)), np.float32(mean / std)
    return tf.cast(images, tf.float32) * scale - offset
