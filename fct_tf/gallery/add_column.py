"""A column computed from others, fragment by fragment: the loop that all such jobs share."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.gallery import fragments
from fct_tf.gallery.columns import Column, Rows, vector_array
from fct_tf.gallery.job import Job
from fct_tf.gallery.reader import Gallery, read_error, to_rows

Compute = Callable[[Rows], np.ndarray | dict[str, np.ndarray]]


def stage_missing(
    gallery: Gallery,
    job: Job,
    data: str,
    stage: Callable[[int, fragments.Arrays], dict],
    column: Column,
    compute: Compute,
    read: Sequence[str],
    extra_fields: Sequence[pa.Field],
    progress: str,
    rows: Mapping[int, np.ndarray] | None = None,
) -> list[dict]:
    """The records of all fragments; those that the job has not finished are staged now.

    Args:
      gallery: whose rows are read.
      job: where finished fragments are recorded.
      data: directory of the data files that are written.
      stage: given a fragment's number and what computes the arrays of a batch, writes them and
        returns the record.
      column, compute, read, extra_fields, progress: as `fct_tf.gallery.table.add_column`.
      rows: number of a fragment -> int64, places of the rows in it that are meant; None for all
        rows of all fragments.
    """

    def compute_batch(batch: pa.RecordBatch) -> list[pa.Array]:
        rows = to_rows(batch, read, where=gallery.path)
        result = compute(rows)
        values = result if isinstance(result, dict) else {column.name: result}
        arrays = [vector_array(values[column.name], column, rows.ids, gallery.path)]
        for new in extra_fields:
            arrays.append(pa.array(values[new.name], new.type, from_pandas=True))
        bar.update(len(rows))
        return arrays

    records = []
    total = gallery.num_rows if rows is None else sum(map(len, rows.values()))
    with tqdm(total=total, desc=progress, unit="row", disable=None if progress else True) as bar:
        for fragment in gallery.dataset.get_fragments():
            base, count = fragment.metadata.to_json(), fragment.count_rows()
            if rows is not None:
                if fragment.fragment_id not in rows:
                    continue
                meant = rows[fragment.fragment_id]
                base, count = base | {"meant": _digest(meant)}, len(meant)
            unit = f"fragment-{fragment.fragment_id}"
            record = job.read(unit) if job.finished(unit) else None
            if record is not None and fragments.holds(record, base, data):
                bar.update(count)
            else:
                try:
                    record = {**stage(fragment.fragment_id, compute_batch), "base": base}
                except fragments.Unreadable as error:
                    raise read_error(gallery, error) from None
                job.record(unit, record)
            records.append(record)
    return records


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
