"""The spaces that a gallery tells of: what a model of the user's own may have been used for."""

from typing import Any

from fct_tf.gallery.columns import recorded_preprocessing
from fct_tf.gallery.table import Gallery


def spaces(*galleries: Gallery) -> dict[str, Any]:
    """Spaces of the columns, and those that they were made for -> preprocessing, if recorded.

    That is what `fct_tf.models.foreign.load` takes as `known`.
    """
    columns = [column for gallery in galleries for column in gallery.columns.values()]
    made_for = {space: None for column in columns for space in column.compatible_with}
    return {**made_for, **{column.space: recorded_preprocessing(column) for column in columns}}
