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
"""

import contextlib

from absl import flags

from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.serving.transport import Settings


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    def boolean(name, text):
        flags.DEFINE_boolean(name, False, text, flag_values=values)

    string("gallery", None, "Path of the gallery (a Lance dataset).", required=True)
    string(
        "transformation",
        "",
        "SavedModel, a directory of versions (the highest is taken), or a training's workdir.",
    )
    string(
        "server",
        "",
        "grpc://HOST:PORT/MODEL[@LABEL or @VERSION] to run it there (http:// for REST). "
        "--transformation then only says what is served, where the server does not.",
    )
    string("column", None, "Name of the new column.", required=True)
    string("source", "", "Embedding column to transform; by default found by its space.")
    string("side_info", "", "Side-information column; by default found by its space.")
    string(
        "target", "", "With --side=query: the new model's column; by default found by its space."
    )
    flags.DEFINE_enum(
        "side",
        "gallery",
        ["gallery", "query"],
        "query: of a fused search, its queries, of the columns of both models.",
        flag_values=values,
    )
    string("pairs", "", "Table of rows that the new model has embedded: taken from there.")
    string("output", "", "Path of a new gallery for the column; by default it joins the others.")
    string("tag", "", "Let this tag, such as live, point to the new version.")
    string(
        "job_dir",
        "",
        "Finished parts are noted in JOB_DIR/COLUMN; by default beside what is written.",
    )
    flags.DEFINE_integer("batch_size", 8192, "Rows per model call.", 1, flag_values=values)
    flags.DEFINE_float(
        "server_timeout_s",
        600.0,
        "Seconds that a batch may take at the server, its restarts included.",
        0.001,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "server_batch_size",
        Settings.max_batch_size,
        "Rows per request; at most the server's max_batch_size.",
        1,
        flag_values=values,
    )
    boolean("missing", "Only the rows that an existing column lacks, with what it was made with.")
    boolean("dry_run", "Say rows, bytes, estimated time and disk; change nothing.")
    boolean("allow_space_mismatch", "Read --source and --side_info whatever their spaces are.")
    cli.define_overwrite(values)
    cli.define_drop_indices(values)


def main(values: flags.FlagValues) -> None:
    """Upgrades what the flags name."""
    if not values.transformation and not values.server:
        raise InputError("--transformation or --server: name what is to run over the rows")
    with contextlib.ExitStack() as stack:
        _upgrade(values, _transformation(values, stack))


def _transformation(values: flags.FlagValues, stack: contextlib.ExitStack):
    """What --transformation or --server names."""
    if not values.server:
        return values.transformation
    from fct_tf.serving import remote

    served = remote.open_transformation(
        values.server,
        values.transformation,
        timeout_s=values.server_timeout_s,
        max_batch_size=values.server_batch_size,
    )
    stack.callback(served.close)
    return served


def _upgrade(values: flags.FlagValues, transformation) -> None:
    from fct_tf.upgrade import plan, upgrade

    arguments = (values.gallery, transformation, values.column)
    settings = {
        "source": values.source,
        "side_info": values.side_info,
        "target": values.target,
        "batch_size": values.batch_size,
        "allow_space_mismatch": values.allow_space_mismatch,
        "output": values.output.rstrip("/") or values.output,
    }
    if values.missing:
        _upgrade_missing(values, arguments, settings)
        return
    settings["side"] = values.side
    settings["existing"] = "overwrite" if values.overwrite else "refuse"
    settings["drop_indices"] = values.drop_indices
    if values.dry_run:
        print(plan.plan(*arguments, **settings))
        return
    gallery = upgrade.upgrade(
        *arguments,
        **settings,
        pairs=values.pairs,
        tag=values.tag,
        job_dir=values.job_dir or None,
    )
    print(f"{gallery.path}@{gallery.version}: {gallery.num_rows} rows, column {values.column}")


def _upgrade_missing(values: flags.FlagValues, arguments: tuple, settings: dict) -> None:
    from fct_tf.upgrade import plan, upgrade

    upgrade.check_missing(overwrite=values.overwrite, pairs=values.pairs)
    if values.dry_run:
        print(plan.plan_missing(*arguments, **settings))
        return
    done, missing = upgrade.upgrade_missing(
        *arguments, **settings, tag=values.tag, job_dir=values.job_dir or None
    )
    told = f"{missing.count} of {done.num_rows} rows were missing" if missing.count else "complete"
    if missing.new:
        told += f", {missing.new} of them new"
    print(f"{done.path}@{done.version}: column {values.column}, {told}")
    if missing.gone:
        command = f"python -m fct_tf.remove_rows --gallery={done.path} --sources={values.gallery}"
        print(f"{missing.gone} rows are not in {values.gallery} any more; remove them: {command}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
