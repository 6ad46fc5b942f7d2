"""Exact search of a small gallery inside a SavedModel, by TensorFlow's own operations.

ScaNN's operations are not in the stock TF Serving image; these are. `serving_default` takes
`embedding` float32 `[n, d]` and `k` int32 `[]`, and returns, nearest first, `ids` string `[n, k]`,
`rows` int64 `[n, k]` (places in the gallery, and in `assets.extra/ids.json`) and `distances`
float32 `[n, k]`; fewer where the gallery has fewer than k rows.

The order is that of `fct_tf.retrieval.distances`: a matrix product in float64 finds what may be
among the k nearest, the distances of these are computed from the rows themselves, and of equal
ones the first row comes first.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.gallery import reader
from fct_tf.models.signatures import Served, Tensors
from fct_tf.retrieval import exact
from fct_tf.serving.warmup import NEIGHBOURS

IDS = Path("assets.extra") / "ids.json"
# Each request reads all rows, in float64: beyond this an index is what is wanted.
MOST_BYTES = 1 << 28
# Share of a squared length by which a product in float64 may be off, with room: see
# `fct_tf.retrieval.distances` for the bound.
_SLACK = 1e-12
# Cosine distances are rounded to 44 bits, so that what is equal on paper is a tie.
_DROPPED_BITS = 9


def build(gallery_uri: str, column: str) -> Served:
    """A model that searches a column of a gallery.

    Args:
      gallery_uri: the gallery, best at a version or tag: the model does not follow changes.
      column: embedding column of at most 256 MiB in float64.

    Raises:
      InputError: no such gallery or column, no rows, too many.
    """
    gallery = reader.open_gallery(gallery_uri)
    column_info = gallery.column(column)
    size = gallery.num_rows * column_info.dim * 8
    if not gallery.num_rows or size > MOST_BYTES:
        raise InputError(
            f"{gallery.path}: {gallery.num_rows} rows of {column_info.dim} values; a model that "
            f"searches takes 1 to {MOST_BYTES // (column_info.dim * 8)} of them, build an index "
            "for more"
        )
    rows = gallery.read([column])
    vectors = rows.vectors[column]
    stored = tf.Variable(vectors, trainable=False, name="rows")
    ids = tf.constant([str(one) for one in rows.ids])
    cosine = column_info.distance == "cosine"

    def search(embedding: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        every = tf.cast(stored, tf.float64)
        # One row more, which is dropped again: a loop over none has no shape.
        query = tf.pad(tf.cast(embedding, tf.float64), [[0, 1], [0, 0]])
        lengths = tf.norm(every, axis=1)
        kept = tf.minimum(k, tf.shape(every)[0])
        # Entries that order rows as the distances do, but for rounding.
        products = tf.matmul(query, every, transpose_b=True)
        if cosine:
            entries = -tf.math.divide_no_nan(products, lengths)
            slack = _SLACK * tf.norm(query, axis=1)
        else:
            entries = tf.square(lengths) - 2 * products
            slack = _SLACK * tf.square(tf.norm(query, axis=1) + tf.reduce_max(lengths))

        def nearest(of: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            one, row_entries, off = of
            last = -tf.reduce_min(tf.math.top_k(-row_entries, kept).values)
            candidates = tf.where(row_entries <= last + 2 * off)[:, 0]
            distances = _distances(one, tf.gather(every, candidates), cosine)
            # Of equal values `top_k` puts the first one first.
            values, places = tf.math.top_k(-distances, kept)
            return tf.gather(candidates, places), -values

        places, distances = tf.map_fn(
            nearest, (query, entries, slack), fn_output_signature=(tf.int64, tf.float64)
        )
        places = tf.ensure_shape(places, [None, None])[:-1]
        distances = tf.cast(tf.ensure_shape(distances, [None, None])[:-1], tf.float32)
        return {"ids": tf.gather(ids, places), "rows": places, "distances": distances}

    def expected(_: str, inputs: Tensors) -> dict[str, np.ndarray]:
        k = min(int(inputs["k"]), len(vectors))
        places, distances = exact.search(inputs["embedding"], vectors, k, column_info.distance)
        names = np.array([str(one).encode() for one in rows.ids], object)
        return {"ids": names[places], "rows": places, "distances": distances}

    specs = [
        tf.TensorSpec([None, column_info.dim], tf.float32, name="embedding"),
        tf.TensorSpec([], tf.int32, name="k"),
    ]
    info = {
        "kind": "top_k",
        "name": column_info.model,
        "space": column_info.space,
        "compatible_with": list(column_info.compatible_with),
        "distance": column_info.distance,
        "dims": {"embedding": column_info.dim},
        "gallery": {"version": gallery.version, "column": column, "num_rows": len(vectors)},
        "default_k": NEIGHBOURS,
    }
    files = {str(IDS): [str(one) for one in rows.ids]}
    return Served({"serving_default": (search, specs)}, info, expected, files=files)


def _distances(query: tf.Tensor, rows: tf.Tensor, cosine: bool) -> tf.Tensor:
    """Distances of a query to rows, from the rows themselves.

    Args:
      query: float64 [d].
      rows: float64 [m, d].
      cosine: whether 1 - cosine, else squared L2.

    Returns:
      float64 [m].
    """
    apart = query - rows
    if not cosine:
        return tf.reduce_sum(tf.square(apart), axis=1)
    # As `fct_tf.retrieval.distances` has it: digits stay where rows are nearly parallel.
    own, lengths = tf.norm(query), tf.norm(rows, axis=1)
    zero = tf.logical_or(tf.equal(own, 0), tf.equal(lengths, 0))
    both = own + lengths
    longer = -tf.math.divide_no_nan(tf.reduce_sum(apart * (query + rows), axis=1), both)
    mean = tf.math.divide_no_nan(query, own) + tf.math.divide_no_nan(rows, lengths[:, None])
    apart += longer[:, None] / 2 * mean
    distances = tf.reduce_sum(tf.square(apart), axis=1) / (tf.square(both) / 2)
    distances = tf.where(distances < 1e-29, tf.zeros_like(distances), distances)
    # Rounded by its bits: optimizers may take large - (large - x) for x.
    half, mask = 1 << (_DROPPED_BITS - 1), -(1 << _DROPPED_BITS)
    bits = tf.bitwise.bitwise_and(
        tf.bitcast(distances, tf.int64) + half, tf.constant(mask, tf.int64)
    )
    return tf.where(zero, tf.ones_like(distances), tf.bitcast(bits, tf.float64))
