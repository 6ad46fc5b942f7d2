"""Evaluation records as table rows: one row per case, the mean over seeds.

A *record* is what `evaluate` writes (results.json): fractions in `cmc` and `map`, 95 % bootstrap
intervals over queries in `confidence`, with `case`, `method` and `seed` added by `study`, and the
models of both sides as `query_model`, `gallery_model` and the transformed `side`. Where these are
missing, a case's name says it, written query/gallery: `old/old`, `new/T(old) fct` (the gallery was
transformed) or `new/old (untransformed)`; words behind the two sides are a note.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.common.errors import InputError
from fct_tf.report.tables import IN_BRACKETS, Table

Row = dict[str, Any]

_SIDES = re.compile(
    r"\s*(?:T\w*\((?P<mapped_query>[^()]+)\)|(?P<query>[^/()\s]+))"
    r"\s*/\s*(?:T\w*\((?P<mapped_gallery>[^()]+)\)|(?P<gallery>[^/()\s]+))(?:\s|$)"
)


@dataclasses.dataclass(frozen=True)
class Sides:
    """The two models of a case: `new/T(old) fct` has query `new` and gallery `old`."""

    query: str
    gallery: str
    transformed: bool  # one of the sides went through a transformation


def sides(case: str) -> Sides | None:
    """The models that a case name speaks of; None when it is not written query/gallery."""
    match = _SIDES.match(case)
    if not match:
        return None
    mapped = match["mapped_query"] or match["mapped_gallery"]
    return Sides(
        match["mapped_query"] or match["query"],
        match["mapped_gallery"] or match["gallery"],
        bool(mapped),
    )


def sides_of(record: Mapping[str, Any]) -> Sides | None:
    """The models of a record; None where nothing tells them."""
    if record.get("query_model") and record.get("gallery_model"):
        return Sides(record["query_model"], record["gallery_model"], bool(record.get("side")))
    return sides(_case(record))


def rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per case, in the order of first appearance.

    A case that several methods (or kinds of search) share is split and its name extended.

    Args:
      records: results.json records; `map`, `confidence` and any k of `cmc` may be missing.

    Returns:
      Rows with `case`, `sides` (`Sides`, or None), `method`, `seeds` (list), `num_queries`,
      `num_gallery`, `sample` (the rows left out, by name, or None), `remaining` (whether it is
      the rows beside re-embedded ones alone), `pairs` (the share of the gallery that was
      re-embedded for it, or None) and `metrics`, which maps
      `top-1`, `top-5`, .., `mAP` to None (not measured) or to a dictionary of fractions:
      `mean`, `min`, `max`, `values` (seed -> value), `std` (sample standard deviation over seeds;
      None for one seed), `low` and `high` (95 % interval of a single seed, else None),
      `intervals` (seed -> (low, high)), `gain` (mean difference to the baseline case over the
      seeds both have, None for the baseline itself), `gain_std` and `paired` (seed -> interval
      of the difference, query by query, to the case of the gallery's own model, where known).

    Raises:
      InputError: a case has two records with one seed.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (_case(record), str(record.get("method") or ""), _search(record))
        groups.setdefault(key, []).append(record)
    names = [f"top-{k}" for k in _ks(records)] + ["mAP"]
    case_rows: list[Row] = [
        {
            "case": _extended(key, list(groups)),
            "sides": sides_of(group[0]),
            "method": key[1],
            "seeds": _seeds(key[0], group),
            "num_queries": group[0].get("num_queries"),
            "num_gallery": group[0].get("num_gallery"),
            "sample": group[0].get("sample"),
            "remaining": group[0].get("scoring") == "remaining",
            "pairs": group[0].get("pairs"),
            "metrics": {name: _statistics(name, group) for name in names},
        }
        for key, group in groups.items()
    ]
    base = baseline(case_rows)
    for row in case_rows:
        for name, values in row["metrics"].items():
            if values:
                own = base if base is None or same_rows(row, base) else _like(case_rows, base, row)
                differences = paired(row, own, name) if own is not None and own is not row else []
                values["gain"] = statistics.fmean(differences) if differences else None
                values["gain_std"] = _std(differences)
    return case_rows


def _like(made: Sequence[Row], base: Row, row: Row) -> Row | None:
    """The baseline over the queries and rows of `row`."""
    pair = base["sides"]
    return find(made, pair.gallery, row) if pair else None


def is_upgrade(row: Row) -> bool:
    """Whether a row compares two models' embeddings that were made to fit each other."""
    pair = row["sides"]
    if pair is None or pair.query == pair.gallery:
        return False
    return pair.transformed or row["method"] not in ("", "independent")


