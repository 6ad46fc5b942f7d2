"""Backfilling curves of columns: the record of every policy, and what it is measured on."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from fct_tf.backfill import calibration, curve_order
from fct_tf.backfill import corrected as corrected_curves
from fct_tf.backfill import curves as backfilling
from fct_tf.backfill.policies import RANKS
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.gallery.columns import Rows, check_spaces
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import exact, same_ids, two_columns
from fct_tf.upgrade.pairs import BACKFILLED
from fct_tf.upgrade.transform import FUSED

INPUTS = ("source_embedding", "side_info")  # What a transformed column was made of.


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
    corrected: Sequence[str] = (),
    max_centres: int = corrected_curves.MAX_CENTRES,
    progress: str = "",
) -> list[dict]:
    """The backfilling curves of a transformed column, one record per policy and random order.

    Of a fused search `query_column` and `target_column` hold rows of both models' embeddings, as
    `upgrade(side="query")` makes them: the curve ends where all rows are those of both.

    Args:
      query_gallery, gallery: may be the same gallery; a query's own id is removed.
      query_column: the new model's embeddings of the queries.
      column: T(old), whose rows are replaced.
      target_column: the new model's embeddings of the gallery, which replace them.
      policies: `uncertainty` (largest `column`_log_variance first), `distance` (largest distance
        between the two columns first, an oracle), `random`, `ranks` (see
        `fct_tf.backfill.priority`; each point learns from the rows replaced by then), or
        `file:PATH` (one id a line).
      random_orders: orders of `random`.
      groups: `column:NAME`, a field of strings in the query gallery, or the path of a file of
        lines `label<TAB>group`; empty for no curves by group.
      ks: CMC is reported at these ranks.
      distance: `l2` or `cosine`; None takes `column`'s.
      seed: of the random orders.
      allow_space_mismatch: compare different spaces all the same.
      corrected: those of `policies` (of `random` the first order) for which there shall also be
        the curve with the rest of the rows corrected by the backfilled ones: what retraining on
        them brings, see `fct_tf.backfill.corrected`. Each takes 22 full evaluations.
      max_centres: of the correction, see `fct_tf.backfill.corrected`.
      progress: label of the progress bar; none when empty.

    Returns:
      Records with `method` (the column), `policy`, `seed`, `order` (number of a random order,
      else None), `corrected`, `query`, `gallery` and `target` (which column), counts `num_*`,
      `distance`, `auc` (`{"1": .., "map": ..}`), `curve` (see `backfilling.curve`); with `groups`
      what `backfilling.by_group` returns; with `uncertainty`, `calibration`: see
      `fct_tf.backfill.calibration`, None of a fused search, and if no transformed row has a
      log-variance. Fractions,
      not percent.

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
        query_gallery.check_group(by, "groups")
    if not policies:
        raise InputError("policies: is empty; name at least one")
    curve_order.check_policies(policies, random_orders, corrected, "policies")
    retrained = [policy for policy in policies if policy in corrected]
    sources = []
    if RANKS in policies or retrained:
        sources = curve_order.made_of(
            gallery, before, f"curves of {RANKS}" if RANKS in policies else "corrected curves"
        )
    columns = list(dict.fromkeys([column, target_column, *sources]))
    queries, rows = _read(query_gallery, query_column, gallery, columns, by)
    labels = queries.labels
    assert labels is not None and rows.labels is not None
    if queries is not rows:
        own = exact.row_numbers(queries.ids, rows.ids)
        own[[label is None for label in labels]] = -1
        warning = same_ids.doubt(queries, asked, rows, after, own)
        if warning:
            logging.warning("%s and %s: %s", query_gallery.path, gallery.path, warning)
    group = queries.fields[by] if by else _groups_of_file(groups, labels) if groups else None
    origin = rows.fields.get(f"{column}_origin", np.empty(0, object))
    backfilled = int(np.sum(origin == BACKFILLED))
    if backfilled and retrained:
        raise InputError(
            f"{gallery.path}: {backfilled} rows of {column!r} are backfilled already, which hides "
            "what the transformation made of them; leave the corrected curves out"
        )
    if backfilled:
        logging.warning(
            "%s: %d rows of %s are backfilled already; the curve starts with them replaced",
            *(gallery.path, backfilled, column),
        )
    try:
        orders = curve_order.of_policies(
            policies,
            rows,
            column,
            target_column,
            sources,
            distance=distance,
            random_orders=random_orders,
            seed=seed,
        )
    except InputError as error:
        raise InputError(f"{gallery.path}: {error.marked}") from None
    query = (queries.vectors[query_column], queries.ids, labels)
    target = (rows.vectors[target_column], rows.ids, rows.labels)
    plain_curves = backfilling.per_query(
        query,
        rows.vectors[column],
        target,
        [order.rows for order in orders],
        distance,
        progress=progress,
    )
    common_keys = {
        "query": two_columns.describe(query_gallery, asked),
        "gallery": two_columns.describe(gallery, before),
        "target": two_columns.describe(gallery, after),
        "num_queries": len(plain_curves.position),
        "num_queries_without_label": len(labels) - len(plain_curves.position),
        "num_queries_without_match": int(np.sum(plain_curves.rank[0, 0] == 0)),
        "num_self_removed": int(np.sum(plain_curves.self_removed)),
        "num_gallery": len(rows),
        "num_backfilled_before": backfilled,
        "distance": distance,
    }

    def record(order: curve_order.Order, curves: backfilling.Curves, at: int, is_corrected: bool):
        points = backfilling.curve(curves, at, len(rows), ks)
        keys = {"method": column, "policy": order.policy, "seed": seed, "order": order.number}
        keys |= {"corrected": is_corrected, **common_keys}
        keys |= {"auc": backfilling.auc(points, ks), "curve": points}
        if group is not None:
            keys |= backfilling.by_group(curves, at, len(rows), group, ks)
        if order.policy == "uncertainty" and not is_corrected:
            # A log-variance speaks of the transformed row, not of what is fused with it.
            unfused = before.kind != FUSED
            keys["calibration"] = (
                calibration.of_rows(rows, column, target_column) if unfused else None
            )
        return keys

    records = [record(order, plain_curves, at, False) for at, order in enumerate(orders)]
    inputs = dict(zip(INPUTS, (rows.vectors[name] for name in sources), strict=False))
    inputs["embedding"] = rows.vectors[column]
    for order in orders:
        if order.policy in retrained and not order.number:
            curves = corrected_curves.per_query(
                *(query, inputs, target, order.rows, distance),
                unit_length=after.distance == "cosine",
                max_centres=max_centres,
                seed=seed,
                progress=progress and f"{progress}, {order.policy} corrected",
            )
            records.append(record(order, curves, 0, True))
    return records


