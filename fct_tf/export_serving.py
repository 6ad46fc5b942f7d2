"""Publishes a model as a version that TF Serving loads.

A transformation becomes OUTPUT/N with the inputs `source_embedding` and `side_info`; one of the
query side, from the new model's space to the old one's, is fed with what the query encoder
returns. An embedding model becomes a query encoder that takes images or JPEG and PNG files; so
does a transformation with --encoder, which runs behind the encoders that it names. A column of a
small gallery becomes a model that searches it.

  python -m fct_tf.export_serving --model=runs/new/artifact --output=models/query
  python -m fct_tf.export_serving --model=runs/fct/artifact --output=models/fct \\
      --warmup_rows=photos.lance
  python -m fct_tf.export_serving --model=runs/fct/artifact --encoder=runs/old/artifact \\
      --side_info_encoder=runs/side_info/artifact --output=models/old_to_new
  python -m fct_tf.export_serving --gallery=photos.lance@live --column=embedding_fct \\
      --output=models/search

Of a fused search (train_transformation --fused) the version has three signatures: serving_default
makes gallery rows, `query` and `rows` fuse the old and the new model's embeddings of a query and
of a re-embedded row. With both encoders it takes images and returns queries:

  python -m fct_tf.export_serving --model=runs/fused/artifact --encoder=runs/old/artifact \\
      --target_encoder=runs/new/artifact --output=models/fused_query

The version is written beside the others, run in the C++ runtime on its warm-up requests, compared
with the model that it was made from, and only then takes its number.
"""

from absl import flags

from fct_tf.common import cli, flag_groups


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.string("model", "The artifact, or a Keras file or SavedModel of your own.")
    text = "Of a transformation: the model of its source embeddings goes before it."
    read.string("encoder", text)
    read.string("side_info_encoder", "With --encoder: the model of its side-information.")
    text = "With --encoder, of a fused search: the new model; images become its queries."
    read.string("target_encoder", text)
    read.string("gallery", "Instead of --model: the gallery to search.")
    read.string("column", "With --gallery: the embedding column to search.")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required(
        "output",
        "Base directory of the model in TF Serving's layout, or the URI of one in an object store; "
        "gets a directory per version.",
    )
    text = "Version number, higher than all before; 0: the next one."
    written.integer("version", text, 0, 0)
    written.choice(
        "dtype",
        "Arithmetic inside a transformation; bfloat16 pays on GPUs and processors with AMX. What "
        "it costs in accuracy is measured on --warmup_rows.",
        "float32",
        ["float32", "bfloat16"],
    )
    warmup = flag_groups.Group(values, "Warm-up requests:")
    text = "Rows of the warm-up requests, one for each signature and size; empty: no warm-up."
    warmup.list("batch_sizes", text, "1,8,32,128")
    text = "Gallery with rows for them; its columns are found by their spaces."
    warmup.string("warmup_rows", text)
    text = "JPEG and PNG files for them: one file, or a directory."
    warmup.string("warmup_images", text)
    allowed = flag_groups.Group(values, flag_groups.ALLOWED)
    text = "Compare the SavedModel, row by row, with the model; do not publish what differs."
    allowed.boolean("verify", text, True)
    text = "Largest error of a row, as a share of its length; 0: 0.0001, in bfloat16 0.05."
    allowed.number("tolerance", text, 0.0, 0.0)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Publishes what the flags name."""
    sizes = cli.whole_numbers(values, "batch_sizes", highest=1 << 16, empty=True)
    # TensorFlow: not for --help or a wrong flag.
    from fct_tf.serving.exports import export_model

    print(export_model(**cli.arguments(values, export_model, batch_sizes=sizes)))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
