"""What a backfilling would do: which rows, in which order, at what cost."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.data import by_id
from fct_tf.errors import InputError
from fct_tf.gallery import derived, policies, priority, replace, table
from fct_tf.gallery.budget import Budget, parse
from fct_tf.gallery.columns import Column, fit
from fct_tf.gallery.reembedded import BACKFILLED
from fct_tf.gallery.sources import ROLES, find_sources
from fct_tf.models import kernel, saved_model


class Model(Protocol):
    """What is needed of the new model; a `fct_tf.models.artifact.Artifact` is one."""

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def distance(self) -> str: ...
    @property
    def embed(self) -> Callable[[tf.Tensor], tf.Tensor]: ...


def check(gallery: table.Gallery, name: str, model: Model, allow_space_mismatch: bool) -> Column:
    """The column to backfill, if `model` may do it.

    Raises:
      InputError: an old version opened, no such column, one that no transformation made, or a
        model of another space or dimension.
    """
    table.check_newest(gallery)
    column = gallery.column(name)
    if column.kind != "transformed" or f"{name}_origin" not in gallery.dataset.schema.names:
        raise InputError(
            f"{gallery.path}: column {name!r} is not one that upgrade_gallery made (kind "
            f"{column.kind}); only transformed rows can be backfilled"
        )
    new = Column("", model.dim, model.space, created_by={"model": model.name})
    if not allow_space_mismatch and not fit(new, column):
        targets = ", ".join(column.compatible_with) or "none"
        raise InputError(
            f"{gallery.path}: column {name!r} ({column.model}) was transformed to the space "
            f"{targets}, the model {model.name} embeds into {model.space}; name the model that it "
            "was transformed for, or pass --allow_space_mismatch"
        )
    if model.dim != column.dim:
        raise InputError(
            f"{gallery.path}: column {name!r} has {column.dim} values per row, the model "
            f"{model.name} gives {model.dim}; name the model that it was transformed for"
        )
    return column


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
      transformation: for `ranks`, the SavedModel that made the column.
      sources: for `ranks`, the gallery with the columns it was made from, if not this one.
      count: for `ranks`, how many rows the budget is, if that is known.

    Raises:
      InputError: an unknown policy, or one that lacks what it orders by; a bad row.
    """
    is_file = policy.startswith(policies.FILE)
    if policy not in policies.NAMES and not is_file:
        known = ", ".join([*policies.NAMES, f"{policies.FILE}PATH"])
        raise InputError(f"--policy={policy}: choose one of {known}")
    if bool(transformation) != (policy == policies.RANKS):
        told = "name what the column was made with" if not transformation else "leave it out"
        raise InputError(f"--policy={policy}: --transformation: {told}")
    if sources and policy != policies.RANKS:
        raise InputError(f"--sources={sources}: only --policy=ranks reads what the column came of")
    if bool(target_column) and policy != "distance":
        raise InputError(f"--target_column={target_column}: only --policy=distance reads it")
    if policy == policies.RANKS:
        return _by_ranks(gallery, column, transformation, sources, seed, count)
    fields = [f"{column.name}_origin"]
    uncertain = policy == "uncertainty"
    if uncertain and f"{column.name}_log_variance" in gallery.dataset.schema.names:
        fields.append(f"{column.name}_log_variance")
    columns = []
    if target_column:
        columns = [column.name, target_column]
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
    if is_file:
        path = policy.removeprefix(policies.FILE)
        return left_ids[policies.listed(candidates, path, everyone)]
    return left_ids[policies.POLICIES[policy](candidates, seed)]


def _by_ranks(
    gallery: table.Gallery,
    column: Column,
    transformation: str,
    sources_uri: str,
    seed: int,
    count: int | None,
) -> np.ndarray:
    """In the order of `fct_tf.gallery.priority`: object [n] of str; reads all rows into memory.

    What the transformation made of the rows that are backfilled by now is made again, to see how
    far off it was.
    """
    model = saved_model.load_transformation(transformation)
    settings = column.created_by.get("settings", {})
    if settings.get("transformation") != model.info["space"]:
        raise InputError(
            f"{gallery.path}: column {column.name!r} was not made by {transformation}; name the "
            "transformation that it was upgraded with"
        )
    there = derived.open_sources(gallery, column, sources_uri)
    recorded = [
        source["column"]
        for source in column.created_by.get("source", [])
        if source["space"] == getattr(there.columns.get(source["column"]), "space", None)
    ]
    roles = [role for role in ROLES if role in model.dims]
    named = dict(zip(roles, recorded, strict=True)) if len(roles) == len(recorded) else {}
    taken = column.name if there is gallery else ""
    sources = find_sources(there, model, named, taken, allow_mismatch=True)
    names = [sources[role].name for role in ROLES if role in sources]
    origin = f"{column.name}_origin"
    rows = gallery.read([column.name, *(names if there is gallery else [])], fields=[origin])
    known = np.flatnonzero(rows.fields[origin] == BACKFILLED)
    stored = rows if there is gallery else there.take(rows.ids.tolist(), names)
    vectors = [stored.vectors[name] for name in names]
    transformed, found = rows.vectors[column.name].copy(), rows.vectors[column.name][known]
    if len(known) < kernel.FOLDS:
        logging.info("%s: no rows to learn from yet; the first are random", gallery.path)
    else:
        transformed[known] = model(*(part[known] for part in vectors))["embedding"]
    order = priority.order(
        rows.ids,
        vectors[0],
        transformed,
        side_info=vectors[1] if len(vectors) > 1 else None,
        known=(known, found),
        count=count,
        seed=seed,
    )
    return rows.ids[order]


