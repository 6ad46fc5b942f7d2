"""Builds the ScaNN index of a gallery's column, or brings one to the gallery's newest version.

    python -m fct_tf.build_index --gallery=photos.lance@live --column=embedding_new \\
        --output=photos.index

The index is a directory that can be moved; search_index and `evaluate --search=scann --index`
read it. Without settings they are the defaults for the number of rows; --recall=0.95 finds those
of most queries per second at this recall@10; and every setting of ScaNN is a flag of its name.

When the gallery has changed, --update upserts and removes the rows that differ. The index serves
until the new one is whole; so it does when a build or an update is killed.

    python -m fct_tf.build_index --update --output=photos.index
"""

from absl import flags

from fct_tf.ann import flags as ann_flags
from fct_tf.ann import index, store, summary
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import open_gallery


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "gallery",
        "",
        "Gallery, e.g. photos.lance@live; the index follows its newest version, or its tag. With "
        "--update, the one that the index is of if empty.",
        flag_values=values,
    )
    flags.DEFINE_string("column", "", "Embedding column to index.", flag_values=values)
    flags.DEFINE_string(
        "output", None, "Directory of the index.", required=True, flag_values=values
    )
    flags.DEFINE_float(
        "recall", None, "Find the settings of most queries per second at this recall@10.", 0, 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("update", False, "Bring an index to the gallery's version.", values)
    flags.DEFINE_integer("seed", 0, "Of the search for settings.", 0, flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "Say what it would do, and do nothing.", values)
    ann_flags.define_threads(values)
    ann_flags.define_settings(values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Builds or updates what the flags name."""
    given = ann_flags.settings_given(values)
    if values.update:
        if given or values.recall is not None or values.overwrite:
            name = next(iter(given), "recall" if values.recall is not None else "overwrite")
            raise InputError(f"--{name}: an update keeps the settings; leave it or --update out")
        _update(values)
        return
    for name in ("gallery", "column"):
        if not getattr(values, name):
            raise InputError(f"--{name} is missing; name what to index")
    if values.dry_run:
        known = values.recall is None
        store.check_output(values.output, values.overwrite)
        print(summary.planned(values.gallery, values.column, given, known=known))
        return
    made = index.build(
        values.gallery,
        values.column,
        values.output,
        given or None,
        recall=values.recall,
        threads=values.threads,
        overwrite=values.overwrite,
        seed=values.seed,
        progress="build_index",
    )
    print(f"{values.output}: {summary.described(made)}")


def _update(values: flags.FlagValues) -> None:
    opened = index.load_index(values.output)
    if values.column and values.column != opened.column.name:
        raise InputError(f"--column={values.column}: {values.output} is of {opened.column.name!r}")
    gallery = open_gallery(values.gallery) if values.gallery else None
    if values.dry_run:
        print(f"{values.output}: {opened.difference(gallery)}; nothing is written (--dry_run)")
        return
    found = opened.update(gallery, threads=values.threads)
    print(f"{values.output}: {found}; {summary.described(opened)}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
