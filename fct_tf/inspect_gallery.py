"""Shows what is in a gallery: columns, spaces, versions, tags. --verify checks every row.

    python -m fct_tf.inspect_gallery --gallery=photos.lance --verify

A tag is set with --tag: this is how a version goes live, and how it is rolled back.

    python -m fct_tf.inspect_gallery --gallery=photos.lance --tag=live
    python -m fct_tf.inspect_gallery --gallery=photos.lance@5 --tag=live

A gallery of many fragments is verified by a cluster with --engine=spark.

With --sources it counts the rows that a gallery made from another does not share with it:

    python -m fct_tf.inspect_gallery --gallery=photos_fct.lance --sources=photos.lance
"""

import json

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import open_engine
from fct_tf.gallery import table, verify
from fct_tf.gallery.describe import compare, describe, text


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required(
        "gallery", "Gallery: photos.lance (newest version), photos.lance@7, photos.lance@live."
    )
    read.boolean("verify", "Check ids, vectors and data files of all rows.")
    read.string("sources", "The gallery that this was made from: compare ids.")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.string("tag", "Let this tag point to the version of --gallery.")
    written.boolean("json", "Print JSON instead of a table.")
    flag_groups.define_engine(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Shows what the flags name."""
    gallery = table.open_gallery(values.gallery)
    sources = table.open_gallery(values.sources) if values.sources else None
    problems: list[str] | None = None
    notes: list[str] = []
    with open_engine(values.engine, values.spark_master) as engine:
        if values.verify:
            problems, notes = verify.look(gallery, engine, progress="verify")
    if values.tag and not problems:
        table.tag(f"{gallery.path}@{gallery.version}", values.tag)
    record = describe(gallery)
    if sources:
        record["sources"] = compare(gallery, sources)
    if problems is not None:
        record |= {"problems": problems, "notes": notes}
    print(json.dumps(record, indent=2) if values.json else text(record))
    if problems:
        more = f" and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        left = f"; tag {values.tag!r} is not moved" if values.tag else ""
        raise InputError(f"{problems[0]}{more}{left}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
