"""Predicted against observed errors of transformed rows, told and drawn."""

import math
import os
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fct_tf.report.plots import INK, UPGRADED, legend_below, save, settings


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
      measured: name -> numbers of `fct_tf.backfill.calibration.mean`, a line each.
      path: file to write.
      theme: `light` or `dark`.
    """
    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(4.6, 4.2 + 0.2 * len(measured)), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, numbers) in enumerate(measured.items()):
            style = UPGRADED[number % len(UPGRADED)]
            # A logarithm has no place for an error of 0.
            points = [point for point in numbers["bins"] if point["observed"] > 0]
            axes.plot(
                [point["predicted"] for point in points],
                [point["observed"] for point in points],
                label=f"{name} (rank correlation {_told(numbers['spearman'])})",
                color=style.color(theme),
                linestyle=style.line,
                marker=style.marker,
                markersize=4.5,
                linewidth=1.7,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):  # Plain numbers: themes do not parse formulas.
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
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
        legend_below(figure, axes)
        save(figure, path)
