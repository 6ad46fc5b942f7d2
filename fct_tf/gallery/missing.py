"""What a column lacks since it was made: rows that came later are computed, no others.

Rows appended without a value of the column (by plain Lance, say) have null in it. Where a column
lies in a gallery of its own, rows of its source that it does not have are missing too. They are
computed and staged as a whole column is, fragment by fragment, then put in their place in one
commit; what is there keeps its bytes, backfilled rows too.
"""

import dataclasses
import os
from collections.abc import Sequence

import lance
import numpy as np
import pyarrow as pa

from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Engine, local
from fct_tf.gallery import derived, fragments, replace, table
from fct_tf.gallery.add_column import Compute, describe_sources, stage_missing
from fct_tf.gallery.columns import Column
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.job import open_job, unfinished
from fct_tf.gallery.reader import (
    Gallery,
    all_ids,
    open_dataset,
    open_gallery,
    places_in,
    read_error,
    reading,
)


@dataclasses.dataclass(frozen=True)
class Missing:
    """Rows of the gallery that is read which a column lacks.

    rows: number of a fragment -> int64, places of rows in it, rising; only fragments with such
    rows. new: how many of them are no rows yet where the column lies. gone: how many rows there
    are no rows of the gallery that is read any more.
    """

    rows: dict[int, np.ndarray]
    new: int = 0
    gone: int = 0

    @property
    def count(self) -> int:
        return sum(len(places) for places in self.rows.values())


def find(gallery: Gallery, column: str, target: Gallery | None = None) -> Missing:
    """The rows of `gallery` without a value of `column`, a column of `target` if that is another.

    With `target` the ids of both are held in memory.

    Raises:
      InputError: broken files, or `target` has no row of `gallery`.
    """
    without = _absent(target or gallery, column)
    if target is None:
        return Missing(_by_fragment(gallery, np.flatnonzero(without)))
    target_ids = all_ids(target)
    place = places_in(gallery, target_ids)
    shared = place[place >= 0]
    if len(target_ids) and not len(shared):
        raise InputError(
            f"{target.path}: has no row of {gallery.path}; name the gallery that it was made from"
        )
    missing = place < 0
    missing[place >= 0] = without[shared]
    return Missing(
        _by_fragment(gallery, np.flatnonzero(missing)),
        new=int((place < 0).sum()),
        gone=len(target_ids) - len(np.unique(shared)),
    )


def ids(gallery: Gallery, column: str) -> list[str]:
    """The ids of the rows without a value of `column`, in the table's order."""
    return all_ids(gallery).filter(pa.array(_absent(gallery, column))).to_pylist()


def _absent(gallery: Gallery, column: str) -> np.ndarray:
    """Which rows have null in the column: bool [n], in the table's order."""
    parts = [np.empty(0, bool)]
    try:
        columns = {"absent": f"`{column}` IS NULL"}
        for batch in gallery.dataset.to_batches(columns=columns, batch_size=8192):
            parts.append(batch["absent"].to_numpy(zero_copy_only=False))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise read_error(gallery, error) from None
    return np.concatenate(parts)


def _by_fragment(gallery: Gallery, positions: np.ndarray) -> dict[int, np.ndarray]:
    """Positions in the table, rising, as places in each of its fragments."""
    places, start = {}, 0
    for fragment in gallery.dataset.get_fragments():
        stop = start + fragment.count_rows()
        low, high = np.searchsorted(positions, [start, stop])
        if low < high:
            places[fragment.fragment_id] = positions[low:high] - start
        start = stop
    return places


