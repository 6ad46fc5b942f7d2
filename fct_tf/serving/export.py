"""Artifacts as SavedModels: what TF Serving loads and `upgrade_gallery` runs.

Transformation: `serving_default` takes `source_embedding` float32 `[n, d_source]` and, where it
was trained with side-information, `side_info` float32 `[n, d_side]`; it returns `embedding`
float32 `[n, d_target]` and, where the model has it, `log_variance` float32 `[n]`.

Query encoder: `serving_default` takes `image` uint8 `[n, h, w, 3]`, `encoded` takes
`image_bytes` string `[n]` (JPEG or PNG), `resized` takes `image` uint8 at the model's own size,
resized and cropped already; all return `embedding` float32 `[n, d]`. Files are turned as their EXIF
orientation says, where the model's preprocessing applies it; pixels must have been turned before.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from fct_tf.data import stores
from fct_tf.errors import InputError
from fct_tf.files import atomic_dir, write_json
from fct_tf.image_size import Size, height_width
from fct_tf.models import artifact, fold, image_files, preprocess, saved_model

Endpoint = tuple[Callable, list[tf.TensorSpec]]


def export_transformation(
    model: str | os.PathLike | artifact.Artifact,
    output_dir: str | os.PathLike,
    *,
    fold_batch_norm: bool = True,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Writes the SavedModel of a transformation.

    Args:
      model: the artifact or its path.
      output_dir: becomes the directory with `saved_model.pb`, all at once.
      fold_batch_norm: fold each BatchNormalization into the dense layer before it.
      dtype: of the arithmetic inside, `float32` or `bfloat16`; inputs and outputs are float32
        in both. bfloat16 is faster where the processor multiplies it in hardware (AMX, GPU).
      overwrite: replace an existing output.

    Returns:
      `output_dir`.

    Raises:
      InputError: no transformation artifact, or an existing output.
    """
    loaded = _load(model, ("transformation",))
    if dtype not in fold.DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(fold.DTYPES)}")
    network: Any = fold.fold_batch_norm(loaded.model, dtype, fold=fold_batch_norm)
    unit_length = loaded.distance == "cosine"
    names = [name for name in ("source_embedding", "side_info") if name in network.input]
    specs = [
        tf.TensorSpec([None, network.input[name].shape[-1]], tf.float32, name=name)
        for name in names
    ]

    def transform(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = network(dict(zip(names, inputs, strict=True)), training=False)
        result = {"embedding": _embedding(outputs["embedding"], unit_length)}
        if "log_variance" in outputs:
            log_variance = tf.cast(outputs["log_variance"], tf.float32)
            result["log_variance"] = tf.reshape(log_variance, [-1])
        return result

    info = {
        "kind": "transformation",
        **_identity(loaded),
        **{
            key: loaded.info.get(key) for key in ("source_space", "side_info_space", "target_space")
        },
        "source_model": loaded.info.get("source_model"),
        "side_info_model": loaded.info.get("side_info_model"),
        "target_model": loaded.info.get("target_model"),
        "dims": {
            **{spec.name: spec.shape[-1] for spec in specs},
            "embedding": network.output["embedding"].shape[-1],
        },
        "batch_norm_folded": fold_batch_norm,
        "dtype": dtype,
    }
    return _write({"serving_default": (transform, specs)}, info, output_dir, overwrite)


def export_query_encoder(
    model: str | os.PathLike | artifact.Artifact,
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes the SavedModel of an embedding model, from pixels or files to embeddings.

    Images of any size go through the resizing and scaling that the model was trained with, and
    are rounded to whole pixel values on the way as in training.

    Args:
      model: the artifact (of a backbone or side-information model) or its path.
      output_dir: becomes the directory with `saved_model.pb`, all at once.
      overwrite: replace an existing output.

    Returns:
      `output_dir`.

    Raises:
      InputError: no such artifact, or an existing output.
    """
    loaded = _load(model, ("backbone", "side_info"))
    network: Any = loaded.model
    settings = loaded.preprocessing
    size, how = settings["size"], settings["resize"]
    unit_length = loaded.distance == "cosine"

    def embed_resized(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = preprocess.apply(image, settings)
        return {"embedding": _embedding(network(pixels, training=False), unit_length)}

    def embed(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return embed_resized(resize(image, size, how))

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        image = image_files.decode(image_bytes, preprocess.orientation(settings))
        return resize(image[None], size, how)[0]

    def embed_encoded(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = tf.TensorSpec([*height_width(size), 3], tf.uint8)
        return embed_resized(tf.map_fn(decode, image_bytes, fn_output_signature=spec))

    endpoints: dict[str, Endpoint] = {
        "serving_default": (embed, [tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")]),
        saved_model.RESIZED: (
            embed_resized,
            [tf.TensorSpec([None, *height_width(size), 3], tf.uint8, name="image")],
        ),
        "encoded": (embed_encoded, [tf.TensorSpec([None], tf.string, name="image_bytes")]),
    }
    info = {
        "kind": "query_encoder",
        **_identity(loaded),
        "target_space": loaded.space,
        "compatible_with": loaded.compatible_with,
        "dims": {"embedding": network.output.shape[-1]},
        "preprocessing": dict(settings),
    }
    return _write(endpoints, info, output_dir, overwrite)


def export(
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    version: int = 0,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Exports an artifact of either kind as a version in TF Serving's layout.

    Args:
      model: path of the artifact.
      output_dir: the model's base directory; the SavedModel becomes `output_dir/<version>`.
      version: 0 for the next one. TF Serving serves the highest.
      dtype: see `export_transformation`; embedding models keep theirs.
      overwrite: replace an existing version.

    Returns:
      `output_dir/<version>`.

    Raises:
      InputError: no such artifact, an existing version, a version below zero.
    """
    if version < 0:
        raise InputError(f"--version={version}: versions are positive numbers, 0 is the next one")
    loaded = artifact.load(model)
    version = version or max(saved_model.versions_in(output_dir), default=0) + 1
    output = Path(output_dir) / str(version)
    if loaded.kind == "transformation":
        return export_transformation(loaded, output, dtype=dtype, overwrite=overwrite)
    if dtype != "float32":
        raise InputError(f"--dtype={dtype}: for transformations only, {model} is a {loaded.kind}")
    return export_query_encoder(loaded, output, overwrite=overwrite)


def resize(images: tf.Tensor, size: Size, how: str) -> tf.Tensor:
    """Images at the size that a model takes, as `fct_tf.data` resizes them.

    Args:
      images: uint8 `[n, h, w, 3]`.
      size: side in pixels, or height and width.
      how: `bilinear_antialias`, the whole image to that size; or `center_crop`, to the least size
        that covers size / 0.875 (of squares: the shorter side to that) and then the centre.

    Returns:
      uint8 `[n, height, width, 3]`.
    """
    height, width = height_width(size)
    target: Any = [height, width]
    if how == "center_crop":
        target = stores.covering(tf.shape(images)[1:3], (height, width))
    images = tf.image.resize(images, target, antialias=True)
    if how == "center_crop":
        top, left = tf.unstack((target - [height, width]) // 2)
        images = images[:, top : top + height, left : left + width]
    images = tf.ensure_shape(images, [None, height, width, 3])
    return tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)


def _load(model: Any, kinds: tuple[str, ...]) -> artifact.Artifact:
    loaded = model if isinstance(model, artifact.Artifact) else artifact.load(model)
    if loaded.kind not in kinds:
        raise InputError(f"{model}: a {loaded.kind} artifact, expected {' or '.join(kinds)}")
    return loaded


def _embedding(embedding: tf.Tensor, unit_length: bool) -> tf.Tensor:
    embedding = tf.cast(embedding, tf.float32)
    return tf.math.l2_normalize(embedding, axis=-1) if unit_length else embedding


def _identity(loaded: artifact.Artifact) -> dict[str, Any]:
    return {"name": loaded.name, "space": loaded.space, "distance": loaded.distance}


def _write(
    endpoints: dict[str, Endpoint],
    info: dict[str, Any],
    output_dir: str | os.PathLike,
    overwrite: bool,
) -> Path:
    output_dir = Path(output_dir)
    # Endpoints track the variables that they use; `track` as well would write each one twice.
    archive = keras.export.ExportArchive()
    for name, (function, specs) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=specs)
    with atomic_dir(output_dir, overwrite) as temporary:
        archive.write_out(str(temporary), verbose=False)
        write_json(
            temporary / saved_model.INFO,
            {
                "format": saved_model.FORMAT,
                **info,
                "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
            },
        )
    logging.info("%s: written", output_dir)
    return output_dir
