"""Re-embeds rows of an upgraded column with the new model, those that gain most first.

Only the images of these rows are read, and only their values change. A budget is a number of
rows, a share of all rows (5%), or minutes of embedding (30min), of this run: run it again to go
on. Killed and started again, it continues; the gallery changes in one commit at the end.

  python -m fct_tf.backfill_gallery --gallery=photos.lance --column=embedding_fct \\
      --model=runs/new/artifact --images=folder:photos:gallery --policy=uncertainty \\
      --budget=5% --dry_run

In the column of a fused search a row becomes what is made of its old and its new embedding, by
--transformation, the SavedModel that made the column.

Rows whose image is gone or broken stay as they are, are listed with the reason in
photos.lance.embedding_fct.skipped.tsv, and are tried again by the next run.
"""

from absl import flags

from fct_tf.common import cli, flag_groups


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Path of the gallery (a Lance dataset).")
    read.required("column", "The transformed or fused column, made by upgrade_gallery.")
    read.required("model", "The new model: artifact, .keras file or SavedModel.")
    read.required("images", flag_groups.IMAGES)
    flag_groups.define_data_dir(values)
    which = flag_groups.Group(values, "Which rows, in which order:")
    which.required("budget", "Of this run: 1000 (rows), 5% (of all rows) or 30min.")
    which.string(
        "policy",
        "Order: uncertainty (largest log-variance first), random, distance (of the column from "
        "--target_column, an oracle), ranks (learns from the rows backfilled so far, by "
        "--transformation), or file:PATH, one id a line; rows not listed never come.",
        "uncertainty",
    )
    which.string(
        "target_column",
        "For --policy=distance: the new model's own column; of a fused search, the column that "
        "upgrade_gallery --side=query made of the gallery's own embeddings.",
    )
    text = "For --policy=ranks, and for the column of a fused search: the SavedModel that made it."
    which.string("transformation", text)
    which.string("sources", "For these: gallery it was made from, if it has one of its own.")
    which.integer("seed", "Seed of random, and of ties.", 0, 0)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.string("tag", "Let this tag, such as live, point to the new version.")
    written.string("skipped", "File for the rows skipped; default GALLERY.COLUMN.skipped.tsv.")
    run = flag_groups.Group(values, flag_groups.RUN)
    run.boolean("dry_run", "Say rows, bytes, estimated time and disk; change nothing.")
    run.integer("batch_size", "Images per model call.", 256, 1)
    text = "The unfinished job lies in JOB_DIR/backfill_COLUMN; default GALLERY.jobs."
    run.string("job_dir", text)
    flag_groups.define_own_model(values)
    flag_groups.define_space_mismatch(values, "Embed with --model whatever its space is.")
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Backfills what the flags name."""
    # TensorFlow: not for --help or a wrong flag.
    from fct_tf.backfill.backfill import Backfill
    from fct_tf.backfill.inputs import open_inputs

    own = flag_groups.own_model(values)
    model, images = open_inputs(**cli.arguments(values, open_inputs), **own)
    request = Backfill(**cli.arguments(values, Backfill, model=model, images=images))
    print(request.plan() if values.dry_run else request.run())


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
