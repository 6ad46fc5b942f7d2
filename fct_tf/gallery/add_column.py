"""A column computed from others, fragment by fragment: into the gallery, or one of its own."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Engine, Tick, local
from fct_tf.gallery import fragments, indices
from fct_tf.gallery.columns import Column, Rows, vector_array
from fct_tf.gallery.create import COMPANIONS, check_newest, check_replaced
from fct_tf.gallery.derived import Apart
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.job import Job, open_job
from fct_tf.gallery.reader import Gallery, open_gallery, read_error, reading, to_rows

Compute = Callable[[Rows], np.ndarray | dict[str, np.ndarray]]
# Stages one fragment, given its number, what computes the arrays of a batch, and the places of the
# rows in it that are meant (None: all); its record.
Stage = Callable[[int, fragments.Arrays, np.ndarray | None], dict]


def add_column(
    gallery: Gallery,
    column: Column,
    compute: Compute,
    read: Sequence[str],
    *,
    output: str = "",
    extra_fields: Sequence[pa.Field] = (),
    job_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    drop_indices: bool = False,
    batch_size: int = 8192,
    progress: str = "",
    engine: Engine = local,
    notes: list | None = None,
) -> Gallery:
    """Adds an embedding column computed from other columns, in one commit.

    A killed call goes on where it was when it is repeated: finished fragments are recorded in
    `job_dir`. A job whose column, fields or sources differ starts from scratch. Rows or columns
    that others commit meanwhile are kept.

    Args:
      gallery: opened at its newest version; with `output` at any.
      column: the new column. Its metadata is also what the job is recognised by.
      compute: from `Rows` with ids and the columns `read` to float [n, dim], or a dict with that
        under `column.name` and the values of the extra fields under their names. NaN in a
        numeric extra field is null. Called in another thread, one batch after the other, and
        on the workers of an `engine` that has some.
      read: names of the source columns.
      output: path of a new gallery of the rows' ids, labels and this column alone, see
        `fct_tf.gallery.derived`; empty to add the column to `gallery`.
      extra_fields: further Arrow fields added in the same commit, e.g. `X_origin`.
      job_dir: holds the job's directory, which has the column's name and is removed after the
        commit; default `<path of what is written>.jobs`.
      overwrite: replace a column (and extra fields) of that name, in the same one commit; or
        add a version to a gallery at `output` (older versions and tags stay).
      drop_indices: replace it although indices are on it, which go with it.
      batch_size: rows per call of `compute`.
      progress: label of the progress bar; none when empty.
      engine: what does the fragments. A job that one has begun can be finished by another.
      notes: a list to which `compute` appends what it has to tell of rows, as JSON. It is recorded
        with each fragment, and in the end holds the notes of all rows in the table's order.

    Returns:
      The gallery with the column at the version of this commit, even if there is a newer one by
      then.

    Raises:
      InputError: existing column or output, one with an index, bad source row or value, an old
        version opened, another process at work on the same.
    """
    column.check()
    fields = [column.to_field(), *extra_fields]
    what = (gallery, column, extra_fields, read, overwrite, drop_indices, batch_size)
    place: Apart | _Beside
    place = Apart(output.rstrip("/") or output, *what) if output else _Beside(gallery.path, *what)
    place.check(job_dir)
    with open_job(place.path, column.name, job_dir) as job:
        source = place.begin(job)
        check_ids(lambda: (batch["id"] for batch in reading(source, ["id"], 65536)), source.path)
        job.start(
            {
                "path": place.path,
                "from": source.path,
                "fields": [describe(new) for new in fields],
                "read": describe_sources(source, read),
                "label": fragments.ids_of(source.dataset, place.label),
            }
        )
        place.job = job.token
        todo = (column, compute, read, extra_fields, progress)
        records = stage_missing(
            source, job, f"{place.target}/data", place.stage, *todo, engine=engine, notes=notes
        )
        job.check()
        version = place.commit(job, records)
        job.remove()
    return dataclasses.replace(open_gallery(f"{place.path}@{version}"), pinned=False)


@dataclasses.dataclass
class _Beside:
    """The place of a column among the others of the gallery; the arguments of `add_column`."""

    path: str
    gallery: Gallery
    column: Column
    extra_fields: Sequence[pa.Field]
    read: Sequence[str]
    overwrite: bool
    drop_indices: bool
    batch_size: int
    job: str = ""  # Its token.

    def __post_init__(self):
        self.fields = [self.column.to_field(), *self.extra_fields]
        self.target, self.label = self.path, []

    def check(self, job_dir: str | os.PathLike | None) -> None:
        """Refuses a gallery that was opened at an old version."""
        check_newest(self.gallery)

    def begin(self, job: Job) -> Gallery:
        """The gallery whose rows are read: its newest version."""
        self.gallery = open_gallery(self.path)
        for new in self.fields:
            if new.name in self.gallery.dataset.schema.names and not self.overwrite:
                raise InputError(
                    f"{self.path}: column {new.name!r} exists already; pass ``overwrite=True`` to "
                    "replace it"
                )
        check_replaced(self.gallery, self.column.name, drop_indices=self.drop_indices)
        return self.gallery

    def stage(self, number: int, arrays: fragments.Arrays, rows: np.ndarray | None) -> dict:
        """Writes the values for all of one fragment's rows; its record."""
        names = list(dict.fromkeys(["id", *self.read]))
        what = (arrays, names, self.fields, self.batch_size, self.job)
        return fragments.stage_fragment(self.gallery.dataset, number, *what)

    def commit(self, job: Job, records: Sequence[dict]) -> int:
        """Makes the recorded values visible; the version."""
        # A replaced column takes its companions along: they describe values that are gone.
        companions = [self.column.name + suffix for suffix in COMPANIONS] if self.overwrite else []
        # Once more: an index may have come while the column was computed.
        now = open_gallery(self.path)
        lost = check_replaced(now, self.column.name, drop_indices=self.drop_indices)
        version = fragments.commit(
            self.path, records, self.fields, overwrite=self.overwrite, drop=companions
        )
        indices.tell_dropped(self.path, lost)
        fragments.remove_leftovers(self.path, job, records)
        return version


