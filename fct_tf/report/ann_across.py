"""Approximate search through a change of the model: a table, a figure, a section of the report."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_tf.ann.across import BUILT, KEPT, RERANKED
from fct_tf.common import files, formats
from fct_tf.common.provenance import library_versions
from fct_tf.report import parts
from fct_tf.report.tables import Table, escape

OUTPUT, TABLE, PLOT = "across.json", "across.md", "across.svg"
_INDEX = {BUILT: "built anew", KEPT: "kept, upserted", RERANKED: "old, re-ranked"}
_NOTE = (
    "`changed`: rows put in by building, or by upserts since the index was built. `of last`: of "
    "the neighbours that exact search of the last case finds. In brackets: exact search."
)
_NOTE_RERANKED = (
    " `old, re-ranked`: the old model's index as it is; the first {} rows that it finds are "
    "ordered by the fused search."
)

Records = Sequence[Mapping[str, Any]]


def write(directory: Path, about: Mapping[str, Any], records: Records) -> str:
    """Writes all files; returns what the console shows.

    Args:
      about: what was measured.
      records: of `across.measure`.
    """
    recall_table, cost_table = _two_tables(records)
    plot(records, directory / PLOT)
    cost_table = dataclasses.replace(cost_table, legend=_note(records))
    files.atomic_write_text(
        directory / TABLE, f"{recall_table.markdown()}\n\n{cost_table.markdown()}\n"
    )
    document = {**about, "versions": library_versions(), "records": list(records)}
    files.write_json(directory / OUTPUT, document)
    return f"{recall_table.text()}\n\n{cost_table.text()}\nAll -> {directory / OUTPUT}"


def markdown(content: Mapping[str, Any]) -> str:
    """The tables of across.json."""
    return "\n\n".join(one.markdown() for one in _two_tables(content["records"]))


def _note(records: Records) -> str:
    first = next((one["rerank"] for one in records if one["index"] == RERANKED), 0)
    return _NOTE + (_NOTE_RERANKED.format(first) if first else "")


def _two_tables(records: Records) -> tuple[Table, Table]:
    """What is found, and what it takes: one table would be wider than a page."""
    full_table = table(records)
    recall_columns = [
        name for name in full_table.header[2:] if name.startswith(("recall", "@", "CMC"))
    ]
    cost_columns = [name for name in full_table.header[2:] if name not in recall_columns]
    names = full_table.header[:2]
    return full_table.only([*names, *recall_columns]), full_table.only([*names, *cost_columns])


def table(records: Records) -> Table:
    """A line for each index."""
    ks = list(records[0]["recall"]) if records else []
    shown = ks[len(ks) // 2] if ks else ""
    ranks = list(next((one["cmc"] for one in records if one["cmc"]), {}))
    header = ["case", "index", "changed", "s", "CPU s", *(f"recall@{k}" for k in ks)]
    header += [f"@{shown} of last", *(f"CMC@{k}, %" for k in ranks)]
    header += ["QPS one", "batched", "p50 ms"]
    lines = []
    for one in records:
        of_last, exact = (one[name][shown] for name in ("recall_of_last", "exact_recall_of_last"))
        line = [one["case"], _INDEX[one["index"]], f"{one['rows_changed']:,}"]
        line += [f"{one[name]:,.2f}" for name in ("seconds", "cpu_seconds")]
        line += [*(f"{one['recall'][k]:.4f}" for k in ks), f"{of_last:.4f} ({exact:.4f})"]
        for k in ranks:
            values = [(one[name] or {}).get(k) for name in ("cmc", "exact_cmc")]
            cmc, best = ("–" if v is None else formats.percent(v) for v in values)
            line.append(f"{cmc} ({best})")
        line += [f"{one['qps'][mode]:,.0f}" for mode in ("single", "batched")]
        if "exact_qps" in one:  # Not in records of before it was measured.
            line[-1] += f" ({one['exact_qps']['batched']:,.0f})"
        line.append(f"{one['latency_ms']['p50']:.3f}")
        lines.append(line)
    return Table(header, lines, left=2)


def plot(records: Records, path: str | os.PathLike, theme: str = "light") -> None:
    """Recall, latency and cost of each case: of indices built anew and of the one that is kept."""
    import matplotlib
    from matplotlib.figure import Figure

    from fct_tf.report import plots

    with matplotlib.rc_context(plots.settings(theme)):
        figure = Figure(figsize=(8.8, 6.0), layout="constrained")
        for axes, name in zip(figure.subplots(2, 2).flat, _panels(records), strict=True):
            _draw(axes, records, name, theme)
        plots.save(figure, path)


def _panels(records: Records) -> dict[str, Callable[[Mapping[str, Any]], float]]:
    """What is drawn of a record, by name."""
    k = _middle(records)
    return {
        f"recall@{k}": lambda one: one["recall"][k],
        f"recall@{k} of last": lambda one: one["recall_of_last"][k],
        "p50, ms": lambda one: one["latency_ms"]["p50"],
        "CPU s": lambda one: one["cpu_seconds"],
    }


def _middle(records: Records) -> str:
    ks = list(records[0]["recall"])
    return ks[len(ks) // 2]


def _draw(axes: Any, records: Records, name: str, theme: str) -> None:
    """One panel: the cases along it, a line for each index."""
    from fct_tf.report import line_labels, plots

    cases = list(dict.fromkeys(one["case"] for one in records))
    looks = {BUILT: plots.UPGRADED[0], KEPT: plots.OLD, RERANKED: plots.NEW}
    value = _panels(records)[name]
    for index, look in looks.items():
        of_index = [one for one in records if one["index"] == index]
        if not of_index:
            continue
        axes.plot(
            [cases.index(one["case"]) for one in of_index],
            [value(one) for one in of_index],
            color=look.color(theme),
            linestyle=look.line,
            marker="o",
            markersize=4,
            label=_INDEX[index],
        )
    if not name.startswith("recall"):
        axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.set_ylabel(name)
    axes.set_xticks(range(len(cases)), [case.replace(", ", ",\n") for case in cases])
    axes.tick_params(axis="x", labelrotation=35, labelsize=8)
    line_labels.write(axes)


def section(records: Records, directory: Path) -> str:
    """The section of a study's report; empty without records. Each has a `method` and a `seed`."""
    import matplotlib

    from fct_tf.report import plots

    if not records:
        return ""
    html = '<section id="across"><h2>Approximate search through the change</h2>\n'
    groups = dict.fromkeys((one["method"], one["seed"]) for one in records)
    for place, (method, seed) in enumerate(groups):
        of_group = [one for one in records if (one["method"], one["seed"]) == (method, seed)]
        title, drawn = f"{method}, seed {seed}", ""
        for at, panel in enumerate(_panels(of_group)):
            name = f"across-{place}-{at}"
            for theme in plots.THEMES:
                with matplotlib.rc_context(plots.settings(theme)):
                    figure, axes = plots.panel(3.4, 2.9)
                    _draw(axes, of_group, panel, theme)
                    plots.save(figure, directory / f"{name}-{theme}.svg")
            drawn += parts.figure(name, f"{panel} of the indices of {title}", "", panel)
        html += f'<h3>{escape(title)}</h3>\n<div class="figures small">\n{drawn}</div>\n'
        html += _tables(of_group, title)
    return f'{html}<p class="note">{escape(_note(records).replace("`", ""))}</p></section>'


def _tables(records: Records, title: str) -> str:
    """The first columns that a reader asks for; all others unfold."""
    full_table = table(records)
    k = _middle(records)
    first = [f"recall@{k}", f"@{k} of last", "p50 ms", "QPS one", "CPU s"]
    rest = [name for name in full_table.header[2:] if name not in first]

    def drawn(names: Sequence[str], what: str) -> str:
        places = [list(full_table.header).index(name) for name in names]
        cells = [
            [f"{line[0]}, {line[1]}", *(line[at] for at in places)] for line in full_table.lines
        ]
        return Table(["case, index", *names], cells).html(f"{title}: {what}")

    return drawn(first, "search") + parts.details("More on each", drawn(rest, "more"))
