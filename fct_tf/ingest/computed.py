"""A column that a user's own function computes from others."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.common.provenance import created_by
from fct_tf.gallery import table
from fct_tf.gallery.columns import DISTANCES, Rows, imported_space


def add_computed(
    gallery: table.Gallery,
    name: str,
    compute: Callable[[Rows], Any],
    read: Sequence[str],
    *,
    model: str = "",
    distance: str = "l2",
    batch_size: int = 8192,
    overwrite: bool = False,
    drop_indices: bool = False,
    job_dir: str | os.PathLike | None = None,
) -> table.Gallery:
    """Adds the column that `compute` makes of the columns `read`.

    Its dimension and type (float16, else float32) are those of the first batch, for which
    `compute` is called once more. Other arguments: as `fct_tf.api.Gallery.add_column` and
    `fct_tf.gallery.table.add_column`.

    Raises:
      InputError: an existing column; results that are not rows of numbers, NaN or infinity.
    """
    gallery.check_rows()
    if distance not in DISTANCES:
        raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")

    def computed(rows: Rows) -> np.ndarray:
        vectors = np.asarray(compute(rows))
        if vectors.ndim != 2 or len(vectors) != len(rows) or vectors.dtype.kind not in "fiu":
            raise InputError(
                f"column {name!r}: compute returned {vectors.dtype} {list(vectors.shape)} for "
                f"{len(rows)} rows; one row of numbers for each is needed"
            )
        return vectors

    first = computed(next(iter(gallery.batches(read, batch_size))))
    source = [{"column": one, "space": gallery.column(one).space} for one in read]
    space = imported_space(model) if model else sha256_json({"computed": name, "from": source})
    column = table.Column(
        name,
        first.shape[1],
        space,
        "float16" if first.dtype == np.float16 else "float32",
        "imported",
        distance,
        created_by=created_by("Gallery", {}, source=source, model=model or name),
    )
    return table.add_column(
        gallery,
        column,
        computed,
        read,
        batch_size=batch_size,
        overwrite=overwrite,
        drop_indices=drop_indices,
        job_dir=job_dir,
        progress=f"compute {name}",
    )
