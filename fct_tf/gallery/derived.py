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

from fct_tf.common import files, objects, runs, stores
from fct_tf.common.errors import InputError
from fct_tf.gallery import fragments
from fct_tf.gallery.columns import Column
from fct_tf.gallery.create import check_output, new_schema
from fct_tf.gallery.job import Job, job_directory
from fct_tf.gallery.reader import Gallery, exists, open_dataset, open_gallery


@dataclasses.dataclass
class Apart:
    """The place of a column in a gallery of its own, for `fct_tf.gallery.add_column`.

    What is new on this machine's disk is made in the job's directory and moved at the end; so it
    has to be on the same file system. `created_by["gallery"]` of the column notes what was read.
    The arguments are those of `add_column`.
    """

    path: str
    gallery: Gallery
    column: Column
    extra_fields: Sequence[pa.Field]
    read: Sequence[str]
    overwrite: bool
    drop_indices: bool
    batch_size: int
    job: str = ""  # Its token.

    def check(self, job_dir: str | os.PathLike | None) -> None:
        """Refuses a place that will not do; makes the directory that it lies in."""
        self._check_output()
        if not stores.in_store(self.path):
            _check_directory(job_directory(self.path, self.column.name, job_dir), self.path)
            files.make_parent(self.path)

    def begin(self, job: Job) -> Gallery:
        """The gallery whose rows are read."""
        self.there = self._check_output()
        self.staged = not self.there and not stores.in_store(self.path)
        if self.staged:
            _check_file_system(job.directory, self.path)
            keep_data(job.table)
        self.target = job.table if self.staged else self.path
        schema = self.gallery.dataset.schema
        self.label = ["label"] if "label" in schema.names else []
        return self.gallery

    def stage(self, number: int, arrays: fragments.Arrays, rows: np.ndarray | None) -> dict:
        """Writes what becomes of all of one fragment's rows; its record."""
        names = list(dict.fromkeys(["id", *self.label, *self.read]))
        mode = "overwrite" if self.there else "create"
        schema = new_schema(fragments.noting_job(self._fields(self.column), self.job))
        what = (self.target, mode, schema, names, arrays, self.batch_size)
        return stage(self.gallery, number, *what)

    def commit(self, job: Job, records: Sequence[dict]) -> int:
        """Makes the recorded fragments the rows of the gallery; the version."""
        if self.staged:
            keep_data(job.table, records)
        noted = {"path": self.gallery.path, "version": self.gallery.version}
        created_by = {**self.column.created_by, "gallery": noted}
        final = dataclasses.replace(self.column, created_by=created_by)
        # Made by others in the meantime.
        check_output(
            self.path, [self.gallery], overwrite=self.there, drop_indices=self.drop_indices
        )
        version = commit(self.target, records, new_schema(self._fields(final)))
        if self.staged:
            _move(job.table, self.path)
        else:
            fragments.remove_leftovers(self.path, job, records)
        return version

    def _check_output(self) -> bool:
        return check_output(
            self.path, [self.gallery], overwrite=self.overwrite, drop_indices=self.drop_indices
        )

    def _fields(self, column: Column) -> list[pa.Field]:
        return [column.to_field(), *self.extra_fields]


def _check_directory(directory: str, path: str) -> None:
    place, output = Path(directory).absolute(), Path(path).absolute()
    if output == place or output in place.parents:
        raise InputError(
            f"{directory}: the unfinished job would lie in {path}; choose a ``job_dir``"
        )


def _check_file_system(directory: str, path: str) -> None:
    if os.stat(directory).st_dev != os.stat(Path(path).absolute().parent).st_dev:
        raise InputError(
            f"{directory}: lies on another file system than {path}, which is made there and moved; "
            "choose a ``job_dir`` beside it"
        )


def _move(made: str, path: str) -> None:
    try:
        os.rename(made, path)
    except OSError:
        check_output(path, [], overwrite=False)
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
            "that one with ``sources``"
        )
    if not uri:
        return gallery
    sources = open_gallery(uri)
    for one in column.created_by.get("source", []):
        source_column = sources.columns.get(one["column"])
        if source_column is None or source_column.space != one["space"]:
            raise InputError(
                f"{sources.path}: has no column {one['column']!r} as that which {column.name!r} of "
                f"{gallery.path} was made from; name {place} with ``sources``"
            )
    return sources


def commit(target: str, records: Sequence[dict], schema: pa.Schema) -> int:
    """Makes the staged fragments the rows of `target`; returns the version."""
    written = [fragment for record in records for fragment in record["fragments"]]
    metadata = [lance.FragmentMetadata.from_json(json.dumps(one)) for one in written]
    version = open_dataset(target)[1].version if exists(target) else 0
    operation = lance.LanceOperation.Overwrite(schema, metadata)
    try:
        dataset = lance.LanceDataset.commit(
            target, operation, read_version=version, storage_options=objects.lance_options(target)
        )
        return dataset.version
    except CommitConflictError:
        raise InputError(
            f"{target}: another commit came at the same time; start the same command again"
        ) from None
    except OSError:
        if not version and exists(target):
            raise InputError(f"{target}: another process has just made it") from None
        raise


def keep_data(table: str, records: Sequence[dict] | None = None) -> None:
    """Leaves nothing in an unfinished table but data files: those of `records`, or all."""
    kept_names = {file["path"] for record in records or () for file in record["files"]}
    if stores.in_store(table):
        for name in objects.listed(table):
            folder, _, file_name = name.rpartition("/")
            if folder != "data" or (records is not None and file_name not in kept_names):
                objects.remove(f"{table}/{name}")
        return
    directory = Path(table)
    for other in directory.iterdir() if directory.exists() else ():
        if other.name != "data":
            runs.remove(other)
    for file in (directory / "data").glob("*"):
        if records is not None and file.name not in kept_names:
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
                storage_options=objects.lance_options(target),
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
