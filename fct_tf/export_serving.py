"""Exports an artifact as a SavedModel version that TF Serving loads.

A transformation becomes OUTPUT/N with the inputs `source_embedding` and `side_info`; one of the
query side, from the new model's space to the old one's, is fed with what the query encoder
returns. An embedding model becomes a query encoder that takes images or JPEG and PNG files.

  python -m fct_tf.export_serving --model=runs/new/artifact --output=serving/models/new
"""

from absl import flags

from fct_tf import cli


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""
    flags.DEFINE_string("model", None, "The artifact.", required=True, flag_values=values)
    flags.DEFINE_string(
        "output",
        None,
        "Base directory of the model in TF Serving's layout; gets a directory per version.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "version", 0, "Version number; 0: the next one.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Arithmetic inside a transformation; bfloat16 pays on GPUs and processors with AMX.",
        flag_values=values,
    )
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Exports what the flags name."""
    from fct_tf.serving import export  # TensorFlow: not for --help or a wrong flag.

    path = export.export(
        values.model,
        values.output,
        version=values.version,
        dtype=values.dtype,
        overwrite=values.overwrite,
    )
    print(path)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
