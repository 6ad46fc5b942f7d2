"""What an upgrade costs: training, bytes a row, and the work over a million rows.

Training is what was trained, by itself: an upgrade by a transformation needs the new model
anyway, one by a compatible model needs that model instead. Times are of the machine that the
study ran on. Those that are measured for the purpose (running the transformation's SavedModel,
embedding an image) are measured once and kept in `cost.json` beside the model, so that a study
that is run again has the same numbers.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common.files import read_json, write_json
from fct_tf.common.image_size import height_width
from fct_tf.experiments.cases import Case
from fct_tf.gallery import table
from fct_tf.models import saved_model
from fct_tf.models.load import load_any

MILLION = 1_000_000
BATCH_ROWS = 8192  # as upgrade_gallery runs a transformation by default
MEASURED = "cost.json"


def of_case(
    config: ConfigDict, workdir: Path, query: table.Gallery, gallery: table.Gallery, case: Case
) -> dict | None:
    """The costs of an upgraded case.

    Args:
      config: the experiment.
      workdir: of the seed; every stage has a directory in it.
      query, gallery: the tables that the case is evaluated on.
      case: any; None is returned where it is no upgrade.

    Returns:
      `model_s`, `side_info_s`, `transformation_s`: seconds of training of the new model, of the
        side-information and of the map, its base included; 0 what the method does not need, None
        what is not known.
      `bytes_per_row`: stored in the gallery, what the map reads included;
        `bytes_per_row_upgrading`: with the new column beside it.
      `upgrade_million_rows_s`: the map over a million gallery rows, 0 where rows stay as they are;
        `map_million_queries_s`: over as many queries, 0 where they stay as they are.
      `query_encoders`: 2 in a fused search, whose queries are embedded by both models; its
        `bytes_per_row` are those of the fused row, and `map_million_queries_s` fuses.
      `reembedded_share`: of the rows that the new model embeds anew (pairs), and
        `reembed_million_rows_s`: seconds of that for a million rows, images decoded already; None
        for a stored column.
    """
    section = config.transformations.get(case.method)
    if case.query_model == case.gallery_model:
        return None
    new = config.models[case.query_model]
    if section is None and schema.compatibility_method(new) == "none":
        return None
    stored = gallery.column(f"embedding_{case.gallery_model}")
    cost: dict = {
        "model_s": _trained_s(workdir / case.query_model),
        "side_info_s": 0.0,
        "transformation_s": 0.0,
        "bytes_per_row": _bytes(stored),
        "bytes_per_row_upgrading": _bytes(stored),
        "upgrade_million_rows_s": 0.0,
        "map_million_queries_s": 0.0,
        "reembedded_share": 0.0,
        "reembed_million_rows_s": 0.0,
    }
    if section is None:
        return cost
    # A composed transformation costs what its parts do, one after the other.
    applied = section.compose or (case.method,)
    trained = [name for part in applied for name in (part, config.transformations[part].base)]
    parts = [_trained_s(workdir / name) for name in dict.fromkeys(trained) if name]
    cost["transformation_s"] = None if None in parts else sum(part or 0.0 for part in parts)
    if section.side_info:
        cost["side_info_s"] = _trained_s(workdir / "side_info")
    rows_stay = case.side == "query"
    side = "map_million_queries_s" if rows_stay else "upgrade_million_rows_s"
    rows = query if rows_stay else gallery
    cost[side] = sum(
        _map_million_s(rows, workdir / part, config.transformations[part]) for part in applied
    )
    if rows_stay:
        return cost
    column = _bytes(gallery.column(case.gallery))
    if case.fusion:  # What it makes of a row has the old embedding in it.
        cost |= {"bytes_per_row": column, "query_encoders": 2}
        cost["map_million_queries_s"] = _map_million_s(query, workdir / case.method, section, True)
        column = _bytes(stored)
    if section.side_info:
        cost["bytes_per_row"] += _bytes(gallery.column("side_info"))
    cost["bytes_per_row_upgrading"] = cost["bytes_per_row"] + column
    cost["reembedded_share"] = share = section.pairs.share
    if share and "column" in new:  # The model itself is not here.
        cost["reembed_million_rows_s"] = None
    elif share:
        batch = config.training.embed_batch_size
        cost["reembed_million_rows_s"] = share * _embed_million_s(workdir / case.query_model, batch)
    return cost


def _bytes(column: table.Column) -> int:
    return column.dim * np.dtype(column.dtype).itemsize


def _trained_s(stage: Path) -> float | None:
    """Seconds that a stage trained for, None where it was not said."""
    log = stage / "metrics.jsonl"
    seconds = []
    if log.exists():
        seconds.append(json.loads(log.read_text().splitlines()[-1])["seconds"])
    facts = _info(stage).get("facts", {})
    if "fit_s" in facts:  # Solved for, not trained, after a training perhaps.
        seconds.append(facts["fit_s"])
    return float(sum(seconds)) if seconds else None


def _info(stage: Path) -> dict:
    path = stage / "artifact" / "model.json"
    return read_json(path) if path.exists() else {}  # Of a stored column nothing was trained here.


def _map_million_s(
    rows: table.Gallery, stage: Path, section: ConfigDict, of_queries: bool = False
) -> float:
    """Seconds of a transformation over a million rows; `of_queries`: of a fused search's."""
    names = [f"embedding_{section.source}"]
    if of_queries:
        names.append(f"embedding_{section.target}")
    elif section.side_info:
        names.append("side_info")

    def measure() -> float:
        side = "query" if of_queries else "gallery"
        model = saved_model.load_transformation(stage / "saved_model", side)
        first = next(iter(rows.batches(names, BATCH_ROWS))).vectors
        # A small table's rows are repeated: a call's own time does not matter over a million.
        inputs = [np.resize(first[name], (BATCH_ROWS, first[name].shape[1])) for name in names]
        return _seconds(lambda: model(*inputs)) / BATCH_ROWS * MILLION

    return _once(stage, "fuse_million_queries_s" if of_queries else "map_million_rows_s", measure)


def _embed_million_s(stage: Path, batch_size: int) -> float:
    def measure() -> float:
        model = load_any(stage / "artifact")
        images = tf.zeros([batch_size, *height_width(model.preprocessing["size"]), 3])
        return _seconds(lambda: np.asarray(model.embed(images))) / batch_size * MILLION

    return _once(stage, "embed_million_images_s", measure)


def _seconds(call: Callable[[], object]) -> float:
    """Median over three calls, after one that also prepares the graph."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def _once(stage: Path, key: str, measure: Callable[[], float]) -> float:
    """A measurement of a stage's model, taken again only for another model."""
    path, space = stage / MEASURED, _info(stage)["space"]
    stored = read_json(path) if path.exists() else {}
    if stored.get("space") != space:
        stored = {"space": space}
    if key not in stored:
        stored[key] = measure()
        write_json(path, stored)
    return stored[key]
