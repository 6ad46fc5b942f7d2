"""Embeds images with a model: they become a new gallery, or a column of an existing one.

Vectors are recorded in chunks beside the gallery (see `fct_tf.gallery.job`). A job that was killed
loses one chunk; the gallery changes in one commit when the last image has been embedded.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from fct_tf.common import stores
from fct_tf.common.errors import InputError
from fct_tf.data import datasets
from fct_tf.engines.engine import Engine, Tick, local
from fct_tf.gallery import missing as rows_missing
from fct_tf.gallery import replace, table
from fct_tf.gallery.columns import Directions, check_finite, vector_array
from fct_tf.gallery.ids import Lookup, looks_like
from fct_tf.gallery.job import Job, open_job, unfinished

CHUNK_BATCHES = 8

Embed = Callable[[tf.Tensor], tf.Tensor]


def add_embeddings(
    gallery_path: str | os.PathLike,
    images: datasets.ImageSet,
    embed: Embed,
    column: table.Column,
    *,
    batch_size: int = 256,
    overwrite: bool = False,
    drop_indices: bool = False,
    missing: bool = False,
    zero_vectors: str = "refuse",
    engine: Engine = local,
) -> table.Gallery:
    """Embeds `images` and commits them as `column`; makes the gallery if there is none.

    Args:
      gallery_path: the Lance dataset. Rows of an existing one are matched by id; every one of
        them must be among `images`.
      images: what to embed.
      embed: maps images float32 `[n, s, s, 3]` in 0..255 to embeddings float32 `[n, d]`.
      column: name, space and kind of the column.
      batch_size: images per call of `embed`.
      overwrite: replace an existing column of that name.
      drop_indices: although indices are on it.
      missing: fill in the rows of an existing column that are null, see `find_missing`.
      zero_vectors: `refuse` or `keep` embeddings without direction, where the distance is cosine.
      engine: what embeds, a chunk of images at a time; vectors are put together in this process.

    Raises:
      InputError: the column exists already, rows of the gallery have no image, or the model
        returns NaN, infinity or, where the distance is cosine, zeros.
    """
    column.check()
    path, version = table.split_uri(str(gallery_path))
    if version is not None:
        raise InputError(
            f"{gallery_path}: images are embedded into the newest version of a gallery; give its "
            "path alone"
        )
    settings = {
        "images": images.fingerprint,
        "space": column.space,
        "batch_size": batch_size,
    }

    def check(embedded: np.ndarray, names: list[str]) -> None:
        check_finite(embedded, names, "embedding")
        if column.distance == "cosine":
            directions = Directions()
            directions.add(embedded, names)
            directions.judge("embedding", zero_vectors)

    with open_job(path, _job(column.name)) as job:
        exists = table.exists(path) if stores.in_store(path) else os.path.lexists(path)
        existing = table.open_gallery(path) if exists else None
        if existing:
            existing.check_rows()  # Rows are matched by id: none would come.
        if existing and column.name in existing.dataset.schema.names and not (overwrite or missing):
            if not job.is_of(settings) or column.name not in existing.columns:
                raise InputError(
                    f"{path}: column {column.name!r} exists already; pass ``overwrite=True`` to "
                    "replace it, or ``missing=True`` for the rows without a value"
                )
            job.remove()  # It was killed between its commit and its end.
            return existing
        if existing and not missing:
            table.check_replaced(existing, column.name, drop_indices=drop_indices)
        job.start(settings)
        _stage(_Chunks(images, embed, check, batch_size), job, engine)
        job.check()
        if missing:
            gallery = _fill(path, column, job)
        elif existing:
            gallery = _add_column(path, column, job, overwrite, drop_indices)
        else:
            gallery = table.create(path, _rows(job, images, column.name), [column])
        job.remove()
        return gallery


def _job(column: str) -> str:
    return f"embed_{column}"


def find_missing(
    gallery_path: str | os.PathLike, column: table.Column
) -> tuple[table.Gallery, list[str]]:
    """The gallery, and the ids of its rows that lack `column`, which is there.

    Args:
      column: as the model would make it: name, dimension and space.

    Raises:
      InputError: no such gallery or column, or one that another model made.
    """
    gallery = table.open_gallery(gallery_path)
    table.check_newest(gallery)
    if column.name not in gallery.dataset.schema.names:
        raise InputError(
            f"{gallery.path}: has no column {column.name!r} yet; leave ``missing=True`` out"
        )
    existing = gallery.column(column.name)
    if (existing.space, existing.dim) != (column.space, column.dim):
        raise InputError(
            f"{gallery.path}: column {existing.name!r} lies in space {existing.space} (model "
            f"{existing.model}, {existing.dim} values), the model {column.model} embeds into "
            f"{column.space} ({column.dim} values); name the model that the column was made with"
        )
    ids = rows_missing.ids(gallery, existing.name)
    if not ids:
        logging.info("%s: column %r is complete", gallery.path, existing.name)
        if unfinished(gallery.path, _job(existing.name)):
            with open_job(gallery.path, _job(existing.name)) as job:
                job.remove()  # It was killed after its commit.
    else:
        logging.info("%s: %d rows lack column %r", gallery.path, len(ids), existing.name)
    return gallery, ids


@dataclasses.dataclass
class _Chunks:
    """Embeds chunks of images. One that follows the last goes on reading where that has ended."""

    images: datasets.ImageSet
    embed: Embed
    check: Callable[[np.ndarray, list[str]], None]
    batch_size: int

    def __post_init__(self) -> None:
        self._next, self._batches = -1, iter(())

    def __reduce__(self):
        return _Chunks, (self.images, self.embed, self.check, self.batch_size)

    @property
    def size(self) -> int:
        """Images of a chunk."""
        return CHUNK_BATCHES * self.batch_size

    def __call__(self, unit: str, tick: Tick) -> dict[str, np.ndarray]:
        """Vectors, ids and numbers of labels, to be recorded."""
        start = int(unit.removeprefix("chunk-"))
        if start != self._next:
            skipped = start // self.batch_size
            read = datasets.eval_batches(self.images, self.batch_size, skip_batches=skipped)
            self._batches = iter(read)
        vectors, ids, labels = [], [], []
        for batch in _take(self._batches, CHUNK_BATCHES):
            images = tf.cast(batch["image"], tf.float32)
            vectors.append(np.asarray(self.embed(images), np.float32))
            ids += [value.decode() for value in batch["id"].numpy()]
            labels.append(batch["label"].numpy())
            tick(len(labels[-1]))
        self._next = start + self.size
        embedded = np.concatenate(vectors)
        # Not recorded: the same job must be able to succeed with a mended model.
        self.check(embedded, ids)
        return {"vectors": embedded, "ids": as_bytes(ids), "labels": np.concatenate(labels)}


def _stage(chunks: _Chunks, job: Job, engine: Engine) -> None:
    """Embeds and records the chunks that are not recorded yet."""
    count = chunks.images.num_examples
    starts = range(0, count, chunks.size)
    todo = [unit for unit in (f"chunk-{start:012d}" for start in starts) if not job.finished(unit)]
    done = min(count, (len(starts) - len(todo)) * chunks.size)
    if done:
        logging.info("%s: resumed, %d images are embedded", job.directory, done)
    with tqdm(
        desc="embed",
        total=count,
        initial=done,
        unit=" images",
        unit_scale=True,
        disable=None,
    ) as progress:
        for unit, arrays in engine(chunks, todo, progress.update, f"embed {chunks.images.name}"):
            job.record(unit, arrays)


def _take(batches: Iterator, count: int) -> Iterator:
    for _ in range(count):
        with datasets.naming_unreadable_images():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def as_bytes(ids: Iterable[str]) -> np.ndarray:
    """Ids as bytes, not objects: reading a chunk back needs no pickle."""
    return np.array([name.encode() for name in ids], np.bytes_)


def as_texts(ids: np.ndarray) -> list[str]:
    """What `as_bytes` was given."""
    return [value.decode() for value in ids]


def _rows(job: Job, images: datasets.ImageSet, column: str) -> Iterator[table.Rows]:
    for chunk in job.records("chunk"):
        # -1: an image without a label.
        names = [images.classes[label] if label >= 0 else None for label in chunk["labels"]]
        yield table.Rows(
            np.array(as_texts(chunk["ids"]), dtype=object),
            np.array(names, dtype=object),
            {column: chunk["vectors"]},
        )


def _ids(job: Job) -> list[str]:
    return [name for chunk in job.records("chunk") for name in as_texts(chunk["ids"])]


def _fill(path: str, column: table.Column, job: Job) -> table.Gallery:
    """Puts the staged vectors into the rows of their ids, in one commit."""
    existing, ids = table.open_gallery(path).column(column.name), _ids(job)
    vectors = job.stacked("vectors", len(ids), existing.dim)

    def values(place: np.ndarray) -> dict[str, pa.Array]:
        names = [ids[row] for row in place]
        return {existing.name: vector_array(vectors[place], existing, names, path)}

    if ids:
        replace.replace_rows(path, existing, ids, values, space=column.space)
    return table.open_gallery(path)


def _add_column(
    path: str, column: table.Column, job: Job, overwrite: bool, drop_indices: bool
) -> table.Gallery:
    gallery, ids = table.open_gallery(path), _ids(job)
    find = Lookup(ids)
    for rows in gallery.batches([], 65536):
        missing = rows.ids[find(rows.ids) < 0]
        if len(missing):
            job.remove()
            raise InputError(
                f"{path}: row {missing[0]!r} has no image in what is being embedded; "
                "embed the images that the gallery was made of (ids must agree)"
                f"{looks_like(missing[0], ids)}"
            )
    vectors = job.stacked("vectors", len(ids), column.dim)

    def look_up(rows: table.Rows) -> np.ndarray:
        return vectors[find.of_rows(rows.ids, path)]

    extra = len(ids) - gallery.num_rows
    if extra > 0:
        logging.warning("%s: %d images are no rows of the gallery; left out", path, extra)
    return table.add_column(
        gallery, column, look_up, [], overwrite=overwrite, drop_indices=drop_indices
    )
