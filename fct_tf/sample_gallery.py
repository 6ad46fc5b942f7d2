"""Draws a sample of a gallery and embeds its images with the new model: pairs, to learn from.

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

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.engines.engine import open_engine
from fct_tf.upgrade.reembed_sample import sample_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Gallery to draw from, e.g. photos.lance@live.")
    read.string("images", f"The images, with the gallery's ids: {flag_groups.IMAGES}")
    read.string("model", "The new model: artifact, .keras file or SavedModel.")
    flag_groups.define_data_dir(values)
    which = flag_groups.Group(values, "Which rows:")
    which.number("share", "Share of the rows to draw, e.g. 0.2.", None)
    which.integer("rows", "Or the number of rows to draw.", None)
    which.integer("seed", "Seed of the draw.", 0, 0)
    which.string("backfilled", "Instead of a sample: the rows backfilled in this column.")
    text = "For --backfilled: gallery it was made from, if it has one of its own."
    which.string("sources", text)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "Path of the table to make (a Lance dataset).")
    written.string("column", "Name of the new model's column.", "embedding_new")
    flag_groups.define_engine(values)
    flag_groups.define_own_model(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_drop_indices(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Samples what the flags name."""
    own = flag_groups.own_model(values)
    with open_engine(values.engine, values.spark_master) as engine:
        given = cli.arguments(values, sample_gallery, engine=engine)
        sample = sample_gallery(**given, **own)
    print(
        f"{sample.path}@{sample.version}: {sample.num_rows} rows, "
        f"columns {', '.join(sample.columns)}"
    )


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
