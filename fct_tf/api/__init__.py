"""Galleries, transformations and models for notebooks and programs.

    import fct_tf

    gallery = fct_tf.Gallery.open("photos.lance")
    transformation = fct_tf.Transformation.fit("train.lance", "embedding_old", "embedding_new")
    gallery.upgrade(transformation, "embedding_fct")
    print(gallery.judge("embedding_old", "embedding_fct", "embedding_new", sample="sample.lance"))
    gallery.tag("live")

Methods do what the commands do, with the same checks: bad input is an `fct_tf.InputError` of one
line. Nothing here imports TensorFlow before something is trained, transformed or embedded.
"""

from fct_tf.api.changes import Backfilled
from fct_tf.api.gallery import Gallery
from fct_tf.api.judging import BackfillingCurves
from fct_tf.api.model import Model
from fct_tf.api.search import Neighbours
from fct_tf.api.transformation import Transformation
from fct_tf.common.errors import InputError

__all__ = [
    "Backfilled",
    "BackfillingCurves",
    "Gallery",
    "InputError",
    "Model",
    "Neighbours",
    "Transformation",
]
