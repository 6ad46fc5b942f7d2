"""A sample of a gallery's rows, re-embedded with the new model: pairs of its own domain."""

from typing import Any

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Engine, local
from fct_tf.gallery import known, table
from fct_tf.gallery.job import Job, alone
from fct_tf.models.load import load_any
from fct_tf.upgrade import sample
from fct_tf.upgrade.backfilled import copy_backfilled


def sample_gallery(
    gallery: str,
    output: str,
    *,
    share: float | None = None,
    rows: int | None = None,
    seed: int = 0,
    images: str = "",
    model: str = "",
    column: str = "embedding_new",
    data_dir: str = "",
    overwrite: bool = False,
    drop_indices: bool = False,
    backfilled: str = "",
    sources: str = "",
    engine: Engine = local,
    **foreign: Any,
) -> table.Gallery:
    """Writes a sample of `gallery` as the gallery `output`, with new embeddings of its images.

    Args:
      gallery: path, optionally with version or tag.
      output: path of the new gallery; what it holds, see `fct_tf.upgrade.sample.copy_rows`.
      share, rows: size of the sample, one of them.
      seed: of the draw.
      images: a source as `fct_tf.data.datasets` names them, among which every drawn row is found by
        its id; empty to write the rows alone.
      model: path of an artifact, a `.keras` file or a SavedModel that embeds `images`.
      column: name of its column.
      data_dir: of TFDS and glyphs.
      overwrite: replace a gallery at `output`; its older versions and tags stay.
      drop_indices: although it has indices.
      backfilled: instead of a sample, all rows that were backfilled in this transformed column;
        their values in it become `column`.
      sources: the gallery that this column was made from, if it lies in a gallery of its own.
      engine: what embeds the images.
      **foreign: of a model that is no artifact, see `fct_tf.models.foreign.load`.

    Raises:
      InputError: an existing output, a size or a name that does not fit, a row without image.
    """
    source = table.open_gallery(gallery)
    output = output.rstrip("/") or output
    read = [source, *([table.open_gallery(sources)] if sources else [])]
    table.check_output(output, read, overwrite=overwrite, drop_indices=drop_indices)
    replaced: dict[str, Any] = {"overwrite": overwrite, "drop_indices": drop_indices}
    source.check_rows()
    if backfilled:
        if share is not None or rows is not None or images or model:
            raise InputError(
                f"``backfilled={backfilled}``: takes all backfilled rows as they are stored; leave "
                "``share``, ``rows``, ``images`` and ``model`` out"
            )
    elif sources:
        raise InputError(f"``sources={sources}``: goes with ``backfilled``; leave it out")
    if bool(images) != bool(model):
        raise InputError(
            "``images`` and ``model`` go together; give both, or none for the rows alone"
        )
    if foreign and not model:
        raise InputError(f"``{next(iter(foreign))}``: is said of ``model``, which is not given")
    if images:
        table.Column(column, dim=1, space="").check()
    if images and column in source.dataset.schema.names:
        raise InputError(
            f"{source.path}: has a column {column!r} already, which is copied; choose another "
            "``column`` for the new model"
        )
    with alone(output, "sample") as job:
        # It may have been made since.
        table.check_output(output, read, **replaced)
        if backfilled:
            return copy_backfilled(source, backfilled, column, output, sources=sources, **replaced)
        count = sample.count_of(source.num_rows, share=share, rows=rows)
        ids = sample.draw(source, count, seed=seed)
        if not images:
            return sample.copy_rows(source, ids, output, **replaced)
        if job is None:
            raise InputError(
                f"{output}: images are embedded beside it; give a path on this machine, or in a "
                "store at s3://, gs:// or az://"
            )
        staged = _embedded(source, ids, job, images, model, column, data_dir, engine, foreign)
        new_gallery = sample.copy_rows(staged, ids, output, **replaced)
        job.remove()
        return new_gallery


def _embedded(
    source: table.Gallery,
    ids: np.ndarray,
    job: Job,
    images: str,
    model: str,
    column: str,
    data_dir: str,
    engine: Engine,
    foreign: dict[str, Any],
) -> table.Gallery:
    """The rows with their new column, in the table of the job."""
    # TensorFlow: not for --help, a wrong flag or a sample without images.
    from fct_tf.data import datasets
    from fct_tf.ingest import embed_images
    from fct_tf.models import preprocess

    loaded = load_any(model, known=known.spaces(source), **foreign)
    image_set = datasets.load(
        images,
        image_size=loaded.preprocessing["size"],
        resize=loaded.preprocessing["resize"],
        data_dir=data_dir,
        cache="none",
        ids=ids.tolist(),
        orientation=preprocess.orientation(loaded.preprocessing),
    )
    settings = {
        "gallery": source.path,
        "version": source.version,
        "column": column,
        "images": image_set.fingerprint,  # The ids are in it.
    }
    job.start(settings)
    path = job.table
    if job.finished("copied"):
        logging.info("%s: continued", job.directory)
    else:
        sample.copy_rows(source, ids, path, overwrite=True)
        job.record("copied", {"rows": len(ids)})
    staged = table.open_gallery(path)
    if column in staged.columns and staged.columns[column].space == loaded.space:
        return staged
    return embed_images.embed_gallery(
        path, image_set, loaded, column, overwrite=True, engine=engine
    )
