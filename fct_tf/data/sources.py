"""Where images come from: what a source holds is listed before any image is decoded.

A source lists its images in one fixed order; `positions` below are places in that order.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import reason, sha256_json

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of images before they are decoded.

    Attributes:
      label_names: every label name of the data set; the position is the integer label.
      labels: int64 `[n]`, integer label by position, -1 where an image has none.
      record: what identifies the source, JSON (goes into fingerprints).
      encoded: `encoded(positions, seed)` -> data set of {"encoded": string, "id": string,
        "position": int64}. `positions` is int64 `[m]`. Without a seed the order is
        that of `positions`, which must rise where not `random_access`; with a seed (those
        sources only) it is a cheap shuffle, by file, that the caller completes with a buffer.
      content: of an "encoded" string, the JPEG or PNG file's content; read late, so that a file
        that cannot be read is treated as one that cannot be decoded.
      find: of ids, the positions: int64 `[m]`, -1 where there is no such image.
      random_access: `positions` may come in any order.
      check: images may be broken (a folder's), so decoding must name the file.
      sizes: int64 `[n]`, bytes of each image's file (-1: a link that leads nowhere); None where
        the source does not say.
      nameless: path (to print) and integer label of images that can have no id, since their
        names are not UTF-8; they have no position.
    """

    label_names: tuple[str, ...]
    labels: np.ndarray
    record: dict[str, Any]
    encoded: Callable[..., tf.data.Dataset]
    content: Callable[[tf.Tensor], tf.Tensor]
    find: Callable[[Sequence[str]], np.ndarray]
    random_access: bool
    check: bool
    sizes: np.ndarray | None = None
    nameless: tuple[tuple[str, int], ...] = ()


def folder(path: str, split: str, *, classes: bool = True) -> Source:
    """A folder of images, below `PATH/<split>`, or below `PATH` without a split.

    Files are taken in name order; JPEG and PNG files (by their ending) are images, hidden and
    other files are left out. The id is the path below `PATH`. What is a class is decided by where
    images lie:
    - In directories directly below: these are classes, `<class>/<file>`, and the label is the
      directory's name. Images that lie elsewhere, beside the class directories or deeper, are left
      out and counted in a warning.
    - Nowhere there, but directly in the folder, or deeper: images without labels, all of them.
      (Deeper alone needs a split: else it may be one that was forgotten.)

    Args:
      path: PATH.
      split: of the images, or empty.
      classes: False takes every image at any depth, without a label.

    Raises:
      InputError: the folder, the split or its images are missing, or a split must be chosen.
    """
    base = Path(path)
    root = base / split if split else base
    if not root.is_dir():
        subdirectories = _directories(base) if base.is_dir() else []
        contents = f" ({shown(base)} has: {some(subdirectories)})" if subdirectories else ""
        raise InputError(f"{shown(root)}: no such image folder{contents}")
    try:
        directories = _directories(root)
        listed = list(_walk(root, "", frozenset()))
    except OSError as error:
        raise InputError(
            f"{shown(error.filename or root)}: cannot be read ({error.strerror})"
        ) from None
    images = [(name, size) for name, size in listed if name.lower().endswith(IMAGE_ENDINGS)]
    if not images:
        layout = "<split>/" * bool(split) + "<class>/" * classes
        raise InputError(
            f"{shown(root)}: no {'/'.join(IMAGE_ENDINGS)} images; expected "
            f"{shown(base)}/{layout}<image>"
        )
    depths = [name.count("/") for name, _ in images]
    labelled = classes and 1 in depths
    if classes and not labelled and not split and 0 not in depths:
        raise InputError(
            f"{shown(base)}: no images directly in {some(directories)}; if these are splits, name "
            f"one: folder:{shown(base)}:{shown(directories[0])}; if they are neither splits nor "
            f"classes, take all images below it, without labels: files:{shown(base)}"
        )
    taken = [
        image for image, depth in zip(images, depths, strict=True) if depth == 1 or not labelled
    ]
    left = [name for (name, _), depth in zip(images, depths, strict=True) if depth != 1]
    _tell(root, labelled, left, len(listed) - len(images), len(taken))
    names = [name for name in directories if _is_utf8(name)] if labelled else []
    label_of = {name: label for label, name in enumerate(names)}
    prefix = f"{split}/" if split else ""
    # A gallery's ids are UTF-8: other files have none.
    named = [image for image in taken if _is_utf8(prefix + image[0])]
    nameless = [name for name, _ in taken if not _is_utf8(prefix + name)]
    ids = np.array([(prefix + name).encode() for name, _ in named], object)
    directory = os.fsencode(os.path.join(base, ""))

    def encoded(positions: np.ndarray, seed: int | None = None) -> tf.data.Dataset:
        del seed  # Random access: the caller shuffles positions.
        chosen = (ids[positions], np.asarray(positions))
        return tf.data.Dataset.from_tensor_slices(chosen).map(
            lambda name, position: {"encoded": name, "id": name, "position": position}
        )

    def find(wanted: Sequence[str]) -> np.ndarray:
        position = {name: place for place, name in enumerate(ids)}
        encoded_names = (name.encode(errors="surrogateescape") for name in wanted)
        return np.array([position.get(name, -1) for name in encoded_names], np.int64)

    def label(name: str) -> int:
        return label_of.get(name.split("/")[0], -1) if labelled else -1

    return Source(
        label_names=tuple(names),
        labels=np.array([label(name) for name, _ in named], np.int64),
        record={
            "folder_split": shown(split),
            "labels": names,
            "files": sha256_json([[os.fsencode(name).hex(), size] for name, size in named]),
        },
        encoded=encoded,
        content=lambda name: tf.io.read_file(tf.strings.join([directory, name])),
        find=find,
        random_access=True,
        check=True,
        sizes=np.array([size for _, size in named], np.int64),
        nameless=tuple((shown(prefix + name), label(name)) for name in nameless),
    )


