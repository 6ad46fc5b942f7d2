"""The rows of a column as an index takes them, and how two versions of a column differ.

Left out, and counted, are rows without a value (null) and, where the distance is cosine, rows
without direction. NaN and infinity are refused.

A version is told by its fragments: one whose data files of the ids and of the column are the same,
and whose rows were not deleted, holds the same rows. Of all others the vectors are read, and
compared by id with a digest of 8 bytes that the index keeps of each of its rows: neither the older
version of the gallery nor a second copy of the vectors is needed.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Tick
from fct_tf.gallery import fragments as jobs
from fct_tf.gallery.columns import Column, check_finite, without_direction
from fct_tf.gallery.reader import IO_BUFFER_BYTES, Gallery, read_error

_BATCH_ROWS, _BATCH_IDS = 16384, 65536


@dataclass(frozen=True)
class Block:
    """Rows of a column.

    ids: large_string [n]. vectors: float32 [n, dim]. null, without_direction: rows left out.
    """

    ids: pa.Array
    vectors: np.ndarray
    null: int
    without_direction: int


@dataclass(frozen=True)
class Read:
    """All rows of a column.

    ids: large_string [n]. vectors: float32 [n, dim]. digests: uint64 [n].
    left_out: number of rows by reason.
    """

    ids: pa.Array
    vectors: np.ndarray
    digests: np.ndarray
    left_out: dict[str, int]


@dataclass(frozen=True)
class Difference:
    """What has to change in an index for it to be of another version.

    gone: large_string [g], ids of rows to remove. ids: large_string [m], of rows that are new or
    another. vectors: float32 [m, dim], theirs, None where there are too many to hold.
    digests: uint64 [m]. new: how many of them are new.
    """

    gone: pa.Array
    ids: pa.Array
    vectors: np.ndarray | None
    digests: np.ndarray
    new: int

    @property
    def count(self) -> int:
        return len(self.gone) + len(self.ids)

    def __str__(self) -> str:
        changed = len(self.ids) - self.new
        return f"{self.new} new rows, {changed} changed, {len(self.gone)} gone"


def read(
    gallery: Gallery,
    column: Column,
    tick: Tick = lambda count: None,
    fragments: Collection[int] | None = None,
) -> Read:
    """The rows of a column, in one array of float32; of these fragments, or of all.

    Raises:
      InputError: a repeated or null id, NaN or infinity, a broken file.
    """
    count, start = sum(one.count_rows() for one in _chosen(gallery, fragments)), 0
    vectors = np.empty((count, column.dim), np.float32)
    digests = np.empty(count, np.uint64)
    parts = [pa.array([], pa.large_string())]
    null = flat = 0
    for block in blocks(gallery, column, fragments):
        stop = start + len(block.ids)
        vectors[start:stop] = block.vectors
        digests[start:stop] = digest(block.vectors)
        parts.append(block.ids)
        null, flat = null + block.null, flat + block.without_direction
        tick(stop - start + block.null + block.without_direction)
        start = stop
    ids = pa.concat_arrays(parts)
    _check_unique(gallery, ids)
    left_out = {"null": null, "without_direction": flat}
    return Read(ids, vectors[:start], digests[:start], left_out)


def no_row(gallery: Gallery, column: Column, left_out: dict[str, int]) -> InputError:
    """What to raise where no row of a column can be indexed."""
    return InputError(
        f"{gallery.path}: column {column.name!r} has no row to index ({left_out['null']} without a "
        f"value, {left_out['without_direction']} without direction)"
    )


def blocks(
    gallery: Gallery, column: Column, fragments: Collection[int] | None = None
) -> Iterator[Block]:
    """The rows of a column block by block; of these fragments, or of all.

    Raises:
      InputError: a null id, NaN or infinity, a broken file.
    """
    where = f"{gallery.path}: column {column.name!r}"
    chosen = _chosen(gallery, fragments)
    if not chosen:
        return
    read = 0
    try:
        scanner = gallery.dataset.scanner(
            columns=["id", column.name],
            fragments=chosen,
            batch_size=_BATCH_ROWS,
            io_buffer_size=IO_BUFFER_BYTES,
        )
        for batch in scanner.to_batches():
            if batch["id"].null_count:
                raise InputError(f"{gallery.path}: a row without id; every row needs a unique one")
            valid = batch[column.name].is_valid()
            kept = batch.filter(valid)
            ids = kept["id"].cast(pa.large_string())
            values = kept[column.name].flatten().to_numpy(zero_copy_only=False)
            vectors = values.reshape(len(ids), column.dim)
            check_finite(vectors, ids.to_pylist, where, column.distance)
            vectors, flat = vectors.astype(np.float32, copy=False), np.zeros(len(ids), bool)
            if column.distance == "cosine":
                flat = without_direction(vectors)
            if flat.any():
                ids, vectors = ids.filter(pa.array(~flat)), vectors[~flat]
            read += len(batch)
            yield Block(ids, vectors, len(batch) - len(kept), int(flat.sum()))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise read_error(gallery, error) from None
    # Rows that a scan does not come to would count as gone.
    count = sum(fragment.count_rows() for fragment in chosen)
    if read != count:
        raise InputError(
            f"{where}: reading was broken off, {read} of {count} rows came; start it again"
        )


def digest(vectors: np.ndarray) -> np.ndarray:
    """uint64 [n], BLAKE2b of each row's bytes. vectors: float32 [n, d]."""
    rows = np.ascontiguousarray(vectors, "<f4")
    hashes = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def states(
    gallery: Gallery, column: str, fragments: Collection[int] | None = None
) -> dict[str, str]:
    """By number of a fragment, what tells whether its rows of a column are the same."""
    fields = jobs.ids_of(gallery.dataset, ["id", column])
    return {
        str(fragment.fragment_id): jobs.state_of_rows(fragment.metadata.to_json(), fields)
        for fragment in _chosen(gallery, fragments)
    }


