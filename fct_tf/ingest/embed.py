"""Embeds images with a model: they become a new gallery, or a column of an existing one.

Vectors are staged beside the gallery in chunks, each written whole or not at all. A job that was
killed loses one chunk; the gallery changes in one commit when the last image has been embedded.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.common.files import make_dir, read_json
from fct_tf.config import to_dict
from fct_tf.data import datasets
from fct_tf.gallery import missing as rows_missing
from fct_tf.gallery import replace, table
from fct_tf.gallery.columns import Directions, check_finite, vector_array
from fct_tf.gallery.ids import looks_like

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
    augment=None,
    views: int = 0,
    seed: int = 0,
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
      augment, views, seed: with `views` > 0 each image is embedded that many times under
        augmentation, as rows `<id>#<view>`; a view is a function of (seed, view, image), so
        several models embed the same views.
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
    gallery_path = Path(path)
    job = _job(gallery_path, column.name)
    settings = {
        "images": images.fingerprint,
        "space": column.space,
        "views": views,
        "augment": to_dict(augment),
        "seed": seed,
        "batch_size": batch_size,
    }
    exists = gallery_path.exists()
    there = table.open_gallery(str(gallery_path)) if exists else None
    if there:
        there.check_rows()  # Rows are matched by id: none would come.
    if there and column.name in there.dataset.schema.names and not (overwrite or missing):
        recorded = job / "settings.json"
        committed = recorded.exists() and read_json(recorded) == settings
        if not committed or column.name not in there.columns:
            raise InputError(
                f"{gallery_path}: column {column.name!r} exists already; pass --overwrite to "
                "replace it, or --missing for the rows without a value"
            )
        _remove(job)  # The job was killed between its commit and its end.
        return there
    if there and not missing:
        table.check_replaced(there, column.name, drop_indices=drop_indices)
    made = tuple(path.name for path in job.iterdir()) if job.exists() else ()
    made = tuple(name for name in made if name != runs.SETTINGS)
    runs.begin(job, job / "never", settings, "skip", makes=made)

    def check(embedded: np.ndarray, names: list[str]) -> None:
        check_finite(embedded, names, "embedding")
        if column.distance == "cosine":
            directions = Directions()
            directions.add(embedded, names)
            directions.judge("embedding", zero_vectors)

    how = (images, embed, check, job, batch_size)
    staged = [_stage(*how, view, augment, seed) for view in range(views)]
    staged = staged or [_stage(*how, None, None, seed)]
    chunks = [chunk for view_chunks in staged for chunk in view_chunks]
    if missing:
        gallery = _fill(gallery_path, column, chunks, job)
    elif exists:
        gallery = _add_column(gallery_path, column, chunks, overwrite, drop_indices, job)
    else:
        gallery = table.create(
            str(gallery_path), _rows(chunks, images, column.name), [column], overwrite=False
        )
    _remove(job)
    return gallery


def _job(path: Path, column: str) -> Path:
    return Path(f"{path}.jobs") / f"embed_{column}"


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
        raise InputError(f"{gallery.path}: has no column {column.name!r} yet; leave --missing out")
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
        _remove(_job(Path(gallery.path), there.name))  # Of a job killed after its commit.
    else:
        logging.info("%s: %d rows lack column %r", gallery.path, len(ids), there.name)
    return gallery, ids


def _stage(
    images, embed, check, job: Path, batch_size: int, view, augment, seed: int
) -> list[Path]:
    """Embeds chunk after chunk into `job`; returns the chunks' paths, in order."""
    folder = make_dir(job / ("clean" if view is None else f"view_{view}"))
    chunk_size = CHUNK_BATCHES * batch_size
    paths = [folder / f"{start:012d}.npz" for start in range(0, images.num_examples, chunk_size)]
    done = next((i for i, path in enumerate(paths) if not path.exists()), len(paths))
    if done:
        logging.info("%s: resumed at image %d", folder, done * chunk_size)
    if done == len(paths):
        return paths
    dataset = datasets.eval_batches(images, batch_size, skip_batches=done * CHUNK_BATCHES)
    if view is not None:
        dataset = datasets.augmented(dataset, images, augment, seed=seed, view=view)
    batches = iter(dataset)
    with tqdm(
        desc="embed" if view is None else f"embed view {view}",
        total=images.num_examples,
        initial=done * chunk_size,
        unit=" images",
        unit_scale=True,
        disable=None,
    ) as progress:
        for path in paths[done:]:
            vectors, ids, labels = [], [], []
            for batch in _take(batches, CHUNK_BATCHES):
                vectors.append(np.asarray(embed(tf.cast(batch["image"], tf.float32)), np.float32))
                ids.append(batch["id"].numpy())
                labels.append(batch["label"].numpy())
                progress.update(len(ids[-1]))
            embedded, names = np.concatenate(vectors), np.concatenate(ids)
            # Not staged: the same job must be able to succeed with a mended model.
            check(embedded, [value.decode() for value in names])
            # Bytes, not objects: reading them back needs no pickle.
            write_chunk(
                path,
                vectors=embedded,
                ids=names.astype(np.bytes_),
                labels=np.concatenate(labels),
            )
    return paths


