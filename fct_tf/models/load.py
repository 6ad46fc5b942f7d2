"""Models of any origin, opened alike: artifacts, Keras files and SavedModels of a user's own."""

import dataclasses
import functools
import os
from typing import Any

from fct_tf.common import copies
from fct_tf.common.errors import InputError
from fct_tf.models import artifact, foreign
from fct_tf.models.info import TRANSFORMS


def load_any(path: str | os.PathLike, **settings: Any) -> artifact.Artifact:
    """Opens an artifact, or a Keras model or SavedModel of the user's own.

    Args:
      path: artifact directory, or the working directory of the training that made it; `.keras` or
        `.h5` file, or SavedModel directory.
      **settings: of models that are not artifacts, see `fct_tf.models.foreign.load`; `known` is
        for all.

    Raises:
      InputError: nothing readable there, or a model that does not map images to vectors.
    """
    uri, path = path, copies.local(path)
    if not path.exists():
        raise InputError(f"{uri}: no such model")
    path = artifact.directory(path)
    if (path / "model.json").exists() and not (path / "saved_model.pb").exists():
        loaded = artifact.load(path)
        if loaded.kind in TRANSFORMS:
            raise InputError(f"{path}: a transformation, it reads embeddings and not images")
        artifact.refuse_settings(path, "an artifact", settings)
        return loaded
    loaded = foreign.load(path, **settings)
    # Elsewhere what lies in a store is copied once more.
    again = functools.partial(load_any, copies.origin(path), **settings)
    return dataclasses.replace(loaded, again=again)
