"""Warm-up requests: what a server replays when it loads a version, before it answers anyone.

The first run of each signature at each batch size is slow, and a version that is broken shows it
there. TF Serving reads them from `assets.extra/tf_serving_warmup_requests`, a TFRecord of
`PredictionLog`; the version does not become available where one of them fails.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.common.image_size import height_width
from fct_tf.gallery import reader
from fct_tf.models import about, saved_model
from fct_tf.models.signatures import Served, Tensors
from fct_tf.upgrade.inputs import find_sources

PATH = Path("assets.extra") / "tf_serving_warmup_requests"
BATCH_SIZES = (1, 8, 32, 128)
MOST_REQUESTS = 1000  # TF Serving refuses a version with more.
NEIGHBOURS = 10  # The k of requests to a model that searches.
IMAGE_NAMES = (".jpg", ".jpeg", ".png")
MOST_IMAGES = 16


@dataclass(frozen=True)
class Source:
    """What requests are made of.

    Attributes:
      rows: input -> float32 [m, d], rows of a gallery; random ones where an input is missing.
      images: JPEG and PNG files; drawn ones where empty.
      name: where they are from, for `model.json`.
    """

    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Sequence[bytes] = ()
    name: str = "generated"


GENERATED = Source()


@dataclass(frozen=True)
class Request:
    """One request: rows `places` of what `pool` has for the signature, in one batch."""

    signature: str
    inputs: Tensors
    places: np.ndarray


def source(served: Served, rows: str, images: str, count: int) -> Source:
    """What the flags --warmup_rows and --warmup_images name.

    Args:
      served: the model.
      rows: a gallery, for inputs that are embeddings; empty for random rows.
      images: see `read_images`; empty for drawn ones.
      count: rows to read, at most.

    Raises:
      InputError: see `gallery_rows` and `read_images`; or the model takes no such input.
    """
    kind = served.info["kind"]
    takes_images = "preprocessing" in served.info
    if images and not takes_images:
        raise InputError(f"``warmup_images``: a {kind} takes no images; leave it out")
    gallery_inputs = {}
    if rows and not takes_images:
        gallery_inputs = gallery_rows(rows, served, count)
    names = [name for name in (rows if gallery_inputs else "", images) if name]
    return Source(
        gallery_inputs, read_images(images) if images else (), ", ".join(names) or "generated"
    )


def pool(served: Served, source: Source, count: int) -> dict[str, Tensors]:
    """Different rows for each signature: input -> array, of at most `count` rows.

    Args:
      served: tells the inputs.
      source: of the rows.
      count: how many to draw where they are random.
    """
    rng = np.random.default_rng(0)
    images = list(source.images) or drawn(_side(served))
    pools: dict[str, Tensors] = {}
    for name, (_, specs) in served.endpoints.items():
        inputs: dict[str, np.ndarray] = {}
        # Drawn rows go beside those of a gallery, which may have fewer.
        stored = [len(source.rows[spec.name]) for spec in specs if spec.name in source.rows]
        drawn_rows = min([count, *stored])
        for spec in specs:
            if spec.dtype == tf.string:
                value = np.array(images, object)
            elif spec.dtype == tf.uint8:
                sides = zip(spec.shape[1:3], _side(served), strict=True)
                shape = [size or side for size, side in sides]
                value = np.concatenate([_pixels(image, shape) for image in images])
            elif spec.shape.rank == 0:
                value = np.array(NEIGHBOURS, spec.dtype.as_numpy_dtype)
            elif spec.name in source.rows:
                value = source.rows[spec.name][:count]
            else:
                value = rng.standard_normal((drawn_rows, spec.shape[-1]), np.float32)
            inputs[spec.name] = value
        pools[name] = inputs
    return pools


def requests(pools: Mapping[str, Tensors], batch_sizes: Sequence[int]) -> Iterator[Request]:
    """Every signature at every batch size. Rows repeat where there are fewer.

    At one image a request there is one for each image, so that each file format has its own.
    """
    for signature, inputs in pools.items():
        rows = max((len(value) for value in inputs.values() if value.ndim), default=1)
        is_image = any(value.dtype.kind in "Ou" for value in inputs.values())
        for size in batch_sizes:
            starts = range(min(rows, MOST_IMAGES)) if is_image and size == 1 else range(1)
            for start in starts:
                places = np.arange(start, start + size) % rows
                batch = {
                    key: value[places] if value.ndim else value for key, value in inputs.items()
                }
                yield Request(signature, batch, places)
    question = about.question()
    for size in batch_sizes:
        batch = {key: np.resize(value, size) for key, value in question.items()}
        yield Request(about.SIGNATURE, batch, np.zeros(size, int))


def write(directory: Path, model: str, wanted: Sequence[Request]) -> None:
    """Writes the requests into a version's directory, to be replayed in their order."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    if len(wanted) > MOST_REQUESTS:
        raise InputError(
            f"{len(wanted)} warm-up requests: TF Serving takes {MOST_REQUESTS}; name fewer "
            "``batch_sizes``"
        )
    (directory / PATH).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(directory / PATH)) as writer:
        for request in wanted:
            message = predict_pb2.PredictRequest()
            message.model_spec.name = model
            message.model_spec.signature_name = request.signature
            for name, value in request.inputs.items():
                message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(message)
            writer.write(log.SerializeToString())


