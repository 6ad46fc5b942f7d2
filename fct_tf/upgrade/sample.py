"""A sample of a gallery's rows: those to embed with the new model, as pairs from its own domain.

A row's place in the draw is a function of the seed and of the table's content, never of the
order in which the rows are stored. Samples of one seed are nested: who wants more rows later
keeps those that are embedded already.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import MADE_BY_UPGRADE
from fct_tf.gallery.reader import read_error, to_rows
from fct_tf.retrieval import exact
from fct_tf.upgrade.pairs import Reembedded

METHODS = ("random", "spread")
# As many rows as there are clusters, times 128: more hardly move a centroid.
MAX_CLUSTERS = 256
FIT_ROWS = 128 * MAX_CLUSTERS
FIT_STEPS = 20
BLOCK_ROWS = 8192

Ids = Sequence[str] | np.ndarray
Vectors = Callable[[], Iterable[np.ndarray]]


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
    return order(ids, seed)[: _checked(count, len(ids))]


def spread(vectors: Vectors, ids: Ids, count: int, seed: int) -> np.ndarray:
    """The positions of `count` rows spread over clusters, int64 [count].

    Rows are clustered by k-means, sqrt(n) clusters and at most `MAX_CLUSTERS`, fitted on the
    first `FIT_ROWS` rows of `order`. Row number r of a cluster of s rows, counted from 0 in that
    order, is drawn at time r / s: one row of each cluster first, so that none goes without, then
    each cluster in proportion to its size.

    Proportional, not the same number from each: the sample has to stand for the gallery. The
    error that a transformation's training lowers, and the metrics of a verdict on the sample,
    are means over rows; equal numbers would count a row in a small cluster for many elsewhere.
    Against `random`, the draw of each region is no longer left to chance.

    Args:
      vectors: gives the rows' vectors, float [block, d] after block, from the first row at every
        call; `lambda: [array]` of an array in memory. It is called twice.
      ids: n ids, in the order of the vectors.
    """
    count = _checked(count, len(ids))
    first = order(ids, seed)
    centroids = _fit(_rows_at(vectors, first[:FIT_ROWS]), math.isqrt(len(ids)), seed)
    clusters = np.concatenate([exact.search(block, centroids, 1)[0][:, 0] for block in vectors()])[
        first
    ]
    by_cluster = np.argsort(clusters, kind="stable")
    sizes = np.bincount(clusters)
    rank = np.empty(len(first))
    rank[by_cluster] = np.arange(len(first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first[np.argsort(rank / sizes[clusters], kind="stable")[:count]]


def _checked(count: int, num_rows: int) -> int:
    if not 0 < count <= num_rows:
        raise InputError(f"a sample of {count} rows: must be at least 1 and at most {num_rows}")
    return count


def _rows_at(vectors: Vectors, positions: np.ndarray) -> np.ndarray:
    """float32 [m, d]: the rows at `positions`, in that order."""
    rising = np.sort(positions)
    parts, start = [], 0
    for block in vectors():
        low, high = np.searchsorted(rising, [start, start + len(block)])
        parts.append(np.asarray(block[rising[low:high] - start], np.float32))
        start += len(block)
    return np.concatenate(parts)[np.searchsorted(rising, positions)]


def _fit(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centroids by Lloyd's algorithm from a k-means++ start: float32 [at most count, d].

    Written here since the k-means that comes with Lance gives other clusters in every call.
    """
    centroids = _start(rows, min(count, MAX_CLUSTERS), np.random.default_rng(seed))
    labels = None
    for _ in range(FIT_STEPS):
        previous, labels = labels, _nearest(rows, centroids)
        if previous is not None and (labels == previous).all():
            break
        by_label = np.argsort(labels, kind="stable")
        there, starts = np.unique(labels[by_label], return_index=True)
        sums = np.add.reduceat(rows[by_label], starts, axis=0, dtype=np.float64)
        # A centroid that lost all its rows stays where it is.
        centroids[there] = sums / np.diff([*starts, len(rows)])[:, None]
    return centroids


def _start(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): rows drawn by their squared distance to those
    drawn before, so that a small group far from the rest gets a centroid too."""
    chosen = [int(rng.integers(len(rows)))]
    distance = np.full(len(rows), np.inf, np.float32)
    while True:
        difference = rows - rows[chosen[-1]]
        np.minimum(distance, np.einsum("ij,ij->i", difference, difference), out=distance)
        total = np.cumsum(distance, dtype=np.float64)
        # Nothing is left where rows repeat a few vectors only.
        if len(chosen) == count or total[-1] == 0:
            return rows[chosen]
        chosen.append(int(np.searchsorted(total, rng.random() * total[-1], side="right")))


def _nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each row: int64 [n]."""
    return exact.search(rows, centroids, 1)[0][:, 0]


def draw(
    gallery: table.Gallery, count: int, *, method: str = "random", by: str = "", seed: int = 0
) -> np.ndarray:
    """The ids of a sample, object [count] of str, in the order of the draw.

    Args:
      gallery: to draw from; its ids are held in memory, its vectors are not.
      count: rows to draw.
      method: `random` or `spread`.
      by: for `spread` the column whose vectors are clustered, by direction where its distance is
        cosine; by default the first one of kind `embedded` or `imported`.
      seed: what the draw depends on beside the table's content.

    Raises:
      InputError: unknown method or column, too many rows, a bad row.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r}: it must be one of {', '.join(METHODS)}")
    if by and method != "spread":
        raise InputError(f"``by={by}``: only ``method=spread`` looks at a column; leave it out")
    if method == "random":
        ids = gallery.read([]).ids
        return ids[random(ids, count, seed)]
    column = _cluster_column(gallery, by)
    ids = gallery.read([]).ids
    return ids[spread(lambda: _vectors(gallery, column), ids, count, seed)]


def _vectors(gallery: table.Gallery, column: table.Column) -> Iterator[np.ndarray]:
    """Blocks float32 [block, d]; of norm 1 (or 0) where the column's distance is cosine."""
    name = column.name
    with tqdm(desc=f"cluster {name}", total=gallery.num_rows, unit="row", disable=None) as bar:
        for rows in gallery.batches([name], BLOCK_ROWS, with_ids=False):
            vectors = rows.vectors[name]
            if column.distance == "cosine":
                norms = np.linalg.norm(vectors, axis=1, keepdims=True)
                vectors = vectors / np.where(norms == 0, 1, norms)
            yield vectors
            bar.update(len(vectors))


def _cluster_column(gallery: table.Gallery, by: str) -> table.Column:
    if by:
        return gallery.column(by)
    for column in gallery.columns.values():
        if column.kind in ("embedded", "imported"):
            return column
    there = ", ".join(gallery.columns) or "none"
    raise InputError(
        f"{gallery.path}: no embedded or imported column to cluster by; name one with ``by`` "
        f"(there are: {there})"
    )


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
    made = [*columns, *also.values(), *([known.column] if known else [])]
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

    return table.create(path, batches(), made, overwrite=overwrite, drop_indices=drop_indices)
