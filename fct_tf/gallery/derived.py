"""A gallery of its own for a computed column: ids, labels and that column, nothing else.

Lance replaces a row by moving it whole. Where other embeddings lie beside a column, replacing its
rows writes theirs again; in a table of its own it writes the column's bytes alone. The gallery
that is read is left as it is: it may be a version, a tag, or a place that cannot be written.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from fct_tf.common import files, runs
from fct_tf.common.errors import InputError
from fct_tf.gallery import fragments, table
from fct_tf.gallery.add_column import Compute, describe, describe_sources, stage_missing
from fct_tf.gallery.columns import Column
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.job import job_directory, open_job
from fct_tf.gallery.reader import Gallery, exists, open_gallery, reading


def derive(
    gallery: Gallery,
    path: str,
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
    """Writes a new gallery of the rows' ids and labels and a column computed from others.

    A killed call goes on where it was when it is repeated, as `table.add_column` does. Until the
    new gallery is whole it lies in the job's directory.

    Args:
      gallery: whose rows are read, at the version it was opened at. `column` notes it, in
        `created_by["gallery"]`.
      path: of the new gallery; must not exist unless `overwrite`, which adds a version to the
        gallery there (older versions and tags stay).
      column, compute, read, extra_fields, batch_size, progress: as `table.add_column`.
      job_dir: where the unfinished job lies, in a directory of the column's name; default
        `<path>.jobs`. On the file system of `path`, unless that is in an object store.
      overwrite: replace a gallery at `path`.
      drop_indices: although it has indices.

    Returns:
      The new gallery at the version of this commit.

    Raises:
      InputError: existing path, bad source row or value, another process making the same.
    """
    column.check()
    path = path.rstrip("/") or path
    table.check_output(path, [gallery], overwrite=overwrite, drop_indices=drop_indices)
    remote = "://" in path
    directory = job_directory(path, column.name, job_dir)
    check_ids(lambda: (batch["id"] for batch in reading(gallery, ["id"], 65536)), gallery.path)
    fields = [column.to_field(), *extra_fields]
    label = ["label"] if "label" in gallery.dataset.schema.names else []
    names = list(dict.fromkeys(["id", *label, *read]))
    settings = {
        "path": path,
        "from": gallery.path,
        "fields": [describe(new) for new in fields],
        "read": describe_sources(gallery, read),
        "label": fragments.ids_of(gallery.dataset, label),
    }
    if not remote:
        _check_directory(directory, path)
        files.make_parent(path)
    with open_job(path, column.name, job_dir) as job:
        there = table.check_output(path, [gallery], overwrite=overwrite, drop_indices=drop_indices)
        # What is new on this machine's disk is made in the job's directory and moved at the end.
        target = path if there or remote else str(job.table)
        if target != path:
            _check_file_system(job.directory, path)
        job.start(settings)
        if target != path:
            keep_data(job.table)
        schema, mode = table.new_schema(fields), "overwrite" if there else "create"

        def stage_one(number: int, arrays: fragments.Arrays) -> dict:
            return stage(gallery, number, target, mode, schema, names, arrays, batch_size)

        what = (column, compute, read, extra_fields, progress)
        records = stage_missing(gallery, job, f"{target}/data", stage_one, *what)
        if target != path:
            keep_data(job.table, records)
        noted = {"path": gallery.path, "version": gallery.version}
        final = dataclasses.replace(column, created_by={**column.created_by, "gallery": noted})
        # Made by others in the meantime.
        table.check_output(path, [gallery], overwrite=there, drop_indices=drop_indices)
        version = commit(target, records, table.new_schema([final.to_field(), *extra_fields]))
        if target != path:
            _move(job.table, path)
        job.remove()
    return dataclasses.replace(open_gallery(f"{path}@{version}"), pinned=False)


def _check_directory(directory: Path, path: str) -> None:
    place, output = directory.absolute(), Path(path).absolute()
    if output == place or output in place.parents:
        raise InputError(f"{directory}: the unfinished job would lie in {path}; choose a --job_dir")


def _check_file_system(directory: Path, path: str) -> None:
    if os.stat(directory).st_dev != os.stat(Path(path).absolute().parent).st_dev:
        raise InputError(
            f"{directory}: lies on another file system than {path}, which is made there and moved; "
            "choose a --job_dir beside it"
        )


def commit(target: str, records: Sequence[dict], schema: pa.Schema) -> int:
    """Makes the staged fragments the rows of `target`; returns the version."""
    written = [fragment for record in records for fragment in record["fragments"]]
    metadata = [lance.FragmentMetadata.from_json(json.dumps(one)) for one in written]
    version = lance.dataset(target).version if exists(target) else 0
    operation = lance.LanceOperation.Overwrite(schema, metadata)
    try:
        return lance.LanceDataset.commit(target, operation, read_version=version).version
    except CommitConflictError:
        raise InputError(
            f"{target}: another commit came at the same time; start the same command again"
        ) from None


def _move(made: Path, path: str) -> None:
    try:
        os.rename(made, path)
    except OSError:
        table.check_output(path, [], overwrite=False)
        raise


def open_sources(gallery: Gallery, column: Column, uri: str) -> Gallery:
    """The gallery with what `column` was made from: `uri`, or `gallery` where that is empty.

    Raises:
      InputError: no such gallery; one without the columns that `column` was made from, in the
        spaces they had; or `column` came of another gallery, which has to be named.
    """
    noted = column.created_by.get("gallery")
    place = f"{noted['path']}@{noted['version']}" if noted else gallery.path
    if noted and not uri:
        raise InputError(
            f"{gallery.path}: column {column.name!r} was made from another gallery ({place}); name "
            "that one with --sources"
        )
    if not uri:
        return gallery
    found = open_gallery(uri)
    for one in column.created_by.get("source", []):
        there = found.columns.get(one["column"])
        if there is None or there.space != one["space"]:
            raise InputError(
                f"{found.path}: has no column {one['column']!r} as that which {column.name!r} of "
                f"{gallery.path} was made from; name {place} with --sources"
            )
    return found


def keep_data(made: Path, records: Sequence[dict] | None = None) -> None:
    """Leaves nothing in an unfinished table but data files: those of `records`, or all."""
    known = {file["path"] for record in records or () for file in record["files"]}
    for other in made.iterdir() if made.exists() else ():
        if other.name != "data":
            runs.remove(other)
    for file in (made / "data").glob("*"):
        if records is not None and file.name not in known:
            runs.remove(file)


def stage(
    gallery: Gallery,
    number: int,
    target: str,
    mode: str,
    schema: pa.Schema,
    read: Sequence[str],
    compute: fragments.Arrays,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> dict:
    """Writes what becomes of one fragment's rows, without a commit; a record for `open_job`.

    Args:
      gallery, number: the fragment. read: names of the columns that `compute` needs, and of id.
      target, mode, schema: of the table that is written.
      compute, batch_size: as `fragments.stage_fragment`.
      rows: int64, places of the rows of the fragment that are meant; all of them for None.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in fragments.read_rows(gallery.dataset, number, read, batch_size, rows):
            labels = pa.nulls(len(batch), pa.string())
            if "label" in batch.schema.names:
                labels = batch["label"].cast(pa.string())
            arrays = [batch["id"].cast(pa.string()), labels, *compute(batch)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    base = fragments.fragment_of(gallery.dataset, number).metadata
    try:
        with fragments.reader_of(batches(), schema) as reader:
            written = write_fragments(
                reader,
                target,
                schema=schema,
                mode=mode,
                max_rows_per_file=max(1, base.physical_rows),
            )
    except OSError:
        if mode == "create" and exists(target):
            raise InputError(f"{target}: another process has just made it") from None
        raise
    metadata = [fragment.to_json() for fragment in written]
    return {
        "base": base.to_json(),
        "read": fragments.ids_of(gallery.dataset, read),
        "files": [file for fragment in metadata for file in fragment["files"]],
        "fragments": metadata,
    }
