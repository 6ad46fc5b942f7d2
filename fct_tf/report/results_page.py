"""The table of results on the page: what a decision needs, and everything else to unfold."""

from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.report import methods, parts, table
from fct_tf.report.table import Row
from fct_tf.report.tables import Cell, below, below_values, breakable, escape, html_table, minus
from fct_tf.report.verdict import Verdict


def section(
    made: Sequence[Row], found: Sequence[Verdict], compared: Mapping[str, methods.Row]
) -> str:
    """The table, best case first; all cases, metrics and seeds to unfold below it.

    Args:
      made: `table.rows`.
      found: verdicts on whole galleries.
      compared: rows of `methods.rows` by case.
    """
    head = '<section id="results"><h2>Results</h2>\n'
    if not made:
        return f'{head}<p class="soft">There are no results.</p></section>'
    html = head + _few(made, found, compared)
    if table.has_gains(made):
        html += parts.details("Every case, and what it gains", _every_case(made))
    if len(table.metric_names(made)) > len(table.shown(made)) or _several_seeds(made):
        what = "Every rank" + (", every seed" if _several_seeds(made) else "")
        html += parts.details(what, _every_metric(made))
    return f"{html}</section>"


def _few(made: Sequence[Row], found: Sequence[Verdict], compared: Mapping[str, methods.Row]) -> str:
    """At most six columns on what the change is about: before it, after it, everything anew."""
    names, base, top = table.shown(made), table.baseline(made), table.ceiling(made)
    verdicts = {one.case: one for one in found if one.comparisons}
    rows = [row for row in made if row in (base, top) or _is_change(row)] or list(made)
    if names:
        rows.sort(key=lambda row: -(row["metrics"][names[0]] or {"mean": -1.0})["mean"])
    all_columns: dict[str, list[str | Cell]] = {
        "Case": [_name(row, base, top) for row in rows],
        **{f"{name}, %": [_value(row["metrics"][name]) for row in rows] for name in names},
        "Gap closed, %": [_gap(verdicts.get(row["case"]), compared) for row in rows],
        "Queries broken, %": [
            _estimate((compared.get(row["case"]) or {}).get("negative_flips")) for row in rows
        ],
    }
    columns = {name: cells for name, cells in all_columns.items() if any(cells)}
    lines = list(zip(*columns.values(), strict=True))
    note = table.legend(made, gains=False).removesuffix(".")
    if "Gap closed, %" in columns:
        note += "; gap closed: share of the way from before the change to everything embedded anew"
        note += f", in {names[0]}"
    if "Queries broken, %" in columns:
        note += "; queries broken: right row first before the change, another one after it"
    note = escape(below_values(f"{note}."))
    return f'{html_table(list(columns), lines, "Results")}\n<p class="note">{note}</p>'


def _is_change(row: Row) -> bool:
    pair = row["sides"]
    return pair is not None and pair.query != pair.gallery and not row["remaining"]


def _name(row: Row, base: Row | None, top: Row | None) -> Cell | str:
    notes = {id(base): "before the change", id(top): "everything embedded anew"}
    if id(row) in notes:
        return Cell(below(row["case"], notes[id(row)]), "end")
    pair = row["sides"]
    if pair and pair.query != pair.gallery and not table.is_upgrade(row):
        return below(row["case"], "without an upgrade")
    return breakable(row["case"])


def _gap(one: Verdict | None, compared: Mapping[str, methods.Row]) -> str:
    """The share of the gap that is closed, with its interval where that is known."""
    if one is None or one.comparisons[0].gap_share is None:
        return ""
    first = one.comparisons[0]
    gap = ((compared.get(one.case) or {}).get("gain") or {}).get(first.metric)
    return _estimate(gap or {"mean": first.gap_share, "std": None, "low": None}, digits=0)


def _estimate(values: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A fraction in percent with its interval or deviation below."""
    if values is None:
        return ""

    def told(fraction: float) -> str:
        return f"{100 * fraction:.{digits}f}"

    small = ""
    if values["std"] is not None:
        small = f"± {told(values['std'])}"
    elif values["low"] is not None:
        small = f"{told(values['low'])} to {told(values['high'])}"
    return below(told(values["mean"]), small)


def _value(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return ""
    return below(formats.percent(values["mean"]), table.spread(values).strip("[]"))


def _every_case(made: Sequence[Row]) -> str:
    names, base = table.shown(made), table.baseline(made)
    over = escape(base["case"]) if base else "the baseline"
    head = [
        "Case",
        *(f"{name}, %" for name in names),
        *(f"{name}<br>over {over}" for name in names),
    ]
    lines = []
    for row in made:
        metrics = [row["metrics"][name] for name in names]
        lines.append([escape(row["case"]), *map(_value, metrics), *map(_gain, metrics)])
    return html_table(head, lines, "Every case")


def _gain(values: Mapping[str, Any] | None) -> str:
    if values is None or values["gain"] is None:
        return ""
    gain = formats.signed(values["gain"])
    direction = {"+": "up", "-": "down"}.get(gain[0], "")
    std = values["gain_std"]
    small = "" if std is None else f"<small>± {formats.percent(std)}</small>"
    return f'<span class="{direction}">{minus(gain)}</span>{small}'


def _several_seeds(made: Sequence[Row]) -> bool:
    return any(len(row["seeds"]) > 1 for row in made)


def _every_metric(made: Sequence[Row]) -> str:
    names, several = table.metric_names(made), _several_seeds(made)
    lines = []
    for row in made:
        for seed in row["seeds"]:
            values = [(row["metrics"][n] or {"values": {}})["values"].get(seed) for n in names]
            cells = ["–" if value is None else formats.percent(value) for value in values]
            lines.append([escape(row["case"]), *([escape(seed)] if several else []), *cells])
    head = ["Case", *(["Seed"] if several else []), *(f"{name}, %" for name in names)]
    return html_table(head, lines, "Every metric")
