"""Upgrades a gallery: a transformation runs over stored rows and adds a column.

Only rows are read, never an image. The work goes fragment by fragment; a killed job resumes,
and readers see the new column all at once, in one commit. The column comes into the gallery, or
into one of its own.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf import runs
from fct_tf.errors import InputError
from fct_tf.files import sha256_json
from fct_tf.gallery import derived, table
from fct_tf.gallery.columns import Column, Directions, Rows
from fct_tf.gallery.reembedded import BACKFILLED, Reembedded
from fct_tf.gallery.sources import Transformation
from fct_tf.gallery.upgrade_plan import TRANSFORMED, prepare, run_model


def upgrade(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    pairs: str = "",
    batch_size: int = 8192,
    existing: runs.Existing = "refuse",
    allow_space_mismatch: bool = False,
    output: str = "",
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
      gallery_uri: the gallery, at its newest version; at any one with `output`.
      transformation: a SavedModel, see `fct_tf.models.saved_model.locate`; or what runs one, see
        `fct_tf.serving.remote`.
      column: name of the new column.
      source, side_info: columns to read; by default those in the spaces that the transformation
        was trained on, else those compatible with them.
      pairs: table of rows that the new model has embedded already; they are taken from its
        column in the transformation's target space.
      batch_size: rows per model call.
      existing: what to do when the column is there. `skip` leaves it if this transformation made
        it from the same spaces, and replaces it else.
      allow_space_mismatch: read `source` and `side_info` whatever their spaces are.
      output: path of a new gallery of the rows' ids and labels and this column alone, see
        `fct_tf.gallery.derived`; empty to add the column to the gallery.
      tag: let this tag (such as `live`) point to the version with the new column.
      job_dir: where finished fragments are recorded, in a directory of the column's name;
        default `<gallery>.jobs`, or `<output>.jobs`. Needed for a gallery in an object store.

    Returns:
      The gallery with the new column.

    Raises:
      InputError: no such gallery, column or SavedModel; spaces or dimensions that do not fit;
        an existing column; rows with NaN or infinity.
    """
    gallery, target, model, sources, made = prepare(
        gallery_uri,
        transformation,
        column,
        source,
        side_info,
        batch_size,
        allow_space_mismatch,
        output,
        refuse_existing=existing == "refuse" and not tag,
    )
    known = Reembedded.open(pairs, model.info.get("target_space")) if pairs else None
    if known:
        identity = {"transformed": made.space, "backfilled": known.fingerprint}
        made = dataclasses.replace(made, space=sha256_json(identity))
    there = target.columns.get(column) if target else None
    if target and there is not None and existing != "overwrite":
        same = there.space == made.space and _made_from(there, gallery if output else None)
        # The second case: a job killed between its commit and its tag is started again.
        if same and (existing == "skip" or (tag and not _tagged(target, tag, there))):
            logging.info("%s: column %r is there already", target.path, column)
            return _tag(target, tag)
    if target and not known:
        _tell_what_is_lost(target, list(target.columns) if output else [column])
    origin, log_variance = f"{column}_origin", f"{column}_log_variance"
    fields = [pa.field(origin, pa.string())]
    if model.has_log_variance:
        fields.append(pa.field(log_variance, pa.float32()))

    computed, filled = 0, 0
    pointless = {
        found.name: Directions() for found in sources.values() if found.distance == "cosine"
    }

    def compute(rows: Rows) -> dict[str, np.ndarray]:
        nonlocal computed, filled
        computed += len(rows)
        for name, directions in pointless.items():
            directions.add(rows.vectors[name], rows.ids)
        outputs = run_model(model, sources, rows)
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

    write = functools.partial(derived.derive, path=output) if output else table.add_column
    upgraded = write(
        gallery,
        column=made,
        compute=compute,
        read=list(dict.fromkeys(found.name for found in sources.values())),
        extra_fields=fields,
        job_dir=job_dir,
        overwrite=existing != "refuse",
        batch_size=batch_size,
        progress=f"upgrade {column}",
    )
    for name, directions in pointless.items():
        if directions.count:
            logging.warning(
                "%s: column %r has %s; what the upgrade makes of them means nothing: embed these "
                "rows again, or backfill them first",
                gallery.path, name, directions,
            )  # fmt: skip
    # Unless an earlier process of this job has done the others.
    if known and computed == upgraded.num_rows and not filled:
        logging.warning("%s: has none of the rows of %s; are they another's?", gallery.path, pairs)
    return _tag(upgraded, tag)


def _made_from(column: Column, gallery: table.Gallery | None) -> bool:
    """Whether a column was made from another gallery at its version; from none, for None."""
    noted = {"path": gallery.path, "version": gallery.version} if gallery else None
    return column.created_by.get("gallery") == noted


def _tell_what_is_lost(target: table.Gallery, names: Sequence[str]) -> None:
    """Warns of rows that were backfilled in columns which are about to be replaced."""
    for name in names:
        there = target.columns.get(name)
        if there is None or not there.created_by.get("backfilled"):
            continue
        noted = there.created_by.get("gallery")
        sources = f" --sources={noted['path']}@{noted['version']}" if noted else ""
        logging.warning(
            "%s: the rows that were backfilled in %r are transformed again; to keep them, let "
            "sample_gallery --gallery=%s@%d --backfilled=%s%s make a table for --pairs",
            target.path, name, target.path, target.version, name, sources,
        )  # fmt: skip


def _finite(values: np.ndarray, rows: Rows, where: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"{where}: row {str(rows.ids[bad[0]])!r}: the transformation returns a log_variance "
            f"of {values[bad[0]]}; train it again"
        )
    return values


def _tagged(gallery: table.Gallery, tag: str, made: Column) -> bool:
    """Whether the version that `tag` names has this column."""
    try:
        there = table.open_gallery(f"{gallery.path}@{tag}").columns.get(made.name)
    except InputError:  # No such tag yet.
        return False
    return there == made and there.created_by == made.created_by


def _tag(gallery: table.Gallery, tag: str) -> table.Gallery:
    if tag:
        version = table.tag(f"{gallery.path}@{gallery.version}", tag)
        logging.info("%s: %s is version %d", gallery.path, tag, version)
    return gallery
