"""A column added fragment by fragment: resumable, distributable, one commit at the end.

Lance writes the values of a new column of one fragment into a data file of its own and hands
back the fragment's new metadata; nothing is visible before a commit names those files. So a job
keeps that metadata, one small record per finished fragment (see `fct_tf.gallery.job`), and a
job that was killed goes on with the fragments that are missing. Workers on several machines can
do the same (`stage_fragment` on each, `commit` on one).
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import lance
import numpy as np
import pyarrow as pa
from absl import logging
from lance.commit import CommitConflictError
from lance.file import LanceFileReader
from lance.schema import LanceSchema

from fct_tf.common import objects, stores
from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.gallery.job import Job

# Columns are staged under this prefix. A column that is replaced is still there meanwhile.
STAGED = "__staged__"
_JOB = b"fct.job"  # In the metadata of fields as a file has them, not of the table's.
STALE_S = 24 * 3600

Arrays = Callable[[pa.RecordBatch], list[pa.Array]]


class Unreadable(Exception):
    """Lance cannot read rows; its own error is the cause."""


@contextlib.contextmanager
def reader_of(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[pa.RecordBatchReader]:
    """Batches as what Lance reads from; an exception that they raise comes out as it was.

    Lance turns exceptions of Python into its own.
    """
    failed: list[BaseException] = []

    def noting() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except BaseException as error:
            failed.append(error)
            raise

    try:
        # A function instead of a reader would be called inside Lance's runtime, where any other
        # call of Lance panics.
        yield pa.RecordBatchReader.from_batches(schema, noting())
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def stage_fragment(
    dataset: lance.LanceDataset,
    fragment_id: int,
    compute: Arrays,
    read: Sequence[str],
    fields: Sequence[pa.Field],
    batch_size: int,
    job: str = "",
) -> dict:
    """Computes and writes new columns for one fragment, without a commit.

    Args:
      dataset: the version that the job works on.
      fragment_id: of the fragment.
      compute: takes a batch with the columns `read` and returns the arrays of `fields`. It runs
        in another thread and may use Lance itself.
      read: names of the columns that `compute` needs.
      fields: the new fields with their metadata, under their final names.
      batch_size: rows per call of `compute`.
      job: noted in the file, see `remove_leftovers`.

    Returns:
      A JSON-able record for `commit`: the fragment's metadata before, the ids of the fields read,
      the new data file, and the names of its fields.
    """
    named = [new.with_name(STAGED + new.name) for new in fields]
    staged = pa.schema(noting_job(named, job))

    def batches() -> Iterator[pa.RecordBatch]:
        # Lance holds on to the fragment that it extends: its rows are read through another one.
        for batch in read_rows(dataset, fragment_id, read, batch_size):
            yield pa.RecordBatch.from_arrays(compute(batch), schema=staged)

    fragment = fragment_of(dataset, fragment_id)
    base = fragment.metadata.to_json()
    with reader_of(batches(), staged) as reader:
        metadata, schema = fragment.merge_columns(reader, batch_size=batch_size)
    names = {lance_field.id(): lance_field.name() for lance_field in schema.fields()}
    base_paths = {file["path"] for file in base["files"]}
    added = [file for file in metadata.to_json()["files"] if file["path"] not in base_paths]
    return {
        "base": base,
        "read": ids_of(dataset, read),
        "files": added,
        "names": {str(i): names[i] for file in added for i in file["fields"] if i in names},
    }


def noting_job(fields: Sequence[pa.Field], job: str) -> list[pa.Field]:
    """Fields of files that are written for a job, with its token (empty: none)."""
    if not job:
        return list(fields)
    return [new.with_metadata({**(new.metadata or {}), _JOB: job}) for new in fields]


def remove_leftovers(path: str, job: Job, records: Sequence[dict]) -> None:
    """Removes data files that were written for a finished job and are not in its records.

    They are of processes that were killed before what they had made was recorded, and of second
    attempts at a fragment (see `fct_tf.engines.engine`). Whole files say of which job they are.
    Lance writes under a temporary name, of which nothing is known: such files go when nobody has
    written to them for a day. An object store has no such ones.
    """
    data = f"{path}/data"
    kept = {file["path"] for record in records for file in record["files"]}
    if objects.reaches(path):
        for name, one in objects.listed(data).items():
            with contextlib.suppress(OSError, ValueError):  # Gone, or no file of Lance's.
                new = name not in kept and one.modified.timestamp() >= job.started_at
                if new and job.token in _noted_jobs(f"{data}/{name}"):
                    objects.remove(f"{data}/{name}")
        return
    if stores.in_store(path) or not os.path.isdir(data):  # No rows, no directory.
        return
    for entry in os.scandir(data):
        with contextlib.suppress(OSError, ValueError):  # Gone, or no file of Lance's.
            changed = entry.stat().st_mtime
            if entry.name.startswith(".tmp"):
                leftover = changed < time.time() - STALE_S
            else:
                new = entry.name not in kept and changed >= job.started_at
                leftover = new and job.token in _noted_jobs(entry.path)
            if leftover:
                os.unlink(entry.path)


def _noted_jobs(file: str) -> set[str]:
    schema = LanceFileReader(file, objects.lance_options(file)).metadata().schema
    return {(field.metadata or {}).get(_JOB, b"").decode() for field in schema} - {""}


def holds(record: dict, now: dict, data: str) -> bool:
    """Whether a record is of a fragment as it is now, and its data files are whole.

    Args:
      record: of `stage_fragment`. now: the fragment's metadata.
      data: directory of the data files that the record names.
    """
    # Lance removes files that no version names when it cleans up.
    return same_rows(record, now) and all(_is_whole(data, file) for file in record["files"])


def same_rows(record: dict, now: dict) -> bool:
    """Whether a fragment has the rows and values that a record was computed from.

    Args:
      record: with `base`, the fragment's metadata then, and `read`, the ids of the fields read.
      now: the fragment's metadata; further files may have come. Both may have a digest `meant` of
        which rows.
    """
    return state_of_rows(record["base"], record["read"]) == state_of_rows(now, record["read"])


def state_of_rows(described: dict, fields: Collection[int]) -> str:
    """A digest that is another as soon as a fragment's rows, or values of these fields, may be.

    Args:
      described: the fragment's metadata; files without these fields do not count.
      fields: ids.
    """
    held = [(file["path"], sorted({*fields} & {*file["fields"]})) for file in described["files"]]
    rows = ("id", "physical_rows", "deletion_file", "overlays", "meant")
    return sha256_json(
        [[described.get(key) for key in rows], sorted((path, ids) for path, ids in held if ids)]
    )


def _is_whole(directory: str, file: dict) -> bool:
    """Whether a data file of a fragment's metadata is there, as long as it was written."""
    path = f"{directory}/{file['path']}"
    try:
        if not stores.in_store(path):
            return os.stat(path).st_size == (file.get("file_size_bytes") or os.stat(path).st_size)
        LanceFileReader(path, objects.lance_options(path))  # Reads the end of the file.
    except (OSError, ValueError):
        return False
    return True


