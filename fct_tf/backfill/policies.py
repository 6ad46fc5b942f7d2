"""Which rows to backfill first: one pure function per policy.

A policy puts rows that are still transformed in order, those to embed first at the front. Ties
are broken by the keyed hash of the row's id that `fct_tf.upgrade.sample.order` sorts by, so that
an order is a function of the seed and the rows, never of how the table stores them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.gallery.ids import looks_like, places
from fct_tf.upgrade import sample


@dataclass(frozen=True)
class Candidates:
    """The rows of a transformed column that have not been backfilled.

    ids: object [n] of str. log_variance: float32 [n], what the transformation said of its error;
    None where it says nothing. distance: float64 [n], how far the transformed embedding is from
    the new model's own; None where that is not known.
    """

    ids: np.ndarray
    log_variance: np.ndarray | None = None
    distance: np.ndarray | None = None


Policy = Callable[[Candidates, int], np.ndarray]


def random(rows: Candidates, seed: int) -> np.ndarray:
    """Any order: the baseline. int64 [n]."""
    return sample.order(rows.ids, seed)


def uncertainty(rows: Candidates, seed: int) -> np.ndarray:
    """The largest log-variance first (FastFill, arXiv 2303.04766, section 3.3): int64 [n]."""
    if rows.log_variance is None:
        raise InputError(
            "policy uncertainty: the column has no log-variance beside it; upgrade with a FastFill "
            "transformation, or take another policy"
        )
    return _descending(rows.log_variance, rows.ids, seed)


def distance(rows: Candidates, seed: int) -> np.ndarray:
    """The largest |transformed - new| first: int64 [n].

    An oracle: whoever has the new embeddings need not backfill. It bounds what an order by the
    error can gain.
    """
    if rows.distance is None:
        raise InputError(
            "policy distance: needs the new model's own embeddings of all rows; name their column "
            "with ``target_column``"
        )
    return _descending(rows.distance, rows.ids, seed)


POLICIES: dict[str, Policy] = {"uncertainty": uncertainty, "random": random, "distance": distance}
RANKS = "ranks"  # Learns from the rows backfilled so far: `fct_tf.backfill.priority`.
NAMES = (*POLICIES, RANKS)
FILE = "file:"


def check(policy: str, where: str) -> None:
    """Refuses what is no policy: neither one of `NAMES` nor `file:PATH`."""
    if policy not in NAMES and not (policy.startswith(FILE) and policy != FILE):
        names = ", ".join([*NAMES, f"{FILE}PATH"])
        raise InputError(f"{where}: unknown policy {policy!r}; choose one of {names}")


def order(
    policy: str,
    rows: Candidates,
    seed: int,
    known: np.ndarray | None = None,
    *,
    every_row: bool = False,
) -> np.ndarray:
    """The rows in the order of a policy other than `ranks`: int64 [n], fewer where a file says so.

    A file names one id a line. Rows that it does not name are left out, and so are named rows
    that are backfilled already; a repeated id counts where it stands first, and empty lines do
    not count.

    Args:
      rows: to choose from.
      known: object [m] of str, all ids of the gallery; those of `rows` by default.
      every_row: refuse a file that does not name every row once.

    Raises:
      InputError: the policy lacks what it orders by; no such file, no id in it, or an id that the
        gallery does not have, with its line.
    """
    if not policy.startswith(FILE):
        return POLICIES[policy](rows, seed)
    path, known = policy.removeprefix(FILE), rows.ids if known is None else known
    lines = read_lines(path, f"``policy={policy}``")
    for number, (name, place) in enumerate(zip(lines, places(lines, known), strict=True), 1):
        if name and place < 0:
            raise InputError(
                f"{path}: line {number}: the gallery has no row {name!r}; give one id a line"
                f"{looks_like(name, known)}"
            )
    lines = [name for name in lines if name]
    if not lines:
        raise InputError(f"{path}: names no row; give one id a line")
    named = list(dict.fromkeys(lines))
    if every_row and len(named) < len(lines):
        twice = next(name for name in named if lines.count(name) > 1)
        raise InputError(f"id {twice!r} is more than once in {path}; a curve needs every row once")
    if every_row and len(named) < len(rows.ids):
        left_out = rows.ids[places(rows.ids, named) < 0][0]
        raise InputError(f"id {left_out!r} is not in {path}; a curve needs every row once")
    positions = places(named, rows.ids)
    return positions[positions >= 0]


def moved(transformed: np.ndarray, new: np.ndarray, distance: str) -> np.ndarray:
    """|transformed - new| of each row, at length one where the distance is `cosine`: float64 [n].

    Args:
      transformed, new: float [n, d].
      distance: `l2` or `cosine`.
    """
    a, b = transformed.astype(np.float64), new.astype(np.float64)
    if distance == "cosine":
        a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (a, b))
    return np.linalg.norm(a - b, axis=1)


def _descending(values: np.ndarray, ids: np.ndarray, seed: int) -> np.ndarray:
    first = sample.order(ids, seed)
    return first[np.argsort(-values[first], kind="stable")]
