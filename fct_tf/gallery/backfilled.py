"""Backfilled rows as pairs: what the new model has embedded teaches the next transformation."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from fct_tf.errors import InputError
from fct_tf.gallery import sample, table
from fct_tf.gallery.reembedded import BACKFILLED
from fct_tf.provenance import created_by


def pairs_of(
    uri: str, column: str, name: str, path: Path, *, overwrite: bool = False
) -> table.Gallery:
    """The table of pairs that a training keeps; `copy_backfilled` makes it the first time.

    A training that is continued sees the pairs that it began with, however many rows were
    backfilled since.

    Args:
      uri: of the gallery.
      overwrite: make it anew.

    Raises:
      InputError: as `copy_backfilled`, or the table there is of other rows.
    """
    if os.path.lexists(path) and not overwrite:
        kept = table.open_gallery(str(path))
        settings = kept.columns[name].created_by.get("settings") if name in kept.columns else None
        if settings != _settings(table.open_gallery(uri), column):
            raise InputError(
                f"{path}: holds pairs of another gallery or column than {uri} {column!r}; choose "
                "another --workdir or pass --overwrite"
            )
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    return copy_backfilled(table.open_gallery(uri), column, name, str(path), overwrite=overwrite)


def copy_backfilled(
    gallery: table.Gallery, column: str, name: str, path: str, *, overwrite: bool = False
) -> table.Gallery:
    """Writes the rows that were backfilled as a table of pairs: no image is read.

    The new gallery is as `sample.copy_rows` makes it, and has their values in `column`, the new
    model's embeddings, as a column in the space that the transformation maps to (unless the gallery
    has such a column of that name).

    Args:
      gallery: what to copy from.
      column: the transformed column.
      name: of the new model's column in the new gallery.
      path, overwrite: as `fct_tf.gallery.table.create`.

    Raises:
      InputError: no such column, one without backfilled rows or without a space it maps to, a
        name that is taken.
    """
    there = gallery.column(column)
    origin = f"{column}_origin"
    if there.kind != "transformed" or origin not in gallery.dataset.schema.names:
        raise InputError(f"{gallery.path}: column {column!r} is not one that upgrade_gallery made")
    if not there.compatible_with:
        raise InputError(f"{gallery.path}: column {column!r} does not say what space it maps to")
    taken = gallery.columns.get(name)
    has_it = taken is not None and taken.space == there.compatible_with[0]
    if name in gallery.dataset.schema.names and not has_it:
        raise InputError(
            f"{gallery.path}: has a column {name!r} already; choose another name for the new "
            "model's column"
        )
    parts = [np.empty(0, object)]
    for rows in gallery.batches([], 65536, fields=[origin]):
        parts.append(rows.ids[rows.fields[origin] == BACKFILLED])
    ids = np.concatenate(parts)
    if not len(ids):
        raise InputError(
            f"{gallery.path}: column {column!r} has no backfilled rows; run backfill_gallery first"
        )
    done = there.created_by.get("backfilled") or [{}]
    made = dataclasses.replace(
        there,
        name=name,
        space=there.compatible_with[0],
        kind="embedded",
        compatible_with=(),
        created_by=created_by(
            "sample_gallery",
            _settings(gallery, column),
            source=[{"column": column, "space": there.space}],
            model=done[-1].get("model") or "unknown",
        ),
    )
    made.check()
    also = {} if has_it else {column: made}
    return sample.copy_rows(gallery, ids, path, overwrite=overwrite, also=also)


def _settings(gallery: table.Gallery, column: str) -> dict:
    return {"gallery": Path(gallery.path).name, "backfilled": column}