def find(made: Sequence[Row], model: str, like: Row | None = None) -> Row | None:
    """The row `model/model`, over the same queries and gallery rows as `like` if that is given."""
    for row in made:
        pair = row["sides"]
        if pair is None or pair.transformed or (pair.query, pair.gallery) != (model, model):
            continue
        if like is None or same_rows(row, like):
            return row
    return None


def baseline(made: Sequence[Row]) -> Row | None:
    """The row before the upgrade, which gains are measured from: `old/old`."""
    for row in made:
        pair = row["sides"]
        if is_upgrade(row) and pair:
            # With the transformation on the query side the gallery is old all the same.
            base = find(made, pair.gallery)
            if base:
                return base
    return find(made, "old")


def ceiling(made: Sequence[Row]) -> Row | None:
    """The row that an upgrade can hope for, with everything embedded anew: `new/new`."""
    for row in made:
        pair = row["sides"]
        if is_upgrade(row) and pair:
            top = find(made, pair.query)
            if top:
                return top
    return find(made, "new")


def has_gains(made: Sequence[Row]) -> bool:
    """Whether any row could be compared with the baseline."""
    return any(m and m["gain"] is not None for row in made for m in row["metrics"].values())


def same_rows(a: Row, b: Row) -> bool:
    """Whether two rows were measured on the same queries and gallery rows, as far as is known."""
    return a.get("sample") == b.get("sample") and all(
        a[key] is None or b[key] is None or a[key] == b[key]
        for key in ("num_queries", "num_gallery")
    )


def paired(row: Row, other: Row, metric: str) -> list[float]:
    """Differences of a metric between two rows, one per seed that both have."""
    a, b = row["metrics"].get(metric), other["metrics"].get(metric)
    if not a or not b:
        return []
    shared = [seed for seed in a["values"] if seed in b["values"]]
    if not shared and len(a["values"]) == len(b["values"]) == 1:
        return [a["mean"] - b["mean"]]
    return [a["values"][seed] - b["values"][seed] for seed in shared]


def shown(made: Sequence[Row], ks: Sequence[int] = (1, 5)) -> list[str]:
    """The metrics that tables show: top-1, top-5 (else the first two there are) and mAP."""
    measured = metric_names(made)
    cmc = [name for name in measured if name != "mAP"]
    chosen = [name for name in cmc if name in {f"top-{k}" for k in ks}] or cmc[:2]
    return chosen + (["mAP"] if "mAP" in measured else [])


def metric_names(made: Sequence[Row]) -> list[str]:
    """Every metric that at least one row has, by k, mAP last."""
    names = list(made[0]["metrics"]) if made else []
    return [name for name in names if any(row["metrics"][name] for row in made)]


def text(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a table for the console: percent, interval or deviation, gain."""
    case_rows = rows(records)
    if not case_rows:
        return "no results"
    return _table(case_rows).text()


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a Markdown table, numbers aligned right."""
    case_rows = rows(records)
    if not case_rows:
        return "no results"
    return _table(case_rows).markdown()


def legend(made: Sequence[Row], gains: bool = True) -> str:
    """One sentence on what stands behind the numbers of a table, with `gains` or without."""
    counts = sorted({len(row["seeds"]) for row in made if len(row["seeds"]) > 1})
    parts = []
    if any(metric and metric["low"] is not None for r in made for metric in r["metrics"].values()):
        parts.append(f"{IN_BRACKETS}: 95 % bootstrap interval over queries")
    if counts:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"±: standard deviation over {number} seeds")
    base = baseline(made)
    if gains and base and has_gains(made):
        parts.append(f"gain: percentage points over {_base_name(made, base)}")
    return "Percent" + "".join(f"; {part}" for part in parts) + "."


def spread(values: Mapping[str, Any], dash: str = "–") -> str:
    """The interval of one seed or the deviation over several, in percent; may be empty."""
    if values["std"] is not None:
        return f"± {formats.percent(values['std'])}"
    if values["low"] is not None:
        return f"[{formats.percent(values['low'])}{dash}{formats.percent(values['high'])}]"
    return ""


