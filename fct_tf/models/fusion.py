"""Fused search: an old and a new embedding as one row, compared with such rows alone.

While the old encoder can still embed queries, a gallery row g is compared twice: as ever with the
query's old embedding, and, mapped by a transformation T, with its new one:

    d(q, g) = a |old(q) - g|^2 / s_old^2 + (1 - a) |new(q) - T(g)|^2 / s_new^2

with a the weight of the old side and s^2 the mean squared distance of two training rows in a space,
twice the trace of its covariance. That is the squared distance of two concatenated rows,

    [sqrt(a) old / s_old | sqrt(1 - a) new / s_new],

where `new` is T(g) in a gallery row and the new model's own embedding in a query, and in a gallery
row that has been re-embedded. So one small network, the fusion, makes all three of them, and the
gallery side is a transformation with the fusion behind it.

Vectors of a space that is compared by cosine have length one first; where both are, so have the
fused rows. Whitening, and the choice of the leading directions, is one matrix more.
"""

from typing import Any

import keras
import numpy as np

from fct_tf.models import fold

NAME = f"{fold.FUSION}rows"  # Of the fusion, a layer of the gallery side.


def build(
    distances: tuple[str, str],
    scales: tuple[float, float],
    dims: tuple[int, int],
    projection: np.ndarray | None = None,
) -> keras.Model:
    """The fusion of an old and a new space.

    Args:
      distances: of both, `l2` or `cosine`.
      scales: sqrt(a) / s_old and sqrt(1 - a) / s_new.
      dims: d_source and d_target.
      projection: float [d_source + d_target, d], or None for the concatenated rows themselves.

    Returns:
      A model from {"source_embedding": float32 [batch, d_source], "target_embedding": float32
      [batch, d_target]} to {"embedding": float32 [batch, d]}.
    """

    def named(name: str) -> dict[str, str]:
        return {"name": f"{fold.FUSION}{name}", "dtype": "float32"}

    roles = ("source_embedding", "target_embedding")
    inputs = {role: keras.Input((dim,), name=role) for role, dim in zip(roles, dims, strict=True)}
    parts = []
    for (role, x), by, scale in zip(inputs.items(), distances, scales, strict=True):
        if by == "cosine":
            x = keras.layers.UnitNormalization(**named(f"{role}_direction"))(x)
        parts.append(keras.layers.Rescaling(scale, **named(role))(x))
    x = keras.layers.Concatenate(**named("both"))(parts)
    if projection is not None:
        dense = keras.layers.Dense(projection.shape[1], use_bias=False, **named("projection"))
        x = dense(x)
        dense.set_weights([projection.astype(np.float32)])
    if distance(distances) == "cosine":
        x = keras.layers.UnitNormalization(**named("direction"))(x)
    return keras.Model(inputs, {"embedding": x}, name=NAME)


def distance(distances: tuple[str, str]) -> str:
    """By what fused rows are compared: `cosine` where both spaces are, else `l2`."""
    return "cosine" if set(distances) == {"cosine"} else "l2"


def gallery_side(transformation: keras.Model, fusion: keras.Model) -> keras.Model:
    """`transformation` with the fusion behind it: the same inputs, `embedding` is a fused row.

    Further outputs, such as `log_variance`, stay those of the transformation.
    """
    inputs: Any = transformation.input
    outputs: Any = transformation.output
    rows = fusion(
        {
            "source_embedding": inputs["source_embedding"],
            "target_embedding": outputs["embedding"],
        }
    )
    return keras.Model(inputs, {**outputs, **rows}, name="fused_transformation")


def of(model: Any) -> keras.Model | None:
    """The fusion in a gallery side; None for a transformation without one."""
    return next((layer for layer in model.layers if layer.name == NAME), None)
