"""Blocked distances between queries and a gallery, on every core, in bounded memory.

Distances are squared L2, or 1 - cosine, from float32 matrix products. Before the product both
sides are shifted by a vector near the gallery's mean and scaled by a power of two. Neither
changes a ranking, small integers stay exact (the shift is a multiple of a power of two), and a
collapsed model, whose rows are all alike, gets equal distances instead of rounding noise.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from fct_tf.errors import InputError
from fct_tf.gallery.columns import DISTANCES

# Scores of one block, per thread.
BLOCK_BYTES = 1 << 24
# Rows that the shift and its grid are estimated from.
SAMPLE_ROWS = 4096

Scores = Callable[..., np.ndarray]


def scores(query: np.ndarray, gallery: np.ndarray, distance: str) -> tuple[float, Scores]:
    """(scale, function): the function gives float32 [block, g]; times scale it is the distance.

    Without `own_norms` the squared norm of the query is left out, which no ranking needs.
    """
    scale, query, gallery, norms = _prepared(query, gallery, distance)

    def block_scores(block: slice, own_norms: bool = False) -> np.ndarray:
        table = query[block] @ gallery.T
        np.subtract(norms, table, out=table)
        if own_norms:
            table += np.einsum("ij,ij->i", query[block], query[block])[:, None] / 4
        return table

    return scale, block_scores


def comparable(
    query: np.ndarray, galleries: Sequence[np.ndarray], distance: str
) -> Callable[[slice], list[np.ndarray]]:
    """Distances to several galleries in one ranking: gives float64 [block, g] for each.

    Each gallery has its own shift, so that its rows are ranked as by `scores`, be the others as
    far as they may. Errors as `scores`.
    """
    sides = [_prepared(query, gallery, distance) for gallery in galleries]

    def block_distances(block: slice) -> list[np.ndarray]:
        tables = []
        for scale, doubled, gallery, norms in sides:
            table = (norms - doubled[block] @ gallery.T).astype(np.float64)
            own = np.einsum("ij,ij->i", doubled[block], doubled[block], dtype=np.float64) / 4
            table += own[:, None]
            table *= scale
            tables.append(table)
        return tables

    return block_distances


def _prepared(
    query: np.ndarray, gallery: np.ndarray, distance: str
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """(scale, twice the query, gallery, its squared norms), shifted and scaled, float32."""
    if distance not in DISTANCES:
        raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            f"queries have {query.shape[1]} dimensions, gallery rows have {gallery.shape[1]}"
        )
    query, gallery = (np.asarray(side, np.float32) for side in (query, gallery))
    if distance == "cosine":
        query, gallery = _unit(query, gallery)
    shift = _shift(gallery)
    query, gallery = query - shift, gallery - shift
    largest = max(float(np.abs(part).max(initial=0)) for part in (query, gallery))
    exponent = int(np.floor(np.log2(largest))) if largest > 0 else 0
    np.ldexp(query, 1 - exponent, out=query)  # Twice the scaled query, for 2 q g.
    np.ldexp(gallery, -exponent, out=gallery)
    norms = np.einsum("ij,ij->i", gallery, gallery)
    # For unit vectors |q - g|^2 = 2 - 2 cos.
    scale = 4.0**exponent * (0.5 if distance == "cosine" else 1.0)
    return scale, query, gallery, norms


def _shift(gallery: np.ndarray) -> np.ndarray:
    """float32 [d] near the mean, on a grid of the size of the spread."""
    if not len(gallery):
        return np.zeros(gallery.shape[1], np.float32)
    sample = gallery[:: max(1, len(gallery) // SAMPLE_ROWS)].astype(np.float64)
    mean = sample.mean(axis=0)
    if (sample == sample[0]).all():
        return gallery[0].astype(np.float32)
    grid = 2.0 ** np.floor(np.log2(sample.std(axis=0).max()))
    return (np.round(mean / grid) * grid).astype(np.float32)


def _unit(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of norm 1. A zero row has cosine 0 with everything: it gets a dimension of its own."""
    units, zeros = [], []
    for side in (query, gallery):
        norms = np.linalg.norm(side.astype(np.float32, copy=False), axis=1, keepdims=True)
        zeros.append(norms[:, 0] == 0)
        units.append(side / np.where(norms == 0, 1, norms))
    if zeros[0].any() or zeros[1].any():
        nothing = [np.zeros(len(zero), np.float32) for zero in zeros]
        units[0] = np.column_stack([units[0], zeros[0].astype(np.float32), nothing[0]])
        units[1] = np.column_stack([units[1], nothing[1], zeros[1].astype(np.float32)])
    return units[0].astype(np.float32, copy=False), units[1].astype(np.float32, copy=False)


def exclude(table: np.ndarray, column: np.ndarray) -> None:
    """Puts one gallery row per query at infinity. column: int [block], -1 for none."""
    rows = np.flatnonzero(column >= 0)
    table[rows, column[rows]] = np.inf


def blocks(queries: int, gallery: int, size: int | None = None) -> Iterator[slice]:
    """Slices of the queries, of `size` or of as many as fit `BLOCK_BYTES`."""
    # At least 16: products of fewer rows read the whole gallery for too little work.
    size = size or max(16, min(1024, BLOCK_BYTES // (4 * max(1, gallery))))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def run(work: Callable[[slice], None], blocks: Iterator[slice], progress: str = "") -> None:
    """Runs `work` on every block in one thread per core: NumPy sorts without Python's lock."""
    todo = list(blocks)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(max(1, min(threads or 1, len(todo)))) as pool:
        done = pool.map(work, todo)
        for _ in tqdm(done, progress, len(todo), disable=None if progress else True):
            pass
