"""An evaluation as its callers get it: the record of results.json, in words, and by label."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_tf.common import files
from fct_tf.retrieval import metrics
from fct_tf.retrieval.exact import PerQuery


@dataclass(frozen=True)
class Evaluation:
    """What queries found in a gallery.

    Attributes:
      record: as results.json has it; fractions, not percent.
      per_query: what each labelled query achieved.
      labels: object [queries], the labels of all queries.
    """

    record: dict[str, Any]
    per_query: PerQuery
    labels: np.ndarray

    @property
    def cmc(self) -> dict[int, float | None]:
        """Rank k -> share of queries with a match among the first k; None if none has one."""
        return {int(k): value for k, value in self.record["cmc"].items()}

    @property
    def map(self) -> float | None:
        """Mean average precision; None of ScaNN's search and of re-ranking, which order the first
        rows alone, or where no query has a match."""
        return self.record["map"]

    def by_class(self) -> list[dict]:
        """The metrics of each label, see `by_class`."""
        return by_class(self.per_query, self.labels, list(self.cmc))

    def __str__(self) -> str:
        return summary(self.record)


def summary(record: dict) -> str:
    """The metrics of a results.json record in percent, on one line."""
    parts = [f"CMC@{k} {_percent(value)}" for k, value in record["cmc"].items()]
    if record["search"] == "exact":
        parts.append(f"mAP {_percent(record['map'])}")
    elif "rerank" in record["search"]:
        parts.append(f"the first {record['search']['rerank']} rows re-ranked")
    else:
        parts.append(f"recall {_percent(record['search']['recall'])}")
    case = f"{record['query']['column']}/{record['gallery']['column']}"
    return f"{case}: {', '.join(parts)} ({record['num_queries']} queries)"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"


def by_class(found: PerQuery, labels: np.ndarray, ks: Sequence[int]) -> list[dict]:
    """CMC and mAP by query label, in label order.

    Args:
      found: what each labelled query achieved.
      labels: object [queries], the labels of all queries.
      ks: ranks of CMC.

    Returns:
      One record per label: `label`, `num_queries`, `num_queries_without_match`, `cmc@k`, `map`;
      the metrics are null where no query of the label has a match.
    """
    members: dict[str, list[int]] = {}
    for number, position in enumerate(found.position):
        members.setdefault(labels[position], []).append(number)
    rows = []
    for label in sorted(members):
        rank = found.rank[members[label]]
        row: dict = {
            "label": label,
            "num_queries": len(rank),
            "num_queries_without_match": int((rank == 0).sum()),
        }
        row |= {f"cmc@{k}": value for k, value in metrics.cmc(rank, ks).items()}
        row["map"] = metrics.mean_average_precision(found.average_precision[members[label]])
        rows.append(row)
    return rows


def to_csv(rows: Sequence[dict]) -> str:
    """Records such as those of `by_class` as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_by_class(evaluation: Evaluation, path: str) -> None:
    """Writes the metrics of each label as .json, otherwise as CSV."""
    rows = evaluation.by_class()
    if path.endswith(".json"):
        files.write_json(path, rows)
    else:
        files.atomic_write_text(path, to_csv(rows))
