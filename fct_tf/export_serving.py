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

from fct_tf.common import cli
from fct_tf.common.errors import InputError


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("model", "", "The artifact, or a Keras file or SavedModel of your own.")
    string("encoder", "", "Of a transformation: the model of its source embeddings goes before it.")
    string("side_info_encoder", "", "With --encoder: the model of its side-information.")
    string(
        "target_encoder",
        "",
        "With --encoder, of a fused search: the new model; images become its queries.",
    )
    string("gallery", "", "Instead of --model: the gallery to search.")
    string("column", "", "With --gallery: the embedding column to search.")
    string(
        "output",
        None,
        "Base directory of the model in TF Serving's layout, or the URI of one in an object store; "
        "gets a directory per version.",
        required=True,
    )
    flags.DEFINE_integer(
        "version",
        0,
        "Version number, higher than all before; 0: the next one.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Arithmetic inside a transformation; bfloat16 pays on GPUs and processors with AMX. What "
        "it costs in accuracy is measured on --warmup_rows.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "batch_sizes",
        ["1", "8", "32", "128"],
        "Rows of the warm-up requests, one for each signature and size; empty: no warm-up.",
        flag_values=values,
    )
    string("warmup_rows", "", "Gallery with rows for them; its columns are found by their spaces.")
    string("warmup_images", "", "JPEG and PNG files for them: one file, or a directory.")
    flags.DEFINE_boolean(
        "verify",
        True,
        "Compare the SavedModel, row by row, with the model; do not publish what differs.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "tolerance",
        0.0,
        "Largest error of a row, as a share of its length; 0: 0.0001, in bfloat16 0.05.",
        lower_bound=0.0,
        flag_values=values,
    )
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Publishes what the flags name."""
    sizes = _sizes(values.batch_sizes)
    # TensorFlow: not for --help or a wrong flag.
    from fct_tf.serving.exports import export_model

    path = export_model(
        values.model,
        values.output,
        encoder=values.encoder,
        side_info_encoder=values.side_info_encoder,
        target_encoder=values.target_encoder,
        gallery=values.gallery,
        column=values.column,
        version=values.version,
        dtype=values.dtype,
        batch_sizes=sizes,
        warmup_rows=values.warmup_rows,
        warmup_images=values.warmup_images,
        verify=values.verify,
        tolerance=values.tolerance,
        overwrite=values.overwrite,
    )
    print(path)


def _sizes(given: list[str]) -> list[int]:
    given = [size.strip() for size in given if size.strip()]
    if not all(size.isdecimal() and 0 < int(size) <= 1 << 16 for size in given):
        raise InputError(f"--batch_sizes={','.join(given)}: whole numbers from 1, such as 1,8,32")
    return sorted({int(size) for size in given})


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
