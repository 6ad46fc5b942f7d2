"""The rows of a gallery in the order of policies, as backfilling curves replace them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fct_tf.backfill import curves, priority
from fct_tf.backfill.policies import RANKS, Candidates, check, moved
from fct_tf.backfill.policies import order as in_order
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column, Rows
from fct_tf.gallery.reader import Gallery


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
    orders = []
    for policy in policies:
        if policy == RANKS:
            orders.append(Order(policy, None, _learnt(rows, sources, before, after, seed)))
        elif policy == "random":
            for number in range(random_orders):
                mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
                order = in_order(policy, Candidates(rows.ids), int(mixed))
                orders.append(Order(policy, number, order))
        else:
            # A log-variance of NaN, of rows that are backfilled already, comes last.
            certainty = rows.fields.get(f"{column}_log_variance")
            candidates = Candidates(rows.ids, certainty, moved(before, after, distance))
            order = in_order(policy, candidates, seed, every_row=True)
            orders.append(Order(policy, None, order))
    return orders


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
        check(policy, where)
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
