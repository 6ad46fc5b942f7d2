"""Upgrades a gallery: a transformation runs over stored rows and adds a column.

Only rows are read, never an image. The work goes fragment by fragment; a killed job resumes,
and readers see the new column all at once, in one commit. The column comes into the gallery, or
into one of its own.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.gallery import indices, missing, table
from fct_tf.gallery.columns import Column, Directions, Rows
from fct_tf.upgrade.inputs import Transformation
from fct_tf.upgrade.pairs import BACKFILLED, Reembedded
from fct_tf.upgrade.plan import (
    FUSED,
    TRANSFORMED,
    is_query_side,
    prepare,
    prepare_missing,
    run_model,
)


def upgrade(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    target: str | None = None,
    side: str = "gallery",
    pairs: str = "",
    batch_size: int = 8192,
    existing: runs.Existing = "refuse",
    allow_space_mismatch: bool = False,
    output: str = "",
    tag: str = "",
    job_dir: str | os.PathLike | None = None,
    drop_indices: bool = False,
) -> table.Gallery:
    """Adds `column`, the transformation of stored columns, to a gallery.

    Beside it come `<column>_origin` (`transformed`, or `backfilled` in rows of `pairs`) and, where
    the transformation returns it, `<column>_log_variance` float32 (null where backfilled). The
    column lies in a space of its own, a fingerprint of the transformation and of the spaces of
    what it read, and declares itself compatible with the transformation's target space: queries
    of the new model may be compared with it, but it is not taken for the new model's own
    embeddings. The column of a fused search lies in the space of its queries.

    Args:
      gallery_uri: the gallery, at its newest version; at any one with `output`.
      transformation: a SavedModel, see `fct_tf.models.saved_model.locate`; or what runs one, see
        `fct_tf.serving.remote`.
      column: name of the new column.
      source, side_info: columns to read; by default those in the spaces that the transformation
        was trained on, otherwise those compatible with them.
      target: the new model's column, for the queries of a fused search.
      side: `gallery`; `query` makes the queries of a fused search, of both models' columns, and
        no field beside them.
      pairs: table of rows that the new model has embedded already; they are taken from its
        column in the transformation's target space.
      batch_size: rows per model call.
      existing: what to do when the column is there. `skip` leaves it if this transformation made
        it from the same spaces, and otherwise replaces it.
      allow_space_mismatch: read `source` and `side_info` whatever their spaces are.
      output: path of a new gallery of the rows' ids and labels and this column alone, see
        `fct_tf.gallery.derived`; empty to add the column to the gallery.
      tag: let this tag (such as `live`) point to the version with the new column.
      job_dir: where finished fragments are recorded, in a directory of the column's name;
        default `<gallery>.jobs`, or `<output>.jobs`. Needed for a gallery in an object store.
      drop_indices: replace a column, or a gallery, that has indices: they go with it.

    Returns:
      The gallery with the new column.

    Raises:
      InputError: no such gallery, column or SavedModel; spaces or dimensions that do not fit;
        an existing column; rows with NaN or infinity.
    """
    gallery, written, model, sources, made = prepare(
        gallery_uri,
        transformation,
        column,
        {"source_embedding": source, "side_info": side_info, "target_embedding": target},
        batch_size,
        allow_space_mismatch,
        output,
        side=side,
        refuse_existing=existing == "refuse" and not tag,
        # Not asked before it is known whether anything is replaced.
        drop_indices=True,
    )
    if pairs and is_query_side(model):
        raise InputError("--pairs: are rows of the gallery; leave them out with --side=query")
    known = Reembedded.open(pairs, model.info.get("target_space")) if pairs else None
    if known:
        made = _with_pairs(made, known)
    there = written.columns.get(column) if written else None
    if written and there is not None and existing != "overwrite":
        same = _same(there, made) and _made_from(there, gallery if output else None)
        # The second case: a job killed between its commit and its tag is started again.
        if same and (existing == "skip" or (tag and not _tagged(written, tag, there))):
            logging.info("%s: column %r is there already", written.path, column)
            return _tag(written, tag)
    if written and existing != "refuse":
        replaced = None if output else [column, *(column + more for more in table.COMPANIONS)]
        indices.check_dropped(written.dataset, replaced, drop_indices=drop_indices)
    if written and not known:
        _tell_what_is_lost(written, list(written.columns) if output else [column])
    done: Counter[str] = Counter()
    pointless = _pointless(sources)
    upgraded = table.add_column(
        gallery,
        column=made,
        compute=_computing(model, sources, column, gallery.path, pointless, known, done),
        read=list(dict.fromkeys(found.name for found in sources.values())),
        output=output,
        extra_fields=_fields(model, column),
        job_dir=job_dir,
        overwrite=existing != "refuse",
        drop_indices=drop_indices,
        batch_size=batch_size,
        progress=f"upgrade {column}",
    )
    _tell_pointless(gallery.path, pointless)
    # Unless an earlier process of this job has done the others.
    if known and done["computed"] == upgraded.num_rows and not done["filled"]:
        logging.warning("%s: has none of the rows of %s; are they another's?", gallery.path, pairs)
    return _tag(upgraded, tag)


def upgrade_missing(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    target: str | None = None,
    batch_size: int = 8192,
    allow_space_mismatch: bool = False,
    output: str = "",
    tag: str = "",
    job_dir: str | os.PathLike | None = None,
) -> tuple[table.Gallery, missing.Missing]:
    """Transforms the rows that `column` lacks: those that came after it was made, no others.

    Rows in which the column is null get its value, `<column>_origin` and
    `<column>_log_variance`; all other rows keep theirs, backfilled ones too. With `output`, the
    column's own gallery, rows of `gallery_uri` that it does not have are added to it with their
    ids and labels; rows that `gallery_uri` does not have any more are counted and stay.

    Args:
      transformation: the one that the column was made with.
      source, side_info, target: columns to read; by default those that the column was made from.
      gallery_uri, column, batch_size, allow_space_mismatch, output, tag, job_dir: as `upgrade`.

    Returns:
      The gallery with the column, and what was missing.

    Raises:
      InputError: no such column; another transformation, or other spaces, than it was made with;
        and as `upgrade`.
    """
    names = {"source_embedding": source, "side_info": side_info, "target_embedding": target}
    gallery, written, model, sources, there = prepare_missing(
        gallery_uri, transformation, column, names, allow_space_mismatch, output
    )
    pointless = _pointless(sources)
    completed, found = missing.complete(
        gallery,
        there,
        _computing(model, sources, column, gallery.path, pointless),
        list(dict.fromkeys(found.name for found in sources.values())),
        target=written,
        extra_fields=_fields(model, column),
        job_dir=job_dir,
        batch_size=batch_size,
        progress=f"upgrade {column}",
    )
    _tell_pointless(gallery.path, pointless)
    return _tag(completed, tag), found


def check_missing(*, overwrite: bool, pairs: str) -> None:
    """Refuses what does not go with the rows that a column lacks.

    Raises:
      InputError: names it.
    """
    for name, given in (("overwrite", overwrite), ("pairs", pairs)):
        if given:
            raise InputError(f"--{name}: does not go with --missing, which changes no other row")


def _with_pairs(made: Column, known: Reembedded) -> Column:
    """The column where rows that the new model has embedded are taken from there."""
    if made.kind == FUSED:  # They lie in the same space as the others.
        settings = {**made.created_by["settings"], "pairs": known.fingerprint}
        return dataclasses.replace(made, created_by={**made.created_by, "settings": settings})
    identity = {"transformed": made.space, "backfilled": known.fingerprint}
    return dataclasses.replace(made, space=sha256_json(identity))


def _same(there: Column, made: Column) -> bool:
    """Whether a column is what would be made: of one transformation, spaces and pairs."""

    def identity(column: Column) -> list:
        settings = column.created_by.get("settings", {})
        return [column.space, *(settings.get(key) for key in ("transformation", "pairs", "side"))]

    return identity(there) == identity(made)


def _fields(model: Transformation, column: str) -> list[pa.Field]:
    """Those that come with the column."""
    if is_query_side(model):
        return []
    fields = [pa.field(f"{column}_origin", pa.string())]
    if model.has_log_variance:
        fields.append(pa.field(f"{column}_log_variance", pa.float32()))
    return fields


def _computing(
    model: Transformation,
    sources: Mapping[str, Column],
    column: str,
    path: str,
    pointless: Mapping[str, Directions],
    known: Reembedded | None = None,
    done: Counter[str] | None = None,
) -> Callable[[Rows], dict[str, np.ndarray]]:
    """What makes the column and its fields of rows.

    Counts rows in `done`, those known among them, and in `pointless` those without a direction.
    """
    done = Counter() if done is None else done
    origin, log_variance = f"{column}_origin", f"{column}_log_variance"

    def compute(rows: Rows) -> dict[str, np.ndarray]:
        done["computed"] += len(rows)
        for name, directions in pointless.items():
            directions.add(rows.vectors[name], rows.ids)
        outputs = run_model(model, sources, rows)
        values = {column: outputs["embedding"]}
        if is_query_side(model):
            return values
        values[origin] = np.full(len(rows), TRANSFORMED, object)
        if model.has_log_variance:
            values[log_variance] = _finite(outputs["log_variance"], rows, path)
        if known:
            backfilled, vectors = known.of_rows(rows)
            if model.fuse:
                source = sources["source_embedding"].name
                vectors = model.fuse(rows.vectors[source][backfilled], vectors)
            values[column] = values[column].copy()  # The model's output is read-only.
            values[column][backfilled] = vectors
            values[origin][backfilled] = BACKFILLED
            done["filled"] += int(backfilled.sum())
            if model.has_log_variance:
                values[log_variance] = np.where(backfilled, np.nan, values[log_variance])
        return values

    return compute


def _pointless(sources: Mapping[str, Column]) -> dict[str, Directions]:
    """For each source that is compared by direction, what counts its rows without one."""
    return {found.name: Directions() for found in sources.values() if found.distance == "cosine"}


def _tell_pointless(path: str, pointless: Mapping[str, Directions]) -> None:
    for name, directions in pointless.items():
        if directions.count:
            logging.warning(
                "%s: column %r has %s; what the upgrade makes of them means nothing: embed these "
                "rows again, or backfill them first",
                path, name, directions,
            )  # fmt: skip


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
        if there.kind == FUSED:
            logging.warning(
                "%s: the rows that were backfilled in %r are made of the old embedding alone "
                "again; backfill them again, or let --missing make the other rows",
                target.path, name,
            )  # fmt: skip
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
