"""The gallery: a Lance dataset of id, label and embedding columns.

Every change is one atomic commit, so a reader sees all of it or nothing, and a tag such as
`live` stays where it is until it is set anew. Rows are matched by id, never by position.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import lance
import pyarrow as pa

from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.gallery import fragments, indices
from fct_tf.gallery.add_column import Compute, describe, describe_sources, stage_missing
from fct_tf.gallery.columns import (
    FORMAT,
    Column,
    Rows,
    UniqueIds,
    check_spaces,
    imported_space,
    vector_array,
)
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.job import open_job
from fct_tf.gallery.reader import Gallery, exists, open_gallery, reading, split_uri
from fct_tf.gallery.verify import verify

__all__ = [
    "Column",
    "Gallery",
    "Rows",
    "add_column",
    "check_newest",
    "check_replaced",
    "check_spaces",
    "create",
    "exists",
    "imported_space",
    "open",
    "open_gallery",
    "split_uri",
    "tag",
    "verify",
]

open = open_gallery
# Fields that belong to the transformed column before whose name they stand.
COMPANIONS = ("_origin", "_log_variance")
CREATE = ".create"  # The job of making a gallery: no column has such a name.


def tag(uri: str | os.PathLike, name: str) -> int:
    """Lets the tag `name` point to the version that `uri` names; returns the version.

    A tag that is there already is moved, in one step: this is how a gallery goes live
    (`photos.lance`, "live") and how it goes back (`photos.lance@5`, "live").
    """
    gallery = open_gallery(uri)
    if not name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum() or name.isdecimal():
        raise InputError(
            f"tag {name!r}: use letters, digits, '_', '-' and '.', and not digits alone"
        )
    tags = gallery.dataset.tags
    if name in tags.list():
        tags.update(name, gallery.version)
    else:
        tags.create(name, gallery.version)
    return gallery.version


def create(
    path: str | os.PathLike,
    batches: Iterable[Rows],
    columns: Sequence[Column],
    *,
    overwrite: bool = False,
    drop_indices: bool = False,
    rows_per_file: int = 1 << 20,
) -> Gallery:
    """Writes a new gallery in one commit.

    Args:
      path: where; must not exist unless `overwrite`, which adds a version to the gallery there
        (older versions and tags stay).
      batches: rows with ids and all `columns` as float [n, dim]; labels may be None.
      columns: the embedding columns.
      drop_indices: replace a gallery that has indices, which it then has no more.
      rows_per_file: rows of one fragment, the unit of resumption and distribution.

    Raises:
      InputError: repeated or null id, NaN or infinity, wrong dimension, existing path.
    """
    path = str(path)
    for column in columns:
        column.check()
    schema = new_schema([column.to_field() for column in columns])
    unique = UniqueIds()
    made = (_record_batch(rows, columns, schema, unique, path) for rows in batches)

    def write(target: str, mode: str = "create") -> None:
        with fragments.reader_of(made, schema) as reader:
            lance.write_dataset(reader, target, mode=mode, max_rows_per_file=rows_per_file)

    # Nothing is kept of it when it is stopped: for one process at a time, no more.
    with contextlib.nullcontext() if "://" in path else open_job(path, CREATE):
        if _check_path(path, overwrite, drop_indices):
            write(path, "overwrite")
        elif "://" in path:
            write(path)
        else:
            with files.atomic_dir(path) as temporary:
                write(str(temporary))
        return open_gallery(path)


def check_output(
    path: str, sources: Sequence[Gallery], *, overwrite: bool, drop_indices: bool = False
) -> bool:
    """Refuses a path where no table of rows of `sources` may be made; whether one is replaced.

    Raises:
      InputError: as `create`; or a version is named, or one of `sources`.
    """
    if split_uri(path)[1] is not None:
        raise InputError(f"{path}: a new table has no version yet; leave the part after '@' out")
    there = _check_path(path, overwrite, drop_indices)
    place = Path(_place(path))
    for source in sources:
        if Path(_place(source.path)) in (place, *place.parents):
            told = "is" if there else "would lie in"
            raise InputError(f"{path}: {told} the gallery that is read; choose another --output")
    return there


def _place(path: str) -> str:
    """By which two paths of one gallery are known to be the same."""
    path = path.removeprefix("file://")
    return path if "://" in path else os.path.realpath(path)


def _check_path(path: str, overwrite: bool, drop_indices: bool) -> bool:
    """Refuses a path where no gallery may be made; whether one is replaced."""
    if exists(path):
        if not overwrite:
            raise InputError(f"{path}: exists already; pass --overwrite to replace it")
        indices.check_dropped(lance.dataset(path), None, drop_indices=drop_indices)
        return True
    if "://" not in path and os.path.lexists(path):
        raise InputError(f"{path}: exists already and is no gallery; choose another path")
    return False


def new_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """Of a new gallery: id, label, these fields, and the format's number."""
    own = [pa.field("id", pa.string(), nullable=False), pa.field("label", pa.string())]
    return pa.schema([*own, *fields], metadata={"fct.format": str(FORMAT)})


