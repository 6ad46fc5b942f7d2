"""The rows that a verdict is on: those of the sample that the gallery has, read by id."""

from collections.abc import Mapping

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column, Rows, fit
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import same_ids
from fct_tf.upgrade import slices


def query_column(
    source: Gallery, gallery: Gallery, upgraded: Column, new: str, query: str
) -> Column:
    """The column of `source` whose rows search `upgraded`: `query`, or by default `new`.

    Of a fused column, backfilled or not, the default is the one column that fits its space and
    holds no rows of a gallery: those have their origin beside them.

    Raises:
      InputError: no such column; for a fused column none or several.
    """
    if query or upgraded.kind != "fused":
        return source.column(query or new)
    same = (source.path, source.version) == (gallery.path, gallery.version)
    fields = source.dataset.schema.names
    candidates = [
        column
        for column in source.columns.values()
        if fit(column, upgraded)
        and f"{column.name}_origin" not in fields
        and not (same and column.name == upgraded.name)
    ]
    if len(candidates) != 1:
        names = ", ".join(column.name for column in candidates)
        count = f"several columns ({names})" if candidates else "no column"
        remedy = (
            "name one with ``query_column``"
            if candidates
            else "make it with upgrade_gallery --side=query, then name it with ``query_column``"
        )
        raise InputError(
            f"{source.path}: {count} of queries in the space of the fused column "
            f"{upgraded.name!r}; {remedy}"
        )
    return candidates[0]


def read(
    gallery: Gallery,
    before: Gallery,
    columns: Mapping[str, Column],
    source: Gallery,
    exclude: Gallery | None,
    groups: str,
) -> tuple[Rows, dict[str, np.ndarray], dict[str, int]]:
    """Rows (ids, labels, the field `groups`), their vectors by role as `columns`, and counts."""
    old, upgraded, new = (columns[role] for role in ("old", "upgraded", "new"))
    for gallery_read in (gallery, before, source):
        gallery_read.check_rows()
    grouping = None
    if groups and groups != "label":
        grouping = slices.table_of(groups, (gallery, source, before))
    excluded = {i for rows in exclude.batches([], 65536) for i in rows.ids} if exclude else set()
    # Where the sample has the old embeddings too, they tell whether equal ids are equal rows.
    probe = source.columns.get(old.name, new)
    probe = probe if (probe.space, probe.dim) == (old.space, old.dim) else new

    def fields_of(table: Gallery) -> list[str]:
        return [groups] if table is grouping else []

    asked = [columns[role].name for role in ("query", "against_query") if role in columns]
    names = [new.name, *asked, probe.name]
    sampled = source.read(names, with_labels=True, fields=fields_of(source))
    kept = set(sampled.ids) - excluded
    ids_in_gallery = {i for rows in gallery.batches([], 65536) for i in rows.ids if i in kept}
    counts = {
        "num_excluded": len(sampled) - len(kept),
        "num_not_in_gallery": len(kept) - len(ids_in_gallery),
    }
    sampled = sampled.without(set(sampled.ids) - ids_in_gallery)
    origin = f"{upgraded.name}_origin"
    fields = [origin] if origin in gallery.dataset.schema.names else []
    beside = [old.name] if before is gallery else []
    mapped = [columns[role].name for role in ("upgraded", "against") if role in columns]
    stored = gallery.take(
        list(sampled.ids), [*mapped, *beside], fields=[*fields, *fields_of(gallery)]
    )
    replaced = stored
    if not beside:
        replaced = before.take(list(sampled.ids), [old.name], fields=fields_of(before))
    assert sampled.labels is not None and stored.labels is not None
    warning = same_ids.doubt(sampled, probe, replaced, old, np.arange(len(sampled)))
    if warning:
        logging.warning("%s and %s: %s", source.path, before.path, warning)
    counts["num_backfilled"] = sum(int(np.sum(stored.fields[f] == "backfilled")) for f in fields)
    # A gallery that was imported without labels is judged by those of its sample.
    pairs = zip(stored.labels, sampled.labels, strict=True)
    labels = np.array([b if a is None else a for a, b in pairs], object)
    tables = {"old": replaced, "new": sampled, "query": sampled, "against_query": sampled}
    vectors = {
        role: tables.get(role, stored).vectors[column.name] for role, column in columns.items()
    }
    grouped = [rows.fields[groups] for rows in (stored, sampled, replaced) if groups in rows.fields]
    values = {groups: grouped[0] if grouped else labels} if groups else {}
    return Rows(sampled.ids, labels, fields=values), vectors, counts
