"""Pieces of the page as HTML strings, pure functions of the numbers."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.report import table
from fct_tf.report.curves import Curve, window
from fct_tf.report.plots import Style
from fct_tf.report.table import Row
from fct_tf.report.tables import below_values, escape, html_table
from fct_tf.report.verdict import Comparison, Verdict

_SYMBOLS = {
    "better": "▲",
    "worse": "▼",
    "mixed": "◆",
    "unclear": "●",
    "unjudged": "○",
    "unknown": "○",
}


def heading(title: str, records: Sequence[Mapping[str, Any]], made: Sequence[Row]) -> str:
    """The title and one line on how everything was measured."""
    facts = []
    queries, gallery = (_common(records, key) for key in ("num_queries", "num_gallery"))
    if queries:
        facts.append(f"{_number(queries)} queries")
    if gallery:
        facts.append(f"{_number(gallery)} gallery rows")
    distance, search = _common(records, "distance"), _common(records, "search")
    if distance:
        facts.append({"l2": "L2 distance", "cosine": "cosine distance"}.get(distance, distance))
    if search:
        facts.append(f"{search} search" if isinstance(search, str) else "approximate search")
    seeds = max((len(row["seeds"]) for row in made), default=0)
    if seeds:
        facts.append("1 seed" if seeds == 1 else f"{seeds} seeds")
    line = escape(" · ".join(facts))
    return f'<h1>{escape(title)}</h1>\n<p class="soft">{line}</p>'


def error_bars(made: Sequence[Row]) -> str:
    """What the bars of a figure stand for; empty where there are none."""
    metrics = [values for row in made for values in row["metrics"].values() if values]
    if any(values["std"] is not None for values in metrics):
        return "Bars: standard deviation over seeds."
    if any(values["low"] is not None for values in metrics):
        return "Bars: 95 % interval over queries."
    return ""


def mean(row: Row, name: str) -> str:
    """A metric of a row in percent."""
    values = row["metrics"][name]
    return formats.percent(values["mean"]) if values else "–"


def verdicts(found: Sequence[Verdict]) -> str:
    """The first verdict with a tile per metric, the others as a list."""
    first, *others = found
    # The best was chosen by the very numbers it is judged by: say so.
    best = f' <span class="soft">The best of {len(found)} upgrades:</span>' if others else ""
    told = (
        f'<div class="card verdict {first.status}"><strong>{_SYMBOLS[first.status]} '
        f"{escape(first.headline)}</strong>{best}<p>{_minus(escape(first.sentence))}</p></div>"
    )
    if first.comparisons:
        tiles = "".join(_tile(c, first.base, first.top) for c in first.comparisons)
        told += f'\n<div class="tiles">{tiles}</div>'
    if others:
        items = "".join(
            f'<li class="{other.status}"><b>{_SYMBOLS[other.status]}</b> '
            f"{_minus(escape(other.sentence))}</li>"
            for other in others
        )
        told += f'\n<p class="note">The other upgrades:</p><ul class="others">{items}</ul>'
    return told


def _tile(c: Comparison, base: str, top: str) -> str:
    tone = "unclear" if not c.clear else "better" if c.gain > 0 else "worse"
    told = (
        f'<div class="card tile {tone}"><div class="name">{escape(c.metric)} after the upgrade'
        f'</div><div class="value">{formats.percent(c.value)} <small>%</small></div>'
        f'<div><span class="gain">{_minus(formats.signed(c.gain))}</span> '
        f'<span class="soft">points against {escape(base)}'
        f"{'' if c.clear else ', not clear'}</span></div>"
    )
    if c.gap_share is not None:
        width = 100 * min(max(c.gap_share, 0.0), 1.0)
        share = _minus(f"{100 * c.gap_share:.0f}")
        told += (
            f'<div class="track"><i style="width:{width:.1f}%"></i></div><div class="ends soft">'
            f"<span>{share} % of the gap to {escape(top)} closed</span></div>"
        )
    return told + "</div>"


def results(made: Sequence[Row], looks: Mapping[str, Style]) -> str:
    """The table of cases; each seed on its own in a table to unfold where there are several."""
    if not made:
        return '<h2>Results</h2>\n<p class="soft">There are no results.</p>'
    base, names = table.baseline(made) if table.has_gains(made) else None, table.shown(made)
    head = ["Case (query/gallery)", *(f"{name}, %" for name in names)]
    if base:
        head += [f"{name}<br>over {escape(base['case'])}" for name in names]
    lines = []
    for row in made:
        look = looks[row["case"]]
        swatch = f'<span class="swatch" style="--light:{look.light};--dark:{look.dark}"></span>'
        cells = [f'<th scope="row">{swatch}{escape(row["case"])}</th>']
        metrics = [row["metrics"][name] for name in names]
        cells += map(_value_cell, metrics)
        if base:
            cells += [_gain_cell(values) for values in metrics]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    told = f"<h2>Results</h2>\n{html_table(head, lines)}\n"
    told += f'<p class="note">{escape(below_values(table.legend(made)))}</p>'
    if any(len(row["seeds"]) > 1 for row in made):
        told += _every_seed(made)
    return told


def _every_seed(made: Sequence[Row]) -> str:
    names = table.metric_names(made)
    lines = []
    for row in made:
        for seed in row["seeds"]:
            values = [(row["metrics"][n] or {"values": {}})["values"].get(seed) for n in names]
            cells = "".join(
                f"<td>{'–' if value is None else formats.percent(value)}</td>" for value in values
            )
            lines.append(
                f'<tr><th scope="row">{escape(row["case"])}</th><td>{escape(seed)}</td>{cells}</tr>'
            )
    made_table = html_table(["Case", "Seed", *(f"{name}, %" for name in names)], lines)
    return f"<details><summary>Every seed</summary>{made_table}</details>"


def _value_cell(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "<td>–</td>"
    small = table.spread(values).strip("[]")
    return f"<td>{formats.percent(values['mean'])}{f'<small>{small}</small>' if small else ''}</td>"


def _gain_cell(values: Mapping[str, Any] | None) -> str:
    if values is None or values["gain"] is None:
        return "<td></td>"
    told = formats.signed(values["gain"])
    direction = {"+": "up", "-": "down"}.get(told[0], "")
    std = values["gain_std"]
    small = "" if std is None else f"<small>± {formats.percent(std)}</small>"
    return f'<td><span class="{direction}">{_minus(told)}</span>{small}</td>'


def figure(name: str, alternative: str, caption: str, title: str = "") -> str:
    """A figure of which `{name}-light.svg` and `{name}-dark.svg` lie beside the page."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return (
        f'<figure class="card">{head}<picture>'
        f'<source srcset="{name}-dark.svg" media="(prefers-color-scheme: dark)">'
        f'<img src="{name}-light.svg" alt="{escape(alternative)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def loss_figure(file_name: str, name: str, curves: Sequence[Curve]) -> str:
    """The figure of one model's training."""
    longest = max(len(curve.loss) for curve in curves)
    told = f"{_number(max(int(curve.steps[-1]) for curve in curves))} steps"
    if window(longest) > 1:
        share = 100 * window(longest) / longest
        line = "thick: moving average" if len(curves) == 1 else "moving averages"
        told += f"; {line} over {share:.0f} % of the run"
    return figure(file_name, f"Training loss of {name} against the step", f"{told}.", name)


