"""SavedModels of this package: found on disk, described, and run through their signature.

`fct_tf.models.export` writes them, TF Serving and `fct_tf.upgrade.upgrade` run them. What a
SavedModel itself cannot say (spaces, distance, model names) lies beside `saved_model.pb` in
`assets.extra/fct_tf.json`, a directory that TF Serving leaves alone.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.common import copies, objects, stores
from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.models import info as infos

# The description is read without TensorFlow elsewhere; here is where its files are looked for.
from fct_tf.models.info import FORMAT as FORMAT
from fct_tf.models.info import INFO as INFO
from fct_tf.models.info import QUERY, ROWS, TRANSFORMS
from fct_tf.models.info import read_info as read_info

SIGNATURE = "serving_default"
RESIZED = "resized"  # Of query encoders: images of the model's size.


def locate(path: str | os.PathLike) -> Path:
    """The directory with `saved_model.pb` that `path` means.

    Args:
      path: a SavedModel; a directory of numbered versions (TF Serving's layout), of which the
        highest is taken; or the working directory or artifact of a training with `saved_model/`
        in it. What lies in an object store is copied, see `fct_tf.common.copies`.

    Raises:
      InputError: there is none.
    """
    if stores.in_store(path):
        return _locate_in_store(os.fspath(path).rstrip("/"))
    path = Path(stores.local_form(path))
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


def _locate_in_store(uri: str) -> Path:
    """As `locate`; only the SavedModel itself is copied."""
    candidates = [uri, f"{uri}/saved_model"]
    is_artifact = objects.about(f"{uri}/model.json") is not None
    if is_artifact:
        candidates.append(f"{uri.rpartition('/')[0]}/saved_model")
    # A version that is being uploaded has no saved_model.pb yet.
    candidates += [f"{uri}/{version}" for version in reversed(_versions(objects.folders(uri)))]
    for candidate in candidates:
        if objects.about(f"{candidate}/saved_model.pb") is not None:
            return copies.local(candidate)
    problem = "a model artifact without a SavedModel" if is_artifact else "no SavedModel here"
    raise InputError(
        f"{uri}: {problem} (no saved_model.pb, no numbered version); make one with "
        "python -m fct_tf.export_serving"
    )


def versions_in(path: str | os.PathLike) -> list[int]:
    """Version numbers of the SavedModels in a directory, ascending; empty when it is none."""
    path = Path(path)
    if not path.is_dir():
        return []
    return _versions([entry.name for entry in path.iterdir() if entry.is_dir()])


def _versions(names: Sequence[str]) -> list[int]:
    # Only plain numbers are versions to TF Serving; "007" and "7" would be the same one.
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


@dataclass(frozen=True)
class Transformation:
    """A transformation SavedModel, loaded: the side of it that makes rows, or that of queries.

    Attributes:
      path: the directory with `saved_model.pb`.
      info: see `read_info`.
      dims: what it reads, `source_embedding`, then perhaps `side_info`, or of queries
        `target_embedding`, and `embedding`, what it makes -> dimension.
      has_log_variance: whether it also returns `log_variance`.
      fuse: of a fused search, makes rows of the embeddings of the old and the new model, float32
        [n, d_source] and [n, d_target]; None of other transformations.
    """

    path: Path
    info: dict[str, Any]
    dims: dict[str, int]
    has_log_variance: bool
    fuse: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    _signatures: Mapping[str, Callable]
    _name: str = SIGNATURE

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Transforms rows.

        Args:
          *inputs: float32 [n, dim] each, in the order of `dims`.

        Returns:
          `embedding` float32 [n, d] and, where the model has it, `log_variance` float32 [n].
        """
        return _run(self._signatures[self._name], dict(zip(self.dims, inputs, strict=False)))

    def __reduce__(self):
        # In another process it is loaded there, from the same path.
        side = "query" if self._name == QUERY else "gallery"
        return _load_again, (copies.origin(self.path), side, self.info["space"])

    def query_side(self) -> "Transformation":
        """What makes the queries of a fused search.

        Raises:
          InputError: this is none.
        """
        infos.check_fused(self.info, str(self.path))
        dims = infos.dims_of(_specs(self._signatures[QUERY]), self.dims["embedding"])
        return dataclasses.replace(self, dims=dims, has_log_variance=False, _name=QUERY)


def _load_again(path: str, side: str, space: str) -> Transformation:
    """A transformation that was pickled, which must not be another one by now."""
    loaded = load_transformation(path, side)
    if loaded.info["space"] != space:
        raise InputError(
            f"{path}: is now the transformation {loaded.info['space']}, not {space}; start again"
        )
    return loaded


def _run(signature: Callable, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {name: tf.constant(value, tf.float32) for name, value in inputs.items()}
    return {name: value.numpy() for name, value in signature(**tensors).items()}


def _specs(signature: Any) -> Mapping[str, tf.TensorSpec]:
    return signature.structured_input_signature[1]


def load_transformation(path: str | os.PathLike, side: str = "gallery") -> Transformation:
    """Loads the transformation SavedModel that `path` means (see `locate`).

    Args:
      side: `gallery`, or of a fused search also `query`: what makes its queries.

    Raises:
      InputError: none there, a broken one, one of another kind, or without that side.
    """
    directory = locate(path)
    info = read_info(directory)
    if info["kind"] not in TRANSFORMS:
        raise InputError(
            f"{directory}: a SavedModel of kind {info['kind']!r}, a transformation is needed"
        )
    if side == "query":
        infos.check_fused(info, str(directory))
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # TensorFlow raises whatever the broken part gives rise to.
        raise InputError(
            f"{directory}: cannot be loaded ({one_line(error)[:300]}); export it again"
        ) from None
    for name in (SIGNATURE, QUERY, ROWS) if info["kind"] == "fused" else (SIGNATURE,):
        if name not in loaded.signatures:
            raise InputError(f"{directory}: has no signature {name}; export it again")
        # The loaded object owns the variables and must live as long as the signature is used.
        loaded.signatures[name].owner = loaded
    signature = loaded.signatures[SIGNATURE]
    outputs = signature.structured_outputs
    dims = infos.dims_of(_specs(signature), outputs["embedding"].shape[-1])
    fuse = None
    if info["kind"] == "fused":

        def fuse(source: np.ndarray, target: np.ndarray) -> np.ndarray:
            inputs = {"source_embedding": source, "target_embedding": target}
            return _run(loaded.signatures[ROWS], inputs)["embedding"]

    has_log_variance = "log_variance" in outputs
    model = Transformation(directory, info, dims, has_log_variance, fuse, loaded.signatures)
    return model.query_side() if side == "query" else model
