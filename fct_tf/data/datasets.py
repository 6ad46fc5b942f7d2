"""Images as batches: loaded by name, decoded once, shuffled and augmented reproducibly.

A source is one of
- `tfds:NAME:SPLIT`, TensorFlow Datasets (ids `<dataset>/<split>/<tfds_id>`),
- `folder:PATH:SPLIT`, `PATH/<split>/<class>/<file>` (ids `<split>/<class>/<file>`), or
  `folder:PATH`, `PATH/<class>/<file>` (ids `<class>/<file>`), JPEG and PNG; with no class folder,
  `<split>/<file>` or `<file>`, images without labels (see `fct_tf.data.sources.folder`),
- `files:PATH[:SPLIT]`, every image of a folder at any depth, without labels; ids as above,
- `glyphs:SPLIT`, the offline data set of `fct_tf.data.glyphs`.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import reason, sha256_json
from fct_tf.common.image_size import Size, height_width, stored
from fct_tf.data import sources, stores, subsets
from fct_tf.data.augment import Augmentation, augmentation
from fct_tf.models import image_files

RESIZES = ("bilinear_antialias", "center_crop")
_SKIP = (
    "leave them out with ``on_bad_image=skip`` (--config.dataset.on_bad_image=skip where there is "
    "a --config)"
)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of labelled images of one size.

    Attributes:
      name: the source as given, with its split.
      num_examples: images, those of the asked classes only, without skipped ones.
      label_names: all label names of the data set; the position is its integer label.
      fingerprint: hex SHA-256 of what was asked for and what the source is (builder version and
        shard lengths, or file names and sizes), not of pixels and not of where it lies.
      classes: label names that are kept and have images; training targets are positions here.
      image_size: side in pixels, or [height, width] where they differ.
      num_skipped: images left out (`on_bad_image="skip"`), since they are unreadable or have a name
        that cannot be an id.
      orientation: of photographs, by EXIF: `applied` or `ignored`.
      again: loads it once more, in another process.
    """

    name: str
    num_examples: int
    label_names: tuple[str, ...]
    fingerprint: str
    classes: tuple[str, ...]
    image_size: int | list[int]
    num_skipped: int
    orientation: str
    batches: stores.Batches = dataclasses.field(repr=False)  # See `fct_tf.data.stores`.
    again: "Callable[[], ImageSet] | None" = dataclasses.field(default=None, repr=False)

    def __reduce__(self):
        return _load_again, (self.again, self.name, self.fingerprint)

    @property
    def dataset(self) -> tf.data.Dataset:
        """Single images in order: {"image": uint8 `[h, w, 3]`, "label": int64 position in
        `classes` (-1: none), "id": string, "index": int64 0..num_examples-1}."""
        return self.batches(None, 0, 64, False).unbatch()


def _load_again(loading: Callable[[], ImageSet] | None, name: str, fingerprint: str) -> ImageSet:
    """A set of images that was pickled, which must not be another one by now."""
    if loading is None:
        raise InputError(f"{name}: cannot be loaded by other processes; use ``engine=local``")
    loaded = loading()
    if loaded.fingerprint != fingerprint:
        raise InputError(f"{name}: its images have changed in the meantime; start again")
    return loaded


