"""The benchmark of the networks runs and writes what it measured."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_benchmark_runs(tmp_path):
    script = ROOT / "benchmarks" / "backbone_speed.py"
    output = tmp_path / "speed.json"
    command = [sys.executable, str(script), "--rounds=1", "--seconds=0.01", f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    results = record["results"]
    tasks = {(one["task"], one["name"]) for one in results}
    assert len(results) == len(tasks) == 8  # Four tasks, with oneDNN and without.
    assert all(one["per_s"] > 0 and one["ratio"] > 0 for one in results)
    # Without PyTorch there is nothing to reach.
    assert record["target"]["reached"] is None and not record["target"]["passed"]
