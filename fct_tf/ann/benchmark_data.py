"""What is searched in a benchmark, and for what: rows, queries, and true neighbours if known."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from absl import logging

from fct_tf.ann.across import Case
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import NO_DIRECTION, Rows, check_spaces, named_rows, without_direction
from fct_tf.gallery.reader import Gallery


@dataclass(frozen=True)
class Data:
    """name. distance: `l2` or `cosine`. rows: float32 [n, d]. queries: float32 [q, d].

    neighbors: int64 [q, m], the nearest rows of each query, or None where they are to be found.
    numbers: int64 [n], what a row is called outside, or None: its place. See `searchable`.
    """

    name: str
    distance: str
    rows: np.ndarray
    queries: np.ndarray
    neighbors: np.ndarray | None = None
    numbers: np.ndarray | None = None

    def first(self, count: int) -> "Data":
        """The same with the first `count` queries; 0 is all of them."""
        if not count:
            return self
        neighbors = None if self.neighbors is None else self.neighbors[:count]
        return replace(self, queries=self.queries[:count], neighbors=neighbors)

    def outside(self, found: np.ndarray) -> np.ndarray:
        """Rows found, int64, by their numbers; -1 stays."""
        if self.numbers is None:
            return found
        return np.where(found >= 0, self.numbers[found], -1)


def searchable(data: Data) -> Data:
    """The data without rows that have no cosine with anything, where that is the distance.

    Published sets have such rows (zeros). No library finds them for good reason, some refuse them.
    """
    bad = without_direction(data.rows) if data.distance == "cosine" else np.zeros(0, bool)
    if not bad.any():
        return data
    row_names = named_rows(range(len(bad)), bad)
    if bad.all():
        raise InputError(f"{data.name}: every row is {NO_DIRECTION}; cosine cannot compare them")
    logging.warning(
        "%s: %s %s: left out, cosine cannot compare them", data.name, row_names, NO_DIRECTION
    )
    kept, place = np.flatnonzero(~bad), np.cumsum(~bad) - 1
    neighbors = data.neighbors
    if neighbors is not None:
        neighbors = None if bad[neighbors].any() else place[neighbors]
    return replace(data, rows=data.rows[kept], neighbors=neighbors, numbers=kept)


def of_gallery(
    gallery: Gallery,
    column: str,
    query_gallery: Gallery | None = None,
    query_column: str = "",
    *,
    num_queries: int = 1000,
    distance: str = "",
    seed: int = 0,
    allow_space_mismatch: bool = False,
) -> Data:
    """The rows of a column, searched for rows of another, or for some of its own.

    Queries are drawn at random. Rows with the id of a query are not searched: each would be its
    own nearest neighbour.

    Args:
      query_gallery: by default the gallery itself. query_column: by default `column`.
      num_queries: as many as there are if there are fewer; 0 is all, of another gallery only.
      distance: by default that of the column.
      seed: of the drawing.

    Raises:
      InputError: spaces that do not fit, no rows, or none left beside the queries.
    """
    asked = query_gallery or gallery
    queried, searched = asked.column(query_column or column), gallery.column(column)
    check_spaces(queried, searched, allow_mismatch=allow_space_mismatch)
    for one in (asked, gallery):
        one.check_rows()
    queries = asked.read([queried.name])
    count = num_queries or len(queries)
    chosen = np.random.default_rng(seed).permutation(len(queries))[:count]
    ids, vectors = set(queries.ids[chosen]), queries.vectors[queried.name][chosen]
    rows = gallery.read([column]).without(ids)
    if not len(rows):
        raise InputError(
            f"{gallery.path}: no row is left beside {len(vectors)} queries; ask for fewer by "
            "``num_queries``, or name another gallery by ``query``"
        )
    name = re.sub(r"\W+", "_", f"{Path(gallery.path).name.split('.lance')[0]}_{column}")
    return searchable(Data(name, distance or searched.distance, rows.vectors[column], vectors))


def of_cases(
    gallery: Gallery,
    cases: Sequence[Case],
    query_gallery: Gallery | None = None,
    *,
    num_queries: int = 1000,
    distance: str = "",
    seed: int = 0,
    allow_space_mismatch: bool = False,
) -> tuple[Rows, Rows, str]:
    """Queries and rows with the columns of all cases, and the distance.

    Args:
      query_gallery: by default the gallery itself: for a query its own row does not count.
      num_queries: drawn at random; as many as there are if there are fewer; 0 is all.
      distance: by default that of the columns.
      seed: of the drawing.

    Raises:
      InputError: no such column, spaces that do not fit, distances that differ, no rows.
    """
    asked = query_gallery or gallery
    for case in cases:
        pair = asked.column(case.query), gallery.column(case.gallery)
        check_spaces(*pair, allow_mismatch=allow_space_mismatch)
        if not distance and pair[1].distance != gallery.column(cases[0].gallery).distance:
            raise InputError(
                f"{gallery.path}: columns {cases[0].gallery!r} and {case.gallery!r} have two "
                "distances; give ``distance``"
            )
    for one in (asked, gallery):
        one.check_rows()
    rows = gallery.read([name for case in cases for name in case.rows], with_labels=True)
    queries = asked.read([name for case in cases for name in case.queries], with_labels=True)
    chosen = np.random.default_rng(seed).permutation(len(queries))[: num_queries or None]
    return queries.take(chosen), rows, distance or gallery.column(cases[0].gallery).distance
