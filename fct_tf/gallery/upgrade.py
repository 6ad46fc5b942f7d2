"""Upgrades a gallery: a transformation runs over stored rows and adds a column.

Only rows are read, never an image. The work goes fragment by fragment; a killed job resumes,
and readers see the new column all at once, in one commit.
"""

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf import runs
from fct_tf.errors import InputError
from fct_tf.files import sha256_json
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.gallery.reembedded import BACKFILLED, Reembedded
from fct_tf.gallery.sources import ROLES, find_sources
from fct_tf.models import saved_model
from fct_tf.provenance import created_by

TRANSFORMED = "transformed"  # value of the field X_origin


def upgrade(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    pairs: str = "",
    batch_size: int = 8192,
    existing: runs.Existing = "refuse",
    allow_space_mismatch: bool = False,
    tag: str = "",
    job_dir: str | os.PathLike | None = None,
) -> table.Gallery:
    """Adds `column`, the transformation of stored columns, to a gallery.

    Beside it come `<column>_origin` (`transformed`, or `backfilled` in rows of `pairs`) and, where
    the transformation returns it, `<column>_log_variance` float32 (null where backfilled). The
    column lies in a space of its own, a fingerprint of the transformation and of the spaces of
    what it read, and declares itself compatible with the transformation's target space: queries
    of the new model may be compared with it, but it is not taken for the new model's own
    embeddings.

    Args:
      gallery_uri: the gallery, at its newest version.
      transformation: a SavedModel, see `fct_tf.models.saved_model.locate`.
      column: name of the new column.
      source, side_info: columns to read; by default those in the spaces that the transformation
        was trained on, else those compatible with them.
      pairs: table of rows that the new model has embedded already; they are taken from its
        column in the transformation's target space.
      batch_size: rows per model call.
      existing: what to do when the column is there. `skip` leaves it if this transformation made
        it from the same spaces, and replaces it else.
      allow_space_mismatch: read `source` and `side_info` whatever their spaces are.
      tag: let this tag (such as `live`) point to the version with the new column.
      job_dir: where finished fragments are recorded, in a directory of the column's name;
        default `<gallery>.jobs`. Needed for a gallery in an object store.

    Returns:
      The gallery with the new column.

    Raises:
      InputError: no such gallery, column or SavedModel; spaces or dimensions that do not fit;
        an existing column; rows with NaN or infinity.
    """
    gallery, model, sources, made = _prepare(
        gallery_uri,
        transformation,
        column,
        source,
        side_info,
        batch_size,
        allow_space_mismatch,
        refuse_existing=existing == "refuse" and not tag,
    )
    known = Reembedded.open(pairs, model.info.get("target_space")) if pairs else None
    if known:
        identity = {"transformed": made.space, "backfilled": known.fingerprint}
        made = dataclasses.replace(made, space=sha256_json(identity))
    there = gallery.columns.get(column)
    if there is not None and there.space == made.space and existing != "overwrite":
        # The second case: a job killed between its commit and its tag is started again.
        if existing == "skip" or (tag and not _tagged(gallery, tag, made)):
            logging.info("%s: column %r is there already", gallery.path, column)
            return _tag(gallery, tag)
    if there is not None and there.created_by.get("backfilled") and not known:
        logging.warning(
            "%s: the rows that were backfilled in %r are transformed again; to keep them, let "
            "sample_gallery --gallery=%s@%d --backfilled=%s make a table for --pairs",
            gallery.path, column, gallery.path, gallery.version, column,
        )  # fmt: skip
    origin, log_variance = f"{column}_origin", f"{column}_log_variance"
    fields = [pa.field(origin, pa.string())]
    if model.has_log_variance:
        fields.append(pa.field(log_variance, pa.float32()))

    computed, filled = 0, 0

    def compute(rows: Rows) -> dict[str, np.ndarray]:
        nonlocal computed, filled
        computed += len(rows)
        outputs = _run(model, sources, rows)
        values = {column: outputs["embedding"], origin: np.full(len(rows), TRANSFORMED, object)}
        if model.has_log_variance:
            values[log_variance] = _finite(outputs["log_variance"], rows, gallery.path)
        if known:
            values[column] = values[column].copy()  # The model's output is read-only.
            backfilled = known.fill(rows, values[column])
            values[origin][backfilled] = BACKFILLED
            filled += int(backfilled.sum())
            if model.has_log_variance:
                values[log_variance] = np.where(backfilled, np.nan, values[log_variance])
        return values

    upgraded = table.add_column(
        gallery,
        made,
        compute,
        list(dict.fromkeys(found.name for found in sources.values())),
        extra_fields=fields,
        job_dir=job_dir,
        overwrite=existing != "refuse",
        batch_size=batch_size,
        progress=f"upgrade {column}",
    )
    # Unless an earlier process of this job has done the others.
    if known and computed == upgraded.num_rows and not filled:
        logging.warning("%s: has none of the rows of %s; are they another's?", gallery.path, pairs)
    return _tag(upgraded, tag)


