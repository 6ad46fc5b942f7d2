"""Images embedded into a gallery: the request, checked before the first image is decoded."""

from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.image_size import text
from fct_tf.common.provenance import created_by
from fct_tf.data import datasets
from fct_tf.engines.engine import Engine, local
from fct_tf.gallery import known, table
from fct_tf.ingest import embed
from fct_tf.ingest.match_dims import space_of, truncate_or_pad
from fct_tf.models import artifact, preprocess
from fct_tf.models.load import load_any


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
    zero_vectors: str = "refuse",
    engine: Engine = local,
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
        compatible with one of another size, that one's. Longer embeddings are truncated and
        shorter ones zero-padded, as in the training; the column has a space of its own, which
        fits what the model is compatible with.
      data_dir, on_bad_image, cache, classes: as `fct_tf.data.datasets.load`.
      batch_size, overwrite, drop_indices, zero_vectors, engine: as
        `fct_tf.ingest.embed.add_embeddings`.
      missing: embed only the images of rows in which `column`, which is there, is null.
      **foreign: of a model that is no artifact, see `fct_tf.models.foreign.load`.

    Raises:
      InputError: no such images or model, a kind that embedding does not make, an existing column,
        `missing` with `overwrite`; and as `fct_tf.ingest.embed.add_embeddings`.
    """
    if kind not in ("", "embedded", "side_info"):
        raise InputError(f"``kind={kind}``: expected embedded or side_info")
    if missing and overwrite:
        raise InputError(
            "``overwrite=True``: does not go with ``missing=True``, which changes no other row"
        )
    if isinstance(model, artifact.Artifact):
        loaded = model
    else:
        galleries = [table.open_gallery(gallery)] if table.exists(gallery) else []
        loaded = load_any(model, known=known.spaces(*galleries), **foreign)
    preprocessing = loaded.preprocessing
    orientation = preprocess.orientation(preprocessing)
    dim, space = loaded.dim, loaded.space

    def embed_images(pixels):
        return loaded.embed(pixels)

    matching = match_dims not in (0, dim)
    if matching:
        dim, space = match_dims, space_of(space, match_dims)

        def embed_images(pixels):
            return truncate_or_pad(np.asarray(loaded.embed(pixels)), match_dims)

    ids = None
    if missing:
        new_column = table.Column(column, dim, space, created_by={"model": loaded.name})
        stored, ids = embed.find_missing(gallery, new_column)
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
    settings: dict[str, Any] = {
        "images": image_set.name,
        "model": str(loaded.path),
        "preprocessing": dict(preprocessing),
    }
    if zero_vectors != "refuse":
        settings["zero_vectors"] = zero_vectors
    if matching:
        settings["match_dims"] = match_dims
    new_column = table.Column(
        name=column,
        dim=dim,
        dtype="float32",
        space=space,
        kind=kind or loaded.column_kind,
        distance=loaded.distance,
        compatible_with=tuple(loaded.compatible_with),
        created_by=created_by("embed_gallery", settings, model=loaded.name),
    )
    return embed.add_embeddings(
        gallery,
        image_set,
        embed_images,
        new_column,
        batch_size=batch_size,
        overwrite=overwrite,
        drop_indices=drop_indices,
        missing=missing,
        zero_vectors=zero_vectors,
        engine=engine,
    )