def _base_name(made: Sequence[Row], base: Row) -> str:
    """What gains are measured from, which may be a case of its own for some of the rows."""
    if base["remaining"] and any(not same_rows(row, base) for row in made):
        return f"{base['sides'].query}/{base['sides'].gallery} of the same rows"
    return base["case"]


def _table(made: list[Row]) -> Table:
    base, names = baseline(made) if has_gains(made) else None, shown(made)
    header = ["case", *names]
    if base:
        header.append(f"gain over {_base_name(made, base)} ({', '.join(names)})")
    lines = []
    for row in made:
        metrics = [row["metrics"][name] for name in names]
        line = [row["case"]]
        for values in metrics:
            cell = f"{formats.percent(values['mean'])} {spread(values)}" if values else ""
            line.append(cell.strip() or "n/a")
        if base:
            gains = [None if values is None else values["gain"] for values in metrics]
            cell = " / ".join("n/a" if gain is None else formats.signed(gain) for gain in gains)
            line.append("" if all(gain is None for gain in gains) else cell)
        lines.append(line)
    return Table(header, lines, legend(made))


def _case(record: Mapping[str, Any]) -> str:
    if record.get("case"):
        return str(record["case"])
    models = [(record.get(side) or {}).get("model") or side for side in ("query", "gallery")]
    return "/".join(map(str, models))


def _search(record: Mapping[str, Any]) -> str:
    """The kind of search with its parameters, without what was measured of it."""
    search = record.get("search") or ""
    if not isinstance(search, Mapping):
        return str(search)
    parameters = [
        f"{key} {value}"
        for key, value in search.items()
        if key not in ("name", "recall", "recall_queries", "index")
    ]
    return ", ".join([str(search.get("name") or ""), *parameters])


def _extended(key: tuple[str, str, str], keys: list[tuple[str, str, str]]) -> str:
    case, method, search = key
    alike = [other for other in keys if other[0] == case]
    if len({other[1] for other in alike}) > 1:
        case = f"{case} {method}".rstrip()
    if len([other for other in alike if other[1] == method]) > 1:
        case = f"{case} ({search})"
    return case


def _seeds(case: str, group: list[Mapping[str, Any]]) -> list[Any]:
    seeds = [record.get("seed") or 0 for record in group]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise InputError(f"case {case!r}: two records of seed {seed}; remove one of them")
    return seeds


def _ks(records: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({int(k) for record in records for k in record.get("cmc") or {}})


def _statistics(name: str, group: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    values, intervals = {}, {}
    for record in group:
        value, interval = _value(name, record)
        if value is not None:
            values[record.get("seed") or 0] = value
            if interval is not None:
                intervals[record.get("seed") or 0] = interval
    if not values:
        return None
    numbers = list(values.values())
    single = next(iter(intervals.values()), None) if len(numbers) == 1 else None
    return {
        "mean": statistics.fmean(numbers),
        "min": min(numbers),
        "max": max(numbers),
        "values": values,
        "std": _std(numbers),
        "low": single[0] if single else None,
        "high": single[1] if single else None,
        "intervals": intervals,
        "paired": _paired_intervals(name, group),
        "gain": None,
        "gain_std": None,
    }


def _paired_intervals(name: str, group: list[Mapping[str, Any]]) -> dict[Any, tuple[float, float]]:
    key = "map" if name == "mAP" else name.replace("top-", "cmc@")
    intervals = {}
    for record in group:
        interval = (record.get("criterion") or {}).get(key) or {}
        if interval.get("low") is not None:
            intervals[record.get("seed") or 0] = (interval["low"], interval["high"])
    return intervals


def _value(name: str, record: Mapping[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
    confidence = record.get("confidence") or {}
    if name == "mAP":
        value, interval = record.get("map"), confidence.get("map")
    else:
        k = name.removeprefix("top-")
        value = (record.get("cmc") or {}).get(k)
        interval = (confidence.get("cmc") or {}).get(k)
    if value is None or not math.isfinite(value):
        return None, None
    if not interval or any(bound is None or not math.isfinite(bound) for bound in interval):
        return float(value), None
    return float(value), (float(interval[0]), float(interval[1]))


def _std(numbers: Sequence[float]) -> float | None:
    return statistics.stdev(numbers) if len(numbers) > 1 else None