def load(
    source: str,
    *,
    split: str = "",
    image_size: Size,
    classes: Mapping[str, Any] | None = None,
    data_dir: str = "",
    on_bad_image: str = "error",
    cache: str = "memory",
    resize: str = "bilinear_antialias",
    ids: Collection[str] | None = None,
    orientation: str = "applied",
) -> ImageSet:
    """Opens a set of images.

    Args:
      source: see the module; the split may be in it or in `split`.
      image_size: side in pixels that images are resized to, or height and width.
      classes: None, or exactly one of `fraction` (the first so many of the classes, in label
        order, rounded down), `first` (their number), `list` (label names or integer labels),
        `file` (one of these a line, up to a tab; `#` starts a comment). Only classes that have
        images in this split count.
      data_dir: of TFDS and glyphs; empty: TFDS_DATA_DIR, else TFDS' own default.
      on_bad_image: "error", or "skip": a folder's unreadable images, and those whose file or class
        name is not UTF-8, are left out, and counted.
      cache: where decoded images stay: "memory"; "disk:PATH", reused by later runs; or "none",
        decoded anew in every epoch (a TFDS set is then shuffled by file and by a buffer of
        stores.SHUFFLE_BUFFER images, everything else fully).
      resize: "bilinear_antialias" of the whole image to that size, or "center_crop": to the least
        size that covers image_size / 0.875 (of squares: the shorter side to that), then the centre.
      ids: only the images with these ids, in the source's order; no other one is decoded.
      orientation: "applied" turns photographs as their EXIF block says, of a folder and of TFDS
        (whose own decoding does not); "ignored" leaves them, as models made before expect. The
        fingerprint is the same in both.

    Raises:
      InputError: the source, the split, a class, an id or an image is missing or broken, or the
        images do not fit where they are to be cached.
    """
    if resize not in RESIZES:
        raise InputError(f"resize: choose one of {', '.join(RESIZES)}, got {resize!r}")
    if on_bad_image not in ("error", "skip"):
        raise InputError(f"on_bad_image: choose error or skip, got {on_bad_image!r}")
    if cache not in ("memory", "none") and not (cache.startswith("disk:") and cache[5:]):
        raise InputError(f"cache: choose memory, disk:PATH or none, got {cache!r}")
    if orientation not in image_files.ORIENTATIONS:
        raise InputError(f"orientation: choose applied or ignored, got {orientation!r}")
    image_size = stored(image_size)
    again = functools.partial(
        load,
        source,
        split=split,
        image_size=image_size,
        classes=classes,
        data_dir=data_dir,
        on_bad_image=on_bad_image,
        cache="none",
        resize=resize,
        ids=ids,
        orientation=orientation,
    )
    name, opened = open_source(source, split, data_dir)
    kept = subsets.kept_labels(classes, opened, name)
    positions = np.flatnonzero(np.isin(opened.labels, kept) | (classes is None))
    nameless = [path for path, label in opened.nameless if classes is None or label in kept]
    nameless = nameless if ids is None else []
    if nameless:
        paths = sources.some(nameless)
        message = f"{name}: {len(nameless)} images with names that are not UTF-8: {paths}"
        if on_bad_image == "error":
            raise InputError(f"{message}; rename them, or {_SKIP}")
        logging.warning("%s; left out", message)
    if not len(positions):
        raise InputError(f"{name}: holds no images")
    asked = {
        "source": opened.record,
        "image_size": image_size,
        "resize": resize,
        "classes": None if classes is None else [int(label) for label in kept],
        "on_bad_image": on_bad_image,
    }
    if ids is not None:
        names = sorted(set(ids))
        asked["ids"] = sha256_json(names)
        positions = subsets.positions_of(names, opened, positions, name)
    fingerprint = sha256_json(asked)
    target_of = np.full(len(opened.label_names) + 1, -1, np.int64)  # The last: label -1.
    target_of[kept] = np.arange(len(kept))
    targets = target_of[opened.labels[positions]]
    request = stores.Wanted(
        name=name,
        fingerprint=fingerprint,
        source=opened,
        positions=positions,
        targets=targets,
        image_size=image_size,
        resize=resize,
        on_bad_image=on_bad_image,
        orientation=orientation,
        # A sample that was drawn needs all its rows: not every command with ids can leave some out.
        remedy=f"mend or delete them, or {_SKIP}"
        if ids is None
        else "mend them, or leave them out (``on_bad_image=skip``, where the command has it)",
    )
    if cache == "memory":
        batches, num_examples = stores.in_memory(request)
    elif cache == "none":
        batches, num_examples = stores.streamed(request)
    else:
        batches, num_examples = stores.on_disk(request, cache.removeprefix("disk:"))
    skipped = len(positions) - num_examples
    if skipped:
        logging.warning("%s: left out %d unreadable images of %d", name, skipped, len(positions))
    return ImageSet(
        name=name,
        num_examples=num_examples,
        label_names=opened.label_names,
        fingerprint=fingerprint,
        classes=tuple(opened.label_names[label] for label in kept),
        image_size=image_size,
        num_skipped=skipped + len(nameless),
        orientation=orientation,
        batches=batches,
        again=again,
    )


def train_batches(
    images: ImageSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augment: str | Mapping[str, Any] | Augmentation | None = None,
    skip_batches: int = 0,
    views: int = 1,
) -> tf.data.Dataset:
    """One epoch of shuffled, augmented batches; the last, partial one is dropped.

    The order is a function of (seed, epoch), and an image's augmentation one of (seed, epoch,
    view, index): skipping the first batches of an epoch leaves the others exactly as they were.

    Args:
      images: see `load`.
      batch_size: images a batch; under a distribution strategy the global batch.
      seed, epoch: not negative.
      augment: see `fct_tf.data.augment.augmentation`.
      skip_batches: batches at the start that are left out (resuming within an epoch).
      views: 2 for a second, independent augmentation of the same images under "image2".

    Returns:
      batches {"image": float32 `[batch, h, w, 3]` in 0..255 (uint8 where nothing is augmented),
      "label": int64 `[batch]`, "id": string `[batch]`, "index": int64 `[batch]`} and, with two
      views, "image2".

    Raises:
      InputError: fewer images than one batch, or an unknown augmentation.
    """
    if views not in (1, 2):
        raise ValueError(f"views must be 1 or 2, got {views}")
    if images.num_examples < batch_size:
        raise InputError(
            f"{images.name}: {images.num_examples} images do not fill one batch of {batch_size}; "
            "lower the batch size"
        )
    augmenter = augment if isinstance(augment, Augmentation) else augmentation(augment)
    dataset = images.batches((seed, epoch), skip_batches, batch_size, True)
    if augmenter.name == "none" and views == 1:
        return dataset.prefetch(2)
    streams = [2 * epoch + view for view in range(views)]
    return _augmented(dataset, images, augmenter, seed, streams).prefetch(2)


