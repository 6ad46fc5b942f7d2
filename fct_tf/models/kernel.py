"""A correction of a transformation, fitted in closed form on pairs from the gallery.

A transformation learnt on one set of images errs systematically on another. Where the new model
has re-embedded a sample of the gallery, the error is known there; kernel ridge regression carries
it over to rows that lie near in the spaces that the transformation reads and writes (with a
Gaussian kernel, the posterior mean of a Gaussian process whose prior mean is the transformation;
Rasmussen and Williams, "Gaussian Processes for Machine Learning", equation 2.25).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FOLDS = 5
# Pairs by which width and ridge are chosen: as the length and the noise of a Gaussian process they
# do not depend on the number of rows, and the work grows with its third power.
CHOICE_PAIRS = 1024
WIDTHS = (0.25, 0.5, 1.0, 2.0)  # of the kernel, relative to the mean squared distance
LAMBDAS = (0.01, 0.03, 0.1, 0.3, 1.0)
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Correction:
    """`T(x) + exp(-|f(x) - centres|^2 / width) @ coefficients`.

    f(x) is the concatenation of the blocks of x, each less its mean and divided by its scale.

    Attributes:
      means: role of a block (`source_embedding`, `side_info`, `embedding`) -> float64 [d]. They
        change no distance, but float32 loses those of rows that are far from the origin.
      scales: role -> divisor, in the order of the blocks.
      centres: float64 [m, sum of the blocks' sizes], f of rows.
      coefficients: float64 [m, d_target].
      width: > 0.
      chosen: what the selection tried and took, JSON.
    """

    means: dict[str, np.ndarray]
    scales: dict[str, float]
    centres: np.ndarray
    coefficients: np.ndarray
    width: float
    chosen: dict

    @property
    def helps(self) -> bool:
        """Whether it lowers the error on pairs held out; too few of them tell nothing."""
        # What is left is rounding: with one pair both errors are the same number.
        lowered = self.chosen["mse_after"] < (1 - 1e-6) * self.chosen["mse_before"]
        return lowered and self.chosen["pairs"] >= FOLDS

    def __call__(self, blocks: Mapping[str, np.ndarray]) -> np.ndarray:
        """The correction alone, float64 [n, d_target]."""
        kernel = gaussian(features(blocks, self.means, self.scales), self.centres, self.width)
        return kernel @ self.coefficients


def fit(
    blocks: Mapping[str, np.ndarray],
    residual: np.ndarray,
    *,
    max_centres: int = 4096,
    seed: int = 0,
) -> Correction:
    """Fits the correction; its width and ridge are chosen by cross-validation over the pairs.

    With at most `max_centres` pairs this is kernel ridge regression; with more, a random subset
    of them are centres and all are fitted (Nystroem; ibid., section 8.3.1).

    Args:
      blocks: role -> float [n, d]: what the transformation reads, and its own output.
      residual: float [n, d_target], new embedding minus the transformation's output.
      max_centres: bound of the centres, hence of the work per row: m * (d_f + d_target)
        multiplications.
      seed: of the folds and the centres.
    """
    count = len(residual)
    generator = np.random.default_rng(seed)
    means = {role: values.mean(axis=0, dtype=np.float64) for role, values in blocks.items()}
    scales = {role: _scale(values) for role, values in blocks.items()}
    points = features(blocks, means, scales)
    order = generator.permutation(count)
    # The mean squared distance of two rows: 2 for each block whose rows vary at all.
    typical = max(2.0 * points.var(axis=0).sum(), 1.0)
    residual = residual.astype(np.float64)
    chosen = order[:CHOICE_PAIRS]
    errors = _cross_validated(points[chosen], residual[chosen], typical)
    width, lam = min(errors, key=lambda key: errors[key])
    centres = points[order[:max_centres]]
    if len(centres) == count:
        kernel = gaussian(centres, centres, width * typical)
        coefficients = np.linalg.solve(kernel + lam * np.eye(count), residual[order])
    else:
        coefficients = _nystroem(points, residual, centres, width * typical, lam)
    return Correction(
        means=means,
        scales=scales,
        centres=centres,
        coefficients=coefficients,
        width=width * typical,
        chosen={
            "pairs": count,
            "centres": len(centres),
            "width": width,
            "ridge": lam,
            # On the pairs that were chosen by, each held out once.
            "mse_before": float(np.mean(residual[chosen] ** 2)),
            "mse_after": errors[width, lam],
        },
    )


def _cross_validated(
    points: np.ndarray, residual: np.ndarray, typical: float
) -> dict[tuple[float, float], float]:
    """Mean squared error on held-out rows, by (width, ridge); the rows are in random order.

    No fold is fitted by itself. With A = (K + lambda I)^-1 of all rows, those of a fold f are off
    by A_ff^-1 (A y)_f when they are held out, and one eigendecomposition of K serves every lambda.
    """
    fold = np.arange(len(points)) % FOLDS
    squares: dict[tuple[float, float], float] = {}
    for width in WIDTHS:
        values, vectors = np.linalg.eigh(gaussian(points, points, width * typical))
        turned = vectors.T @ residual
        for lam in LAMBDAS:
            inverse = 1.0 / (values + lam)
            fitted = vectors @ (inverse[:, None] * turned)
            total = 0.0
            for k in range(min(FOLDS, len(points))):
                of_fold = vectors[fold == k]
                error = np.linalg.solve((of_fold * inverse) @ of_fold.T, fitted[fold == k])
                total += float(np.sum(error**2))
            squares[width, lam] = total / residual.size
    return squares


def features(
    blocks: Mapping[str, np.ndarray], means: Mapping[str, np.ndarray], scales: Mapping[str, float]
) -> np.ndarray:
    """The blocks side by side, float64 [n, sum of sizes], in the order of `scales`."""
    return np.concatenate([(blocks[role] - means[role]) / scales[role] for role in scales], 1)


def gaussian(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """`exp(-|a_i - b_j|^2 / width)`, float64 [n, m], of float64 [n, d] and [m, d]."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return np.exp(-np.maximum(squared, 0.0) / width)


def _scale(values: np.ndarray) -> float:
    """Root of the mean squared distance of the rows from their mean.

    Where that is no thousandth of their length it is the length (or 1): what float32 and bfloat16
    round in rows that hardly vary must not be blown up.
    """
    deviation = float(np.sqrt(values.var(axis=0, dtype=np.float64).sum()))
    length = float(np.sqrt((values.astype(np.float64) ** 2).mean(axis=0).sum()))
    return deviation if deviation > 1e-3 * length else length or 1.0


def _nystroem(
    points: np.ndarray, residual: np.ndarray, centres: np.ndarray, width: float, lam: float
) -> np.ndarray:
    """The minimum over c of |K c - r|^2 + lam c' K_mm c, where K is [n, m] and never held whole."""
    matrix, target = lam * gaussian(centres, centres, width), 0.0
    for start in range(0, len(points), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        kernel = gaussian(points[block], centres, width)
        matrix += kernel.T @ kernel
        target += kernel.T @ residual[block]
    # What centres that lie close together leave undetermined.
    matrix[np.diag_indices_from(matrix)] += 1e-10 * np.trace(matrix) / len(matrix)
    return np.linalg.solve(matrix, target)
