"""TensorFlow Datasets as a source of images, prepared (downloaded) where they are not yet."""

import contextlib
import os
import re
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import make_dir, one_line, sha256_json
from fct_tf.data.sources import Source, reading, some

# Labels of larger sets are read once and kept: reading ImageNet for them takes minutes.
KEEP_LABELS_FROM = 200_000
_TFDS_CORE = "tensorflow_datasets.core"
_RESOLVE_TIMEOUT_S = 10.0


def open_builder(name: str, data_dir: str) -> Any:
    """A TFDS builder that is prepared, downloading the data set if it must.

    Raises:
      InputError: no such data set, or it is not prepared and cannot be downloaded.
    """
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
    place = str(builder.data_dir_root)
    advice = (
        f"prepare it where there is a network (tfds build {name} --data_dir={place}; some data "
        "sets ask for files downloaded by hand) or point ``data_dir`` (--config.dataset.data_dir "
        "where there is a --config) or TFDS_DATA_DIR at a copy"
    )
    host = _unreachable_host(builder)
    if host:
        raise InputError(
            f"tfds:{name}: not prepared in {place}, and {host} cannot be reached; {advice}"
        )
    logging.info("%s is not prepared in %s: preparing it", name, place)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints what it does.
            builder.download_and_prepare()
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # TFDS lets through whatever its download tools raise.
        # Another process may have been faster: its result is as good.
        if not builder.is_prepared():
            raise InputError(
                f"tfds:{name}: not prepared in {place}, and preparing it failed "
                f"({type(error).__name__}: {one_line(error)[:300]}); {advice}"
            ) from error


def _unreachable_host(builder: Any) -> str | None:
    """A host that the data set is downloaded from and whose name does not resolve, if any.

    Without a network TFDS itself retries for minutes. Nothing is said where a proxy resolves
    names, where files downloaded before may serve, or where TFDS' preparation is mocked.
    """
    downloads = Path(str(builder.data_dir_root)) / "downloads"
    mocked = not type(builder).download_and_prepare.__module__.startswith(_TFDS_CORE)
    if mocked or urllib.request.getproxies() or any(path.is_file() for path in downloads.glob("*")):
        return None
    hosts = {
        urllib.parse.urlsplit(url).hostname for url in getattr(builder, "url_infos", None) or ()
    }
    for host in sorted(host for host in hosts if host):
        answers: list[object] = []
        thread = threading.Thread(target=_resolve, args=(host, answers), daemon=True)
        thread.start()
        thread.join(_RESOLVE_TIMEOUT_S)
        if not answers:
            return host
    return None


def _resolve(host: str, answers: list[object]) -> None:
    with contextlib.suppress(OSError):
        answers.extend(socket.getaddrinfo(host, None))


def dataset(name: str, split: str, data_dir: str = "", builder: Any = None) -> Source:
    """A data set of TensorFlow Datasets by name, with the id `<dataset>/<split>/<tfds_id>`.

    `split` is a split's name, or a slice of one (`train[:10%]`). An image without a label (the
    feature is missing, or its value is negative as in some test splits) has label -1, and so has
    every image of a set with several labels an image, which a warning says. Images are not decoded
    by TFDS, which would not turn photographs as their EXIF block says.

    Raises:
      InputError: no such data set or split, no image feature, or the data cannot be had.
    """
    builder = builder or open_builder(name, data_dir)
    base = split.split("[")[0]
    splits = builder.info.splits
    if not split or "+" in split or (splits and base not in splits):
        raise InputError(f"tfds:{name}: no split {split!r}; choose one of {some(list(splits))}")
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
            # <file name>__<place in the file>
            file = tf.strings.regex_replace(example["tfds_id"], r"__\d+$", "")
            place = tf.strings.regex_replace(example["tfds_id"], r"^.*__", "")
            label = example[label_key] if label_key else tf.constant(-1, tf.int64)
            return {
                "encoded": example[image_key],
                "id": tf.strings.join([prefix, example["tfds_id"]]),
                "label": label if label.dtype == tf.string else tf.cast(label, tf.int64),
                "place": start_of(file) + tf.strings.to_number(place, tf.int64),
            }

        return dataset.map(rename, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    raw_labels, places = _scan(f"tfds:{name}:{split}", elements, sha256_json(record), sum(lengths))
    if raw_labels.dtype.kind in "SO":
        values, labels = np.unique(raw_labels.astype(object), return_inverse=True)
        label_names = tuple(value.decode(errors="backslashreplace") for value in values)
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

    def find(wanted: Sequence[str]) -> np.ndarray:
        # A mocked builder's one file has a name and a length of its own.
        shards = dict(zip(files, zip(starts.tolist(), lengths, strict=True), strict=True))
        asked = np.full(len(wanted), -1, np.int64)
        for number, name in enumerate(wanted):
            parts = re.fullmatch(re.escape(prefix) + r"(.+)__(0|[1-9][0-9]*)", name)
            start, length = shards.get(parts[1], (0, 0)) if parts and files else (0, len(places))
            if parts and int(parts[2]) < length:
                asked[number] = start + int(parts[2])
        # Places rise, but a slice of a split does not have all of them.
        positions = np.minimum(np.searchsorted(places, asked), len(places) - 1)
        return np.where(places[positions] == asked, positions, -1)

    return Source(
        label_names=label_names,
        labels=labels.astype(np.int64),
        record=record,
        encoded=encoded,
        content=lambda content: content,
        find=find,
        random_access=False,
        check=False,
    )


def _feature_keys(name: str, features: Any) -> tuple[str, str | None]:
    """The image feature and the label feature (or None) of a data set."""
    images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise InputError(f"tfds:{name}: has no image feature (it has {some(list(features))})")
    classes = [key for key, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    named = [key for key in ("label", "class_id") if key in features]
    image = "image" if "image" in images else images[0]
    for key in named + classes:
        if features[key].shape == ():
            return image, key
        logging.warning(
            "tfds:%s: has several labels per image (feature %s); its images are taken without "
            "labels. To have them, write the images of one label each into class folders: "
            "folder:PATH",
            name, key,
        )  # fmt: skip
    return image, None


def _start_table(files: list[str], starts: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """Maps a file's name to the place of its first example."""
    if len(files) < 2:
        return lambda name: tf.zeros([], tf.int64)
    with tf.device("CPU:0"):
        pairs = tf.lookup.KeyValueTensorInitializer(files, starts)
        return tf.lookup.StaticHashTable(pairs, default_value=0).lookup


def _scan(
    name: str, elements: Callable[[int | None], tf.data.Dataset], fingerprint: str, expected: int
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
    batches = list(reading(name, chosen.batch(4096).prefetch(1)))
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