def _read(
    query_gallery: Gallery, query_column: str, gallery: Gallery, columns: list[str], by: str
) -> tuple[Rows, Rows]:
    """Queries and gallery rows, the same object where they are the same rows."""
    companions = [f"{columns[0]}_log_variance", f"{columns[0]}_origin"]
    fields = [name for name in companions if name in gallery.dataset.schema.names]
    group = [by] if by else []
    for gallery_read in (query_gallery, gallery):
        gallery_read.check_rows()
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


def has_uncertainty(gallery: Gallery, column: str) -> bool:
    """Whether rows of a transformed column say how uncertain they are."""
    return f"{column}_log_variance" in gallery.dataset.schema.names


def _groups_of_file(path: str, labels: np.ndarray) -> np.ndarray:
    """object [n]: the group of each label; None for a row without label."""
    group_of: dict[str, str] = {}
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        label, tab, group = line.partition("\t")
        if not tab or not group.strip():
            raise InputError(f"{path}: line {number}: expected label<TAB>group, received {line!r}")
        if group_of.setdefault(label, group.strip()) != group.strip():
            raise InputError(f"{path}: line {number}: label {label!r} has two groups; name one")
    for label in labels:
        if label is not None and label not in group_of:
            raise InputError(f"{path}: no group for the label {label!r}; add a line for it")
    return np.array([None if label is None else group_of[label] for label in labels], object)
