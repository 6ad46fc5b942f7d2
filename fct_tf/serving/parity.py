"""Whether a server answers what a SavedModel on this machine computes, row by row."""

import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.gallery.columns import Column
from fct_tf.gallery.reader import Gallery, open_gallery
from fct_tf.models import about, saved_model
from fct_tf.models import info as infos
from fct_tf.serving.client import Client
from fct_tf.serving.transport import Signature, TensorSpec
from fct_tf.upgrade.inputs import ROLES, find_sources

# What open sizes of images become where no images are given.
IMAGE_SIDE = 64

# Ids of rows, and the inputs of these rows.
Batches = Iterator[tuple[list[str], dict[str, np.ndarray]]]


@dataclass
class Difference:
    """Of one output, over the rows so far.

    Attributes:
      rows: how many were compared.
      equal: how many are equal to the bit.
      largest: largest absolute difference of a value; infinite where only one side is finite.
      relative: largest length of a row's difference, as a share of the local row's length.
      row: id of the row with the largest `relative`.
    """

    rows: int = 0
    equal: int = 0
    largest: float = 0.0
    relative: float = 0.0
    row: str = ""

    def add(self, ids: list[str], served: np.ndarray, local: np.ndarray) -> None:
        """Compares arrays [n, ...]; those of other shapes or types differ without bound."""
        self.rows += len(ids)
        if served.shape != local.shape or served.dtype != local.dtype:
            self.largest = self.relative = np.inf
            self.row = self.row or ids[0]
            return
        if local.dtype.kind == "O":
            unequal = (served != local).reshape(len(ids), -1).any(axis=1)
            length, apart, same = np.ones(len(ids)), unequal * np.inf, ~unequal
            apart[same] = 0.0
            largest = apart
        else:
            both = [np.asarray(part, np.float64).reshape(len(ids), -1) for part in (served, local)]
            same = ((both[0] == both[1]) | (np.isnan(both[0]) & np.isnan(both[1]))).all(axis=1)
            gap = np.where(same[:, None], 0.0, np.abs(both[0] - both[1]))
            gap[~np.isfinite(gap)] = np.inf
            largest = gap.max(axis=1, initial=0.0)
            apart = np.sqrt(np.square(gap).sum(axis=1))
            length = np.sqrt(np.square(np.nan_to_num(both[1])).sum(axis=1))
        share = np.where(apart > 0, apart / np.where(length > 0, length, 1.0), 0.0)
        worst = int(np.argmax(share))
        self.equal += int(same.sum())
        self.largest = max(self.largest, float(largest.max()))
        if share[worst] > self.relative or not self.row:
            self.relative, self.row = float(share[worst]), ids[worst]


@dataclass
class Parity:
    """What was compared, and what came out.

    Attributes:
      server, model: of the two sides.
      served_space, local_space: of what they write; the former is None where the server does not
        tell it.
      differences: `SIGNATURE: OUTPUT` -> difference.
    """

    server: str
    model: str
    served_space: str | None
    local_space: str
    differences: dict[str, Difference] = field(default_factory=dict)

    def holds(self, tolerance: float) -> bool:
        """Whether both are the same: the space, and each row within `tolerance` of its length."""
        same_space = self.served_space in (None, self.local_space)
        return same_space and all(d.relative <= tolerance for d in self.differences.values())


def check(
    client: Client,
    model: str | os.PathLike,
    *,
    gallery: str = "",
    source: str = "",
    side_info: str = "",
    target: str = "",
    images: str = "",
    rows: int = 1000,
    seed: int = 0,
) -> Parity:
    """Sends rows through every signature of a server and of a SavedModel.

    Args:
      client: of the server; its version is settled at the first request.
      model: the SavedModel, see `fct_tf.models.saved_model.locate`.
      gallery: rows for a transformation; without it they are drawn.
      source, side_info, target: their columns; by default found by their spaces. Signatures that
        read the new model's embeddings get drawn rows where the gallery has none of them.
      images: images for an encoder, as `embed_gallery --images`; without it they are drawn.
      rows: at most so many.
      seed: of the draw.

    Raises:
      InputError: no such SavedModel or rows; a server that is down or refuses.
    """
    directory = saved_model.locate(model)
    info = saved_model.read_info(directory)
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # TensorFlow raises whatever the broken part gives rise to.
        raise InputError(f"{directory}: cannot be loaded ({one_line(error)[:300]})") from None
    metadata = client.metadata()
    with client.at(metadata.version) as pinned:
        signatures = {
            name: signature
            for name, signature in metadata.signatures.items()
            if name in loaded.signatures and name != about.SIGNATURE
        }
        if not signatures:
            raise InputError(
                f"{pinned.address}: no signature in common with {directory}; is it that model?"
            )
        tells = about.SIGNATURE in metadata.signatures
        served_space = pinned.about()["space"] if tells else None
        parity = Parity(str(pinned.address), str(directory), served_space, info["space"])
        for name, signature in signatures.items():
            local = loaded.signatures[name]
            batches = _batches(
                name, signature, directory, gallery, source, side_info, target, images, rows, seed,
                pinned.settings.max_batch_size,
            )  # fmt: skip
            _compare(parity, name, pinned, local, batches)
    return parity


def _compare(parity: Parity, name: str, client: Client, local: Callable, batches: Batches) -> None:
    for ids, inputs in batches:
        served = client.predict(inputs, name)
        tensors = {
            key: tf.constant(value.tolist() if value.dtype == object else value)
            for key, value in inputs.items()
        }
        outputs = {key: value.numpy() for key, value in local(**tensors).items()}
        for key in sorted({*served, *outputs}):
            difference = parity.differences.setdefault(f"{name}: {key}", Difference())
            missing = np.empty([0])
            difference.add(ids, served.get(key, missing), outputs.get(key, missing))


