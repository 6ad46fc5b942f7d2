"""What a sweep leaves: its records as JSON, the best of them as a table, and plots."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fct_tf.ann import benchmark
from fct_tf.common import files
from fct_tf.common.provenance import library_versions
from fct_tf.report import pareto
from fct_tf.report.tables import Table

OUTPUT, TABLE, PLOT = "benchmark.json", "benchmark.md", "recall_qps_{}.svg"
MAKES = (TABLE, *map(PLOT.format, benchmark.MODES))
MODES = {
    "single": "one a call, one thread",
    "batched": "all in one call, one thread",
    "parallel": "all in one call, {threads} threads",
}
# ScaNN's names fill a page.
_SHORT = {
    "num_leaves": "leaves",
    "num_leaves_to_search": "searched",
    "dimensions_per_block": "block",
    "anisotropic_quantization_threshold": "threshold",
    "reordering_data": "data",
    "reordering_num_neighbors": "reorder",
}


def write(
    directory: Path, about: Mapping[str, Any], records: Sequence[Mapping], failed: Sequence[Mapping]
) -> str:
    """Writes all files; returns what the console shows.

    Args:
      about: what was measured: `data`, `k`, `ks`, `threads`.
      records, failed: of `sweep.run`.
    """
    k = str(about["k"] if about["k"] in about["ks"] else about["ks"][-1])
    data = about["data"]
    for mode, description in MODES.items():
        points = {
            library: [(one["recall"][k], one["qps"][mode]) for one in measured]
            for library, measured in pareto.by_library(records).items()
        }
        pareto.plot(
            points,
            directory / PLOT.format(mode),
            recall=f"Recall@{k}",
            speed=f"Queries per second, {description.format(threads=about['threads'])}",
            title=f"{data['name']}: {data['num_rows']:,} x {data['dim']}, {data['distance']}",
        )
    best = pareto.best(records, k, "single")
    note = (
        f"The {len(best)} of {len(records)} points that no other of their library beats in "
        f"recall@{k} and in queries per second one by one."
    )
    for one in failed:
        note += f"\nNot built: {one['library']}: {one['error']}"
    front_table = dataclasses.replace(table(best), legend=note)
    files.atomic_write_text(directory / TABLE, f"{front_table.markdown()}\n")
    versions = library_versions(("faiss-cpu", "hnswlib"))
    document = {**about, "versions": versions, "records": list(records), "failed": list(failed)}
    files.write_json(directory / OUTPUT, document)
    return f"{front_table.text()}\nAll -> {directory / OUTPUT}"


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each record."""
    ks = list(records[0]["recall"]) if records else []
    header = ["library", "settings", *(f"recall@{k}" for k in ks)]
    header += ["QPS one", "batched", "parallel", "p50 ms", "p95", "p99", "build s", "MB", "peak MB"]
    lines = []
    for one in records:
        settings = {**one["settings"]["build"], **one["settings"]["search"]}
        peak = one.get("peak_memory_bytes")
        lines.append(
            [
                one["library"],
                " ".join(f"{_SHORT.get(name, name)}={value}" for name, value in settings.items()),
                *(f"{one['recall'][k]:.4f}" for k in ks),
                *(f"{one['qps'][mode]:,.0f}" for mode in ("single", "batched", "parallel")),
                *(f"{one['latency_ms'][name]:.3f}" for name in ("p50", "p95", "p99")),
                f"{one['build_s']:.1f}",
                f"{one['bytes'] / 1e6:.1f}",
                "" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    return Table(header, lines, left=2)