def _walk(root: Path, below: str, above: frozenset) -> Iterator[tuple[str, int]]:
    """Path below `root` and size of every file that is not hidden, files before directories.

    Links are followed, except to a directory that they lie in (`above`).
    """
    directory = root / below
    status = directory.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(directory) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in visible:
        if not entry.is_dir():
            # A link that leads nowhere is an unreadable image, as a damaged file is.
            size = entry.stat().st_size if os.path.exists(entry.path) else -1
            yield below + entry.name, size
    for entry in visible:
        if entry.is_dir():
            yield from _walk(root, f"{below}{entry.name}/", above | {identity})


def _tell(root: Path, labelled: bool, left: list[str], other: int, taken: int) -> None:
    """Says in the log which files of a folder are not taken, or not as an image of a class."""
    if not labelled:
        logging.info("%s: %d images without labels", shown(root), taken)
    parts = []
    if labelled and left:
        parts.append(f"{len(left)} images not directly in a class folder ({some(left)})")
    if other:
        parts.append(f"{other} files that are not JPEG or PNG")
    if parts:
        logging.warning("%s: left out %s", shown(root), " and ".join(parts))


def _directories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _is_utf8(name: str) -> bool:
    """Whether a file's name is text: bytes that are not UTF-8 come as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(path: str | os.PathLike) -> str:
    """A path as it can be printed: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


def some(names: list[str]) -> str:
    """The first few of many names, for a message."""
    listed = ", ".join(shown(name) for name in names[:5])
    return listed + (", ..." if len(names) > 5 else "") if names else "nothing"


def reading(name: str, dataset: tf.data.Dataset) -> Iterator[Any]:
    """The elements as NumPy; `InputError` where the files behind them are damaged."""
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as e:
        raise InputError(
            f"{name}: cannot be read ({reason(e)[:300]}); its files are damaged, prepare it anew"
        ) from None
