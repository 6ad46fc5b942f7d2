"""Queries per second of libraries at a wanted recall, side by side, as Markdown."""

from collections.abc import Mapping
from typing import Any

from fct_tf.common import formats

NAMES = {
    "scann": "ScaNN",
    "faiss_ivf": "faiss IVF-PQ fast scan",
    "faiss_hnsw": "faiss HNSW",
    "hnswlib": "hnswlib",
}


def markdown(content: Mapping[str, Any]) -> str:
    """The table of results/ann_comparison.json.

    Args:
      content: with `data` (name -> `num_rows` [rows, queries]), `results` (records with `data`,
        `library`, `threads`, `wanted_recall`, `qps`) and `scann_against_best_peer` (`data`,
        `threads`, `wanted_recall`, `ratio`).
    """
    libraries = [name for name in NAMES if any(r["library"] == name for r in content["results"])]
    header = ["rows", "threads", "recall@10", *(NAMES[name] for name in libraries), "ScaNN / best"]
    lines = []
    ratios = {_case(one): one["ratio"] for one in content["scann_against_best_peer"]}
    qps = {(*_case(one), one["library"]): one["qps"] for one in content["results"]}
    for case in sorted(ratios):
        data, threads, recall = case
        speeds = [qps.get((*case, name)) for name in libraries]
        best = max(speed for speed in speeds if speed is not None)
        shown = [
            "" if speed is None else f"**{speed:,.0f}**" if speed == best else f"{speed:,.0f}"
            for speed in speeds
        ]
        count = content["data"][data]["num_rows"][0]
        lines.append([f"{data} ({count:,})", str(threads), str(recall), *shown])
        lines[-1].append(f"{ratios[case]:.2f}")
    return formats.markdown(header, lines, left=3)


def _case(record: Mapping[str, Any]) -> tuple[str, int, float]:
    return record["data"], record["threads"], record["wanted_recall"]
