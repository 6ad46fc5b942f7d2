"""CMC from an index, and how many of the true neighbours it finds."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fct_tf.ann import manifests, scann_files
from fct_tf.ann.index import Index, open_index
from fct_tf.ann.merged import Merged
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column, without_direction
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import distances, exact

# Queries that the recall is measured with.
RECALL_QUERIES = 1000
# As results.json names them.
_NAMES = {"reordering_num_neighbors": "reorder"}


@dataclasses.dataclass
class Searching:
    """What `two_columns.evaluate_queries` asks: CMC by an index on disk or in memory."""

    index: Index | None

    def check(self, gallery: Gallery, column: Column, distance: str) -> None:
        if self.index:
            check_index(self.index, gallery, column, distance)

    def per_query(
        self, query: exact.Side, stored: exact.Side, distance: str, *, max_rank: int, seed: int
    ) -> tuple[exact.PerQuery, dict]:
        return per_query(*query, *stored, distance, max_rank=max_rank, index=self.index, seed=seed)


def searching(index: str = "") -> Searching | None:
    """Evaluation by ScaNN, for `two_columns.evaluate_queries`.

    Args:
      index: path of an index of the gallery column; empty: one is built in memory.

    Returns:
      None, with a warning, where ScaNN does not load: search is exact then.

    Raises:
      InputError: no index there.
    """
    opened = open_index(index) if index else None
    return Searching(opened) if scann_files.available() else None


def check_index(index: Index, gallery: Gallery, column: Column, distance: str) -> None:
    """Refuses an index that is not of this column at this version.

    Raises:
      InputError: says what it is of.
    """
    own = index.column
    if (own.name, own.space) != (column.name, column.space):
        raise InputError(
            f"{index.path}: is of column {own.name!r} in space {own.space}, not of {column.name!r} "
            f"in {column.space}; name its index, or build it with build_index"
        )
    if own.distance != distance:
        raise InputError(f"{index.path}: has distance {own.distance}, not {distance}")
    stale = index.difference(gallery)
    if stale.count:
        raise InputError(
            f"{index.path}: is of version {index.version} of its gallery, {gallery.path} is at "
            f"{gallery.version} ({stale}); run build_index --update first"
        )


def per_query(
    query: np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    query_labels: Sequence[str | None] | np.ndarray,
    gallery: np.ndarray,
    gallery_ids: Sequence[str] | np.ndarray,
    gallery_labels: Sequence[str | None] | np.ndarray,
    distance: str = "l2",
    *,
    max_rank: int = 5,
    settings: Settings | None = None,
    index: Index | None = None,
    seed: int = 0,
) -> tuple[exact.PerQuery, dict]:
    """Rank of the nearest match that ScaNN finds, for every labelled query.

    Ranks are as `exact.per_query` defines them, but only those up to `max_rank` are told apart:
    a query whose match is farther, or not found, has rank g + 1. Average precision is NaN: it
    needs the whole ranking. Arguments as there, and

    Args:
      settings: of an index built for this in memory; by default those for the rows.
      index: the index of these rows, instead.

    Returns:
      (results, description for results.json: settings, and recall@k of `RECALL_QUERIES`
      queries against exact search).
    """
    searcher, rows = _searcher(gallery, gallery_ids, distance, settings, index)
    codes, gallery_codes = exact.label_codes(query_labels, gallery_labels)
    labelled = np.flatnonzero(codes > -2)
    own = exact.row_numbers(query_ids, gallery_ids)[labelled]
    # Twice the rank, and one for the own row: ties at the end of a shorter list could hide rows
    # that count.
    k = 2 * max_rank + 1
    numbers, _ = searcher.search(query[labelled], k)
    indices = np.where(numbers >= 0, rows[numbers], -1)
    rank = ranks(
        *(query[labelled], codes[labelled], own, gallery, gallery_codes, indices, distance),
        max_rank=max_rank,
    )
    sample = np.random.default_rng(seed).permutation(len(labelled))[:RECALL_QUERIES]
    true, _ = exact.search(query[labelled[sample]], gallery, max_rank, distance, own[sample])
    others = np.where(indices[sample] == own[sample, None], -1, indices[sample])
    first = np.argsort(others < 0, axis=1, kind="stable")[:, :max_rank]
    description = {
        "name": "scann",
        **described(searcher.settings),
        "recall": recall(np.take_along_axis(others, first, axis=1), true),
        "recall_at": max_rank,
        "recall_queries": len(sample),
    }
    if index:
        description["index"] = {"path": index.path, "generation": index.manifest["generation"]}
        shards = manifests.shards(index.manifest)
        description["index"] |= {"shards": len(shards)} if shards else {}
    missing = np.full(len(labelled), np.nan)
    return exact.PerQuery(labelled, rank, missing, own >= 0), description


def ranks(
    query: np.ndarray,
    codes: np.ndarray,
    own: np.ndarray,
    gallery: np.ndarray,
    gallery_codes: np.ndarray,
    found: np.ndarray,
    distance: str,
    *,
    max_rank: int,
) -> np.ndarray:
    """Rank of the nearest match among the rows found, int64 [q]; as `per_query` tells it.

    Args:
      query, gallery: float [q, d] and [g, d].
      codes, gallery_codes: labels as numbers, see `exact.label_codes`.
      own: int64 [q], the row that does not count for a query, -1 for none.
      found: int64 [q, k], -1 for none; k is 2 * max_rank + 1.
    """
    # What was found is ranked by its exact distances.
    near = np.full(found.shape, np.inf)
    asked, place = np.nonzero((found >= 0) & (found != own[:, None]))
    near[asked, place] = distances.Distances(query, gallery, distance).exact(
        asked, found[asked, place]
    )
    match = gallery_codes[found] == codes[:, None]
    match &= np.isfinite(near) & (codes[:, None] >= 0)
    nearest = np.where(match, near, np.inf).min(axis=1)
    before = (near <= nearest[:, None]) & ~match & np.isfinite(near)
    rank = np.where(np.isfinite(nearest), 1 + before.sum(axis=1), len(gallery) + 1)
    # A tie that the list cuts off counts against the match, as all ties do.
    last = np.where(np.isfinite(near), near, -np.inf).max(axis=1)
    cut = (found[:, -1] >= 0) & (nearest >= last)
    rank[cut | (rank > max_rank)] = len(gallery) + 1
    matches = np.bincount(gallery_codes[gallery_codes >= 0], minlength=codes.max(initial=0) + 1)
    itself = (own >= 0) & (gallery_codes[own] == codes)
    rank[(codes < 0) | (matches[codes] - itself <= 0)] = 0
    return rank


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Mean share of the true neighbours that were found. int [q, k] both, -1 for none."""
    shares = [
        np.isin(right[right >= 0], row).mean()
        for row, right in zip(found, true, strict=True)
        if (right >= 0).any()
    ]
    return float(np.mean(shares)) if shares else 0.0


def _searcher(
    gallery: np.ndarray, ids, distance: str, settings: Settings | None, index: Index | None
) -> tuple[Searcher | Merged, np.ndarray]:
    """A searcher of the rows, and the number in the gallery of each of its own: int64 [n]."""
    if index:
        return index.searcher, exact.row_numbers(index.ids.to_pylist(), ids)
    kept = np.arange(len(gallery))
    # Rows without direction are at distance 1 of all; ScaNN would put them nearer.
    if distance == "cosine" and without_direction(gallery).any():
        kept = np.flatnonzero(~without_direction(gallery))
        if not len(kept):
            raise InputError("cosine: no row has a direction (all are zeros); there is no index")
        gallery = gallery[kept]
    return Searcher.build(gallery, distance, settings), kept


def described(settings: Settings) -> dict:
    """The settings as results.json has them: the usual three, and what is not as usual."""
    names = ("num_leaves", "num_leaves_to_search", "reordering_num_neighbors")
    record = {_NAMES.get(name, name): getattr(settings, name) for name in names}
    if settings.is_exact:
        return record
    sizes = ("training_sample_size", "ah_training_sample_size")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in (*names, *sizes) and value != field.default:
            record[field.name] = value
    return record