def gallery_rows(uri: str, served: Served, count: int) -> dict[str, np.ndarray]:
    """Rows of a gallery for the inputs that read embeddings, spread over the whole of it.

    Args:
      uri: the gallery; its columns are found by their spaces.
      served: a transformation, or a model that searches, which gets its own column. Of a fused
        search the new model's embeddings are left out where the gallery has none.
      count: at most so many.

    Returns:
      input -> float32 [m, d].

    Raises:
      InputError: no gallery, no column in a space that is needed, a bad row.
    """
    gallery = reader.open_gallery(uri)
    if served.info["kind"] == "top_k":
        near = (served.info["space"], *served.info["compatible_with"])
        columns = [name for name, column in gallery.columns.items() if column.space in near]
        if not columns:
            raise InputError(
                f"``warmup_rows={uri}``: no column in space {near[0]} or one it may be compared "
                "with"
            )
        return {"embedding": sample(gallery, columns[:1], count).vectors[columns[0]]}
    dims, target = dict(served.info["dims"]), target_column(gallery, served)
    if target is None:  # Before anything is re-embedded.
        dims.pop("target_embedding", None)
    where = Path(served.info["name"])
    description = saved_model.Transformation(where, served.info, dims, False, None, {})
    named = {"target_embedding": target} if "target_embedding" in dims else {}
    sources = find_sources(gallery, description, named)
    rows = sample(gallery, [column.name for column in sources.values()], count)
    return {role: rows.vectors[column.name] for role, column in sources.items()}


def target_column(gallery: reader.Gallery, served: Served) -> str | None:
    """The first column of the new model's own embeddings, if there is one."""
    target = served.info.get("target_space")
    return next((name for name, one in gallery.columns.items() if one.space == target), None)


def sample(gallery: reader.Gallery, columns: Sequence[str], count: int) -> reader.Rows:
    """Rows at equal distances, with their labels, in the table's order."""
    if not gallery.num_rows:
        raise InputError(f"{gallery.path}: has no rows; leave ``warmup_rows`` out")
    count = min(count, gallery.num_rows)
    places = np.linspace(0, gallery.num_rows - 1, count).astype(int)
    label = ["label"] if "label" in gallery.dataset.schema.names else []
    names = list(dict.fromkeys(["id", *label, *columns]))
    table = gallery.dataset.take(places.tolist(), columns=names)
    (batch,) = table.combine_chunks().to_batches()
    return reader.to_rows(batch, columns, with_labels=True, where=gallery.path)


def read_images(path: str | os.PathLike) -> list[bytes]:
    """JPEG and PNG files: of a directory the first ones, or one file.

    Raises:
      InputError: no such file, none in the directory, or one that cannot be decoded.
    """
    path = Path(path)
    paths = [path]
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_NAMES)
        # Of both formats, where the directory has both.
        png = [file for file in paths if file.suffix.lower() == ".png"][: MOST_IMAGES // 2]
        jpeg = [file for file in paths if file.suffix.lower() != ".png"][: MOST_IMAGES - len(png)]
        paths = png + jpeg
    if not paths or not paths[0].is_file():
        raise InputError(f"``warmup_images={path}``: no JPEG or PNG file here")
    contents = []
    for file in paths:
        contents.append(file.read_bytes())
        try:
            tf.io.decode_image(contents[-1], channels=3, expand_animations=False)
        except tf.errors.OpError as error:
            raise InputError(
                f"``warmup_images``: {file}: no JPEG or PNG file ({one_line(error.message)[:100]})"
            ) from None
    return contents


def drawn(side: Sequence[int]) -> list[bytes]:
    """A JPEG and a PNG file of noise over a gradient, half as large again as `side`."""
    height, width = (number * 3 // 2 for number in side)
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, height)[:, None, None] + np.zeros((1, width, 3))
    first, second = (
        (ramp + rng.integers(0, 56, ramp.shape)).astype(np.uint8)[:, ::step] for step in (1, -1)
    )
    return [tf.io.encode_jpeg(first).numpy(), tf.io.encode_png(second).numpy()]


def _side(served: Served) -> tuple[int, int]:
    settings = served.info.get("preprocessing")
    return height_width(settings["size"]) if settings else (1, 1)


def _pixels(content: bytes, shape: Sequence[int]) -> np.ndarray:
    """An image, uint8 [1, height, width, 3]."""
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    resized = tf.image.resize(image[None], shape, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8).numpy()
