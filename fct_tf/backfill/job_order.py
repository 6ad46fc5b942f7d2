"""In which order rows are backfilled: what the policies read of a gallery, and what comes of it."""

import numpy as np
from absl import logging

from fct_tf.backfill import fusing, policies, priority
from fct_tf.common.errors import InputError
from fct_tf.gallery import derived, table
from fct_tf.gallery.columns import Column
from fct_tf.models import kernel
from fct_tf.upgrade.inputs import ROLES, find_sources
from fct_tf.upgrade.pairs import BACKFILLED
from fct_tf.upgrade.transform import FUSED


def in_order(
    gallery: table.Gallery,
    column: Column,
    policy: str,
    *,
    seed: int = 0,
    target_column: str = "",
    transformation: str = "",
    sources: str = "",
    count: int | None = None,
    allow_space_mismatch: bool = False,
) -> np.ndarray:
    """The ids of all rows still to be backfilled, object [n] of str, in the policy's order.

    The ids of all rows are held in memory, their vectors are not, except by `ranks`.

    Args:
      transformation: for `ranks` and fused columns, the SavedModel that made the column.
      sources: for these, the gallery with the columns it was made from, if not this one.
      count: for `ranks`, how many rows the budget is, if that is known.

    Raises:
      InputError: an unknown policy, or one that lacks what it orders by; a bad row.
    """
    policies.check(policy, f"``policy={policy}``")
    fused = column.kind == FUSED
    reads_sources = fused or policy == policies.RANKS
    if bool(transformation) != reads_sources:
        remedy = "name what the column was made with" if not transformation else "leave it out"
        raise InputError(f"``policy={policy}``: ``transformation``: {remedy}")
    if sources and not reads_sources:
        raise InputError(
            f"``sources={sources}``: only ``policy=ranks`` reads what the column came of"
        )
    if bool(target_column) and policy != "distance":
        raise InputError(f"``target_column={target_column}``: only ``policy=distance`` reads it")
    if policy == policies.RANKS:
        return _by_ranks(gallery, column, transformation, sources, seed, count)
    fields = [f"{column.name}_origin"]
    uncertain = policy == "uncertainty"
    if uncertain and f"{column.name}_log_variance" in gallery.dataset.schema.names:
        fields.append(f"{column.name}_log_variance")
    columns = []
    if target_column:
        columns = [column.name, target_column]
        if fused and gallery.column(target_column).kind != FUSED:
            raise InputError(
                f"``target_column={target_column}``: its rows are not those of a fused search; "
                "name a column that upgrade_gallery --side=query made of both models' embeddings"
            )
        table.check_spaces(
            gallery.column(target_column), column, allow_mismatch=allow_space_mismatch
        )
    ids, kept, values = [], [], []
    for rows in gallery.batches(columns, 65536, fields=fields):
        left = rows.fields[fields[0]] != BACKFILLED
        if len(fields) > 1:
            left &= ~np.isnan(rows.fields[fields[1]])
            values.append(rows.fields[fields[1]][left])
        elif target_column:
            transformed, new = (rows.vectors[name] for name in columns)
            values.append(policies.moved(transformed, new, column.distance)[left])
        ids.append(rows.ids)
        kept.append(left)
    everyone = np.concatenate([np.empty(0, object), *ids])
    left_ids = everyone[np.concatenate([np.empty(0, bool), *kept])]
    value = np.concatenate([np.empty(0), *values]) if columns or len(fields) > 1 else None
    candidates = policies.Candidates(
        left_ids, value if uncertain else None, value if target_column else None
    )
    return left_ids[policies.order(policy, candidates, seed, everyone)]


def _by_ranks(
    gallery: table.Gallery,
    column: Column,
    transformation: str,
    sources_uri: str,
    seed: int,
    count: int | None,
) -> np.ndarray:
    """In the order of `fct_tf.backfill.priority`: object [n] of str; reads all rows into memory.

    What the transformation made of the rows that are backfilled by now is made again, to see how
    far off it was.
    """
    model = fusing.open_made_with(gallery, column, transformation)
    source_gallery = derived.open_sources(gallery, column, sources_uri)
    recorded = [
        source["column"]
        for source in column.created_by.get("source", [])
        if source["space"] == getattr(source_gallery.columns.get(source["column"]), "space", None)
    ]
    roles = [role for role in ROLES if role in model.dims]
    named = dict(zip(roles, recorded, strict=True)) if len(roles) == len(recorded) else {}
    sources = find_sources(source_gallery, model, named, column.name, allow_mismatch=True)
    names = [sources[role].name for role in ROLES if role in sources]
    origin = f"{column.name}_origin"
    rows = gallery.read(
        [column.name, *(names if source_gallery is gallery else [])], fields=[origin]
    )
    backfilled = np.flatnonzero(rows.fields[origin] == BACKFILLED)
    stored = rows if source_gallery is gallery else source_gallery.take(rows.ids.tolist(), names)
    vectors = [stored.vectors[name] for name in names]
    transformed, new = rows.vectors[column.name].copy(), rows.vectors[column.name][backfilled]
    if len(backfilled) < kernel.FOLDS:
        logging.info("%s: no rows to learn from yet; the first are random", gallery.path)
    else:
        transformed[backfilled] = model(*(part[backfilled] for part in vectors))["embedding"]
    order = priority.order(
        rows.ids,
        vectors[0],
        transformed,
        side_info=vectors[1] if len(vectors) > 1 else None,
        known=(backfilled, new),
        count=count,
        seed=seed,
    )
    return rows.ids[order]
