"""A query column against a gallery column: the record of results.json."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column, check_spaces
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import metrics, same_ids
from fct_tf.retrieval.exact import PerQuery, Side, per_query, row_numbers


class Approximate(Protocol):
    """A search with an index, in place of the exact one."""

    def check(self, gallery: Gallery, column: Column, distance: str) -> None:
        """Raises `InputError` if the index is not of this column at this version."""

    def per_query(
        self, query: Side, stored: Side, distance: str, *, max_rank: int, seed: int
    ) -> tuple[PerQuery, dict]:
        """As `per_query` of (vectors, ids, labels) twice, and `search` for results.json."""
        ...


@dataclass(frozen=True)
class Found:
    """What queries found in a gallery.

    labels: object [queries], of all of them. num_rows: of the gallery. same: int64 [3], what
    `same_ids.count` says. how: `search` of results.json.
    """

    per_query: PerQuery
    labels: np.ndarray
    num_rows: int
    same: np.ndarray
    how: object = "exact"


class Search(Protocol):
    def __call__(
        self,
        query_gallery: Gallery,
        query: Column,
        gallery: Gallery,
        column: Column,
        distance: str,
        *,
        group: str,
        without: Collection[str],
        progress: str,
    ) -> Found:
        """Searches a gallery's column with all rows of a query column, exactly.

        Args:
          group: as `exclude_same` of `evaluate_queries`, as are `without` and `progress`.
        """
        ...


def evaluate(
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    gallery_column: str,
    **settings,
) -> dict:
    """The results.json record of queries (`query_column`) against a gallery column.

    Settings and errors: see `evaluate_queries`, which returns what each query achieved as well.
    """
    return evaluate_queries(query_gallery, query_column, gallery, gallery_column, **settings)[0]


def evaluate_queries(
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    gallery_column: str,
    *,
    ks: Sequence[int] = (1, 5),
    distance: str | None = None,
    approximate: Approximate | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    without: Collection[str] = (),
    exclude_same: str = "",
    allow_space_mismatch: bool = False,
    progress: str = "",
    searching: Search | None = None,
) -> tuple[dict, PerQuery, np.ndarray]:
    """Evaluates a query column against a gallery column.

    Args:
      query_gallery, gallery: may be the same gallery; a query's own id is removed.
      ks: CMC is reported at these ranks.
      distance: `l2` or `cosine`; None takes the gallery column's.
      approximate: search with an index (CMC only, with the index's recall against exact), see
        `fct_tf.ann.evaluation.searching`; None: exact search.
      bootstrap: resamples for the 95 % intervals; 0 for none.
      seed: of the resamples.
      without: ids that are left out of queries and gallery.
      exclude_same: a column of strings or whole numbers of both galleries, such as `camera`: rows
        of a query's own label and the same value there do not count for it; empty: all do.
      allow_space_mismatch: compare different spaces all the same.
      progress: label of the progress bar; none when empty.
      searching: exact too, but for a gallery that no process holds in memory, see
        `fct_tf.retrieval.in_parts.searching`; None: with all rows in memory.

    Returns:
      (record of results.json, what each labelled query achieved, labels object [queries]).

    Raises:
      InputError: spaces or dimensions that do not fit, no rows, no labelled query, bad rows.
    """
    if not ks or min(ks) < 1:
        raise InputError(f"ks {list(ks)}: ranks start at 1")
    a, b = query_gallery.column(query_column), gallery.column(gallery_column)
    check_spaces(a, b, allow_mismatch=allow_space_mismatch)
    for gallery_read in (query_gallery, gallery):
        gallery_read.check_rows()
    distance = distance or b.distance
    if exclude_same and approximate:
        raise InputError(
            f"exclude_same={exclude_same}: goes with an exact search of all rows; leave one out"
        )
    if approximate:
        if searching:
            raise InputError(
                "``engine=spark``: goes with an exact search of all rows; leave it out"
            )
        approximate.check(gallery, b, distance)
    for side in (gallery, query_gallery) if exclude_same else ():
        side.check_group(exclude_same, "exclude_same")
    sides = (query_gallery, a, gallery, b, distance)
    if searching:
        searched = searching(*sides, group=exclude_same, without=without, progress=progress)
    elif approximate:
        searched = _in_memory(*sides, without=without, approximate=(approximate, max(ks), seed))
    else:
        searched = _in_memory(*sides, group=exclude_same, without=without, progress=progress)
    of_each, labels = searched.per_query, searched.labels
    warning = same_ids.told(searched.same)
    if warning and not is_same(query_gallery, gallery):
        logging.warning("%s and %s: %s", query_gallery.path, gallery.path, warning)
    if not (of_each.rank > 0).any():
        logging.warning(
            "no query of %s has a row of its label in %s", query_gallery.path, gallery.path
        )
    record = {
        "query": describe(query_gallery, a),
        "gallery": describe(gallery, b),
        "num_queries": len(of_each.position),
        "num_queries_without_label": len(labels) - len(of_each.position),
        "num_queries_without_match": int(np.sum(of_each.rank == 0)),
        "num_self_removed": int(np.sum(of_each.self_removed)),
        "num_gallery": searched.num_rows,
        "distance": distance,
        **({"exclude_same": exclude_same} if exclude_same else {}),
        "search": searched.how,
        "cmc": metrics.cmc(of_each.rank, ks),
        "map": metrics.mean_average_precision(of_each.average_precision),
        "confidence": confidence(of_each, ks, bootstrap, seed),
    }
    return record, of_each, labels


def _in_memory(
    query_gallery: Gallery,
    query: Column,
    gallery: Gallery,
    column: Column,
    distance: str,
    *,
    group: str = "",
    without: Collection[str] = (),
    progress: str = "",
    approximate: tuple[Approximate, int, int] | None = None,
) -> Found:
    """As a `Search`; `approximate` is a search with an index, its largest rank and its seed."""
    same = is_same(query_gallery, gallery)
    fields = [group] if group else []
    also = {query.name} - {column.name} if same else ()
    rows = gallery.read([column.name, *also], with_labels=True, fields=fields)
    queries = rows if same else query_gallery.read([query.name], with_labels=True, fields=fields)
    if len(without):
        without = set(without)
        rows = rows.without(without)
        queries = rows if same else queries.without(without)
        check_left(gallery, len(rows), len(queries))
    labels, gallery_labels = queries.labels, rows.labels
    assert labels is not None and gallery_labels is not None
    check_labelled(query_gallery, labels)
    asked = (queries.vectors[query.name], queries.ids, labels)
    stored = (rows.vectors[column.name], rows.ids, gallery_labels)
    how: object = "exact"
    if approximate:
        index, max_rank, seed = approximate
        of_each, how = index.per_query(asked, stored, distance, max_rank=max_rank, seed=seed)
    else:
        groups = (queries.fields[group], rows.fields[group]) if group else None
        of_each = per_query(*asked, *stored, distance, progress=progress, groups=groups)
    own = np.full(len(queries), -1) if same else row_numbers(queries.ids, rows.ids)
    own[[label is None for label in labels]] = -1
    counts = same_ids.count(queries, query, rows, column, own)
    return Found(of_each, labels, len(rows), counts, how)


def is_same(query_gallery: Gallery, gallery: Gallery) -> bool:
    """Whether queries come from the very table that they search."""
    return query_gallery.dataset is gallery.dataset or (
        query_gallery.path == gallery.path and query_gallery.version == gallery.version
    )


def check_labelled(gallery: Gallery, labels: np.ndarray) -> None:
    """Refuses queries none of which has a label. labels: object [queries]."""
    if all(label is None for label in labels):
        raise InputError(
            f"{gallery.path}: no query has a label; evaluation needs labels, import the "
            "embeddings with import_gallery --labels into a new gallery"
        )


def check_left(gallery: Gallery, *counts: int) -> None:
    """Refuses to search where no query or no row is left, given how many there are of each."""
    if not all(counts):
        raise InputError(f"{gallery.path}: no row is left without those that are left out")


def describe(gallery: Gallery, column: Column) -> dict:
    """Which column of which version of which gallery, for results.json."""
    return {
        "path": gallery.path,
        "version": gallery.version,
        "column": column.name,
        "space": column.space,
        "model": column.model,
    }


def confidence(found: PerQuery, ks: Sequence[int], resamples: int, seed: int) -> dict | None:
    """95 % bootstrap intervals over the queries with a match, as in results.json."""
    ranked = found.rank > 0
    if not resamples or not ranked.any():
        return None
    values = [found.rank[ranked] <= k for k in ks] + [found.average_precision[ranked]]
    low, high = metrics.bootstrap(np.stack(values, axis=1).astype(np.float64), resamples, seed)
    intervals = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    has_mean = not np.isnan(found.average_precision[ranked]).any()
    return {
        "level": 0.95,
        "resamples": resamples,
        "cmc": {str(k): interval for k, interval in zip(ks, intervals, strict=False)},
        "map": intervals[-1] if has_mean else None,
    }
