"""Maps between embedding spaces in closed form: ridge-affine and orthogonal Procrustes.

The first thing to try, and the floor that every learned map must beat. Both are one matrix and
one offset, `y = x @ matrix + offset`, worked out in float64.
"""

from collections.abc import Iterator, Sequence

import numpy as np

Affine = tuple[np.ndarray, np.ndarray]  # matrix [d_in, d_out], offset [d_out]

LAMBDAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def ridge_affine(
    x: np.ndarray, y: np.ndarray, lam: float, weights: np.ndarray | None = None
) -> Affine:
    """Least squares with a ridge on the matrix, both sides centred: the offset is free.

    `matrix = (Xc' Xc + lam * t * I)^-1 Xc' Yc`, where t is the mean of the diagonal of Xc' Xc,
    so that `lam` means the same whatever the number of rows and the scale of x.

    Args:
      x: float [n, d_in].
      y: float [n, d_out].
      lam: >= 0.
      weights: float [n], of the rows' squared errors; None weighs them alike.
    """
    return next(_ridge_path(x, y, [lam], weights))


def _ridge_path(
    x: np.ndarray, y: np.ndarray, lambdas: Sequence[float], weights: np.ndarray | None = None
) -> Iterator[Affine]:
    """`ridge_affine` for each of several ridges: the moments are taken once."""
    x, y, x_mean, y_mean = _centred(x, y, weights)
    moments, cross = x.T @ x, x.T @ y
    scale = np.trace(moments) / len(moments) or 1.0  # Rows that are all the same: 1.
    for lam in lambdas:
        matrix = np.linalg.solve(moments + lam * scale * np.eye(len(moments)), cross)
        yield matrix, y_mean - x_mean @ matrix


def procrustes(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> Affine:
    """The rotation (with reflection) that brings centred x nearest to centred y.

    `R = U V'` from the singular value decomposition of `Xc' Yc` (Schoenemann, 1966). Where the
    sizes differ the smaller side is padded with zeros, which keeps the leading part of R.

    Args:
      x: float [n, d_in].
      y: float [n, d_out].
      weights: float [n], of the rows; None weighs them alike.
    """
    x, y, x_mean, y_mean = _centred(x, y, weights)
    size = max(x.shape[1], y.shape[1])
    cross = np.zeros((size, size))
    cross[: x.shape[1], : y.shape[1]] = x.T @ y
    u, _, vt = np.linalg.svd(cross)
    matrix = (u @ vt)[: x.shape[1], : y.shape[1]]
    return matrix, y_mean - x_mean @ matrix


def _centred(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None):
    """Both sides without their means, rows times the root of their weights, and the means."""
    shares = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
    x_mean, y_mean = shares @ x, shares @ y
    root = np.sqrt(shares)[:, None]
    return (x - x_mean) * root, (y - y_mean) * root, x_mean, y_mean


def choose_lambda(
    x: np.ndarray, y: np.ndarray, held_out: np.ndarray, lambdas: Sequence[float] = LAMBDAS
) -> tuple[float, dict[float, float]]:
    """The ridge with the least mean squared error on rows that it was not fitted on.

    Args:
      x, y: as `ridge_affine`.
      held_out: bool [n], e.g. the rows of some classes; some True and some False.

    Returns:
      (lambda, error of each lambda).
    """
    errors = {}
    path = _ridge_path(x[~held_out], y[~held_out], lambdas)
    for lam, fitted in zip(lambdas, path, strict=True):
        errors[lam] = float(np.mean((apply(fitted, x[held_out]) - y[held_out]) ** 2))
    return min(errors, key=lambda lam: errors[lam]), errors


def apply(affine: Affine, x: np.ndarray) -> np.ndarray:
    """`x @ matrix + offset`, float64 [n, d_out]."""
    return x @ affine[0] + affine[1]
