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

from fct_tf.common import cli


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    def boolean(name, text):
        flags.DEFINE_boolean(name, False, text, flag_values=values)

    string("gallery", None, "Path of the gallery (a Lance dataset).", required=True)
    string(
        "column", None, "The transformed or fused column, made by upgrade_gallery.", required=True
    )
    string("model", None, "The new model: artifact, .keras file or SavedModel.", required=True)
    string("images", None, cli.IMAGES, required=True)
    string(
        "policy",
        "uncertainty",
        "Order: uncertainty (largest log-variance first), random, distance (of the column from "
        "--target_column, an oracle), ranks (learns from the rows backfilled so far, by "
        "--transformation), or file:PATH, one id a line; rows not listed never come.",
    )
    string("budget", None, "Of this run: 1000 (rows), 5% (of all rows) or 30min.", required=True)
    string(
        "target_column",
        "",
        "For --policy=distance: the new model's own column; of a fused search, the column that "
        "upgrade_gallery --side=query made of the gallery's own embeddings.",
    )
    string(
        "transformation",
        "",
        "For --policy=ranks, and for the column of a fused search: the SavedModel that made it.",
    )
    string("sources", "", "For these: gallery it was made from, if it has one of its own.")
    flags.DEFINE_integer("seed", 0, "Seed of random, and of ties.", 0, flag_values=values)
    string("data_dir", "", "Where TFDS keeps its data; by default TFDS_DATA_DIR.")
    cli.define_own_model(values)
    flags.DEFINE_integer("batch_size", 256, "Images per model call.", 1, flag_values=values)
    string("tag", "", "Let this tag, such as live, point to the new version.")
    string(
        "job_dir", "", "The unfinished job lies in JOB_DIR/backfill_COLUMN; default GALLERY.jobs."
    )
    string("skipped", "", "File for the rows skipped; default GALLERY.COLUMN.skipped.tsv.")
    boolean("dry_run", "Say rows, bytes, estimated time and disk; change nothing.")
    boolean("allow_space_mismatch", "Embed with --model whatever its space is.")
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Backfills what the flags name."""
    # TensorFlow: not for --help or a wrong flag.
    from fct_tf.backfill.backfill import Backfill
    from fct_tf.backfill.inputs import open_inputs

    model, images = open_inputs(
        values.gallery,
        values.model,
        values.images,
        transformation=values.transformation,
        data_dir=values.data_dir,
        **cli.own_model(values),
    )
    request = Backfill(**cli.arguments(values, Backfill, model=model, images=images))
    if values.dry_run:
        print(request.plan())
        return
    done = request.run()
    told = f", {len(done.skipped)} skipped, see {done.report}" if done.skipped else ""
    where = f"{done.gallery.path}@{done.gallery.version}"
    print(f"{where}: column {values.column}, {done.embedded} rows backfilled{told}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
