"""The benchmark of the transformation runs and writes what it measured."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_benchmark_runs(tmp_path):
    script = ROOT / "benchmarks" / "transformation_speed.py"
    output = tmp_path / "speed.json"
    command = [sys.executable, str(script), "--rounds=1", "--batch_sizes", "61", "127"]
    done = subprocess.run([*command, f"--output={output}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    # 11.4 MFLOP: twice the weights of the dense layers, 5.7 million.
    weights = 2 * (128 * 256 + 256 * 256) + 512 * 2048 + 2048 * 2048 + 2048 * 128
    assert record["mflop_per_row"] == 2 * weights / 1e6
    assert {result["batch_size"] for result in record["results"]} == {61, 127}
    for result in record["results"]:
        # How near to the peak is a measurement: on a shared machine one part of it runs beside
        # others' work and another does not.
        assert result["of_float32_peak"] > 0
        assert result["rows_per_s"] > 0
    assert record["peak_gflop_per_s"]["float32"] > 0