def no_curve(name: str) -> str:
    """In place of a figure where nothing was logged."""
    return (
        f'<div class="card"><h3>{escape(name)}</h3>'
        '<p class="soft">No training metrics were found.</p></div>\n'
    )


def facts(runs: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """A table of (name, seed, facts), a column for each key that any run has."""
    keys = dict.fromkeys(key for _, _, known in runs for key in known)
    keys = {key: None for key in keys if any(known.get(key) is not None for _, _, known in runs)}
    several = len({seed for _, seed, _ in runs}) > 1
    lines = []
    for name, seed, known in runs:
        cells = [f'<th scope="row">{escape(name)}</th>']
        if several:
            cells.append(f"<td>{escape(seed)}</td>")
        for key in keys:
            value = known.get(key)
            kind = ' class="text"' if isinstance(value, str) else ""
            cells.append(f"<td{kind}>{escape(fact(key, value))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = ["Model", *(["Seed"] if several else []), *(_title(key) for key in keys)]
    return html_table(head, lines)


def fact(key: str, value: Any) -> str:
    """A value in the unit its key ends with: `duration_s` 200 -> 3 min 20 s."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("_s") and not key.endswith("_per_s"):
        return formats.duration(value)
    if key.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    return _number(value)


def settings(
    config: Mapping[str, Any] | None, command: str, versions: Mapping[str, str] | None
) -> str:
    """The command, the resolved experiment to unfold, and the versions."""
    told = []
    if command:
        told.append(f'<pre class="command">{escape(command)}</pre>')
    if config:
        resolved = json.dumps(config, indent=2, default=str, ensure_ascii=False)
        told.append(
            "<details><summary>Experiment, all settings</summary>"
            f"<pre>{escape(resolved)}</pre></details>"
        )
    if versions:
        items = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>"
            for name, version in versions.items()
        )
        told.append(f"<details><summary>Versions</summary><dl>{items}</dl></details>")
    return "<h2>How to repeat it</h2>\n" + "\n".join(told) if told else ""


def _title(key: str) -> str:
    rate = key.endswith("_per_s")
    words = (key if rate else key.removesuffix("_s").removesuffix("_bytes")).replace("_", " ")
    return escape(words[:1].upper() + words[1:])


def _number(value: float) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _minus(told: str) -> str:
    """Typographic minus signs, and per cent signs that stay with their number."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", told).replace(" %", "\u00a0%")


def _common(records: Sequence[Mapping[str, Any]], key: str) -> Any:
    values = [record.get(key) for record in records]
    return values[0] if values and all(value == values[0] for value in values) else None
