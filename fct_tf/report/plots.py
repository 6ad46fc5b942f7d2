"""Figures of a report, drawn by matplotlib without a display.

Each function writes one file; the suffix of its path chooses the format (svg, png, pdf). Themes
`light` and `dark` have the colours of the page around them. A case has the same colour, line and
marker in every figure: the palette is Okabe and Ito's (https://jfly.uni-koeln.de/color/), which
colour-blind readers can tell apart, and lines and markers differ as well.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fct_tf.report import table
from fct_tf.report.table import Row

THEMES = ("light", "dark")
_INK = {"light": "#24292f", "dark": "#d7dce2"}
_GRID = {"light": "#d8dee4", "dark": "#3a424c"}
_MAX_POINTS = 1500  # of a curve; longer ones are averaged in blocks


@dataclasses.dataclass(frozen=True)
class Style:
    """How a case is drawn: a colour per theme, a line and a marker."""

    light: str
    dark: str
    line: str | tuple
    marker: str

    def color(self, theme: str) -> str:
        """The colour on the background of `theme`."""
        return self.dark if theme == "dark" else self.light


_OLD = Style("#c25700", "#f0883e", "-", "s")
_NEW = Style("#007a59", "#2fc49a", "--", "D")
_UNTRANSFORMED = Style("#7a828c", "#8b949e", ":", "x")
_UPGRADED = [
    Style("#0067a8", "#58a6ff", "-", "o"),
    Style("#b0568f", "#e59ccb", "-", "^"),
    Style("#8f7a00", "#e8d84a", "-.", "v"),
    Style("#2a95d1", "#8ed0f5", "--", "P"),
    Style("#5b4bb3", "#a99bff", "-.", "X"),
]
# Seeds of one model, in the order of the runs.
_SEEDS = [
    Style("#0067a8", "#58a6ff", "-", "o"),
    Style("#c25700", "#f0883e", "-", "s"),
    Style("#007a59", "#2fc49a", "-", "D"),
    Style("#b0568f", "#e59ccb", "-", "^"),
]


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
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    points = []
    for line in lines:
        try:
            values = json.loads(line)
            rate = values.get("learning_rate")
            point = (int(values["step"]), float(values["loss"]), float("nan" if rate is None else rate))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        if math.isfinite(point[1]):
            points.append(point)
    if not points:
        return None
    steps, loss, rate = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    return Curve(label, np.array(steps, np.int64), np.array(loss), np.array(rate))


def styles(made: Sequence[Row]) -> dict[str, Style]:
    """The style of each case: fixed for old/old, new/new and untransformed, else in order."""
    base = table.baseline(made)
    found: dict[str, Style] = {}
    upgraded = 0
    for row in made:
        pair = table.sides(row["case"])
        plain = pair is not None and not table.is_upgrade(row)
        if base is not None and row is base:
            style = _OLD
        elif pair and plain and pair.query != pair.gallery:
            style = _UNTRANSFORMED
        elif pair and plain and _NEW not in found.values():
            style = _NEW
        else:
            style = _UPGRADED[upgraded % len(_UPGRADED)]
            upgraded += 1
        found[row["case"]] = style
    return found


def cmc(made: Sequence[Row], path: str | os.PathLike, theme: str = "light") -> list[str]:
    """CMC at every k measured, with intervals (one seed) or standard deviations (several).

    Cases far below the others, such as untransformed ones at chance, would flatten all curves:
    they are left below the axis.

    Args:
      made: `table.rows`.
      path: file to write.
      theme: `light` or `dark`.

    Returns:
      The cases that lie below the axis, for the caption.
    """
    drawn, below = _split_low(made)
    look = styles(made)
    with matplotlib.rc_context(_settings(theme)):
        figure = Figure(figsize=(5.4, 3.5 + 0.2 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        ks: list[int] = []
        for row in drawn:
            points = _cmc_points(row)
            ks = sorted({*ks, *(k for k, _ in points)})
            style = look[row["case"]]
            axes.errorbar(
                [k for k, _ in points],
                [100 * values["mean"] for _, values in points],
                yerr=np.array([_error(values) for _, values in points]).T if points else None,
                label=row["case"],
                color=style.color(theme),
                linestyle=style.line,
                marker=style.marker,
                markersize=4.5,
                linewidth=1.7,
                elinewidth=1,
                capsize=2.5,
            )
        _ticks_at(axes, ks)
        axes.set_xlabel("k, nearest gallery rows looked at")
        axes.set_ylabel("CMC@k, % of queries")
        _legend_below(figure, axes)
        _save(figure, path)
    return [row["case"] for row in below]


def metrics(
    made: Sequence[Row],
    path: str | os.PathLike,
    theme: str = "light",
    names: Sequence[str] | None = None,
) -> None:
    """A dot per case with its interval (one seed) or standard deviation, a panel per metric.

    Args:
      made: `table.rows`.
      path: file to write.
      theme: `light` or `dark`.
      names: metrics to draw; those of the table if not given.
    """
    names = list(names or table.shown(made)) or ["top-1"]
    look = styles(made)
    references = [row for row in made if look[row["case"]] in (_OLD, _NEW)]
    with matplotlib.rc_context(_settings(theme)):
        height = len(names) * (0.62 + 0.27 * max(len(made), 1))
        figure = Figure(figsize=(5.4, height), layout="constrained")
        panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            for row in references:
                if row["metrics"].get(name):
                    style = look[row["case"]]
                    level = 100 * row["metrics"][name]["mean"]
                    axes.axvline(level, color=style.color(theme), linewidth=0.9, linestyle="--")
            for position, row in enumerate(made):
                values = row["metrics"].get(name)
                if values:
                    _dot(axes, position, values, look[row["case"]], theme)
            axes.set_yticks(range(len(made)), [row["case"] for row in made])
            axes.set_ylim(len(made) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.12)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(f"{name}, %")
        _save(figure, path)


def loss(curves: Sequence[Curve], path: str | os.PathLike, theme: str = "light") -> None:
    """Training loss against the step, the learning rate in a small panel below.

    Args:
      curves: of one model, a line each (one per seed).
      path: file to write.
      theme: `light` or `dark`.
    """
    rated = any(np.isfinite(curve.learning_rate).any() for curve in curves)
    with matplotlib.rc_context(_settings(theme)):
        figure = Figure(figsize=(4.6, 3.3 if rated else 2.6), layout="constrained")
        panels = figure.subplots(
            1 + rated,
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [3, 1] if rated else [1]},
        )[:, 0]
        for index, curve in enumerate(curves):
            style = _SEEDS[index % len(_SEEDS)]
            _draw_loss(panels[0], curve, style.color(theme), len(curves) == 1)
            if rated:
                steps, rate = _thinned(curve.steps, curve.learning_rate)
                panels[1].plot(
                    steps,
                    rate,
                    color=style.color(theme) if len(curves) > 1 else _INK[theme],
                    linewidth=1.2,
                    marker="o" if len(steps) == 1 else None,
                )
        panels[0].set_ylabel("training loss")
        values = np.concatenate([curve.loss for curve in curves] or [np.ones(1)])
        if values.min() > 0 and values.max() > 50 * values.min():
            panels[0].set_yscale("log")
        if rated:
            panels[1].set_ylabel("learning\nrate")
            panels[1].set_ylim(bottom=0)
            panels[1].yaxis.set_major_locator(MaxNLocator(3))
        panels[-1].set_xlabel("training step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda step, _: _compact(step)))
        if len(curves) > 1:
            panels[0].legend(frameon=False, fontsize=8)
        _save(figure, path)


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


def _dot(axes: Axes, position: int, values: dict, style: Style, theme: str) -> None:
    axes.errorbar(
        [100 * values["mean"]],
        [position],
        xerr=np.array([_error(values)]).T,
        color=style.color(theme),
        marker=style.marker,
        markersize=6,
        capsize=3,
        linestyle="none",
    )
    axes.annotate(
        table.percent(values["mean"]),
        (100 * values["mean"], position),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7.5,
        color=_INK[theme],
    )


def _error(values: dict) -> tuple[float, float]:
    """Lengths of the error bar below and above the mean, in percent."""
    if values["std"] is not None:
        return 100 * values["std"], 100 * values["std"]
    if values["low"] is None:
        return 0.0, 0.0
    below, above = values["mean"] - values["low"], values["high"] - values["mean"]
    return 100 * max(below, 0.0), 100 * max(above, 0.0)


def _cmc_points(row: Row) -> list[tuple[int, dict]]:
    return [
        (int(name.removeprefix("top-")), values)
        for name, values in row["metrics"].items()
        if name != "mAP" and values
    ]


def _split_low(made: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows whose whole curve lies below half of the lowest value of old/old, set apart."""
    base = table.baseline(made)
    points = _cmc_points(base) if base else []
    if not points:
        return list(made), []
    floor = 0.5 * min(values["mean"] for _, values in points)
    low = [
        row
        for row in made
        if (own := _cmc_points(row)) and max(values["mean"] for _, values in own) < floor
    ]
    return [row for row in made if row not in low], low


def _ticks_at(axes: Axes, ks: Sequence[int]) -> None:
    if len(ks) > 1:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=1)


def _compact(step: float) -> str:
    """12000 -> 12k"""
    return f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:g}"


def _settings(theme: str) -> dict:
    ink, grid = _INK[theme], _GRID[theme]
    return {
        "font.size": 9.5,
        "font.family": "DejaVu Sans",
        "text.parse_math": False,  # a label may contain a dollar sign
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": grid,
        "grid.linewidth": 0.7,
        "xtick.color": ink,
        "ytick.color": ink,
        "figure.facecolor": "#14181d" if theme == "dark" else "white",
        "svg.hashsalt": "fct_tf",  # the same data gives the same file
    }


def _save(figure: Figure, path: str | os.PathLike) -> None:
    transparent = str(path).endswith(".svg")
    metadata = {"Date": None} if transparent else None
    figure.savefig(path, dpi=160, transparent=transparent, metadata=metadata)
