"""Figures of backfilling curves: a panel per method, a line per policy."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fct_tf.report import backfilling, line_labels
from fct_tf.report.backfilling import ORACLE, RANDOM, Row
from fct_tf.report.plots import (
    MOST_LINES,
    NEW,
    OLD,
    UPGRADED,
    Style,
    panel,
    save,
    settings,
)

_STYLES = {
    RANDOM: Style("#5b6570", "#9aa5b1", "--"),
    "uncertainty": UPGRADED[0],
    "ranks": OLD,
    ORACLE: Style(NEW.light, NEW.dark, "-."),
    "ranks, rest corrected": UPGRADED[1],
    "random, rest corrected": UPGRADED[3],
}


def figures(made: Sequence[Row]) -> list[list[Row]]:
    """The rows of each figure: of one method, at most `MOST_LINES`, all beside random orders."""
    figure_rows = []
    for method in dict.fromkeys(row.method for row in made):
        of_method = [row for row in made if row.method == method]
        plain = [row for row in of_method if row.name == RANDOM]
        others = [row for row in of_method if row.name != RANDOM]
        room = MOST_LINES - len(plain)
        groups = [others[start : start + room] for start in range(0, len(others), room)]
        figure_rows += [[*plain, *group] for group in groups or [[]]]
    return figure_rows


def limits(made: Sequence[Row], metric: str) -> tuple[float, float]:
    """What the curves of all rows span in percent, with room at both ends: an axis they share."""
    means = [100 * row.curves[metric].mean(axis=0) for row in made if metric in row.curves]
    low, high = (float(end) for end in (np.min(means), np.max(means)))
    room = 0.1 * (high - low) or 1.0
    return low - room, high + room


def curve(
    made: Sequence[Row],
    metric: str,
    path: str | os.PathLike,
    theme: str = "light",
    span: tuple[float, float] | None = None,
) -> None:
    """One metric against the share of rows re-embedded.

    Bands are standard deviations over random orders or seeds.

    Args:
      made: of one method, a line per policy; see `figures`.
      metric: `top-1`, `mAP` or another of the curves.
      path: file to write; its suffix chooses the format.
      theme: `light` or `dark`.
      span: of the vertical axis, see `limits`.
    """
    with matplotlib.rc_context(settings(theme)):
        figure, axes = panel(3.1, 2.4)
        _draw(axes, made, metric, theme)
        if span:
            axes.set_ylim(span)
        line_labels.write(axes)
        save(figure, path)


def curves(made: Sequence[Row], path: str | os.PathLike, theme: str = "light") -> None:
    """Every metric of a table in one figure, a panel each; otherwise as `curve`."""
    names = backfilling.metrics(made) or ["mAP"]
    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(4.0 * len(names), 3.0), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _draw(axes, made, name, theme)
            line_labels.write(axes)
        save(figure, path)


def _draw(axes: Axes, made: Sequence[Row], metric: str, theme: str) -> None:
    looks = styles(made)
    for row in (row for row in made if metric in row.curves):
        look, each = looks[row.name], 100 * row.curves[metric]
        shares, mean, color = 100 * row.shares, each.mean(axis=0), look.color(theme)
        axes.plot(shares, mean, color=color, linestyle=look.line, label=row.name)
        if len(each) > 1:
            std = each.std(axis=0, ddof=1)
            axes.fill_between(shares, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("gallery rows re-embedded")
    axes.set_ylabel(f"{metric}, %")


def styles(made: Sequence[Row]) -> dict[str, Style]:
    """The style of each policy by its name: fixed in `_STYLES`, otherwise what is left."""
    names = dict.fromkeys(row.name for row in made)
    fixed = {name: _STYLES[name] for name in names if name in _STYLES}
    left = [look for look in [*UPGRADED, OLD, NEW] if look not in fixed.values()]
    others = (name for name in names if name not in fixed)
    return {**fixed, **{name: left[at % len(left)] for at, name in enumerate(others)}}
