"""Removes rows from galleries and from the tables made of them, as for a takedown.

Rows are named by a file of ids, or found as those that the gallery they came from has lost:

  python -m fct_tf.remove_rows --gallery=photos.lance --gallery=pairs.lance --ids=gone.txt --dry_run
  python -m fct_tf.remove_rows --gallery=photos_fct.lance --gallery=pairs.lance \\
      --sources=photos.lance

Each gallery changes in one commit. Older versions and tags still hold the rows, and so do the
data files: Lance only marks a row as deleted. With --purge the files are written anew and all
older versions without a tag are given up; tags that still hold the rows are named. Move them
(inspect_gallery --tag) and purge again. Nothing else should be at work on a gallery meanwhile.
"""

import os

import numpy as np
import pyarrow as pa
from absl import flags, logging

from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.gallery import reader, removal, table


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_multi_string(
        "gallery",
        None,
        "Gallery, or table made of one, to remove rows from; may be given several times.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string("ids", "", "File of the ids of the rows to remove, one a line.", values)
    flags.DEFINE_string(
        "sources",
        "",
        "Or the gallery that they were made from: rows that it no longer has are removed.",
        values,
    )
    flags.DEFINE_boolean(
        "purge", False, "Also write files anew and give up older versions without a tag.", values
    )
    flags.DEFINE_boolean("dry_run", False, "Say how many rows of each; change nothing.", values)


def main(values: flags.FlagValues) -> None:
    """Removes what the flags name."""
    if bool(values.ids) == bool(values.sources):
        raise InputError("name the rows with --ids, or what has lost them with --sources")
    galleries = [table.open_gallery(uri) for uri in values.gallery]
    for gallery in galleries:
        table.check_newest(gallery)
    if values.ids:
        ids = _read_ids(values.ids)
        doomed = removal.with_ids(ids)
    else:
        doomed = removal.not_in(table.open_gallery(values.sources))
    # All are looked at before the first changes.
    masks = [doomed(gallery) for gallery in galleries]
    if values.ids:
        _warn_of_unknown(values.ids, ids, galleries, masks)
    counts = [int(mask.sum()) for mask in masks]
    for gallery, count in zip(galleries, counts, strict=True):
        if values.dry_run:
            print(f"{gallery.path}: {count} of {gallery.num_rows} rows would be removed")
            continue
        _remove(gallery, doomed, values.purge)


def _remove(gallery: table.Gallery, doomed: removal.Doomed, purge: bool) -> None:
    path, before = gallery.path, gallery.num_rows
    count = removal.remove(path, doomed)
    if purge:
        purged = removal.purge(path, doomed)
        tags = purged.tags
    else:
        tags = removal.tagged_with(table.open_gallery(path), doomed)
    now = table.open_gallery(path)
    print(f"{path}@{now.version}: {count} of {before} rows removed")
    if purge:
        print(f"  purged: {purged.bytes_removed:,} bytes of older versions")
        for name in purged.indices:
            print(f"  index {name!r} may still hold them: drop it and build it anew")
    elif count:
        print("  older versions still hold them; --purge gives those without a tag up")
    if tags:
        again = "" if purge else ", then purge"
        print(f"  still held by the tag {', '.join(tags)}: move it (inspect_gallery --tag){again}")
    if os.path.exists(f"{path}.jobs"):
        print(f"  {path}.jobs: an unfinished job may hold some; let it end, or delete it")


def _warn_of_unknown(
    path: str, ids: list[str], galleries: list[table.Gallery], masks: list[np.ndarray]
) -> None:
    """Says which ids are of no row: one that is misspelt stays in the galleries."""
    unknown = dict.fromkeys(ids)
    for gallery, mask in zip(galleries, masks, strict=True):
        for row_id in reader.all_ids(gallery).filter(pa.array(mask)).to_pylist():
            unknown.pop(row_id, None)
    if len(unknown) == len(ids):
        logging.warning("%s: no gallery has a row with one of its %d ids", path, len(ids))
    elif unknown:
        logging.warning(
            "%s: no gallery has a row with %d of its %d ids, such as %r",
            path, len(unknown), len(ids), next(iter(unknown)),
        )  # fmt: skip


def _read_ids(path: str) -> list[str]:
    ids = [line for line in read_lines(path, f"--ids={path}") if line]
    if not ids:
        raise InputError(f"{path}: names no row; give one id a line")
    return list(dict.fromkeys(ids))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
