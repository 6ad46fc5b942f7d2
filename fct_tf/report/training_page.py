"""The end of the page: which models were trained, how their losses fell, and what upgrades cost."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_tf.common import formats
from fct_tf.report import curves, methods, parts, plots
from fct_tf.report.curves import Curve, window
from fct_tf.report.tables import breakable, escape, html_table

# What a reader asks first of a model; other facts unfold.
_FIRST = ("parameters", "steps", "duration_s", "final_loss")


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A model that was trained. `metrics` is its `metrics.jsonl`; `facts` become columns.

    Keys of `facts` name their unit: `parameters`, `images`, `duration_s`, `size_bytes`.
    """

    name: str
    seed: int
    metrics: Path
    facts: Mapping[str, str | int | float | None]


def section(runs: Sequence[TrainingRun], compared: Sequence[methods.Row], directory: Path) -> str:
    """The sections as HTML, their figures written to `directory`.

    Args:
      runs: models trained; those of one name share a figure.
      compared: rows of `methods.rows`.
      directory: of the page.
    """
    html = ""
    if runs:
        figures, facts_of = _losses(runs, directory)
        grid = f'<div class="figures small">\n{"".join(figures)}</div>\n'
        html += (
            f'<section id="trained"><h2>What was trained</h2>\n{facts(facts_of)}{grid}</section>\n'
        )
    costs = methods.costs(compared)
    if costs:
        html += (
            f'<section id="costs"><h2>What the upgrades cost</h2>\n{costs.html("Costs")}</section>'
        )
    return html


def _losses(
    runs: Sequence[TrainingRun], directory: Path
) -> tuple[list[str], list[tuple[str, int, Mapping[str, Any]]]]:
    """A figure for each model, and its runs with the loss that they ended with."""
    figures: list[str] = []
    facts_of_runs: list[tuple[str, int, Mapping[str, Any]]] = []
    for index, name in enumerate(dict.fromkeys(run.name for run in runs)):
        read = []
        for run in (run for run in runs if run.name == name):
            curve = curves.read_curve(run.metrics, f"seed {run.seed}")
            final = {"final_loss": curve.loss[-1]} if curve else {}
            facts_of_runs.append((run.name, run.seed, {**run.facts, **final}))
            if curve:
                read.append(curve)
        if not read:
            figures.append(no_curve(name))
            continue
        for theme in plots.THEMES:
            curves.loss(read, directory / f"loss-{index}-{theme}.svg", theme)
        figures.append(loss_figure(f"loss-{index}", name, read))
    return figures, facts_of_runs


def loss_figure(file_name: str, name: str, curves: Sequence[Curve]) -> str:
    """The figure of one model's training."""
    longest = max(len(curve.loss) for curve in curves)
    steps = f"{parts.number(max(int(curve.steps[-1]) for curve in curves))} steps"
    if window(longest) > 1:
        share = 100 * window(longest) / longest
        line = "thick: moving average" if len(curves) == 1 else "moving averages"
        steps += f"; {line} over {share:.0f} % of the run"
    return parts.figure(file_name, f"Training loss of {name} against the step", f"{steps}.", name)


def no_curve(name: str) -> str:
    """In place of a figure where nothing was logged."""
    return (
        f'<div class="card"><h3>{escape(name)}</h3>'
        '<p class="soft">No training metrics were found.</p></div>\n'
    )


def facts(runs: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """A table of (name, seed, facts): the first columns, and those of all facts to unfold."""
    keys = dict.fromkeys(key for _, _, run_facts in runs for key in run_facts)
    keys = {
        key: None for key in keys if any(run_facts.get(key) is not None for _, _, run_facts in runs)
    }
    first = [key for key in _FIRST if key in keys]
    first += [key for key in keys if key not in first][: len(_FIRST) - len(first)]
    rest = [key for key in keys if key not in first]
    html = _facts_table(runs, first, "What was trained")
    return html + parts.details("More on each", _facts_table(runs, rest, "More")) if rest else html


def _facts_table(
    runs: Sequence[tuple[str, int, Mapping[str, Any]]], keys: Sequence[str], name: str
) -> str:
    several = len({seed for _, seed, _ in runs}) > 1
    lines = []
    for model, seed, run_facts in runs:
        cells = [breakable(model)]
        if several:
            cells.append(escape(seed))
        cells += [escape(fact(key, run_facts.get(key))) for key in keys]
        lines.append(cells)
    head = ["Model", *(["Seed"] if several else []), *(_title(key) for key in keys)]
    return html_table(head, lines, name)


def fact(key: str, value: Any) -> str:
    """A value in the unit its key ends with: `duration_s` 200 -> 3 min 20 s."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("_s") and not key.endswith("_per_s"):
        return formats.duration(value)
    if key.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    return parts.number(value)


def _title(key: str) -> str:
    rate = key.endswith("_per_s")
    words = (key if rate else key.removesuffix("_s").removesuffix("_bytes")).replace("_", " ")
    return escape(words[:1].upper() + words[1:])
