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

from fct_tf.common import cli
from fct_tf.upgrade import sample
from fct_tf.upgrade.reembed_sample import sample_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("gallery", None, "Gallery to draw from, e.g. photos.lance@live.", required=True)
    string("output", None, "Path of the table to make (a Lance dataset).", required=True)
    flags.DEFINE_float("share", None, "Share of the rows to draw, e.g. 0.2.", flag_values=values)
    flags.DEFINE_integer("rows", None, "Or the number of rows to draw.", flag_values=values)
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
