"""Where decoded images stay between epochs: in memory, on disk, or nowhere.

Each store gives `batches(shuffle, skip_batches, batch_size, drop_remainder)`, a data set of
batches {"image": uint8 `[b, h, w, 3]`, "label": int64 `[b]`, "id": string `[b]`, "index":
int64 `[b]`}, in the order of `index` or, with `shuffle = (seed, epoch)`, in an order that is a
function of these two numbers alone. Skipped batches are not decoded.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.common.files import atomic_dir, one_line, read_json, write_json
from fct_tf.common.image_size import height_width, text
from fct_tf.data.sources import Source, reading
from fct_tf.models import image_files, preprocess

Batches = Callable[[tuple[int, int] | None, int, int, bool], tf.data.Dataset]

# Encoded images held for shuffling where a TFDS set is streamed; 8,192 of ImageNet are 0.9 GB.
SHUFFLE_BUFFER = 8192
_DECODE_BATCH = 256
_DISK_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The images of a source that are asked for, and how.

    positions: int64 `[n]`, rising, of the source; targets: int64 `[n]`, their labels;
    orientation: see `fct_tf.models.image_files`; remedy: what to do about unreadable images.
    """

    name: str
    fingerprint: str
    source: Source
    positions: np.ndarray
    targets: np.ndarray
    image_size: int | list[int]
    resize: str
    on_bad_image: str
    orientation: str
    remedy: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one decoded image."""
        return (*height_width(self.image_size), 3)


def in_memory(wanted: Wanted) -> tuple[Batches, int]:
    """Decodes all images into one uint8 array; returns the batches and the number of images."""
    shape = (len(wanted.positions), *wanted.shape)
    needed, free = int(np.prod(shape)), _free_memory_bytes()
    # TensorFlow copies the array once.
    if free and 2 * needed > 0.8 * free:
        raise InputError(
            f"{wanted.name}: {shape[0]} images of {text(wanted.image_size)} pixels take "
            f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; "
            "use cache none or disk:PATH (--config.dataset.cache=none)"
        )
    images = np.empty(shape, np.uint8)

    def keep(row: int, batch: np.ndarray) -> None:
        images[row : row + len(batch)] = batch

    good, ids = _decode_all(wanted, keep)
    with tf.device("CPU:0"):
        rows = tf.constant(images[: len(good)])

    def fetch(indices: tf.Tensor) -> tf.Tensor:
        return tf.gather(rows, indices)

    return _random_access(fetch, wanted, wanted.targets[good], ids), len(good)


def on_disk(wanted: Wanted, path: str) -> tuple[Batches, int]:
    """As `in_memory`, the array in a directory PATH/<fingerprint>, made where missing."""
    # Without the suffix: images that were not turned, as in caches made before any were.
    suffix = "" if wanted.orientation == "ignored" else "_upright"
    directory = Path(path) / (wanted.fingerprint[:32] + suffix)
    settings = {"format": _DISK_FORMAT, "fingerprint": wanted.fingerprint}
    if not (directory / "meta.json").is_file():
        with atomic_dir(directory, overwrite=True) as temporary:
            with open(temporary / "images.bin", "wb") as file:
                good, ids = _decode_all(wanted, lambda row, batch: file.write(batch.tobytes()))
            np.savez(temporary / "rows.npz", good=good, ids=np.array(ids, "S"))
            write_json(temporary / "meta.json", {**settings, "num_examples": len(good)})
    meta = read_json(directory / "meta.json")
    row_bytes = int(np.prod(wanted.shape))
    file_name = directory / "images.bin"
    try:
        with np.load(directory / "rows.npz", allow_pickle=False) as kept:
            good, ids = kept["good"], kept["ids"].astype(object)
        descriptor = os.open(file_name, os.O_RDONLY)
        whole = os.fstat(descriptor).st_size == row_bytes * len(good)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{directory}: broken image cache ({one_line(error)}); delete it"
        ) from None
    if any(meta.get(key) != value for key, value in settings.items()) or not whole:
        raise InputError(f"{directory}: not an image cache of this data; delete it")

    def read(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *wanted.shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            # Reading at a place lets other threads run, which a memory map's page faults do not.
            if os.preadv(descriptor, [image.data], int(index) * row_bytes) != row_bytes:
                raise OSError(f"{file_name}: row {index} is cut off")
        return images

    def fetch(indices: tf.Tensor) -> tf.Tensor:
        images = tf.numpy_function(read, [indices], tf.uint8, stateful=False)
        return tf.ensure_shape(images, [None, *wanted.shape])

    return _random_access(fetch, wanted, wanted.targets[good], ids), len(good)


def streamed(wanted: Wanted) -> tuple[Batches, int]:
    """Decodes anew in every epoch; a folder's unreadable images are looked for once if skipped."""
    source = wanted.source
    good = np.arange(len(wanted.positions))
    if source.check and wanted.on_bad_image == "skip":
        good, _ = _decode_all(wanted, lambda row, batch: None)
    positions, targets = wanted.positions[good], wanted.targets[good]
    index_of = np.full(len(source.labels), -1, np.int64)
    index_of[positions] = np.arange(len(positions))
    with tf.device("CPU:0"):
        index_table, target_table = tf.constant(index_of), tf.constant(targets)

    def finish(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = tf.gather(index_table, batch["position"])
        images = batch["image"]
        if source.check:
            bad = tf.boolean_mask(batch["id"], ~batch["ok"])
            more = tf.where(tf.size(bad) > 5, ", ...", "")
            named = tf.strings.reduce_join(bad[:5], separator=", ")
            message = tf.strings.join(
                [wanted.name, ": unreadable images ", named, more, "; ", wanted.remedy]
            )
            checked = tf.debugging.Assert(tf.reduce_all(batch["ok"]), [message])
            with tf.control_dependencies([checked]):
                images = tf.identity(images)
        return {
            "image": images,
            "label": tf.gather(target_table, index),
            "id": batch["id"],
            "index": index,
        }

    def batches(
        shuffle: tuple[int, int] | None, skip: int, batch_size: int, drop_remainder: bool
    ) -> tf.data.Dataset:
        skipped = skip * batch_size
        if source.random_access:
            order = _order(len(positions), shuffle)[skipped:]
            encoded = source.encoded(positions[order])
        else:
            seed = None if shuffle is None else _generator(shuffle).integers(2**31 - 1).item()
            encoded = source.encoded(positions, seed)
            if seed is not None:
                buffer = min(SHUFFLE_BUFFER, len(positions))
                encoded = encoded.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)
            encoded = encoded.skip(skipped)
        dataset = decoded(encoded, wanted).batch(batch_size, drop_remainder=drop_remainder)
        left = max(len(positions) - skipped, 0)
        count = left // batch_size if drop_remainder else -(-left // batch_size)
        dataset = dataset.map(finish).apply(tf.data.experimental.assert_cardinality(count))
        return dataset.with_options(_options())

    return batches, len(positions)