def _record_batch(rows: Rows, columns, schema: pa.Schema, unique: UniqueIds, where: str):
    if any(i is None for i in rows.ids):
        raise InputError(f"{where}: a row without id; every row needs a unique one")
    repeated = unique.add(rows.ids)
    if repeated:
        raise InputError(f"{where}: id {repeated[0]!r} occurs more than once; ids must be unique")
    labels = [None] * len(rows.ids) if rows.labels is None else list(rows.labels)
    arrays = [pa.array(list(rows.ids), pa.string()), pa.array(labels, pa.string())]
    for column in columns:
        arrays.append(vector_array(rows.vectors[column.name], column, rows.ids, where))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def add_column(
    gallery: Gallery,
    column: Column,
    compute: Compute,
    read: Sequence[str],
    *,
    extra_fields: Sequence[pa.Field] = (),
    job_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    drop_indices: bool = False,
    batch_size: int = 8192,
    progress: str = "",
) -> Gallery:
    """Adds an embedding column computed from other columns, in one commit.

    A killed call goes on where it was when it is repeated: finished fragments are recorded in
    `job_dir`. A job whose column, fields or sources differ starts from scratch. Rows or columns
    that others commit meanwhile are kept.

    Args:
      gallery: opened at its newest version.
      column: the new column. Its metadata is also what the job is recognised by.
      compute: from `Rows` with ids and the columns `read` to float [n, dim], or a dict with that
        under `column.name` and the values of the extra fields under their names. NaN in a
        numeric extra field is null. Called in another thread, one batch after the other.
      read: names of the source columns.
      extra_fields: further Arrow fields added in the same commit, e.g. `X_origin`.
      job_dir: default `<path>.jobs`; the job keeps its files in a directory of the column's name
        there, and removes them after the commit.
      overwrite: replace a column (and extra fields) of that name, in the same one commit.
      drop_indices: replace it although indices are on it, which go with it.
      batch_size: rows per call of `compute`.
      progress: label of the progress bar; none when empty.

    Returns:
      The gallery at the version of this commit, even if there is a newer one by then.

    Raises:
      InputError: existing column, one with an index, bad source row or value, an old version
        opened.
    """
    column.check()
    path = gallery.path
    check_newest(gallery)
    fields = [column.to_field(), *extra_fields]
    names = list(dict.fromkeys(["id", *read]))
    with open_job(path, column.name, job_dir) as job:
        newest = open_gallery(path)
        for new in fields:
            if new.name in newest.dataset.schema.names and not overwrite:
                raise InputError(
                    f"{path}: column {new.name!r} exists already; pass --overwrite to replace it"
                )
        check_replaced(newest, column.name, drop_indices=drop_indices)
        check_ids(lambda: (batch["id"] for batch in reading(newest, ["id"], 65536)), path)
        job.start(
            {
                "path": path,
                "fields": [describe(new) for new in fields],
                "read": describe_sources(newest, read),
            }
        )

        def stage(number: int, arrays: fragments.Arrays) -> dict:
            return fragments.stage_fragment(
                newest.dataset, number, arrays, names, fields, batch_size
            )

        what = (column, compute, read, extra_fields, progress)
        records = stage_missing(newest, job, f"{path}/data", stage, *what)
        # A replaced column takes its companions along: they describe values that are gone.
        companions = [column.name + suffix for suffix in COMPANIONS] if overwrite else []
        # Once more: an index may have come while the column was computed.
        lost = check_replaced(open_gallery(path), column.name, drop_indices=drop_indices)
        version = fragments.commit(path, records, fields, overwrite=overwrite, drop=companions)
        indices.tell_dropped(path, lost)
        job.remove()
    return dataclasses.replace(open_gallery(f"{path}@{version}"), pinned=False)


def check_replaced(gallery: Gallery, name: str, *, drop_indices: bool) -> list[indices.Index]:
    """The indices that go where the column `name` is replaced, with its companions.

    Raises:
      InputError: there are some, and they may not be dropped.
    """
    columns = [name, *(name + suffix for suffix in COMPANIONS)]
    return indices.check_dropped(gallery.dataset, columns, drop_indices=drop_indices)


def check_newest(gallery: Gallery) -> None:
    """Refuses a gallery that was opened at a version or tag which is not the newest version."""
    newest = lance.dataset(gallery.path).version
    if gallery.pinned and gallery.version != newest:
        raise InputError(
            f"{gallery.path}: changes are made to the newest version ({newest}), not to "
            f"{gallery.version}; leave the part after '@' out"
        )
