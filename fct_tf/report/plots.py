"""Figures of a report, drawn by matplotlib without a display.

Each function writes one file; the suffix of its path chooses the format (svg, png, pdf). Themes
`light` and `dark` have the colours of the page around them. A case has the same colour and line
in every figure: the palette goes back to Okabe and Ito's (https://jfly.uni-koeln.de/color/), which
colour-blind readers can tell apart, and is dark (or light) enough for text, since lines bear their
names themselves. A figure has at most `MOST_LINES`: nobody can follow more.
"""

import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fct_tf.report import line_labels, table
from fct_tf.report.table import Row

THEMES = ("light", "dark")
INK = {"light": "#24292f", "dark": "#d7dce2"}
CARD = {"light": "#ffffff", "dark": "#171c22"}  # what figures lie on, as the page has it
_GRID = {"light": "#d8dee4", "dark": "#3a424c"}
MOST_LINES = 5


@dataclasses.dataclass(frozen=True)
class Style:
    """How a case is drawn: a colour per theme and a line."""

    light: str
    dark: str
    line: str | tuple

    def color(self, theme: str) -> str:
        """The colour on the background of `theme`."""
        return self.dark if theme == "dark" else self.light


OLD = Style("#b35000", "#f0883e", "-")
NEW = Style("#007a59", "#2fc49a", "--")
UPGRADED = [
    Style("#0067a8", "#58a6ff", "-"),
    Style("#a3467f", "#e59ccb", "-"),
    Style("#756300", "#e8d84a", "-."),
    Style("#5b4bb3", "#a99bff", "-."),
    Style("#b3261e", "#f2847c", "-"),
]


def drawn_cases(made: Sequence[Row]) -> list[Row]:
    """The search before the change, after it by its best upgrades, and with everything anew."""
    base, top = table.baseline(made), table.ceiling(made)
    upgraded = [row for row in made if table.is_upgrade(row) and not row["remaining"]]
    first = next(iter(table.shown(made)), "")
    upgraded.sort(key=lambda row: -(row["metrics"].get(first) or {"mean": -1.0})["mean"])
    ends = [row for row in (base, top) if row]
    kept = [*ends, *upgraded[: MOST_LINES - len(ends)]]
    return kept or list(made[:MOST_LINES])


def styles(drawn: Sequence[Row]) -> dict[str, Style]:
    """The style of each case: fixed for old/old and new/new, for others in their order."""
    base, top = table.baseline(drawn), table.ceiling(drawn)
    ends = {id(base): OLD, id(top): NEW}
    others = [row["case"] for row in drawn if id(row) not in ends]
    fixed = {row["case"]: ends[id(row)] for row in drawn if id(row) in ends}
    return {**fixed, **dict(zip(others, UPGRADED, strict=False))}


def cmc(made: Sequence[Row], path: str | os.PathLike, theme: str = "light") -> None:
    """CMC at every k measured, in a band of its interval (one seed) or deviation (several).

    Args:
      made: rows to draw, see `drawn_cases`.
      path: file to write.
      theme: `light` or `dark`.
    """
    looks = styles(made)
    with matplotlib.rc_context(settings(theme)):
        figure, axes = panel()
        ks: list[int] = []
        for row in made:
            points = _cmc_points(row)
            ks = sorted({*ks, *(k for k, _ in points)})
            mean = np.array([100 * values["mean"] for _, values in points])
            below, above = np.array([_error(values) for _, values in points]).reshape(-1, 2).T
            color = looks[row["case"]].color(theme)
            xs, line = [k for k, _ in points], looks[row["case"]].line
            marker = "o" if len(xs) == 1 else ""
            axes.plot(xs, mean, label=row["case"], color=color, linestyle=line, marker=marker)
            axes.fill_between(xs, mean - below, mean + above, color=color, alpha=0.15, linewidth=0)
        _ticks_at(axes, ks)
        axes.set_xlabel("k, nearest gallery rows looked at")
        axes.set_ylabel("CMC@k, % of queries")
        line_labels.write(axes)
        save(figure, path)


def _error(values: dict) -> tuple[float, float]:
    """How far the interval or the deviation reaches below and above the mean, in percent."""
    if values["std"] is not None:
        return 100 * values["std"], 100 * values["std"]
    if values["low"] is None:
        return 0.0, 0.0
    below, above = values["mean"] - values["low"], values["high"] - values["mean"]
    return 100 * max(below, 0.0), 100 * max(above, 0.0)


def bands(made: Sequence[Row]) -> str:
    """What the bands of a figure stand for; empty where there are none."""
    metrics = [values for row in made for values in row["metrics"].values() if values]
    if any(values["std"] is not None for values in metrics):
        return "Bands: standard deviation over seeds."
    if any(values["low"] is not None for values in metrics):
        return "Bands: 95 % interval over queries."
    return ""


def _cmc_points(row: Row) -> list[tuple[int, dict]]:
    return [
        (int(name.removeprefix("top-")), values)
        for name, values in row["metrics"].items()
        if name != "mAP" and values
    ]


def _ticks_at(axes: Axes, ks: Sequence[int]) -> None:
    if len(ks) > 1:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with plain numbers: themes do not parse formulas."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def panel(width: float = 4.2, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches: no wider than what a telephone shows in full size."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def settings(theme: str) -> dict:
    """The rcParams of a theme."""
    ink, grid = INK[theme], _GRID[theme]
    return {
        "font.size": 9.5,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
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
        "xtick.bottom": False,  # the grid marks where they are
        "ytick.left": False,
        "axes.titlesize": "medium",
        "figure.facecolor": CARD[theme],
        "lines.linewidth": 1.7,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text: found, read out, and small
        "svg.hashsalt": "fct_tf",  # the same data gives the same file
    }


_NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_INDENTED = re.compile(r"\n +")
_TAG, _LONG = re.compile(r"<[^>]*>"), re.compile(r"-?\d+\.\d{3,}")


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure; equal data is equal bytes.

    SVG is without a date, and its coordinates have two decimals: a hundredth of a point is not
    seen, and six decimals are half of a file.
    """
    if not str(path).endswith(".svg"):
        figure.savefig(path, dpi=160)
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata=_NOTHING)
    short = _TAG.sub(lambda tag: _LONG.sub(_rounded, tag[0]), drawn.getvalue())
    Path(path).write_text(_INDENTED.sub("\n", short), encoding="utf-8")


def _rounded(number: re.Match) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