def decoded(encoded: tf.data.Dataset, wanted: Wanted) -> tf.data.Dataset:
    """Encoded images to {"image": uint8 `[h, w, 3]`, "ok": bool, "id", "position"}, in order.

    Where the source may hold broken images, these come as black ones with `ok` false.
    """
    size, crop = wanted.shape[:2], wanted.resize == "center_crop"

    def decode(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        content = wanted.source.content(example["encoded"])
        image = image_files.decode(content, wanted.orientation)
        image = _center_crop(image, size) if crop else image
        if not crop:
            image = tf.image.resize(image, size, antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return {**_named(example), "image": image, "ok": tf.constant(True)}

    if not wanted.source.check:
        return encoded.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def decode_or_mark(example: dict[str, tf.Tensor]) -> tf.data.Dataset:
        # The only way to catch an error inside the graph: a data set that drops it, and after
        # it the mark, of which the first element is taken.
        good = tf.data.Dataset.from_tensors(example).map(decode).ignore_errors()
        black = tf.zeros(wanted.shape, tf.uint8)
        mark = {**_named(example), "image": black, "ok": tf.constant(False)}
        return good.concatenate(tf.data.Dataset.from_tensors(mark)).take(1)

    return encoded.interleave(
        decode_or_mark,
        cycle_length=max(os.cpu_count() or 1, 2),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _named(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"id": example["id"], "position": example["position"]}


def _center_crop(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The least size that covers size / 0.875, antialiased bilinear, then the centre: `[h, w, 3]`.

    Of a square: the shorter side to size / 0.875.
    """
    image = tf.image.resize(image, preprocess.covering(tf.shape(image)[:2], size), antialias=True)
    start = (tf.shape(image)[:2] - size) // 2
    return image[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]


def _decode_all(
    wanted: Wanted, store: Callable[[int, np.ndarray], object]
) -> tuple[np.ndarray, list[bytes]]:
    """Decodes every image once, handing the good ones to `store(first row, images)`.

    Returns the good images' places in `wanted.positions`, int64 `[n]`, and their ids.
    """
    dataset = decoded(wanted.source.encoded(wanted.positions), wanted)
    dataset = dataset.batch(_DECODE_BATCH).prefetch(2)
    good: list[np.ndarray] = []
    ids: list[bytes] = []
    bad: list[str] = []
    with tqdm(total=len(wanted.positions), desc=wanted.name, unit="image", disable=None) as bar:
        for batch in reading(wanted.name, dataset):
            ok = batch["ok"]
            store(len(ids), batch["image"][ok])
            good.append(batch["position"][ok])
            ids.extend(batch["id"][ok])
            bad.extend(name.decode(errors="replace") for name in batch["id"][~ok])
            bar.update(len(ok))
    if bad:
        named = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        if wanted.on_bad_image == "error":
            raise InputError(
                f"{wanted.name}: {len(bad)} unreadable images: {named}; {wanted.remedy}"
            )
        logging.warning("%s: unreadable images: %s", wanted.name, named)
    if not ids:
        raise InputError(
            f"{wanted.name}: not one of {len(wanted.positions)} images can be read: {named}; mend "
            "them"
        )
    return np.searchsorted(wanted.positions, np.concatenate(good)), ids


def _random_access(
    fetch: Callable[[tf.Tensor], tf.Tensor],
    wanted: Wanted,
    targets: np.ndarray,
    ids: list[bytes] | np.ndarray,
) -> Batches:
    """Batches of rows that are fetched by index: int64 `[b]` -> uint8 `[b, h, w, 3]`."""
    with tf.device("CPU:0"):
        target_table, id_table = tf.constant(targets), tf.constant(np.asarray(ids, object))

    def gather(indices: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "image": fetch(indices),
            "label": tf.gather(target_table, indices),
            "id": tf.gather(id_table, indices),
            "index": indices,
        }

    def batches(
        shuffle: tuple[int, int] | None, skip: int, batch_size: int, drop_remainder: bool
    ) -> tf.data.Dataset:
        order = _order(len(targets), shuffle)[skip * batch_size :]
        dataset = tf.data.Dataset.from_tensor_slices(order)
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
        dataset = dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return dataset.with_options(_options())

    return batches


def _generator(shuffle: tuple[int, int]) -> np.random.Generator:
    return np.random.default_rng(shuffle)


def _order(count: int, shuffle: tuple[int, int] | None) -> np.ndarray:
    """0..count-1, or their permutation that belongs to (seed, epoch)."""
    return np.arange(count) if shuffle is None else _generator(shuffle).permutation(count)


def _options() -> tf.data.Options:
    """Deterministic; several workers take shares of the batches, whatever files are behind."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def _free_memory_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""

    def lines() -> Iterator[str]:
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                yield from file
        except OSError:
            return

    for line in lines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
