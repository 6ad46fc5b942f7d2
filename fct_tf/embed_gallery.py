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

from fct_tf.common import cli
from fct_tf.ingest.embed_images import embed_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("gallery", None, "Path of the gallery (a Lance dataset).", required=True)
    string("images", None, cli.IMAGES, required=True)
    string("model", None, "Artifact, .keras file or SavedModel.", required=True)
    string("column", None, "Name of the embedding column.", required=True)
    string("kind", "", "embedded or side_info; by default as the artifact says.")
    string("data_dir", "", "Where TFDS keeps its data; by default TFDS_DATA_DIR.")
    cli.define_own_model(values)
    flags.DEFINE_enum(
        "on_bad_image",
        "error",
        ["error", "skip"],
        "With an unreadable image, or one whose name is not UTF-8: stop, or leave it out "
        "and count.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "match_dims",
        0,
        "Cut the vectors, or fill them up with zeros, to this size: the old model's, where a model "
        "is compatible with one of another size. 0: as they are.",
        0,
        flag_values=values,
    )
    flags.DEFINE_integer("batch_size", 256, "Images per model call.", 1, flag_values=values)
    cli.define_zero_vectors(values)
    flags.DEFINE_boolean(
        "missing", False, "Only the rows that an existing column lacks.", flag_values=values
    )
    cli.define_overwrite(values)
    cli.define_drop_indices(values)


def main(values: flags.FlagValues) -> None:
    """Embeds what the flags name."""
    gallery = embed_gallery(
        values.gallery,
        values.images,
        values.model,
        values.column,
        kind=values.kind,
        match_dims=values.match_dims,
        data_dir=values.data_dir,
        on_bad_image=values.on_bad_image,
        batch_size=values.batch_size,
        overwrite=values.overwrite,
        zero_vectors=values.zero_vectors,
        drop_indices=values.drop_indices,
        missing=values.missing,
        **cli.own_model(values),
    )
    print(f"{gallery.path}@{gallery.version}: {gallery.num_rows} rows, column {values.column}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
