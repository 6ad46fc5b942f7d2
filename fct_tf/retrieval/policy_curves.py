"""Backfilling curves of columns: rows in the order of policies, and the record of each curve."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf.errors import InputError
from fct_tf.files import one_line
from fct_tf.gallery import priority
from fct_tf.gallery.columns import Column, Rows, check_spaces
from fct_tf.gallery.policies import NAMES, POLICIES, RANKS, Candidates, moved
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import backfilling, exact, identity


@dataclass(frozen=True)
class Order:
    """Rows of a gallery in the order of a policy; `number` counts random orders from 0."""

    policy: str
    number: int | None
    rows: np.ndarray


def evaluate(
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    column: str,
    target_column: str,
    policies: Sequence[str],
    *,
    random_orders: int = 5,
    groups: str = "",
    ks: Sequence[int] = (1, 5),
    distance: str | None = None,
    seed: int = 0,
    allow_space_mismatch: bool = False,
    progress: str = "",
) -> list[dict]:
    """The backfilling curves of a transformed column, one record per policy and random order.

    Args:
      query_gallery, gallery: may be the same gallery; a query's own id is removed.
      query_column: the new model's embeddings of the queries.
      column: T(old), whose rows are replaced.
      target_column: the new model's embeddings of the gallery, which replace them.
      policies: `uncertainty` (largest `column`_log_variance first), `distance` (largest distance
        between the two columns first, an oracle), `random`, `ranks` (see
        `fct_tf.gallery.priority`; each point learns from the rows replaced by then), or
        `file:PATH` (one id a line).
      random_orders: orders of `random`.
      groups: `column:NAME`, a field of strings in the query gallery, or the path of a file of
        lines `label<TAB>group`; empty for no curves by group.
      ks: CMC is reported at these ranks.
      distance: `l2` or `cosine`; None takes `column`'s.
      seed: of the random orders.
      allow_space_mismatch: compare different spaces all the same.
      progress: label of the progress bar; none when empty.

    Returns:
      Records with `method` (the column), `policy`, `seed`, `order` (number of a random order,
      else None), `query`, `gallery` and `target` (which column), counts `num_*`, `distance`,
      `auc` (`{"1": .., "map": ..}`), `curve` (see `backfilling.curve`) and, with `groups`, what
      `backfilling.by_group` returns. Fractions, not percent.

    Raises:
      InputError: spaces or dimensions that do not fit, a policy that is unknown or lacks its
        field or rows, no labelled query, bad rows or groups.
    """
    if not ks or min(ks) < 1:
        raise InputError(f"ks {list(ks)}: ranks start at 1")
    asked = query_gallery.column(query_column)
    before, after = gallery.column(column), gallery.column(target_column)
    for side in (before, after):
        check_spaces(asked, side, allow_mismatch=allow_space_mismatch)
    distance = distance or before.distance
    by = groups.removeprefix("column:") if groups.startswith("column:") else ""
    if by:
        _check_field(query_gallery, by)
    sources = made_of(gallery, before) if RANKS in policies else []
    columns = list(dict.fromkeys([column, target_column, *sources]))
    queries, rows = _read(query_gallery, query_column, gallery, columns, by)
    labels = queries.labels
    assert labels is not None and rows.labels is not None
    if queries is not rows:
        own = exact.row_numbers(queries.ids, rows.ids)
        own[[label is None for label in labels]] = -1
        warning = identity.doubt(queries, asked, rows, after, own)
        if warning:
            logging.warning("%s and %s: %s", query_gallery.path, gallery.path, warning)
    group = queries.fields[by] if by else _groups_of_file(groups, labels) if groups else None
    sides = (rows.vectors[column], rows.vectors[target_column])
    certainty = rows.fields.get(f"{column}_log_variance")
    orders: list[Order] = []
    for policy in policies:
        if policy == RANKS:
            orders.append(Order(policy, None, _learnt(rows, sources, *sides, seed)))
            continue
        try:
            orders += _orders(policy, rows.ids, *sides, certainty, distance, random_orders, seed)
        except InputError as error:
            raise InputError(f"{gallery.path}: {error}") from None
    found = backfilling.per_query(
        (queries.vectors[query_column], queries.ids, labels),
        sides[0],
        (sides[1], rows.ids, rows.labels),
        [order.rows for order in orders],
        distance,
        progress=progress,
    )
    origin = rows.fields.get(f"{column}_origin", np.empty(0, object))
    known = {
        "query": exact.describe(query_gallery, asked),
        "gallery": exact.describe(gallery, before),
        "target": exact.describe(gallery, after),
        "num_queries": len(found.position),
        "num_queries_without_label": len(labels) - len(found.position),
        "num_queries_without_match": int(np.sum(found.rank[0, 0] == 0)),
        "num_self_removed": int(np.sum(found.self_removed)),
        "num_gallery": len(rows),
        "num_backfilled_before": int(np.sum(origin == "backfilled")),
        "distance": distance,
    }
    if known["num_backfilled_before"]:
        logging.warning(
            "%s: %d rows of %s are backfilled already; the curve starts with them replaced",
            *(gallery.path, known["num_backfilled_before"], column),
        )
    records = []
    for at, order in enumerate(orders):
        points = backfilling.curve(found, at, len(rows), ks)
        record = {"method": column, "policy": order.policy, "seed": seed, "order": order.number}
        record |= {**known, "auc": backfilling.auc(points, ks), "curve": points}
        if group is not None:
            record |= backfilling.by_group(found, at, len(rows), group, ks)
        records.append(record)
    return records


def _read(
    query_gallery: Gallery, query_column: str, gallery: Gallery, columns: list[str], by: str
) -> tuple[Rows, Rows]:
    """Queries and gallery rows, the same object where they are the same rows."""
    companions = [f"{columns[0]}_log_variance", f"{columns[0]}_origin"]
    fields = [name for name in companions if name in gallery.dataset.schema.names]
    group = [by] if by else []
    if (query_gallery.path, query_gallery.version) == (gallery.path, gallery.version):
        fields = list(dict.fromkeys([*fields, *group]))
        columns = list(dict.fromkeys([*columns, query_column]))
        queries = rows = gallery.read(columns, with_labels=True, fields=fields)
    else:
        rows = gallery.read(columns, with_labels=True, fields=fields)
        queries = query_gallery.read([query_column], with_labels=True, fields=group)
    assert queries.labels is not None
    if all(label is None for label in queries.labels):
        raise InputError(
            f"{query_gallery.path}: no query has a label; evaluation needs labels, import the "
            "embeddings with import_gallery --labels into a new gallery"
        )
    return queries, rows


def made_of(gallery: Gallery, column: Column) -> list[str]:
    """The columns that a transformed column was made of: source, and side-information if any.

    Raises:
      InputError: it is not recorded, or they are not there any more.
    """
    names = [str(source.get("column")) for source in column.created_by.get("source", [])]
    spaces = [source.get("space") for source in column.created_by.get("source", [])]
    for name, space in zip(names, spaces, strict=True):
        if name not in gallery.columns or gallery.columns[name].space != space:
            raise InputError(
                f"{gallery.path}: policy {RANKS}: column {column.name!r} was made of {name!r}, "
                "which is gone or another one by now; choose another policy"
            )
    if not names:
        raise InputError(
            f"{gallery.path}: policy {RANKS}: column {column.name!r} does not say what it was made "
            "of; upgrade the gallery with upgrade_gallery, or choose another policy"
        )
    return names


def has_uncertainty(gallery: Gallery, column: str) -> bool:
    """Whether rows of a transformed column say how uncertain they are."""
    return f"{column}_log_variance" in gallery.dataset.schema.names


def check_policies(policies: Sequence[str], random_orders: int, where: str) -> None:
    """Refuses unknown or repeated policies, and random ones without an order."""
    for policy in policies:
        if policy not in NAMES and not re.match("file:.", policy):
            raise InputError(
                f"{where}: unknown policy {policy!r}; name some of {', '.join(NAMES)} and file:PATH"
            )
        if list(policies).count(policy) > 1:
            raise InputError(f"{where}: {policy} is named twice")
    if "random" in policies and random_orders < 1:
        raise InputError(f"{where}: random needs at least one order")


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
        backfilling.replaced(len(rows))[1:],
        side_info=vectors[1] if len(vectors) > 1 else None,
        seed=seed,
    )
    return order


def _orders(
    policy: str,
    ids: np.ndarray,
    transformed: np.ndarray,
    new: np.ndarray,
    log_variance: np.ndarray | None,
    distance: str,
    count: int,
    seed: int,
) -> list[Order]:
    """The orders of one policy, `count` of random ones.

    Functions of the seed and the ids, ties too, never of how the table stores its rows.
    """
    if policy == "random":
        mixed = [np.random.SeedSequence([seed, number]) for number in range(count)]
        seeds = [int(sequence.generate_state(1, np.uint64)[0]) for sequence in mixed]
        rows = Candidates(ids)
        return [Order(policy, at, POLICIES["random"](rows, each)) for at, each in enumerate(seeds)]
    if policy in POLICIES:
        # A log-variance of NaN, of rows that are backfilled already, comes last.
        rows = Candidates(ids, log_variance, moved(transformed, new, distance))
        return [Order(policy, None, POLICIES[policy](rows, seed))]
    name = policy.removeprefix("file:")
    listed = _lines(name)
    number = exact.row_numbers(listed, ids)
    unknown = np.flatnonzero(number < 0)
    if len(unknown):
        raise InputError(f"no row has the id {listed[unknown[0]]!r} of {name}:{unknown[0] + 1}")
    times = np.bincount(number, minlength=len(ids))
    if (times != 1).any():
        at = int(np.flatnonzero(times != 1)[0])
        told = "more than once" if times[at] else "not"
        raise InputError(f"id {ids[at]!r} is {told} in {name}; a curve needs every row once")
    return [Order(policy, None, number)]


def _check_field(gallery: Gallery, name: str) -> None:
    others = [
        field.name
        for field in gallery.dataset.schema
        if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)
    ]
    if name not in others:
        raise InputError(
            f"{gallery.path}: no field of strings {name!r} to group by; there are: "
            f"{', '.join(others)}"
        )


def _groups_of_file(path: str, labels: np.ndarray) -> np.ndarray:
    """object [n]: the group of each label; None for a row without label."""
    group_of: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        label, tab, group = line.partition("\t")
        if not tab or not group.strip():
            raise InputError(f"{path}: line {number}: expected label<TAB>group, received {line!r}")
        if group_of.setdefault(label, group.strip()) != group.strip():
            raise InputError(f"{path}: line {number}: label {label!r} has two groups; name one")
    for label in labels:
        if label is not None and label not in group_of:
            raise InputError(f"{path}: no group for the label {label!r}; add a line for it")
    return np.array([None if label is None else group_of[label] for label in labels], object)


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
    while lines and not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
