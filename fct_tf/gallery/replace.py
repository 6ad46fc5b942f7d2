"""Values of some rows replaced in one commit; the files of the other rows stay.

Lance has no stable way to change single cells of a file, but two to change some: rows move, whole,
into new data files behind the others and are marked as deleted where they were; or the column
gets a new data file for all rows of a fragment. Each fragment takes the way that writes less: few
scattered rows cost their own bytes in all columns, and no fragment costs more than its column.
Rows with blobs (Lance's fields for images and the like) never move: Lance gives back a description
of where a blob lies, which cannot be written.
(Lance's data overlay files would hold the changed cells alone, but they are unstable: a table
that has one is refused by every reader that has not been told otherwise.)
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa
from absl import logging
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments
from lance.schema import LanceSchema

from fct_tf.common import objects
from fct_tf.common.errors import InputError
from fct_tf.gallery import indices
from fct_tf.gallery.columns import Column
from fct_tf.gallery.fragments import field_protos, renumber, stage_fragment
from fct_tf.gallery.ids import places, repeated
from fct_tf.gallery.reader import Gallery, open_gallery, read_error

BLOCK_ROWS = 8192
COMPANION_BYTES = 16  # about what a row's X_origin and X_log_variance take
REPLACED = -2  # Lance's mark of a field whose values are in another file by now

# From places in the list of ids, int64 [n], to the new arrays by field name.
Values = Callable[[np.ndarray], dict[str, pa.Array]]


def replace_rows(
    path: str,
    column: Column,
    ids: Sequence[str],
    values: Values,
    *,
    space: str,
    add: Values | None = None,
    rows_per_file: int = 1 << 20,
) -> int:
    """Replaces values of the rows with these ids and the column's metadata; one atomic commit.

    All other rows and columns keep their bytes, older versions and tags what they hold. A commit
    of somebody else in the meantime is no obstacle: the rows are looked up again. Indices stay;
    what changed is not in them any more, and found without them.

    Args:
      path: the gallery.
      column: with its new metadata; its name and type must be there.
      ids: of the rows; those that the gallery does not have (any more) are left out, or added.
      values: gives the new arrays of the fields that change, of the types in the table.
      space: in which the column must still lie.
      add: for ids that the gallery does not have to become new rows: gives the arrays of their
        fields, the id among them; other fields are null.
      rows_per_file: rows of one new fragment.

    Returns:
      The new version.

    Raises:
      InputError: the column is another by now, an id occurs twice, a file cannot be read.
    """
    for attempt in range(20):
        gallery = open_gallery(path)
        dataset = gallery.dataset
        existing = gallery.columns.get(column.name)
        if existing is None or existing.space != space:
            raise InputError(
                f"{path}: column {column.name!r} has been changed in the meantime; start again to "
                "work on what it is now"
            )
        changed = _find(gallery, ids)
        rewritten = _rewritten(dataset, column, changed)
        strangers = np.setdiff1d(np.arange(len(ids)), changed.place)
        fragments = [
            _rewrite(dataset, fragment, changed, values)
            if fragment.fragment_id in rewritten
            else _delete(fragment, changed)
            for fragment in dataset.get_fragments()
        ]
        moved = changed.without(rewritten)
        new = [_moved(gallery, moved, values)] if len(moved.place) else []
        new += [_added(dataset, strangers, add)] if add and len(strangers) else []
        fragments += _written(dataset, new, rows_per_file)
        operation = lance.LanceOperation.Merge(fragments, _schema(dataset, column))
        try:
            done = lance.LanceDataset.commit(
                path,
                operation,
                read_version=dataset.version,
                storage_options=objects.lance_options(path),
            )
        except CommitConflictError:
            logging.info("%s: another commit came first; attempt %d", path, attempt + 2)
            continue
        indices.tell_uncovered(done)
        return done.version
    raise InputError(f"{path}: too many commits of others at the same time; start again")


@dataclasses.dataclass(frozen=True)
class _Changed:
    """The rows that change, in the table's order.

    position: int64 [n], places in the table. fragment, offset: int64 [n], where they are stored.
    place: int64 [n], places in the list of ids.
    """

    position: np.ndarray
    fragment: np.ndarray
    offset: np.ndarray
    place: np.ndarray

    def of(self, kept: np.ndarray) -> "_Changed":
        return _Changed(
            self.position[kept], self.fragment[kept], self.offset[kept], self.place[kept]
        )

    def without(self, fragments: Collection[int]) -> "_Changed":
        return self.of(~np.isin(self.fragment, list(fragments)))


def _find(gallery: Gallery, ids: Sequence[str]) -> _Changed:
    names, addresses = [pa.array([], pa.large_string())], [np.empty(0, np.int64)]
    try:
        for batch in gallery.dataset.to_batches(
            columns=["id"], batch_size=65536, with_row_address=True
        ):
            names.append(batch["id"].cast(pa.large_string()))
            addresses.append(batch["_rowaddr"].to_numpy().astype(np.int64))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise read_error(gallery, error) from None
    # At once: batch by batch, the wanted ids would be hashed anew for each.
    matches = places(pa.concat_arrays(names), ids)
    position = np.flatnonzero(matches >= 0)
    address, place = np.concatenate(addresses)[position], matches[position]
    twice = np.flatnonzero(np.bincount(place, minlength=1) > 1)
    if len(twice):
        raise repeated(gallery.path, ids[twice[0]])
    return _Changed(position, address >> 32, address & 0xFFFFFFFF, place)


def _rewritten(dataset: lance.LanceDataset, column: Column, changed: _Changed) -> set[int]:
    """The fragments in which the column of all rows is fewer bytes than the changed rows whole."""
    width, one = row_bytes(dataset), _column_bytes(column)
    counts = dict(zip(*np.unique(changed.fragment, return_counts=True), strict=True))
    movable = can_move(dataset)
    fragment_ids = set()
    for fragment in dataset.get_fragments():
        count, rows = counts.get(fragment.fragment_id, 0), fragment.count_rows()
        # Lance's commit wants all fragments to stay: none may lose its last row.
        if count and (not movable or count == rows or count * width > rows * one):
            fragment_ids.add(fragment.fragment_id)
    return fragment_ids


def can_move(dataset: lance.LanceDataset) -> bool:
    """Whether rows that are read can be written again as they are: not those with blobs."""
    read = dataset.scanner(limit=0).projected_schema
    return read.types == dataset.schema.types


def row_bytes(dataset: lance.LanceDataset) -> float:
    """Bytes of one row in all columns, from the sizes of the data files."""
    size = rows = 0
    for fragment in dataset.get_fragments():
        described = fragment.metadata
        size += sum(file.file_size_bytes or 0 for file in described.files)
        rows += described.physical_rows
    return size / max(1, rows)


def estimate_bytes(dataset: lance.LanceDataset, column: Column, num_rows: int) -> int:
    """Bytes that replacing so many rows writes, where they are spread over all fragments."""
    rewritten = dataset.count_rows() * _column_bytes(column)
    moved = num_rows * row_bytes(dataset)
    return round(min(moved, rewritten) if can_move(dataset) else rewritten)


def _column_bytes(column: Column) -> int:
    """Bytes of one row of the column and its companions."""
    return column.dim * np.dtype(column.dtype).itemsize + COMPANION_BYTES


def _delete(fragment: lance.LanceFragment, changed: _Changed) -> FragmentMetadata:
    """A fragment, the changed rows marked as deleted."""
    offset = changed.offset[changed.fragment == fragment.fragment_id]
    if not len(offset):
        return fragment.metadata
    address = (fragment.fragment_id << 32) + offset
    left = fragment.delete(f"_rowaddr IN ({','.join(map(str, address.tolist()))})")
    assert left is not None  # Where no row is left, the fragment is rewritten.
    return left


def _moved(gallery: Gallery, changed: _Changed, values: Values) -> pa.RecordBatchReader:
    """The changed rows whole with their new values, block after block."""
    dataset, schema = gallery.dataset, gallery.dataset.schema

    def blocks() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(changed.position), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            rows = dataset.take(changed.position[block].tolist(), columns=schema.names)
            new = values(changed.place[block])
            arrays = [new.get(name, rows[name].combine_chunks()) for name in schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, blocks())


def _added(dataset: lance.LanceDataset, places: np.ndarray, values: Values) -> pa.RecordBatchReader:
    """New rows of those places, with the fields that `values` gives and no others."""
    names = list(values(places[:1]))
    schema = pa.schema([dataset.schema.field(name) for name in names])

    def blocks() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(places), BLOCK_ROWS):
            new = values(places[start : start + BLOCK_ROWS])
            yield pa.RecordBatch.from_arrays([new[name] for name in names], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, blocks())


def _written(
    dataset: lance.LanceDataset, readers: Sequence[pa.RecordBatchReader], rows_per_file: int
) -> list[FragmentMetadata]:
    """New fragments of these rows, numbered after those there are."""
    written = [
        fragment
        for reader in readers
        for fragment in write_fragments(
            reader, dataset, schema=reader.schema, max_rows_per_file=rows_per_file
        )
    ]
    first = 1 + max((fragment.fragment_id for fragment in dataset.get_fragments()), default=-1)
    return [
        FragmentMetadata.from_json(json.dumps({**fragment.to_json(), "id": first + i}))
        for i, fragment in enumerate(written)
    ]


def _rewrite(
    dataset: lance.LanceDataset, fragment: lance.LanceFragment, changed: _Changed, values: Values
) -> FragmentMetadata:
    """A fragment whose changed fields lie in a new data file, for all its rows."""
    mine = changed.of(changed.fragment == fragment.fragment_id)
    names = list(values(mine.place[:1]))
    numbers = [f.fragment_id for f in dataset.get_fragments()]
    before = dataset.get_fragments()[: numbers.index(fragment.fragment_id)]
    start = sum(f.count_rows() for f in before)  # Positions count from the table's first row.
    done = 0

    def compute(batch: pa.RecordBatch) -> list[pa.Array]:
        nonlocal done
        low, high = np.searchsorted(mine.position, [start + done, start + done + len(batch)])
        rows = mine.position[low:high] - start - done
        done += len(batch)
        new = values(mine.place[low:high])
        take = np.arange(len(batch))
        take[rows] = len(batch) + np.arange(len(rows))
        return [pa.concat_arrays([batch[name], new[name]]).take(pa.array(take)) for name in names]

    fields = [dataset.schema.field(name) for name in names]
    staged = stage_fragment(dataset, fragment.fragment_id, compute, names, fields, BLOCK_ROWS)
    ids = {f.name(): f.id() for f in dataset.lance_schema.fields() if f.name() in names}
    described = fragment.metadata.to_json()
    for file in described["files"]:
        file["fields"] = [REPLACED if i in ids.values() else i for i in file["fields"]]
    # A file none of whose fields is in the schema any more makes Lance's own check fail.
    files = [file for file in described["files"] if set(file["fields"]) != {REPLACED}]
    files += [renumber(file, staged["names"], ids) for file in staged["files"]]
    return FragmentMetadata.from_json(json.dumps({**described, "files": files}))


def _schema(dataset: lance.LanceDataset, column: Column) -> LanceSchema:
    """The dataset's schema with the column's metadata; field ids stay.

    Lance sets metadata in a commit of its own only; a reader in between would see rows that the
    metadata does not describe. See `fct_tf.gallery.fragments` on the serialised form.
    """
    metadata, existing = field_protos(dataset.lance_schema)
    (number,) = (f.id() for f in dataset.lance_schema.fields() if f.name() == column.name)
    padding = [pa.field(f"padding{i}", pa.int32()) for i in range(number)]
    old, new = dataset.schema.field(column.name), column.to_field()
    field = old.with_metadata({**(old.metadata or {}), **(new.metadata or {})})
    _, protos = field_protos(LanceSchema.from_pyarrow(pa.schema([*padding, field])))
    changed = dict(protos[number:])
    return LanceSchema._from_protos(metadata, *(changed.get(i, proto) for i, proto in existing))
