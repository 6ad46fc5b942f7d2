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

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fct_tf.common.errors import InputError
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


@dataclass(frozen=True)
class AffineForm:
    """A fused search whose rows are an affine function of what is stored: one float a row is left.

    A fused row is f(x) = x @ matrix + offset of x = [source_embedding | side_info], a query is
    z = [source_embedding | target_embedding] @ queries, and

        |z - f(x)|^2 = const - 2 <u, x> + r

    with u = (z - offset) @ matrix.T and const = |z - offset|^2 of the query, r = |x @ matrix|^2 of
    the row. So an index of inner products that holds x, as an old gallery's does where there is no
    side-information, and r beside it give the exact squared distances; nothing fused is stored.

    Attributes:
      matrix: float64 [d_source + d_side, d].
      offset: float64 [d].
      queries: float64 [d_source + d_target, d].
    """

    matrix: np.ndarray
    offset: np.ndarray
    queries: np.ndarray

    def of_queries(
        self, source_embedding: np.ndarray, target_embedding: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """u float64 [n, d_source + d_side] and const float64 [n].

        Args:
          source_embedding: float [n, d_source], of queries.
          target_embedding: float [n, d_target], the new model's own of the same.
        """
        both = np.concatenate([source_embedding, target_embedding], axis=1).astype(np.float64)
        z = both @ self.queries - self.offset
        return z @ self.matrix.T, np.einsum("ij,ij->i", z, z)

    def of_rows(
        self, source_embedding: np.ndarray, side_info: np.ndarray | None = None
    ) -> np.ndarray:
        """r float64 [n].

        Args:
          source_embedding: float [n, d_source], as stored.
          side_info: float [n, d_side], where the transformation reads it.
        """
        parts = [source_embedding] if side_info is None else [source_embedding, side_info]
        rows = np.concatenate(parts, axis=1).astype(np.float64) @ self.matrix
        return np.einsum("ij,ij->i", rows, rows)


def affine_form(model: keras.Model) -> AffineForm:
    """The affine form of a gallery side.

    Args:
      model: of an artifact of kind `fused`: its map affine or a rotation, not corrected by pairs,
        both spaces compared by L2. Whitened or cut to leading directions it may be.

    Raises:
      InputError: another one; names the layer that is not affine.
    """
    fusion = of(model)
    if fusion is None:
        raise InputError(f"{model.name}: no fused search; train one with ``fused=True``")
    affine = (keras.layers.Dense, keras.layers.Rescaling, keras.layers.Concatenate)
    for layer in (*model.layers, *fusion.layers):
        if layer is not fusion and not isinstance(layer, (*affine, keras.layers.InputLayer)):
            raise InputError(
                f"{layer.name}: is not affine; the form with one float a row is for affine maps "
                "and rotations without ``pairs``, where both models' embeddings are compared by L2"
            )
    layers = {layer.name: layer for layer in (*model.layers, *fusion.layers)}
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    if len(dense) != 1 or getattr(dense[0], "activation", None) is not keras.activations.linear:
        raise InputError(f"{model.name}: {len(dense)} layers, no affine map; see ``method=affine``")
    weights, offset = (values.astype(np.float64) for values in dense[0].get_weights())
    dims = [fusion.input[role].shape[-1] for role in fusion.input]
    scales = [layers[f"{fold.FUSION}{role}"].scale for role in fusion.input]
    queries = np.diag(np.repeat(np.asarray(scales, np.float64), dims))
    projection = layers.get(f"{fold.FUSION}projection")
    if projection is not None:
        queries = queries @ projection.get_weights()[0].astype(np.float64)
    matrix = weights @ queries[dims[0] :]
    matrix[: dims[0]] += queries[: dims[0]]
    return AffineForm(matrix, offset @ queries[dims[0] :], queries)
