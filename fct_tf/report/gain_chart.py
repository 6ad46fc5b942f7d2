"""The chart of the page: what each upgrade gains over the search before it.

It is HTML and not a picture, so that its text keeps its size on a telephone, follows the page's
colours, and is read out as a list.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from fct_tf.common import formats
from fct_tf.report import table
from fct_tf.report.tables import breakable, escape, minus
from fct_tf.report.verdict import Comparison, Verdict

# Share of the width below which the names of two lines do not fit beside each other.
_TIGHT = 0.3
_TONES = {"better": "clearly above", "unclear": "not clear", "worse": "clearly below"}


@dataclass(frozen=True)
class _Scale:
    """Fractions on a line from `low` to `high`."""

    low: float
    high: float

    def at(self, value: float) -> str:
        return f"{100 * min(max((value - self.low) / (self.high - self.low), 0), 1):.2f}%"


def section(found: Sequence[Verdict], made: Sequence[table.Row]) -> str:
    """The chart as HTML, a line per upgrade, the greatest gain first; empty without any.

    Args:
      found: verdicts on whole galleries.
      made: `table.rows` of all.
    """
    metric = next((one.comparisons[0].metric for one in found if one.comparisons), "")
    marks = [
        (one, comparison)
        for one in found
        for comparison in one.comparisons
        if comparison.metric == metric
    ]
    if not marks:
        return ""
    marks.sort(key=lambda mark: -mark[1].gain)
    gains = [gain for _, gain in marks]
    bases = {one.base for one, _ in marks}
    before, top, after = "", None, ""
    if len(bases) == 1:
        (before,), top = bases, _ceiling(made, metric)
        after = (table.ceiling(made) or {}).get("case", "") if top is not None else ""
    scale = _scale(gains, top)
    items = "\n".join(_item(one, gain, scale) for one, gain in marks)
    style = f"--zero:{scale.at(0)}" + (f";--top:{scale.at(top)}" if top is not None else "")
    title = f"Gain in {escape(metric)} over {escape(before) or 'each gallery before its change'}"
    kind = "card gains topped" if after else "card gains"
    return (
        f'<section id="gain"><h2>{title}</h2>\n'
        f'<figure class="{kind}" style="{style}" aria-label="{title}">'
        f"{_names(scale, before or 'before', top, after)}<ol>\n{items}\n</ol>{_ticks(scale)}"
        f"<figcaption>{_caption(gains, before, after)}</figcaption></figure></section>"
    )


def _ceiling(made: Sequence[table.Row], metric: str) -> float | None:
    """What everything embedded anew gains."""
    base, top = table.baseline(made), table.ceiling(made)
    gaps = table.paired(top, base, metric) if base and top else []
    return statistics.fmean(gaps) if gaps else None


def _spread(one: Comparison) -> tuple[float, float] | None:
    """What the bar of a gain spans: its interval, or a deviation to either side."""
    if one.gain_interval:
        return one.gain_interval
    return None if one.gain_std is None else (one.gain - one.gain_std, one.gain + one.gain_std)


def _far(one: Comparison) -> bool:
    """Whether to leave a gain off the scale, where it would flatten all that matters."""
    return one.value < 0.5 * one.base


def _scale(marks: Sequence[Comparison], top: float | None) -> _Scale:
    near = [one for one in marks if not _far(one)]
    values = [0.0, *([top] if top is not None else []), *(one.gain for one in near)]
    values += [bound for one in near for bound in _spread(one) or ()]
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.01
    return _Scale(low - (3 * pad if len(near) < len(marks) else pad), high + pad)


def _names(scale: _Scale, before: str, top: float | None, after: str) -> str:
    """What the lines through the chart are, above them."""
    names = f'<span style="--at:{scale.at(0)}">{escape(before)}</span>'
    kind = ""
    if top is not None:
        names += f'<span style="--at:{scale.at(top)}">{escape(after)}</span>'
        kind = ' class="tight"' if abs(top) < _TIGHT * (scale.high - scale.low) else ""
    return f'<div class="scale" aria-hidden="true"><div{kind}>{names}</div></div>'


def _ticks(scale: _Scale) -> str:
    points = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(100 * scale.low, 100 * scale.high)
    ticks = ""
    for value in (round(float(point), 9) for point in points):
        if scale.low <= value / 100 <= scale.high:
            label = minus(f"{value:+g}") if value else "0"
            ticks += f'<span style="--at:{scale.at(value / 100)}">{label}</span>'
    return f'<div class="scale ticks" aria-hidden="true"><div>{ticks}</div></div>'


def _tone(one: Comparison) -> str:
    return "unclear" if not one.clear else "better" if one.gain > 0 else "worse"


def _item(one: Verdict, gain: Comparison, scale: _Scale) -> str:
    tone, spread, bar = _tone(gain), _spread(gain), ""
    if gain.gain_interval:
        small = "{} to {}".format(*map(formats.signed, gain.gain_interval))
    else:
        small = "" if gain.gain_std is None else f"± {formats.percent(gain.gain_std)}"
    if _far(gain):
        mark = '<i class="off">◂</i>'
    else:
        if spread:
            low, high = map(scale.at, spread)
            bar = f'<i class="bar" style="--low:{low};--high:{high}"></i>'
        mark = f'{bar}<i class="mark" style="--at:{scale.at(gain.gain)}"></i>'
    return (
        f'<li class="{tone}"><span class="name">{breakable(one.case)}</span> '
        f'<span class="plot" aria-hidden="true">{mark}</span> '
        f'<span class="told"><b>{minus(formats.signed(gain.gain))}</b>'
        f'<small>{minus(small)}</small><span class="unseen">, {_TONES[tone]}</span></span></li>'
    )


def _caption(gains: Sequence[Comparison], before: str, after: str) -> str:
    keys = "".join(
        f'<span class="key {tone}"><i class="mark"></i>{words}</span>'
        for tone, words in _TONES.items()
        if any(_tone(gain) == tone for gain in gains)
    )
    keys += f"Percentage points{_bars(gains)}"
    if any(map(_far, gains)):
        keys += "; ◂: far below, off the scale"
    keys += ". Cases are written queries/gallery"
    if before:
        keys += f"; {escape(before)}: the search before the change"
    if after:
        keys += f"; {escape(after)}: everything embedded anew"
    return f"{keys}; T(…): embeddings that an upgrade has mapped."


def _bars(gains: Sequence[Comparison]) -> str:
    if any(gain.gain_interval for gain in gains):
        return "; bars: 95 % interval of the difference, over queries"
    seeds = [gain.seeds for gain in gains if gain.gain_std is not None]
    return f"; bars: standard deviation over {max(seeds)} seeds" if seeds else ""
