"""Backfilling curves in words and tables: AUC per policy, and what a share of the rows buys.

A *record* is what the command `backfilling_curve` writes, with `case` added by `study`. Its gap
lies between the curve's ends, new/T(old) and new/new; of a fused search, between its gallery as it
was upgraded and one with both embeddings of every row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fct_tf.backfill import calibration as measured_calibration
from fct_tf.common.formats import percent
from fct_tf.report import calibration
from fct_tf.report.tables import Table

Records = Sequence[Mapping[str, Any]]
# Shares of the gap, and the metrics for which the sentence tells what they cost.
LEVELS = (0.5, 0.9)
TOLD = ("mAP", "top-1")
RANDOM = "random"
ORACLE = "distance"


@dataclasses.dataclass(frozen=True)
class Row:
    """The curves of one method by one policy.

    corrected: whether the rows that are not backfilled yet are corrected by those that are.
    curves: `top-1`, `top-5`, .., `mAP` -> float [n, 22], fractions: of each seed, the mean over
    its random orders, or of each random order where there is only one seed. over: what the n
    are, `seeds` or `random orders`. shares: float [22], of the rows. records: behind it.
    """

    method: str
    policy: str
    corrected: bool
    over: str
    shares: np.ndarray
    curves: Mapping[str, np.ndarray]
    records: Records = ()

    @property
    def name(self) -> str:
        """The policy as it is shown: of a file its name alone."""
        name = self.policy.replace("\\", "/").rpartition("/")[2].removeprefix("file:")
        return f"{name}, rest corrected" if self.corrected else name

    def auc(self, metric: str) -> tuple[float, float | None]:
        """Mean of the AUC, and its standard deviation where there are several curves."""
        areas = self.curves[metric].mean(axis=1)
        return float(areas.mean()), float(areas.std(ddof=1)) if len(areas) > 1 else None

    def areas(self, metric: str) -> dict[int, float]:
        """Seed -> AUC, fractions: the mean over its random orders."""
        seeds = dict.fromkeys(record["seed"] for record in self.records)
        areas = self.curves[metric].mean(axis=1)
        if self.over != "seeds":
            return {seed: float(areas.mean()) for seed in seeds}
        return dict(zip(seeds, areas.tolist(), strict=True))

    def recovered(self, metric: str) -> np.ndarray | None:
        """float [22]: share of the gap that the mean curve has recovered; None without a gap."""
        curve = self.curves[metric].mean(axis=0)
        gap = curve[-1] - curve[0]
        return (curve - curve[0]) / gap if gap > 0 else None


def rows(records: Records) -> list[Row]:
    """One row per method, policy and whether corrected, in the order of first appearance."""
    together: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (record["method"], record["policy"], record.get("corrected", False))
        together.setdefault(key, []).append(record)
    return [_row(*key, group) for key, group in together.items()]


def _row(method: str, policy: str, corrected: bool, group: list[Mapping[str, Any]]) -> Row:
    seeds = list(dict.fromkeys(record["seed"] for record in group))
    several = len(seeds) > 1
    curves = {}
    for key in group[0]["auc"]:
        values = [
            (record["seed"], [p["map"] if key == "map" else p["cmc"][key] for p in record["curve"]])
            for record in group
            if record["auc"].get(key) is not None
        ]
        if not values:
            continue
        each = np.array([curve for _, curve in values], np.float64)
        if several:
            of = np.array([seed for seed, _ in values])
            each = np.array([each[of == seed].mean(axis=0) for seed in dict.fromkeys(of)])
        curves["mAP" if key == "map" else f"top-{key}"] = each
    shares = np.array([point["share"] for point in group[0]["curve"]])
    over = "seeds" if several else "random orders" if len(group) > 1 else ""
    return Row(method, policy, corrected, over, shares, curves, group)


def metrics(made: Sequence[Row]) -> list[str]:
    """The metrics that tables show: top-1, top-5 (else the first two there are) and mAP."""
    measured = list(dict.fromkeys(name for row in made for name in row.curves))
    cmc = [name for name in measured if name != "mAP"]
    shown = [name for name in cmc if name in ("top-1", "top-5")] or cmc[:2]
    return shown + [name for name in measured if name == "mAP"]


def reach(shares: np.ndarray, recovered: np.ndarray, level: float) -> float:
    """The least share of the rows at which `level` of the gap is recovered, interpolated.

    Args:
      shares: float [22], ascending from 0 to 1.
      recovered: float [22], from 0 to 1, not always ascending.
      level: above 0, at most 1.
    """
    at = int(np.argmax(recovered >= level))
    a, b = recovered[at - 1 : at + 1]
    return float(shares[at - 1] + (level - a) / (b - a) * (shares[at] - shares[at - 1]))


def told(made: Sequence[Row]) -> list[str]:
    """All sentences: the operator's numbers, the groups, and how good the variances are."""
    groups = filter(None, map(groups_sentence, made))
    variances = calibration.sentences(calibrations(made))
    return [*(sentence(row) for row in made), *groups, *variances]


