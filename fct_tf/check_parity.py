"""Compares what a model server answers with what a SavedModel here computes, row by row.

Every signature that both have is sent the same rows: those of --gallery or --images, or drawn
ones. The version is settled at the start, so a swap meanwhile does not mix two.

  python -m fct_tf.check_parity --server=grpc://localhost:8500/fct@canary \\
      --model=serving/models/fct/2 --gallery=photos.lance

Exit status: 0 the same, 2 bad input (the server is down, no such model), 3 different: a row is
further apart than --tolerance of its length, or the two write different spaces.
"""

from absl import flags

from fct_tf.common import cli, files
from fct_tf.common.errors import InputError
from fct_tf.serving.client import connect
from fct_tf.serving.transport import Settings

DIFFERENT_STATUS = 3


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, text, default=""):
        flags.DEFINE_string(name, default, text, required=default is None, flag_values=values)

    string("server", "grpc://HOST:PORT/MODEL[@LABEL or @VERSION]; http:// for REST.", None)
    string("model", "SavedModel, or a directory of versions (the highest is taken).", None)
    string("gallery", "Gallery whose rows a transformation gets; drawn without it.")
    string("source", "Embedding column to send; by default found by its space.")
    string("side_info", "Side-information column to send; by default found by its space.")
    string("target", "New model's column, of a fused search; by default found by its space.")
    string("images", "folder:PATH[:SPLIT] or tfds:NAME:SPLIT for an encoder; drawn without it.")
    string("output", "JSON file to write; none if empty.")
    flags.DEFINE_integer("rows", 1000, "At most so many rows.", 1, flag_values=values)
    flags.DEFINE_float(
        "tolerance",
        1e-5,
        "How far apart two rows may be, as a share of the local row's length.",
        0.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "timeout_s", Settings.timeout_s, "Seconds that a call may take.", 0.001, flag_values=values
    )
    flags.DEFINE_integer(
        "max_batch_size",
        Settings.max_batch_size,
        "Rows per request; at most the server's max_batch_size.",
        1,
        flag_values=values,
    )
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Compares what the flags name."""
    if values.output:
        files.check_output_file(values.output, values.overwrite, "--output")
    with connect(
        values.server, timeout_s=values.timeout_s, max_batch_size=values.max_batch_size
    ) as client:
        from fct_tf.serving import parity

        found = parity.check(
            client,
            values.model,
            gallery=values.gallery,
            source=values.source,
            side_info=values.side_info,
            target=values.target,
            images=values.images,
            rows=values.rows,
        )
    if not found.differences:
        raise InputError(f"{values.gallery or values.images}: no rows to compare; name others")
    if values.output:
        files.write_json(values.output, parity.record(found, values.tolerance))
    print(parity.describe(found, values.tolerance))
    if not found.holds(values.tolerance):
        raise SystemExit(DIFFERENT_STATUS)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
