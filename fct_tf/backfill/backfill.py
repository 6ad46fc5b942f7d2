"""Backfills a transformed column: the rows that gain most get the new model's embedding.

FastFill (arXiv 2303.04766, section 3.3): rows are embedded in the order of a policy until a
budget is used up. Only their images are read. Vectors are recorded in chunks beside the gallery
(see `fct_tf.gallery.job`), which changes in one commit at the end.
"""

import dataclasses
import hashlib
import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf.backfill import fusing, job_order, policies
from fct_tf.backfill import plan as planning
from fct_tf.backfill import staged as stage
from fct_tf.backfill.budget import Budget, parse
from fct_tf.common import files, objects, stores
from fct_tf.common.errors import InputError
from fct_tf.common.provenance import library_versions
from fct_tf.data import by_id
from fct_tf.gallery import replace, table
from fct_tf.gallery.columns import Column, vector_array
from fct_tf.gallery.job import Job, job_directory, open_job
from fct_tf.upgrade.pairs import BACKFILLED


@dataclass(frozen=True)
class Done:
    """What a job has done; prints as text.

    gallery: at its new version. column: its name. embedded: rows backfilled. skipped: (id, reason)
    of the others that were tried; the file `report` lists them, if there are any: a
    path, or its URI where the gallery lies in an object store.
    """

    gallery: table.Gallery
    column: str
    embedded: int
    skipped: list[tuple[str, str]]
    report: Path | str

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} skipped, see {self.report}" if self.skipped else ""
        where = f"{self.gallery.path}@{self.gallery.version}"
        return f"{where}: column {self.column}, {self.embedded} rows backfilled{skipped}"


@dataclass(frozen=True)
class Backfill:
    """Rows of a transformed column to be replaced by the new model's: `plan()`, or `run()`.

    Their `<column>_origin` becomes `backfilled` and their `<column>_log_variance` null. In the
    column of a fused search a row becomes what is made of its old and its new embedding. The column
    keeps what it is compatible with, gets a space of its own (a fingerprint of the one before, the
    model and the rows) and notes in `created_by["backfilled"]` what was done. Killed and started
    again with the same settings, a job goes on where it was; rows and columns that others commit
    meanwhile are kept.

    Attributes:
      gallery: its path; its newest version is changed.
      column: a column of kind `transformed` or `fused`, with the gallery's rows.
      model: embeds images into a space that the column is compatible with.
      images: among which rows are found by their ids.
      policy: `uncertainty`, `random`, `distance` or `file:PATH`, see `fct_tf.backfill.policies`; or
        `ranks`, see `fct_tf.backfill.priority`.
      budget: of this job, whatever earlier ones did, see `fct_tf.backfill.budget`. Rows without an
        image do not use it up; images that turn out to be broken do.
      target_column: for `distance`, the new model's column; of a fused search, the gallery's rows
        as `Upgrade(side="query")` makes them.
      transformation: for `ranks` and fused columns, the SavedModel that made the column.
      sources: for these, the gallery with the columns it was made from, where the column lies in
        a gallery of its own.
      seed: of `random`, and of ties.
      batch_size: images per model call.
      allow_space_mismatch: accept a model of any space.
      tag: let this tag (such as `live`) point to the new version.
      job_dir: where the unfinished job lies, in a directory `backfill_<column>`; empty:
        `<gallery>.jobs`.
      skipped: file for the rows skipped; empty: `<gallery>.<column>.skipped.tsv`, which every job
        writes anew.
      overwrite: replace an existing file `skipped`.
    """

    gallery: str | os.PathLike
    column: str
    model: planning.Model
    images: by_id.Images
    policy: str
    budget: str
    _: KW_ONLY
    target_column: str = ""
    transformation: str = ""
    sources: str = ""
    seed: int = 0
    batch_size: int = 256
    allow_space_mismatch: bool = False
    tag: str = ""
    job_dir: str | os.PathLike = ""
    skipped: str = ""
    overwrite: bool = False

    def plan(self) -> planning.Plan:
        """What `run` would do; changes nothing. Errors as `run`."""
        gallery = table.open_gallery(self.gallery)
        column, _ = self._check(gallery)
        budget = parse(self.budget, gallery.num_rows)
        order = self._in_order(gallery, column, budget)
        what = (gallery, column, self.model, self.images, order, budget, self.batch_size)
        return planning.estimate(*what)

    def run(self) -> Done:
        """Embeds the rows and replaces them.

        Raises:
          InputError: no such gallery, column, policy or budget; a column that no transformation
            made; a model of another space or dimension; not finite embeddings.
        """
        path = table.open_gallery(self.gallery).path
        report = _report(path, self.column, self.job_dir, self.skipped)
        selection = {"policy": self.policy, "budget": self.budget, "seed": self.seed}
        settings = {
            **selection,
            "gallery": path,
            "column": self.column,
            "model": self.model.space,
            "images": self.images.name,
            "listed": _digest(self.policy),
            "target_column": self.target_column,
            "batch_size": self.batch_size,
        }
        with open_job(path, f"backfill_{self.column}", self.job_dir or None) as job:
            gallery = table.open_gallery(self.gallery)
            budget = parse(self.budget, gallery.num_rows)
            column, fuses = self._check(gallery)
            resumed = job.is_of(settings)
            if self.skipped and not resumed:
                files.check_output_file(self.skipped, self.overwrite, "skipped")
            # A job killed between its commit and its end is only ended.
            if not resumed or _noted(job, stage.COMMITTING) != column.space:
                # Of the same settings, but of what the column was before: another job.
                if not resumed or _noted(job, stage.CHOSEN) != column.space:
                    # Chosen before anything is written: the policy may refuse.
                    order = self._in_order(gallery, column, budget)
                    ids = planning.within(order, self.images, budget)
                    _tell(budget, ids, order, gallery.num_rows)
                    job.start(settings, anew=True)
                    chosen = {"space": column.space, "seconds": budget.seconds}
                    job.record(stage.CHOSEN, {**chosen, "ids": ids.tolist()})
                stage.embed_rows(job, self.images, self.model, self.batch_size, budget, fuses)
                _commit(job, gallery, column, self.model, selection)
            return _finish(job, path, self.column, report, self.tag)

    def _check(self, gallery: table.Gallery) -> tuple[Column, fusing.Fusing | None]:
        made_from = (self.transformation, self.sources)
        mismatch = self.allow_space_mismatch
        return planning.check(gallery, self.column, self.model, mismatch, *made_from)

    def _in_order(self, gallery: table.Gallery, column: Column, budget: Budget) -> np.ndarray:
        """The ids of the rows left, those to embed first at the front: object [n] of str."""
        return job_order.in_order(
            gallery,
            column,
            self.policy,
            seed=self.seed,
            target_column=self.target_column,
            transformation=self.transformation,
            sources=self.sources,
            count=budget.rows,
            allow_space_mismatch=self.allow_space_mismatch,
        )