def within(ids: np.ndarray, images: by_id.Images, budget: Budget) -> np.ndarray:
    """The first of `ids`, so many that `budget` rows have an image; all where it is of time.

    Raises:
      InputError: a budget of time for images that cannot be read in any order.
    """
    if budget.rows is None:
        if not images.any_order:
            raise InputError(
                f"--budget={budget.text}: {images.name} can only be read in its own order, not by "
                "policy until the time is up; give rows or a share"
            )
        return ids
    looked_at = budget.rows
    while True:  # Not at all of a large gallery for a small budget.
        found = np.flatnonzero(images.find(ids[:looked_at]) >= 0)
        if len(found) >= budget.rows:
            return ids[: found[budget.rows - 1] + 1]
        if looked_at >= len(ids):
            return ids
        looked_at *= 4


def seconds_per_image(
    model: Model, images: by_id.Images, ids: np.ndarray, batch_size: int
) -> float:
    """Of reading and embedding, measured on the first batch of these ids, warm; 0 without one."""
    places = images.find(ids[: 4 * batch_size])
    places = np.sort(places[places >= 0][:batch_size])
    for _ in range(2):  # The first call also prepares the graph.
        start = time.perf_counter()
        for batch in images.batches(places, batch_size):
            model.embed(tf.cast(batch["image"], tf.float32)).numpy()
    return (time.perf_counter() - start) / max(1, len(places))


@dataclass(frozen=True)
class Plan:
    """What `fct_tf.gallery.backfill.backfill` would do.

    Attributes:
      column: to backfill. budget: as given.
      num_rows: of the gallery. left: not backfilled yet, and wanted by the policy.
      rows: to embed, a forecast for a budget of time. without_image: to skip before that.
      image_bytes: of their files; None where the source does not say.
      bytes_written: by the commit, from the files' bytes per row.
      estimated_s: of reading and embedding, from one warm batch of these images.
      bytes_free: on the gallery's file system; None in an object store.
    """

    column: Column
    budget: Budget
    num_rows: int
    left: int
    rows: int
    without_image: int
    image_bytes: int | None
    bytes_written: int
    estimated_s: float
    bytes_free: int | None

    def __str__(self) -> str:
        def number(value: int | None) -> str:
            return "unknown" if value is None else f"{value:,}"

        lines = [
            "dry run: nothing is written",
            f"backfills:       {self.column.name} ({self.column.model})",
            f"budget:          {self.budget.text}",
            f"rows:            {self.rows:,} of {self.left:,} left, {self.num_rows:,} in all",
            f"without image:   {self.without_image:,}",
            f"image bytes:     {number(self.image_bytes)}",
            f"bytes written:   {self.bytes_written:,}",
            f"estimated time:  {self.estimated_s:,.1f} s",
            f"free disk bytes: {number(self.bytes_free)}",
        ]
        # Vectors are staged before they are committed.
        needed = self.bytes_written + 4 * self.column.dim * self.rows
        if self.bytes_free is not None and self.bytes_free < needed:
            lines.append("warning: the disk is too small for it")
        return "\n".join(lines)


def plan(
    gallery_uri: str | os.PathLike,
    column: str,
    model: Model,
    images: by_id.Images,
    policy: str,
    budget: str,
    *,
    target_column: str = "",
    transformation: str = "",
    sources: str = "",
    seed: int = 0,
    batch_size: int = 256,
    allow_space_mismatch: bool = False,
) -> Plan:
    """What `backfill` with the same arguments would do; changes nothing. Errors as `backfill`."""
    gallery = table.open_gallery(gallery_uri)
    there = check(gallery, column, model, allow_space_mismatch)
    allowed = parse(budget, gallery.num_rows)
    order = in_order(
        gallery,
        there,
        policy,
        seed=seed,
        target_column=target_column,
        transformation=transformation,
        sources=sources,
        count=allowed.rows,
        allow_space_mismatch=allow_space_mismatch,
    )
    ids = within(order, images, allowed)
    each = seconds_per_image(model, images, ids, batch_size)
    places = images.find(ids)
    if allowed.seconds is not None and each:
        reached = np.flatnonzero(places >= 0)[: max(1, int(allowed.seconds / each))]
        places = places[: reached[-1] + 1] if len(reached) else places
    found = places[places >= 0]
    remote = "://" in gallery.path
    return Plan(
        column=there,
        budget=allowed,
        num_rows=gallery.num_rows,
        left=len(order),
        rows=len(found),
        without_image=len(places) - len(found),
        image_bytes=images.num_bytes(found),
        bytes_written=replace.estimate_bytes(gallery.dataset, there, len(found)),
        estimated_s=each * len(found),
        bytes_free=None if remote else shutil.disk_usage(gallery.path).free,
    )
