"""Loss curves: what training runs logged, read and drawn."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.report import line_labels
from fct_tf.report.plots import INK, MOST_LINES, UPGRADED, plain_log, save, settings

_MAX_POINTS = 400  # of a curve, about one a pixel; longer ones are averaged in blocks


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a training run logged: int64 [n] steps, float64 [n] losses and learning rates."""

    label: str
    steps: np.ndarray
    loss: np.ndarray
    learning_rate: np.ndarray  # NaN where it was not logged


def read_curve(path: str | os.PathLike, label: str = "") -> Curve | None:
    """Reads `metrics.jsonl`; None when it is missing or has no usable line.

    Lines that are no JSON, as a killed run may leave one, and values that are not finite are
    left out: a report is no place to fail over them.
    """
    try:
        lines = read_lines(path, errors="replace")
    except InputError:
        return None
    points = []
    for line in lines:
        try:
            values = json.loads(line)
            rate = values.get("learning_rate")
            rate = float("nan") if rate is None else float(rate)
            point = (int(values["step"]), float(values["loss"]), rate)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        if math.isfinite(point[1]):
            points.append(point)
    if not points:
        return None
    steps, loss, rate = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    return Curve(label, np.array(steps, np.int64), np.array(loss), np.array(rate))


def loss(curves: Sequence[Curve], path: str | os.PathLike, theme: str = "light") -> None:
    """Training loss against the step, the learning rate in a small panel below.

    Args:
      curves: of one model, a line each (one per seed); at most `MOST_LINES` are drawn.
      path: file to write.
      theme: `light` or `dark`.
    """
    rated = any(np.isfinite(curve.learning_rate).any() for curve in curves)
    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(3.1, 2.7 if rated else 2.2), layout="constrained")
        panels = figure.subplots(
            1 + rated,
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [3, 1] if rated else [1]},
        )[:, 0]
        for curve, style in zip(curves, UPGRADED[:MOST_LINES], strict=False):
            _draw_loss(panels[0], curve, style.color(theme), len(curves) == 1)
            if rated:
                steps, rate = _thinned(curve.steps, curve.learning_rate)
                panels[1].plot(
                    steps,
                    rate,
                    color=style.color(theme) if len(curves) > 1 else INK[theme],
                    linewidth=1.2,
                    marker="o" if len(steps) == 1 else None,
                )
        panels[0].set_ylabel("training loss")
        values = np.concatenate([curve.loss for curve in curves] or [np.ones(1)])
        if values.min() > 0 and values.max() > 50 * values.min():
            panels[0].set_yscale("log")
            plain_log(panels[0].yaxis)
        if rated:
            panels[1].set_ylabel("learning\nrate")
            panels[1].set_ylim(bottom=0)
            panels[1].yaxis.set_major_locator(MaxNLocator(3))
        panels[-1].set_xlabel("training step")
        panels[-1].set_xlim(left=0)
        panels[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda step, _: _compact(step)))
        if len(curves) > 1:
            line_labels.write(panels[0])
        save(figure, path)


def window(length: int) -> int:
    """Points that the smoothed loss of a run averages over; 1: too few to smooth."""
    return length // 30 if length >= 60 else 1


def _draw_loss(axes: Axes, curve: Curve, color: str, raw: bool) -> None:
    width = window(len(curve.loss))
    if width == 1:
        marker = "o" if len(curve.loss) < 20 else None
        axes.plot(
            curve.steps, curve.loss, color=color, marker=marker, markersize=3, label=curve.label
        )
        return
    if raw:
        axes.plot(*_thinned(curve.steps, curve.loss), color=color, linewidth=0.6, alpha=0.4)
    smooth = np.convolve(curve.loss, np.full(width, 1 / width), "valid")
    # A centred average: it does not lag behind the loss.
    start = (width - 1) // 2
    steps = curve.steps[start : start + len(smooth)]
    axes.plot(*_thinned(steps, smooth), color=color, linewidth=1.7, label=curve.label)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points, each the mean of a block."""
    block = -(-len(x) // _MAX_POINTS)
    if block == 1:
        return x, y
    starts = np.arange(0, len(x), block)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _compact(step: float) -> str:
    """12000 -> 12k"""
    return f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:g}"
