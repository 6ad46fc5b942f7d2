"""Tables as text, and durations."""

from collections.abc import Sequence


def console(
    header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1, rule: bool = True
) -> str:
    """A table in columns of one width, the first `left` aligned left and the others right.

    Args:
      rule: draw a line below the header.
    """
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()

    drawn = ["  ".join("-" * width for width in widths)] if rule else []
    return "\n".join([joined(header), *drawn, *map(joined, lines)])


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, all columns but the first `left` aligned right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [header, rule, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def duration(seconds: float) -> str:
    """200 -> 3 min 20 s"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def percent(fraction: float) -> str:
    """0.7103 -> 71.03"""
    return f"{100 * fraction:.2f}"


def signed(fraction: float) -> str:
    """0.0317 -> +3.17; what rounds to nothing has no sign."""
    value = f"{100 * fraction:+.2f}"
    return "0.00" if value in ("+0.00", "-0.00") else value