def commit(
    path: str,
    records: Sequence[dict],
    fields: Sequence[pa.Field],
    *,
    overwrite: bool = False,
    drop: Sequence[str] = (),
    noted: Sequence[pa.Field] = (),
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Makes staged columns visible in one commit and returns the new version.

    A commit of somebody else in the meantime is no obstacle as long as the rows are the same:
    the staged files are then attached to the newest version.

    Args:
      path: the gallery.
      records: from `stage_fragment`, one per fragment.
      fields: the new fields with their metadata, under their final names.
      overwrite: replace columns of these names.
      drop: names of columns that disappear in the same commit, where they exist.
      noted: columns that are there and get the metadata of these fields; their values stay.
      metadata: of the schema, added to what there is.

    Raises:
      InputError: a column is there already, or rows have changed since they were staged.
    """
    for attempt in range(20):
        dataset = lance.dataset(path, storage_options=objects.lance_options(path))
        replaced = [new.name for new in fields if new.name in dataset.schema.names]
        if replaced and not overwrite:
            raise InputError(
                f"{path}: column {replaced[0]!r} exists already; pass ``overwrite=True`` to "
                "replace it"
            )
        schema, ids = _schema(dataset, fields, drop, noted, metadata or {})
        by_id = {record["base"]["id"]: record for record in records}
        present = {i for existing in dataset.lance_schema.fields() for i in _ids(existing)}
        kept = {i for lance_field in schema.fields() for i in _ids(lance_field)}
        fragments = []
        for fragment in dataset.get_fragments():
            now = fragment.metadata.to_json()
            record = by_id.pop(now["id"], None)
            if record is None or not (
                same_rows(record, now) and present.issuperset(record["read"])
            ):
                raise InputError(
                    f"{path}: its rows have changed while the column was computed; start the same "
                    "command again to compute what is missing"
                )
            added = [renumber(file, record["names"], ids) for file in record["files"]]
            # A file none of whose fields is in the schema any more makes Lance's own check fail.
            now["files"] = [file for file in now["files"] if set(file["fields"]) & kept] + added
            fragments.append(lance.FragmentMetadata.from_json(json.dumps(now)))
        try:
            merged = lance.LanceDataset.commit(
                path,
                lance.LanceOperation.Merge(fragments, schema),
                read_version=dataset.version,
                storage_options=objects.lance_options(path),
            )
            return merged.version
        except CommitConflictError:
            logging.info("%s: another commit came first; attempt %d", path, attempt + 2)
    raise InputError(f"{path}: too many commits of others at the same time; start again")


def read_rows(
    dataset: lance.LanceDataset,
    fragment_id: int,
    columns: Sequence[str],
    batch_size: int,
    rows: np.ndarray | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a fragment, or those at the places `rows` int64 [n], one batch read ahead.

    Every batch is a scan of its own: one scan of all rows holds pages of many batches in memory,
    and joins their parts, which takes several times as long.

    Raises:
      Unreadable: Lance says so.
    """
    fragment = fragment_of(dataset, fragment_id)

    def scan(start: int) -> list[pa.RecordBatch]:
        try:
            if rows is not None:
                places = rows[start : start + batch_size].tolist()
                return fragment.take(places, columns=list(columns)).combine_chunks().to_batches()
            return list(
                fragment.to_batches(
                    columns=list(columns), batch_size=batch_size, offset=start, limit=batch_size
                )
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            raise Unreadable(str(error)) from error

    behind = None
    with ThreadPoolExecutor(1) as reader:
        count = fragment.count_rows() if rows is None else len(rows)
        for start in range(0, count, batch_size):
            ahead = reader.submit(scan, start)
            if behind:
                yield from behind.result()
            behind = ahead
        if behind:
            yield from behind.result()


def fragment_of(dataset: lance.LanceDataset, fragment_id: int) -> lance.LanceFragment:
    """The fragment with that number; `InputError` if it is gone."""
    fragment = dataset.get_fragment(fragment_id)
    if fragment is None:
        raise InputError(f"{dataset.uri}: no fragment {fragment_id} any more; start again")
    return fragment


def ids_of(dataset: lance.LanceDataset, names: Sequence[str]) -> list[int]:
    """The ids of fields of these names, and of the fields in them."""
    lance_fields = dataset.lance_schema.fields()
    return sorted(i for one in lance_fields if one.name() in names for i in _ids(one))


def files_of(dataset: lance.LanceDataset, names: Sequence[str]) -> list[dict]:
    """The data files of these fields, fragment by fragment, as JSON: what they hold is the same
    where these are, since Lance gives every file it writes a name of its own."""
    field_ids = set(ids_of(dataset, names))
    by_fragment = []
    for fragment in dataset.get_fragments():
        about = fragment.metadata.to_json()
        files = [file["path"] for file in about["files"] if field_ids & set(file["fields"])]
        changes = {key: about.get(key) for key in ("deletion_file", "overlays")}
        by_fragment.append({"files": files, "rows": about["physical_rows"], **changes})
    return by_fragment


def _schema(
    dataset: lance.LanceDataset,
    fields: Sequence[pa.Field],
    drop: Sequence[str],
    noted: Sequence[pa.Field],
    more: Mapping[str, str],
) -> tuple[LanceSchema, dict[str, int]]:
    """The dataset's schema with `fields` added, or put in the place of columns of their names.

    The arguments are those of `commit`; `more` is its `metadata`. Returns it with the ids of the
    new fields. Lance's public constructor numbers all fields anew and forgets the existing ids, so
    the new schema is put together from the serialised form that pickling uses. That form also
    leaves out the values of dictionaries, which a merge would else refuse as a change of the
    dictionary.
    """
    first = dataset.max_field_id + 1
    names = {new.name for new in fields} | set(drop)
    metadata, existing = field_protos(dataset.lance_schema)
    removed = {i for old in dataset.lance_schema.fields() if old.name() in names for i in _ids(old)}
    protos = {i: proto for i, proto in existing if i not in removed}
    protos |= _numbered(fields, first)
    numbers = {old.name(): old.id() for old in dataset.lance_schema.fields()}
    for field in noted:
        if field.name not in numbers or dataset.schema.field(field.name).type != field.type:
            raise InputError(
                f"{dataset.uri}: column {field.name!r} has been changed by others in the "
                "meantime; start the same command again"
            )
        protos |= _numbered([field], numbers[field.name])
    if more:
        added = {key: list(value.encode()) for key, value in more.items()}
        metadata = json.dumps(json.loads(metadata) | added)
    schema = LanceSchema._from_protos(metadata, *protos.values())
    return schema, {new.name: first + position for position, new in enumerate(fields)}


def _numbered(fields: Sequence[pa.Field], first: int) -> dict[int, bytes]:
    """The serialised fields under ids from `first` on."""
    # The constructor numbers from 0: padding in front gives the fields their ids.
    padding = [pa.field(f"padding{i}", pa.int32()) for i in range(first)]
    _, numbered = field_protos(LanceSchema.from_pyarrow(pa.schema(padding + list(fields))))
    return dict(numbered[first:])


def field_protos(schema: LanceSchema) -> tuple[str, list[tuple[int, bytes]]]:
    """The serialised parts of a schema: its metadata and each field, parents first, by id."""
    metadata, *protos = list(schema.__reduce__()[1])
    ids = [i for lance_field in schema.fields() for i in _ids(lance_field)]
    return metadata, list(zip(ids, protos, strict=True))


def _ids(lance_field) -> list[int]:
    """The ids of a field and of the fields in it, parents first."""
    return [lance_field.id(), *(i for child in lance_field.children() for i in _ids(child))]


def renumber(file: dict, names: dict[str, str], ids: dict[str, int]) -> dict:
    """A staged data file whose fields carry the ids that they have in the commit's schema."""
    final = [names[str(i)].removeprefix(STAGED) for i in file["fields"]]
    return {**file, "fields": [ids[name] for name in final]}
