"""What the numbers say, in words: does the upgraded gallery beat the old one?

The criterion is BCT's (arXiv 2003.11942): compatible if M(new, old) > M(old, old); the share of
the gap is its update gain, (M(new, old) - M(old, old)) / (M(new, new) - M(old, old)).
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.common import formats
from fct_tf.report import identities, methods, table
from fct_tf.report.table import Row

# A status in a word, BCT's: compatible if new queries find more in the upgraded gallery than old
# ones found in the old gallery.
WORDS = {
    "better": "compatible",
    "worse": "not compatible",
    "mixed": "undecided",
    "unclear": "undecided",
    "unjudged": "not judged",
    "unknown": "not judged",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One metric of an upgraded case against the case before the upgrade. Fractions.

    `gain_interval` is the 95 % interval of the difference of a single seed, query by query;
    `gain_std` the deviation over several. `clear` holds where every seed has the sign of `gain`
    and no such interval contains 0 or, where there is none, no interval of the upgraded case its
    seed's baseline; a single seed without an interval is never clear. `gap_share` is None without
    a new/new case or where new/new is not clearly above old/old.
    """

    metric: str
    value: float
    base: float
    gain: float
    clear: bool
    seeds_clear: int
    seeds: int
    interval: tuple[float, float] | None
    gap_share: float | None
    gain_interval: tuple[float, float] | None = None
    gain_std: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`status` is a key of `WORDS`; `sentence` is plain text and contains the numbers.

    `base` and `top` are the cases before the upgrade and after embedding everything anew; empty
    where there is none. `pairs` is the share of the gallery that was re-embedded, where known.
    """

    case: str
    status: str
    sentence: str
    comparisons: tuple[Comparison, ...] = ()
    base: str = ""
    top: str = ""
    pairs: float | None = None

    @property
    def lead(self) -> Comparison:
        """The metric that the status rests on: the first clear one, or the first."""
        return next((one for one in self.comparisons if one.clear), self.comparisons[0])


def text(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables of a study's records, and a line on each upgrade: compatible or not."""
    lines = [table.text(records)]
    for verdict in of_study(table.rows(records)):
        lines.append(f"{WORDS[verdict.status]}: {verdict.sentence}")
    # Of one or two upgrades everything that a choice needs stands above.
    compared = methods.text(records) if len(methods.rows(records)) > 2 else ""
    for more in (compared, identities.text(records)):
        lines += ["", more] if more else []
    return "\n".join(lines)


def of_study(made: Sequence[Row]) -> list[Verdict]:
    """A verdict for every upgraded case, highest value of the first metric first.

    Args:
      made: `table.rows`.

    Returns:
      At least one verdict; its status is `unknown` where there is nothing to compare.
    """
    upgraded = [row for row in made if table.is_upgrade(row)]
    if not upgraded:
        sentence = "The results contain no upgraded case such as new/T(old)."
        return [Verdict("", "unknown", sentence)]
    first = next(iter(table.shown(made)), None)

    def value(row: Row) -> float:
        values = row["metrics"][first] if first else None
        return values["mean"] if values else -1.0

    return [of_case(row, made) for row in sorted(upgraded, key=value, reverse=True)]


def by_gain(made: Sequence[Row]) -> list[Verdict]:
    """The verdicts of `of_study`, the greatest gain in the first metric at the front."""
    verdicts = of_study(made)
    return sorted(verdicts, key=lambda one: -one.comparisons[0].gain if one.comparisons else 2.0)


def of_case(row: Row, made: Sequence[Row]) -> Verdict:
    """The verdict on one upgraded case."""
    pair = row["sides"]
    base = table.find(made, pair.gallery, row) if pair else None
    top = table.find(made, pair.query, row) if pair else None
    if base is None:
        name = f"{pair.gallery}/{pair.gallery}" if pair else "baseline"
        sentence = f"{row['case']} has no {name} case on the same queries and rows beside it."
        return Verdict(row["case"], "unknown", sentence)
    names = table.shown(made)
    by_metric = [compare(row, base, top, name) for name in names]
    comparisons = tuple(comparison for comparison in by_metric if comparison)
    if not comparisons:
        sentence = f"{row['case']} and {base['case']} have no metric in common."
        return Verdict(row["case"], "unknown", sentence)
    status = _status(comparisons)
    sentence = _sentence(row, base, top, comparisons)
    names_of = (base["case"], top["case"] if top else "")
    return Verdict(row["case"], status, sentence, comparisons, *names_of, row["pairs"])


