"""Embeds images with a model: they become a new gallery, or a column of an existing one.

Vectors are recorded in chunks beside the gallery (see `fct_tf.gallery.job`). A job that was killed
loses one chunk; the gallery changes in one commit when the last image has been embedded.
"""

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.data import datasets
from fct_tf.gallery import missing as rows_missing
from fct_tf.gallery import replace, table
from fct_tf.gallery.columns import Directions, check_finite, vector_array
from fct_tf.gallery.ids import Lookup, looks_like
from fct_tf.gallery.job import Job, job_directory, open_job

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

    Raises:
      InputError: the column exists already, rows of the gallery have no image, or the model
        returns NaN, infinity or, where the distance is cosine, zeros.
    """
    column.check()
    path, version = table.split_uri(str(gallery_path))
    if version is not None or "://" in path:
        raise InputError(
            f"{gallery_path}: images are embedded into the newest version of a gallery on this "
            "machine's disk; give its path alone"
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
        existing = table.open_gallery(path) if os.path.lexists(path) else None
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
        _stage(images, embed, check, job, batch_size)
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
    there = gallery.column(column.name)
    if (there.space, there.dim) != (column.space, column.dim):
        raise InputError(
            f"{gallery.path}: column {there.name!r} lies in space {there.space} (model "
            f"{there.model}, {there.dim} values), the model {column.model} embeds into "
            f"{column.space} ({column.dim} values); name the model that the column was made with"
        )
    ids = rows_missing.ids(gallery, there.name)
    if not ids:
        logging.info("%s: column %r is complete", gallery.path, there.name)
        if job_directory(gallery.path, _job(there.name)).exists():
            with open_job(gallery.path, _job(there.name)) as job:
                job.remove()  # It was killed after its commit.
    else:
        logging.info("%s: %d rows lack column %r", gallery.path, len(ids), there.name)
    return gallery, ids


def _stage(images, embed, check, job: Job, batch_size: int) -> None:
    """Embeds chunk after chunk and records vectors, ids and numbers of labels, in order."""
    chunk_size = CHUNK_BATCHES * batch_size
    units = [f"chunk-{start:012d}" for start in range(0, images.num_examples, chunk_size)]
    done = next((i for i, unit in enumerate(units) if not job.finished(unit)), len(units))
    if done:
        logging.info("%s: resumed at image %d", job.directory, done * chunk_size)
    if done == len(units):
        return
    batches = iter(datasets.eval_batches(images, batch_size, skip_batches=done * CHUNK_BATCHES))
    with tqdm(
        desc="embed",
        total=images.num_examples,
        initial=done * chunk_size,
        unit=" images",
        unit_scale=True,
        disable=None,
    ) as progress:
        for unit in units[done:]:
            vectors, ids, labels = [], [], []
            for batch in _take(batches, CHUNK_BATCHES):
                vectors.append(np.asarray(embed(tf.cast(batch["image"], tf.float32)), np.float32))
                ids += [value.decode() for value in batch["id"].numpy()]
                labels.append(batch["label"].numpy())
                progress.update(len(labels[-1]))
            embedded = np.concatenate(vectors)
            # Not recorded: the same job must be able to succeed with a mended model.
            check(embedded, ids)
            job.record(
                unit,
                {"vectors": embedded, "ids": as_bytes(ids), "labels": np.concatenate(labels)},
            )


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
