"""Figures of backfilling curves: the metrics, and the share of the gap recovered."""

import os
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fct_tf.report import backfilling
from fct_tf.report.backfilling import Row
from fct_tf.report.plots import INK, Style, save, settings

_STYLES = {
    "uncertainty": Style("#0067a8", "#58a6ff", "-", "o"),
    "random": Style("#7a828c", "#8b949e", "--", "s"),
    "distance": Style("#007a59", "#2fc49a", "-.", "D"),  # an oracle
    "ranks": Style("#c25700", "#f0883e", "-", "^"),
    "ranks, rest corrected": Style("#b0568f", "#e59ccb", "-", "v"),
}
_OTHERS = [
    Style("#8f7a00", "#e8d84a", "-", "P"),
    Style("#5b4bb5", "#a79bf0", "-", "X"),
    Style("#b3261e", "#f2847c", "-", "<"),
]


def curves(made: Sequence[Row], path: str | os.PathLike, theme: str = "light") -> None:
    """Each metric against the share of rows re-embedded; beside it the share of the gap recovered.

    Bands are standard deviations over random orders or seeds.

    Args:
      made: of one method, a line per policy.
      path: file to write; its suffix chooses the format.
      theme: `light` or `dark`.
    """
    names = backfilling.metrics(made) or ["mAP"]
    looks = styles(made)
    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(6.8, 0.6 + 2.1 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), 2, squeeze=False, sharex=True)
        for (left, right), name in zip(panels, names, strict=True):
            for row in (row for row in made if name in row.curves):
                style = looks[row.name]
                shown = {"color": style.color(theme), "linestyle": style.line}
                shares, each = 100 * row.shares, 100 * row.curves[name]
                mean = each.mean(axis=0)
                left.plot(shares, mean, marker=style.marker, markersize=3, label=row.name, **shown)
                if len(each) > 1:
                    std = each.std(axis=0, ddof=1)
                    left.fill_between(
                        shares, mean - std, mean + std, color=style.color(theme), alpha=0.25, lw=0
                    )
                recovered = row.recovered(name)
                if recovered is not None:
                    right.plot(shares, 100 * recovered, marker=style.marker, markersize=3, **shown)
            right.axline((0, 0), (100, 100), color=INK[theme], linewidth=0.8, linestyle=":")
            left.set_ylabel(f"{name}, %")
            right.set_ylabel(f"{name}: gap recovered")
            right.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        for axes in panels[-1]:
            axes.set_xlim(-2, 102)
            axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
            axes.set_xlabel("gallery rows re-embedded")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=4)
        save(figure, path)


def styles(made: Sequence[Row]) -> dict[str, Style]:
    """The style of each policy by its name: fixed for those in `_STYLES`, of others in order."""
    others = [row.name for row in made if row.name not in _STYLES]
    found = dict(_STYLES)
    for at, policy in enumerate(dict.fromkeys(others)):
        found[policy] = _OTHERS[at % len(_OTHERS)]
    return found
