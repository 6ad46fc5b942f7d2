"""The section of the page on verification and open-set search: a table and the ROC curves."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fct_tf.report import identities, parts, plots, table
from fct_tf.report.plots import Style


def section(
    records: Sequence[Mapping[str, Any]], looks: Mapping[str, Style], directory: Path
) -> str:
    """The section as HTML, its figure written to `directory`; empty where nothing was measured.

    Args:
      records: of results.json.
      looks: `plots.styles` of the cases.
      directory: of the page.
    """
    made, drawn_table = identities.rows(records), identities.as_table(records)
    if not drawn_table:
        return ""
    told = f"<h2>Identities</h2>\n{drawn_table.html()}"
    telling = _telling(records)
    drawn = [row for row in made if row["roc"] and row["case"] in telling]
    if not drawn:
        return told
    for theme in plots.THEMES:
        roc(drawn, directory / f"roc-{theme}.svg", theme, looks)
    caption = "Share of same-label pairs that pass against that of different-label pairs, over "
    caption += "all thresholds."
    if any(len(row["seeds"]) > 1 for row in drawn):
        caption += " Of the first seed."
    figure = parts.figure("roc", "ROC curves by case", caption, "Verification")
    return f'{told}\n<div class="figures after">\n{figure}</div>'


def _telling(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """What a change of the model is about: before it, after it, and with everything embedded anew.

    Further curves, as of the side-information, would leave too few colours for these.
    """
    found = table.rows(records)
    ends = (table.baseline(found), table.ceiling(found))
    return {row["case"] for row in found if table.is_upgrade(row) or row in ends}


def roc(
    drawn: Sequence[identities.Row],
    path: str | os.PathLike,
    theme: str = "light",
    looks: Mapping[str, Style] | None = None,
) -> None:
    """True accept rate against false accept rate (logarithmic), a line per case.

    Args:
      drawn: rows of `identities.rows` with `roc`.
      path: file to write.
      theme: `light` or `dark`.
      looks: style of each case by name; those that it lacks are drawn in the first one.
    """
    looks = looks or {}
    with matplotlib.rc_context(plots.settings(theme)):
        figure = Figure(figsize=(5.4, 3.5 + 0.2 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        for row in drawn:
            # A logarithmic axis has no place for a rate of zero.
            rates = np.array([pair for pair in row["roc"] if pair[0] > 0]).reshape(-1, 2)
            style = looks.get(row["case"], plots.UPGRADED[0])
            axes.plot(
                rates[:, 0],
                100 * rates[:, 1],
                label=row["case"],
                color=style.color(theme),
                linestyle=style.line,
                linewidth=1.7,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axes.set_xlabel("false accept rate (FAR)")
        axes.set_ylabel("true accept rate (TAR), %")
        plots.legend_below(figure, axes)
        plots.save(figure, path)
