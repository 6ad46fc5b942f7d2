"""The HTML page of a study: one directory that opens in any browser, without network or script.

Every text that comes from outside (labels, names, settings) is escaped.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.report import (
    ann_across,
    backfilling_plots,
    calibration,
    chain_tables,
    identities_page,
    methods_page,
    parts,
    pictures,
    plots,
    table,
    verdict,
)
from fct_tf.report import backfilling as curves_of_policies
from fct_tf.report import curves as training_curves
from fct_tf.report.css import STYLE

_GENERATOR = '<meta name="generator" content="fct_tf report">'


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A model that was trained. `metrics` is its `metrics.jsonl`; `facts` become columns.

    Keys of `facts` name their unit: `parameters`, `images`, `duration_s`, `size_bytes`.
    """

    name: str
    seed: int
    metrics: Path
    facts: Mapping[str, str | int | float | None]


def write(
    directory: str | os.PathLike,
    *,
    title: str,
    records: Sequence[Mapping[str, Any]],
    runs: Sequence[TrainingRun] = (),
    examples: Sequence[pictures.Example] = (),
    chains: Mapping[str, Any] | None = None,
    backfilling: Sequence[Mapping[str, Any]] = (),
    across: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Writes a report; a reader of `directory` sees the old one or the new one, never a part.

    Args:
      directory: to make; an earlier report there is replaced.
      title: heading of the page.
      records: as `table.rows` takes them.
      runs: models trained, in the order of the page; runs of one name share a figure.
      examples: queries with their neighbours.
      chains: the content of chains.json, see `fct_tf.experiments.chains.matrices`.
      backfilling: records of backfilling curves; without any the page has no section on them.
      across: records of approximate search through the change, likewise.
      config: the resolved experiment, as JSON.
      command: that repeats the study.
      versions: of libraries.

    Returns:
      The path of `index.html`.

    Raises:
      InputError: `directory` exists and is no report, or records contradict one another.
    """
    directory = Path(directory)
    _refuse_others(directory)
    made = table.rows(records)
    verdicts = verdict.of_study(made)
    with files.atomic_dir(directory, overwrite=True) as temporary:
        looks = plots.styles(made)
        sections = [
            parts.heading(title, records, made),
            parts.verdicts(verdicts),
            parts.results(made, looks),
            _figures(made, looks, temporary),
            methods_page.section(records, looks, temporary),
            identities_page.section(records, looks, temporary),
            chain_tables.section(chains or {}),
            _backfilling(curves_of_policies.rows(backfilling), temporary),
            ann_across.section(across, temporary),
            _training(runs, temporary),
            pictures.section(examples, temporary),
            parts.settings(config, command, versions),
        ]
        files.atomic_write_text(temporary / "index.html", _document(title, sections))
    return directory / "index.html"


def _refuse_others(directory: Path) -> None:
    if not os.path.lexists(directory):
        return
    index = directory / "index.html"
    if directory.is_dir():
        if not any(directory.iterdir()):
            return
        if index.is_file() and _GENERATOR in index.read_text("utf-8", errors="replace")[:2000]:
            return
    raise InputError(f"{directory}: exists and is no report of fct_tf; choose another directory")


def _document(title: str, sections: Sequence[str]) -> str:
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{_GENERATOR}\n<title>{parts.escape(title)}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _figures(made: list[table.Row], looks: Mapping[str, plots.Style], directory: Path) -> str:
    drawn, low = plots.split_low(made)
    names = table.shown(made)
    if not names:
        return ""
    for theme in plots.THEMES:
        plots.metrics(drawn, directory / f"metrics-{theme}.svg", theme, looks)
        plots.cmc(drawn, directory / f"cmc-{theme}.svg", theme, looks)
    bars = parts.error_bars(made)
    references = [row["case"] for row in (table.baseline(made), table.ceiling(made)) if row]
    caption = bars
    if len(made) > 1 and references:
        caption += f" Dashed: {' and '.join(references)}."
    if low:
        told = [f"{row['case']} ({parts.mean(row, names[0])} % {names[0]})" for row in low]
        caption += f" Not drawn, far below: {', '.join(told)}."
    figures = parts.figure("metrics", f"Dot plot of {', '.join(names)} by case", caption)
    if any(name != "mAP" for name in names):
        caption = "Share of queries that find a row of their own label among the k nearest. "
        figures += parts.figure("cmc", "CMC curves by case", caption + bars)
    return f'<div class="figures after">\n{figures}</div>'


def _backfilling(made: Sequence[curves_of_policies.Row], directory: Path) -> str:
    figures = ""
    for index, method in enumerate(dict.fromkeys(row.method for row in made)):
        of_method = [row for row in made if row.method == method]
        for theme in plots.THEMES:
            path = directory / f"backfilling-{index}-{theme}.svg"
            backfilling_plots.curves(of_method, path, theme)
        told = "Left: the metric; right: share of the gap to new/new. Bands: standard deviation."
        alternative = f"Backfilling curves of {method} by policy"
        figures += parts.figure(f"backfilling-{index}", alternative, told, method)
    measured = curves_of_policies.calibrations(made)
    if measured:
        for theme in plots.THEMES:
            calibration.plot(measured, directory / f"calibration-{theme}.svg", theme)
        told = "Each point is a tenth of the transformed rows, by predicted variance."
        alternative = "Predicted variance against squared error"
        figures += parts.figure("calibration", alternative, told, "Calibration")
    return curves_of_policies.html(made, f'<div class="figures">\n{figures}</div>')


def _training(runs: Sequence[TrainingRun], directory: Path) -> str:
    if not runs:
        return ""
    figures, rows = [], []
    for index, name in enumerate(dict.fromkeys(run.name for run in runs)):
        curves = []
        for run in (run for run in runs if run.name == name):
            curve = training_curves.read_curve(run.metrics, f"seed {run.seed}")
            final = {"final_loss": curve.loss[-1]} if curve else {}
            rows.append((run.name, run.seed, {**run.facts, **final}))
            if curve:
                curves.append(curve)
        if not curves:
            figures.append(parts.no_curve(name))
            continue
        for theme in plots.THEMES:
            training_curves.loss(curves, directory / f"loss-{index}-{theme}.svg", theme)
        figures.append(parts.loss_figure(f"loss-{index}", name, curves))
    grid = f'<div class="figures small">\n{"".join(figures)}</div>'
    return f"<h2>What was trained</h2>\n{parts.facts(rows)}\n<h2>Training loss</h2>\n{grid}"
