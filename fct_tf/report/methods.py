"""The methods of a study side by side: what each reaches, loses, breaks and costs.

A row is an upgraded case over the whole gallery, such as `new/T(old) fct` or `bct/old`. Its
numbers are those that `fct_tf.experiments.comparison` and `fct_tf.experiments.costs` have added to
the records; records without them make no row.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.report import table
from fct_tf.report.tables import IN_BRACKETS, Table

Row = dict[str, Any]
Record = Mapping[str, Any]

# A model that was trained freely has lost nothing, by definition.
_NOTHING = {"mean": 0.0, "std": None, "low": None, "high": None}


def rows(records: Sequence[Record]) -> list[Row]:
    """One row per upgraded case, in the order of first appearance.

    Args:
      records: of results.json.

    Returns:
      Rows with `case`, `seeds` (list), `upgraded` and `new` (metrics of the upgraded case and of
      the new model on its own gallery, as `table.rows` has them), `lost` and `gain` (metric ->
      estimate or None), `negative_flips` and `positive_flips` (estimates) and `cost` (means over
      the seeds, None what one of them does not know). An estimate is a dictionary of fractions:
      `mean`, `std` (over seeds; None for one), `low` and `high` (95 % interval of a single seed,
      else None).
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if "criterion" in record and record.get("scoring") != "remaining":
            groups.setdefault(record["case"], []).append(record)
    return [_row(case, group, records) for case, group in groups.items()]


def _row(case: str, group: list[Record], records: Sequence[Record]) -> Row:
    pair = table.sides_of(group[0])
    assert pair is not None  # Nothing else is called an upgrade.
    itself = table.Sides(pair.query, pair.query, False)
    own = [
        record
        for record in records
        if table.sides_of(record) == itself and record.get("scoring") != "remaining"
    ]
    upgraded = table.rows(group)[0]["metrics"]
    free = all(record.get("free_model") == pair.query for record in group)
    return {
        "case": case,
        "seeds": [record.get("seed") or 0 for record in group],
        "upgraded": upgraded,
        "new": table.rows(own)[0]["metrics"] if own else {},
        "lost": {
            name: _NOTHING if free else _estimate(own, _reader("new_lost", name))
            for name in upgraded
        },
        "gain": {name: _estimate(group, _reader("update_gain", name)) for name in upgraded},
        "negative_flips": _estimate(group, lambda record: record.get("negative_flips")),
        "positive_flips": _estimate(group, lambda record: record.get("positive_flips")),
        "cost": _cost(group),
    }


def _reader(key: str, metric: str) -> Callable[[Record], Mapping | None]:
    name = "map" if metric == "mAP" else metric.replace("top-", "cmc@")
    return lambda record: (record.get(key) or {}).get(name)


def _estimate(group: Sequence[Record], read: Callable[[Record], Mapping | None]) -> dict | None:
    """Of one record, or over the records of several seeds; None unless all have it."""
    values = [read(record) for record in group]
    estimates = [value for value in values if value is not None]
    if not estimates or len(estimates) < len(values):
        return None
    if len(estimates) == 1:
        return {**estimates[0], "std": None}
    means = [value["mean"] for value in estimates]
    spread = {"std": statistics.stdev(means), "low": None, "high": None}
    return {"mean": statistics.fmean(means), **spread}


def _cost(group: Sequence[Record]) -> dict[str, float | None]:
    costs = [record.get("cost") or {} for record in group]
    means: dict[str, float | None] = {}
    for key in dict.fromkeys(key for cost in costs for key in cost):
        values = [cost.get(key) for cost in costs]
        means[key] = (
            None if None in values else statistics.fmean(v for v in values if v is not None)
        )
    return means


def text(records: Sequence[Record]) -> str:
    """The rows as two tables for the console, gains and costs; empty where there are none."""
    return "\n\n".join(drawn_table.text() for drawn_table in as_tables(records))


def markdown(records: Sequence[Record]) -> str:
    """The rows as two Markdown tables, gains and costs; empty where there are none."""
    return "\n\n".join(drawn_table.markdown() for drawn_table in as_tables(records))


def as_tables(records: Sequence[Record]) -> list[Table]:
    """What each row gains and breaks, and what it costs; those of the two that are known."""
    method_rows = rows(records)
    tables = [gains(method_rows, records), costs(method_rows)] if method_rows else []
    return [one for one in tables if one]