def augmented(
    dataset: tf.data.Dataset, images: ImageSet, augment: Any, *, seed: int, view: int
) -> tf.data.Dataset:
    """Batches of `images`, as `eval_batches` gives them, augmented: view number `view`.

    An image's view is a function of (seed, view, index).
    """
    return _augmented(dataset, images, augmentation(augment), seed, [view])


@contextlib.contextmanager
def naming_unreadable_images() -> Iterator[None]:
    """Turns what a streamed pipeline says of unreadable data into an `InputError`."""
    try:
        yield
    except tf.errors.DataLossError as error:
        raise InputError(f"{reason(error)}; the data is damaged, copy it again") from None
    except tf.errors.InvalidArgumentError as error:
        # Of `stores.streamed`, which says all; TensorFlow puts a backslash before quotes.
        match = re.search(
            r"assertion failed: \[([^\n]*: unreadable images [^\n]*)\]", error.message
        )
        if not match:
            raise
        raise InputError(re.sub(r"\\(['\"\\])", r"\1", match[1])) from None


def _augmented(
    dataset: tf.data.Dataset,
    images: ImageSet,
    augmenter: Augmentation,
    seed: int,
    streams: list[int],
) -> tf.data.Dataset:
    """One augmented image per stream of random numbers, under "image" and "image2"."""
    height, width = height_width(images.image_size)
    if height != width and augmenter.name not in ("none", "flip"):
        raise InputError(
            f"augment {augmenter.name}: is for square images, {images.name} has {height}x{width}"
        )
    tables = [_uniforms(images, augmenter, seed, stream) for stream in streams]

    def transform(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        clean = tf.cast(batch["image"], tf.float32)
        views = [augmenter(clean, tf.gather(table, batch["index"])) for table in tables]
        return {**batch, **dict(zip(("image", "image2"), views, strict=False))}

    # Few calls at a time: each holds a whole global batch.
    return dataset.map(transform, num_parallel_calls=2, deterministic=True)


def _uniforms(images: ImageSet, augmenter: Augmentation, seed: int, stream: int) -> tf.Tensor:
    """Uniform numbers in [0, 1): float32 `[num_examples, num_uniforms]`."""
    with tf.device("CPU:0"):
        return tf.random.stateless_uniform(
            [images.num_examples, augmenter.num_uniforms], [seed, stream], alg="philox"
        )


def eval_batches(images: ImageSet, batch_size: int, *, skip_batches: int = 0) -> tf.data.Dataset:
    """All images once, in order, none dropped: the last batch may be smaller.

    Returns:
      batches {"image": uint8 `[b, h, w, 3]`, "label": int64 `[b]`, "id": string `[b]`,
      "index": int64 `[b]`}.
    """
    return images.batches(None, skip_batches, batch_size, False).prefetch(2)


def open_source(source: str, split: str, data_dir: str) -> tuple[str, sources.Source]:
    """Opens what a source string names; returns its name with the split, and the source."""
    kind, _, rest = source.partition(":")
    if kind in ("folder", "files") and rest:
        path, in_source = rest, ""
        if not os.path.isdir(path) and ":" in rest:
            path, _, in_source = rest.rpartition(":")
        split = _one_split(source, in_source, split)
        name = sources.shown(f"{kind}:{path}" + (f":{split}" if split else ""))
        return name, sources.folder(path, split, classes=kind == "folder")
    if kind == "glyphs":
        from fct_tf.data import glyphs, tfds_source

        split = _one_split(source, rest, split)
        opened = tfds_source.dataset("glyphs", split, builder=glyphs.builder(data_dir))
        return f"glyphs:{split}", opened
    if kind == "tfds" and rest:
        # Imported here: folders need no TFDS, which takes seconds to import.
        from fct_tf.data import tfds_source

        # A split starts with a letter, unlike a version (NAME:3.0.0:SPLIT), and may have a slice
        # with a colon in it (train[:10%]).
        match = re.fullmatch(r"(.+?)(?::([^\W\d][^:\[]*(?:\[.*\])?))?", rest)
        data_set, in_source = (match[1], match[2] or "") if match else (rest, "")
        split = _one_split(source, in_source, split)
        return f"tfds:{data_set}:{split}", tfds_source.dataset(data_set, split, data_dir)
    raise InputError(
        f"{source!r}: give images as tfds:NAME:SPLIT, folder:PATH[:SPLIT], files:PATH[:SPLIT] or "
        "glyphs:SPLIT"
    )


def _one_split(source: str, in_source: str, split: str) -> str:
    if in_source and split and in_source != split:
        raise InputError(f"{source!r}: names another split than {split!r}; give one of them")
    return in_source or split
