"""Exact search of a gallery that is read part by part, by an engine: no process holds all of it.

What comes out equals a search in memory (`fct_tf.retrieval.exact`) to the last digit. Queries go in
blocks, and for each block the parts of the gallery are gone through twice:

1. Each part gives the distances from the queries to its rows of their labels, computed from the
   rows themselves (`Distances.exact`), so that they are the same wherever a row is read.
2. Each part counts its rows that are no farther than each of these distances; counts add up to
   those of the whole gallery, of which `metrics.rank_and_precision` makes ranks and precision.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.engines.engine import Engine, Tick
from fct_tf.gallery.columns import Column, Rows
from fct_tf.gallery.fragments import fragment_of
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.reader import Gallery, read_error, reading, to_rows
from fct_tf.retrieval import distances, exact, metrics, pairs, same_ids, two_columns

# Of a block of queries, and of the rows that a worker holds at a time.
BLOCK_BYTES, MAX_BLOCK_ROWS = 1 << 26, 4096
# A gallery becomes about so many units of work, of no fewer rows than these and no more.
UNITS, MIN_UNIT_ROWS, MAX_UNIT_ROWS = 256, 1 << 14, 1 << 20

Unit = tuple[int, int, int]  # Number of a fragment, and rows in it, from and to.


def searching(engine: Engine) -> two_columns.Search:
    """What searches by an engine, for `two_columns.evaluate_queries`."""
    return functools.partial(_search, engine)


@dataclass(frozen=True)
class _Stored:
    """What is searched: all that a worker has to know of it.

    one_length: see `Distances`. group, without: see `two_columns.Search`.
    """

    gallery: Gallery
    column: Column
    distance: str
    group: str
    without: frozenset[str]
    one_length: bool = False

    @property
    def fields(self) -> list[str]:
        return [self.group] if self.group else []

    def units(self) -> list[Unit]:
        """The rows in parts, none across fragments."""
        size = min(max(self.gallery.num_rows // UNITS, MIN_UNIT_ROWS), MAX_UNIT_ROWS)
        units = []
        for fragment in self.gallery.dataset.get_fragments():
            count = fragment.count_rows()
            for start in range(0, count, size):
                units.append((fragment.fragment_id, start, min(start + size, count)))
        return units

    def read(self, unit: Unit) -> Iterator[Rows]:
        """The rows of a unit, as many at a time as `BLOCK_BYTES` hold."""
        gallery, name = self.gallery, self.column.name
        label = ["label"] if "label" in gallery.dataset.schema.names else []
        names = list(dict.fromkeys(["id", *label, name, *self.fields]))
        number, first, stop = unit
        fragment, size = fragment_of(gallery.dataset, number), _rows_at_once(self.column.dim)
        for start in range(first, stop, size):
            limit = min(size, stop - start)
            try:
                batches = list(
                    fragment.to_batches(columns=names, offset=start, limit=limit, batch_size=size)
                )
            except (OSError, ValueError, pa.ArrowException) as error:
                raise read_error(gallery, error) from None
            for batch in batches:
                rows = to_rows(batch, [name], self.fields, with_labels=True, where=gallery.path)
                rows = rows.without(self.without) if self.without else rows
                if len(rows):
                    yield rows

    def facing(
        self, queries: Rows, query: Column, unit: Unit
    ) -> Iterator[tuple[Rows, exact.ByLabel, distances.Distances]]:
        """The rows of a unit, part by part, and how labelled queries stand to them."""
        for rows in self.read(unit):
            groups = (queries.fields[self.group], rows.fields[self.group]) if self.group else None
            by = exact.by_label(queries.ids, queries.labels, rows.ids, rows.labels, groups)
            sides = distances.Distances(
                queries.vectors[query.name],
                rows.vectors[self.column.name][by.order],
                self.distance,
                one_length=self.one_length,
            )
            yield rows, by, sides


def _rows_at_once(dim: int, most: int = MAX_UNIT_ROWS) -> int:
    return max(1, min(most, BLOCK_BYTES // (4 * dim)))


def _search(
    engine: Engine,
    query_gallery: Gallery,
    query: Column,
    gallery: Gallery,
    column: Column,
    distance: str,
    *,
    group: str = "",
    without: Collection[str] = (),
    progress: str = "",
) -> two_columns.Found:
    """See `two_columns.Search`."""
    stored = _Stored(gallery, column, distance, group, frozenset(without))
    units, name = stored.units(), f"{query.name}/{column.name}"
    check_ids(lambda: (batch["id"] for batch in reading(gallery, ["id"], 65536)), gallery.path)
    if distance == "cosine":
        one_length = _has_one_length(query_gallery, query, stored, units, engine)
        stored = dataclasses.replace(stored, one_length=one_length)
    size = _rows_at_once(query.dim, MAX_BLOCK_ROWS)
    labels: list[np.ndarray] = []
    per_query: list[exact.PerQuery] = []
    num_rows, same, stop = gallery.num_rows, np.zeros(3, np.int64), 0
    total = 2 * -(-query_gallery.num_rows // size) * gallery.num_rows
    with tqdm(total=total, desc=progress, unit="row", disable=None if progress else True) as bar:
        for rows in _blocks(query_gallery, query, size, stored):
            assert rows.labels is not None
            labels.append(rows.labels)
            start, stop = stop, stop + len(rows)
            labelled = np.flatnonzero([label is not None for label in rows.labels])
            if not len(labelled):
                continue
            block, block_name = rows.take(labelled), f"{name}, queries {start} to {stop}"
            of_block, num_rows, counted = _search_block(
                block, query, stored, units, engine, bar.update, block_name
            )
            same += counted
            per_query.append(dataclasses.replace(of_block, position=start + labelled))
    two_columns.check_left(gallery, num_rows, stop)
    two_columns.check_labelled(query_gallery, np.concatenate(labels))
    joined = (
        np.concatenate([getattr(one, field.name) for one in per_query])
        for field in dataclasses.fields(exact.PerQuery)
    )
    return two_columns.Found(exact.PerQuery(*joined), np.concatenate(labels), num_rows, same)


def _blocks(gallery: Gallery, column: Column, size: int, stored: _Stored) -> Iterator[Rows]:
    """The queries, up to `size` at a time."""
    read = gallery.batches([column.name], size, with_labels=True, fields=stored.fields)
    return (rows.without(stored.without) if stored.without else rows for rows in read)


def _has_one_length(
    gallery: Gallery, column: Column, stored: _Stored, units: Sequence[Unit], engine: Engine
) -> bool:
    """Whether all rows of both sides have one length, as codes of -1 and 1 do. Mostly the first
    queries say that they have not."""
    low, high = np.inf, 0.0
    for rows in _blocks(gallery, column, MAX_BLOCK_ROWS, stored):
        assert rows.labels is not None
        labelled = [label is not None for label in rows.labels]
        lengths = pairs.lengths(rows.vectors[column.name][labelled])
        low, high = lengths.min(initial=low), lengths.max(initial=high)
        if low < high:
            return False
    measure = functools.partial(_lengths, stored)
    for _, (least, most) in engine(measure, units, lambda count: None, "lengths of rows"):
        low, high = min(low, least), max(high, most)
    return low >= high


def _search_block(
    queries: Rows,
    query: Column,
    stored: _Stored,
    units: Sequence[Unit],
    engine: Engine,
    tick: Tick,
    name: str,
) -> tuple[exact.PerQuery, int, np.ndarray]:
    """What each of some queries achieved, the gallery's rows, and the counts of `same_ids`."""
    count = len(queries)
    of_units = engine(
        functools.partial(_own_rows, queries, query, stored), units, tick, f"{name}: own rows"
    )
    # In one order, whichever is finished first.
    own = list(map(dict(of_units).__getitem__, units))
    has_own = np.logical_or.reduce([one.has_own for one in own])
    num_rows = sum(one.num_rows for one in own)
    same = np.sum([one.same for one in own], axis=0)
    asked = np.concatenate([one.query for one in own])
    distance = np.concatenate([one.distance for one in own])
    del own
    order = np.lexsort((distance, asked))
    asked, distance = asked[order], distance[order]
    offset = np.searchsorted(asked, np.arange(count + 1))
    of_all = np.zeros(len(distance), np.int64)
    counting = functools.partial(_count, queries, query, stored, distance, offset)
    for _, counts in engine(counting, units, tick, f"{name}: ranks"):
        of_all += counts
    # Rows at one distance are counted together: up to the last of them.
    changes = (asked[1:] != asked[:-1]) | (distance[1:] != distance[:-1])
    ends = np.append(np.flatnonzero(changes), len(asked) - 1)
    upto = ends[np.searchsorted(ends, np.arange(len(asked)))]
    rank, precision = metrics.rank_and_precision(upto + 1 - offset[asked], of_all, offset)
    return exact.PerQuery(np.arange(count), rank, precision, has_own), num_rows, same


