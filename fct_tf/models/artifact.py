"""Model artifacts: directories with a network, its classifier and what must be known of it.

model.keras     the network, of Keras' own layers (or keras-cv's)
classifier.npz  `weights` float32 [d, classes] and `label_names`, where there is a classifier
model.json      kind, space, dims, preprocessing, distance, training settings, versions

The `space` is the identity of the vectors that the network makes: equal spaces are comparable.
"""

import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from fct_tf.common import copies, stores
from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line, read_json, refuse_existing, write_json
from fct_tf.common.image_size import height_width
from fct_tf.common.provenance import library_versions
from fct_tf.models import fusion, layers, preprocess, space
from fct_tf.models.info import TRANSFORMS
from fct_tf.models.space import tensors_sha256 as tensors_sha256

FORMAT = 1
Kind = Literal["backbone", "side_info", "transformation", "fused"]
KINDS = ("backbone", "side_info", *TRANSFORMS)
TRANSFORMATION_SPACES = ("source_space", "side_info_space", "target_space")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model that has been saved, ready to embed.

    `path` is where it lies, `info` what model.json says, `load_model` reads the network; use
    `model`, which reads it once. `again` opens it once more, in another process.
    """

    path: Path
    info: dict[str, Any]
    load_model: Callable[[], Callable[[Any], Any]]
    again: "Callable[[], Artifact] | None" = None

    def __reduce__(self):
        again = self.again or functools.partial(load, copies.origin(self.path))
        return _open_again, (again, self.space)

    @property
    def kind(self) -> str:
        return self.info["kind"]

    @property
    def column_kind(self) -> str:
        """Kind of a gallery's column of its embeddings: `embedded`, `side_info`, `fused`."""
        own = "side_info" if self.kind == "side_info" else "embedded"
        return self.info.get("column_kind", own)

    @property
    def name(self) -> str:
        """The human name of the model."""
        return self.info["name"]

    @property
    def space(self) -> str:
        """Fingerprint of the space of its embeddings, hexadecimal SHA-256; see `models.space`."""
        return self.info["space"]

    @property
    def earlier_space(self) -> str | None:
        """Of a user's own model, the space that earlier versions gave it; None of others.

        They told a Keras file by its weights and a SavedModel by its bytes.
        """
        return self.info.get("earlier_space")

    @property
    def dim(self) -> int:
        """Size of its embeddings."""
        return self.info["dims"]["embedding"]

    @property
    def distance(self) -> str:
        """`l2` or `cosine`."""
        return self.info["distance"]

    @property
    def compatible_with(self) -> list[str]:
        return self.info["compatible_with"]

    @property
    def preprocessing(self) -> preprocess.Preprocessing:
        return self.info["preprocessing"]

    @functools.cached_property
    def model(self) -> Callable[[Any], Any]:
        """The network: a `keras.Model` (a callable for a SavedModel of someone else)."""
        return self.load_model()

    @functools.cached_property
    def embed(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Embeds images.

        A function of images, float [batch, height, width, 3] in 0..255 and of the size that
        `preprocessing` says, that returns float32 [batch, dim]. BatchNorm runs in inference.
        """
        height, width = height_width(self.preprocessing["size"])
        network = self.model
        arguments = {"training": False} if isinstance(network, keras.Model) else {}

        @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.float32)])
        def embed(images: tf.Tensor) -> tf.Tensor:
            pixels = preprocess.apply(images, self.preprocessing)
            return tf.cast(network(pixels, **arguments), tf.float32)

        return lambda images: embed(tf.cast(images, tf.float32))

    @functools.cached_property
    def classifier(self) -> tuple[np.ndarray, tuple[str, ...]] | None:
        """Its weights, float32 [dim, classes], and the classes' label names; None without one."""
        path = self.path / "classifier.npz"
        if "classifier.npz" not in self.info.get("files", {}):
            return None
        with _reading(path), np.load(path, allow_pickle=False) as arrays:
            return arrays["weights"], tuple(str(name) for name in arrays["label_names"])

    @property
    def classifier_scale(self) -> float | None:
        """Of a classifier over angles, the scale of its cosines; None: its logits are linear."""
        return self.info.get("classifier_scale")


def _open_again(opening: Callable[[], Artifact], space: str) -> Artifact:
    """An artifact that was pickled, which must not be another one by now."""
    opened = opening()
    if opened.space != space:
        raise InputError(
            f"{opened.path}: is now the model {opened.space}, not {space}; start again"
        )
    return opened


def save(
    path: str | os.PathLike,
    model: keras.Model,
    kind: Kind,
    info: dict[str, Any],
    classifier: tuple[np.ndarray, Sequence[str]] | None = None,
    overwrite: bool = False,
) -> Path | str:
    """Writes an artifact, all of it or nothing.

    Args:
      path: directory to make, or the URI of one in an object store.
      model: the embedding path: from preprocessed images, or a transformation.
      kind: `backbone`, `side_info`, `transformation`, or `fused`: the gallery side of a fused
        search.
      info: what model.json shall say. `name` and `distance` are needed; of images
        `preprocessing`; of transformations `source_space`, `side_info_space` (or None) and
        `target_space`. A classifier over angles has `classifier_scale`. `space`, `dims`,
        `kind`, `format`, `versions` and `files` are added, and `fused_space`: in which the rows
        and queries of a fused search lie, whatever transformation the rows went through.
      classifier: weights float32 [d, classes] and label names, one per class.
      overwrite: replace an artifact that is there.

    Raises:
      InputError: `path` exists already.
      ValueError: `info` lacks a key, or the classifier does not fit.
    """
    if not stores.in_store(path):
        refuse_existing(path, overwrite)
    transforms = kind in TRANSFORMS
    needed = ("name", "distance", *(TRANSFORMATION_SPACES if transforms else ("preprocessing",)))
    missing = [key for key in needed if key not in info]
    if missing or kind not in KINDS:
        raise ValueError(f"artifact of kind {kind!r}: missing in info: {missing}")
    space_settings = (
        {key: info[key] for key in TRANSFORMATION_SPACES[:2]}
        if transforms
        else info["preprocessing"]
    )
    # The file must not need this package to be read.
    model = layers.plain(model)
    dims = _dims(model)
    rows = fusion.of(model) if kind == "fused" else None
    if rows is not None:
        dims["target_embedding"] = _dims(rows)["target_embedding"]
        spaces = {key: info[key] for key in ("source_space", "target_space")}
        info = {**info, "fused_space": fingerprint(rows, spaces, str(path))}
    if classifier is not None:
        weights, label_names = np.asarray(classifier[0], np.float32), list(classifier[1])
        if weights.shape != (dims["embedding"], len(label_names)):
            raise ValueError(
                f"classifier: weights {weights.shape} for embeddings of {dims['embedding']} and "
                f"{len(label_names)} label names"
            )
    with copies.made_dir(path, "model.json", overwrite) as directory:
        model.save(directory / "model.keras")
        if classifier is not None:
            np.savez(
                directory / "classifier.npz", weights=weights, label_names=np.array(label_names)
            )
        record = {
            **{"format": FORMAT, "kind": kind, "compatible_with": []},
            **info,
            "space": fingerprint(model, space_settings, str(path)),
            "dims": dims,
            "versions": library_versions(),
            "files": {file.name: _file_sha256(file) for file in sorted(directory.iterdir())},
        }
        write_json(directory / "model.json", record)
    return copies.as_path(path)


def directory(path: str | os.PathLike) -> Path:
    """The artifact that is meant: `path`, or what a training left in it as `artifact`."""
    path = copies.local(path)
    inside = path / "artifact"
    return inside if (inside / "model.json").is_file() else path


def load(path: str | os.PathLike) -> Artifact:
    """Opens an artifact; the network itself is read when it is first used.

    Raises:
      InputError: no artifact, one of a later format, or one whose files are missing or changed.
    """
    path = directory(path)
    if not path.exists():
        raise InputError(f"{path}: not a model artifact (no such directory)")
    if not (path / "model.json").is_file():
        raise InputError(f"{path}: not a model artifact (no model.json in it)")
    if (path / "saved_model.pb").exists():
        raise InputError(f"{path}: a SavedModel, not a model artifact; name what it was made from")
    info = read_json(path / "model.json")
    described = isinstance(info, dict) and {"format", "kind", "space", "dims", "files"} <= {*info}
    if not described or info["kind"] not in KINDS:
        raise InputError(f"{path}/model.json: does not describe a model artifact; train it again")
    if info["format"] != FORMAT:
        raise InputError(
            f"{path}: artifact format {info['format']}, this version reads {FORMAT}; "
            "use the version of fct_tf that wrote it"
        )
    for name, expected in info["files"].items():
        with _reading(path / name):
            digest = _file_sha256(path / name)
        if digest != expected:
            raise InputError(f"{path / name}: changed or damaged since it was saved; copy it again")
    return Artifact(path, info, functools.partial(load_keras, path / "model.keras"))


def refuse_settings(path: Path, what: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings of a user's own model for one that brings them along."""
    given = ", ".join(name for name, value in settings.items() if value and name != "known")
    if given:
        raise InputError(f"{path}: {what} knows its own {given}; leave that out")


def fingerprint(model: keras.Model, settings: Any, name: str = "model") -> str:
    """The space of what a Keras model makes: what it computes, and of what.

    Args:
      model: from preprocessed images to embeddings, or a transformation.
      settings: the preprocessing; of a transformation the spaces that it reads.
      name: of the model, for messages.

    Raises:
      InputError: see `fct_tf.models.space.of_function`.
    """
    if len(model.inputs[0].shape) == 4:
        network = functools.partial(model, training=False)
        return space.of(space.of_images(network, settings, name), settings)
    dims = {key: tensor.shape[-1] for key, tensor in model.input.items()}
    specs = [tf.TensorSpec([None, dim], tf.float32, key) for key, dim in dims.items()]

    def transform(*vectors: tf.Tensor) -> tf.Tensor:
        return model(dict(zip(dims, vectors, strict=True)), training=False)["embedding"]

    return space.of(space.of_function(transform, specs, space.vector_probes(dims), name), settings)


def load_keras(path: Path) -> keras.Model:
    """Reads a Keras model file; `InputError` where it cannot be read."""
    with _reading(path), warnings.catch_warnings():
        # keras-cv's blocks have no build(); their weights are there when they are read.
        warnings.filterwarnings("ignore", ".*does not have a `build", UserWarning)
        return keras.saving.load_model(path, compile=False)


def _dims(model: keras.Model) -> dict[str, int]:
    """Sizes of the vectors that go in and out, by name."""
    dims = {tensor.name: tensor.shape[-1] for tensor in model.inputs if len(tensor.shape) == 2}
    outputs = model.output_shape
    dims["embedding"] = outputs["embedding"][-1] if isinstance(outputs, dict) else outputs[-1]
    return dims


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _reading:
    """Turns any failure to read `path` into one line."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        if not self._path.exists():
            raise InputError(f"{self._path}: missing")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            reason = one_line(error)[:200] or type(error).__name__
            raise InputError(f"{self._path}: cannot be read ({reason})") from error
