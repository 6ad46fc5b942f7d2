"""Exact CMC and mAP: the blocked evaluation of this package beside the dense textbook one.

The dense one keeps the whole distance matrix, sorts all indices and takes cumulative sums, as
evaluation code of papers does; where rows tie it agrees only by chance, so the data has none. Each
method runs in a process of its own, in turn, several rounds; what counts is the median of the
ratio within a round (the speed of a shared machine swings) and the peak memory of the process.

  python benchmarks/evaluate_speed.py --rows 2000 13180 --output=results/evaluate_speed.json

With --gallery and --column the rows are those of a gallery, and the sizes are not used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import machine
import numpy as np

ROWS_PER_LABEL = 20
METHODS = ("blocked", "dense")


def rows(count: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters of `ROWS_PER_LABEL` rows: float32 [count, dim], ids and labels."""
    generator = np.random.default_rng(0)
    label = np.arange(count) // ROWS_PER_LABEL
    centres = generator.normal(size=(label[-1] + 1, dim))
    vectors = centres[label] + 2 * generator.normal(size=(count, dim))
    names = [np.array([f"{kind}{x}" for x in of], object) for kind, of in
             (("id", range(count)), ("label", label))]  # fmt: skip
    return vectors.astype(np.float32), names[0], names[1]


def dense(vectors: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float | None], float | None]:
    """CMC and mAP of all rows against all others, with everything in memory."""
    codes = np.unique(labels, return_inverse=True)[1]
    norms = np.square(vectors).sum(axis=1)
    distances = norms[:, None] + norms[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)[:, :-1]
    match = codes[order] == codes[:, None]
    precision = np.cumsum(match, axis=1) / np.arange(1, match.shape[1] + 1)
    average = (precision * match).sum(axis=1) / match.sum(axis=1)
    cmc: dict[str, float | None] = {str(k): float(match[:, :k].any(axis=1).mean()) for k in (1, 5)}
    return cmc, float(average.mean())


def measure(method: str, arguments: argparse.Namespace) -> dict:
    """One method in this process: seconds, peak memory and the metrics."""
    if arguments.gallery:
        from fct_tf.gallery import table

        read = table.open_gallery(arguments.gallery).read([arguments.column], with_labels=True)
        vectors, ids, labels = read.vectors[arguments.column], read.ids, np.array(read.labels)
    else:
        vectors, ids, labels = rows(arguments.rows[0], arguments.dim)
    from fct_tf.retrieval import exact, metrics

    before = machine.peak_bytes()
    start = time.perf_counter()
    if method == "dense":
        cmc, mean = dense(vectors, labels)
    else:
        found = exact.per_query(vectors, ids, labels, vectors, ids, labels)
        cmc = metrics.cmc(found.rank, (1, 5))
        mean = metrics.mean_average_precision(found.average_precision)
    return {
        "seconds": time.perf_counter() - start,
        "peak_bytes": machine.peak_bytes(),
        "peak_bytes_before": before,
        "rows": len(vectors),
        "cmc": cmc,
        "map": mean,
    }


def compare(arguments: argparse.Namespace, count: int) -> dict:
    """All methods at one size, `--rounds` times in turn."""
    runs: dict[str, list[dict]] = {method: [] for method in METHODS}
    for _ in range(arguments.rounds):
        for method in METHODS:
            command = [sys.executable, __file__, f"--measure={method}", f"--rows={count}"]
            command += [f"--dim={arguments.dim}"]
            if arguments.gallery:
                command += [f"--gallery={arguments.gallery}", f"--column={arguments.column}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[method].append(json.loads(done.stdout))
    blocked, other = (runs[method] for method in METHODS)
    for key in ("1", "5"):
        np.testing.assert_allclose(blocked[0]["cmc"][key], other[0]["cmc"][key], atol=2e-4)
    np.testing.assert_allclose(blocked[0]["map"], other[0]["map"], atol=1e-4)
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(blocked, other, strict=True)]
    record = {"rows": blocked[0]["rows"], "speedup": statistics.median(ratios)}
    for method in METHODS:
        record[method] = {
            "seconds": statistics.median(run["seconds"] for run in runs[method]),
            "fastest_seconds": min(run["seconds"] for run in runs[method]),
            "peak_bytes": max(run["peak_bytes"] for run in runs[method]),
            "cmc": runs[method][0]["cmc"],
            "map": runs[method][0]["map"],
        }
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 13180])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gallery", default="")
    parser.add_argument("--column", default="")
    parser.add_argument("--output", default="")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    from fct_tf.common import files, provenance

    record: dict = {
        "benchmark": "evaluate_speed",
        "command": machine.command(sys.argv),
        "dim": arguments.dim,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": machine.cpu(),
        "versions": provenance.library_versions(),
        "sizes": [],
    }
    for count in arguments.rows[: 1 if arguments.gallery else None]:
        size = compare(arguments, count)
        record["sizes"].append(size)
        for method in METHODS:
            seconds, peak = size[method]["seconds"], size[method]["peak_bytes"] / 1e9
            print(f"{size['rows']} rows, {method}: {seconds:.2f} s, peak {peak:.2f} GB")
        print(f"{size['rows']} rows: {size['speedup']:.1f} times as fast")
    if arguments.output:
        files.write_records(arguments.output, record)


if __name__ == "__main__":
    main()
