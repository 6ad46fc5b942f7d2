"""Where images come from: what a source holds is listed before any image is decoded.

A source lists its images in one fixed order; `positions` below are places in that order.
"""

import dataclasses
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.errors import InputError
from fct_tf.files import make_dir, one_line, sha256_json

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
# Labels of larger sets are read once and kept: reading ImageNet for them takes minutes.
KEEP_LABELS_FROM = 200_000


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of images before they are decoded.

    Attributes:
      label_names: every label name of the data set; the position is the integer label.
      labels: int64 `[n]`, integer label by position, -1 where an image has none.
      record: what identifies the source, JSON (goes into fingerprints).
      encoded: `encoded(positions, seed)` -> data set of {"encoded": string (file content),
        "id": string, "position": int64}. `positions` is int64 `[m]`. Without a seed the order is
        that of `positions`, which must rise where not `random_access`; with a seed (those
        sources only) it is a cheap shuffle, by file, that the caller completes with a buffer.
      random_access: `positions` may come in any order.
      check: images may be broken (a folder's), so decoding must name the file.
    """

    label_names: tuple[str, ...]
    labels: np.ndarray
    record: dict[str, Any]
    encoded: Callable[..., tf.data.Dataset]
    random_access: bool
    check: bool


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
        there = f" ({base} has: {_some(found)})" if found else ""
        raise InputError(f"{root}: no such image folder{there}")
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
                sizes.append(entry.stat().st_size)
                labels.append(label)
    if not files:
        if deeper and not split:
            raise InputError(
                f"{base}: no images directly in {_some(names)}; if these are splits, name one: "
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
    directory = os.path.join(str(root), "")

    def encoded(positions: np.ndarray, seed: int | None = None) -> tf.data.Dataset:
        del seed  # Random access: the caller shuffles positions.
        chosen = tf.data.Dataset.from_tensor_slices((ids[positions], np.asarray(positions)))

        def read(name: tf.Tensor, position: tf.Tensor) -> dict[str, tf.Tensor]:
            file = tf.strings.join([directory, tf.strings.substr(name, len(prefix), -1)])
            return {"encoded": tf.io.read_file(file), "id": name, "position": position}

        return chosen.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

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
        random_access=True,
        check=True,
    )


def _directories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def tfds_builder(name: str, data_dir: str) -> Any:
    """A TFDS builder that is prepared, downloading the data set if it must.

    Raises:
      InputError: no such data set, or it is not prepared and cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    directory = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    try:
        builder = tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError:
        raise InputError(f"tfds:{name}: TensorFlow Datasets has no data set of this name") from None
    except (ValueError, AssertionError, OSError) as error:
        raise InputError(f"tfds:{name}: {one_line(error)}") from None
    prepare(builder, name)
    return builder


def prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a TFDS data set that is not prepared yet, or says how to."""
    if builder.is_prepared():
        return
    root = builder.data_dir_root if hasattr(builder, "data_dir_root") else None
    place = str(
        root or Path(str(builder.data_dir)).parents[len(builder.info.full_name.split("/")) - 2]
    )
    advice = (
        f"prepare it where there is a network (tfds build {name} --data_dir={place}; some data "
        "sets ask for files downloaded by hand) or point data_dir or TFDS_DATA_DIR at a copy"
    )
    logging.info("%s is not prepared in %s: preparing it", name, place)
    hosts = _unreachable_hosts(builder, place)
    if hosts:
        raise InputError(
            f"tfds:{name}: not prepared in {place}, and {hosts[0]} cannot be reached; {advice}"
        )
    try:
        builder.download_and_prepare()
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # TFDS lets through whatever its download tools raise.
        raise InputError(
            f"tfds:{name}: not prepared in {place}, and preparing it failed "
            f"({type(error).__name__}: {one_line(error)[:300]}); {advice}"
        ) from error


def _unreachable_hosts(builder: Any, place: str) -> list[str]:
    """Hosts that the data set is downloaded from and whose names do not resolve.

    TFDS itself retries for minutes on a machine without a network. Nothing is said where a
    proxy resolves names, or where files downloaded before may serve.
    """
    downloads = Path(place) / "downloads"
    if urllib.request.getproxies() or (downloads.is_dir() and any(downloads.iterdir())):
        return []
    urls = getattr(builder, "url_infos", None) or {}
    hosts = {urllib.parse.urlsplit(url).hostname for url in urls}
    missing = []
    for host in sorted(host for host in hosts if host):
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            missing.append(host)
    return missing


def tfds_source(name: str, split: str, data_dir: str = "", builder: Any = None) -> Source:
    """A data set of TensorFlow Datasets by name, with the id `<dataset>/<split>/<tfds_id>`.

    `split` is a split's name, or a slice of one (`train[:10%]`). An image without a label (the
    feature is missing, or its value is negative as in some test splits) has label -1.

    Raises:
      InputError: no such data set or split, no image feature, or the data cannot be had.
    """
    import tensorflow_datasets as tfds

    builder = builder or tfds_builder(name, data_dir)
    base = split.split("[")[0]
    splits = builder.info.splits
    if not split or "+" in split or (splits and base not in splits):
        raise InputError(f"tfds:{name}: no split {split!r}; choose one of {_some(list(splits))}")
    features = builder.info.features
    image_key, label_key = _feature_keys(name, features)
    # A mocked builder has no splits; the one file it pretends to read starts at 0.
    lengths = list(splits[base].shard_lengths) if base in splits else []
    files = [Path(file).name for file in splits[base].filenames] if lengths else []
    record = {
        "tfds": builder.info.full_name,
        "split": split,
        "shard_lengths": lengths,
        "image": image_key,
        "label": label_key,
    }
    prefix = f"{builder.info.name}/{base}/"
    starts = np.concatenate([[0], np.cumsum(lengths)])[: len(files)].astype(np.int64)

    def elements(seed: int | None) -> tf.data.Dataset:
        """{"encoded", "id", "label", "place": int64 place in the whole split}."""
        config = tfds.ReadConfig(
            add_tfds_id=True,
            try_autocache=False,
            shuffle_seed=seed,
            # One file after the other: the order of the elements is that of their places.
            interleave_cycle_length=1 if seed is None else 16,
        )
        try:
            dataset = builder.as_dataset(
                split=split,
                shuffle_files=seed is not None,
                read_config=config,
                decoders={image_key: tfds.decode.SkipDecoding()},
            )
        except (ValueError, AssertionError) as error:
            raise InputError(f"tfds:{name}: split {split!r}: {one_line(error)}") from None
        start_of = _start_table(files, starts)

        def rename(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            parts = tf.strings.split(example["tfds_id"], "__")
            label = example[label_key] if label_key else tf.constant(-1, tf.int64)
            return {
                "encoded": example[image_key],
                "id": tf.strings.join([prefix, example["tfds_id"]]),
                "label": label if label.dtype == tf.string else tf.cast(label, tf.int64),
                "place": start_of(parts[0]) + tf.strings.to_number(parts[-1], tf.int64),
            }

        return dataset.map(rename, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    raw_labels, places = _scan(elements, sha256_json(record), sum(lengths))
    if raw_labels.dtype.kind in "SO":
        values, labels = np.unique(raw_labels.astype(object), return_inverse=True)
        label_names = tuple(value.decode() for value in values)
    else:
        labels = np.maximum(raw_labels, -1)
        names = getattr(features[label_key], "names", None) if label_key else []
        count = int(labels.max(initial=-1)) + 1
        label_names = tuple(names) if names is not None else tuple(map(str, range(count)))

    def encoded(positions: np.ndarray, seed: int | None = None) -> tf.data.Dataset:
        position_of = np.full(int(places.max(initial=0)) + 1, -1, np.int64)
        position_of[places[positions]] = positions
        with tf.device("CPU:0"):
            table = tf.constant(position_of)

        def keep(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {
                "encoded": example["encoded"],
                "id": example["id"],
                "position": tf.gather(table, example["place"]),
            }

        dataset = elements(seed).map(keep, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return dataset.filter(lambda example: example["position"] >= 0)

    return Source(
        label_names=label_names,
        labels=labels.astype(np.int64),
        record=record,
        encoded=encoded,
        random_access=False,
        check=False,
    )


def _feature_keys(name: str, features: Any) -> tuple[str, str | None]:
    """The image feature and the label feature (or None) of a data set."""
    import tensorflow_datasets as tfds

    images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise InputError(f"tfds:{name}: has no image feature (it has {_some(list(features))})")
    classes = [key for key, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    named = [key for key in ("label", "class_id") if key in features]
    return "image" if "image" in images else images[0], (named + classes + [None])[0]


def _start_table(files: list[str], starts: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """Maps a file's name to the place of its first example."""
    if len(files) < 2:
        return lambda name: tf.zeros([], tf.int64)
    with tf.device("CPU:0"):
        pairs = tf.lookup.KeyValueTensorInitializer(files, starts)
        return tf.lookup.StaticHashTable(pairs, default_value=0).lookup


