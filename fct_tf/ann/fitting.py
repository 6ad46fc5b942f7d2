"""Settings that suit the rows: how many of the nearest an index finds is measured as it is built.

Codes have one scale for all rows. Where groups of rows lie far apart, codes show which group a row
is in, and not where in it: more rows have to be reordered. Where a few rows are far longer than all
others, the codes of the others are alike: the rows themselves have to be compared, those of the
leaves that are searched.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from absl import logging

from fct_tf.ann import scann_files
from fct_tf.ann.engines import Scann
from fct_tf.ann.settings import Settings
from fct_tf.retrieval import distances, pairs

# Recall@K of so many of the rows, each without itself.
K, RECALL_ROWS = 10, 100
# Where the defaults find less, more rows are reordered, as long as that gains something, and at
# most so many times as many before the rows themselves are tried.
LEAST_RECALL, LEAST_GAIN, MOST_REORDERED = 0.9, 0.02, 16
# Rows that are compared at a time.
_BLOCK_ROWS = 65536


def fitting(engine: Scann, rows: np.ndarray, distance: str, threads: int) -> tuple[Scann, float]:
    """An engine with settings that suit the rows, and its recall.

    Args:
      engine: of the rows, by the defaults. Its settings may be changed.
      rows: float32 [n, d], as the engine has them.
      distance: of which they are; to choose settings by.
      threads: that build.
    """
    usual, share = engine.settings, _enough_reordered(engine, rows)
    few = engine.settings.reordering_num_neighbors
    few = few <= MOST_REORDERED * usual.reordering_num_neighbors
    if share >= LEAST_RECALL and few:
        return engine, share
    if share < LEAST_RECALL and recall(engine, rows, usual.num_leaves) >= LEAST_RECALL:
        return engine, share  # Codes are good enough: it is leaves that are not searched.
    count, dim = rows.shape
    settings = Settings.for_rows(count, dim, distance, score="brute_force")
    other = Scann(scann_files.build(rows, settings, threads), settings, dim)
    now = recall(other, rows)
    if now < min(share, LEAST_RECALL):
        return engine, share
    logging.info(
        "codes of %d rows find %.0f %% of the nearest 10, rows of %d leaves %.0f %%",
        len(rows), 100 * share, settings.num_leaves_to_search, 100 * now,
    )  # fmt: skip
    return other, now


def _enough_reordered(engine: Scann, rows: np.ndarray) -> float:
    """Has the engine reorder more rows where that finds more of the nearest; its recall."""
    settings, share = engine.settings, recall(engine, rows)
    while share < LEAST_RECALL and settings.reordering_num_neighbors < len(rows):
        more = min(4 * settings.reordering_num_neighbors, len(rows))
        engine.settings = dataclasses.replace(settings, reordering_num_neighbors=more)
        now = recall(engine, rows)
        if now < share + LEAST_GAIN:
            break
        logging.info(
            "%d rows of %d reordered find %.0f %% of the nearest 10, %d find %.0f %%",
            settings.reordering_num_neighbors, len(rows), 100 * share, more, 100 * now,
        )  # fmt: skip
        settings, share = engine.settings, now
    engine.settings = settings
    return share


def recall(engine: Scann, rows: np.ndarray, leaves: int = 0) -> float:
    """Share of the nearest 10 of some of the rows, without themselves, that a search finds.

    Distances are compared as `distances` computes them, to all digits: however small they are
    beside the longest row, only what is as near counts, and of equal distances any row.

    Args:
      rows: float32 [n, d], as the engine has them.
      leaves: that are searched; 0: as its settings say.
    """
    own = np.arange(0, len(rows), len(rows) // RECALL_ROWS + 1)
    sample, kept = rows[own], min(K, len(rows) - 1)
    if not kept:
        return 1.0
    nearest = np.full((len(own), kept), np.inf)
    for start in _starts(len(rows)):
        block = rows[start : start + _BLOCK_ROWS]
        inside = (own >= start) & (own < start + len(block))
        sides = distances.Distances(sample, block)
        table = sides.block(slice(0, len(own)), np.where(inside, own - start, -1))
        nearest = np.sort(np.concatenate([nearest, table.nearest(kept)[1]], axis=1))[:, :kept]
    reordered = engine.settings.reordering_num_neighbors
    numbers, _ = engine.search(sample, kept + 1, max(kept + 1, reordered), leaves or -1, 1)
    asked, place = np.nonzero((numbers < len(rows)) & (numbers != own[:, None]))
    numbers = numbers[asked, place]
    apart = pairs.squared(sample[asked].astype(np.float64), rows[numbers].astype(np.float64))
    right = np.bincount(asked[apart <= nearest[asked, -1]], minlength=len(own))
    return float(np.minimum(right, kept).mean() / kept)


def _starts(count: int) -> Iterable[int]:
    return range(0, count, _BLOCK_ROWS)
