"""Draws rows of a gallery and embeds their images with the new model: pairs of its own domain.

The table that comes out holds the drawn rows' ids, labels and stored columns, and the new
model's column beside them: train_transformation learns from it, and evaluate says on it what a
switch would bring before the gallery is touched. No other image is decoded. Killed and started
again, it continues; the table appears in one commit at the end.

  python -m fct_tf.sample_gallery --gallery=photos.lance --share=0.2 --output=pairs.lance \\
      --images=folder:photos:gallery --model=runs/new/artifact --column=embedding_new

Without --images only the rows are written, and embed_gallery or import_gallery adds the column.
A larger sample of the same seed contains the smaller one. A Keras model or SavedModel of your own
is described by --preprocessing, --image_size, --signature and so on, as in embed_gallery.

Rows that backfill_gallery has embedded are pairs too, and no image is read for them:

  python -m fct_tf.sample_gallery --gallery=photos.lance --backfilled=embedding_fct \\
      --output=pairs.lance
"""

import functools
from pathlib import Path
from typing import Any

from absl import flags, logging

from fct_tf import cli, runs
from fct_tf.errors import InputError
from fct_tf.gallery import known, sample, table
from fct_tf.gallery.backfilled import copy_backfilled


def sample_gallery(
    gallery: str,
    output: str,
    *,
    share: float | None = None,
    rows: int | None = None,
    method: str = "random",
    by: str = "",
    seed: int = 0,
    images: str = "",
    model: str = "",
    column: str = "embedding_new",
    data_dir: str = "",
    overwrite: bool = False,
    drop_indices: bool = False,
    backfilled: str = "",
    sources: str = "",
    **foreign: Any,
) -> table.Gallery:
    """Writes a sample of `gallery` as the gallery `output`, with new embeddings of its images.

    Args:
      gallery: path, optionally with version or tag.
      output: path of the new gallery; what it holds, see `fct_tf.gallery.sample.copy_rows`.
      share, rows: size of the sample, one of them.
      method, by, seed: as `fct_tf.gallery.sample.draw`.
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
      **foreign: of a model that is no artifact, see `fct_tf.models.foreign.load`.

    Raises:
      InputError: an existing output, a size or a name that does not fit, a row without image.
    """
    source = table.open_gallery(gallery)
    output = output.rstrip("/") or output
    read = [source, *([table.open_gallery(sources)] if sources else [])]
    table.check_output(output, read, overwrite=overwrite, drop_indices=drop_indices)
    copy = functools.partial(
        sample.copy_rows, path=output, overwrite=overwrite, drop_indices=drop_indices
    )
    source.check_rows()
    if backfilled:
        if share is not None or rows is not None or by or images or model or method != "random":
            raise InputError(
                f"--backfilled={backfilled}: takes all backfilled rows as they are stored; leave "
                "--share, --rows, --method, --by, --images and --model out"
            )
        return copy_backfilled(
            source,
            backfilled,
            column,
            output,
            sources=sources,
            overwrite=overwrite,
            drop_indices=drop_indices,
        )
    if sources:
        raise InputError(f"--sources={sources}: goes with --backfilled; leave it out")
    if bool(images) != bool(model):
        raise InputError("--images and --model go together; give both, or none for the rows alone")
    if foreign and not model:
        raise InputError(f"--{next(iter(foreign))}: is said of --model, which is not given")
    if images:
        table.Column(column, dim=1, space="").check()
    if images and column in source.dataset.schema.names:
        raise InputError(
            f"{source.path}: has a column {column!r} already, which is copied; choose another "
            "--column for the new model"
        )
    count = sample.count_of(source.num_rows, share=share, rows=rows)
    ids = sample.draw(source, count, method=method, by=by, seed=seed)
    if not images:
        return copy(source, ids)
    if "://" in output:
        raise InputError(f"{output}: images are embedded beside it; give a path on this machine")
    job = Path(f"{output}.jobs") / "sample"
    staged = _embedded(source, ids, job, images, model, column, data_dir, foreign)
    made = copy(staged, ids)
    runs.remove(job)
    if not any(job.parent.iterdir()):
        job.parent.rmdir()
    return made


def _embedded(
    source: table.Gallery,
    ids,
    job: Path,
    images: str,
    model: str,
    column: str,
    data_dir: str,
    foreign: dict[str, Any],
) -> table.Gallery:
    """The rows with their new column, staged in the directory `job`."""
    # TensorFlow: not for --help, a wrong flag or a sample without images.
    from fct_tf import embed_gallery
    from fct_tf.data import datasets
    from fct_tf.models import artifact, preprocess

    loaded = artifact.load_any(model, known=known.spaces(source), **foreign)
    image_set = datasets.load(
        images,
        image_size=loaded.preprocessing["size"],
        resize=loaded.preprocessing["resize"],
        data_dir=data_dir,
        cache="none",
        ids=ids.tolist(),
        orientation=preprocess.orientation(loaded.preprocessing),
    )
    path = job / "rows.lance"
    settings = {
        "gallery": source.path,
        "version": source.version,
        "column": column,
        "images": image_set.fingerprint,  # The ids are in it.
    }
    runs.begin(job, job / "never", settings, "skip", makes=(path.name, f"{path.name}.jobs"))
    if table.exists(str(path)):
        logging.info("%s: continued", job)
    else:
        sample.copy_rows(source, ids, str(path))
    there = table.open_gallery(path)
    if column in there.columns and there.columns[column].space == loaded.space:
        return there
    return embed_gallery.embed_gallery(str(path), image_set, loaded, column, overwrite=True)


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("gallery", None, "Gallery to draw from, e.g. photos.lance@live.", required=True)
    string("output", None, "Path of the table to make (a Lance dataset).", required=True)
    flags.DEFINE_float("share", None, "Share of the rows to draw, e.g. 0.2.", flag_values=values)
    flags.DEFINE_integer("rows", None, "Or their number.", flag_values=values)
    flags.DEFINE_enum(
        "method",
        "random",
        sample.METHODS,
        "random, or spread: from every k-means cluster, in proportion to its size.",
        flag_values=values,
    )
    string("by", "", "For spread: column to cluster; by default the first embedded or imported.")
    flags.DEFINE_integer("seed", 0, "Seed of the draw.", 0, flag_values=values)
    string("images", "", f"The images, with the gallery's ids: {cli.IMAGES}")
    string("model", "", "The new model: artifact, .keras file or SavedModel.")
    string("column", "embedding_new", "Name of the new model's column.")
    string("backfilled", "", "Instead of a sample: the rows backfilled in this column.")
    string("sources", "", "For --backfilled: gallery it was made from, if it has one of its own.")
    string("data_dir", "", "Where TFDS keeps its data; by default TFDS_DATA_DIR.")
    cli.define_own_model(values)
    cli.define_overwrite(values)
    cli.define_drop_indices(values)


def main(values: flags.FlagValues) -> None:
    """Samples what the flags name."""
    made = sample_gallery(
        values.gallery,
        values.output,
        share=values.share,
        rows=values.rows,
        method=values.method,
        by=values.by,
        seed=values.seed,
        images=values.images,
        model=values.model,
        column=values.column,
        data_dir=values.data_dir,
        overwrite=values.overwrite,
        drop_indices=values.drop_indices,
        backfilled=values.backfilled,
        sources=values.sources,
        **cli.own_model(values),
    )
    print(f"{made.path}@{made.version}: {made.num_rows} rows, columns {', '.join(made.columns)}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
