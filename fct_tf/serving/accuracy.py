"""What arithmetic in bfloat16 costs a transformation, on rows of a gallery."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery import reader
from fct_tf.models import info as infos
from fct_tf.models import saved_model
from fct_tf.models.signatures import Served
from fct_tf.retrieval import exact
from fct_tf.serving import verification, warmup

ROWS = 2000
NEIGHBOURS = 10
# Of queries, in percent: what top-1 may fall by.
MOST_POINTS = 1.0


def measure(directory: Path, served: Served, rows: str = "") -> dict[str, Any]:
    """Compares a transformation in bfloat16 with the same one in float32; says the result.

    Args:
      directory: its SavedModel.
      served: what it was written from.
      rows: a gallery with its source columns, of which up to 2,000 rows are taken. Where it also
        has embeddings in the target space, they are the queries, each without its own row.

    Returns:
      `rows`, `mean_row_error`, `largest_row_error` (see `fct_tf.serving.verification`) and
      `retrieval`: None, or `query_column`, `same_nearest` and `same_10_nearest` (shares of what
      both find), `top_1` of both where rows have labels.

    Raises:
      InputError: top-1 falls by more than a point.
    """
    labels = query = column = None
    if rows:
        gallery = reader.open_gallery(rows)
        column = warmup.target_column(gallery, served)
        inputs = warmup.gallery_rows(rows, served, ROWS)
        if column:
            read = warmup.sample(gallery, [column], ROWS)
            query, labels = read.vectors[column], read.labels
        if column and served.info["kind"] == "fused":
            query = served.expected(infos.QUERY, inputs)["embedding"]
    else:
        inputs = dict(warmup.pool(served, warmup.GENERATED, ROWS)["serving_default"])
    model = saved_model.load_transformation(directory)
    upgraded = {
        "float32": served.expected("serving_default", inputs)["embedding"],
        served.info["dtype"]: model(*(inputs[role] for role in infos.ROLES if role in model.dims))[
            "embedding"
        ],
    }
    expected, rounded = upgraded.values()
    errors = verification.row_errors(rounded, expected, "embedding")
    comparison: dict[str, Any] = {
        "rows": len(errors),
        "mean_row_error": float(errors.mean()),
        "largest_row_error": float(errors.max()),
        "retrieval": None,
    }
    logging.info(
        "%s: %d rows, error of a row %.2g of its length on average, %.2g at most",
        *(served.info["dtype"], len(errors), errors.mean(), errors.max()),
    )
    if query is None:
        logging.info("retrieval was not compared: no gallery with the target space was given")
        return comparison
    comparison["retrieval"] = {
        "query_column": column,
        **_retrieval(query, upgraded, labels, served),
    }
    return comparison


def _retrieval(
    query: np.ndarray, upgraded: dict[str, np.ndarray], labels: np.ndarray | None, served: Served
) -> dict[str, Any]:
    own = np.arange(len(query))
    k = min(NEIGHBOURS, max(1, len(query) - 1))
    nearest = {
        dtype: exact.search(query, rows, k, served.info["distance"], exclude=own)[0]
        for dtype, rows in upgraded.items()
    }
    first, second = nearest.values()
    both = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(first, second, strict=True)])
    shares: dict[str, Any] = {
        "same_nearest": float(np.mean(first[:, 0] == second[:, 0])),
        f"same_{NEIGHBOURS}_nearest": float(both),
        "top_1": None,
    }
    text = f"{shares['same_nearest']:.1%} of {len(query)} queries find the same nearest row, "
    text += f"{both:.1%} of the {k} nearest are the same"
    # Only queries whose label another row has can find it.
    every = [] if labels is None else labels.tolist()
    counts = Counter(every)
    findable = np.flatnonzero([label is not None and counts[label] > 1 for label in every])
    if len(findable):
        names = np.array(every, object)
        right = {
            dtype: float(np.mean(names[rows[findable, 0]] == names[findable]))
            for dtype, rows in nearest.items()
        }
        shares["top_1"] = right
        before, after = right.values()
        text += f", top-1 {before:.2%} in float32 and {after:.2%} in {served.info['dtype']}"
        logging.info("%s", text)
        if 100 * (before - after) > MOST_POINTS:
            raise InputError(
                f"not published: ``dtype={served.info['dtype']}`` costs "
                f"{100 * (before - after):.2f} points of top-1 on these rows, {MOST_POINTS:g} is "
                "accepted; use ``dtype=float32``"
            )
    else:
        logging.info("%s", text)
    return shares
