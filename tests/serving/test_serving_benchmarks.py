"""The benchmarks of the model server: what they count and sum up; one tiny run of each."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _import_from_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_load_counts_what_is_answered_and_what_fails():
    import serving_load

    def works(*rows):
        assert [array.shape for array in rows] == [(4, 3)] * 2
        time.sleep(0.02)

    def fails(*_):
        raise ValueError("no such luck")

    figures = serving_load.drive([works, works, fails], batch=4, dim=3, seconds=0.3)
    assert 0 < figures["requests"] <= 30
    assert figures["rows_per_s"] == pytest.approx(4 * figures["requests_per_s"], rel=0.01)
    assert 20 <= figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["failed"] > 0 and figures["failure"] == "no such luck"


def test_load_takes_medians_of_ratios_within_rounds(tmp_path):
    import serving_load

    def figures(rows_per_s, failed=0):
        return {
            "requests": 10, "rows_per_s": rows_per_s, "p99_ms": 1.0, "failed": failed,
            "failure": "x" if failed else None,
        }  # fmt: skip

    rounds = {
        serving_load.IN_PROCESS: [figures(100), figures(200), figures(400)],
        "gRPC": [figures(50), figures(160, 2), figures(240)],
        "REST, batching": [figures(10)] * 3,
    }
    ways = serving_load.summary(rounds)
    assert ways["gRPC"]["of_in_process"] == 0.6  # of 0.5, 0.8, 0.6
    assert ways["gRPC"]["rows_per_s"] == 160
    assert (ways["gRPC"]["requests"], ways["gRPC"]["failed"]) == (30, 2)
    assert ways["gRPC"]["failure"] == "x"
    points = [{"clients": n, "batch": b, "ways": ways} for n in (1, 8) for b in (1, 128)]
    for name in ("load.svg", "load.png"):
        serving_load.plot({"points": points}, str(tmp_path / name))
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    "memory, failures, wrong, passed",
    [
        ([100, 105, 109], [], [], True),
        ([100, 112, 100], [], [], False),
        ([100, 100, 100], ["UNAVAILABLE"], [], False),
        ([100, 100, 100], [], ["version 2"], False),
    ],
)
def test_soak_passes_only_without_failures_and_growth(memory, failures, wrong, passed):
    import serving_soak

    load = serving_soak.Load("grpc://h:1/m", (), [])
    load.failures, load.wrong = failures, wrong
    record = {"minutes": [{"resident_bytes": size} for size in memory]}
    serving_soak.summarize(record, load)
    assert record["passed"] is passed
    assert record["growth"] == max(memory) / 100


@pytest.mark.slow
def test_load_runs(tmp_path):
    output = tmp_path / "load.json"
    sizes = "--clients 1 8 --batch_sizes 128 --seconds=0.5 --rounds=1 --dim=8 --hidden=16"
    command = [sys.executable, BENCHMARKS / "serving_load.py", *sizes.split()]
    plot = tmp_path / "load.svg"
    subprocess.run([*command, f"--output={output}", f"--plot={plot}"], check=True)
    record = json.loads(output.read_text())
    assert [point["clients"] for point in record["points"]] == [1, 8]
    for point in record["points"]:
        assert len(point["ways"]) == 6
        for way in point["ways"].values():
            assert way["failed"] == 0 and way["requests"] > 0
    assert record["of_in_process"] > 0 and plot.exists()


@pytest.mark.slow
def test_soak_runs(tmp_path):
    output = tmp_path / "soak.json"
    sizes = "--minutes=1 --dim=8 --hidden=16 --requests_per_s=50"
    command = [sys.executable, BENCHMARKS / "serving_soak.py", *sizes.split()]
    subprocess.run([*command, f"--output={output}"], check=True)
    record = json.loads(output.read_text())
    assert record["passed"] and record["swaps"] == 1 and record["requests"] > 100
    assert record["versions_that_answered"] == 2
    assert np.isfinite(record["growth"])
