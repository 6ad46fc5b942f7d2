"""From pixels to what a network reads; part of an embedding space's identity."""

from typing import NotRequired, TypedDict

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.image_size import Size, stored


class Preprocessing(TypedDict):
    """How images become network inputs: resize (done by the data pipeline), then scale."""

    size: int | list[int]  # pixels: height and width, or [height, width] where they differ
    # Of photographs, by EXIF: applied; where the key is missing (older models), ignored.
    orientation: NotRequired[str]
    resize: str  # bilinear_antialias or center_crop, see fct_tf.data.datasets
    mean: list[float]  # per channel, of values in 0..1
    std: list[float]


# x / 127.5 - 1; the mean and deviation of ImageNet; and x as it is, for models that scale inside.
SCALES = {
    "symmetric": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "raw": ([0.0, 0.0, 0.0], [1 / 255, 1 / 255, 1 / 255]),
}


def preprocessing(
    name: str, size: Size, resize: str = "bilinear_antialias", orientation: str = "applied"
) -> Preprocessing:
    """The preprocessing called `symmetric`, `imagenet` or `raw`.

    With the orientation `ignored` the key is left out: the settings, and so the space, are those
    of models made before the orientation of photographs was read.

    Raises:
      InputError: an unknown name.
    """
    if name not in SCALES:
        raise InputError(f"preprocess: {name!r} is not one of {', '.join(SCALES)}")
    mean, std = SCALES[name]
    settings: Preprocessing = {
        "size": stored(size),
        "resize": resize,
        "mean": list(mean),
        "std": list(std),
    }
    return settings if orientation == "ignored" else {**settings, "orientation": "applied"}


def orientation(settings: Preprocessing) -> str:
    """What becomes of a photograph's EXIF orientation: `applied` or `ignored`."""
    return settings.get("orientation", "ignored")


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


def covering(shape: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The least size, int32 [2], of an image of `shape` that covers size / 0.875 in both sides."""
    sides = [round(side / 0.875) for side in size]
    shape = tf.cast(shape, tf.float32)
    # The side that needs the greater factor decides; of both.
    scaled = [tf.round(shape * side / shape[place]) for place, side in enumerate(sides)]
    return tf.maximum(tf.cast(tf.maximum(*scaled), tf.int32), sides)
