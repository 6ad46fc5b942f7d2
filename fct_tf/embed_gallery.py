"""Embeds images with a model: a new gallery, or one more column of an existing one.

The model is an artifact of this package, or a Keras model or SavedModel of your own, which the
flags --preprocessing, --image_size, --signature and so on describe. Killed and started again, it
continues; the gallery changes in one commit at the end.

  python -m fct_tf.embed_gallery --gallery=photos.lance --images=folder:photos:gallery \\
      --model=runs/old/artifact --column=embedding_old

The queries of a fused search come from one model, too, where its old and its new encoder take
images of one size: what export_serving made with --encoder and --target_encoder.

With --missing only the images of rows are embedded that came after the column was made: those
in which it is null. All other rows keep what they have.
"""

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.engines.engine import open_engine
from fct_tf.ingest.embed_images import embed_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("images", flag_groups.IMAGES)
    read.required("model", "Artifact, .keras file or SavedModel.")
    flag_groups.define_data_dir(values)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("gallery", "Path of the gallery (a Lance dataset).")
    written.required("column", "Name of the embedding column.")
    written.string("kind", "embedded or side_info; by default as the artifact says.")
    written.integer(
        "match_dims",
        "Cut the vectors, or fill them up with zeros, to this size: the old model's, where a model "
        "is compatible with one of another size. 0: as they are.",
        0,
        0,
    )
    written.boolean("missing", "Only the rows that an existing column lacks.")
    run = flag_groups.Group(values, flag_groups.RUN)
    run.integer("batch_size", "Images per model call.", 256, 1)
    flag_groups.define_engine(values)
    flag_groups.define_own_model(values)
    allowed = flag_groups.Group(values, flag_groups.ALLOWED)
    allowed.choice(
        "on_bad_image",
        "With an unreadable image, or one whose name is not UTF-8: stop, or leave it out "
        "and count.",
        "error",
        ["error", "skip"],
    )
    flag_groups.define_zero_vectors(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_drop_indices(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Embeds what the flags name."""
    own = flag_groups.own_model(values)
    with open_engine(values.engine, values.spark_master) as engine:
        given = cli.arguments(values, embed_gallery, engine=engine)
        gallery = embed_gallery(**given, **own)
    print(f"{gallery.path}@{gallery.version}: {gallery.num_rows} rows, column {values.column}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
