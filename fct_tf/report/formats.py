"""Tables as text, and durations."""

from collections.abc import Sequence


def console(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in columns of one width, the first aligned left and the others right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join(
        [joined(header), "  ".join("-" * width for width in widths), *map(joined, lines)]
    )


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first aligned right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
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
