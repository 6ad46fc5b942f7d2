"""The section of the page on verification and open-set search: a table and the ROC curves."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator

from fct_tf.report import identities, line_labels, parts, plots, table
from fct_tf.report.plots import Style


def section(records: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """The section as HTML, its figure written to `directory`; empty where nothing was measured.

    Args:
      records: of results.json.
      directory: of the page.
    """
    rows, drawn_table = identities.rows(records), identities.as_table(records)
    if not drawn_table:
        return ""
    html = f'<section id="identities"><h2>Identities</h2>\n{drawn_table.html("Identities")}'
    telling = plots.drawn_cases(table.rows(records))
    looks = plots.styles(telling)
    drawn = [row for row in rows if row["roc"] and row["case"] in looks]
    if not drawn:
        return f"{html}</section>"
    for theme in plots.THEMES:
        roc(drawn, looks, directory / f"roc-{theme}.svg", theme)
    caption = "Share of same-label pairs that pass against that of different-label pairs, over "
    caption += "all thresholds."
    if any(len(row["seeds"]) > 1 for row in drawn):
        caption += " Of the first seed."
    figure = parts.figure("roc", "ROC curves by case", caption, "Verification")
    return f'{html}\n<div class="figures">\n{figure}</div></section>'


def roc(
    drawn: Sequence[identities.Row],
    looks: Mapping[str, Style],
    path: str | os.PathLike,
    theme: str = "light",
) -> None:
    """True accept rate against false accept rate (logarithmic), a line per case.

    Args:
      drawn: rows of `identities.rows` with `roc`.
      looks: style of each case by name.
      path: file to write.
      theme: `light` or `dark`.
    """
    with matplotlib.rc_context(plots.settings(theme)):
        figure, axes = plots.panel()
        for row in drawn:
            # A logarithmic axis has no place for a rate of zero.
            rates = np.array([pair for pair in row["roc"] if pair[0] > 0]).reshape(-1, 2)
            style = looks[row["case"]]
            axes.plot(
                rates[:, 0],
                100 * rates[:, 1],
                label=row["case"],
                color=style.color(theme),
                linestyle=style.line,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axes.set_xlabel("false accept rate (FAR)")
        axes.set_ylabel("true accept rate (TAR), %")
        line_labels.write(axes)
        plots.save(figure, path)
