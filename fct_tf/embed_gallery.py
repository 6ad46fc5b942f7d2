"""Embeds images with a model: a new gallery, or one more column of an existing one.

The model is an artifact of this package, or a Keras model or SavedModel of your own, which the
flags --preprocessing, --image_size, --signature and so on describe. Killed and started again, it
continues; the gallery changes in one commit at the end.

  python -m fct_tf.embed_gallery --gallery=photos.lance --images=folder:photos:gallery \\
      --model=runs/old/artifact --column=embedding_old

With --missing only the images of rows are embedded that came after the column was made: those
in which it is null. All other rows keep what they have.
"""

from typing import Any

import numpy as np
from absl import flags

from fct_tf import cli
from fct_tf.data import datasets
from fct_tf.errors import InputError
from fct_tf.gallery import embed, known, matched, table
from fct_tf.image_size import text
from fct_tf.models import artifact, preprocess
from fct_tf.provenance import created_by


def embed_gallery(
    gallery: str,
    images: str | datasets.ImageSet,
    model: str | artifact.Artifact,
    column: str,
    *,
    kind: str = "",
    match_dims: int = 0,
    data_dir: str = "",
    on_bad_image: str = "error",
    cache: str = "none",
    batch_size: int = 256,
    overwrite: bool = False,
    drop_indices: bool = False,
    missing: bool = False,
    classes: dict | None = None,
    augment=None,
    views: int = 0,
    seed: int = 0,
    zero_vectors: str = "refuse",
    **foreign: Any,
) -> table.Gallery:
    """Embeds `images` with the model at `model` into `gallery` as `column`.

    Args:
      gallery: path of the Lance dataset, made if missing.
      images: a source as `fct_tf.data.datasets` names them, or a loaded set of the size that the
        model takes.
      model: path of an artifact, a `.keras` file or a SavedModel, or one of these opened.
      column: name of the embedding column.
      kind: `embedded` or `side_info`; by default as the artifact says.
      match_dims: size of the vectors in the column, where it is not the model's: of a model made
        compatible with one of another size, that one's. Longer embeddings are cut and shorter
        ones filled up with zeros, as in the training; the column has a space of its own, which
        fits what the model is compatible with.
      data_dir, on_bad_image, cache, classes: as `fct_tf.data.datasets.load`.
      batch_size, overwrite, drop_indices, augment, views, seed, zero_vectors: as
        `fct_tf.gallery.embed.add_embeddings`.
      missing: embed only the images of rows in which `column`, which is there, is null.
      **foreign: of a model that is no artifact, see `fct_tf.models.foreign.load`.
    """
    if isinstance(model, artifact.Artifact):
        loaded = model
    else:
        there = [table.open_gallery(gallery)] if table.exists(gallery) else []
        loaded = artifact.load_any(model, known=known.spaces(*there), **foreign)
    preprocessing = loaded.preprocessing
    orientation = preprocess.orientation(preprocessing)
    dim, space, embed_images = loaded.dim, loaded.space, loaded.embed
    matching = match_dims not in (0, dim)
    if matching:
        dim, space = match_dims, matched.space_of(space, match_dims)

        def embed_images(pixels):
            return matched.match_dims(np.asarray(loaded.embed(pixels)), match_dims)

    ids = None
    if missing:
        made = table.Column(column, dim, space, created_by={"model": loaded.name})
        stored, ids = embed.find_missing(gallery, made)
        if not ids:
            return stored
    if isinstance(images, datasets.ImageSet):
        image_set = images
    else:
        image_set = datasets.load(
            images,
            image_size=preprocessing["size"],
            resize=preprocessing["resize"],
            classes=classes,
            data_dir=data_dir,
            on_bad_image=on_bad_image,
            cache=cache,
            ids=ids,
            orientation=orientation,
        )
    if image_set.image_size != preprocessing["size"]:
        raise InputError(
            f"{image_set.name}: images of {text(image_set.image_size)} pixels, {loaded.path} takes "
            f"{text(preprocessing['size'])}"
        )
    if image_set.orientation != orientation:
        raise InputError(
            f"{image_set.name}: loaded with the EXIF orientation {image_set.orientation}, "
            f"{loaded.path} was made with it {orientation}; load them as the model expects"
        )
    settings = {
        "images": image_set.name,
        "model": str(loaded.path),
        "views": views,
        "seed": seed,
        "preprocessing": dict(preprocessing),
    }
    if zero_vectors != "refuse":
        settings["zero_vectors"] = zero_vectors
    if matching:
        settings["match_dims"] = match_dims
    made = table.Column(
        name=column,
        dim=dim,
        dtype="float32",
        space=space,
        kind=kind or ("side_info" if loaded.kind == "side_info" else "embedded"),
        distance=loaded.distance,
        compatible_with=tuple(loaded.compatible_with),
        created_by=created_by("embed_gallery", settings, model=loaded.name),
    )
    return embed.add_embeddings(
        gallery,
        image_set,
        embed_images,
        made,
        batch_size=batch_size,
        overwrite=overwrite,
        drop_indices=drop_indices,
        missing=missing,
        augment=augment,
        views=views,
        seed=seed,
        zero_vectors=zero_vectors,
    )


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("gallery", None, "Path of the gallery (a Lance dataset).", required=True)
    string("images", None, cli.IMAGES, required=True)
    string("model", None, "Artifact, .keras file or SavedModel.", required=True)
    string("column", None, "Name of the embedding column.", required=True)
    string("kind", "", "embedded or side_info; by default as the artifact says.")
    string("data_dir", "", "Where TFDS keeps its data; by default TFDS_DATA_DIR.")
    cli.define_own_model(values)
    flags.DEFINE_enum(
        "on_bad_image",
        "error",
        ["error", "skip"],
        "With an unreadable image, or one whose name is not UTF-8: stop, or leave it out "
        "and count.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "match_dims",
        0,
        "Cut the vectors, or fill them up with zeros, to this size: the old model's, where a model "
        "is compatible with one of another size. 0: as they are.",
        0,
        flag_values=values,
    )
    flags.DEFINE_integer("batch_size", 256, "Images per model call.", 1, flag_values=values)
    cli.define_zero_vectors(values)
    flags.DEFINE_boolean(
        "missing", False, "Only the rows that an existing column lacks.", flag_values=values
    )
    cli.define_overwrite(values)
    cli.define_drop_indices(values)


def main(values: flags.FlagValues) -> None:
    """Embeds what the flags name."""
    if values.kind not in ("", "embedded", "side_info"):
        raise InputError(f"--kind={values.kind}: expected embedded or side_info")
    if values.missing and values.overwrite:
        raise InputError("--overwrite: does not go with --missing, which changes no other row")
    gallery = embed_gallery(
        values.gallery,
        values.images,
        values.model,
        values.column,
        kind=values.kind,
        match_dims=values.match_dims,
        data_dir=values.data_dir,
        on_bad_image=values.on_bad_image,
        batch_size=values.batch_size,
        overwrite=values.overwrite,
        zero_vectors=values.zero_vectors,
        drop_indices=values.drop_indices,
        missing=values.missing,
        **cli.own_model(values),
    )
    print(f"{gallery.path}@{gallery.version}: {gallery.num_rows} rows, column {values.column}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