def calibrations(made: Sequence[Row]) -> dict[str, dict]:
    """Method -> numbers of `retrieval.calibration.mean` over its seeds."""
    means = {}
    for row in made:
        calibrations = [
            record["calibration"] for record in row.records if record.get("calibration")
        ]
        if calibrations:
            means[row.method] = measured_calibration.mean(calibrations)
    return means


def sentence(row: Row) -> str:
    """The share of the rows that recovers 50 % and 90 % of the gap, in mAP and top-1."""
    clauses = []
    for metric in [name for name in TOLD if name in row.curves]:
        start, *_, end = row.curves[metric].mean(axis=0)
        ends = f"from {percent(start)} to {percent(end)} %"
        recovered = row.recovered(metric)
        if recovered is None:
            clauses.append(f"{metric} has no gap to recover ({ends})")
            continue
        costs = [
            f"{cost} to recover {100 * level:.0f} %"
            for cost, level in zip(_costs(row.shares, recovered), LEVELS, strict=True)
        ]
        below = recovered.min()
        dip = f", falling to {percent(start + below * (end - start))} % first" if below < 0 else ""
        clauses.append(f"re-embed {' and '.join(costs)} of the gap in {metric} ({ends}{dip})")
    return f"{row.method}, {row.name}: {'; '.join(clauses) or 'nothing was measured'}."


def costs(row: Row, metric: str) -> list[str] | None:
    """The share of the rows that each of `LEVELS` of the gap takes; None without a gap."""
    recovered = row.recovered(metric)
    return None if recovered is None else _costs(row.shares, recovered)


def _costs(shares: np.ndarray, recovered: np.ndarray) -> list[str]:
    """The share of the rows that each of `LEVELS` takes, in percent."""
    return [f"{100 * reach(shares, recovered, level):.0f} %" for level in LEVELS]


def groups_sentence(row: Row) -> str:
    """The best and the worst group, and their distance along the curve; empty without groups."""
    with_gap = [record for record in row.records if record.get("gap")]
    if not with_gap:
        return ""
    areas = {
        name: float(np.mean([record["groups"][name]["auc"]["map"] for record in with_gap]))
        for name, group in with_gap[0]["groups"].items()
        if group["auc"]["map"] is not None
    }
    worst, best = min(areas, key=lambda name: areas[name]), max(areas, key=lambda name: areas[name])
    sizes = {name: with_gap[0]["groups"][name]["num_queries"] for name in (worst, best)}
    gap = np.mean([[p["map"] for p in record["gap"]["curve"]] for record in with_gap], axis=0)
    half = len(gap) // 2
    return (
        f"{row.method}, {row.name}, {len(areas)} groups: AUC mAP from {percent(areas[worst])} "
        f"({worst}, {sizes[worst]} queries) to {percent(areas[best])} ({best}, {sizes[best]} "
        f"queries); best and worst lie {percent(gap[0])} points apart before, {percent(gap[half])} "
        f"with {100 * row.shares[half]:.0f} % re-embedded, {percent(gap[-1])} after."
    )


