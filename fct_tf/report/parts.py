"""Pieces of the page as HTML strings, pure functions of the numbers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.report.table import Row
from fct_tf.report.tables import escape, minus


def heading(title: str, records: Sequence[Mapping[str, Any]], made: Sequence[Row]) -> str:
    """The title and one line on how everything was measured."""
    facts = []
    records = [record for record in records if record.get("scoring") != "remaining"]
    queries, gallery = (_common(records, key) for key in ("num_queries", "num_gallery"))
    if queries:
        facts.append(f"{number(queries)} queries")
    if gallery:
        facts.append(f"{number(gallery)} gallery rows")
    distance, search = _common(records, "distance"), _common(records, "search")
    if distance:
        facts.append({"l2": "L2 distance", "cosine": "cosine distance"}.get(distance, distance))
    if search:
        facts.append(f"{search} search" if isinstance(search, str) else "approximate search")
    seeds = max((len(row["seeds"]) for row in made), default=0)
    if seeds:
        facts.append("1 seed" if seeds == 1 else f"{seeds} seeds")
    line = escape(" · ".join(facts))
    return f'<header><h1>{escape(title)}</h1>\n<p class="soft">{line}</p></header>'


def details(summary: str, body: str) -> str:
    """What is there on demand."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def figure(name: str, alternative: str, caption: str, title: str = "") -> str:
    """A figure of which `{name}-light.svg` and `{name}-dark.svg` lie beside the page."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    below = f"<figcaption>{minus(escape(caption))}</figcaption>" if caption else ""
    return (
        f'<figure class="card" aria-label="{escape(title or alternative)}">{head}<picture>'
        f'<source srcset="{name}-dark.svg" media="(prefers-color-scheme: dark)">'
        f'<img src="{name}-light.svg" alt="{escape(alternative)}"></picture>{below}</figure>\n'
    )


def listed(lines: Sequence[str]) -> str:
    """Sentences as a list."""
    items = "".join(f"<li>{minus(escape(line))}</li>" for line in lines)
    return f'<ul class="listed">{items}</ul>'


def settings(
    config: Mapping[str, Any] | None, command: str, versions: Mapping[str, str] | None
) -> str:
    """The command, the resolved experiment to unfold, and the versions."""
    blocks = []
    if command:
        blocks.append(f'<pre class="command">{escape(command)}</pre>')
    if config:
        resolved = json.dumps(config, indent=2, default=str, ensure_ascii=False)
        blocks.append(
            details("Experiment, all settings", f'<pre tabindex="0">{escape(resolved)}</pre>')
        )
    if versions:
        items = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>"
            for name, version in versions.items()
        )
        blocks.append(details("Versions", f"<dl>{items}</dl>"))
    if not blocks:
        return ""
    return f'<section id="repeat"><h2>How to repeat it</h2>\n{"".join(blocks)}</section>'


def number(value: float) -> str:
    """With as many digits as a reader wants."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _common(records: Sequence[Mapping[str, Any]], key: str) -> Any:
    values = [record.get(key) for record in records]
    return values[0] if values and all(value == values[0] for value in values) else None
