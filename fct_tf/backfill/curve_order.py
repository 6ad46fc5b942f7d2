"""The rows of a gallery in the order of policies, as backfilling curves replace them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fct_tf.backfill import curves, priority
from fct_tf.backfill.policies import NAMES, POLICIES, RANKS, Candidates, moved
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.gallery.columns import Column, Rows
from fct_tf.gallery.ids import looks_like
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import exact


@dataclass(frozen=True)
class Order:
    """Rows of a gallery in the order of a policy; `number` counts random orders from 0."""

    policy: str
    number: int | None
    rows: np.ndarray


def of_policies(
    policies: Sequence[str],
    rows: Rows,
    column: str,
    target_column: str,
    sources: Sequence[str],
    *,
    distance: str,
    random_orders: int,
    seed: int,
) -> list[Order]:
    """The orders of all policies, in theirs; `random_orders` of `random`.

    Functions of the seed and the ids, ties too, never of how the table stores its rows.

    Args:
      rows: with the columns named next, and `column`_log_variance where there is one.
      column, target_column, policies, distance, random_orders, seed: as
        `policy_curves.evaluate`.
      sources: columns that `column` was made of, for `ranks`.

    Raises:
      InputError: a policy lacks what it orders by, or a file's ids are not the rows'.
    """
    before, after = rows.vectors[column], rows.vectors[target_column]
    found = []
    for policy in policies:
        if policy == RANKS:
            found.append(Order(policy, None, _learnt(rows, sources, before, after, seed)))
        elif policy == "random":
            for number in range(random_orders):
                mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
                order = POLICIES[policy](Candidates(rows.ids), int(mixed))
                found.append(Order(policy, number, order))
        elif policy in POLICIES:
            # A log-variance of NaN, of rows that are backfilled already, comes last.
            certainty = rows.fields.get(f"{column}_log_variance")
            candidates = Candidates(rows.ids, certainty, moved(before, after, distance))
            found.append(Order(policy, None, POLICIES[policy](candidates, seed)))
        else:
            found.append(Order(policy, None, _of_file(policy.removeprefix("file:"), rows.ids)))
    return found


def made_of(gallery: Gallery, column: Column, wanted_by: str) -> list[str]:
    """The columns that a transformed column was made of: source, and side-information if any.

    Args:
      wanted_by: what needs them, for the error message.

    Raises:
      InputError: it is not recorded, or they are not there any more.
    """
    names = [str(source.get("column")) for source in column.created_by.get("source", [])]
    spaces = [source.get("space") for source in column.created_by.get("source", [])]
    for name, space in zip(names, spaces, strict=True):
        if name not in gallery.columns or gallery.columns[name].space != space:
            raise InputError(
                f"{gallery.path}: {wanted_by}: column {column.name!r} was made of {name!r}, which "
                "is gone or another one by now; leave them out"
            )
    if not names:
        raise InputError(
            f"{gallery.path}: {wanted_by}: column {column.name!r} does not say what it was made "
            "of; upgrade the gallery with upgrade_gallery, or leave them out"
        )
    return names


def check_policies(
    policies: Sequence[str], random_orders: int, corrected: Sequence[str], where: str
) -> None:
    """Refuses unknown or repeated policies, random ones without an order, others to correct."""
    for policy in policies:
        if policy not in NAMES and not re.match("file:.", policy):
            raise InputError(
                f"{where}: unknown policy {policy!r}; name some of {', '.join(NAMES)} and file:PATH"
            )
        if list(policies).count(policy) > 1:
            raise InputError(f"{where}: {policy} is named twice")
    if "random" in policies and random_orders < 1:
        raise InputError(f"{where}: random needs at least one order")
    for policy in corrected:
        if policy not in policies:
            raise InputError(f"{where}: {policy} shall be corrected but is no policy; name it too")


def _learnt(
    rows: Rows, sources: Sequence[str], transformed: np.ndarray, new: np.ndarray, seed: int
) -> np.ndarray:
    """The order of `ranks` where every point of the curve learns from the rows before it."""
    vectors = [rows.vectors[name] for name in sources]
    *_, order = priority.in_rounds(
        rows.ids,
        vectors[0],
        transformed,
        new,
        curves.replaced(len(rows))[1:],
        side_info=vectors[1] if len(vectors) > 1 else None,
        seed=seed,
    )
    return order


def _of_file(path: str, ids: np.ndarray) -> np.ndarray:
    """Row numbers in the order of a file that names each row once, one id a line: int64 [n]."""
    listed = lines(path)
    number = exact.row_numbers(listed, ids)
    unknown = np.flatnonzero(number < 0)
    if len(unknown):
        name = listed[unknown[0]]
        raise InputError(
            f"no row has the id {name!r} of {path}:{unknown[0] + 1}{looks_like(name, ids)}"
        )
    times = np.bincount(number, minlength=len(ids))
    if (times != 1).any():
        at = int(np.flatnonzero(times != 1)[0])
        told = "more than once" if times[at] else "not"
        raise InputError(f"id {ids[at]!r} is {told} in {path}; a curve needs every row once")
    return number


def lines(path: str) -> list[str]:
    """A text file's lines, without empty ones at its end."""
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    return lines
