"""Exact search, and exact ranks and average precisions, of rows in memory.

Everything runs over blocks of queries, so memory does not grow with queries x gallery.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fct_tf.gallery.columns import check_finite
from fct_tf.retrieval import distances, metrics

# Of q queries and of g gallery rows: texts, None for a row without group.
Groups = tuple[Sequence[str | None] | np.ndarray, Sequence[str | None] | np.ndarray]


@dataclass(frozen=True)
class PerQuery:
    """What each labelled query achieved; all arrays have one entry per labelled query.

    position: int64, the query's row among all queries. rank: int64, rank of its nearest match, 0
    where no row matches. average_precision: float64, NaN where no row matches. self_removed:
    bool, whether the gallery had a row of its id.
    """

    position: np.ndarray
    rank: np.ndarray
    average_precision: np.ndarray
    self_removed: np.ndarray


class ByLabel(NamedTuple):
    """A gallery whose rows of one label stand together, and where its queries find their own.

    position: int64 [q], the labelled queries' rows among all queries. order: int64 [g], the
    gallery's rows, so that `gallery[order][first[i]:last[i]]` match query i, itself included.
    own: int64 [q], the row among `gallery[order]` with the query's id, -1 where there is none.
    same: int64 [2, q], of the matching rows, those of the query's own group, from same[0] to
    same[1].
    """

    position: np.ndarray
    order: np.ndarray
    first: np.ndarray
    last: np.ndarray
    own: np.ndarray
    same: np.ndarray

    def leave_out(self, entries: np.ndarray, part: slice) -> None:
        """Sets the rows of the queries' own groups to infinity. entries: float [block, g]."""
        for row, start, stop in zip(entries, *self.same[:, part], strict=True):
            row[start:stop] = np.inf


def search(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    distance: str = "l2",
    exclude: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery rows of each query; of equal distances the first rows.

    Args:
      query: float [q, d].
      gallery: float [g, d].
      k: number of neighbours.
      distance: `l2` (squared) or `cosine` (1 - cosine).
      exclude: int [q], a gallery row left out for each query (-1: none), or None.
      threads: that search at a time, each with NumPy's own beside; None: one per core.

    Returns:
      indices int64 [q, k] and distances float32 [q, k], ascending; -1 and infinity where the
      gallery has fewer than k rows.

    Raises:
      InputError: unknown distance or different dimensions; rows too long for float32 to hold their
        squared distances, by number: of columns they were refused by id when they were read.
    """
    for side, where in ((query, "queries"), (gallery, "gallery")):
        check_finite(side, range(len(side)), where, distance)
    sides = distances.Distances(query, gallery, distance)
    indices = np.empty((len(query), k), np.int64)
    values = np.empty((len(query), k), np.float32)

    def nearest(part: slice) -> None:
        block = sides.block(part, None if exclude is None else exclude[part])
        indices[part], values[part] = block.nearest(k)

    distances.run(nearest, distances.blocks(len(query), len(gallery)), threads=threads)
    return indices, values


def per_query(
    query: np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    query_labels: Sequence[str | None] | np.ndarray,
    gallery: np.ndarray,
    gallery_ids: Sequence[str] | np.ndarray,
    gallery_labels: Sequence[str | None] | np.ndarray,
    distance: str = "l2",
    block: int | None = None,
    progress: str = "",
    groups: Groups | None = None,
) -> PerQuery:
    """Rank of the nearest match and average precision of every labelled query.

    The gallery row with a query's own id is removed for that query. Gallery rows without label
    (None) are distractors, queries without label are left out.

    Args:
      query: float [q, d], with q ids and labels.
      gallery: float [g, d], with g ids and labels.
      distance: `l2` or `cosine`.
      block: queries per block; by default as many as fit `distances.BLOCK_BYTES`.
      progress: label of the progress bar; none when empty.
      groups: of the queries and of the gallery rows, such as cameras. Rows of a query's own label
        and group do not count, as in re-identification: neither as matches nor as others. A row
        without group (None) is in nobody's.

    Raises:
      InputError: unknown distance or different dimensions.
    """
    rows = by_label(query_ids, query_labels, gallery_ids, gallery_labels, groups)
    labelled, first, last, own = rows.position, rows.first, rows.last, rows.own
    sides = distances.Distances(query[labelled], gallery[rows.order], distance)
    rank = np.zeros(len(labelled), np.int64)
    precision = np.full(len(labelled), np.nan)

    def measure(part: slice) -> None:
        table = sides.block(part, own[part])
        rows.leave_out(table.entries, part)
        counts = table.counts(first[part], last[part])
        rank[part], precision[part] = metrics.rank_and_precision(*counts)

    distances.run(measure, distances.blocks(len(labelled), len(gallery), block), progress)
    return PerQuery(labelled, rank, precision, own >= 0)


# Vectors float [n, d], ids and labels of n rows.
Side = tuple[np.ndarray, np.ndarray, np.ndarray]


def by_label(
    query_ids, query_labels, gallery_ids, gallery_labels, groups: Groups | None = None
) -> ByLabel:
    """Puts the rows of one label together, so that the matches of a query are one slice.

    Among them, rows of one group stand together too, if there are `groups`.
    """
    codes, gallery_codes = label_codes(query_labels, gallery_labels)
    group, gallery_group = label_codes(*groups) if groups else (-2 - 0 * codes, 0 * gallery_codes)
    order = np.lexsort((gallery_group, gallery_codes))
    position = np.flatnonzero(codes > -2)
    codes = codes[position]
    first, last = (np.searchsorted(gallery_codes[order], codes, side) for side in ("left", "right"))
    # A label that the gallery does not have (-1) must not match the rows without label.
    last[codes < 0] = first[codes < 0]
    # Label and group as one number. A query without group, or of one that no row has, finds none.
    number = gallery_group.max(initial=0) + 2
    keys = (gallery_codes * number + gallery_group)[order]
    sought = codes * number + group[position]
    same = np.stack([np.searchsorted(keys, sought, side) for side in ("left", "right")])
    same[:, (codes < 0) | (group[position] < 0)] = 0
    own = row_numbers(query_ids, gallery_ids)[position]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    own = np.where(own >= 0, place[own] if len(place) else -1, -1)
    return ByLabel(position, order, first, last, own, same)


def label_codes(query_labels, gallery_labels) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers: -1 no such label in the gallery or a row without, -2 unlabelled query."""
    texts = [
        pa.array(list(labels), from_pandas=True).cast(pa.string())
        for labels in (query_labels, gallery_labels)
    ]
    distinct = pc.unique(texts[1].drop_null())
    query, gallery = (pc.index_in(text, value_set=distinct).fill_null(-1) for text in texts)
    codes = query.to_numpy().astype(np.int64)
    codes[texts[0].is_null().to_numpy(zero_copy_only=False)] = -2
    return codes, gallery.to_numpy().astype(np.int64)


def row_numbers(query_ids, gallery_ids) -> np.ndarray:
    """int64 [q]: the gallery row with each query's id, -1 where there is none."""
    ids = pa.array(list(gallery_ids), pa.string())
    positions = pc.index_in(pa.array(list(query_ids), pa.string()), value_set=ids)
    return positions.fill_null(-1).to_numpy().astype(np.int64)
