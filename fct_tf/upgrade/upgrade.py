"""Upgrades a gallery: a transformation runs over stored rows and adds a column.

Only rows are read, never an image. The work goes fragment by fragment; a killed job resumes,
and readers see the new column all at once, in one commit. The column comes into the gallery, or
into one of its own.
"""

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

from absl import logging

from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Engine, local
from fct_tf.gallery import fragments, indices, table
from fct_tf.gallery.columns import MADE_BY_UPGRADE, Column
from fct_tf.gallery.missing import Missing, complete, find
from fct_tf.gallery.reader import to_rows
from fct_tf.upgrade.inputs import ROLES, Transformation, find_sources
from fct_tf.upgrade.pairs import Reembedded
from fct_tf.upgrade.plan import Plan, estimate
from fct_tf.upgrade.transform import FUSED, Transform, describe, is_query_side


class Done(NamedTuple):
    """What an upgrade has done; prints as text.

    gallery: with the column. missing: what was, if only that was asked for. request: the upgrade.
    """

    gallery: table.Gallery
    missing: Missing | None
    request: "Upgrade"

    def __str__(self) -> str:
        path, num_rows, column = self.gallery.path, self.gallery.num_rows, self.request.column
        where = f"{path}@{self.gallery.version}"
        if self.missing is None:
            return f"{where}: {num_rows} rows, column {column}"
        state = "complete"
        if self.missing.count:
            state = f"{self.missing.count} of {num_rows} rows were missing"
        if self.missing.new:
            state += f", {self.missing.new} of them new"
        text = f"{where}: column {column}, {state}"
        if self.missing.gone:
            sources = self.request.gallery
            text += (
                f"\n{self.missing.gone} rows are not in {sources} any more; remove them: python -m "
                f"fct_tf.remove_rows --gallery={path} --sources={sources}"
            )
        return text


