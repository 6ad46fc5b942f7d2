"""Figures of a report, drawn by matplotlib without a display.

Each function writes one file; the suffix of its path chooses the format (svg, png, pdf). Themes
`light` and `dark` have the colours of the page around them. A case has the same colour, line and
marker in every figure: the palette is Okabe and Ito's (https://jfly.uni-koeln.de/color/), which
colour-blind readers can tell apart, and lines and markers differ as well.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fct_tf.report import table
from fct_tf.report.table import Row

THEMES = ("light", "dark")
INK = {"light": "#24292f", "dark": "#d7dce2"}
_GRID = {"light": "#d8dee4", "dark": "#3a424c"}


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
UPGRADED = [
    Style("#0067a8", "#58a6ff", "-", "o"),
    Style("#b0568f", "#e59ccb", "-", "^"),
    Style("#8f7a00", "#e8d84a", "-.", "v"),
    Style("#2a95d1", "#8ed0f5", "--", "P"),
    Style("#5b4bb3", "#a99bff", "-.", "X"),
]


def styles(made: Sequence[Row]) -> dict[str, Style]:
    """The style of each case: fixed for old/old, new/new and untransformed, else in order."""
    base, top = table.baseline(made), table.ceiling(made)
    found: dict[str, Style] = {}
    upgraded = 0
    for row in made:
        pair = row["sides"]
        if row is base:
            style = _OLD
        elif row is top:
            style = _NEW
        elif pair and pair.query != pair.gallery and not table.is_upgrade(row):
            style = _UNTRANSFORMED
        else:
            style = UPGRADED[upgraded % len(UPGRADED)]
            upgraded += 1
        found[row["case"]] = style
    return found


def cmc(
    made: Sequence[Row],
    path: str | os.PathLike,
    theme: str = "light",
    look: Mapping[str, Style] | None = None,
) -> None:
    """CMC at every k measured, with intervals (one seed) or standard deviations (several).

    Args:
      made: rows to draw, from `table.rows`; see `split_low`.
      path: file to write.
      theme: `light` or `dark`.
      look: `styles` of all rows, where `made` is a part of them.
    """
    look = look or styles(made)
    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(5.4, 3.5 + 0.2 * len(made)), layout="constrained")
        axes = figure.add_subplot()
        ks: list[int] = []
        for row in made:
            points = _cmc_points(row)
            ks = sorted({*ks, *(k for k, _ in points)})
            style = look[row["case"]]
            axes.errorbar(
                [k for k, _ in points],
                [100 * values["mean"] for _, values in points],
                yerr=np.array([error(values) for _, values in points]).T if points else None,
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
        legend_below(figure, axes)
        save(figure, path)


def metrics(
    made: Sequence[Row],
    path: str | os.PathLike,
    theme: str = "light",
    look: Mapping[str, Style] | None = None,
) -> None:
    """A dot per case with its interval (one seed) or standard deviation, a panel per metric.

    Args:
      made: rows to draw, from `table.rows`; see `split_low`.
      path: file to write.
      theme: `light` or `dark`.
      look: `styles` of all rows, where `made` is a part of them.
    """
    names = table.shown(made) or ["top-1"]
    look = look or styles(made)
    references = [row for row in made if look[row["case"]] in (_OLD, _NEW)]
    with matplotlib.rc_context(settings(theme)):
        height = len(names) * (0.6 + 0.24 * max(len(made), 1))
        figure = Figure(figsize=(5.4, height), layout="constrained")
        panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            for row in references if len(made) > 1 else []:
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
        save(figure, path)


def _dot(axes: Axes, position: int, values: dict, style: Style, theme: str) -> None:
    axes.errorbar(
        [100 * values["mean"]],
        [position],
        xerr=np.array([error(values)]).T,
        color=style.color(theme),
        marker=style.marker,
        markersize=6,
        capsize=3,
        linestyle="none",
    )


def error(values: dict) -> tuple[float, float]:
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


def split_low(made: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows with less than half of old/old's first metric, set apart: (drawn, far below).

    Untransformed cases at chance would flatten every difference that matters.
    """
    base, names = table.baseline(made), table.metric_names(made)
    level = base["metrics"][names[0]] if base and names else None
    if not level:
        return list(made), []
    low = []
    for row in made:
        values = row["metrics"][names[0]]
        if values and values["mean"] < 0.5 * level["mean"]:
            low.append(row)
    return [row for row in made if row not in low], low


def _ticks_at(axes: Axes, ks: Sequence[int]) -> None:
    if len(ks) > 1:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))


def legend_below(figure: Figure, axes: Axes) -> None:
    """A legend of one column below the axes, where there is something to name."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=1)


def settings(theme: str) -> dict:
    """The rcParams of a theme."""
    ink, grid = INK[theme], _GRID[theme]
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


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure; SVG without background, without date, so that equal data is equal bytes."""
    transparent = str(path).endswith(".svg")
    metadata = {"Date": None} if transparent else None
    figure.savefig(path, dpi=160, transparent=transparent, metadata=metadata)
