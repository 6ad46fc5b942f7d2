"""A sample of a gallery's rows: those to embed with the new model, as pairs from its own domain.

A row's place in the draw is a function of the seed and of the table's ids, never of the order in
which the rows are stored. Samples of one seed are nested: who wants more rows later
keeps those that are embedded already.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import MADE_BY_UPGRADE
from fct_tf.gallery.reader import read_error, to_rows
from fct_tf.upgrade.pairs import Reembedded

BLOCK_ROWS = 8192

Ids = Sequence[str] | np.ndarray


def count_of(num_rows: int, *, share: float | None = None, rows: int | None = None) -> int:
    """How many of `num_rows` rows a share above 0 and up to 1 is (at least one), or `rows`.

    Raises:
      InputError: both or neither is given, or there are not so many rows.
    """
    if share is not None and rows is None:
        if not 0 < share <= 1:
            raise InputError(f"``share={share}``: must be above 0 and at most 1")
        return max(1, round(share * num_rows))
    if rows is not None and share is None:
        if not 0 < rows <= num_rows:
            raise InputError(
                f"``rows={rows}``: must be at least 1 and at most {num_rows}, all rows"
            )
        return rows
    raise InputError("give the size of the sample as ``share`` or as ``rows``, one of them")


def order(ids: Ids, seed: int) -> np.ndarray:
    """The positions of rows in random order: int64 [n], a function of the seed and the ids.

    Rows are sorted by a keyed 64-bit BLAKE2b of their id, a million in about a second. Two of n
    ids share a hash with probability n^2 / 2^65 and are then in the order given.
    """
    key = str(seed).encode()
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids]
    # Big-endian on every machine, so that the order is the same everywhere.
    hashes = np.frombuffer(b"".join(digests), ">u8")
    return np.argsort(hashes.astype(np.uint64), kind="stable").astype(np.int64)


def random(ids: Ids, count: int, seed: int) -> np.ndarray:
    """The positions of `count` rows, int64 [count]: the first of `order`.

    Every row is as likely as any other: means over the sample estimate means over the gallery.
    """
    if not 0 < count <= len(ids):
        raise InputError(f"a sample of {count} rows: must be at least 1 and at most {len(ids)}")
    return order(ids, seed)[:count]


def draw(gallery: table.Gallery, count: int, *, seed: int = 0) -> np.ndarray:
    """The ids of a sample, object [count] of str, in the order of the draw.

    Args:
      gallery: to draw from; its ids are held in memory.
      count: rows to draw.
      seed: what the draw depends on beside the ids.

    Raises:
      InputError: too many rows, a broken data file.
    """
    ids = gallery.read([]).ids
    return ids[random(ids, count, seed)]


def copy_rows(
    gallery: table.Gallery,
    ids: Collection[str],
    path: str,
    *,
    overwrite: bool = False,
    drop_indices: bool = False,
    also: Mapping[str, table.Column] | None = None,
    known: Reembedded | None = None,
) -> table.Gallery:
    """Writes a new gallery of the rows with these ids, in the gallery's order, in one commit.

    It has their ids, their labels, and every embedding column with its space and other metadata.
    Transformed and fused columns are left out together with their `_origin` and `_log_variance`:
    what they hold is not data but a result, which upgrade_gallery makes anew. Other fields are left
    out too. Rows pass through in blocks.

    Args:
      gallery: what to copy from.
      ids: of the rows; their order does not matter.
      path, overwrite, drop_indices: as `fct_tf.gallery.table.create`.
      also: transformed columns to copy all the same -> what they are in the new gallery.
      known: vectors of all these rows that the gallery does not have, which it gets too.

    Raises:
      InputError: an id that the gallery does not have, no column to copy, a bad row, an existing
        path.
    """
    columns = [column for column in gallery.columns.values() if column.kind not in MADE_BY_UPGRADE]
    if not columns:
        raise InputError(f"{gallery.path}: no embedding column to copy but transformed ones")
    also = also or {}
    names = [*(column.name for column in columns), *also]
    new_columns = [*columns, *also.values(), *([known.column] if known else [])]
    label = ["label"] if "label" in gallery.dataset.schema.names else []
    positions = np.sort(gallery.places(np.unique(np.asarray(list(ids), dtype=object))))

    def batches() -> Iterator[table.Rows]:
        with tqdm(desc=f"copy to {path}", total=len(positions), unit="row", disable=None) as bar:
            for start in range(0, len(positions), BLOCK_ROWS):
                block = positions[start : start + BLOCK_ROWS].tolist()
                try:
                    taken = gallery.dataset.take(block, columns=["id", *label, *names])
                except (OSError, pa.ArrowException) as error:
                    raise read_error(gallery, error) from None
                batch = taken.combine_chunks().to_batches()[0]
                rows = to_rows(batch, names, with_labels=True, where=gallery.path)
                more = {column.name: rows.vectors[name] for name, column in also.items()}
                if known:
                    more[known.column.name] = known.take(rows.ids)
                yield dataclasses.replace(rows, vectors={**rows.vectors, **more})
                bar.update(len(block))

    return table.create(
        path, batches(), new_columns, overwrite=overwrite, drop_indices=drop_indices
    )
