"""What a backfilling would do: which rows, in which order, at what cost."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tensorflow as tf

from fct_tf.backfill import fusing
from fct_tf.backfill.budget import Budget
from fct_tf.common import stores
from fct_tf.common.errors import InputError
from fct_tf.data import by_id
from fct_tf.gallery import indices, replace, table
from fct_tf.gallery.columns import MADE_BY_UPGRADE, Column, fit
from fct_tf.upgrade.transform import FUSED


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


def check(
    gallery: table.Gallery,
    name: str,
    model: Model,
    allow_space_mismatch: bool,
    transformation: str = "",
    sources: str = "",
) -> tuple[Column, fusing.Fusing | None]:
    """The column to backfill, if `model` may do it, and what fuses its rows, where it is fused.

    Raises:
      InputError: an old version opened, no such column, one that no transformation made, or a
        model of another space or dimension; and as `fusing.open_fusing`.
    """
    table.check_newest(gallery)
    gallery.check_rows()
    column = gallery.column(name)
    is_upgraded = column.kind in MADE_BY_UPGRADE
    if not is_upgraded or f"{name}_origin" not in gallery.dataset.schema.names:
        raise InputError(
            f"{gallery.path}: column {name!r} is not one that upgrade_gallery made (kind "
            f"{column.kind}); only transformed and fused rows of a gallery can be backfilled"
        )
    fuses = None
    if column.kind == FUSED:
        fuses = fusing.open_fusing(gallery, column, transformation, sources)
    into = fuses.target if fuses else column
    new = Column("", model.dim, model.space, created_by={"model": model.name})
    if not allow_space_mismatch and not fit(new, into):
        if getattr(model, "earlier_space", None) in into.compatible_with:
            raise InputError(
                f"{gallery.path}: column {name!r} ({column.model}) was transformed to embeddings "
                f"that an earlier version of fct_tf made with {model.name}, or a model that "
                f"differs from it by no weight; if nothing else in it has changed either, pass "
                "``allow_space_mismatch=True``"
            )
        targets = ", ".join(into.compatible_with) or "none"
        raise InputError(
            f"{gallery.path}: column {name!r} ({column.model}) was transformed to the space "
            f"{targets}, the model {model.name} embeds into {model.space}; name the model that it "
            "was transformed for (one of your own with its ``preprocessing``), or pass "
            "``allow_space_mismatch=True``"
        )
    if model.dim != into.dim:
        clause = f"fuses embeddings of {into.dim}" if fuses else f"has {into.dim}"
        raise InputError(
            f"{gallery.path}: column {name!r} {clause} values per row, the model "
            f"{model.name} gives {model.dim}; name the model that it was transformed for"
        )
    return column, fuses


def within(ids: np.ndarray, images: by_id.Images, budget: Budget) -> np.ndarray:
    """The first of `ids`, so many that `budget` rows have an image; all where it is of time.

    Raises:
      InputError: a budget of time for images that cannot be read in any order.
    """
    if budget.rows is None:
        if not images.any_order:
            raise InputError(
                f"``budget={budget.text}``: {images.name} can only be read in its own order, not "
                "by policy until the time is up; give rows or a share"
            )
        return ids
    looked_at = budget.rows
    while True:  # Not at all of a large gallery for a small budget.
        with_image = np.flatnonzero(images.find(ids[:looked_at]) >= 0)
        if len(with_image) >= budget.rows:
            return ids[: with_image[budget.rows - 1] + 1]
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
    """What a backfilling would do.

    Attributes:
      column: to backfill. budget: as given.
      num_rows: of the gallery. left: not backfilled yet, and wanted by the policy.
      rows: to embed, a forecast for a budget of time. without_image: to skip before that.
      image_bytes: of their files; None where the source does not say.
      bytes_written: by the commit, from the files' bytes per row.
      estimated_s: of reading and embedding, from one warm batch of these images.
      bytes_free: on the gallery's file system; None in an object store.
      indices: names of those that rows which change leave.
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
    indices: list[str]

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
        if self.indices:
            named = ", ".join(self.indices)
            lines.append(
                f"indices:         {named} (rows that change leave them, see inspect_gallery)"
            )
        # Vectors are staged before they are committed.
        needed = self.bytes_written + 4 * self.column.dim * self.rows
        if self.bytes_free is not None and self.bytes_free < needed:
            lines.append("warning: the disk is too small for it")
        return "\n".join(lines)


def estimate(
    gallery: table.Gallery,
    column: Column,
    model: Model,
    images: by_id.Images,
    order: np.ndarray,
    budget: Budget,
    batch_size: int,
) -> Plan:
    """The plan of embedding rows in this order: object [n] of str, their ids."""
    ids = within(order, images, budget)
    each = seconds_per_image(model, images, ids, batch_size)
    places = images.find(ids)
    if budget.seconds is not None and each:
        reached = np.flatnonzero(places >= 0)[: max(1, int(budget.seconds / each))]
        places = places[: reached[-1] + 1] if len(reached) else places
    image_places = places[places >= 0]
    remote = stores.in_store(gallery.path)
    return Plan(
        column=column,
        budget=budget,
        num_rows=gallery.num_rows,
        left=len(order),
        rows=len(image_places),
        without_image=len(places) - len(image_places),
        image_bytes=images.num_bytes(image_places),
        bytes_written=replace.estimate_bytes(gallery.dataset, column, len(image_places)),
        estimated_s=each * len(image_places),
        bytes_free=None if remote else shutil.disk_usage(gallery.path).free,
        indices=[index.name for index in indices.on(gallery.dataset, None)],
    )
