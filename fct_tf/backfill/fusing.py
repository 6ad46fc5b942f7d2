"""Backfilling the column of a fused search: a re-embedded row is its old and its new embedding.

The column holds rows of `fct_tf.models.fusion`. What makes one of them of the two embeddings is in
the SavedModel that made the column; the old embedding still lies where the column was made from.
"""

from dataclasses import dataclass

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.gallery import derived, table
from fct_tf.gallery.columns import Column
from fct_tf.models import saved_model
from fct_tf.upgrade.inputs import Transformation


@dataclass(frozen=True)
class Fusing:
    """Makes fused rows of new embeddings.

    target: a column in the space that the new embeddings have to lie in. model: of both embeddings.
    gallery, source: where the old ones are.
    """

    target: Column
    model: Transformation
    gallery: table.Gallery
    source: str

    def __call__(self, ids: np.ndarray, new: np.ndarray) -> np.ndarray:
        """The fused rows: float32 [n, d].

        Args:
          ids: object [n] of str.
          new: float32 [n, d_target], what the new model makes of their images.

        Raises:
          InputError: an id that the gallery with the old embeddings does not have, a bad row.
        """
        if not len(ids):
            return np.empty((0, self.model.dims["embedding"]), np.float32)
        old = self.gallery.take(ids.tolist(), [self.source]).vectors[self.source]
        assert self.model.fuse is not None
        return self.model.fuse(old, new)


def open_fusing(
    gallery: table.Gallery, column: Column, transformation: str, sources: str
) -> Fusing:
    """What makes the rows of the fused column `column`.

    Args:
      transformation: the SavedModel that made it.
      sources: the gallery that it was made from, if it lies in a gallery of its own.

    Raises:
      InputError: no transformation, or another than it was made with; old embeddings that are gone.
    """
    if not transformation:
        raise InputError(
            f"{gallery.path}: column {column.name!r} is of a fused search, whose rows are made of "
            "both embeddings; name the SavedModel that it was made with by ``transformation``"
        )
    model = open_made_with(gallery, column, transformation, "query")
    source_gallery = derived.open_sources(gallery, column, sources)
    recorded = column.created_by["source"][0]
    named = source_gallery.columns.get(recorded["column"])
    fitting = [one for one in (named, *source_gallery.columns.values()) if one is not None]
    source = next((one for one in fitting if one.space == recorded["space"]), None)
    if source is None:
        raise InputError(
            f"{source_gallery.path}: column {column.name!r} was made of {recorded['column']!r}, "
            "which is gone or another one by now; name a gallery that has it by ``sources``"
        )
    # As a transformed column is described: comparable with the new model's own embeddings.
    target = Column(
        column.name,
        model.dims["target_embedding"],
        column.space,
        compatible_with=(str(model.info["target_space"]),),
        created_by=column.created_by,
    )
    return Fusing(target, model, source_gallery, source.name)


def open_made_with(
    gallery: table.Gallery, column: Column, transformation: str, side: str = "gallery"
) -> saved_model.Transformation:
    """The SavedModel `transformation`, loaded.

    Raises:
      InputError: none there, or the column was not made with it.
    """
    info = saved_model.read_info(saved_model.locate(transformation))
    if column.created_by.get("settings", {}).get("transformation") != info["space"]:
        raise InputError(
            f"{gallery.path}: column {column.name!r} was not made by {transformation}; name the "
            "transformation that it was upgraded with"
        )
    return saved_model.load_transformation(transformation, side)
