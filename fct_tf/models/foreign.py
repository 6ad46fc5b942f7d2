"""Models that were not made here: a user's own Keras model or SavedModel, used for embedding."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.common import image_size as sizes
from fct_tf.common.errors import InputError
from fct_tf.common.files import reason
from fct_tf.common.provenance import library_versions
from fct_tf.models import artifact, image_files, preprocess, saved_model, space

RESIZES = ("bilinear_antialias", "center_crop")

Network = Callable[[tf.Tensor], Any]
# The spaces that a table has or refers to -> how images came into them, where that is recorded.
Known = Mapping[str, preprocess.Preprocessing | None]


def load(
    path: Path,
    *,
    preprocessing: str = "",
    resize: str = "",
    image_size: sizes.Size = 0,
    name: str = "",
    distance: str = "",
    orientation: str = "",
    signature: str = "",
    output_name: str = "",
    known: Known | None = None,
) -> artifact.Artifact:
    """Opens a Keras model file or a SavedModel that maps images to vectors.

    A SavedModel that `fct_tf.models.export` wrote knows its space, its size and its name.

    Args:
      path: `.keras` or `.h5` file, a directory with saved_model.pb, or one of numbered versions
        as TF Serving has it, of which the highest is taken.
      preprocessing: what the model expects: `raw` (values 0..255), `symmetric` or `imagenet`.
        By default that which gives one of the `known` spaces, else `raw`.
      resize: how images are brought to the model's size; `bilinear_antialias` by default.
      image_size: pixels, or height and width; needed where the model takes any size.
      name: human name of the model; by default that of its file, or of the directory above where
        that is the number of a version.
      distance: by which its embeddings are compared, `l2` or `cosine`.
      orientation: of photographs, by EXIF: `applied`, or `ignored`, as all columns were made before
        it was read; the two are different spaces. By default that which gives one of the `known`
        spaces, else `applied`.
      signature: of a SavedModel; `serving_default` by default.
      output_name: which output is the embedding, where there are several and none has this name.
      known: spaces that the model may have been used for.

    Raises:
      InputError: not a model, or one that does not map images to vectors.
    """
    directory = _directory(path)
    if directory is not None and (directory / saved_model.INFO).is_file():
        given = {"preprocessing": preprocessing, "resize": resize, "image_size": image_size}
        given |= {"name": name, "distance": distance, "orientation": orientation}
        given |= {"signature": signature, "output_name": output_name}
        artifact.refuse_settings(directory, "a SavedModel of export_serving", given)
        return _exported(directory)
    if directory is not None:
        network, shape, outputs = _saved_model(directory, signature)
    else:
        if signature:
            raise InputError(f"{path}: ``signature={signature}`` is for SavedModels; leave it out")
        network, shape, outputs = _keras_model(path)
    known = known or {}
    size = _size(path, shape, image_size, known)
    network, dim = _choose_output(path, network, size, output_name, outputs)
    call = _in_inference(network)
    functions: dict[str, str] = {}

    def space_of(settings: preprocess.Preprocessing) -> str:
        scale = repr((settings["mean"], settings["std"]))
        if scale not in functions:  # The resizing is not in it.
            functions[scale] = space.of_images(call, settings, str(path))
        return space.of(functions[scale], settings)

    earlier = functools.partial(_earlier_space, directory, network)
    asked = (preprocessing, resize, orientation)
    settings = _preprocessing(path, *asked, size, known, space_of, earlier)
    info = {
        "kind": "backbone",
        "name": name or _name(path),
        "space": space_of(settings),
        "earlier_space": earlier(settings),
        "dims": {"embedding": dim},
        "distance": distance or "l2",
        "compatible_with": [],
        "preprocessing": settings,
        "versions": library_versions(),
    }
    return artifact.Artifact(path, info, lambda: network)


def _directory(path: Path) -> Path | None:
    """The directory with `saved_model.pb` that is meant; None where `path` is a file."""
    if not path.is_dir():
        return None
    versions = saved_model.versions_in(path)
    for candidate in (path, *(path / str(version) for version in versions[-1:])):
        if (candidate / "saved_model.pb").is_file():
            return candidate
    if versions:
        raise InputError(
            f"{path / str(versions[-1])}: the highest version is no SavedModel (no "
            "saved_model.pb); export it again, or name another version"
        )
    raise InputError(f"{path}: neither a model artifact nor a SavedModel; nothing to load")


def _name(path: Path) -> str:
    path = path.absolute()
    if path.is_dir():
        return path.parent.name if path.name.isdecimal() else path.name
    return path.stem


def _exported(directory: Path) -> artifact.Artifact:
    """A query encoder of this package: it preprocesses inside and knows the rest."""
    info = saved_model.read_info(directory)
    makes_queries = info.get("side") == "query"
    if info["kind"] != "query_encoder" and not makes_queries:
        note = ", it reads embeddings and not images"
        if info["kind"] == "chain":
            note = (
                "; embed images with its encoders, then upgrade_gallery --missing transforms them"
            )
        kind = "fused search" if info["kind"] == "fused" else info["kind"]
        raise InputError(f"{directory}: a {kind}{note}")
    inside = info["preprocessing"]
    try:
        network, _, _ = _saved_model(directory, saved_model.RESIZED)
    except InputError:
        if makes_queries:
            raise InputError(
                f"{directory}: its encoders take images of different sizes; embed with each of "
                "them, then upgrade_gallery --side=query fuses both columns"
            ) from None
        if inside["resize"] == "center_crop":  # It would crop again what is cropped already.
            raise InputError(
                f"{directory}: has no signature {saved_model.RESIZED}, since an earlier version "
                "wrote it; export the artifact again, or name the artifact itself"
            ) from None
        network, _, _ = _saved_model(directory, "")  # It leaves images of its size as they are.
    backbone_info = {
        **{key: info[key] for key in ("name", "space", "distance", "dims")},
        "kind": "backbone",
        "compatible_with": info.get("compatible_with", []),
        "preprocessing": preprocess.preprocessing(
            "raw", inside["size"], inside["resize"], preprocess.orientation(inside)
        ),
        "versions": library_versions(),
        **({"column_kind": "fused"} if makes_queries else {}),
    }
    return artifact.Artifact(
        directory, backbone_info, lambda: lambda pixels: network(pixels)["embedding"]
    )


def _in_inference(network: Any) -> Network:
    is_keras = isinstance(network, keras.Model)
    return functools.partial(network, training=False) if is_keras else network


def _keras_model(path: Path) -> tuple[Network, Any, Sequence[str]]:
    """The model, the shape of its input and the names of its outputs."""
    try:
        model = artifact.load_keras(path)
    except InputError as error:
        raise InputError(
            f"{error.marked}; expected an artifact, a .keras file or a SavedModel"
        ) from error
    shape = model.input_shape if isinstance(model, keras.Model) else None
    if not isinstance(shape, tuple):
        raise InputError(f"{path}: the model must have one input, images; it has {shape}")
    return model, shape, getattr(model, "output_names", ())


def _saved_model(path: Path, name: str) -> tuple[Network, Any, Sequence[str]]:
    """A function of images to a dictionary, the shape of its input and its outputs' names."""
    name = name or saved_model.SIGNATURE
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(
            f"{path}: the SavedModel cannot be loaded ({reason(error)[:200]})"
        ) from error
    if name not in loaded.signatures:
        existing = ", ".join(sorted(loaded.signatures))
        raise InputError(
            f"{path}: the SavedModel has no signature {name}; "
            + (
                f"choose one with ``signature``: {existing}"
                if existing
                else "it has none, export it again"
            )
        )
    signature = loaded.signatures[name]
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1:
        raise InputError(f"{path}: expected one input, images; it has {sorted(inputs)}")
    ((input_name, spec),) = inputs.items()
    if spec.dtype == tf.string:
        listed = ", ".join(sorted(loaded.signatures))
        raise InputError(
            f"{path}: signature {name} takes files and not pixels; choose another one with "
            f"``signature`` (there are: {listed})"
        )

    def call(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        # A query encoder takes bytes per pixel: what arrives here is then on their scale.
        pixels = tf.round(pixels) if spec.dtype.is_integer else pixels
        return signature(**{input_name: tf.cast(pixels, spec.dtype)})

    # The functions of a SavedModel live as long as what was loaded.
    call.loaded = loaded  # type: ignore[attr-defined]
    shape = tuple(spec.shape.as_list()) if spec.shape.rank else ()
    return call, shape, sorted(signature.structured_outputs)


def _size(path: Path, shape: tuple[int | None, ...], asked: sizes.Size, known: Known) -> sizes.Size:
    """Height and width of a model's images, checked against what was asked for."""
    if len(shape) != 4 or shape[3] not in (3, None):
        raise InputError(
            f"{path}: the model must take colour images [batch, height, width, 3]; its input "
            f"is {list(shape)}"
        )
    if shape[0] is not None:
        raise InputError(
            f"{path}: the model takes batches of {shape[0]} only; save it with a batch of any size"
        )
    own = shape[1:3]
    if asked:
        given = sizes.height_width(asked)
    elif None not in own:
        given = sizes.height_width([side or 0 for side in own])
    else:
        recorded = {sizes.text(one["size"]): one["size"] for one in known.values() if one}
        if len(recorded) != 1:
            raise InputError(
                f"{path}: the model takes images of any size; say which with ``image_size``, 224 "
                "or 160x96"
            )
        given = sizes.height_width(*recorded.values())
    if any(side not in (None, given_side) for side, given_side in zip(own, given, strict=True)):
        sides = ["any" if side is None else str(side) for side in own]
        takes = sides[0] if sides[0] == sides[1] else " x ".join(sides)
        raise InputError(
            f"{path}: the model takes images of {takes} pixels, not {sizes.text(given)}"
        )
    return sizes.stored(given)


def _choose_output(
    path: Path, network: Network, size: sizes.Size, wanted: str, names: Sequence[str]
) -> tuple[Network, int]:
    """A network that returns the embedding alone, and the embedding's size."""
    try:
        outputs = network(tf.zeros([1, *sizes.height_width(size), 3]))
    except Exception as error:
        raise InputError(
            f"{path}: cannot embed an image of {sizes.text(size)} pixels ({reason(error)[:200]})"
        ) from error
    if isinstance(outputs, dict):
        places: dict[str, Any] = {key: key for key in sorted(outputs)}
    elif isinstance(outputs, list | tuple):
        numbered = [str(place) for place in range(len(outputs))]
        fitting = len(names) == len(outputs)
        places = dict(zip(names if fitting else numbered, range(len(outputs)), strict=True))
    else:
        places = dict.fromkeys(names or ("embedding",))
    listed = ", ".join(places)
    if wanted and wanted not in places:
        raise InputError(f"{path}: has no output {wanted!r}; choose with ``output_name``: {listed}")
    if not wanted and len(places) > 1 and "embedding" not in places:
        raise InputError(
            f"{path}: which output is the embedding? Choose with ``output_name``: {listed}"
        )
    chosen = wanted or ("embedding" if "embedding" in places else next(iter(places)))
    place = places[chosen]
    output = outputs if place is None else outputs[place]
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) != 2:
        raise InputError(
            f"{path}: the model must return one vector per image, [batch, d]; it returns "
            f"{'no tensor' if shape is None else list(shape)} as {chosen!r}. Pool inside it"
        )
    dim = int(shape[-1])
    if place is None:
        return network, dim
    call = _in_inference(network)
    return lambda pixels: call(pixels)[place], dim


