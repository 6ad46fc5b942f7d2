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
WIDTHS = (0.25, 0.5, 1.0, 2.0)  # of the kernel, relative to the mean squared distance
LAMBDAS = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Correction:
    """`T(x) + exp(-|f(x) - centres|^2 / width) @ coefficients`.

    f(x) is the concatenation of the blocks of x, each divided by its scale.

    Attributes:
      scales: role of a block (`source_embedding`, `side_info`, `embedding`) -> divisor.
      centres: float64 [m, sum of the blocks' sizes], already scaled.
      coefficients: float64 [m, d_target].
      width: > 0.
      chosen: what the selection tried and took, JSON.
    """

    scales: dict[str, float]
    centres: np.ndarray
    coefficients: np.ndarray
    width: float
    chosen: dict

    def __call__(self, blocks: Mapping[str, np.ndarray]) -> np.ndarray:
        """The correction alone, float64 [n, d_target]."""
        kernel = gaussian(features(blocks, self.scales), self.centres, self.width)
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
    scales = {role: max(_deviation(values), 1e-12) for role, values in blocks.items()}
    points = features(blocks, scales)
    order = generator.permutation(count)
    fold = np.empty(count, np.int64)
    fold[order] = np.arange(count) % min(FOLDS, count)
    centres = points[order[:max_centres]]
    typical = 2.0 * points.var(axis=0).sum() or 1.0  # the mean squared distance of two rows
    residual = residual.astype(np.float64)

    errors: dict[tuple[float, float], float] = {}
    for width in WIDTHS:
        kernel = gaussian(points, centres, width * typical)
        within = gaussian(centres, centres, width * typical)
        parts = [(kernel[fold == k], residual[fold == k]) for k in range(fold.max() + 1)]
        moments = [(k.T @ k, k.T @ r) for k, r in parts]
        for lam in LAMBDAS:
            error = 0.0
            for k, (held_kernel, held_residual) in enumerate(parts):
                rest = [moment for j, moment in enumerate(moments) if j != k]
                if not rest:  # A single pair: nothing to choose by.
                    continue
                solved = _solve(sum(m[0] for m in rest), sum(m[1] for m in rest), within, lam)
                error += float(np.sum((held_kernel @ solved - held_residual) ** 2))
            errors[width, lam] = error / residual.size
    uncorrected = float(np.mean(residual**2))
    width, lam = min(errors, key=lambda key: errors[key])
    kernel = gaussian(points, centres, width * typical)
    within = gaussian(centres, centres, width * typical)
    return Correction(
        scales=scales,
        centres=centres,
        coefficients=_solve(kernel.T @ kernel, kernel.T @ residual, within, lam),
        width=width * typical,
        chosen={
            "pairs": count,
            "centres": len(centres),
            "width": width,
            "ridge": lam,
            "mse_before": uncorrected,
            "mse_after": errors[width, lam],  # on pairs held out
        },
    )


def features(blocks: Mapping[str, np.ndarray], scales: Mapping[str, float]) -> np.ndarray:
    """The scaled blocks side by side, float64 [n, sum of sizes], in the order of `scales`."""
    return np.concatenate([blocks[role] / np.float64(scale) for role, scale in scales.items()], 1)


def gaussian(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """`exp(-|a_i - b_j|^2 / width)`, float64 [n, m], of float64 [n, d] and [m, d]."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return np.exp(-np.maximum(squared, 0.0) / width)


def _deviation(values: np.ndarray) -> float:
    """Root of the mean squared distance of the rows from their mean."""
    return float(np.sqrt(values.var(axis=0, dtype=np.float64).sum()))


def _solve(moments: np.ndarray, target: np.ndarray, within: np.ndarray, lam: float) -> np.ndarray:
    """The minimum over c of |K c - r|^2 + lam c' K_mm c, from K' K, K' r and K_mm.

    The minimiser over all centres is the one over the fitted rows' own (representer theorem), so
    that centres of a fold that is held out do no harm.
    """
    matrix = moments + lam * within
    matrix[np.diag_indices_from(matrix)] += 1e-8 * np.trace(matrix) / len(matrix)
    return np.linalg.solve(matrix, target)
