"""The record of the `verdict` door in words: one line, and a table of all its numbers.

The words are those of `report.verdict`, which judges the cases of a study by their own intervals;
here the same queries went through all cases, and the differences have intervals.
"""

from collections.abc import Mapping
from typing import Any

from fct_tf.common.formats import percent, signed

OLD, UPGRADED, NEW = "old/old", "new/T(old)", "new/new"
# (better by a metric, worse by a metric) -> verdict and how the sentence starts.
PHRASES = {
    (True, False): ("compatible", f"{UPGRADED} beats {OLD} by"),
    (False, True): ("not compatible", f"{UPGRADED} is worse than {OLD},"),
    (False, False): ("undecided", f"{UPGRADED} is neither clearly better nor worse than {OLD},"),
    (True, True): ("undecided", f"{UPGRADED} beats {OLD} by one metric and is worse by another,"),
}
# The overlaps that the sentence tells, where they were measured.
SHOWN_OVERLAPS = ("overlap@1", "overlap@10")


def conclude(record: Mapping[str, Any]) -> tuple[str, str]:
    """(verdict, sentence) of a record of `verdict.judge` that has neither yet."""
    labels, agreement = record["labels"], record["agreement"]
    rows = f"{record['num_rows']} rows of {record['num_gallery']}"
    if labels is None:
        measured = list(agreement["chance"])
        names = [name for name in SHOWN_OVERLAPS if name in measured] or measured[:1]
        upgraded = " and ".join(
            f"{_percent(agreement[UPGRADED][name])} of top-{name.partition('@')[2]}"
            for name in names
        )
        alone = " and ".join(_percent(agreement[OLD][name]) for name in names)
        told = (
            f"without labels: ranking agrees with the new model's for {upgraded}, leaving the "
            f"gallery alone {alone}; agreement is no measure of accuracy ({rows})"
        )
        return "without labels", told
    differences = labels["difference"]
    better = any(value["low"] > 0 for value in differences.values())
    worse = any(value["high"] < 0 for value in differences.values())
    verdict, phrase = PHRASES[better, worse]
    told = ", ".join(
        _points(value, f" points {_title(name)}" if at == 0 else f" {_title(name)}")
        for at, (name, value) in enumerate(differences.items())
    )
    queries = labels["num_queries"] - labels["num_queries_without_match"]
    told += _gap(labels["gap_share"])
    return verdict, f"{verdict}: {phrase} {told} ({queries} queries, {rows})"


def _gap(shares: Mapping[str, Any]) -> str:
    closed: list[str] = []
    for name, share in shares.items():
        if share:
            mean, low, high = (round(100 * share[key]) for key in ("mean", "low", "high"))
            of = "" if closed else " of the gap"
            closed.append(f"{mean} % [{low}, {high}]{of} in {_title(name)}")
    if not closed:
        return f"; {NEW} is not clearly better than {OLD}: no gap to close"
    negative = any(share and share["mean"] < 0 for share in shares.values())
    note = f" (negative: below {OLD})" if negative else ""
    return f"; closes {', '.join(closed)}{note}"


def details(record: Mapping[str, Any]) -> str:
    """All estimates of a record as a table for people, in percent; intervals in brackets."""
    parts = []
    if record["labels"]:
        parts += _table(record["labels"], (OLD, UPGRADED, NEW, "difference", "gap_share"))
    parts += _table(record["agreement"], (OLD, UPGRADED, "difference"), f" with {NEW}")
    parts += _table({"T(old) to new": record["closeness"]}, ("T(old) to new",))
    parts.append(
        f"Percent; in brackets: 95 % bootstrap interval over queries; difference: {UPGRADED} - "
        f"{OLD}, points."
    )
    return "\n".join(parts)


def _table(estimates: Mapping[str, Any], lines: tuple[str, ...], note: str = "") -> list[str]:
    names = list(estimates[lines[0]])
    made = [["", *(_title(name) for name in names)]]
    for line in lines:
        text = _points if line == "difference" else _interval
        values = (estimates[line][name] for name in names)
        cells = [text(value) if value else "-" for value in values]
        made.append([line.replace("_", " ") + (note if "/" in line else ""), *cells])
    widths = [max(map(len, column)) for column in zip(*made, strict=True)]
    padded = (
        [cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in row]
        for row in (enumerate(zip(line, widths, strict=True)) for line in made)
    )
    return ["  ".join(row).rstrip() for row in padded] + [""]


def _title(name: str) -> str:
    """`cmc@1` is shown as top-1, `map` as mAP, as in all reports."""
    return {"map": "mAP"}.get(name, name.replace("cmc@", "top-").replace("_", " "))


def _interval(value: Mapping[str, float]) -> str:
    return f"{percent(value['mean'])} [{percent(value['low'])}, {percent(value['high'])}]"


def _percent(value: Mapping[str, float]) -> str:
    return f"{percent(value['mean'])} % [{percent(value['low'])}, {percent(value['high'])}]"


def _points(value: Mapping[str, float], what: str = "") -> str:
    return f"{signed(value['mean'])}{what} [{signed(value['low'])}, {signed(value['high'])}]"