@dataclass(frozen=True)
class Plan:
    """What an upgrade would do to the whole gallery.

    Attributes:
      reads: role (`source_embedding`, `side_info`) -> column.
      writes: the new column.
      num_rows, bytes_read, bytes_written: vectors and fields, without what Lance adds.
      estimated_s: time of the model calls, from one warm batch of the gallery's rows.
      bytes_free: on the gallery's file system; None in an object store.
    """

    reads: dict[str, Column]
    writes: Column
    num_rows: int
    bytes_read: int
    bytes_written: int
    estimated_s: float
    bytes_free: int | None

    def __str__(self) -> str:
        reads = ", ".join(f"{column.name} ({column.model})" for column in self.reads.values())
        free = "unknown" if self.bytes_free is None else f"{self.bytes_free:,}"
        lines = [
            "dry run: nothing is written",
            f"reads:           {reads}",
            f"writes:          {self.writes.name} ({self.writes.model})",
            f"rows:            {self.num_rows:,}",
            f"bytes read:      {self.bytes_read:,}",
            f"bytes written:   {self.bytes_written:,}",
            f"estimated time:  {self.estimated_s:,.1f} s",
            f"free disk bytes: {free}",
        ]
        if self.bytes_free is not None and self.bytes_free < self.bytes_written:
            lines.append("warning: the disk is too small for the new column")
        return "\n".join(lines)


def plan(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    batch_size: int = 8192,
    existing: runs.Existing = "refuse",
    allow_space_mismatch: bool = False,
) -> Plan:
    """What `upgrade` with the same arguments would do; changes nothing. Errors as `upgrade`."""
    gallery, model, sources, made = _prepare(
        gallery_uri,
        transformation,
        column,
        source,
        side_info,
        batch_size,
        allow_space_mismatch,
        refuse_existing=existing == "refuse",
    )
    read = {found.name: found for found in sources.values()}
    row_read = sum(found.dim * np.dtype(found.dtype).itemsize for found in read.values())
    row_written = 4 * made.dim + len(TRANSFORMED) + 4 * model.has_log_variance
    seconds = 0.0
    for rows in gallery.batches(list(read), batch_size):
        times = [_seconds(functools.partial(_run, model, sources, rows)) for _ in range(4)]
        # The first call also prepares the graph.
        seconds = float(np.median(times[1:])) * gallery.num_rows / len(rows)
        break
    remote = "://" in gallery.path
    return Plan(
        reads=sources,
        writes=made,
        num_rows=gallery.num_rows,
        bytes_read=gallery.num_rows * row_read,
        bytes_written=gallery.num_rows * row_written,
        estimated_s=seconds,
        bytes_free=None if remote else shutil.disk_usage(gallery.path).free,
    )


def _prepare(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike,
    name: str,
    source: str | None,
    side_info: str | None,
    batch_size: int,
    allow_space_mismatch: bool,
    *,
    refuse_existing: bool,
) -> tuple[table.Gallery, saved_model.Transformation, dict[str, Column], Column]:
    """The gallery, the transformation, the columns that it reads, and the new column."""
    gallery = table.open_gallery(gallery_uri)
    table.check_newest(gallery)
    if refuse_existing and name in gallery.dataset.schema.names:
        raise InputError(
            f"{gallery.path}: column {name!r} exists already; pass --overwrite to replace it"
        )
    model = saved_model.load_transformation(transformation)
    names = {"source_embedding": source, "side_info": side_info}
    sources = find_sources(gallery, model, names, name, allow_space_mismatch)
    if name in (column.name for column in sources.values()):
        raise InputError(
            f"{gallery.path}: column {name!r} is what the transformation reads; choose another "
            "name for the new column"
        )
    new = _column(name, model, sources, batch_size)
    new.check()
    return gallery, model, sources, new


def _column(
    name: str, model: saved_model.Transformation, sources: Mapping[str, Column], batch_size: int
) -> Column:
    info = model.info
    identity = {role: column.space for role, column in sources.items()}
    models = [info.get(key) or "unknown" for key in ("source_model", "target_model")]
    return Column(
        name=name,
        dim=model.dims["embedding"],
        space=sha256_json({"transformation": info["space"], **identity}),
        kind=TRANSFORMED,
        distance=info["distance"],
        compatible_with=tuple(space for space in [info.get("target_space")] if space),
        # Also what an unfinished job is recognised by: nothing that changes from run to run.
        created_by=created_by(
            "upgrade_gallery",
            {
                "transformation": info["space"],
                "dtype": info.get("dtype"),
                "batch_size": batch_size,
            },
            source=[{"column": column.name, "space": column.space} for column in sources.values()],
            model=f"{info['name']}: {models[0]} -> {models[1]}",
        ),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _run(
    model: saved_model.Transformation, sources: Mapping[str, Column], rows: Rows
) -> dict[str, np.ndarray]:
    return model(*(rows.vectors[sources[role].name] for role in ROLES if role in sources))


def _finite(values: np.ndarray, rows: Rows, where: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"{where}: row {str(rows.ids[bad[0]])!r}: the transformation returns a log_variance "
            f"of {values[bad[0]]}; train it again"
        )
    return values


def _tagged(gallery: table.Gallery, tag: str, made: Column) -> bool:
    """Whether the version that `tag` names has the column."""
    try:
        there = table.open_gallery(f"{gallery.path}@{tag}").columns.get(made.name)
    except InputError:  # No such tag yet.
        return False
    return there is not None and there.space == made.space


def _tag(gallery: table.Gallery, tag: str) -> table.Gallery:
    if tag:
        version = table.tag(f"{gallery.path}@{gallery.version}", tag)
        logging.info("%s: %s is version %d", gallery.path, tag, version)
    return gallery
