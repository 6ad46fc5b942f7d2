"""Images in memory, or in files, embedded by a model outside of any gallery."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.files import reason
from fct_tf.models import export
from fct_tf.models.artifact import Artifact
from fct_tf.models.info import TRANSFORMS

Image = np.ndarray | str | os.PathLike


def embed(model: Artifact, images: np.ndarray | Sequence[Image], batch_size: int = 256):
    """Embeds images, resized and scaled as the model was trained with.

    Args:
      model: an embedding model.
      images: uint8 [n, h, w, 3]; or a list of such arrays [h, w, 3], of any sizes, and paths of
        JPEG or PNG files.
      batch_size: images per model call.

    Returns:
      float32 [n, model.dim].

    Raises:
      InputError: an image of another shape or type, a file that cannot be read; a transformation.
    """
    if model.kind in TRANSFORMS:
        raise InputError(f"{model.path}: a transformation, it reads embeddings and not images")
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"images={str(images)!r}: give a list of files or of arrays; a whole source of images "
            "is embedded into a gallery"
        )
    vectors = [np.empty((0, model.dim), np.float32)]
    for batch in _batches(model, images, batch_size):
        vectors.append(np.asarray(model.embed(batch)))
    return np.concatenate(vectors)


def _batches(model: Artifact, images: Any, batch_size: int) -> Iterator[tf.Tensor]:
    """uint8 [<= batch_size, height, width, 3], of the model's size."""
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        if isinstance(part, np.ndarray):
            _check(part[0], part.dtype, f"images {part.shape}")
            settings = model.preprocessing
            yield export.resize(tf.constant(part), settings["size"], settings["resize"])
        else:
            named = enumerate(part, start)
            yield tf.stack([_one(model, image, f"images[{row}]") for row, image in named])


def _one(model: Artifact, image: Image, where: str) -> tf.Tensor:
    settings = model.preprocessing
    if isinstance(image, str | os.PathLike):
        try:
            return export.decoded(tf.constant([Path(image).read_bytes()]), settings)[0]
        except OSError as error:
            raise InputError(f"{image}: cannot be read ({error.strerror})") from None
        except tf.errors.OpError as error:
            raise InputError(f"{image}: cannot be decoded ({reason(error)[:200]})") from None
    array = np.asarray(image)
    _check(array, array.dtype, where)
    return export.resize(tf.constant(array[None]), settings["size"], settings["resize"])[0]


def _check(image: np.ndarray, dtype: np.dtype, where: str) -> None:
    if dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise InputError(
            f"{where}: {dtype} {list(image.shape)} each; an image is uint8 [height, width, 3], of "
            "red, green and blue in 0..255"
        )