def stage_missing(
    gallery: Gallery,
    job: Job,
    data: str,
    stage: Stage,
    column: Column,
    compute: Compute,
    read: Sequence[str],
    extra_fields: Sequence[pa.Field],
    progress: str,
    rows: Mapping[int, np.ndarray] | None = None,
    *,
    engine: Engine = local,
    notes: list | None = None,
) -> list[dict]:
    """The records of all fragments; those that the job has not finished are staged now.

    Args:
      gallery: whose rows are read.
      job: where finished fragments are recorded.
      data: directory of the data files that are written.
      stage: see `Stage`.
      column, compute, read, extra_fields, progress, engine, notes: as
        `fct_tf.gallery.table.add_column`.
      rows: number of a fragment -> int64, places of the rows in it that are meant; None for all
        rows of all fragments.
    """
    noted: list = [] if notes is None else notes

    def make(unit: tuple[int, np.ndarray | None], tick: Tick) -> dict:
        """Runs on the workers: what it holds goes there too."""

        def compute_batch(batch: pa.RecordBatch) -> list[pa.Array]:
            rows = to_rows(batch, read, where=gallery.path)
            result = compute(rows)
            values = result if isinstance(result, dict) else {column.name: result}
            arrays = [vector_array(values[column.name], column, rows.ids, gallery.path)]
            for new in extra_fields:
                arrays.append(pa.array(values[new.name], new.type, from_pandas=True))
            tick(len(rows))
            return arrays

        noted.clear()
        number, places = unit
        try:
            record = stage(number, compute_batch, places)
        except fragments.Unreadable as error:
            raise read_error(gallery, error) from None
        return {**record, "notes": noted[:]} if noted else record

    bases: dict[int, dict] = {}
    records: dict[int, dict] = {}
    todo: list[tuple[int, np.ndarray | None]] = []
    total = gallery.num_rows if rows is None else sum(map(len, rows.values()))
    with tqdm(total=total, desc=progress, unit="row", disable=None if progress else True) as bar:
        for fragment in gallery.dataset.get_fragments():
            number, count, meant = fragment.fragment_id, fragment.count_rows(), None
            base = fragment.metadata.to_json()
            if rows is not None:
                if number not in rows:
                    continue
                meant = rows[number]
                base, count = base | {"meant": _digest(meant)}, len(meant)
            bases[number] = base
            record = job.read(_unit(number)) if job.finished(_unit(number)) else None
            if record is not None and fragments.holds(record, base, data):
                records[number] = record
                bar.update(count)
            else:
                todo.append((number, meant))
        for (number, _), staged in engine(make, todo, bar.update, progress or column.name):
            records[number] = {**staged, "base": bases[number]}
            job.record(_unit(number), records[number])
    in_order = [records[number] for number in bases]
    noted[:] = [note for record in in_order for note in record.get("notes", ())]
    return in_order


def _unit(number: int) -> str:
    return f"fragment-{number}"


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def describe(new: pa.Field) -> dict:
    """A field as JSON, for what a job is recognised by."""
    metadata = {key.decode(): value.decode() for key, value in (new.metadata or {}).items()}
    return {"name": new.name, "type": str(new.type), "metadata": metadata}


def describe_sources(gallery: Gallery, read: Sequence[str]) -> dict:
    """Columns that are read as JSON, for what a job is recognised by: their spaces and ids."""
    ids = {name: fragments.ids_of(gallery.dataset, [name]) for name in read}
    return {name: [gallery.column(name).space, ids[name]] for name in read}