@dataclass(frozen=True)
class Upgrade:
    """A new column of a gallery, the transformation of stored columns: `plan()`, or `run()`.

    Beside `column` come `<column>_origin` (`transformed`, or `backfilled` in rows of `pairs`) and,
    where the transformation returns it, `<column>_log_variance` float32 (null where backfilled).
    The column lies in a space of its own, a fingerprint of the transformation and of the spaces of
    what it read, and declares itself compatible with the transformation's target space: queries
    of the new model may be compared with it, but it is not taken for the new model's own
    embeddings. The column of a fused search lies in the space of its queries.

    With `missing` only the rows are transformed that an existing column lacks, those that came
    after it was made. All others keep what they have, backfilled ones too. With `output`, the
    column's own gallery, rows of `gallery` that it does not have are added to it with their ids and
    labels; rows that `gallery` does not have any more are counted and stay.

    Attributes:
      gallery: its path, at its newest version; at any one with `output`.
      transformation: a SavedModel, see `fct_tf.models.saved_model.locate`; or what runs one, see
        `fct_tf.serving.remote`. With `missing` the one that the column was made with.
      column: name of the new column.
      source, side_info: columns to read; by default those in the spaces that the transformation
        was trained on, otherwise those compatible with them; with `missing`, those that the column
        was made from.
      target: the new model's column, for the queries of a fused search.
      side: `gallery`; `query` makes the queries of a fused search, of both models' columns, and
        no field beside them.
      pairs: table of rows that the new model has embedded already; they are taken from its
        column in the transformation's target space.
      missing: see above.
      batch_size: rows per model call.
      existing: what to do when the column is there. `skip` leaves it if this transformation made
        it from the same spaces, and otherwise replaces it.
      allow_space_mismatch: read `source` and `side_info` whatever their spaces are.
      output: path of a new gallery of the rows' ids and labels and this column alone, see
        `fct_tf.gallery.derived`; empty to add the column to the gallery.
      tag: let this tag (such as `live`) point to the version with the new column.
      job_dir: where finished fragments are recorded, in a directory of the column's name; empty:
        `<gallery>.jobs`, or `<output>.jobs`.
      drop_indices: replace a column, or a gallery, that has indices: they go with it.
      engine: what does the fragments, see `fct_tf.engines.engine`.
    """

    gallery: str | os.PathLike
    transformation: str | os.PathLike | Transformation
    column: str
    _: KW_ONLY
    source: str = ""
    side_info: str = ""
    target: str = ""
    side: str = "gallery"
    pairs: str = ""
    missing: bool = False
    batch_size: int = 8192
    existing: runs.Existing = "refuse"
    allow_space_mismatch: bool = False
    output: str | os.PathLike = ""
    tag: str = ""
    job_dir: str | os.PathLike = ""
    drop_indices: bool = False
    engine: Engine = local

    def plan(self) -> Plan:
        """What `run` would do; changes nothing. Errors as `run`."""
        if self.missing:
            return self._plan_missing()
        work, written = self._open(self.existing == "refuse", self.drop_indices)
        dropped: list[indices.Index] = []
        if written and self.output:
            dropped = indices.on(written.dataset, None)
        elif written:
            dropped = table.check_replaced(written, self.column, drop_indices=True)
        first = next(work.gallery.batches(work.reads, self.batch_size), None)
        return estimate(work, first, work.gallery.num_rows, self._output, dropped=dropped)

    def run(self) -> Done:
        """Adds the column, or completes it.

        Raises:
          InputError: no such gallery, column or SavedModel; spaces or dimensions that do not fit;
            an existing column; rows with NaN or infinity. With `missing`, no such column;
            another transformation, or other spaces, than it was made with.
        """
        if self.missing:
            return self._run_missing()
        # Not asked whether indices may go before it is known whether anything is replaced.
        work, written = self._open(self.existing == "refuse" and not self.tag, drop_indices=True)
        if self.pairs:
            if is_query_side(work.model):
                raise InputError(
                    "``pairs``: are rows of the gallery; leave them out with ``side=query``"
                )
            work.take(Reembedded.open(self.pairs, work.model.info.get("target_space")))
        existing = written.columns.get(self.column) if written else None
        if written and existing is not None and self.existing != "overwrite":
            source = work.gallery if self.output else None
            same = _same(existing, work.column) and _made_from(existing, source)
            # The second case: a job killed between its commit and its tag is started again.
            untagged = self.tag and not _tagged(written, self.tag, existing)
            if same and (self.existing == "skip" or untagged):
                logging.info("%s: column %r is there already", written.path, self.column)
                return Done(_tag(written, self.tag), None, self)
        if written and self.existing != "refuse":
            replaced = [self.column, *(self.column + more for more in table.COMPANIONS)]
            lost = None if self.output else replaced
            indices.check_dropped(written.dataset, lost, drop_indices=self.drop_indices)
        if written and not self.pairs:
            _tell_what_is_lost(written, list(written.columns) if self.output else [self.column])
        upgraded = table.add_column(
            work.gallery,
            column=work.column,
            compute=work,
            read=work.reads,
            output=self._output,
            extra_fields=work.fields,
            job_dir=self.job_dir or None,
            overwrite=self.existing != "refuse",
            drop_indices=self.drop_indices,
            batch_size=self.batch_size,
            progress=f"upgrade {self.column}",
            engine=self.engine,
            notes=work.notes,
        )
        work.warn_of_pointless()
        if self.pairs and not work.num_known:
            path = work.gallery.path
            logging.warning("%s: has none of the rows of %s; are they another's?", path, self.pairs)
        return Done(_tag(upgraded, self.tag), None, self)

    def _run_missing(self) -> Done:
        work, target = self._open_missing()
        completed, lacking = complete(
            work.gallery,
            work.column,
            work,
            work.reads,
            target=target,
            extra_fields=work.fields,
            job_dir=self.job_dir or None,
            batch_size=self.batch_size,
            progress=f"upgrade {self.column}",
            engine=self.engine,
            notes=work.notes,
        )
        work.warn_of_pointless()
        return Done(_tag(completed, self.tag), lacking, self)

    def _plan_missing(self) -> Plan:
        work, target = self._open_missing()
        lacking, first = find(work.gallery, self.column, target), None
        for number, places in lacking.rows.items():
            names = list(dict.fromkeys(["id", *work.reads]))
            dataset = work.gallery.dataset
            batch = next(fragments.read_rows(dataset, number, names, self.batch_size, places))
            first = to_rows(batch, work.reads, where=work.gallery.path)
            break
        return estimate(work, first, lacking.count, self._output, missing=True)

    @property
    def _output(self) -> str:
        path = os.fspath(self.output)
        return path.rstrip("/") or path

    @property
    def _sources(self) -> dict[str, str]:
        """Role -> the column that is named for it, or an empty name."""
        return {role: getattr(self, name) for role, name in ROLES.items()}

    def _open(
        self, refuse_existing: bool, drop_indices: bool
    ) -> tuple[Transform, table.Gallery | None]:
        """The work, and the gallery that is written to; None where that is not there yet."""
        self._check_side()
        gallery = table.open_gallery(self.gallery)
        written: table.Gallery | None = gallery
        if self.output:
            exists = table.check_output(
                self._output, [gallery], overwrite=not refuse_existing, drop_indices=drop_indices
            )
            written = table.open_gallery(self._output) if exists else None
        else:
            table.check_newest(gallery)
            if refuse_existing and self.column in gallery.dataset.schema.names:
                raise InputError(
                    f"{gallery.path}: column {self.column!r} exists already; pass "
                    "``overwrite=True`` to replace it, or ``missing=True`` for the rows without a "
                    "value"
                )
            table.check_replaced(gallery, self.column, drop_indices=drop_indices)
        model = self._load(self.side)
        taken = "" if self.output else self.column
        sources = find_sources(gallery, model, self._sources, taken, self.allow_space_mismatch)
        if taken in (column.name for column in sources.values()):
            raise InputError(
                f"{gallery.path}: column {taken!r} is what the transformation reads; choose "
                "another name for the new column"
            )
        new = describe(self.column, model, sources, self.batch_size)
        new.check()
        return Transform(gallery, model, sources, new), written

    def _open_missing(self) -> tuple[Transform, table.Gallery | None]:
        """The work on an existing column, and the gallery of its own that it lies in, or None."""
        self._check_side()
        for name, given in (("overwrite", self.existing != "refuse"), ("pairs", self.pairs)):
            if given:
                raise InputError(
                    f"``{name}``: does not go with ``missing=True``, which changes no other row"
                )
        gallery = table.open_gallery(self.gallery)
        target = table.open_gallery(self._output) if self.output else None
        written = target or gallery
        table.check_newest(written)
        if self.column not in written.dataset.schema.names:
            raise InputError(
                f"{written.path}: has no column {self.column!r} yet; leave ``missing=True`` out"
            )
        column = written.column(self.column)
        model = self._load()
        made_with = column.created_by.get("settings", {}).get("transformation")
        whole = "or transform all rows with ``overwrite=True``"
        if column.kind not in MADE_BY_UPGRADE or made_with != model.info["space"]:
            raise InputError(
                f"{written.path}: column {self.column!r} ({column.model}) was made by the "
                f"transformation {made_with or 'of none'}, {model.path} is {model.info['space']}; "
                f"name the one it was made with, {whole}"
            )
        if column.created_by.get("gallery") and not self.output:
            raise InputError(
                f"{written.path}: column {self.column!r} was made from another gallery; name that "
                "one with ``gallery`` and this one with ``output``"
            )
        if column.created_by["settings"].get("side") == "query":
            model = model.query_side()
        elif self.side == "query":
            raise InputError(
                f"{written.path}: column {self.column!r} holds rows of a gallery, not queries; "
                "leave ``side`` out"
            )
        recorded = column.created_by.get("source", [])
        names = self._sources
        roles = [role for role in ROLES if role in model.dims]
        for role, one in zip(roles, recorded, strict=False):
            if not names[role] and one["column"] in gallery.columns:
                names[role] = one["column"]
        taken = "" if self.output else self.column
        sources = find_sources(gallery, model, names, taken, self.allow_space_mismatch)
        for (role, source), one in zip(sources.items(), recorded, strict=True):
            if source.space != one["space"]:
                raise InputError(
                    f"{gallery.path}: column {self.column!r} was made from {one['column']!r} in "
                    f"space {one['space']}, {source.name!r} lies in space {source.space} (model "
                    f"{source.model}); name a column in that space with ``{ROLES[role]}``, {whole}"
                )
        return Transform(gallery, model, sources, column), target

    def _check_side(self) -> None:
        if self.side not in ("gallery", "query"):
            raise InputError(f"``side={self.side}``: it must be gallery or query")

    def _load(self, side: str = "gallery") -> Transformation:
        if callable(self.transformation):
            model = self.transformation
            return model.query_side() if side == "query" else model
        from fct_tf.models import saved_model

        return saved_model.load_transformation(self.transformation, side)


