"""A table of results and what its numbers mean, as text, Markdown and HTML."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fct_tf.common import formats

# As the console writes what pages write with typographic signs.
_CONSOLE = str.maketrans({"±": "+/-", "–": "-", "▲": "+", "▼": "-"})
_MARKS = {"▲": "up", "▼": "down"}  # which a cell may end with
_LONG = 22  # characters of a cell; longer ones may be broken
IN_BRACKETS = "in brackets"  # where a legend finds intervals; in HTML they stand below the value


@dataclass(frozen=True)
class Table:
    """Cells as pages show them: `± s` for deviations, `[a–b]` for intervals, `▲` or `▼` behind.

    Attributes:
      header: a title for each column.
      lines: cells of each row; the first `left` are its name.
      legend: one sentence or more on the numbers; may be empty.
      shades: how dark cells are on the page, 0 to 1: of each line, those behind its name.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    legend: str = ""
    left: int = 1
    shades: Sequence[Sequence[float]] = ()

    def only(self, names: Sequence[str]) -> "Table":
        """These columns of it, in this order; without shades."""
        places = [list(self.header).index(name) for name in names]
        lines = [[line[at] for at in places] for line in self.lines]
        return Table(names, lines, self.legend, self.left)

    def text(self) -> str:
        """For the console: columns of one width, the legend below."""
        header, *lines = (
            [cell.translate(_CONSOLE) for cell in line]
            for line in (self.header, *_hanging(self.lines))
        )
        drawn = formats.console(header, lines, left=self.left)
        return f"{drawn}\n{self.legend.translate(_CONSOLE)}".rstrip()

    def markdown(self) -> str:
        """A Markdown table, numbers aligned right, the legend below."""
        drawn = formats.markdown(self.header, self.lines, left=self.left)
        return f"{drawn}\n\n{self.legend}".rstrip()

    def html(self, name: str) -> str:
        """A table of the page and its note; intervals and deviations stand below the values.

        Args:
          name: what a screen reader calls the table.
        """
        lines = []
        for at, line in enumerate(self.lines):
            cells = [
                Cell(_cell(cell) if place else breakable(cell), self._kind(cell, place))
                for place, cell in enumerate(line)
            ]
            for place, shade in enumerate(self.shades[at] if self.shades else (), self.left):
                cells[place] = Cell(cells[place].html, "shade", f"--shade:{shade:.2f}")
            lines.append(cells)
        head = [Cell(escape(c), "text" * (at < self.left)) for at, c in enumerate(self.header)]
        note = f'\n<p class="note">{escape(below_values(self.legend))}</p>' if self.legend else ""
        return html_table(head, lines, name) + note

    def _kind(self, cell: str, place: int) -> str:
        if 0 < place < self.left:
            return "text"
        return "long" if len(_parted(cell)[0]) > _LONG else ""


@dataclass(frozen=True)
class Cell:
    """A cell of the page: its HTML, and the `class` and `style` that it has."""

    html: str
    kind: str = ""
    style: str = ""


def below_values(legend: str) -> str:
    """A legend of HTML, where intervals stand below the values."""
    return legend.replace(IN_BRACKETS, "below the value")


def below(value: str, small: str) -> str:
    """A value with what belongs to it in small print below, as HTML."""
    return minus(escape(value) + (f"<small>{escape(small)}</small>" if small else ""))


def _hanging(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cells whose numbers stand below each other, where some have a mark behind them."""
    marked = {at for line in lines for at, cell in enumerate(line) if cell[-1:] in _MARKS}
    return [
        [f"{c}  " if at in marked and c[-1:] not in _MARKS else c for at, c in enumerate(line)]
        for line in lines
    ]


def _cell(cell: str) -> str:
    """A cell as HTML: its interval or deviation below the value, its mark in colour."""
    if cell[-1:] in _MARKS:
        value, mark = cell[:-1], cell[-1]
        return f'{minus(escape(value))}<span class="{_MARKS[mark]}">{mark}</span>'
    return below(*_parted(cell))


def _parted(cell: str) -> tuple[str, str]:
    """A value, and the interval or the deviation behind it."""
    if " / " in cell:
        return cell, ""
    value, _, interval = cell.partition(" [")
    if interval:
        return value, interval.strip("]")
    value, sign, deviation = cell.partition(" ±")
    return value, (sign + deviation).strip()


def html_table(head: Sequence[str | Cell], lines: Sequence[Sequence[str | Cell]], name: str) -> str:
    """A table of the page; `head` and the cells are HTML, `name` is what a screen reader says.

    Where the page is narrow a line becomes a block, in which each cell bears its column's name.
    """
    cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in head]
    titles = "".join(f'<th scope="col"{_attributes(cell)}>{cell.html}</th>' for cell in cells)
    labels = [escape(html.unescape(re.sub(r"<[^>]+>", " ", cell.html))) for cell in cells]
    body = "\n".join(_line(line, labels) for line in lines)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name)}">'
        f'<table><caption class="unseen">{escape(name)}</caption>'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _line(line: Sequence[str | Cell], labels: Sequence[str]) -> str:
    cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in line]
    row_html = f'<tr><th scope="row"{_attributes(cells[0])}>{cells[0].html}</th>'
    for cell, label in zip(cells[1:], labels[1:], strict=True):
        row_html += f'<td data-label="{label}"{_attributes(cell)}>{cell.html}</td>'
    return f"{row_html}</tr>"


def _attributes(cell: Cell) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return kind + (f' style="{cell.style}"' if cell.style else "")


def escape(value: object) -> str:
    """Text for HTML, in an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def minus(told: str) -> str:
    """Typographic minus signs, and per cent signs that stay with their number."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", told).replace(" %", "\u00a0%")


def breakable(name: str) -> str:
    """A name as HTML that may be broken behind a slash or an underscore."""
    return re.sub(r"([/_])", r"\1<wbr>", escape(name))
