"""Artifacts as SavedModels: what TF Serving loads and `upgrade_gallery` runs.

Transformation: `serving_default` takes `source_embedding` float32 `[n, d_source]` and, where it
was trained with side-information, `side_info` float32 `[n, d_side]`; it returns `embedding`
float32 `[n, d_target]` and, where the model has it, `log_variance` float32 `[n]`. Of a fused
search that is the gallery side, `embedding` a fused row; `query` and `rows` take
`source_embedding` and `target_embedding` float32 `[n, d_target]`, the new model's own, of a query
and of a row that has been re-embedded, and return its fused row as `embedding`.

Query encoder: `serving_default` takes `image` uint8 `[n, h, w, 3]`, `encoded` takes
`image_bytes` string `[n]` (JPEG or PNG), `resized` takes `image` uint8 at the model's own size,
resized and cropped already; all return `embedding` float32 `[n, d]`. Files are turned as their EXIF
orientation says, where the model's preprocessing applies it; pixels must have been turned before.

Every export has the signature `about` of `fct_tf.models.about` as well.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.common import copies
from fct_tf.common.errors import InputError
from fct_tf.common.image_size import Size, height_width
from fct_tf.models import artifact, fold, fusion, image_files, preprocess, saved_model, signatures
from fct_tf.models import info as infos
from fct_tf.models.load import load_any
from fct_tf.models.signatures import Endpoint, Served, Tensors, normalized

# bfloat16 keeps 8 bits of a number, and a row passes through several layers of them.
BFLOAT16_TOLERANCE = 0.05


def export_transformation(
    model: str | os.PathLike | artifact.Artifact,
    output_dir: str | os.PathLike,
    *,
    fold_batch_norm: bool = True,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path | str:
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
    served = transformation(_load(model), fold_batch_norm=fold_batch_norm, dtype=dtype)
    return _write(served, output_dir, overwrite)


def transformation(
    loaded: artifact.Artifact, *, fold_batch_norm: bool = True, dtype: str = "float32"
) -> Served:
    """A transformation, a map of the query side, or a fused search; see `export_transformation`."""
    _check_kind(loaded, infos.TRANSFORMS)
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
        result = {"embedding": normalized(outputs["embedding"], unit_length)}
        if "log_variance" in outputs:
            log_variance = tf.cast(outputs["log_variance"], tf.float32)
            result["log_variance"] = tf.reshape(log_variance, [-1])
        return _without_broken(result, inputs)

    endpoints: dict[str, Endpoint] = {"serving_default": (transform, specs)}
    if loaded.kind == "fused":
        endpoints |= {name: _fusing(network) for name in (infos.ROWS, infos.QUERY)}

    def expected(signature: str, inputs: Tensors) -> dict[str, np.ndarray]:
        model: Any = loaded.model
        if signature != saved_model.SIGNATURE:
            model = fusion.of(model)
        outputs = model({name: inputs[name] for name in model.input}, training=False)
        result = {"embedding": normalized(outputs["embedding"], unit_length).numpy()}
        if "log_variance" in outputs:
            result["log_variance"] = np.reshape(outputs["log_variance"], [-1])
        return result

    info = {
        "kind": loaded.kind,
        **_identity(loaded),
        **{
            key: loaded.info.get(key) for key in ("source_space", "side_info_space", "target_space")
        },
        "source_model": loaded.info.get("source_model"),
        "side_info_model": loaded.info.get("side_info_model"),
        "target_model": loaded.info.get("target_model"),
        **({"fused_space": loaded.info["fused_space"]} if loaded.kind == "fused" else {}),
        "dims": {
            **{spec.name: spec.shape[-1] for _, specs in endpoints.values() for spec in specs},
            "embedding": network.output["embedding"].shape[-1],
        },
        "batch_norm_folded": fold_batch_norm,
        "dtype": dtype,
    }
    tolerance = signatures.TOLERANCE if dtype == "float32" else BFLOAT16_TOLERANCE
    return Served(endpoints, info, expected, tolerance)


def _fusing(network: Any) -> Endpoint:
    """The side of the fused search that has both models' embeddings."""
    rows: Any = fusion.of(network)
    specs = [
        tf.TensorSpec([None, tensor.shape[-1]], tf.float32, name=name)
        for name, tensor in rows.input.items()
    ]

    def fuse(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = rows(dict(zip(rows.input, inputs, strict=True)), training=False)
        return _without_broken({"embedding": outputs["embedding"]}, inputs)

    return fuse, specs


def _without_broken(
    outputs: dict[str, tf.Tensor], inputs: Sequence[tf.Tensor]
) -> dict[str, tf.Tensor]:
    """`outputs`, NaN in rows of which an input is not finite.

    ReLU on a CPU makes 0 of NaN: a broken row would come out as a plausible embedding.
    """
    broken = ~tf.reduce_all([tf.reduce_all(tf.math.is_finite(x), 1) for x in inputs], 0)
    return {
        name: tf.where(broken[:, None] if value.shape.rank == 2 else broken, np.nan, value)
        for name, value in outputs.items()
    }


def export_query_encoder(
    model: str | os.PathLike | artifact.Artifact,
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
) -> Path | str:
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
    return _write(query_encoder(_load(model)), output_dir, overwrite)


def query_encoder(loaded: artifact.Artifact) -> Served:
    """An embedding model, from pixels or files; see `export_query_encoder`."""
    _check_kind(loaded, ("backbone", "side_info"))
    network: Any = loaded.model
    settings = loaded.preprocessing
    size, how = settings["size"], settings["resize"]
    unit_length = loaded.distance == "cosine"
    # A SavedModel of someone else has no such argument.
    inference = {"training": False} if isinstance(network, keras.Model) else {}

    def embed_resized(image: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = preprocess.apply(image, settings)
        return {"embedding": normalized(network(pixels, **inference), unit_length)}

    def embed(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return embed_resized(resize(image, size, how))

    def embed_encoded(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return embed_resized(decoded(image_bytes, settings))

    endpoints: dict[str, Endpoint] = {
        "serving_default": (embed, [tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")]),
        saved_model.RESIZED: (
            embed_resized,
            [tf.TensorSpec([None, *height_width(size), 3], tf.uint8, name="image")],
        ),
        "encoded": (embed_encoded, [tf.TensorSpec([None], tf.string, name="image_bytes")]),
    }

    def expected(signature: str, inputs: Tensors) -> dict[str, np.ndarray]:
        images: Any = inputs.get("image")
        if signature == "serving_default":
            images = resize(images, size, how)
        elif signature == "encoded":
            images = decoded(inputs["image_bytes"], settings)
        return {"embedding": normalized(loaded.embed(images), unit_length).numpy()}

    info = {
        "kind": "query_encoder",
        **_identity(loaded),
        "target_space": loaded.space,
        "compatible_with": loaded.compatible_with,
        "dims": {"embedding": loaded.dim},
        "preprocessing": dict(settings),
    }
    return Served(endpoints, info, expected)


def build(model: str | os.PathLike, *, dtype: str = "float32", known: Any = None) -> Served:
    """An artifact of either kind, or an embedding model of the user's own, to be served.

    Args:
      model: path of the artifact, or of a Keras file or SavedModel from images to vectors.
      dtype: see `export_transformation`; embedding models keep theirs.
      known: see `fct_tf.models.foreign.load`.

    Raises:
      InputError: no such model, a dtype that it cannot have.
    """
    loaded = _load(model, known)
    if loaded.kind in infos.TRANSFORMS:
        return transformation(loaded, dtype=dtype)
    if dtype != "float32":
        raise InputError(f"``dtype={dtype}``: for transformations only, {model} is a {loaded.kind}")
    return query_encoder(loaded)


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
        target = preprocess.covering(tf.shape(images)[1:3], (height, width))
    images = tf.image.resize(images, target, antialias=True)
    if how == "center_crop":
        top, left = tf.unstack((target - [height, width]) // 2)
        images = images[:, top : top + height, left : left + width]
    images = tf.ensure_shape(images, [None, height, width, 3])
    return tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)


def decoded(image_bytes: tf.Tensor, settings: preprocess.Preprocessing) -> tf.Tensor:
    """JPEG and PNG files as images at the size that a model takes.

    Args:
      image_bytes: string `[n]`.
      settings: the model's size, how images are resized to it, and whether they are turned.

    Returns:
      uint8 `[n, height, width, 3]`.
    """
    size, how = settings["size"], settings["resize"]

    def decode(content: tf.Tensor) -> tf.Tensor:
        image = image_files.decode(content, preprocess.orientation(settings))
        return resize(image[None], size, how)[0]

    spec = tf.TensorSpec([*height_width(size), 3], tf.uint8)
    return tf.map_fn(decode, image_bytes, fn_output_signature=spec)


def _load(model: Any, known: Any = None) -> artifact.Artifact:
    if isinstance(model, artifact.Artifact):
        return model
    path = artifact.directory(model)
    if (path / "model.json").is_file() or not path.exists():
        return artifact.load(path)
    return load_any(path, known=known)


def _check_kind(loaded: artifact.Artifact, kinds: tuple[str, ...]) -> None:
    if loaded.kind not in kinds:
        kind = f"{loaded.path}: a {loaded.kind} artifact"
        raise InputError(f"{kind}, expected {' or '.join(kinds)}")


def _identity(loaded: artifact.Artifact) -> dict[str, Any]:
    return {"name": loaded.name, "space": loaded.space, "distance": loaded.distance}


def _write(served: Served, output_dir: str | os.PathLike, overwrite: bool) -> Path | str:
    with copies.made_dir(output_dir, "saved_model.pb", overwrite) as temporary:
        signatures.write(served, temporary)
    logging.info("%s: written", output_dir)
    return copies.as_path(output_dir)
