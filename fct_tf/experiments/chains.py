"""Chains of versions: a gallery upgraded again and again, and what each version's queries find."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fct_tf.experiments.cases import chain_cases
from fct_tf.retrieval import compatibility
from fct_tf.upgrade.upgrade import Upgrade


def upgrade_in_turn(config: ConfigDict, name: str, workdir: Path, gallery: Path) -> None:
    """Upgrades the gallery with the parts of a composed transformation, one after the other.

    Each reads what the one before it wrote, as where a gallery that was upgraded to one version
    meets the next. The first part's column must be there already; those on the way are named
    after the parts that they went through.

    Args:
      config: the experiment.
      name: which of its transformations; the parts are trained.
      workdir: of the seed, with the parts' SavedModels.
      gallery: gets the column `embedding_<name>`.
    """
    parts = config.transformations[name].compose
    column = f"embedding_{parts[0]}"
    for at, part in enumerate(parts[1:], 2):
        source, column = column, "embedding_" + "_then_".join(parts[:at])
        column = f"embedding_{name}" if at == len(parts) else column
        Upgrade(
            str(gallery),
            workdir / part / "saved_model",
            column,
            source=source,
            side_info="side_info" if config.transformations[part].side_info else "",
            existing="skip",
        ).run()


def matrices(config: ConfigDict, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of chains.json, by the chains' names.

    Args:
      config: the experiment; its `chains` say what to put together.
      records: as in results.json, of all cases and seeds.

    Returns:
      Of each chain `versions`, `transformations`, `cases` (row i, column j <= i: the name of what
      was measured with queries of version i on the gallery of version j) and `metrics`: for
      `cmc@1`, `cmc@5` (else the first two) and `map` the `matrix` of that form, in fractions, with
      `ac` and `am` (see `fct_tf.retrieval.compatibility`), each the mean over seeds, and under
      `seeds` the same of every seed.
    """
    by_case_and_seed = {(record["case"], record["seed"]): record for record in records}
    content: dict[str, Any] = {}
    for name, section in config.chains.items():
        cases = [[case.name for case in row] for row in chain_cases(config, name)]
        seeds = {
            str(seed): [[by_case_and_seed[case, seed] for case in row] for row in cases]
            for seed in config.seeds
        }
        content[name] = {
            "versions": list(section.versions),
            "transformations": list(section.transformations),
            "cases": cases,
            "metrics": {metric: _metric(metric, seeds) for metric in _metrics(config)},
        }
    return content


def _metrics(config: ConfigDict) -> list[str]:
    ks = [k for k in config.evaluation.ks if k in (1, 5)] or config.evaluation.ks[:2]
    return [*(f"cmc@{k}" for k in ks), "map"]


def _metric(metric: str, seeds: Mapping[str, Sequence[Sequence[Mapping]]]) -> dict[str, Any]:
    """One metric's matrix, AC and AM: of each seed, and their means over seeds."""
    of_seeds = {}
    for seed, triangle in seeds.items():
        values = [[_value(record, metric) for record in row] for row in triangle]
        square = np.full((len(values), len(values)), np.nan)
        square[np.tril_indices(len(values))] = np.concatenate(values)
        of_seeds[seed] = {"matrix": values, **compatibility.chain(square)._asdict()}
    several = list(of_seeds.values())
    return {
        "matrix": [
            [fmean(cells) for cells in zip(*rows, strict=True)]
            for rows in zip(*(one["matrix"] for one in several), strict=True)
        ],
        "ac": fmean(one["ac"] for one in several),
        "am": fmean(one["am"] for one in several),
        "seeds": of_seeds,
    }


def _value(record: Mapping[str, Any], metric: str) -> float:
    name, _, k = metric.partition("@")
    return record[name][k] if k else record[name]