# On the workers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Own:
    """Rows of the queries' own labels among those of a unit.

    query: int32 [n], the queries, and distance: float64 [n], how far each is. has_own: bool
    [queries], whether there is a row of its id. num_rows: of the unit. same: of `same_ids.count`.
    """

    query: np.ndarray
    distance: np.ndarray
    has_own: np.ndarray
    num_rows: int
    same: np.ndarray


def _own_rows(queries: Rows, query: Column, stored: _Stored, unit: Unit, tick: Tick) -> _Own:
    count = len(queries)
    asked, apart = [np.empty(0, np.int32)], [np.empty(0)]
    has_own, num_rows, same = np.zeros(count, bool), 0, np.zeros(3, np.int64)
    for rows, by, sides in stored.facing(queries, query, unit):
        sizes = by.last - by.first
        number = np.repeat(np.arange(count), sizes)
        row = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes - by.first, sizes)
        of_group = (by.same[0][number] <= row) & (row < by.same[1][number])
        kept = (row != by.own[number]) & ~of_group
        asked.append(number[kept].astype(np.int32))
        apart.append(sides.exact(number[kept], row[kept]))
        has_own |= by.own >= 0
        num_rows += len(rows)
        own = np.where(by.own >= 0, by.order[by.own], -1)
        same += same_ids.count(queries, query, rows, stored.column, own)
        tick(len(rows))
    return _Own(np.concatenate(asked), np.concatenate(apart), has_own, num_rows, same)