def _take(batches: Iterator, count: int) -> Iterator:
    for _ in range(count):
        with datasets.naming_unreadable_images():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def write_chunk(path: Path, **arrays: Any) -> None:
    """Writes arrays of numbers or bytes, by name: a file of that path is whole or not there."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_chunk(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Vectors, ids (with `#<view>` where the chunk holds a view) and label numbers."""
    with np.load(path) as chunk:
        vectors, labels = chunk["vectors"], chunk["labels"]
        ids = [value.decode("utf-8") for value in chunk["ids"]]
    folder = path.parent.name
    if folder.startswith("view_"):
        ids = [f"{value}#{folder.removeprefix('view_')}" for value in ids]
    return vectors, ids, labels


def _rows(chunks: list[Path], images: datasets.ImageSet, column: str) -> Iterator[table.Rows]:
    for path in chunks:
        vectors, ids, labels = _read_chunk(path)
        # -1: an image without a label.
        names = [images.classes[label] if label >= 0 else None for label in labels]
        yield table.Rows(
            np.array(ids, dtype=object), np.array(names, dtype=object), {column: vectors}
        )


def _fill(path: Path, column: table.Column, chunks: list[Path], job: Path) -> table.Gallery:
    """Puts the staged vectors into the rows of their ids, in one commit."""
    there = table.open_gallery(str(path)).column(column.name)
    vectors, ids = _gathered(chunks, there.dim, job)

    def values(place: np.ndarray) -> dict[str, pa.Array]:
        names = [ids[row] for row in place]
        return {there.name: vector_array(vectors[place], there, names, str(path))}

    if ids:
        replace.replace_rows(str(path), there, ids, values, space=column.space)
    return table.open_gallery(str(path))


def _gathered(chunks: list[Path], dim: int, job: Path) -> tuple[np.ndarray, list[str]]:
    """The vectors of all chunks, float32 [n, dim], in a file of the job, and their ids."""
    vectors = np.lib.format.open_memmap(
        job / "vectors.npy", mode="w+", dtype=np.float32, shape=(_count(chunks), dim)
    )
    ids: list[str] = []
    for chunk in chunks:
        values, names, _ = _read_chunk(chunk)
        vectors[len(ids) : len(ids) + len(names)] = values
        ids += names
    return vectors, ids


def _add_column(
    path: Path,
    column: table.Column,
    chunks: list[Path],
    overwrite: bool,
    drop_indices: bool,
    job: Path,
) -> table.Gallery:
    gallery = table.open_gallery(str(path))
    embedded = {value for chunk in chunks for value in _read_chunk(chunk)[1]}
    for rows in gallery.batches([], 65536):
        missing = next((value for value in rows.ids if value not in embedded), None)
        if missing is not None:
            _remove(job)
            raise InputError(
                f"{path}: row {missing!r} has no image in what is being embedded; "
                "embed the images that the gallery was made of (ids must agree)"
                f"{looks_like(missing, embedded)}"
            )
    vectors, ids = _gathered(chunks, column.dim, job)
    position = dict(zip(ids, range(len(ids)), strict=True))

    def look_up(rows: table.Rows) -> np.ndarray:
        return vectors[[position[value] for value in rows.ids]]

    extra = len(position) - gallery.num_rows
    if extra > 0:
        logging.warning("%s: %d images are no rows of the gallery; left out", path, extra)
    return table.add_column(
        gallery, column, look_up, [], overwrite=overwrite, drop_indices=drop_indices
    )


def _count(chunks: list[Path]) -> int:
    return sum(len(_read_chunk(chunk)[1]) for chunk in chunks)


def _remove(job: Path) -> None:
    shutil.rmtree(job, ignore_errors=True)
    if job.parent.is_dir() and not any(job.parent.iterdir()):
        job.parent.rmdir()