def _scan(
    elements: Callable[[int | None], tf.data.Dataset], fingerprint: str, expected: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[n]` and places `[n]` of a split in order, kept on disk where n is large."""
    file = _cache_dir() / f"{fingerprint}.npz"
    if expected >= KEEP_LABELS_FROM and file.is_file():
        try:
            with np.load(file, allow_pickle=False) as kept:
                return kept["labels"], kept["places"]
        except (OSError, ValueError, KeyError):
            logging.warning("%s: unreadable, reading the labels again", file)
    if expected >= KEEP_LABELS_FROM:
        logging.info("reading %d labels once; they are kept in %s", expected, file)
    chosen = elements(None).map(lambda example: (example["label"], example["place"]))
    batches = [(a.numpy(), b.numpy()) for a, b in chosen.batch(4096).prefetch(1)]
    if not batches:
        return np.zeros([0], np.int64), np.zeros([0], np.int64)
    labels = np.concatenate([labels for labels, _ in batches])
    places = np.concatenate([places for _, places in batches])
    if len(labels) >= KEEP_LABELS_FROM and labels.dtype.kind in "iu":
        make_dir(file.parent)
        temporary = file.with_name(f".{os.getpid()}.{file.name}")
        np.savez(temporary, labels=labels, places=places)
        os.replace(temporary, file)
    return labels, places


def _cache_dir() -> Path:
    """Where label lists of large data sets are kept."""
    default = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "fct_tf" / "labels"