def _count(
    queries: Rows,
    query: Column,
    stored: _Stored,
    distance: np.ndarray,
    offset: np.ndarray,
    unit: Unit,
    tick: Tick,
) -> np.ndarray:
    """How many rows of a unit are no farther than each distance: int64 [n].

    distance: float64 [n]; those of query i, ascending, stand from offset[i] to offset[i + 1].
    """
    counts = np.zeros(len(distance), np.int64)
    for rows, by, sides in stored.facing(queries, query, unit):
        for part in distances.blocks(len(queries), len(rows)):
            table = sides.block(part, by.own[part])
            by.leave_out(table.entries, part)
            start, stop = offset[part.start], offset[part.stop]
            own = offset[part.start : part.stop + 1] - start
            counts[start:stop] += _no_farther(table, distance[start:stop], own)
        tick(len(rows))
    return counts


def _lengths(stored: _Stored, unit: Unit, tick: Tick) -> tuple[float, float]:
    """The least and the greatest length of a unit's rows."""
    low, high = np.inf, 0.0
    for rows in stored.read(unit):
        lengths = pairs.lengths(rows.vectors[stored.column.name])
        low, high = lengths.min(initial=low), lengths.max(initial=high)
    return float(low), float(high)


def _no_farther(table: distances.Block, distance: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """How many rows of a block are no farther from their query than each of some distances.

    Args:
      distance: float64 [n], of `Distances.exact`; those of query i of the block, ascending, stand
        from offset[i] to offset[i + 1].

    Returns:
      int64 [n].
    """
    asked = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
    own = table.of.own[table.part][asked]
    scaled = distance / table.of.scale
    mark = scaled - own
    # What entries may be off by, and distances: cosines are rounded to 44 bits.
    slack = table.of.slack(asked + table.part.start, mark) + 2.0**-42 * scaled + 2.0**-50 * own
    counts = np.empty(len(distance), np.int64)
    # Marks with rows that are too close to them to tell, in groups that share no row.
    group = np.full(len(distance), -1)
    close: list[tuple[np.ndarray, ...]] = []
    groups = 0
    for at, (start, stop) in enumerate(zip(offset[:-1], offset[1:], strict=True)):
        if start == stop:
            continue
        widest = slack[start:stop].max()
        low, high = mark[start:stop] - widest, mark[start:stop] + widest
        columns = np.flatnonzero(table.entries[at] <= high[-1])
        near = table.entries[at].take(columns).astype(np.float64)
        ordered = np.sort(near)
        below = ordered.searchsorted(low)
        upto = ordered.searchsorted(high, side="right")
        first = np.append(True, below[1:] >= upto[:-1])
        begin, number = np.flatnonzero(first), np.cumsum(first) - 1
        end = np.append(begin[1:], len(first)) - 1
        # All rows in front of a group are nearer than all its marks.
        counts[start:stop] = below[begin][number]
        if (upto > below).any():
            members, of_member = distances.between(near, low[begin], high[end])
            close.append((np.full(len(members), at), columns[members], groups + of_member))
            group[start:stop] = groups + number
            groups += len(begin)
    if close:
        query, row, of_row = (np.concatenate(parts) for parts in zip(*close, strict=True))
        marks = np.flatnonzero(group >= 0)
        apart = table.exact(query, row)
        counts[marks] += _no_greater(apart, of_row, distance[marks], group[marks])
    return counts


def _no_greater(
    values: np.ndarray, of_value: np.ndarray, marks: np.ndarray, of_mark: np.ndarray
) -> np.ndarray:
    """How many values of its own group are no greater than each mark: int64 [m].

    Args:
      values, of_value: float64 [n], and their groups, int [n]. marks, of_mark: the same of m marks.
    """
    is_mark = np.repeat([False, True], [len(values), len(marks)])
    group = np.concatenate([of_value, of_mark])
    order = np.lexsort((is_mark, np.concatenate([values, marks]), group))
    so_far = np.empty(len(order), np.int64)
    so_far[order] = np.cumsum(~is_mark[order])
    return so_far[is_mark] - np.searchsorted(np.sort(of_value), of_mark)