def text(records: Records) -> str:
    """AUC table, legend and sentences for the console."""
    curve_rows = rows(records)
    if not curve_rows:
        return "no backfilling curves"
    return "\n".join([_table(curve_rows).text(), *told(curve_rows)])


def markdown(records: Records) -> str:
    """The table as Markdown, numbers aligned right, with what rows of the gap cost instead of
    a sentence for each, and the sentences on groups and variances."""
    curve_rows = rows(records)
    if not curve_rows:
        return "no backfilling curves"
    made_table = as_table(curve_rows)
    notes = [f"- {line}" for line in told(curve_rows)[len(curve_rows) :]]
    return "\n".join([made_table.markdown(), *(["", *notes] if notes else [])])


def as_table(made: Sequence[Row]) -> Table:
    """The AUC of each row, and what parts of the gap cost."""
    table = _table(made)
    gaps = [name for name in TOLD if any(name in row.curves for row in made)]
    levels = " / ".join(f"{100 * level:.0f}" for level in LEVELS)
    header = [*table.header, *(f"{levels} % of gap, {name}" for name in gaps)]
    lines = []
    for line, row in zip(table.lines, made, strict=True):
        gap_costs = [costs(row, name) if name in row.curves else None for name in gaps]
        lines.append([*line, *("n/a" if each is None else " / ".join(each) for each in gap_costs)])
    gap = "% of gap: rows to re-embed for so much of what lies between new/T(old) and new/new."
    if any(record.get("fusion") for row in made for record in row.records):
        gap += " Of a fused search: between it as upgraded and both embeddings of every row."
    return Table(header, lines, f"{table.legend} {gap}", left=2)


def _legend(made: Sequence[Row]) -> str:
    """One sentence on what stands behind the numbers of the table."""
    text = "AUC: mean of 22 points from 0 to 100 % of the rows re-embedded, percent"
    if any(row.corrected for row in made):
        text += "; rest corrected: by the rows re-embedded so far, at every point"
    counts = {row.over: len(next(iter(row.curves.values()), ())) for row in made if row.over}
    for over, count in counts.items():
        text += f"; ±: standard deviation over {count} {over}"
    if any(over_random(row, made, name) for row in made for name in row.curves):
        text += "; over random: points above random orders of the same models"
    return f"{text}."


def over_random(row: Row, made: Sequence[Row], metric: str) -> tuple[float, float | None] | None:
    """Mean over the seeds of a row's AUC minus that of random orders of the same models, fractions.

    Returns:
      The mean, and its standard deviation where there are several seeds; None for random orders
      themselves, and without random orders of the same seeds.
    """
    plain = (one for one in made if (one.method, one.policy) == (row.method, RANDOM))
    random = next((one for one in plain if not one.corrected), None)
    if random is None or random is row or not all(metric in one.curves for one in (row, random)):
        return None
    ours, theirs = row.areas(metric), random.areas(metric)
    if ours.keys() != theirs.keys():
        return None
    gains = np.array([ours[seed] - theirs[seed] for seed in ours])
    return float(gains.mean()), float(gains.std(ddof=1)) if len(gains) > 1 else None


def _table(made: Sequence[Row]) -> Table:
    names = metrics(made)
    lines = []
    for row in made:
        cells = []
        for name in names:
            mean, std = row.auc(name) if name in row.curves else (None, None)
            value = "n/a" if mean is None else percent(mean)
            cells.append(value if std is None else f"{value} ± {percent(std)}")
        lines.append([row.method, row.name, *cells])
    header = ["method", "policy", *(f"AUC {name}" for name in names)]
    gains = [[over_random(row, made, name) for name in names] for row in made]
    if any(gain for each in gains for gain in each):
        header.append(f"over random ({', '.join(names)})")
        for line, each in zip(lines, gains, strict=True):
            line.append(" / ".join(_gain(gain) for gain in each) if any(each) else "")
    return Table(header, lines, _legend(made), left=2)


def _gain(gain: tuple[float, float | None] | None) -> str:
    if gain is None:
        return "n/a"
    mean, std = gain
    return f"{100 * mean:+.2f}" + ("" if std is None else f" ± {percent(std)}")
