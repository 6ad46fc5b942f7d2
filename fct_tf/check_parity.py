"""Compares what a model server answers with what a SavedModel here computes, row by row.

Every signature that both have is sent the same rows: those of --gallery or --images, or drawn
ones. The version is settled at the start, so a swap meanwhile does not mix two.

  python -m fct_tf.check_parity --server=grpc://localhost:8500/fct@canary \\
      --model=serving/models/fct/2 --gallery=photos.lance

Exit status: 0 the same, 2 bad input (the server is down, no such model), 3 different: a row is
further apart than --tolerance of its length, or the two write different spaces.
"""

from absl import flags

from fct_tf.common import cli, files, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.serving.client import connect
from fct_tf.serving.transport import Settings

DIFFERENT_STATUS = 3


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("server", "grpc://HOST:PORT/MODEL[@LABEL or @VERSION]; http:// for REST.")
    read.required("model", "SavedModel, or a directory of versions (the highest is taken).")
    read.string("gallery", "Gallery whose rows a transformation gets; drawn without it.")
    read.string("source", "Embedding column to send; by default found by its space.")
    read.string("side_info", "Side-information column to send; by default found by its space.")
    text = "New model's column, of a fused search; by default found by its space."
    read.string("target", text)
    text = "folder:PATH[:SPLIT] or tfds:NAME:SPLIT for an encoder; drawn without it."
    read.string("images", text)
    read.integer("rows", "At most so many rows.", 1000, 1)
    flag_groups.Group(values, flag_groups.WRITTEN).string(
        "output", "JSON file to write; none if empty."
    )
    run = flag_groups.Group(values, flag_groups.RUN)
    run.number("timeout_s", "Seconds that a call may take.", Settings.timeout_s, 0.001)
    text = "Rows per request; at most the server's max_batch_size."
    run.integer("max_batch_size", text, Settings.max_batch_size, 1)
    text = "How far apart two rows may be, as a share of the local row's length."
    flag_groups.Group(values, flag_groups.ALLOWED).number("tolerance", text, 1e-5, 0.0)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Compares what the flags name."""
    if values.output:
        cli.check_output_files(values, output=())
    with connect(
        values.server, timeout_s=values.timeout_s, max_batch_size=values.max_batch_size
    ) as client:
        from fct_tf.serving import parity

        comparison = parity.check(client, **cli.arguments(values, parity.check))
    if not comparison.differences:
        raise InputError(f"{values.gallery or values.images}: no rows to compare; name others")
    if values.output:
        files.write_json(values.output, parity.record(comparison, values.tolerance))
    print(parity.describe(comparison, values.tolerance))
    if not comparison.holds(values.tolerance):
        raise SystemExit(DIFFERENT_STATUS)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
