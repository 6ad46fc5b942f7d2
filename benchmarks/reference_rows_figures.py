"""Figures of results on the reference rows that span several transformations.

A study of `configs/reference_rows.py` measures; its report draws one transformation at a time. This
draws accuracy over the share of pairs (of `:pairs`, its results.json), and what an order of
backfilling gains over random ones (of `:fastfill` and `:ranks`, their backfilling.json).

  python benchmarks/reference_rows_figures.py --pairs=runs/reference_rows_pairs/results.json \\
      --output=results/reference_rows_pairs.svg
"""

import re
from collections.abc import Callable, Sequence
from statistics import fmean

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from fct_tf.backfill import curves
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.report import backfilling as tables
from fct_tf.report import plots

Metric = Callable[[dict], float]
METRICS: dict[str, Metric] = {
    "top-1": lambda record: 100 * record["cmc"]["1"],
    "mAP": lambda record: 100 * record["map"],
}
SCORINGS = {
    "backfilled": "the whole gallery, pairs backfilled",
    "remaining": "the remaining rows alone",
}
POLICIES = {
    "ranks": "C0-",
    "uncertainty": "C3-",
    "distance": "k--",  # an oracle
    "random, rest corrected": "C2:",
    "ranks, rest corrected": "C0:",
}
LEARNT = ("fct_no_side_info", "fastfill_no_side_info", "heteroscedastic_no_side_info")


def means(records: Sequence[dict], case: str, scoring: str, metric: Metric) -> dict[float, float]:
    """Share of pairs (in percent) -> mean over seeds, of the cases that match; both scorings are
    one without pairs."""
    found: dict[float, list[float]] = {}
    for record in records:
        share, scored = record.get("pairs", 0.0), record.get("scoring", "backfilled")
        if re.fullmatch(f"{case}( .remaining .*)?", record["case"]) and (
            scored == scoring or not share
        ):
            found.setdefault(100 * share, []).append(metric(record))
    return {share: fmean(values) for share, values in sorted(found.items())}


def plot_pairs(records: Sequence[dict], path: str) -> None:
    """top-1 and mAP against the share of pairs, both scorings."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    last = 100 * max(record.get("pairs", 0.0) for record in records)
    for column, (scoring, title) in enumerate(SCORINGS.items()):
        axes[0][column].set_title(title)
        axes[1][column].set_xlabel("gallery rows re-embedded as pairs (%)")
        for ax, (name, metric) in zip(axes[:, column], METRICS.items(), strict=True):
            for end, told, colour in (("", "with", "C0"), ("_no_side_info", "without", "C1")):
                case = rf"new/T\(old\) fct(_pairs_[\d.]+)?{end}"
                points = means(records, case, scoring, metric)
                label = f"FCT {told} side-information"
                ax.plot(*zip(*points.items(), strict=True), "o-", color=colour, label=label)
            for case, style in (("old/old", "--"), ("new/new", ":")):
                points = means(records, case, scoring, metric)
                points.setdefault(last, next(iter(points.values())))  # Whatever the share.
                ax.plot(*zip(*points.items(), strict=True), style, color="0.4", label=case)
            ax.set_ylabel(f"{name} (%)")
    axes[0][0].legend(fontsize=8)
    plots.save(figure, path)


def plot_policies(records: Sequence[dict], path: str) -> None:
    """What each policy gains over random orders along the curve, mean over the seeds."""
    made = {(row.method, row.name): row.curves for row in tables.rows(records)}
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(len(LEARNT), 3, sharex=True)
    xs = 100 * np.arange(curves.POINTS) / (curves.POINTS - 1)
    for row, method in zip(axes, LEARNT, strict=True):
        for ax, metric in zip(row, ("top-1", "top-5", "mAP"), strict=True):
            ax.axhline(0, color="0.6", linewidth=1)
            for policy, style in POLICIES.items():
                if (method, policy) in made:
                    found, base = (made[method, name][metric] for name in (policy, "random"))
                    gain = found.mean(axis=0) - base.mean(axis=0)
                    ax.plot(xs, 100 * gain, style, label=policy)
            ax.set_title(f"{method}, {metric}", fontsize=9)
            ax.locator_params(nbins=5)
        row[0].set_ylabel("above random (points)")
    for ax in axes[-1]:
        ax.set_xlabel("rows backfilled (%)")
    lines = [pair for ax in axes.flat for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    by_label = {label: line for line, label in lines}
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=5)
    plots.save(figure, path)


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("pairs", "", "results.json of :pairs.", flag_values=values)
    flags.DEFINE_list("policies", [], "backfilling.json of :fastfill, of :ranks.", values)
    flags.DEFINE_string("output", None, "SVG file.", required=True, flag_values=values)


def main(values: flags.FlagValues) -> None:
    if bool(values.pairs) == bool(values.policies):
        raise InputError("name results by --pairs or by --policies, one of them")
    with matplotlib.rc_context(plots.settings("light")):
        draw(values)


def draw(values: flags.FlagValues) -> None:
    if values.pairs:
        plot_pairs(read_json(values.pairs), values.output)
    else:
        records = [record for path in values.policies for record in read_json(path)]
        # Random orders are in both.
        distinct = {
            tuple(record[key] for key in ("method", "policy", "corrected", "seed", "order")): record
            for record in records
        }
        plot_policies([*distinct.values()], values.output)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
