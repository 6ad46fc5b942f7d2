"""Removes rows from galleries and from the tables made of them, as for a takedown.

Rows are named by a file of ids, or found as those that the gallery they came from has lost:

  python -m fct_tf.remove_rows --gallery=photos.lance --gallery=pairs.lance --ids=gone.txt --dry_run
  python -m fct_tf.remove_rows --gallery=photos_fct.lance --gallery=pairs.lance \\
      --sources=photos.lance

Each gallery changes in one commit. Older versions and tags still hold the rows, and so do the
data files: Lance only marks a row as deleted. With --purge the files are written anew and all
older versions without a tag are given up, and so are files that no version names; tags that still
hold the rows are named. Move them (inspect_gallery --tag) and purge again. Nothing else should be
at work on a gallery meanwhile; a job that was stopped does again what it had written.
"""

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.gallery import removal, table


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    changed = flag_groups.Group(values, "What is changed:")
    text = "Gallery, or table made of one, to remove rows from; may be given several times."
    changed.repeated(flags.DEFINE_multi_string, "gallery", text, required=True)
    which = flag_groups.Group(values, "Which rows:")
    which.string("ids", "File of the ids of the rows to remove, one a line.")
    text = "Or the gallery that they were made from: rows that it no longer has are removed."
    which.string("sources", text)
    run = flag_groups.Group(values, flag_groups.RUN)
    run.boolean("purge", "Also write files anew and give up older versions without a tag.")
    run.boolean("dry_run", "Say how many rows of each; change nothing.")
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Removes what the flags name."""
    if bool(values.ids) == bool(values.sources):
        raise InputError("name the rows with --ids, or what has lost them with --sources")
    galleries = [table.open_gallery(uri) for uri in values.gallery]
    for gallery in galleries:
        table.check_newest(gallery)
    if values.ids:
        ids = removal.read_ids(values.ids)
        doomed = removal.with_ids(ids)
    else:
        doomed = removal.not_in(table.open_gallery(values.sources))
    # All are looked at before the first changes.
    masks = [doomed(gallery) for gallery in galleries]
    if values.ids:
        removal.warn_of_unknown(values.ids, ids, galleries, masks)
    for gallery, mask in zip(galleries, masks, strict=True):
        if values.dry_run:
            print(f"{gallery.path}: {mask.sum()} of {gallery.num_rows} rows would be removed")
        else:
            print(removal.remove_from(gallery, doomed, purge=values.purge))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
