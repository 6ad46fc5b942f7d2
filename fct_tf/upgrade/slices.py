"""What an upgrade does to slices of the queries, such as those of one camera."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import agreement

# The percentiles of a bootstrap over fewer queries are too narrow to judge by.
MIN_QUERIES = 20


def table_of(groups: str, tables: Sequence[Gallery]) -> Gallery:
    """The first table that has the column `groups`.

    Raises:
      InputError: none has it, or it is not of texts or whole numbers.
    """
    for table in tables:
        if groups in table.dataset.schema.names:
            table.check_group(groups, "groups")
            return table
    tables[0].check_group(groups, "groups")
    raise AssertionError("a column that no table has is refused")


def by_group(
    column: str,
    groups: np.ndarray,
    after: agreement.Values,
    before: agreement.Values,
    flips: agreement.Values,
    draws: tuple[int, int],
) -> dict[str, Any]:
    """The record of the slices, the one that loses most first.

    Args:
      column: that the groups are from.
      groups: object [queries] of str, None for a query without group: these are a slice too.
      after, before: metrics of each query, NaN where it has no match.
      flips: `negative` and `positive` of each query, likewise.
      draws: resamples and seed of the bootstrap.

    Returns:
      `column`, `min_queries`, `num_slices`, `num_too_small`, and `slices`, a list of `group`,
      `num_queries` (with a match), `verdict`, `difference` by metric, `negative_flips` and
      `positive_flips`, each with `mean`, `low` and `high`. With fewer than `min_queries` queries
      the verdict is `too small`, the slice stands at the end, and the intervals are None.
    """
    first = next(iter(after))
    members: dict[str | None, list[int]] = {}
    for number in np.flatnonzero(~np.isnan(after[first])).tolist():
        members.setdefault(groups[number], []).append(number)
    records = []
    for group, rows in members.items():
        differences = {name: after[name][rows] - before[name][rows] for name in after}
        values = differences | {name: flips[name][rows] for name in ("negative", "positive")}
        few = len(rows) < MIN_QUERIES
        estimates = _means(values) if few else _intervals(values, draws)
        difference = {name: estimates[name] for name in after}
        records.append(
            {
                "group": group,
                "num_queries": len(rows),
                "verdict": "too small" if few else verdict(difference),
                "difference": difference,
                "negative_flips": estimates["negative"],
                "positive_flips": estimates["positive"],
            }
        )

    def place(one: dict) -> tuple:
        return one["verdict"] == "too small", one["difference"][first]["mean"], str(one["group"])

    too_small = sum(one["verdict"] == "too small" for one in records)
    return {
        "column": column,
        "min_queries": MIN_QUERIES,
        "num_slices": len(records),
        "num_too_small": too_small,
        "slices": sorted(records, key=place),
    }


def _intervals(values: agreement.Values, draws: tuple[int, int]) -> dict[str, dict]:
    return {
        name: asdict(interval) for name, interval in agreement.intervals(values, *draws).items()
    }


def _means(values: agreement.Values) -> dict[str, dict]:
    none = {"low": None, "high": None}
    return {name: {"mean": float(one.mean()), **none} for name, one in values.items()}


def verdict(differences: Mapping[str, Mapping[str, float]]) -> str:
    """`compatible`, `not compatible` or `undecided`, by the intervals of the differences."""
    signs = {clear(value) for value in differences.values()} - {0}
    if signs == {1}:
        return "compatible"
    return "not compatible" if signs == {-1} else "undecided"


def clear(difference: Mapping[str, float]) -> int:
    """1 or -1 where the whole interval is above or below 0, else 0."""
    return int(difference["low"] > 0) - int(difference["high"] < 0)


def losing(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slices that are clearly worse by a metric, though they may be better by another.

    First come those that are worse by the first metric, in the order of their loss.
    """
    judged = [one for one in found["slices"] if one["verdict"] != "too small"]
    worse = [one for one in judged if any(v["high"] < 0 for v in one["difference"].values())]
    return sorted(worse, key=lambda one: next(iter(one["difference"].values()))["high"] >= 0)
