"""Backfilled rows as pairs: what the new model has embedded teaches the next transformation."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.common.provenance import created_by
from fct_tf.gallery import derived, table
from fct_tf.gallery.columns import MADE_BY_UPGRADE
from fct_tf.upgrade import sample
from fct_tf.upgrade.pairs import BACKFILLED, Reembedded
from fct_tf.upgrade.transform import FUSED


@contextlib.contextmanager
def staged_pairs(
    uri: str, column: str, name: str, path: Path, *, sources: str = "", started: bool
) -> Iterator[Path]:
    """Where the pairs of a training are, for the checks inside the block; then they are at `path`.

    A training that has started goes on with the pairs that it began with, however many rows were
    backfilled since. Else they are made anew by `copy_backfilled`, and nothing is left of them, or
    changed, if the block fails.

    Args:
      uri: of the gallery.
      column, name, sources: as `copy_backfilled`.
      path: the table in the training's working directory, which is there.
      started: whether the training has.

    Raises:
      InputError: as `copy_backfilled`, or the kept pairs are no backfilled rows of that column.
    """
    gallery = table.open_gallery(uri)
    if started and os.path.lexists(path):
        kept = table.open_gallery(str(path)).read([]).ids
        others = set(kept).difference(_backfilled_ids(gallery, column))
        if others:
            raise InputError(
                f"{path}: the run goes on with its pairs, but row {min(others)!r} is not "
                f"backfilled in {column!r} of {uri}; name the gallery it began with, or pass "
                "``overwrite=True``"
            )
        yield path
        return
    staged = path.with_name(f".{path.name}")
    try:
        copy_backfilled(gallery, column, name, str(staged), sources=sources, overwrite=True)
        yield staged
    except BaseException:
        runs.remove(staged)
        raise
    runs.remove(path)
    os.replace(staged, path)


def copy_backfilled(
    gallery: table.Gallery,
    column: str,
    name: str,
    path: str,
    *,
    sources: str = "",
    overwrite: bool = False,
    drop_indices: bool = False,
) -> table.Gallery:
    """Writes the rows that were backfilled as a table of pairs: no image is read.

    The new gallery is as `sample.copy_rows` makes it, and has their values in `column`, the new
    model's embeddings, as a column in the space that the transformation maps to (unless the gallery
    has such a column of that name).

    Args:
      gallery: what to copy from.
      column: the transformed column.
      name: of the new model's column in the new gallery.
      path, overwrite, drop_indices: as `fct_tf.gallery.table.create`.
      sources: the gallery that the column was made from, if it lies in a gallery of its own: the
        labels and the other columns are copied from there. The backfilled vectors are then held in
        memory.

    Raises:
      InputError: no such column, one without backfilled rows or without a space it maps to, a
        name that is taken.
    """
    transformed = gallery.column(column)
    ids = _backfilled_ids(gallery, column)
    if not transformed.compatible_with:
        raise InputError(f"{gallery.path}: column {column!r} does not say what space it maps to")
    stored = derived.open_sources(gallery, transformed, sources)
    taken = stored.columns.get(name)
    has_it = taken is not None and taken.space == transformed.compatible_with[0]
    if name in stored.dataset.schema.names and not has_it:
        raise InputError(
            f"{stored.path}: has a column {name!r} already; choose another name for the new "
            "model's column"
        )
    done = transformed.created_by.get("backfilled") or [{}]
    new_column = dataclasses.replace(
        transformed,
        name=name,
        space=transformed.compatible_with[0],
        kind="embedded",
        compatible_with=(),
        created_by=created_by(
            "sample_gallery",
            {"backfilled": column},
            source=[{"column": column, "space": transformed.space}],
            model=done[-1].get("model") or "unknown",
        ),
    )
    new_column.check()
    copy = functools.partial(
        sample.copy_rows, path=path, overwrite=overwrite, drop_indices=drop_indices
    )
    if has_it or stored is gallery:
        also = {} if has_it else {column: new_column}
        return copy(stored, ids, also=also)
    rows = gallery.take(ids.tolist(), [column])
    named = dataclasses.replace(rows, vectors={name: rows.vectors[column]})
    reembedded = Reembedded.of(new_column, named, new_column.space)
    return copy(stored, ids, known=reembedded)


def _backfilled_ids(gallery: table.Gallery, column: str) -> np.ndarray:
    """The ids of the rows that were backfilled in a transformed column: object [n > 0]."""
    origin = f"{column}_origin"
    kind = gallery.column(column).kind
    if kind == FUSED:
        raise InputError(
            f"{gallery.path}: column {column!r} is of a fused search, whose rows do not hold the "
            "new embedding by itself; take pairs by sample_gallery --images and --model"
        )
    if kind not in MADE_BY_UPGRADE or origin not in gallery.dataset.schema.names:
        raise InputError(f"{gallery.path}: column {column!r} is not one that upgrade_gallery made")
    parts = [np.empty(0, object)]
    for rows in gallery.batches([], 65536, fields=[origin]):
        parts.append(rows.ids[rows.fields[origin] == BACKFILLED])
    ids = np.concatenate(parts)
    if not len(ids):
        raise InputError(
            f"{gallery.path}: column {column!r} has no backfilled rows; run backfill_gallery first"
        )
    return ids
