"""The HTML page of a study: one directory that opens in any browser, without network or script.

Every text that comes from outside (labels, names, settings) is escaped.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.report import (
    ann_across,
    backfilling_page,
    chain_tables,
    gain_chart,
    identities_page,
    methods,
    parts,
    pictures,
    plots,
    results_page,
    table,
    training_page,
    verdict,
    verdict_page,
)
from fct_tf.report.css import STYLE
from fct_tf.report.training_page import TrainingRun

_GENERATOR = '<meta name="generator" content="fct_tf report">'


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
    rows = table.rows(records)
    compared = {row["case"]: row for row in methods.rows(records)}
    verdicts = verdict.by_gain([row for row in rows if not row["remaining"]])
    with files.atomic_dir(directory, overwrite=True) as temporary:
        sections = [
            parts.heading(title, records, rows),
            verdict_page.section(verdicts, compared),
            gain_chart.section(verdicts, rows),
            results_page.section(rows, verdicts, compared),
            pictures.section(examples, temporary),
            _cmc(rows, temporary),
            backfilling_page.section(backfilling, temporary),
            identities_page.section(records, temporary),
            chain_tables.section(chains or {}),
            ann_across.section(across, temporary),
            training_page.section(runs, list(compared.values()), temporary),
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
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#results">Skip to the table of results</a>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _cmc(made: Sequence[table.Row], directory: Path) -> str:
    """The curves of the cases that the change is about; empty without ranks."""
    if not any(name != "mAP" for name in table.metric_names(made)):
        return ""
    drawn = plots.drawn_cases(made)
    for theme in plots.THEMES:
        plots.cmc(drawn, directory / f"cmc-{theme}.svg", theme)
    caption = "Share of queries that find a row of their own label among the k nearest. "
    names = ", ".join(row["case"] for row in drawn)
    figure = parts.figure("cmc", f"CMC curves of {names}", caption + plots.bands(drawn))
    return (
        '<section id="ranks"><h2>Beyond the first rank</h2>\n'
        f'<div class="figures">\n{figure}</div></section>'
    )