def gains(made: Sequence[Row], records: Sequence[Record]) -> Table:
    """What each row reaches, gains and breaks, as a table.

    Args:
      made: `rows` of the records.
      records: of results.json.
    """
    names = measured(made)
    header = ["method", *names, *(f"update gain {name}" for name in _few(names)), "negative flips"]
    lines = [
        [
            row["case"],
            *(_told(row["upgraded"][name]) for name in names),
            # Gains may be below zero, where a dash would be a second minus.
            *(_told(row["gain"][name], " to ") for name in _few(names)),
            _told(row["negative_flips"]),
        ]
        for row in made
    ]
    return Table(header, lines, _legend(made, records))


def _told(values: Mapping[str, Any] | None, dash: str = "–") -> str:
    if values is None:
        return "n/a"
    return f"{formats.percent(values['mean'])} {table.spread(values, dash)}".strip()


def measured(made: Sequence[Row]) -> list[str]:
    """The metrics that the table shows: top-1, top-5 (else the first two there are) and mAP."""
    names = [name for name in made[0]["upgraded"] if any(row["upgraded"][name] for row in made)]
    cmc = [name for name in names if name != "mAP"]
    shown = [name for name in cmc if name in ("top-1", "top-5")] or cmc[:2]
    return shown + (["mAP"] if "mAP" in names else [])


def _few(names: Sequence[str]) -> list[str]:
    """Ranks beyond the first tell little more of what is lost and gained."""
    return [name for name in names if name in (names[0], "mAP")]


def costs(made: Sequence[Row]) -> Table | None:
    """What each row costs, as a table; None where nothing is known of it."""
    made = [row for row in made if row["cost"] or any(row["lost"].values())]
    if not made:
        return None
    header = ["method", "training", "bytes a row", "a million rows"]
    lines = [[row["case"], *_told_costs(row["cost"])] for row in made]
    for name in _few(measured(made)):
        if any(row["lost"][name] for row in made):
            header.append(f"lost in {name}")
            for line, row in zip(lines, made, strict=True):
                line.append(_told(row["lost"][name], " to "))
    return Table(header, lines, f"Percent; {'; '.join(_cost_legend(made))}.")


def million_rows(cost: Mapping[str, float | None]) -> str:
    """The time for a million rows, re-embedded ones included; `nothing`, or `n/a` if unknown."""
    work = [cost.get("upgrade_million_rows_s"), cost.get("reembed_million_rows_s")]
    durations = [value for value in work if value is not None]
    over = _seconds(sum(durations)) if len(durations) == len(work) else "n/a"
    return "nothing" if over == "0.0 s" else over


def _told_costs(cost: Mapping[str, float | None]) -> list[str]:
    """Training, bytes a row and the work over a million rows."""
    training = [cost.get(key) for key in ("model_s", "side_info_s", "transformation_s")]
    # What is not needed is left out; what is not known is not.
    parts = [_seconds(value) for value in training if value != 0]
    row, upgrading = cost.get("bytes_per_row"), cost.get("bytes_per_row_upgrading")
    stored = "n/a" if row is None else f"{row:,.0f}"
    if upgrading is not None and upgrading != row:
        stored += f" ({upgrading:,.0f})"
    over = million_rows(cost)
    if queries := cost.get("map_million_queries_s"):
        over += f" ({_seconds(queries)} for queries)"
    return [" + ".join(parts), stored, over]


def _seconds(value: float | None) -> str:
    return "n/a" if value is None else formats.duration(value)


def _legend(made: Sequence[Row], records: Sequence[Record]) -> str:
    """What stands in the table."""
    parts = ["Percent"]
    seeds = max(len(row["seeds"]) for row in made)
    if seeds > 1:
        parts.append(f"±: standard deviation over {seeds} seeds")
    elif any(row["negative_flips"] and row["negative_flips"]["low"] is not None for row in made):
        parts.append(f"{IN_BRACKETS}: 95 % bootstrap interval over queries")
    names = measured(made)
    old = table.baseline(table.rows(records))
    if old:
        values = " / ".join(
            formats.percent(old["metrics"][n]["mean"]) if old["metrics"][n] else "n/a"
            for n in names
        )
        parts.append(f"{old['case']} has {values} in {', '.join(names)}")
    parts += [
        "update gain: share of the gap from old/old to new/new of a model trained without "
        "compatibility",
        "negative flips: queries right before and wrong after",
    ]
    if any(row["cost"].get("query_encoders") == 2 for row in made):
        parts.append("old+new/old+T(old): each query is embedded by both models")
    return "; ".join(parts) + "."


def _cost_legend(made: Sequence[Row]) -> list[str]:
    return [
        "lost: points of new/new that the new model is below one trained without compatibility",
        "training: the new model + what the map needs beside it",
        "bytes a row: stored for good, in parentheses during the upgrade",
        "a million rows: their upgrade, re-embedded rows included",
    ]
