"""Predicted against observed errors of transformed rows, told and drawn."""

import math
import os
from collections.abc import Mapping

import matplotlib

from fct_tf.report import line_labels
from fct_tf.report.plots import (
    INK,
    MOST_LINES,
    UPGRADED,
    panel,
    plain_log,
    save,
    settings,
)


def sentences(measured: Mapping[str, dict]) -> list[str]:
    """One for each name: does the variance order the rows, and is its size right?

    Args:
      measured: name -> numbers of `fct_tf.backfill.calibration.mean`.
    """
    return [
        f"{name}, predicted variance against squared error of {numbers['num_rows']} transformed "
        f"rows{_seeds(numbers['num_runs'])}: rank correlation {_told(numbers['spearman'])}; "
        f"predicted over observed {numbers['mean_ratio']:.2f} in the mean; a tenth of the rows is "
        f"off by a factor of {math.exp(numbers['expected_calibration_error_log']):.2f} on average, "
        f"{math.exp(numbers['expected_calibration_error_log_scaled']):.2f} after the best constant "
        "factor."
        for name, numbers in measured.items()
    ]


def _seeds(count: int) -> str:
    return f", mean of {count} seeds" if count > 1 else ""


def _told(correlation: float | None) -> str:
    return "none" if correlation is None else f"{correlation:.2f}"


def plot(measured: Mapping[str, dict], path: str | os.PathLike, theme: str = "light") -> None:
    """Observed mean squared error against the predicted variance, a point per bin, log-log.

    On the diagonal a prediction is right; a line parallel to it is right up to a factor; a flat
    one tells nothing about a row.

    Args:
      measured: name -> numbers of `fct_tf.backfill.calibration.mean`, a line each; at most
        `MOST_LINES` are drawn.
      path: file to write.
      theme: `light` or `dark`.
    """
    with matplotlib.rc_context(settings(theme)):
        figure, axes = panel(3.1, 2.9)
        looks = zip(measured.items(), UPGRADED[: MOST_LINES - 1], strict=False)
        for (name, numbers), style in looks:
            # A logarithm has no place for an error of 0.
            points = [point for point in numbers["bins"] if point["observed"] > 0]
            axes.plot(
                [point["predicted"] for point in points],
                [point["observed"] for point in points],
                label=name if len(measured) > 1 else "measured",
                color=style.color(theme),
                linestyle=style.line,
                marker="o",
                markersize=4,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            plain_log(axis)
        every = [
            point[side]
            for numbers in measured.values()
            for point in numbers["bins"]
            for side in ("predicted", "observed")
            if point[side] > 0
        ]
        if every:
            ends = [min(every), max(every)]
            axes.plot(ends, ends, color=INK[theme], linewidth=0.9, linestyle=":", label="perfect")
        axes.set_xlabel("predicted: mean of exp(log_variance)")
        axes.set_ylabel("observed: mean squared error")
        line_labels.write(axes)
        save(figure, path)
