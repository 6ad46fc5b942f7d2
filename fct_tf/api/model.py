"""A model that embeds images: its own, in memory or in files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_tf.api.arguments import PathLike
from fct_tf.common.annotations import checked_methods

if TYPE_CHECKING:
    from fct_tf.models.artifact import Artifact


@checked_methods
class Model:
    """A model that embeds images."""

    def __init__(self, loaded: "Artifact", described: dict[str, Any]):
        """Use `load`."""
        self._loaded = loaded
        self.described = described

    @classmethod
    def load(cls, path: PathLike, **described: Any) -> "Model":
        """Opens an artifact, or a Keras file or SavedModel of your own.

        Args:
          path: artifact directory, `.keras` or `.h5` file, or SavedModel directory.
          **described: of a model of your own `name`, `image_size`, `preprocessing`, `resize`,
            `distance`, `orientation`, `signature`, `output_name`.

        Raises:
          InputError: no model there, or one that does not map images to vectors.
        """
        from fct_tf.models.load import load_any

        return cls(load_any(path, **described), described)

    @property
    def path(self) -> Path:
        return self._loaded.path

    @property
    def name(self) -> str:
        return self._loaded.name

    @property
    def space(self) -> str:
        """Fingerprint of the space of its embeddings."""
        return self._loaded.space

    @property
    def dim(self) -> int:
        """Size of its embeddings."""
        return self._loaded.dim

    @property
    def distance(self) -> str:
        """How its embeddings are compared, `l2` or `cosine`."""
        return self._loaded.distance

    @property
    def info(self) -> dict[str, Any]:
        """What is known of it: spaces, preprocessing, training, versions."""
        return self._loaded.info

    def embed(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """Embeds images in memory or in files; a whole source comes into a gallery by
        `Gallery.embed`.

        Args:
          images: uint8 [n, h, w, 3]; or a list of such arrays [h, w, 3], of any sizes, and paths
            of JPEG or PNG files. They are resized and scaled as the model was trained with.
          batch_size: images per model call.

        Returns:
          float32 [n, dim].

        Raises:
          InputError: an image of another shape or type, a file that cannot be read.
        """
        from fct_tf.models import embedding

        return embedding.embed(self._loaded, images, batch_size)

    def __repr__(self) -> str:
        return f"Model({self.name}: {self.dim} values, {self.distance}; {self.path})"


def described(model: Model | PathLike) -> tuple[str, dict[str, Any]]:
    """A model's path and what is said of it: it is opened anew beside what a gallery knows."""
    if isinstance(model, Model):
        return str(model.path), model.described
    return os.fspath(model), {}
