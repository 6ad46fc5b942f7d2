"""How well a predicted log-variance predicts the error of a transformed embedding.

FastFill (arXiv 2303.04766) backfills the rows of the largest predicted log-variance first. That is
worth something only as far as the prediction orders the rows by their true error; whether its size
is right too tells whether it can be read as an error: one that was learnt together with the
discriminative term expects that as well, and lies above the squared error. NumPy only.
"""

import math
from collections.abc import Sequence

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Rows
from fct_tf.upgrade.pairs import BACKFILLED

TINY = 1e-12  # Below this an error is rounding; its logarithm says nothing.


def measure(log_variance: np.ndarray, squared_error: np.ndarray, bins: int = 10) -> dict:
    """Numbers on the calibration of predicted variances, as JSON.

    Args:
      log_variance: float [n], s; exp(s) is the expected squared error.
      squared_error: float [n] >= 0, mean over the dimensions, as `losses.mse`.
      bins: of equally many rows in the order of s (at most n).

    Returns:
      `num_rows`;
      `spearman`: rank correlation (ties share their mean rank), `pearson_log`: correlation of s
      and the log of the error; None where either side does not vary;
      `mean_ratio`: mean of exp(s) over mean error, `median_log_ratio`: median of s - log error;
      `expected_calibration_error_log`: mean over the bins, weighed by their rows, of
      |log(mean of exp(s)) - log(mean error)|: 0 is perfect, 0.69 is a factor of 2; and the same
      after the best constant factor, `.._scaled`: what is left to blame on the shape alone;
      `bins`: `predicted` (mean of exp(s)), `observed` (mean error) and `count`, ascending in s.

    Raises:
      InputError: no rows, or values that are not finite.
    """
    s = np.asarray(log_variance, np.float64)
    error = np.asarray(squared_error, np.float64)
    if s.shape != error.shape or s.ndim != 1:
        raise ValueError(f"log_variance {s.shape} and squared_error {error.shape} must be [n]")
    if not len(s):
        raise InputError("calibration: no rows with a log_variance; upgrade with FastFill first")
    if not np.isfinite(s).all() or not np.isfinite(error).all() or (error < 0).any():
        raise InputError("calibration: values are not finite, or an error is below 0")
    log_error = np.log(np.maximum(error, TINY))
    # A common factor keeps exp() finite; it is multiplied back in the logarithm.
    shift = s.max()
    variance = np.exp(s - shift)
    order = np.argsort(s, kind="stable")
    parts = np.array_split(order, max(1, min(bins, len(s))))
    counts = np.array([len(part) for part in parts])
    predicted = np.array([np.log(variance[part].mean()) + shift for part in parts])
    observed = np.array([np.log(max(error[part].mean(), TINY)) for part in parts])
    gaps, weights = predicted - observed, counts / len(s)
    mean_log_ratio = np.log(variance.mean()) + shift - np.log(max(error.mean(), TINY))
    return {
        "num_rows": len(s),
        "spearman": _correlation(_ranks(s), _ranks(error)),
        "pearson_log": _correlation(s, log_error),
        "mean_ratio": _exp(mean_log_ratio),
        "median_log_ratio": float(np.median(s - log_error)),
        "expected_calibration_error_log": float(weights @ np.abs(gaps)),
        "expected_calibration_error_log_scaled": float(
            weights @ np.abs(gaps - _weighted_median(gaps, weights))
        ),
        "bins": [
            {"predicted": _exp(a), "observed": _exp(b), "count": int(count)}
            for a, b, count in zip(predicted, observed, counts, strict=True)
        ],
    }


def of_rows(rows: Rows, column: str, target: str, bins: int = 10) -> dict | None:
    """`measure` of a transformed column against the target model's own embeddings.

    Args:
      rows: with both columns, the field `<column>_log_variance` that FastFill's upgrade adds, and
        perhaps `<column>_origin`.
      column: the transformed column. Rows that were backfilled are left out, and with a warning
        others that have no log-variance.
      target: column with the new model's embeddings of the same images.
      bins: as `measure`.

    Returns:
      None if no row is left.
    """
    log_variance = rows.fields[f"{column}_log_variance"]
    origin = rows.fields.get(f"{column}_origin", np.full(len(log_variance), "", object))
    transformed = origin != BACKFILLED
    kept = transformed & np.isfinite(log_variance)
    missing = np.flatnonzero(transformed & ~kept)
    if len(missing):
        logging.warning(
            "%d transformed rows, %r the first, have no %s_log_variance and come last; upgrade the "
            "gallery again",
            *(len(missing), str(rows.ids[missing[0]]), column),
        )
    if not kept.any():
        return None
    difference = rows.vectors[column][kept].astype(np.float64) - rows.vectors[target][kept]
    return measure(log_variance[kept], np.mean(difference**2, axis=1), bins)


def mean(measured: Sequence[dict]) -> dict:
    """The numbers of several runs, `measure` of each: their mean, bin by bin too.

    As `measure`, and `num_runs`; a correlation is None where a run has none.
    """

    def of(key: str):
        values = [numbers[key] for numbers in measured]
        return None if None in values else float(np.mean(values))

    bins = [
        {key: float(np.mean([point[key] for point in points])) for key in points[0]}
        for points in zip(*(numbers["bins"] for numbers in measured), strict=False)
    ]
    numbers = {key: of(key) for key in measured[0] if key not in ("bins", "num_rows")}
    num_rows = measured[0]["num_rows"]
    return {"num_rows": num_rows, "num_runs": len(measured), **numbers, "bins": bins}


def _exp(value: float) -> float:
    """Finite, as JSON wants it."""
    return math.exp(min(float(value), 700.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else None


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), 0.5)])
