"""Backfills a transformed column: the rows that gain most get the new model's embedding.

FastFill (arXiv 2303.04766, section 3.3): rows are embedded in the order of a policy until a
budget is used up. Only their images are read. Vectors are recorded in chunks beside the gallery
(see `fct_tf.gallery.job`), which changes in one commit at the end.
"""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf.backfill import job_order, policies
from fct_tf.backfill import plan as planning
from fct_tf.backfill import staged as stage
from fct_tf.backfill.budget import Budget, parse
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.common.provenance import library_versions
from fct_tf.data import by_id
from fct_tf.gallery import replace, table
from fct_tf.gallery.columns import Column, vector_array
from fct_tf.gallery.job import Job, job_directory, open_job
from fct_tf.upgrade.pairs import BACKFILLED


@dataclass(frozen=True)
class Done:
    """What a job has done.

    gallery: at its new version. embedded: rows backfilled. skipped: (id, reason) of the others
    that were tried; the file `report` lists them, if there are any.
    """

    gallery: table.Gallery
    embedded: int
    skipped: list[tuple[str, str]]
    report: Path


def backfill(
    gallery_uri: str | os.PathLike,
    column: str,
    model: planning.Model,
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
    tag: str = "",
    job_dir: str | os.PathLike | None = None,
    skipped: str = "",
    overwrite: bool = False,
) -> Done:
    """Replaces rows of `column`, which a transformation made, by the new model's embeddings.

    Their `<column>_origin` becomes `backfilled` and their `<column>_log_variance` null. In the
    column of a fused search a row becomes what is made of its old and its new embedding. The column
    keeps what it is compatible with, gets a space of its own (a fingerprint of the one before, the
    model and the rows) and notes in `created_by["backfilled"]` what was done. Killed and started
    again with the same arguments, a job goes on where it was; rows and columns that others commit
    meanwhile are kept.

    Args:
      gallery_uri: the gallery, at its newest version.
      column: a column of kind `transformed` or `fused`, with the gallery's rows.
      model: embeds images into a space that the column is compatible with.
      images: among which rows are found by their ids.
      policy: `uncertainty`, `random`, `distance` or `file:PATH`, see `fct_tf.backfill.policies`; or
        `ranks`, see `fct_tf.backfill.priority`.
      budget: of this job, whatever earlier ones did, see `fct_tf.backfill.budget`. Rows without an
        image do not use it up; images that turn out to be broken do.
      target_column: for `distance`, the new model's column; of a fused search, the gallery's rows
        as `upgrade(side="query")` makes them.
      transformation: for `ranks` and fused columns, the SavedModel that made the column.
      sources: for these, the gallery with the columns it was made from, where the column lies in
        a gallery of its own.
      seed: of `random`, and of ties.
      batch_size: images per model call.
      allow_space_mismatch: accept a model of any space.
      tag: let this tag (such as `live`) point to the new version.
      job_dir: where the unfinished job lies, in a directory `backfill_<column>`; default
        `<gallery>.jobs`. Needed for a gallery in an object store.
      skipped: file for the rows skipped; default `<gallery>.<column>.skipped.tsv`, which every job
        writes anew.
      overwrite: replace an existing file `skipped`.

    Raises:
      InputError: no such gallery, column, policy or budget; a column that no transformation made;
        a model of another space or dimension; not finite embeddings.
    """
    path = table.open_gallery(gallery_uri).path
    report = _report(path, column, job_dir, skipped)
    settings = {
        "gallery": path,
        "column": column,
        "model": model.space,
        "images": images.name,
        "policy": policy,
        "listed": _digest(policy),
        "budget": budget,
        "target_column": target_column,
        "seed": seed,
        "batch_size": batch_size,
    }
    with open_job(path, f"backfill_{column}", job_dir) as job:
        gallery = table.open_gallery(gallery_uri)
        allowed = parse(budget, gallery.num_rows)
        existing, fuses = planning.check(
            gallery, column, model, allow_space_mismatch, transformation, sources
        )
        resumed = job.is_of(settings)
        if skipped and not resumed:
            files.check_output_file(skipped, overwrite, "--skipped")
        # A job killed between its commit and its end is only ended.
        if not resumed or _noted(job, stage.COMMITTING) != existing.space:
            # Of the same settings, but of what the column was before: another job.
            if not resumed or _noted(job, stage.CHOSEN) != existing.space:
                # Chosen before anything is written: the policy may refuse.
                order = job_order.in_order(
                    gallery,
                    existing,
                    policy,
                    seed=seed,
                    target_column=target_column,
                    transformation=transformation,
                    sources=sources,
                    count=allowed.rows,
                    allow_space_mismatch=allow_space_mismatch,
                )
                ids = planning.within(order, images, allowed)
                _tell(allowed, ids, order, gallery.num_rows)
                job.start(settings, anew=True)
                chosen = {"space": existing.space, "seconds": allowed.seconds, "ids": ids.tolist()}
                job.record(stage.CHOSEN, chosen)
            stage.embed_rows(job, images, model, batch_size, allowed, fuses)
            told = {"policy": policy, "budget": budget, "seed": seed}
            _commit(job, gallery, existing, model, told)
        return _finish(job, path, report, tag)


def _report(path: str, column: str, job_dir: str | os.PathLike | None, skipped: str) -> Path:
    """The file of skipped rows."""
    if "://" not in path:
        return Path(skipped or f"{path}.{column}.skipped.tsv")
    return Path(skipped or job_directory(path, f"{column}.skipped.tsv", job_dir))


def _digest(policy: str) -> str | None:
    """Of a user's file: another order is another job."""
    if not policy.startswith(policies.FILE):
        return None
    try:
        return hashlib.sha256(Path(policy.removeprefix(policies.FILE)).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"--policy={policy}: cannot be read ({error.strerror})") from None


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
    made = dataclasses.replace(
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

    job.record(stage.COMMITTING, {"space": made.space})
    replace.replace_rows(gallery.path, made, good, values, space=column.space)


def _finish(job: Job, path: str, report: Path, tag: str) -> Done:
    """What comes after the commit; done again where a job was killed before its end."""
    good, skipped = stage.tried(job)
    if skipped:
        lines = [f"{name}\t{reason}\n" for name, reason in skipped]
        files.atomic_write_text(report, "".join(lines))
    else:
        report.unlink(missing_ok=True)
    gallery = table.open_gallery(path)
    if tag:
        version = table.tag(f"{path}@{gallery.version}", tag)
        logging.info("%s: %s is version %d", path, tag, version)
    job.remove()
    return Done(gallery, len(good), skipped, report)
