"""The names of lines written beside them, so that nobody has to look up a legend."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

_COURSE = 160  # places along the width at which lines are looked at
# Where a label may stand, in its own heights above or below its line.
_STEPS = [sign * (0.85 + step) for step in range(16) for sign in (1, -1)]


def write(axes: Axes) -> None:
    """Writes the label of each line beside it, where it hides least of the others.

    A label that found no room at its line is tied to it by a thin one.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # Fixes the layout.
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    courses = {line: _course(line, axes) for line in axes.get_lines()}
    taken: list[tuple[float, float, float, float]] = []
    for line in sorted(lines, key=lambda line: -np.nan_to_num(courses[line]).mean()):
        text = axes.text(0, 0, str(line.get_label()), fontsize="small", color=line.get_color())
        text.set_in_layout(False)
        text.set(ha="center", va="center")
        size = text.get_window_extent()
        spot = _best_spot(axes, courses, line, (size.width + 6, size.height + 4), taken)
        if spot is None:
            text.remove()
            continue
        x, y, on_line = spot
        wide, high = size.width / 2, size.height / 2
        taken.append((x - wide, x + wide, y - high, y + high))
        inverse = axes.transData.inverted()
        text.set_position(tuple(inverse.transform((x, y)).tolist()))
        near = y - np.sign(y - on_line) * high
        if abs(near - on_line) > high:
            ends = inverse.transform([(x, near), (x, on_line)])
            axes.plot(*ends.T, color=line.get_color(), linewidth=0.6, marker="", linestyle="-")


def _course(line: Line2D, axes: Axes) -> np.ndarray:
    """float [_COURSE]: the line's height on the canvas along the axes' width, NaN beside it."""
    points = axes.transData.transform(np.asarray(line.get_xydata(), np.float64))
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.full(_COURSE, np.nan)
    points = points[np.argsort(points[:, 0], kind="stable")]
    xs = np.linspace(axes.bbox.x0, axes.bbox.x1, _COURSE)
    course = np.interp(xs, points[:, 0], points[:, 1], left=np.nan, right=np.nan)
    course[np.abs(xs - points[0, 0]).argmin()] = points[0, 1]  # Of a single point, too.
    return course


def _best_spot(
    axes: Axes,
    courses: Mapping[Line2D, np.ndarray],
    line: Line2D,
    size: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float] | None:
    """The centre of a label and the height of its line there; None where there is no line."""
    box, (width, height) = axes.bbox, size
    xs = np.linspace(box.x0, box.x1, _COURSE)
    every = np.array(list(courses.values()))
    best, least = None, np.inf
    for place in np.flatnonzero(np.isfinite(courses[line]))[::4]:
        x, on_line = xs[place], courses[line][place]
        if not box.x0 <= x - width / 2 <= x + width / 2 <= box.x1:
            continue
        # Where lines run together a label tells nothing.
        alike = (np.abs(every[:, place] - on_line) < height / 5).sum() - 1
        beneath = every[:, np.abs(xs - x) <= width / 2 + 1]
        # Of a line between two places: it may be steep.
        lowest = np.fmin(beneath[:, 1:], beneath[:, :-1])
        highest = np.fmax(beneath[:, 1:], beneath[:, :-1])
        for steps in _STEPS:
            y = on_line + steps * height
            low, high = y - height / 2, y + height / 2
            if low < box.y0 or high > box.y1:
                continue
            hidden = (highest > low) & (lowest < high)
            crossed = ((every[:, place] - y) * (every[:, place] - on_line) < 0).sum()
            over = any(
                x - width / 2 < right and left < x + width / 2 and low < top and bottom < high
                for left, right, bottom, top in taken
            )
            cost = 25 * hidden.any(axis=1).sum() + 40 * hidden.mean(axis=1).sum()
            cost += 12 * crossed + 15 * alike + 150 * over + 2 * abs(steps)
            if cost < least:
                best, least = (float(x), float(y), float(on_line)), cost
    return best
