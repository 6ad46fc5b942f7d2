"""The section of the page on what methods gain, lose and cost: a table and a figure."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fct_tf.report import methods, parts, plots
from fct_tf.report.plots import Style


def section(
    records: Sequence[Mapping[str, Any]], looks: Mapping[str, Style], directory: Path
) -> str:
    """The section as HTML, its figure written to `directory`; empty where no upgrade was judged.

    Args:
      records: of results.json.
      looks: `plots.styles` of the cases.
      directory: of the page.
    """
    made, drawn_table = methods.rows(records), methods.as_table(records)
    if not drawn_table:
        return ""
    told = f"<h2>Methods</h2>\n{drawn_table.html()}"
    drawn: list[methods.Row] = []
    for name in methods.measured(made):
        drawn = [row for row in made if row["lost"][name] and row["gain"][name]]
        if drawn:
            break
    else:  # No new model is clearly better than the old one: there is no gain to speak of.
        return told
    for theme in plots.THEMES:
        tradeoff(drawn, name, directory / f"tradeoff-{theme}.svg", theme, looks)
    caption = f"What each method gains for old galleries and costs the new model, {name}. "
    caption += f"Top left is best. {_bars(drawn, name)}"
    title = "Update gain against what the new model loses"
    figure = parts.figure("tradeoff", f"{title}, by method", caption, title)
    return f'{told}\n<div class="figures after">\n{figure}</div>'


def _bars(drawn: Sequence[methods.Row], metric: str) -> str:
    gains = [row["gain"][metric] for row in drawn]
    if any(gain["std"] is not None for gain in gains):
        return "Bars: standard deviation over seeds."
    return "Bars: 95 % interval over queries." if any(g["low"] is not None for g in gains) else ""


def tradeoff(
    drawn: Sequence[methods.Row],
    metric: str,
    path: str | os.PathLike,
    theme: str = "light",
    looks: Mapping[str, Style] | None = None,
) -> None:
    """Update gain against the accuracy that the new model lost, a mark per method.

    Args:
      drawn: rows of `methods.rows` that have both for `metric`.
      metric: `top-1`, `mAP` or another that was measured.
      path: file to write.
      theme: `light` or `dark`.
      looks: style of each case by name; those that it lacks are drawn in the first one.
    """
    looks = looks or {}
    with matplotlib.rc_context(plots.settings(theme)):
        figure = Figure(figsize=(5.4, 3.3 + 0.2 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=plots.INK[theme], linewidth=0.9, linestyle="--")
        for row in drawn:
            lost, gain = row["lost"][metric], row["gain"][metric]
            style = looks.get(row["case"], plots.UPGRADED[0])
            axes.errorbar(
                [100 * lost["mean"]],
                [100 * gain["mean"]],
                xerr=np.array([plots.error(lost)]).T,
                yerr=np.array([plots.error(gain)]).T,
                label=row["case"],
                color=style.color(theme),
                marker=style.marker,
                markersize=6.5,
                linestyle="none",
                elinewidth=1,
                capsize=2.5,
            )
        axes.margins(0.12)
        axes.set_xlabel(f"lost by the new model on its own gallery, points of {metric}")
        axes.set_ylabel(f"update gain in {metric}, %")
        plots.legend_below(figure, axes)
        plots.save(figure, path)
