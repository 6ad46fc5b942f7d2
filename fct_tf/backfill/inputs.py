"""What a backfilling reads beside the gallery: the new model, and the images as that takes them."""

from typing import Any

from fct_tf.data import by_id
from fct_tf.gallery import known, table
from fct_tf.models import preprocess, saved_model
from fct_tf.models.artifact import Artifact
from fct_tf.models.load import load_any


def open_inputs(
    gallery: str,
    model: str,
    images: str,
    *,
    transformation: str = "",
    data_dir: str = "",
    **foreign: Any,
) -> tuple[Artifact, by_id.Images]:
    """The model and the images that `backfill` takes.

    Args:
      gallery: its columns tell how a model of the user's own was used before.
      model: path of an artifact, a `.keras` file or a SavedModel.
      transformation: a SavedModel, if one is named; the model was what it was trained for.
      images: a source as `fct_tf.data.datasets` names them.
      data_dir: of TFDS and glyphs.
      **foreign: of a model that is no artifact, see `fct_tf.models.foreign.load`.

    Raises:
      InputError: no such gallery, model or source.
    """
    spaces = known.spaces(table.open_gallery(gallery))
    if transformation:  # A fused column does not say what its new half is.
        target = saved_model.read_info(saved_model.locate(transformation)).get("target_space")
        spaces.setdefault(str(target), None)
    loaded = load_any(model, known=spaces, **foreign)
    settings = loaded.preprocessing
    loaded_images = by_id.load(
        images,
        image_size=settings["size"],
        resize=settings["resize"],
        data_dir=data_dir,
        orientation=preprocess.orientation(settings),
    )
    return loaded, loaded_images
