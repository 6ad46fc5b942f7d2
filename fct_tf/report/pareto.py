"""Recall against queries per second: the Pareto front, and its plot as ann-benchmarks draws it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Colours that colour-blind readers can tell apart (Okabe and Ito), and markers that differ too.
_STYLES = [
    ("#0067a8", "-", "o"),
    ("#c25700", "--", "s"),
    ("#007a59", "-.", "^"),
    ("#b0568f", ":", "D"),
    ("#8f7a00", "--", "v"),
    ("#2a95d1", "-.", "P"),
    ("#24292f", ":", "X"),
]

Points = Sequence[tuple[float, float]]


def front(points: Points) -> list[int]:
    """The points that no other beats in recall and speed, from the fastest to the best recall.

    Args:
      points: (recall, queries per second).

    Returns:
      Places in `points`; of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda place: (-points[place][1], -points[place][0]))
    places, best = [], -np.inf
    for place in order:
        if points[place][0] > best:
            best = points[place][0]
            places.append(place)
    return places


def plot(
    points: Mapping[str, Points],
    path: str | os.PathLike,
    *,
    recall: str,
    speed: str,
    title: str = "",
    theme: str = "light",
) -> None:
    """Draws the front of each library, and its other points faintly.

    Args:
      points: (recall, queries per second) of each library.
      path: .svg, .png or .pdf.
      recall, speed: labels of the axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from fct_tf.report import plots

    with matplotlib.rc_context(plots.settings(theme)):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        lowest = 1.0
        for place, (library, measured) in enumerate(points.items()):
            color, line, marker = _STYLES[place % len(_STYLES)]
            if not measured:
                continue
            every = np.array(measured, np.float64)
            best = every[front(measured)]
            lowest = min(lowest, best[:, 0].min())
            axes.plot(*every.T, marker, color=color, alpha=0.25, markersize=3, zorder=2)
            axes.plot(
                *best.T, line, marker=marker, color=color, markersize=5, label=library, zorder=3
            )
        axes.set_yscale("log")
        plots.plain_log(axes.yaxis)
        # Points that are too poor to be on a front say nothing: they may lie outside.
        axes.set_xlim(max(0.0, lowest - 0.02), 1.005)
        axes.set_xlabel(f"{recall} (to the right is better)")
        axes.set_ylabel(f"{speed} (up is better)")
        axes.set_title(title)
        axes.grid(True, which="major")
        axes.legend(loc="best")
        plots.save(figure, path)


def best(records: Sequence[Mapping[str, Any]], k: str, mode: str) -> list[Mapping[str, Any]]:
    """The records on the front of their library, libraries in order, each from fast to exact.

    Args:
      records: of `sweep.run`.
      k: of recall@k, as the records have it.
      mode: of queries per second, see `benchmark.MODES`.
    """
    front_records = []
    for measured in by_library(records).values():
        points = [(one["recall"][k], one["qps"][mode]) for one in measured]
        front_records += [measured[place] for place in front(points)]
    return front_records


def by_library(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Records by library, in the order of first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["library"], []).append(record)
    return groups
