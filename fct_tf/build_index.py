"""Builds the ScaNN index of a gallery's column, or brings one to the gallery's newest version.

    python -m fct_tf.build_index --gallery=photos.lance@live --column=embedding_new \\
        --output=photos.index

The index is a directory that can be moved; search_index and `evaluate --search=scann --index`
read it. Without settings they are the defaults for the number of rows; --recall=0.95 finds those
of most queries per second at this recall@10; and every setting of ScaNN is a flag of its name. What
is built says the recall@10 of some of its rows; the defaults take what most rows need, and settings
that find few of the nearest are warned of.

When the gallery has changed, --update upserts and removes the rows that differ. The index serves
until the new one is whole; so it does when a build or an update is killed.

    python -m fct_tf.build_index --update --output=photos.index

A gallery that is too large to be indexed at once gets an index in --shards, each of some of its
fragments. Building one takes the memory of one shard, or of one for each task with --engine=spark,
see docs/guides/spark.md; searching takes that of all. What was stopped goes on with the shards that
are missing.
"""

from absl import flags

from fct_tf.ann import flags as ann_flags
from fct_tf.ann import index, store, summary
from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import open_engine
from fct_tf.gallery.reader import open_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.string(
        "gallery",
        "Gallery, e.g. photos.lance@live; the index follows its newest version, or its tag. With "
        "--update, the one that the index is of if empty.",
    )
    read.string("column", "Embedding column to index.")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "Directory of the index.")
    written.boolean("update", "Bring an index to the gallery's version.")
    run = flag_groups.Group(values, flag_groups.RUN)
    run.boolean("dry_run", "Say what it would do, and do nothing.")
    run.integer("shards", "Build it in so many, each of some fragments of the gallery.", None, 1)
    flag_groups.define_engine(values)
    ann_flags.define_threads(values)
    settings = flag_groups.Group(values, ann_flags.SETTINGS)
    text = "Find the settings of most queries per second at this recall@10."
    settings.number("recall", text, None, 0, 1)
    settings.integer("seed", "Of the search for settings.", 0, 0)
    ann_flags.define_settings(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Builds or updates what the flags name."""
    given = ann_flags.settings_given(values)
    if values.update:
        kept = ("recall", "shards", "overwrite")
        kept_given = [name for name in kept if values[name].value not in (None, False)]
        for name in (*given, *kept_given):
            raise InputError(f"--{name}: an update keeps the settings; leave it or --update out")
        _update(values)
        return
    for name in ("gallery", "column"):
        if not getattr(values, name):
            raise InputError(f"--{name} is missing; name what to index")
    if values.dry_run:
        fixed = values.recall is None
        store.check_output(values.output, values.overwrite)
        print(summary.planned(values.gallery, values.column, given, values.shards, known=fixed))
        return
    if values.engine != "local" and values.shards is None:  # Before pyspark is asked for.
        raise InputError("--engine: makes shards; say how many (--shards), or leave it out")
    with open_engine(values.engine, values.spark_master) as engine:
        more = {"path": values.output, "settings": given or None, "engine": engine}
        more["progress"] = "build_index"
        built_index = index.build(**cli.arguments(values, index.build, **more))
    print(f"{values.output}: {summary.described(built_index)}")


def _update(values: flags.FlagValues) -> None:
    opened = index.Index(values.output)
    if values.column and values.column != opened.column.name:
        raise InputError(f"--column={values.column}: {values.output} is of {opened.column.name!r}")
    gallery = open_gallery(values.gallery) if values.gallery else None
    if values.dry_run:
        print(f"{values.output}: {opened.difference(gallery)}; nothing is written (--dry_run)")
        return
    with open_engine(values.engine, values.spark_master) as engine:
        difference = opened.update(
            gallery, threads=values.threads, engine=engine, progress="build_index"
        )
    print(f"{values.output}: {difference}; {summary.described(opened)}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
