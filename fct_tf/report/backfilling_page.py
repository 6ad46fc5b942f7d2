"""The section of the page on backfilling: what an order of re-embedding buys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_tf.report import backfilling, backfilling_plots, calibration, parts, plots
from fct_tf.report.backfilling import ORACLE, RANDOM, Row
from fct_tf.report.tables import escape, minus


def section(records: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """The section as HTML, its figures written to `directory`; empty without curves.

    First the best order in a sentence, then a panel per method; all numbers unfold.
    """
    rows = backfilling.rows(records)
    if not rows:
        return ""
    first, *others = backfilling.metrics(rows) or [""]
    html = '<section id="backfilling"><h2>Backfilling</h2>\n'
    if first:
        html += f"{_best(rows, first)}{_panels(rows, [first], directory)}"
    if others:
        html += parts.details(
            f"The same in {' and '.join(others)}", _panels(rows, others, directory)
        )
    html += parts.details("Every order in numbers", backfilling.as_table(rows).html("Backfilling"))
    html += parts.details("Every order in a sentence", parts.listed(backfilling.told(rows)))
    return f"{html}{_calibration(rows, directory)}</section>"


def _best(made: Sequence[Row], metric: str) -> str:
    """What the best order that can be had costs, beside a random one of the same rows."""
    candidates = [row for row in made if row.policy != ORACLE and metric in row.curves]
    if not candidates:
        return ""
    best = max(candidates, key=lambda row: row.auc(metric)[0])
    costs = backfilling.costs(best, metric)
    if costs is None:
        return ""
    sentence = f"{best.method}, {best.name}: half of the gap in {metric} is recovered with "
    sentence += f"{costs[0]} of the rows re-embedded, 90 % of it with {costs[1]}"
    same = (row for row in candidates if (row.method, row.name) == (best.method, RANDOM))
    random = next(same, best)
    if random is not best and (others := backfilling.costs(random, metric)):
        sentence += f"; in random order with {others[0]} and {others[1]}"
    return f"<p>{minus(escape(sentence))}.</p>\n"


def _panels(made: Sequence[Row], names: Sequence[str], directory: Path) -> str:
    html = ""
    for metric in names:
        drawn = ""
        span = backfilling_plots.limits(made, metric)
        for at, rows in enumerate(backfilling_plots.figures(made)):
            name = f"backfilling-{metric.lower()}-{at}"
            for theme in plots.THEMES:
                path = directory / f"{name}-{theme}.svg"
                backfilling_plots.curve(rows, metric, path, theme, span)
            method = rows[0].method
            order = ", ".join(row.name for row in rows)
            alternative = f"{metric} of {method} by the share of rows re-embedded: {order}"
            drawn += parts.figure(name, alternative, "", method)
        html += f'<div class="figures small">\n{drawn}</div>\n'
    over = {row.over for row in made if row.over}
    bands = f" Bands: standard deviation over {' or '.join(sorted(over))}." if over else ""
    oracle = ""
    if any(row.policy == ORACLE for row in made):
        oracle = f" {ORACLE}: an oracle, by how far each upgraded row is from the new model's own."
    return f'{html}<p class="note">All panels share their axes.{oracle}{bands}</p>\n'


def _calibration(made: Sequence[Row], directory: Path) -> str:
    drawn = ""
    for at, (name, numbers) in enumerate(backfilling.calibrations(made).items()):
        for theme in plots.THEMES:
            calibration.plot({name: numbers}, directory / f"calibration-{at}-{theme}.svg", theme)
        alternative = f"Predicted variance against squared error of {name}"
        drawn += parts.figure(f"calibration-{at}", alternative, "", name)
    if not drawn:
        return ""
    note = '<p class="note">Each point is a tenth of the transformed rows, by predicted variance.'
    body = f'<div class="figures small">\n{drawn}</div>\n{note}</p>\n'
    return parts.details("How well predicted variances tell the error", body)