def difference(
    gallery: Gallery,
    column: Column,
    known: dict[str, str],
    ids: pa.Array,
    digests: np.ndarray,
    most: int,
    fragments: Collection[int] | None = None,
) -> Difference:
    """What an index of other rows lacks to be of this version of a column.

    Args:
      gallery: at the version wanted.
      column: of it.
      known: `states` of the version that the index is of.
      ids, digests: large_string [n] and uint64 [n], of the rows in the index.
      most: rows whose vectors may be held.
      fragments: that the index is to be of, if not of all.

    Raises:
      InputError: as `read`, or as `blocks`.
    """
    now = states(gallery, column.name, fragments)
    same = [int(name) for name, state in now.items() if known.get(name) == state]
    if len(same) == len(now) and len(now) == len(known):
        none = pa.array([], pa.large_string())
        empty = np.empty((0, column.dim), np.float32)
        return Difference(none, none, empty, np.empty(0, np.uint64), 0)
    chosen = _chosen(gallery, fragments)
    gallery_ids = _ids(gallery, chosen)
    _check_unique(gallery, gallery_ids)
    changed = [int(name) for name in now if int(name) not in set(same)]
    # Ids are looked up all at once: for each block, all ids of the index would be hashed anew.
    seen, marks = [pa.array([], pa.large_string())], [np.empty(0, np.uint64)]
    for block in blocks(gallery, column, changed):
        seen.append(block.ids)
        marks.append(digest(block.vectors))
    read_ids, read_digests = pa.concat_arrays(seen), np.concatenate(marks)
    place = pc.fill_null(pc.index_in(read_ids, value_set=ids), -1).to_numpy().astype(np.int64)
    other = place < 0
    other[~other] = digests[place[~other]] != read_digests[~other]
    vectors = None
    if other.sum() <= most:
        parts, start = [np.empty((0, column.dim), np.float32)], 0
        for block in blocks(gallery, column, changed) if other.any() else ():
            stop = start + len(block.ids)
            parts.append(block.vectors[other[start:stop]])
            start = stop
        vectors = np.concatenate(parts)
    return Difference(
        _gone(chosen, same, gallery_ids, read_ids, ids),
        read_ids.filter(pa.array(other)),
        vectors,
        read_digests[other],
        int((place < 0).sum()),
    )


def _gone(
    chosen: list[lance.LanceFragment],
    same: list[int],
    there: pa.Array,
    seen: pa.Array,
    ids: pa.Array,
) -> pa.Array:
    """Ids of the index that no row has any more, or only one without a value."""
    start, kept = 0, [seen]
    for fragment in chosen:
        count = fragment.count_rows()
        if fragment.fragment_id in set(same):
            kept.append(there.slice(start, count))
        start += count
    present = pc.is_in(ids, value_set=pa.concat_arrays(kept))
    return ids.filter(pc.invert(present))


def _chosen(gallery: Gallery, fragments: Collection[int] | None) -> list[lance.LanceFragment]:
    existing = gallery.dataset.get_fragments()
    if fragments is None:
        return existing
    fragment_ids = set(fragments)
    return [one for one in existing if one.fragment_id in fragment_ids]


def _ids(gallery: Gallery, chosen: list[lance.LanceFragment]) -> pa.Array:
    """The ids of the rows of fragments, large_string [n]; refuses null."""
    parts = [pa.array([], pa.large_string())]
    if not chosen:
        return parts[0]
    try:
        scanner = gallery.dataset.scanner(
            columns=["id"],
            fragments=chosen,
            batch_size=_BATCH_IDS,
            io_buffer_size=IO_BUFFER_BYTES,
        )
        for batch in scanner.to_batches():
            if batch["id"].null_count:
                raise InputError(f"{gallery.path}: a row without id; every row needs a unique one")
            parts.append(batch["id"].cast(pa.large_string()))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise read_error(gallery, error) from None
    return pa.concat_arrays(parts)


def _check_unique(gallery: Gallery, ids: pa.Array) -> None:
    if len(pc.unique(ids)) < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise InputError(f"{gallery.path}: id {twice!r} occurs more than once; ids must be unique")
