"""Chains of versions as tables: queries of the row's version, gallery of the column's.

Of a pair below the diagonal it is marked whether it does better than the gallery's own version
did on it, M_ij > M_jj; AC is the share of pairs that do, AM the mean of all that is shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.common.formats import percent
from fct_tf.report.tables import Cell, escape, html_table

_LEGEND = (
    "Percent; row: version of the queries, column: version that the gallery was embedded with. "
    "{better}: more than that version found in its own gallery, {worse}: not; AC: share of pairs "
    "that are {better}; AM: mean of all pairs shown"
)


def text(chains: Mapping[str, Any]) -> str:
    """Chains, the content of chains.json, as tables for the console."""
    lines = []
    for name, chain in chains.items():
        for metric, values in chain["metrics"].items():
            # Numbers stand below each other, with a mark behind them or a space.
            cells = _cells(chain, values["matrix"], "+", "-", " ")
            made = [[f"{name}, {_title(metric)}", *chain["versions"]], *cells]
            widths = [max(map(len, column)) for column in zip(*made, strict=True)]
            for line in made:
                first, *others = zip(line, widths, strict=True)
                padded = [first[0].ljust(first[1]), *(cell.rjust(size) for cell, size in others)]
                lines.append("  ".join(padded).rstrip())
            lines += [_summary(values), ""]
    return "\n".join([*lines, _legend(chains, "+", "-")])


def markdown(chains: Mapping[str, Any]) -> str:
    """The same as Markdown tables, numbers aligned right."""
    blocks = []
    for name, chain in chains.items():
        for metric, values in chain["metrics"].items():
            head = [f"{name}, {_title(metric)}", *chain["versions"]]
            cells = [*_cells(chain, values["matrix"], "▲", "▼")]
            blocks.append(formats.markdown(head, cells))
            blocks.append(_summary(values))
    return "\n\n".join([*blocks, _legend(chains, "▲", "▼")])


def section(chains: Mapping[str, Any]) -> str:
    """The section of the page; empty without chains."""
    if not chains:
        return ""
    metrics = list(next(iter(chains.values()))["metrics"])
    head = [f"{_title(metric)}<br>{what}" for metric in metrics for what in ("AC", "AM, %")]
    lines = []
    for name, chain in chains.items():
        values = [chain["metrics"][metric] for metric in metrics]
        cells = [f"{each['ac']:.2f} {percent(each['am'])}".split() for each in values]
        lines.append([escape(name), *(cell for pair in cells for cell in pair)])
    told = '<section id="chains"><h2>Chains of versions</h2>\n'
    told += html_table(["Chain", *head], lines, "Chains of versions")
    told += f'\n<p class="note">{escape(_legend(chains, "▲", "▼"))}</p>\n'
    shades = {metric: _shades(chains, metric) for metric in metrics}
    for name, chain in chains.items():
        tables = "".join(_matrix(name, chain, metric, *shades[metric]) for metric in metrics)
        told += f'<h3 class="chain">{escape(name)}</h3>\n'
        told += f'<div class="figures">{tables}</div>\n'
    return f"{told}</section>"


def _matrix(name: str, chain: Mapping[str, Any], metric: str, low: float, high: float) -> str:
    """The lower triangle of one metric, the darker the higher."""
    matrix = chain["metrics"][metric]["matrix"]
    lines = []
    for at, (version, row) in enumerate(zip(chain["versions"], matrix, strict=True)):
        cells: list[str | Cell] = [escape(version)]
        for column, value in enumerate(row):
            shade = (value - low) / (high - low) if high > low else 0.0
            mark = _mark(matrix, at, column, *("▲", "▼"))
            kind = {"▲": "up", "▼": "down"}.get(mark)
            told = f' <span class="{kind}">{mark}</span>' if kind else ""
            cells.append(Cell(f"{percent(value)}{told}", "shade", f"--shade:{shade:.2f}"))
        lines.append([*cells, *[""] * (len(matrix) - len(row))])
    versions = map(escape, chain["versions"])
    return html_table([f"{_title(metric)}, %", *versions], lines, f"{name}, {_title(metric)}")


def _shades(chains: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """The least and the greatest value: all chains have one scale."""
    matrices = [chain["metrics"][metric]["matrix"] for chain in chains.values()]
    values = [value for matrix in matrices for row in matrix for value in row]
    return min(values), max(values)


def _cells(
    chain: Mapping[str, Any],
    matrix: Sequence[Sequence[float]],
    better: str,
    worse: str,
    itself: str = "",
) -> Iterator[list[str]]:
    """A line per version: its name, and percent with a mark; `itself` marks the diagonal."""
    for at, (version, row) in enumerate(zip(chain["versions"], matrix, strict=True)):
        marks = (_mark(matrix, at, column, better, worse) or itself for column in range(at + 1))
        told = [
            f"{percent(value)} {mark}" if mark else percent(value)
            for value, mark in zip(row, marks, strict=True)
        ]
        yield [version, *told, *[""] * (len(matrix) - len(row))]


def _mark(matrix: Sequence[Sequence[float]], at: int, column: int, better: str, worse: str) -> str:
    if at == column:
        return ""
    return better if matrix[at][column] > matrix[column][column] else worse


def _summary(values: Mapping[str, Any]) -> str:
    return f"AC {values['ac']:.2f}, AM {percent(values['am'])}"


def _legend(chains: Mapping[str, Any], better: str, worse: str) -> str:
    seeds = {len(m["seeds"]) for chain in chains.values() for m in chain["metrics"].values()}
    several = f"; means over {max(seeds)} seeds" if max(seeds, default=1) > 1 else ""
    return f"{_LEGEND.format(better=better, worse=worse)}{several}."


def _title(metric: str) -> str:
    """`cmc@1` is shown as top-1, `map` as mAP, as in all reports."""
    return {"map": "mAP"}.get(metric, metric.replace("cmc@", "top-"))
