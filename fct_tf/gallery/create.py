"""New galleries, and what may be replaced or changed."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import lance
import pyarrow as pa

from fct_tf.common import files, objects, stores
from fct_tf.common.errors import InputError
from fct_tf.gallery import fragments, indices
from fct_tf.gallery.columns import FORMAT, Column, Rows, vector_array
from fct_tf.gallery.ids import UniqueIds, repeated
from fct_tf.gallery.job import alone
from fct_tf.gallery.reader import Gallery, exists, open_dataset, open_gallery, split_uri

# Fields that belong to the transformed column before whose name they stand.
COMPANIONS = ("_origin", "_log_variance")
CREATE = ".create"  # The job of making a gallery: no column has such a name.


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
    path = stores.local_form(path)
    for column in columns:
        column.check()
    schema = new_schema([column.to_field() for column in columns])
    unique = UniqueIds()
    record_batches = (_record_batch(rows, columns, schema, unique, path) for rows in batches)

    def write(target: str, mode: str = "create") -> None:
        try:
            with fragments.reader_of(record_batches, schema) as reader:
                lance.write_dataset(
                    reader,
                    target,
                    mode=mode,
                    max_rows_per_file=rows_per_file,
                    storage_options=objects.lance_options(target),
                )
        except OSError:
            if mode == "create" and exists(target):
                raise InputError(f"{target}: another process has just made it") from None
            raise

    # Nothing is kept of it when it is stopped: for one process at a time, no more.
    with alone(path, CREATE):
        if _check_path(path, overwrite, drop_indices):
            write(path, "overwrite")
        elif stores.in_store(path):
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
    replaces = _check_path(path, overwrite, drop_indices)
    place = Path(_place(path))
    for source in sources:
        if Path(_place(source.path)) in (place, *place.parents):
            verb = "is" if replaces else "would lie in"
            raise InputError(f"{path}: {verb} the gallery that is read; choose another ``output``")
    return replaces


def _place(path: str) -> str:
    """By which two paths of one gallery are known to be the same."""
    path = stores.local_form(path)
    return path if stores.in_store(path) else os.path.realpath(path)


def _check_path(path: str, overwrite: bool, drop_indices: bool) -> bool:
    """Refuses a path where no gallery may be made; whether one is replaced."""
    if exists(path):
        if not overwrite:
            raise InputError(f"{path}: exists already; pass ``overwrite=True`` to replace it")
        indices.check_dropped(open_dataset(path)[1], None, drop_indices=drop_indices)
        return True
    if not stores.in_store(path) and os.path.lexists(path):
        raise InputError(f"{path}: exists already and is no gallery; choose another path")
    return False


def new_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """Of a new gallery: id, label, these fields, and the format's number."""
    own = [pa.field("id", pa.string(), nullable=False), pa.field("label", pa.string())]
    return pa.schema([*own, *fields], metadata={"fct.format": str(FORMAT)})


def _record_batch(rows: Rows, columns, schema: pa.Schema, unique: UniqueIds, where: str):
    if any(i is None for i in rows.ids):
        raise InputError(f"{where}: a row without id; every row needs a unique one")
    twice = unique.add(rows.ids)
    if twice:
        raise repeated(where, twice[0])
    labels = [None] * len(rows.ids) if rows.labels is None else list(rows.labels)
    arrays = [pa.array(list(rows.ids), pa.string()), pa.array(labels, pa.string())]
    for column in columns:
        arrays.append(vector_array(rows.vectors[column.name], column, rows.ids, where))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def check_replaced(gallery: Gallery, name: str, *, drop_indices: bool) -> list[indices.Index]:
    """The indices that go where the column `name` is replaced, with its companions.

    Raises:
      InputError: there are some, and they may not be dropped.
    """
    columns = [name, *(name + suffix for suffix in COMPANIONS)]
    return indices.check_dropped(gallery.dataset, columns, drop_indices=drop_indices)


def check_newest(gallery: Gallery) -> None:
    """Refuses a gallery that was opened at a version or tag which is not the newest version."""
    newest = open_dataset(gallery.path)[1].version
    if gallery.pinned and gallery.version != newest:
        raise InputError(
            f"{gallery.path}: changes are made to the newest version ({newest}), not to "
            f"{gallery.version}; leave the part after '@' out"
        )
