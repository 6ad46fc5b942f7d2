"""What gives a gallery a column, or another gallery its rows: the methods of `fct_tf.Gallery`."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fct_tf.api.arguments import EngineName, GalleryLike, PathLike, names, uri_of
from fct_tf.api.model import Model, described
from fct_tf.api.transformation import Transformation
from fct_tf.engines.engine import open_engine
from fct_tf.gallery import table
from fct_tf.gallery.columns import Rows

if TYPE_CHECKING:
    from fct_tf.api.gallery import Gallery
    from fct_tf.backfill.plan import Plan as BackfillPlan
    from fct_tf.upgrade.plan import Plan as UpgradePlan


@dataclasses.dataclass(frozen=True)
class Backfilled:
    """What a backfilling has done: rows embedded, and (id, reason) of those that were skipped,
    which the file `report` (of a gallery in an object store perhaps its URI) lists if there are
    any."""

    gallery: "Gallery"
    embedded: int
    skipped: list[tuple[str, str]]
    report: Path | str


def add_column(
    self: "Gallery",
    name: str,
    compute: Callable[[Rows], Any],
    read: str | Sequence[str] = (),
    *,
    model: str = "",
    distance: str = "l2",
    batch_size: int = 8192,
    overwrite: bool = False,
    drop_indices: bool = False,
) -> "Gallery":
    """Adds a column that a function of yours computes from others, in one commit.

    Args:
      name: of the column.
      compute: from rows (`ids`, `vectors[column]` float32 [n, d]) to float [n, d]; of the rows
        it may use all, but each row's result must not depend on the others.
      read: names of the columns that it needs.
      model: name of the model that the vectors are of, as in `create`; by default the column
        lies in a space of its own, told by its name and by what it was computed from.
      distance: how rows are compared, `l2` or `cosine`.
      batch_size: rows per call of `compute`.
      overwrite: replace a column of this name.
      drop_indices: although it has indices.

    Raises:
      InputError: an existing column, a bad row or result, an old version opened.
    """
    from fct_tf.ingest import computed

    # Stopped halfway it starts anew: nothing says that a function is still the same one.
    with tempfile.TemporaryDirectory() as job_dir:
        self._opened = computed.add_computed(
            self._newest(),
            name,
            compute,
            names(read),
            model=model,
            distance=distance,
            batch_size=batch_size,
            overwrite=overwrite,
            drop_indices=drop_indices,
            job_dir=job_dir,
        )
    return self


def import_embeddings(
    self: "Gallery",
    embeddings: Any,
    column: str,
    model: str,
    *,
    ids: Any = "",
    labels: str = "",
    key: str = "",
    distance: str = "l2",
    kind: str = "imported",
    compatible_with: Sequence[str] = (),
    zero_vectors: Literal["refuse", "keep"] = "refuse",
    overwrite: bool = False,
    drop_indices: bool = False,
) -> "Gallery":
    """Adds embeddings made elsewhere as a column, rows matched by id.

    Args:
      embeddings: a .npy, .npz, HDF5 or Parquet file, a folder of Parquet files, or a Lance
        table; or an array float [n, d] with its `ids`.
      column: its name.
      model: name of the model; embeddings of one name are comparable, in all galleries.
      ids: of a file: name of an array or column in it, or of a file of ids; of an array: n
        ids. The gallery's rows must all be among them.
      labels, key: as the flags of `import_gallery`; for files.
      distance, kind, compatible_with, zero_vectors: as the flags of `import_gallery`.
      overwrite: replace a column of this name.
      drop_indices: although it has indices.

    Raises:
      InputError: a file that cannot be read, a gallery row without embedding, NaN or infinity.
    """
    from fct_tf.ingest import arrays, import_files

    settings: dict[str, Any] = {
        "distance": distance,
        "kind": kind,
        "compatible_with": tuple(compatible_with),
        "zero_vectors": zero_vectors,
        "overwrite": overwrite,
        "drop_indices": drop_indices,
    }
    if isinstance(embeddings, str | os.PathLike):
        source = os.fspath(embeddings)
        text = {"ids": ids, "labels": labels, "key": key}
        table.check_newest(self._opened)
        self._opened = import_files.import_embeddings(
            self.path, source, column, model, **text, **settings
        )
    else:
        self._opened = arrays.add(self._newest(), embeddings, column, model, ids=ids, **settings)
    return self


def embed(
    self: "Gallery",
    images: str,
    model: Model | PathLike,
    column: str,
    *,
    kind: str = "",
    match_dims: int = 0,
    missing: bool = False,
    on_bad_image: Literal["error", "skip"] = "error",
    data_dir: str = "",
    batch_size: int = 256,
    zero_vectors: Literal["refuse", "keep"] = "refuse",
    overwrite: bool = False,
    drop_indices: bool = False,
    engine: EngineName = "local",
    spark_master: str = "",
) -> "Gallery":
    """Embeds the images of the gallery's rows with a model, as a column.

    Args:
      images: `tfds:NAME:SPLIT`, `folder:PATH[:SPLIT]`, `files:PATH[:SPLIT]` or `glyphs:SPLIT`.
      model: an artifact, a `.keras` file or a SavedModel; `Model.load` describes your own.
      column: its name.
      missing: only the rows that an existing column lacks.
      kind, match_dims, on_bad_image, data_dir, batch_size, zero_vectors, overwrite,
        drop_indices: as the flags of `embed_gallery`.
      engine: `spark` to embed on a cluster: the session there is, or one on `spark_master`.

    Raises:
      InputError: no such model or images, a row without image, an existing column.
    """
    from fct_tf.ingest import embed_images

    path, more = described(model)
    with open_engine(engine, spark_master) as opened:
        self._opened = embed_images.embed_gallery(
            self._newest().path,
            images,
            path,
            column,
            kind=kind,
            match_dims=match_dims,
            missing=missing,
            on_bad_image=on_bad_image,
            data_dir=data_dir,
            batch_size=batch_size,
            zero_vectors=zero_vectors,
            overwrite=overwrite,
            drop_indices=drop_indices,
            engine=opened,
            **more,
        )
    return self


def sample(
    self: "Gallery",
    output: PathLike,
    share: float | None = None,
    images: str = "",
    model: Model | PathLike | None = None,
    *,
    rows: int | None = None,
    column: str = "embedding_new",
    seed: int = 0,
    backfilled: str = "",
    sources: PathLike = "",
    data_dir: str = "",
    overwrite: bool = False,
    drop_indices: bool = False,
    engine: EngineName = "local",
    spark_master: str = "",
) -> "Gallery":
    """Draws rows into a gallery of their own, re-embedded by the new model if it is given.

    Args:
      output: path of the new gallery: ids, labels and stored columns of the drawn rows.
      share: of the rows, such as 0.2; or their number, `rows`.
      images, model: read and embed the images of these rows, as `embed`; none for the rows
        alone, to which `import_embeddings` or `add_column` adds the new model's column.
      column: name of the new model's column.
      seed, backfilled, sources, data_dir, overwrite, drop_indices: as the flags of
        `sample_gallery`.
      engine: `spark` to embed on a cluster: the session there is, or one on `spark_master`.

    Raises:
      InputError: an existing output, a size that does not fit, a row without image.
    """
    from fct_tf.upgrade import reembed_sample

    path, more = described(model) if model is not None else ("", {})
    with open_engine(engine, spark_master) as opened:
        sampled = reembed_sample.sample_gallery(
            self.uri,
            os.fspath(output),
            share=share,
            rows=rows,
            images=images,
            model=path,
            column=column,
            seed=seed,
            backfilled=backfilled,
            sources=uri_of(sources),
            data_dir=data_dir,
            overwrite=overwrite,
            drop_indices=drop_indices,
            engine=opened,
            **more,
        )
    return type(self)(sampled)


def upgrade(
    self: "Gallery",
    transformation: Transformation | PathLike,
    column: str,
    output: PathLike | None = None,
    pairs: GalleryLike | None = None,
    dry_run: bool = False,
    *,
    side: Literal["gallery", "query"] = "gallery",
    source: str = "",
    side_info: str = "",
    target: str = "",
    missing: bool = False,
    tag: str = "",
    batch_size: int = 8192,
    overwrite: bool = False,
    drop_indices: bool = False,
    allow_space_mismatch: bool = False,
    job_dir: PathLike | None = None,
    engine: EngineName = "local",
    spark_master: str = "",
) -> "Gallery | UpgradePlan":
    """Runs a transformation over the rows: a new column, without reading an image.

    Args:
      transformation: or the path of a SavedModel or of a training's working directory.
      column: name of the new column. Beside it come `<column>_origin` and, of FastFill,
        `<column>_log_variance`.
      output: path of a new gallery for the column; None to add it here.
      pairs: a gallery of rows that the new model has embedded: taken from there.
      dry_run: change nothing; returns a plan (rows, bytes, estimated time, free disk) that
        prints as text.
      side: of a fused search, `query` makes its queries, of both models' columns.
      source, side_info, target: columns to read; by default found by their spaces.
      missing: only the rows that an existing column lacks.
      tag: let this tag point to the new version.
      overwrite: replace a column, or a gallery `output`.
      batch_size, drop_indices, allow_space_mismatch, job_dir: as the flags of
        `upgrade_gallery`.
      engine: `spark` to run it on a cluster: the session there is, or one on `spark_master`.

    Returns:
      The gallery with the column: this one, or the new one at `output`.

    Raises:
      InputError: no such column, spaces that do not fit, an existing column, bad rows.
    """
    from fct_tf.upgrade.upgrade import Upgrade

    request = Upgrade(
        self._newest().path if output is None else self.uri,
        transformation.loaded if isinstance(transformation, Transformation) else transformation,
        column,
        side=side,
        source=source,
        side_info=side_info,
        target=target,
        pairs=uri_of(pairs),
        missing=missing,
        batch_size=batch_size,
        existing="overwrite" if overwrite else "refuse",
        allow_space_mismatch=allow_space_mismatch,
        output=output or "",
        tag=tag,
        job_dir=job_dir or "",
        drop_indices=drop_indices,
    )
    if dry_run:
        return request.plan()
    with open_engine(engine, spark_master) as opened:
        upgraded = dataclasses.replace(request, engine=opened).run().gallery
    if output is not None:
        return type(self)(upgraded)
    self._opened = upgraded
    return self


def backfill(
    self: "Gallery",
    column: str,
    model: Model | PathLike,
    images: str,
    budget: str = "5%",
    policy: str = "uncertainty",
    dry_run: bool = False,
    *,
    transformation: Transformation | PathLike = "",
    target_column: str = "",
    sources: GalleryLike | None = None,
    seed: int = 0,
    tag: str = "",
    data_dir: str = "",
    batch_size: int = 256,
    skipped: str = "",
    overwrite: bool = False,
    allow_space_mismatch: bool = False,
    job_dir: PathLike | None = None,
) -> "Backfilled | BackfillPlan":
    """Re-embeds rows of an upgraded column with the new model, those that gain most first.

    Args:
      column: made by `upgrade`; that of a fused search needs `transformation`, what made it.
      model, images: as `embed`; only the images of the chosen rows are read.
      budget: `1000` (rows), `5%` (of all rows) or `30min` (of embedding), of this run.
      policy: `uncertainty`, `random`, `ranks` (with `transformation`), `distance` (with
        `target_column`) or `file:PATH`.
      dry_run: change nothing; returns a plan that prints as text.
      transformation, target_column, sources, seed, tag, data_dir, batch_size, skipped,
        overwrite, allow_space_mismatch, job_dir: as the flags of `backfill_gallery`.

    Raises:
      InputError: no such column, policy or budget; a model of another space.
    """
    from fct_tf.backfill.backfill import Backfill
    from fct_tf.backfill.inputs import open_inputs

    path, more = described(model)
    made_with = str(getattr(transformation, "path", transformation))
    uri = self._newest().path
    opened = open_inputs(uri, path, images, transformation=made_with, data_dir=data_dir, **more)
    request = Backfill(
        uri,
        column,
        *opened,
        policy,
        budget,
        target_column=target_column,
        transformation=made_with,
        sources=uri_of(sources),
        seed=seed,
        batch_size=batch_size,
        allow_space_mismatch=allow_space_mismatch,
        tag=tag,
        job_dir=job_dir or "",
        skipped=skipped,
        overwrite=overwrite,
    )
    if dry_run:
        return request.plan()
    done = request.run()
    self._opened = done.gallery
    return Backfilled(self, done.embedded, done.skipped, done.report)