def _same(there: Column, made: Column) -> bool:
    """Whether a column is what would be made: of one transformation, spaces and pairs."""

    def identity(column: Column) -> list:
        settings = column.created_by.get("settings", {})
        return [column.space, *(settings.get(key) for key in ("transformation", "pairs", "side"))]

    return identity(there) == identity(made)


def _made_from(column: Column, gallery: table.Gallery | None) -> bool:
    """Whether a column was made from another gallery at its version; from none, for None."""
    noted = {"path": gallery.path, "version": gallery.version} if gallery else None
    return column.created_by.get("gallery") == noted


def _tell_what_is_lost(target: table.Gallery, names: Sequence[str]) -> None:
    """Warns of rows that were backfilled in columns which are about to be replaced."""
    for name in names:
        existing = target.columns.get(name)
        if existing is None or not existing.created_by.get("backfilled"):
            continue
        if existing.kind == FUSED:
            logging.warning(
                "%s: the rows that were backfilled in %r are made of the old embedding alone "
                "again; backfill them again, or let ``missing=True`` make the other rows",
                target.path, name,
            )  # fmt: skip
            continue
        noted = existing.created_by.get("gallery")
        sources = f" --sources={noted['path']}@{noted['version']}" if noted else ""
        logging.warning(
            "%s: the rows that were backfilled in %r are transformed again; to keep them, let "
            "sample_gallery --gallery=%s@%d --backfilled=%s%s make a table for ``pairs``",
            target.path, name, target.path, target.version, name, sources,
        )  # fmt: skip


def _tagged(gallery: table.Gallery, tag: str, made: Column) -> bool:
    """Whether the version that `tag` names has this column."""
    try:
        tagged = table.open_gallery(f"{gallery.path}@{tag}").columns.get(made.name)
    except InputError:  # No such tag yet.
        return False
    return tagged == made and tagged.created_by == made.created_by


def _tag(gallery: table.Gallery, tag: str) -> table.Gallery:
    if tag:
        version = table.tag(f"{gallery.path}@{gallery.version}", tag)
        logging.info("%s: %s is version %d", gallery.path, tag, version)
    return gallery