def compare(row: Row, base: Row, top: Row | None, metric: str) -> Comparison | None:
    """One metric of `row` against `base`, and the share of the gap to `top` it closes."""
    differences = table.paired(row, base, metric)
    values = row["metrics"].get(metric)
    if not differences or not values:
        return None
    gain = statistics.fmean(differences)
    seeds_clear = _seeds_clear(row, base, metric, gain)
    seeds = len(differences)
    paired = list(values["paired"].values())
    gap_share = None
    if top is not None and (gaps := table.paired(top, base, metric)):
        gap = statistics.fmean(gaps)
        certain = _seeds_clear(top, base, metric, gap) == len(gaps)
        judged = len(gaps) > 1 or top["metrics"][metric]["intervals"]
        if gap > 0 and (certain or not judged):
            gap_share = gain / gap
    return Comparison(
        metric=metric,
        value=values["mean"],
        base=base["metrics"][metric]["mean"],
        gain=gain,
        clear=seeds_clear == seeds and bool(seeds > 1 or values["intervals"] or paired),
        seeds_clear=seeds_clear,
        seeds=seeds,
        interval=(values["low"], values["high"]) if values["low"] is not None else None,
        gap_share=gap_share,
        gain_interval=paired[0] if seeds == len(paired) == 1 else None,
        gain_std=statistics.stdev(differences) if seeds > 1 else None,
    )


def _seeds_clear(row: Row, base: Row, metric: str, gain: float) -> int:
    """Seeds with the sign of `gain` whose interval, if there is one, excludes the baseline."""
    a, b = row["metrics"][metric], base["metrics"][metric]
    shared = [(seed, seed) for seed in a["values"] if seed in b["values"]]
    if not shared:
        shared = [(next(iter(a["values"])), next(iter(b["values"])))]
    count = 0
    for seed, base_seed in shared:
        difference = a["values"][seed] - b["values"][base_seed]
        if seed in a["paired"]:
            low, high = a["paired"][seed]
            outside = not low <= 0 <= high
        else:
            low, high = a["intervals"].get(seed, (a["values"][seed],) * 2)
            outside = not low <= b["values"][base_seed] <= high
        count += outside and difference * gain > 0
    return count


def _status(comparisons: Sequence[Comparison]) -> str:
    if all(c.seeds == 1 and c.interval is c.gain_interval is None for c in comparisons):
        return "unjudged"
    up = any(c.clear and c.gain > 0 for c in comparisons)
    down = any(c.clear and c.gain < 0 for c in comparisons)
    return {(1, 1): "mixed", (1, 0): "better", (0, 1): "worse", (0, 0): "unclear"}[(up, down)]


def _sentence(row: Row, base: Row, top: Row | None, comparisons: Sequence[Comparison]) -> str:
    first = comparisons[0]
    change = "as much as" if formats.signed(first.gain) == "0.00" else None
    change = change or f"{formats.percent(abs(first.gain))} points {_direction(first.gain)} than"
    sentence = (
        f"{row['case']} reaches {formats.percent(first.value)} % {first.metric}, "
        f"{change} {base['case']} ({formats.percent(first.base)} %)"
    )
    if first.seeds > 1:
        judged = bool(row["metrics"][first.metric]["intervals"])
        sentence += f" as the mean of {first.seeds} seeds, "
        sentence += f"its 95 % interval excluding {base['case']} on that side" if judged else "so"
        sentence += f" in {first.seeds_clear} of {first.seeds}"
    elif first.gain_interval:
        low, high = map(formats.signed, first.gain_interval)
        sentence += f", 95 % interval {low} to {high}{'' if first.clear else ', not clear'}"
    elif first.interval:
        low, high = map(formats.percent, first.interval)
        verb = "excludes" if first.clear else "includes"
        sentence += f"; its 95 % interval, {low} to {high} %, {verb} {base['case']}"
    else:
        sentence += "; no interval was computed to judge it by"
    against = [c for c in comparisons[1:] if c.gain * first.gain < 0]
    if against:
        sentence += "; " + " and ".join(
            f"{c.metric} goes the other way ({formats.signed(c.gain)} points"
            f"{'' if c.clear else ', not clearly'})"
            for c in against
        )
    return sentence + _gap(base, top, comparisons) + "."


def _gap(base: Row, top: Row | None, comparisons: Sequence[Comparison]) -> str:
    if top is None:
        return ""
    shares = [
        f"{100 * c.gap_share:.0f} % in {c.metric}" for c in comparisons if c.gap_share is not None
    ]
    if not shares:
        return f"; {top['case']} is not clearly better than {base['case']}: no gap to close"
    clause = f"; share of the gap from {base['case']} to {top['case']} closed: " + ", ".join(shares)
    if any(c.gap_share is not None and c.gap_share < 0 for c in comparisons):
        clause += f" (negative: below {base['case']})"
    return clause


def _direction(gain: float) -> str:
    return "more" if gain > 0 else "less"
