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
import pyarrow as pa
from lance.fragment import write_fragments

from fct_tf import runs
from fct_tf.errors import InputError
from fct_tf.gallery import jobs, table
from fct_tf.gallery.columns import Column
from fct_tf.gallery.computed import Compute, describe, stage_missing
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.reader import Gallery, open_gallery, reading


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
    batch_size: int = 8192,
    progress: str = "",
) -> Gallery:
    """Writes a new gallery of the rows' ids and labels and a column computed from others.

    A killed call goes on where it was when it is repeated, as `table.add_column` does. The new
    gallery appears in one step; what is staged before lies beside it, in `.NAME.staged`.

    Args:
      gallery: whose rows are read, at the version it was opened at. `column` notes it, in
        `created_by["gallery"]`.
      path: of the new gallery; must not exist unless `overwrite`, which adds a version to the
        gallery there (older versions and tags stay).
      column, compute, read, extra_fields, batch_size, progress: as `table.add_column`.
      job_dir: where finished parts are recorded, in a directory of the column's name; default
        `<path>.jobs`. Needed for a gallery in an object store.
      overwrite: replace a gallery at `path`.

    Raises:
      InputError: existing path, bad source row or value.
    """
    column.check()
    path = path.rstrip("/")
    there = table.check_output(path, [gallery], overwrite=overwrite)
    if "://" in path and job_dir is None:
        raise InputError(f"{path}: say where to keep the unfinished job (job_dir)")
    check_ids(lambda: (batch["id"] for batch in reading(gallery, ["id"], 65536)), gallery.path)
    fields = [column.to_field(), *extra_fields]
    target = path if there or "://" in path else str(staged_beside(path))
    job = jobs.Job(
        Path(job_dir or f"{path}.jobs") / column.name,
        target,
        {
            "path": path,
            "from": gallery.path,
            "fields": [describe(new) for new in fields],
            "read": {name: gallery.column(name).space for name in read},
        },
        remove_parent=job_dir is None,
    )
    staged = Path(target) if target != path else None
    if staged and job.is_empty():  # What another job left.
        runs.remove(staged)
    schema = table.new_schema(fields)
    label = ["label"] if "label" in gallery.dataset.schema.names else []
    names = list(dict.fromkeys(["id", *label, *read]))
    mode = "overwrite" if there else "create"

    def stage(number: int, compute_batch: jobs.Compute) -> dict:
        return _stage(gallery, number, target, mode, schema, names, compute_batch, batch_size)

    try:
        records = stage_missing(gallery, job, stage, column, compute, read, extra_fields, progress)
    except InputError:
        if staged and job.is_empty():
            runs.remove(staged)
        raise
    noted = {"path": gallery.path, "version": gallery.version}
    final = dataclasses.replace(column, created_by={**column.created_by, "gallery": noted})
    if staged:
        _keep_only(staged, records)
    fragments = [
        lance.FragmentMetadata.from_json(json.dumps(fragment))
        for record in records
        for fragment in record["fragments"]
    ]
    operation = lance.LanceOperation.Overwrite(
        table.new_schema([final.to_field(), *extra_fields]), fragments
    )
    version = lance.dataset(path).version if there else 0
    lance.LanceDataset.commit(target, operation, read_version=version)
    if staged:
        table.check_output(path, [], overwrite=False)  # Made by another process in the meantime.
        os.replace(staged, path)
    job.remove()
    return open_gallery(path)


def open_sources(gallery: Gallery, column: Column, uri: str) -> Gallery:
    """The gallery with what `column` was made from: `uri`, or `gallery` where that is empty.

    Raises:
      InputError: no such gallery; or `column` came of another one, which has to be named.
    """
    made_from = column.created_by.get("gallery")
    if made_from and not uri:
        raise InputError(
            f"{gallery.path}: column {column.name!r} was made from another gallery "
            f"({made_from['path']}@{made_from['version']}); name that one with --sources"
        )
    return open_gallery(uri) if uri else gallery


def staged_beside(path: str) -> Path:
    """Where a new gallery on this machine's disk lies until it is whole."""
    return Path(path).with_name(f".{Path(path).name}.staged")


def _keep_only(staged: Path, records: Sequence[dict]) -> None:
    """Leaves nothing in a staged table but its data files: no commit, nor what a kill cut off."""
    known = {file["path"] for record in records for file in record["files"]}
    for other in staged.iterdir() if staged.exists() else ():
        if other.name != "data":
            runs.remove(other)
    for file in (staged / "data").glob("*"):
        if file.name not in known:
            runs.remove(file)


def _stage(
    gallery: Gallery,
    number: int,
    target: str,
    mode: str,
    schema: pa.Schema,
    read: Sequence[str],
    compute: jobs.Compute,
    batch_size: int,
) -> dict:
    """Writes what becomes of one fragment's rows, without a commit; a record as of `jobs`."""
    failed: list[BaseException] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            fragment = jobs.fragment_of(gallery.dataset, number)
            for batch in jobs.read_rows(fragment, list(read), batch_size):
                labels = pa.nulls(len(batch), pa.string())
                if "label" in batch.schema.names:
                    labels = batch["label"].cast(pa.string())
                arrays = [batch["id"].cast(pa.string()), labels, *compute(batch)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except BaseException as error:
            failed.append(error)
            raise

    base = jobs.fragment_of(gallery.dataset, number).metadata
    try:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        rows = max(1, base.physical_rows)
        written = write_fragments(reader, target, schema=schema, mode=mode, max_rows_per_file=rows)
    except Exception:
        if failed:
            raise failed[0] from None
        raise
    fragments = [fragment.to_json() for fragment in written]
    return {
        "base": base.to_json(),
        "files": [file for fragment in fragments for file in fragment["files"]],
        "fragments": fragments,
    }
