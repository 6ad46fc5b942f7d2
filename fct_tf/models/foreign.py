"""Models that were not made here: a user's own Keras model or SavedModel, used for embedding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fct_tf.errors import InputError
from fct_tf.files import one_line
from fct_tf.models import artifact, preprocess
from fct_tf.provenance import library_versions


def load(
    path: Path,
    *,
    preprocessing: str = "",
    resize: str = "bilinear_antialias",
    image_size: int = 0,
    name: str = "",
    distance: str = "",
) -> artifact.Artifact:
    """Opens a Keras model file or a SavedModel that maps images to vectors.

    Args:
      path: `.keras` or `.h5` file, or a directory with saved_model.pb.
      preprocessing: what the model expects: `raw` (values 0..255), `symmetric` or `imagenet`.
      resize: how images are brought to the model's size.
      image_size: pixels; needed where the model takes any size.
      name: human name of the model; by default the name of its file.
      distance: by which its embeddings are compared, `l2` or `cosine`.

    Raises:
      InputError: not a model, or one that does not map images to vectors.
    """
    is_directory = path.is_dir()
    if is_directory and not (path / "saved_model.pb").exists():
        raise InputError(f"{path}: neither a model artifact nor a SavedModel; nothing to load")
    if is_directory:
        model, size = _saved_model(path)
    else:
        model, size = _keras_model(path)
    size = size or image_size
    if image_size and size != image_size:
        raise InputError(f"{path}: the model takes images of {size} pixels, not {image_size}")
    if not size:
        raise InputError(
            f"{path}: the model takes images of any size; save it with a fixed input size"
        )
    settings = preprocess.preprocessing(preprocessing or "raw", size, resize)
    if isinstance(model, keras.Model):
        space = artifact.fingerprint(model, settings)
    else:
        space = _saved_model_fingerprint(path, settings)
    info = {
        "kind": "backbone",
        "name": name or path.stem,
        "space": space,
        "dims": {"embedding": _dim(path, model, size)},
        "distance": distance or "l2",
        "compatible_with": [],
        "preprocessing": settings,
        "versions": library_versions(),
    }
    return artifact.Artifact(path, info, lambda: model)


def _keras_model(path: Path) -> tuple[keras.Model, int]:
    try:
        model = artifact.load_keras(path)
    except InputError as error:
        raise InputError(f"{error}; expected an artifact, a .keras file or a SavedModel") from error
    shape = model.input_shape if isinstance(model, keras.Model) else None
    if not isinstance(shape, tuple):
        raise InputError(f"{path}: the model must have one input, images; it has {shape}")
    return model, _size(path, shape)


def _saved_model(path: Path) -> tuple[Callable[[tf.Tensor], tf.Tensor], int]:
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        reason = one_line(error)[:200]
        raise InputError(f"{path}: the SavedModel cannot be loaded ({reason})") from error
    if "serving_default" not in loaded.signatures:
        raise InputError(f"{path}: the SavedModel has no signature serving_default")
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1:
        raise InputError(f"{path}: expected one input, images; it has {sorted(inputs)}")
    ((input_name, spec),) = inputs.items()
    outputs = sorted(signature.structured_outputs)
    output = "embedding" if "embedding" in outputs else outputs[0]
    if output != "embedding" and len(outputs) > 1:
        raise InputError(f"{path}: which output is the embedding? Call it so; it has {outputs}")

    def call(pixels: tf.Tensor) -> tf.Tensor:
        # A query encoder takes bytes per pixel: what arrives here is then on their scale.
        pixels = tf.round(pixels) if spec.dtype.is_integer else pixels
        return signature(**{input_name: tf.cast(pixels, spec.dtype)})[output]

    # The functions of a SavedModel live as long as what was loaded.
    call.loaded = loaded  # type: ignore[attr-defined]
    return call, _size(path, tuple(spec.shape.as_list()) if spec.shape.rank else ())


def _size(path: Path, shape: tuple[int | None, ...]) -> int:
    """Height and width of a model's images; 0 when it takes any size."""
    if len(shape) != 4 or shape[3] not in (3, None) or shape[1] != shape[2]:
        raise InputError(
            f"{path}: the model must take square colour images [batch, size, size, 3]; its input "
            f"is {list(shape)}"
        )
    return shape[1] or 0


def _dim(path: Path, model: Callable[[Any], Any], size: int) -> int:
    try:
        output = model(tf.zeros([1, size, size, 3]))
    except Exception as error:
        reason = one_line(error)[:200]
        raise InputError(f"{path}: cannot embed an image of {size} pixels ({reason})") from error
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) != 2:
        raise InputError(
            f"{path}: the model must return one vector per image, [batch, d]; it returns "
            f"{'several outputs' if shape is None else list(shape)}. Pool or choose inside it"
        )
    return int(shape[-1])


def _saved_model_fingerprint(path: Path, settings: Any) -> str:
    """SHA-256 of the variables in name order, saved_model.pb and the preprocessing."""
    graph = np.frombuffer((path / "saved_model.pb").read_bytes(), np.uint8)
    tensors = []
    if (path / "variables" / "variables.index").exists():
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        names = sorted(reader.get_variable_to_shape_map())
        tensors = [np.asarray(reader.get_tensor(name)) for name in names]
        # The object graph is a string: it names objects of one process.
        tensors = [tensor for tensor in tensors if tensor.dtype.kind not in "OSU"]
    return artifact.tensors_sha256([*tensors, graph], settings)
