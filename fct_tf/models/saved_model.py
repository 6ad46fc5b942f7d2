"""SavedModels of this package: found on disk, described, and run through their signature.

`fct_tf.models.export` writes them, TF Serving and `fct_tf.upgrade.upgrade` run them. What a
SavedModel itself cannot say (spaces, distance, model names) lies beside `saved_model.pb` in
`assets.extra/fct_tf.json`, a directory that TF Serving leaves alone.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line

# The description is read without TensorFlow elsewhere; here is where its files are looked for.
from fct_tf.models.info import FORMAT as FORMAT
from fct_tf.models.info import INFO as INFO
from fct_tf.models.info import read_info as read_info

SIGNATURE = "serving_default"
RESIZED = "resized"  # Of query encoders: images of the model's size.


def locate(path: str | os.PathLike) -> Path:
    """The directory with `saved_model.pb` that `path` means.

    Args:
      path: a SavedModel; a directory of numbered versions (TF Serving's layout), of which the
        highest is taken; or the working directory or artifact of a training with `saved_model/`
        in it.

    Raises:
      InputError: there is none.
    """
    path = Path(path)
    candidates = [path, path / "saved_model"]
    if (path / "model.json").is_file():  # An artifact: the training put its SavedModel beside it.
        candidates.append(path.parent / "saved_model")
    versions = versions_in(path)
    if versions:
        candidates.append(path / str(max(versions)))
    for candidate in candidates:
        if (candidate / "saved_model.pb").is_file():
            return candidate
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; name a SavedModel")
    if (path / "model.json").is_file():
        raise InputError(
            f"{path}: a model artifact without a SavedModel; make one with "
            f"python -m fct_tf.export_serving --model={path} --output=DIR"
        )
    raise InputError(f"{path}: no SavedModel here (no saved_model.pb, no numbered version)")


def versions_in(path: str | os.PathLike) -> list[int]:
    """Version numbers of the SavedModels in a directory, ascending; empty when it is none."""
    path = Path(path)
    if not path.is_dir():
        return []
    names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    # Only plain numbers are versions to TF Serving; "007" and "7" would be the same one.
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


@dataclass(frozen=True)
class Transformation:
    """A transformation SavedModel, loaded.

    Attributes:
      path: the directory with `saved_model.pb`.
      info: see `read_info`.
      dims: role (`source_embedding`, `side_info`, `embedding`) -> dimension; `side_info` is
        missing where the transformation was trained without it.
      has_log_variance: whether it also returns `log_variance`.
    """

    path: Path
    info: dict[str, Any]
    dims: dict[str, int]
    has_log_variance: bool
    _signature: Callable

    def __call__(
        self, source_embedding: np.ndarray, side_info: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Transforms rows.

        Args:
          source_embedding: float32 [n, d_source].
          side_info: float32 [n, d_side]; given exactly when `dims` has `side_info`.

        Returns:
          `embedding` float32 [n, d_target] and, where the model has it, `log_variance`
          float32 [n].
        """
        inputs = {"source_embedding": source_embedding}
        if side_info is not None:
            inputs["side_info"] = side_info
        outputs = self._signature(
            **{name: tf.constant(value, tf.float32) for name, value in inputs.items()}
        )
        return {name: value.numpy() for name, value in outputs.items()}


def load_transformation(path: str | os.PathLike) -> Transformation:
    """Loads the transformation SavedModel that `path` means (see `locate`).

    Raises:
      InputError: none there, a broken one, or one of another kind.
    """
    directory = locate(path)
    info = read_info(directory)
    if info["kind"] != "transformation":
        raise InputError(
            f"{directory}: a SavedModel of kind {info['kind']!r}, a transformation is needed"
        )
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # TensorFlow raises whatever the broken part gives rise to.
        raise InputError(
            f"{directory}: cannot be loaded ({one_line(error)[:300]}); export it again"
        ) from None
    signature = loaded.signatures.get(SIGNATURE)
    if signature is None:
        raise InputError(f"{directory}: has no signature {SIGNATURE}; export it again")
    # The loaded object owns the variables and must live as long as the signature is used.
    signature.owner = loaded
    dims = {name: spec.shape[-1] for name, spec in signature.structured_input_signature[1].items()}
    outputs = signature.structured_outputs
    dims["embedding"] = outputs["embedding"].shape[-1]
    return Transformation(directory, info, dims, "log_variance" in outputs, signature)
