"""Vectors at another model's size: what lets models of different sizes be compared.

A model that is trained to be compatible with one of another size is so in its first coordinates,
or with zeros after its own (BCT, arXiv 2003.11942): see `fct_tf.training.compatibility`.
"""

import dataclasses
import os

import numpy as np
from absl import logging

from fct_tf.common.files import sha256_json
from fct_tf.common.provenance import created_by
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows


def space_of(space: str, dim: int) -> str:
    """The space of vectors of `space` that were truncated, or zero-padded, to `dim` values."""
    return sha256_json({"space": space, "match_dims": dim})


def is_matched(column: Column) -> bool:
    """Whether a column was made so, of another or by a model."""
    return bool(column.created_by.get("settings", {}).get("match_dims"))


def truncate_or_pad(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` coordinates, or with zeros after them where there are fewer.

    Args:
      vectors: float [n, d].

    Returns:
      float [n, dim].
    """
    missing = max(0, dim - vectors.shape[1])
    return np.pad(vectors, ((0, 0), (0, missing)))[:, :dim]


def add_matched(
    gallery_uri: str | os.PathLike, column: str, dim: int, new_column: str
) -> table.Gallery:
    """Adds `new_column`, the vectors of `column` at the size `dim`, unless it is there already.

    It is what `embed_gallery --match_dims` makes, from rows instead of images: a space of its own
    that fits what the model is compatible with.

    Raises:
      InputError: no such gallery or column.
    """
    gallery = table.open_gallery(gallery_uri)
    source = gallery.column(column)
    matched = dataclasses.replace(
        source,
        name=new_column,
        dim=dim,
        space=space_of(source.space, dim),
        created_by=created_by(
            "study",
            {"match_dims": dim},
            source=[{"column": column, "space": source.space}],
            model=source.model,
        ),
    )
    existing = gallery.columns.get(new_column)
    if existing is not None and existing.space == matched.space:
        logging.info("%s: column %r is there already", gallery.path, new_column)
        return gallery

    def compute(rows: Rows) -> np.ndarray:
        return truncate_or_pad(rows.vectors[column], dim)

    return table.add_column(gallery, matched, compute, [column], overwrite=True)
