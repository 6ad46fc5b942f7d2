"""A column computed from others, fragment by fragment: the loop that all such jobs share."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.errors import InputError
from fct_tf.gallery import jobs
from fct_tf.gallery.columns import Column, Rows, vector_array
from fct_tf.gallery.reader import Gallery, to_rows

Compute = Callable[[Rows], np.ndarray | dict[str, np.ndarray]]


def stage_missing(
    gallery: Gallery,
    job: jobs.Job,
    stage: Callable[[int, jobs.Compute], dict],
    column: Column,
    compute: Compute,
    read: Sequence[str],
    extra_fields: Sequence[pa.Field],
    progress: str,
) -> list[dict]:
    """The records of all fragments; those that the job has not finished are staged now.

    Args:
      gallery: whose rows are read.
      job: where finished fragments are recorded.
      stage: given a fragment's number and what computes the arrays of a batch, writes them and
        returns the record.
      column, compute, read, extra_fields, progress: as `fct_tf.gallery.table.add_column`.
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
    with tqdm(
        total=gallery.num_rows, desc=progress, unit="row", disable=None if progress else True
    ) as bar:
        for fragment in gallery.dataset.get_fragments():
            record = job.finished(fragment.metadata.to_json())
            if record is None:
                try:
                    record = stage(fragment.fragment_id, compute_batch)
                except InputError:
                    job.remove_if_empty()
                    raise
                job.record(record)
            else:
                bar.update(fragment.count_rows())
            records.append(record)
    return records


def describe(new: pa.Field) -> dict:
    """A field as JSON, for what a job is recognised by."""
    metadata = {key.decode(): value.decode() for key, value in (new.metadata or {}).items()}
    return {"name": new.name, "type": str(new.type), "metadata": metadata}