def complete(
    gallery: Gallery,
    column: Column,
    compute: Compute,
    read: Sequence[str],
    *,
    target: Gallery | None = None,
    extra_fields: Sequence[pa.Field] = (),
    job_dir: str | os.PathLike | None = None,
    batch_size: int = 8192,
    progress: str = "",
    engine: Engine = local,
    notes: list | None = None,
) -> tuple[Gallery, Missing]:
    """Computes the rows that `column` lacks, and no others, and commits them at once.

    A killed call goes on where it was when it is repeated, as `table.add_column` does.

    Args:
      gallery: whose rows are read; at its newest version where the column lies in it.
      column: of the gallery, or of `target`, as it is there.
      compute, read, extra_fields, batch_size, progress, engine, notes: as `table.add_column`.
      target: the gallery of its own in which the column lies; it gets the rows that it does not
        have, with ids and labels, and notes the version of `gallery` in the column's
        `created_by["gallery"]`.
      job_dir: default `<path of what is written>.jobs`.

    Returns:
      The gallery with the column, and what was missing; nothing is written where nothing was.

    Raises:
      InputError: as `find`; bad source row or value; the column or what it is computed from is
        another by the end; another process at work on it.
    """
    written = target or gallery
    missing = find(gallery, column.name, target)
    if not missing.count and not unfinished(written.path, column.name, job_dir):
        return written, missing
    check_ids(lambda: (batch["id"] for batch in reading(gallery, ["id"], 65536)), gallery.path)
    fields = [column.to_field(), *extra_fields]
    if target and missing.new:
        _check_addable(target, {"id", "label", *(new.name for new in fields)})
    label = ["label"] if target and "label" in gallery.dataset.schema.names else []
    settings = {
        "path": written.path,
        "from": gallery.path,
        "missing": True,
        # Not its space and the like: rows that are backfilled meanwhile change them.
        "fields": [[new.name, str(new.type)] for new in fields],
        "made": [column.created_by.get(key) for key in ("settings", "source")],
        "read": describe_sources(gallery, read),
        "label": fragments.ids_of(gallery.dataset, label),
        "batch_size": batch_size,
    }
    with open_job(written.path, column.name, job_dir) as job:
        if not missing.count:  # A job was killed between its commit and its end.
            job.remove()
            return written, missing
        job.start(settings)
        derived.keep_data(job.table)
        schema = table.new_schema(fields)
        names = list(dict.fromkeys(["id", *label, *read]))

        place = job.table

        def stage(number: int, arrays: fragments.Arrays, rows: np.ndarray | None) -> dict:
            what = (place, "create", schema, names, arrays, batch_size)
            return derived.stage(gallery, number, *what, rows)

        todo = (column, compute, read, extra_fields, progress, missing.rows)
        records = stage_missing(
            gallery, job, f"{place}/data", stage, *todo, engine=engine, notes=notes
        )
        derived.keep_data(job.table, records)
        derived.commit(place, records, schema)
        # What is read lies in a version that stays; what is written may have changed meanwhile.
        now = gallery if target else open_gallery(gallery.path)
        if describe_sources(now, read) != settings["read"]:
            raise InputError(
                f"{gallery.path}: what {column.name!r} is computed from has changed in the "
                "meantime; start again"
            )
        job.check()
        version = _commit(gallery, written, column, open_dataset(place)[1], fields)
        job.remove()
    return dataclasses.replace(open_gallery(f"{written.path}@{version}"), pinned=False), missing


def _check_addable(target: Gallery, filled: set[str]) -> None:
    """Refuses a gallery to which no row can be added by its id, label and column alone."""
    for field in target.dataset.schema:
        if field.name not in filled and not field.nullable:
            raise InputError(
                f"{target.path}: field {field.name!r} may not be null, so rows cannot be added "
                "without it; add them with a value of it and run the same command again"
            )


def _commit(
    gallery: Gallery,
    written: Gallery,
    column: Column,
    staged: lance.LanceDataset,
    fields: Sequence[pa.Field],
) -> int:
    types = {field.name: field.type for field in written.dataset.schema}
    own = ["id", *(["label"] if "label" in types else [])]

    def taken(place: np.ndarray, names: Sequence[str]) -> dict[str, pa.Array]:
        rows = staged.take(place.tolist(), columns=list(names))
        return {name: rows[name].combine_chunks().cast(types[name]) for name in names}

    names = [new.name for new in fields if new.name in types]
    staged_ids = staged.to_table(columns=["id"])["id"].to_pylist()
    written_column, add = column, None
    if written is not gallery:
        noted = {"path": gallery.path, "version": gallery.version}
        written_column = dataclasses.replace(
            column, created_by={**column.created_by, "gallery": noted}
        )

        def add(place: np.ndarray) -> dict[str, pa.Array]:
            return taken(place, [*own, *names])

    return replace.replace_rows(
        written.path,
        written_column,
        staged_ids,
        lambda place: taken(place, names),
        space=column.space,
        add=add,
    )
