"""The record of the command verdict in words: one line, and a table of all its numbers.

The words are those of `report.verdict`, which judges the cases of a study by their own intervals;
here the same queries went through all cases, and the differences have intervals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.common.formats import percent, signed
from fct_tf.upgrade import slices

OLD, UPGRADED, NEW = "old/old", "new/T(old)", "new/new"
FUSED = "old+new/old+T(old)"
# Verdict, and how the sentence starts.
PHRASES = {
    "compatible": "{} beats {} by",
    "not compatible": "{} is worse than {},",
    "undecided": "{} is neither clearly better nor worse than {},",
}
MIXED = "{} beats {} by one metric and is worse by another,"
# The overlaps that the sentence tells, where they were measured.
SHOWN_OVERLAPS = ("overlap@1", "overlap@10")
# Slices that the table shows.
SHOWN_SLICES = 10


def case_of(kind: str) -> str:
    """How the case of an upgraded column of this kind is called."""
    return FUSED if kind == "fused" else UPGRADED


def conclude(record: Mapping[str, Any]) -> tuple[str, str]:
    """(verdict, sentence) of a record of `verdict.judge` that has neither yet."""
    labels, agreement, case = record["labels"], record["agreement"], record["case"]
    rows = f"{record['num_rows']} rows of {record['num_gallery']}"
    if labels is None:
        measured = list(agreement["chance"])
        names = [name for name in SHOWN_OVERLAPS if name in measured] or measured[:1]
        upgraded = " and ".join(
            f"{_percent(agreement[case][name])} of top-{name.partition('@')[2]}" for name in names
        )
        alone = " and ".join(_percent(agreement[OLD][name]) for name in names)
        numbers = (
            f"without labels: ranking agrees with the new model's for {upgraded}, leaving the "
            f"gallery alone {alone}; agreement is no measure of accuracy"
            f"{_carried(record['thresholds'])} ({rows})"
        )
        return "without labels", numbers
    differences = labels["difference"]
    verdict = slices.verdict(differences)
    clear = verdict == "undecided" and any(slices.clear(value) for value in differences.values())
    phrase = (MIXED if clear else PHRASES[verdict]).format(case, OLD)
    clauses = [_differences(differences) + _gap(labels["gap_share"]), _flips(labels)]
    if record["slices"]:
        clauses.append(_slices(record["slices"]))
    if record["against"]:
        against = record["against"]
        clauses.append(f"to {against['case']} {_differences(against['difference'])}")
        clauses.append(_flips(against))
    queries = labels["num_queries"] - labels["num_queries_without_match"]
    numbers = "; ".join(clauses) + _carried(record["thresholds"])
    return verdict, f"{verdict}: {phrase} {numbers} ({queries} queries, {rows})"


def _differences(differences: Mapping[str, Any]) -> str:
    return ", ".join(
        _points(value, f" points {_title(name)}" if at == 0 else f" {_title(name)}")
        for at, (name, value) in enumerate(differences.items())
    )


def _flips(found: Mapping[str, Any]) -> str:
    negative, positive = (_percent(found[f"{name}_flips"]) for name in ("negative", "positive"))
    return f"negative flips {negative}, positive {positive}"


def _slices(found: Mapping[str, Any]) -> str:
    clause = f"of {found['num_slices']} slices by {found['column']} "
    lost = slices.losing(found)
    if lost:
        worst = lost[0]
        metrics = worst["difference"].items()
        name, value = next((name, value) for name, value in metrics if value["high"] < 0)
        clause += (
            f"{len(lost)} clearly {'loses' if len(lost) == 1 else 'lose'}, most "
            f"{_group(worst['group'])}: {_points(value, f' points {_title(name)}')}, negative "
            f"flips {_percent(worst['negative_flips'])}, {worst['num_queries']} queries"
        )
    else:
        clause += "none clearly loses"
    if found["num_too_small"]:
        clause += f"; {found['num_too_small']} too small (under {found['min_queries']} queries)"
    return clause


def _group(value: str | None) -> str:
    return "(none)" if value is None else value


def _carried(thresholds: Sequence[Mapping[str, Any]]) -> str:
    clauses = ""
    for one in thresholds:
        clauses += f"; threshold {one['old']:g} becomes {_distance(one['upgraded'])}"
        if one["tar_old"]:
            rates = [f"{percent(one[name]['mean'])} %" for name in ("tar_old", "tar_upgraded")]
            clauses += f", TAR at FAR {one['far']['mean']:.3g} {' -> '.join(rates)}"
    return clauses


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
    labels, case = record["labels"], record.get("case", UPGRADED)
    parts = []
    if labels:
        parts += _table(labels, (OLD, case, NEW, "difference", "gap_share"))
        if "negative_flips" in labels:  # Records of earlier versions have none.
            parts += _flips_table(record, case)
    if record.get("slices"):
        parts += _slices_table(record["slices"])
    for one in record.get("thresholds", ()):
        parts += _threshold_table(one, case)
    parts += _table(record["agreement"], (OLD, case, "difference"), f" with {NEW}")
    near = "rows to queries" if case == FUSED else "T(old) to new"
    parts += _table({near: record["closeness"]}, (near,))
    parts.append(
        f"Percent; in brackets: 95 % bootstrap interval over queries; difference: {case} - {OLD}, "
        "points."
    )
    return "\n".join(parts)


def _flips_table(record: Mapping[str, Any], case: str) -> list[str]:
    """Queries right before and wrong after, and the other way round."""
    sides = [(f"{OLD} to {case}", record["labels"])]
    against = record.get("against")
    if against:
        sides.append((f"{against['case']} to {case}", against))
    columns = [_title(name) for name in record["labels"]["difference"]] if against else []
    lines = [["", *columns, "negative flips", "positive flips"]]
    for title, comparison in sides:
        points = [_points(value) for value in comparison["difference"].values()] if against else []
        shares = [_interval(comparison[f"{name}_flips"]) for name in ("negative", "positive")]
        lines.append([title, *points, *shares])
    return _aligned(lines)


def _slices_table(found: Mapping[str, Any]) -> list[str]:
    """The slices that lose most; differences in points."""
    judged = [one for one in found["slices"] if one["verdict"] != "too small"]
    names = list(found["slices"][0]["difference"]) if found["slices"] else []
    lines = [[found["column"], "queries", *map(_title, names), "negative flips", "verdict"]]
    for one in judged[:SHOWN_SLICES]:
        points = [_points(one["difference"][name]) for name in names]
        flips = _interval(one["negative_flips"])
        lines.append(
            [_group(one["group"]), str(one["num_queries"]), *points, flips, one["verdict"]]
        )
    more = len(judged) - SHOWN_SLICES
    note = f"Differences in points, the worst first{f'; {more} more' if more > 0 else ''}"
    if found["num_too_small"]:
        note += f"; {found['num_too_small']} too small (under {found['min_queries']} queries)"
    note += ". Where nothing changes, one slice of 40 seems to lose by each metric, by chance."
    return [*_aligned(lines)[:-1], note, ""]


def _threshold_table(one: Mapping[str, Any], case: str) -> list[str]:
    """What an old threshold is in each space, and what it lets pass."""
    pairs = "pairs of different labels" if one["by"] == "labels" else "all pairs"
    lines = [[f"threshold {one['old']:g}", "distance", "TAR"]]
    for role, name in (("old", OLD), ("upgraded", case), ("new", NEW)):
        value = f"{one['old']:g}" if role == "old" else _distance(one[role])
        tar = one[f"tar_{role}"]
        measure = {"l2": "squared L2", "cosine": "1 - cos"}[one["distance"][role]]
        lines.append([f"{name}, {measure}", value, _interval(tar) if tar else "-"])
    if one["tar_difference"]:
        lines.append(["difference", "", _points(one["tar_difference"])])
    far = one["far"]
    note = (
        f"FAR {far['mean']:.3g} [{far['low']:.3g}, {far['high']:.3g}]: {one['num_false_accepts']} "
        f"of {one['num_pairs']} {pairs}, each met from both ends."
    )
    return [*_aligned(lines)[:-1], note, ""]


def _table(estimates: Mapping[str, Any], lines: tuple[str, ...], note: str = "") -> list[str]:
    names = list(estimates[lines[0]])
    rows = [["", *(_title(name) for name in names)]]
    for line in lines:
        text = _points if line == "difference" else _interval
        values = (estimates[line][name] for name in names)
        cells = [text(value) if value else "-" for value in values]
        rows.append([line.replace("_", " ") + (note if "/" in line else ""), *cells])
    return _aligned(rows)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns of one width, the first aligned left; an empty line behind."""
    return [*formats.console(lines[0], lines[1:], rule=False).splitlines(), ""]


def _title(name: str) -> str:
    """`cmc@1` is shown as top-1, `map` as mAP, as in all reports."""
    return {"map": "mAP"}.get(name, name.replace("cmc@", "top-").replace("_", " "))


def _interval(value: Mapping[str, float]) -> str:
    return f"{percent(value['mean'])} [{percent(value['low'])}, {percent(value['high'])}]"


def _percent(value: Mapping[str, float]) -> str:
    return f"{percent(value['mean'])} % [{percent(value['low'])}, {percent(value['high'])}]"


def _points(value: Mapping[str, float], what: str = "") -> str:
    return f"{signed(value['mean'])}{what} [{signed(value['low'])}, {signed(value['high'])}]"


def _distance(value: Mapping[str, float]) -> str:
    return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