def _report(path: str, column: str, job_dir: str | os.PathLike, skipped: str) -> Path | str:
    """The file of skipped rows: a path, or the URI of one in a store."""
    if skipped or not stores.in_store(path):
        return Path(skipped or f"{path}.{column}.skipped.tsv")
    if not job_dir:
        return f"{path}.{column}.skipped.tsv"
    directory = job_directory(path, f"{column}.skipped.tsv", job_dir)
    return directory if stores.in_store(directory) else Path(directory)


def _digest(policy: str) -> str | None:
    """Of a user's file: another order is another job."""
    if not policy.startswith(policies.FILE):
        return None
    try:
        return hashlib.sha256(Path(policy.removeprefix(policies.FILE)).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"``policy={policy}``: cannot be read ({error.strerror})") from None


def _noted(job: Job, unit: str) -> str:
    """The space that a record of a job names; empty where there is no such record."""
    return job.read(unit)["space"] if job.finished(unit) else ""


def _tell(budget: Budget, ids: np.ndarray, order: np.ndarray, num_rows: int) -> None:
    meaning = f"{budget.rows:,} rows" if budget.rows else f"{budget.seconds:,.0f} s of embedding"
    logging.info(
        "budget %s: %s; %s of %s rows are left to backfill, of which up to %s are tried",
        budget.text, meaning, f"{len(order):,}", f"{num_rows:,}", f"{len(ids):,}",
    )  # fmt: skip


def _commit(
    job: Job, gallery: table.Gallery, column: Column, model: planning.Model, told: dict
) -> None:
    """Makes the staged vectors the rows' own, in one commit; none where nothing was embedded."""
    good, skipped = stage.tried(job)
    if not good:
        return
    vectors = job.stacked("vectors", len(good), column.dim)
    rows = files.sha256_json(sorted(good))
    identity = {"transformed": column.space, "backfilled": {"space": model.space, "rows": rows}}
    record = {
        "door": "backfill_gallery",
        **told,
        "rows": len(good),
        "skipped": len(skipped),
        "model": model.name,
        "space": model.space,
        "replaced_space": column.space,
        "versions": library_versions(),
    }
    earlier = column.created_by.get("backfilled", [])
    new_column = dataclasses.replace(
        column,
        space=files.sha256_json(identity),
        # The queries of a fused search lie in the space that its column had before.
        compatible_with=column.compatible_with or (column.space,),
        created_by={**column.created_by, "backfilled": [*earlier, record]},
    )
    origin, log_variance = f"{column.name}_origin", f"{column.name}_log_variance"
    schema = gallery.dataset.schema

    def values(place: np.ndarray) -> dict[str, pa.Array]:
        names = [good[i] for i in place]
        filled = pa.array([BACKFILLED] * len(place), pa.string())
        new = {
            column.name: vector_array(vectors[place], column, names, gallery.path),
            origin: filled.cast(schema.field(origin).type),
        }
        if log_variance in schema.names:
            new[log_variance] = pa.nulls(len(place), schema.field(log_variance).type)
        return new

    job.record(stage.COMMITTING, {"space": new_column.space})
    replace.replace_rows(gallery.path, new_column, good, values, space=column.space)


def _finish(job: Job, path: str, column: str, report: Path | str, tag: str) -> Done:
    """What comes after the commit; done again where a job was killed before its end."""
    good, skipped = stage.tried(job)
    if skipped:
        lines = [f"{name}\t{reason}\n" for name, reason in skipped]
        objects.write_text(report, "".join(lines))
    elif isinstance(report, Path):
        report.unlink(missing_ok=True)
    else:
        objects.remove(report)
    gallery = table.open_gallery(path)
    if tag:
        version = table.tag(f"{path}@{gallery.version}", tag)
        logging.info("%s: %s is version %d", path, tag, version)
    job.remove()
    return Done(gallery, column, len(good), skipped, report)