def _batches(
    name: str,
    signature: Signature,
    directory: Any,
    gallery: str,
    source: str,
    side_info: str,
    target: str,
    images: str,
    rows: int,
    seed: int,
    size: int,
) -> Batches:
    strings = any(spec.dtype == object for spec in signature.inputs.values())
    if gallery and set(signature.inputs) <= set(ROLES):
        names = {"source_embedding": source, "side_info": side_info, "target_embedding": target}
        columns = _columns(signature, directory, open_gallery(gallery), names)
        if columns:
            return _gallery_rows(open_gallery(gallery), columns, rows, size)
    if images and (strings or "image" in signature.inputs):
        return _images(signature, images, rows, 1 if not strings else size)
    return _drawn(signature, rows, seed, size)


def _columns(
    signature: Signature, directory: Any, gallery: Gallery, names: dict[str, str]
) -> dict[str, Column]:
    """Those that a signature reads; none where the new model's are not in the gallery yet."""
    model = saved_model.load_transformation(directory)
    dims = infos.dims_of(signature.inputs, model.dims["embedding"])
    column_names = {role: name for role, name in names.items() if role in dims}
    spaces = [column.space for column in gallery.columns.values()]
    if "target_embedding" in dims and model.info["target_space"] not in spaces:
        return {}
    return find_sources(gallery, dataclasses.replace(model, dims=dims), column_names)


def _gallery_rows(gallery: Gallery, columns: dict[str, Column], rows: int, size: int) -> Batches:
    left = rows
    for batch in gallery.batches(list({c.name for c in columns.values()}), size):
        count = min(left, len(batch))
        inputs = {role: batch.vectors[column.name][:count] for role, column in columns.items()}
        yield [str(name) for name in batch.ids[:count]], inputs
        left -= count
        if not left:
            return


def _images(signature: Signature, images: str, rows: int, size: int) -> Batches:
    """Files as they are, or their pixels one by one, since they differ in size."""
    from fct_tf.data import datasets

    _, opened = datasets.open_source(images, "", "")
    count = min(rows, len(opened.labels))
    encoded = opened.encoded(np.arange(count)).map(
        lambda example: (example["id"], opened.content(example["encoded"]))
    )
    (key, spec), *_ = signature.inputs.items()
    for ids, contents in encoded.batch(size).as_numpy_iterator():
        if spec.dtype == object:
            inputs = contents
        else:
            inputs = tf.io.decode_image(contents[0], 3, expand_animations=False).numpy()[None]
            if not spec.admits(inputs.shape):
                continue  # `resized`: of the model's size only.
        yield [name.decode("utf-8", "replace") for name in ids], {key: inputs}


def _drawn(signature: Signature, rows: int, seed: int, size: int) -> Batches:
    generator = np.random.default_rng(seed)
    for start in range(0, rows, size):
        count = min(size, rows - start)
        inputs = {
            key: _draw(generator, spec, count) for key, spec in sorted(signature.inputs.items())
        }
        yield [f"drawn {row}" for row in range(start, start + count)], inputs


def _draw(generator: np.random.Generator, spec: TensorSpec, count: int) -> np.ndarray:
    if spec.dtype == object:
        files = np.empty(count, object)
        files[:] = [_file(generator, row) for row in range(count)]
        return files
    shape = [count, *(size or IMAGE_SIDE for size in (spec.shape or (None,))[1:])]
    if spec.dtype.kind == "f":
        return generator.normal(size=shape).astype(spec.dtype)
    return generator.integers(0, 256 if spec.dtype == np.uint8 else 2, shape).astype(spec.dtype)


def _file(generator: np.random.Generator, row: int) -> bytes:
    """A PNG or JPEG file, of a size of its own."""
    shape = [*generator.integers(16, IMAGE_SIDE, 2), 3]
    pixels = tf.constant(generator.integers(0, 256, shape), tf.uint8)
    return (tf.io.encode_jpeg(pixels) if row % 2 else tf.io.encode_png(pixels)).numpy()


def describe(parity: Parity, tolerance: float) -> str:
    """The lines for a person."""
    text = io.StringIO()
    for name, difference in parity.differences.items():
        print(
            f"{name}: {difference.rows} rows, {difference.equal} equal to the bit, largest "
            f"difference {difference.largest:.3g}, {difference.relative:.3g} of a row's length "
            f"(row {difference.row!r})",
            file=text,
        )
    if parity.served_space not in (None, parity.local_space):
        print(
            f"spaces differ: the server writes {parity.served_space}, the SavedModel "
            f"{parity.local_space}",
            file=text,
        )
    verdict = "equals" if parity.holds(tolerance) else "DIFFERS FROM"
    print(f"{parity.server} {verdict} {parity.model} (tolerance {tolerance:g})", file=text)
    return text.getvalue().rstrip()


def record(parity: Parity, tolerance: float) -> Mapping[str, Any]:
    """For a JSON file; a difference without bound is null."""
    return {
        "server": parity.server,
        "model": parity.model,
        "served_space": parity.served_space,
        "local_space": parity.local_space,
        "tolerance": tolerance,
        "parity": parity.holds(tolerance),
        "differences": {
            name: {
                key: None if isinstance(value, float) and not np.isfinite(value) else value
                for key, value in vars(difference).items()
            }
            for name, difference in parity.differences.items()
        },
    }
