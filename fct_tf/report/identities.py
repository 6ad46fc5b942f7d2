"""Verification (1:1) and open-set search (1:N) of a study's cases, side by side.

The definitions of TAR at FAR and TPIR at FPIR are in `fct_tf.retrieval.verification` and
`fct_tf.retrieval.open_set`; the numbers are those under `identities` in a record.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.report import table
from fct_tf.report.tables import IN_BRACKETS, Table

Row = dict[str, Any]
Record = Mapping[str, Any]


def rows(records: Sequence[Record]) -> list[Row]:
    """One row per case over the whole gallery that has `identities`, by first appearance.

    Returns:
      Rows with `case`, `seeds` (list), `rates`, which maps `TAR@FAR 0.001` and the like to an
      estimate (`mean`, `std`, `low`, `high`, fractions), and `roc`, the false and true accept
      rates of the first seed, pairs of `[far, tar]`, empty where there is no verification.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.get("identities") and record.get("scoring") != "remaining":
            groups.setdefault(record["case"], []).append(record)
    case_rows = []
    for case, group in groups.items():
        by_seed = [_rates(record["identities"]) for record in group]
        shared = [name for name in by_seed[0] if all(name in rates for rates in by_seed)]
        pairs = group[0]["identities"].get("verification") or {"roc": []}
        case_rows.append(
            {
                "case": case,
                "seeds": [record.get("seed") or 0 for record in group],
                "rates": {name: _estimate([rates[name] for rates in by_seed]) for name in shared},
                "roc": pairs["roc"],
            }
        )
    return case_rows


def _rates(record: Mapping[str, Any]) -> dict[str, dict]:
    estimates = {}
    for part, hits, alarms in (("verification", "tar", "far"), ("open_set", "tpir", "fpir")):
        for rate in (record.get(part) or {"rates": []})["rates"]:
            name = f"{hits.upper()}@{alarms.upper()} {rate[alarms]:g}"
            estimates[name] = {"mean": rate[hits], "low": rate["low"], "high": rate["high"]}
    return estimates


def _estimate(values: list[dict]) -> dict:
    if len(values) == 1:
        return {**values[0], "std": None}
    means = [value["mean"] for value in values]
    spread = {"std": statistics.stdev(means), "low": None, "high": None}
    return {"mean": statistics.fmean(means), **spread}


def text(records: Sequence[Record]) -> str:
    """The rows as a table for the console; empty where there are none."""
    rates_table = as_table(records)
    return rates_table.text() if rates_table else ""


def markdown(records: Sequence[Record]) -> str:
    """The rows as a Markdown table; empty where there are none."""
    rates_table = as_table(records)
    return rates_table.markdown() if rates_table else ""


def as_table(records: Sequence[Record]) -> Table | None:
    """The rows as a table; None where there are none."""
    case_rows = rows(records)
    if not case_rows:
        return None
    names = list(dict.fromkeys(name for row in case_rows for name in row["rates"]))
    lines = []
    for row in case_rows:
        line = [row["case"]]
        for name in names:
            rate = row["rates"].get(name)
            spread = table.spread(rate) if rate else ""
            line.append(f"{formats.percent(rate['mean'])} {spread}".strip() if rate else "n/a")
        lines.append(line)
    return Table(["case", *names], lines, _legend(case_rows))


def _legend(made: Sequence[Row]) -> str:
    """What stands in the table."""
    parts, seeds = ["Percent"], max(len(row["seeds"]) for row in made)
    rates = [rate for row in made for rate in row["rates"].values()]
    if seeds > 1:
        parts.append(f"±: standard deviation over {seeds} seeds")
    elif any(rate["low"] is not None for rate in rates):
        parts.append(f"{IN_BRACKETS}: 95 % bootstrap interval over identities")
    parts.append("TAR: same-label pairs that pass where so many different-label pairs do")
    parts.append("TPIR: queries whose mate is found first where so many strangers raise an alarm")
    return "; ".join(parts) + "."
