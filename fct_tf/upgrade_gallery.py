"""Runs a transformation over a gallery's rows: a new column, without reading an image.

The columns to read are found by the embedding spaces that the transformation was trained on.
Killed and started again, it continues; the gallery changes in one commit at the end.

  python -m fct_tf.upgrade_gallery --gallery=photos.lance \\
      --transformation=runs/fct/saved_model --column=embedding_fct --tag=live

A fused search compares with the old and the new model at once (train_transformation --fused).
Its gallery column is made as above; its queries, a column of what both models have embedded, by

  python -m fct_tf.upgrade_gallery --gallery=queries.lance --side=query \\
      --transformation=runs/fused/saved_model --column=embedding_fused

With --server the transformation runs behind a model server; everything else is as above. A server
that restarts meanwhile is waited for.

  python -m fct_tf.upgrade_gallery --gallery=photos.lance \\
      --server=grpc://localhost:8500/fct@stable --column=embedding_fct --tag=live

With --output the column comes into a gallery of its own, of the same ids and labels: what is
served and backfilled is then apart from what was stored, which may be a version or a tag.

With --missing only the rows are transformed that came after the column was made:

  python -m fct_tf.upgrade_gallery --gallery=photos.lance \\
      --transformation=runs/fct/saved_model --column=embedding_fct --missing

They are rows in which the column is null; of a column with --output, also rows of --gallery
that are not there yet. All others, backfilled ones too, keep what they have.

With --engine=spark the rows are transformed on a cluster, a fragment of the gallery a task; see
docs/guides/spark.md. What one engine has begun the other continues:

  python -m fct_tf.upgrade_gallery --gallery=photos.lance --engine=spark \\
      --spark_master=spark://HOST:7077 --transformation=runs/fct/saved_model --column=embedding_fct
"""

import contextlib

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import open_engine
from fct_tf.serving.transport import Settings


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Path of the gallery (a Lance dataset).")
    read.string(
        "transformation",
        "SavedModel, a directory of versions (the highest is taken), or a training's workdir.",
    )
    read.string("source", "Embedding column to transform; by default found by its space.")
    read.string("side_info", "Side-information column; by default found by its space.")
    text = "With --side=query: the new model's column; by default found by its space."
    read.string("target", text)
    read.string("pairs", "Table of rows that the new model has embedded: taken from there.")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("column", "Name of the new column.")
    text = "query: of a fused search, its queries, of the columns of both models."
    written.choice("side", text, "gallery", ["gallery", "query"])
    text = "Only the rows that an existing column lacks, with what it was made with."
    written.boolean("missing", text)
    text = "Path of a new gallery for the column; by default it joins the others."
    written.string("output", text)
    written.string("tag", "Let this tag, such as live, point to the new version.")
    run = flag_groups.Group(values, flag_groups.RUN)
    run.boolean("dry_run", "Say rows, bytes, estimated time and disk; change nothing.")
    run.integer("batch_size", "Rows per model call.", 8192, 1)
    text = "Finished parts are noted in JOB_DIR/COLUMN; by default beside what is written."
    run.string("job_dir", text)
    flag_groups.define_engine(values)
    server = flag_groups.Group(values, "Through a model server:")
    server.string(
        "server",
        "grpc://HOST:PORT/MODEL[@LABEL or @VERSION] to run it there (http:// for REST). "
        "--transformation then only says what is served, where the server does not.",
    )
    text = "Seconds that a batch may take at the server, its restarts included."
    server.number("server_timeout_s", text, 600.0, 0.001)
    text = "Rows per request; at most the server's max_batch_size."
    server.integer("server_batch_size", text, Settings.max_batch_size, 1)
    text = "Read --source and --side_info whatever their spaces are."
    flag_groups.define_space_mismatch(values, text)
    flag_groups.define_overwrite(values)
    flag_groups.define_drop_indices(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Upgrades what the flags name."""
    if not values.transformation and not values.server:
        raise InputError("--transformation or --server: name what is to run over the rows")
    # Lance: not for --help or a wrong flag.
    from fct_tf.upgrade.upgrade import Upgrade

    engines = open_engine(values.engine, values.spark_master)
    with engines as engine, _transformation(values) as opened:
        given = {"transformation": opened, "existing": cli.existing(values), "engine": engine}
        request = Upgrade(**cli.arguments(values, Upgrade, **given))
        print(request.plan() if values.dry_run else request.run())


def _transformation(values: flags.FlagValues) -> contextlib.AbstractContextManager:
    """What --transformation or --server names."""
    if not values.server:
        return contextlib.nullcontext(values.transformation)
    from fct_tf.serving import remote

    return contextlib.closing(
        remote.open_transformation(
            values.server,
            values.transformation,
            timeout_s=values.server_timeout_s,
            max_batch_size=values.server_batch_size,
        )
    )


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
