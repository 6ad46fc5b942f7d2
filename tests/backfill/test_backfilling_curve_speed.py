"""The benchmark of backfilling curves runs at a tiny size, on made and on stored rows."""

import sys

import numpy as np
import pytest

from fct_tf.common.files import read_json
from tests.builders import write_gallery


@pytest.mark.parametrize("stored", [False, True])
def test_both_methods_agree(tmp_path, script, monkeypatch, stored):
    rows = "--count=60"
    if stored:
        generator = np.random.default_rng(0)
        for name in ("train", "test"):
            old, new = generator.normal(size=(2, 120, 4)).astype(np.float32)
            vectors = {"embedding_old": old, "embedding_new": new}
            labels = [f"c{row % 30}" for row in range(120)]
            write_gallery(tmp_path / f"{name}.lance", vectors, labels, ids=name)
        rows = f"--rows={tmp_path}"
    output = tmp_path / "speed.json"
    arguments = [rows, "--orders=2", "--rounds=1", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["backfilling_curve_speed.py", *arguments])
    script("backfilling_curve_speed").main()
    record = read_json(output)
    assert record["rows"] == (120 if stored else 60)
    assert [(found["method"], found["curves"]) for found in record["methods"]] == [
        ("22 evaluations", 1),
        ("incremental", 1),
        ("incremental", 2),
    ]
    assert all(found["cpu_seconds"] > 0 for found in record["methods"])
