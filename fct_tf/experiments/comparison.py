"""What the upgrades of a study gained, broke and lost, query by query.

M is a metric: `cmc@k` for each k of the experiment, or `map`. A record of an upgraded case, such
as new/T(old) or bct/old, gets

* `criterion`: M(upgraded) - M(old/old), paired over the queries, and whether it `holds` clearly:
  the whole 95 % interval lies above 0 (BCT, arXiv 2003.11942).
* `update_gain`: (M(upgraded) - M(old/old)) / (M(new*/new*) - M(old/old)); a metric is None where
  new*/new* is not clearly above old/old, all is None without a new* (see `free_model`).
* `negative_flips` and `positive_flips`: shares of queries whose nearest row is right before and
  wrong after, and the other way round (arXiv 2011.09161).

The record X/X of a model that was trained to be compatible gets `new_lost`, M(new*/new*) - M(X/X):
above 0 where it has lost accuracy by being compatible. Both name their new* as `free_model`.
"""

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.experiments.cases import Case
from fct_tf.retrieval import agreement, compatibility
from fct_tf.retrieval.agreement import Estimate
from fct_tf.retrieval.exact import PerQuery


class Evaluated(NamedTuple):
    """A case, its record and what each labelled query achieved."""

    case: Case
    record: dict
    found: PerQuery


def free_model(config: ConfigDict, name: str) -> str | None:
    """new* of a model: the same one trained without compatibility.

    A model without compatibility is its own. Of another it is the first model without
    compatibility that has the same `classes` and the same `backbone`; one that a transformation
    maps to comes before one that none does, and the model to be compatible with is left out.

    Returns:
      Its name; None where the experiment has no such model.
    """
    section = config.models[name]
    if schema.compatibility_method(section) == "none":
        return name
    targets = [transformation.target for transformation in config.transformations.values()]
    for other in dict.fromkeys([*targets, *config.models]):
        free = config.models[other]
        same = all(
            schema.to_dict(free[key]) == schema.to_dict(section[key])
            for key in ("classes", "backbone")
        )
        if same and free.compatibility.method == "none" and other != section.compatibility.old:
            return other
    return None


def compare(config: ConfigDict, evaluated: Sequence[Evaluated], seed: int) -> list[dict]:
    """The records, those of upgrades and of compatible models with their comparisons.

    Args:
      config: the experiment; its `evaluation` has the ks and the resamples.
      evaluated: all cases of a seed, the queries in one order.
      seed: of the resamples.
    """
    itself = {
        (one.case.query_model, _left_out(one.case)): one
        for one in evaluated
        if one.case.query == one.case.gallery
    }
    records = []
    for one in evaluated:
        case = one.case

        def same_rows(model: str | None, rows: str = _left_out(case)) -> PerQuery | None:
            evaluation = itself.get((model or "", rows))
            return evaluation.found if evaluation else None

        more: dict = {}
        if case.query_model in config.models:
            free = free_model(config, case.query_model)
            best = same_rows(free)
            if case.is_upgrade:
                old = same_rows(case.gallery_model)
                more = _of_upgrade(config, old, one.found, best, seed) if old else {}
            elif case.query == case.gallery and free != case.query_model and best:
                more = _of_compatible(config, one.found, best, seed)
            if more:
                more["free_model"] = free if best else None
        records.append({**one.record, **more})
    return records


def _left_out(case: Case) -> str:
    """What tells apart on which rows a case was measured."""
    return case.sample if case.scoring == "remaining" else ""


def _of_upgrade(
    config: ConfigDict, old: PerQuery, upgraded: PerQuery, best: PerQuery | None, seed: int
) -> dict:
    if not _comparable(old, upgraded):
        return {}
    ks, resamples = tuple(config.evaluation.ks), config.evaluation.bootstrap
    draws = {"resamples": max(resamples, 1), "seed": seed}
    criterion = compatibility.criterion(old, upgraded, ks, **draws)
    flips = compatibility.negative_flips(old, upgraded, **draws)
    gain: Mapping[str, Estimate | None] | None = None
    if best is not None and _comparable(old, upgraded, best):
        values, base, top = (
            agreement.per_query_metrics(case, ks) for case in (upgraded, old, best)
        )
        gain = agreement.gap_shares(values, base, top, **draws)
    return {
        "update_gain": _plain(gain, resamples) if gain else None,
        "criterion": {
            name: {
                **(_estimate(value, resamples) or {}),
                "holds": bool(resamples) and value.low > 0,
            }
            for name, value in criterion.items()
        },
        "negative_flips": _estimate(flips.negative, resamples),
        "positive_flips": _estimate(flips.positive, resamples),
    }


def _of_compatible(config: ConfigDict, own: PerQuery, best: PerQuery, seed: int) -> dict:
    if not _comparable(own, best):
        return {}
    ks, resamples = tuple(config.evaluation.ks), config.evaluation.bootstrap
    lost = compatibility.criterion(own, best, ks, resamples=max(resamples, 1), seed=seed)
    return {"new_lost": _plain(lost, resamples)}


def _comparable(*cases: PerQuery) -> bool:
    """Whether there is a query with a match in all of them."""
    return bool(np.all([case.rank > 0 for case in cases], axis=0).any())


def _plain(estimates: Mapping[str, Estimate | None], resamples: int) -> dict:
    return {name: _estimate(value, resamples) for name, value in estimates.items()}


def _estimate(value: Estimate | None, resamples: int) -> dict | None:
    if value is None:
        return None
    return asdict(value) if resamples else {"mean": value.mean, "low": None, "high": None}


def save_per_query(path: str | os.PathLike, found: PerQuery, order: str) -> None:
    """Writes what each query achieved; a reader sees the whole file or none.

    Args:
      path: `.npz` file to write.
      found: of an evaluation.
      order: fingerprint of the queries' ids in their order.
    """
    path, content = Path(path), io.BytesIO()
    np.savez_compressed(content, order=np.array(order), **vars(found))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.getvalue())
    os.replace(temporary, path)


def load_per_query(path: str | os.PathLike, order: str) -> PerQuery | None:
    """What `save_per_query` has written; None where it is missing, broken or of other rows."""
    try:
        with np.load(path) as stored:
            values = {name: stored[name] for name in stored.files}
        same_order = str(values.pop("order")) == order
        return PerQuery(**values) if same_order else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
