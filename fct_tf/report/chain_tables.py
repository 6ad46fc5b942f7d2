"""Chains of versions as tables: queries of the row's version, gallery of the column's.

Of a pair below the diagonal it is marked whether it does better than the gallery's own version
did on it, M_ij > M_jj; AC is the share of pairs that do, AM the mean of all that is shown.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fct_tf.common.formats import percent
from fct_tf.report.tables import Table, escape

_LEGEND = (
    "Percent; row: version of the queries, column: version that the gallery was embedded with. "
    "▲: more than that version found in its own gallery, ▼: not; AC: share of pairs that are ▲; "
    "AM: mean of all pairs shown"
)


def text(chains: Mapping[str, Any]) -> str:
    """Chains, the content of chains.json, as tables for the console."""
    return "\n\n".join(table.text() for table in _tables(chains))


def markdown(chains: Mapping[str, Any]) -> str:
    """The same as Markdown tables, numbers aligned right."""
    return "\n\n".join(table.markdown() for table in _tables(chains))


def section(chains: Mapping[str, Any]) -> str:
    """The section of the page; empty without chains."""
    if not chains:
        return ""
    metrics = list(next(iter(chains.values()))["metrics"])
    header = [f"{_title(metric)} {what}" for metric in metrics for what in ("AC", "AM, %")]
    lines = []
    for name, chain in chains.items():
        values = [chain["metrics"][metric] for metric in metrics]
        cells = [cell for each in values for cell in (f"{each['ac']:.2f}", percent(each["am"]))]
        lines.append([name, *cells])
    html = '<section id="chains"><h2>Chains of versions</h2>\n'
    html += Table(["Chain", *header], lines, _legend(chains)).html("Chains of versions") + "\n"
    # All chains have one scale.
    scales = {metric: _scale(chains, metric) for metric in metrics}
    for name, chain in chains.items():
        figures = ""
        for metric in metrics:
            title = _title(metric)
            matrix = _matrix(chain, metric, f"{title}, %", scales[metric])
            figures += matrix.html(f"{name}, {title}")
        html += f'<h3 class="chain">{escape(name)}</h3>\n<div class="figures">{figures}</div>\n'
    return f"{html}</section>"


def _tables(chains: Mapping[str, Any]) -> Iterator[Table]:
    """Of each chain and metric, then what they have in common below the last one."""
    tables = [
        dataclasses.replace(
            _matrix(chain, metric, f"{name}, {_title(metric)}"), legend=_summary(values)
        )
        for name, chain in chains.items()
        for metric, values in chain["metrics"].items()
    ]
    yield from tables[:-1]
    for last in tables[-1:]:
        yield dataclasses.replace(last, legend=f"{last.legend}\n\n{_legend(chains)}")


def _matrix(
    chain: Mapping[str, Any], metric: str, title: str, scale: tuple[float, float] | None = None
) -> Table:
    """The lower triangle of one metric; with a `scale`, the darker the higher."""
    matrix = chain["metrics"][metric]["matrix"]
    lines = []
    for at, (version, row) in enumerate(zip(chain["versions"], matrix, strict=True)):
        marks = (_mark(matrix, at, column) for column in range(len(row)))
        cells = [f"{percent(value)}{mark}" for value, mark in zip(row, marks, strict=True)]
        lines.append([version, *cells, *[""] * (len(matrix) - len(row))])
    shades: list[list[float]] = []
    if scale:
        low, high = scale
        room = high - low or 1.0
        shades = [[(value - low) / room for value in row] for row in matrix]
    return Table([title, *chain["versions"]], lines, shades=shades)


def _scale(chains: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """The least and the greatest value of all chains."""
    matrices = [chain["metrics"][metric]["matrix"] for chain in chains.values()]
    values = [value for matrix in matrices for row in matrix for value in row]
    return min(values), max(values)


def _mark(matrix: Sequence[Sequence[float]], at: int, column: int) -> str:
    if at == column:
        return ""
    return " ▲" if matrix[at][column] > matrix[column][column] else " ▼"


def _summary(values: Mapping[str, Any]) -> str:
    return f"AC {values['ac']:.2f}, AM {percent(values['am'])}"


def _legend(chains: Mapping[str, Any]) -> str:
    seeds = {len(m["seeds"]) for chain in chains.values() for m in chain["metrics"].values()}
    several = f"; means over {max(seeds)} seeds" if max(seeds, default=1) > 1 else ""
    cases = [case for chain in chains.values() for row in chain.get("cases", []) for case in row]
    fused = ""
    if any("+" in case.partition(" ")[0] for case in cases):
        fused = "; fused searches have queries of both versions"
    return f"{_LEGEND}{fused}{several}."


def _title(metric: str) -> str:
    """`cmc@1` is shown as top-1, `map` as mAP, as in all reports."""
    return {"map": "mAP"}.get(metric, metric.replace("cmc@", "top-"))
