"""Backfilling curves: all 22 points from one pass over the distances beside 22 evaluations.

Needs a directory with `train.lance` and `test.lance`, galleries with the columns `embedding_old`
and `embedding_new`. T(old) is the ridge-affine map that is fitted on the former, its ridge chosen
on a tenth of the classes; the curves are those of the latter, in random orders. Each method runs
in a process of its own, in turn, several rounds. Seconds of CPU time count: other work on the
machine does not change them much. Both methods must agree.

  python benchmarks/backfilling_curve_speed.py --rows=DIR \\
      --output=results/backfilling_curve_speed.json

With --count instead of --rows the rows are made up, clusters of 20.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path

import evaluate_speed
import machine
import numpy as np

from fct_tf.backfill import curves as backfilling
from fct_tf.common import files, provenance
from fct_tf.gallery import reader
from fct_tf.models import linear
from fct_tf.retrieval import exact

OLD, NEW = "embedding_old", "embedding_new"
KS = (1, 5)
HELD_OUT = 10  # One class in so many chooses the ridge.


def stored_rows(directory: str) -> tuple[np.ndarray, backfilling.Side]:
    """T(old) float32 [n, d] of test.lance, and its new rows with ids and labels."""
    train, test = (
        reader.open_gallery(Path(directory) / name).read([OLD, NEW], with_labels=True)
        for name in ("train.lance", "test.lance")
    )
    assert train.labels is not None and test.labels is not None
    old, new = train.vectors[OLD], train.vectors[NEW]
    held_out = np.array([zlib.crc32(str(x).encode()) % HELD_OUT == 0 for x in train.labels])
    lam, _ = linear.choose_lambda(old, new, held_out)
    transformed = linear.apply(linear.ridge_affine(old, new, lam), test.vectors[OLD])
    return transformed.astype(np.float32), (test.vectors[NEW], test.ids, test.labels)


def made_rows(count: int) -> tuple[np.ndarray, backfilling.Side]:
    """As `stored_rows`: clusters, and the same rows with noise as T(old)."""
    new, ids, labels = evaluate_speed.rows(count, 128)
    noise = np.random.default_rng(1).normal(size=new.shape)
    return (new + noise).astype(np.float32), (new, ids, labels)


def full(transformed: np.ndarray, gallery: backfilling.Side, order: np.ndarray) -> list[dict]:
    """The curve from an evaluation of the whole gallery at every point."""
    vectors, ids, labels = gallery
    counts = backfilling.replaced(len(vectors))
    found, mixed = [], transformed.copy()
    for count in counts:
        mixed[order[:count]] = vectors[order[:count]]
        found.append(exact.per_query(*gallery, mixed, ids, labels))
    together = backfilling.Curves(
        counts,
        found[0].position,
        np.array([[point.rank for point in found]]),
        np.array([[point.average_precision for point in found]]),
        found[0].self_removed,
    )
    return backfilling.curve(together, 0, len(vectors), KS)


def measure(arguments: argparse.Namespace) -> dict:
    """One method in this process: seconds, peak memory and the curves."""
    if arguments.rows:
        transformed, gallery = stored_rows(arguments.rows)
    else:
        transformed, gallery = made_rows(arguments.count)
    count = len(transformed)
    orders = [np.random.default_rng([0, at]).permutation(count) for at in range(arguments.measure)]
    before = machine.peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    if orders:
        found = backfilling.per_query(gallery, transformed, gallery, orders)
        curves = [backfilling.curve(found, at, count, KS) for at in range(len(orders))]
    else:
        curves = [full(transformed, gallery, np.random.default_rng([0, 0]).permutation(count))]
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": machine.peak_bytes(),
        "peak_bytes_before": before,
        "rows": count,
        "auc": [backfilling.auc(points, KS) for points in curves],
        "curve": curves[0],
    }


def compare(arguments: argparse.Namespace) -> dict:
    """Curves of 1 and of several orders at once, and one curve by evaluations, in turn."""
    numbers = [0, *sorted({1, arguments.orders})]  # 0: by evaluations.
    runs: dict[int, list[dict]] = {number: [] for number in numbers}
    for _ in range(arguments.rounds):
        for number in numbers:
            command = [sys.executable, __file__, f"--measure={number}"]
            rows = f"--rows={arguments.rows}" if arguments.rows else f"--count={arguments.count}"
            done = subprocess.run([*command, rows], check=True, capture_output=True, text=True)
            runs[number].append(json.loads(done.stdout))
    expected = runs[0][0]
    record: dict = {"rows": expected["rows"], "methods": []}
    for number in numbers:
        made = runs[number][0]
        for key in ("1", "5", "map"):
            ours, theirs = (
                np.array(backfilling.values(run["curve"], key), np.float64)
                for run in (made, expected)
            )
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
        cpu = [run["cpu_seconds"] for run in runs[number]]
        per_curve = [seconds / max(1, number) for seconds in cpu]
        pairs = zip(runs[0], per_curve, strict=True)
        record["methods"].append(
            {
                "method": "incremental" if number else "22 evaluations",
                "curves": max(1, number),
                "cpu_seconds": statistics.median(cpu),
                "seconds": statistics.median(run["seconds"] for run in runs[number]),
                "peak_bytes": max(run["peak_bytes"] for run in runs[number]),
                "speedup_per_curve": statistics.median(a["cpu_seconds"] / b for a, b in pairs),
                "auc": made["auc"],
            }
        )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="")
    parser.add_argument("--count", type=int, default=13180)
    parser.add_argument("--orders", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="")
    parser.add_argument("--measure", type=int, default=-1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure >= 0:
        print(json.dumps(measure(arguments)))
        return
    record = {
        "benchmark": "backfilling_curve_speed",
        "command": machine.command(sys.argv),
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": machine.cpu(),
        "versions": provenance.library_versions(),
        **compare(arguments),
    }
    for found in record["methods"]:
        print(
            f"{record['rows']} rows, {found['method']}, {found['curves']} curves: "
            f"{found['cpu_seconds']:.1f} s of CPU, {found['seconds']:.1f} s, peak "
            f"{found['peak_bytes'] / 1e9:.2f} GB, {found['speedup_per_curve']:.1f} times as fast"
        )
    if arguments.output:
        files.write_records(arguments.output, record)


if __name__ == "__main__":
    main()
