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

from fct_tf.errors import InputError
from fct_tf.files import one_line, sha256_json

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


def folder(path: str, split: str) -> Source:
    """An image folder: `PATH/<split>/<class>/<file>`, or `PATH/<class>/<file>` without a split.

    Classes and files are taken in name order; JPEG and PNG files (by their ending) are images,
    hidden and other files are left out. The id is the path below `PATH`, the label the class
    directory's name.

    Raises:
      InputError: the folder, the split or its images are missing, or a split must be chosen.
    """
    base = Path(path)
    root = base / split if split else base
    if not root.is_dir():
        found = _directories(base) if base.is_dir() else []
        there = f" ({base} has: {some(found)})" if found else ""
        raise InputError(f"{root}: no such image folder{there}")
    try:
        names, files, sizes, labels, other, deeper = _list(root)
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read ({error.strerror})") from None
    if not files:
        if deeper and not split:
            raise InputError(
                f"{base}: no images directly in {some(names)}; if these are splits, name one: "
                f"folder:{base}:{names[0]}"
            )
        wanted = "<split>/<class>" if split else "<class>"
        raise InputError(
            f"{root}: no {'/'.join(IMAGE_ENDINGS)} images; expected {base}/{wanted}/<image>"
        )
    if deeper or other:
        logging.warning(
            "%s: left out %d files that are not JPEG or PNG and %d nested directories",
            root, other, len(deeper),
        )  # fmt: skip
    prefix = f"{split}/" if split else ""
    ids = np.array([(prefix + name).encode(errors="surrogateescape") for name in files], object)
    directory = os.path.join(str(base), "")

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

    return Source(
        label_names=tuple(names),
        labels=np.asarray(labels, np.int64),
        record={
            "folder_split": split,
            "labels": list(names),
            "files": sha256_json(
                [[os.fsencode(f).hex(), n] for f, n in zip(files, sizes, strict=True)]
            ),
        },
        encoded=encoded,
        content=lambda name: tf.io.read_file(tf.strings.join([directory, name])),
        find=find,
        random_access=True,
        check=True,
        sizes=np.asarray(sizes, np.int64),
    )


def _list(
    root: Path,
) -> tuple[list[str], list[str], list[int], list[int], int, list[str]]:
    """Classes, then `<class>/<file>`, size and label of every image below `root`; then how many
    other files there are, and the directories inside classes."""
    names = _directories(root)
    labels: list[int] = []
    files: list[str] = []
    sizes: list[int] = []
    other = 0
    deeper: list[str] = []
    for label, name in enumerate(names):
        with os.scandir(root / name) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                deeper.append(f"{name}/{entry.name}")
            elif not entry.name.lower().endswith(IMAGE_ENDINGS):
                other += 1
            else:
                files.append(f"{name}/{entry.name}")
                # A link that leads nowhere is an unreadable image, as a damaged file is.
                sizes.append(entry.stat().st_size if os.path.exists(entry.path) else -1)
                labels.append(label)
    return names, files, sizes, labels, other, deeper


def _directories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def some(names: list[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def reading(name: str, dataset: tf.data.Dataset) -> Iterator[Any]:
    """The elements as NumPy; `InputError` where the files behind them are damaged."""
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as e:
        raise InputError(
            f"{name}: cannot be read ({one_line(e)[:300]}); its files are damaged, prepare it anew"
        ) from None
