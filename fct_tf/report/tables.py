"""A table of results and what its numbers mean, as text, Markdown and HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from fct_tf.common import formats

# As the console writes what pages write with typographic signs.
_CONSOLE = str.maketrans({"±": "+/-", "–": "-"})
IN_BRACKETS = "in brackets"  # where a legend finds intervals; in HTML they stand below the value


@dataclass(frozen=True)
class Table:
    """Cells as pages show them: `± s` for deviations, `[a–b]` for intervals.

    Attributes:
      header: a title for each column.
      lines: cells of each row; the first `left` are its name.
      legend: one sentence or more on the numbers.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    legend: str
    left: int = 1

    def text(self) -> str:
        """For the console: columns of one width, the legend below."""
        header, *lines = (
            [cell.translate(_CONSOLE) for cell in line] for line in (self.header, *self.lines)
        )
        drawn = formats.console(header, lines, left=self.left)
        return f"{drawn}\n{self.legend.translate(_CONSOLE)}"

    def markdown(self) -> str:
        """A Markdown table, numbers aligned right, the legend below."""
        return f"{formats.markdown(self.header, self.lines, left=self.left)}\n\n{self.legend}"

    def html(self) -> str:
        """A table of the page and its note; intervals and deviations stand below the values."""
        drawn = text_table(self.header, self.lines)
        return f'{drawn}\n<p class="note">{escape(below_values(self.legend))}</p>'


def below_values(legend: str) -> str:
    """A legend of HTML, where intervals stand below the values."""
    return legend.replace(IN_BRACKETS, "below the value")


def text_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; the first cell of each line is its heading.

    What stands behind a value, its interval `[a–b]` or its deviation `± s`, goes below it.
    """
    made = []
    for first, *cells in lines:
        body = []
        for cell in cells:
            value, _, small = cell.partition(" [")
            value, sign, deviation = (value, "", "") if small else cell.partition(" ±")
            small = small.strip("]") or (sign + deviation).strip()
            below = f"<small>{escape(small)}</small>" if small else ""
            body.append(f"<td>{escape(value)}{below}</td>")
        made.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(body)}</tr>')
    return html_table([escape(cell) for cell in header], made)


def html_table(head: Sequence[str], lines: Sequence[str]) -> str:
    """`head` is HTML already."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def escape(value: object) -> str:
    """Text for HTML, in an element or a quoted attribute."""
    return html.escape(str(value), quote=True)