def _preprocessing(
    path: Path,
    name: str,
    resize: str,
    orientation: str,
    size: sizes.Size,
    known: Known,
    space_of: Callable[[preprocess.Preprocessing], str],
    earlier: Callable[[preprocess.Preprocessing], str],
) -> preprocess.Preprocessing:
    """The preprocessing asked for, or the one with which the model's space is a known one."""
    default = preprocess.preprocessing(
        name or "raw", size, resize or RESIZES[0], orientation or "applied"
    )
    if not known or (name and orientation):
        return default
    # With a name, all but the orientation is as given, or the default.
    common = [
        preprocess.preprocessing(scale, size, how, turned)
        for turned in ([orientation] if orientation else image_files.ORIENTATIONS)
        for how in ([resize] if resize else RESIZES[:1] if name else RESIZES)
        for scale in ([name] if name else preprocess.SCALES)
    ]
    recorded = [one for one in known.values() if one and one["size"] == default["size"]]
    fitting_recorded = [
        one
        for one in recorded
        if resize in ("", one["resize"]) and orientation in ("", preprocess.orientation(one))
    ]
    candidates = common if name else fitting_recorded + common
    for fitting in (space_of, earlier):
        for settings in candidates:
            if fitting(settings) in known:
                logging.info("%s: preprocessing as its embeddings there had: %s", path, settings)
                return settings
    return default


def _earlier_space(
    directory: Path | None, network: Network, settings: preprocess.Preprocessing
) -> str:
    """What earlier versions called the space: by weights alone, of a SavedModel by its file."""
    if directory is None:
        weights = network.weights if isinstance(network, keras.Model) else ()
        return space.tensors_sha256((weight.numpy() for weight in weights), settings)
    graph = np.frombuffer((directory / "saved_model.pb").read_bytes(), np.uint8)
    tensors = []
    if (directory / "variables" / "variables.index").exists():
        reader = tf.train.load_checkpoint(str(directory / "variables" / "variables"))
        names = sorted(reader.get_variable_to_shape_map())
        tensors = [np.asarray(reader.get_tensor(name)) for name in names]
        # The object graph is a string: it names objects of one process.
        tensors = [tensor for tensor in tensors if tensor.dtype.kind not in "OSU"]
    return space.tensors_sha256([*tensors, graph], settings)
