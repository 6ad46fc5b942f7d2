"""The benchmark of backfilling runs at tiny sizes and writes what it measured."""

import json
import sys

import pytest


@pytest.mark.slow
def test_ways_write_the_same_rows(tmp_path, script, monkeypatch):
    backfill_bytes = script("backfill_bytes")
    monkeypatch.setattr(sys, "argv", ["backfill_bytes.py"])
    output = tmp_path / "bytes.json"
    sizes = ["--rows=3000", "--dim=32", "--rows_per_file=1000", "--share=0.02"]
    backfill_bytes.main([*sizes, f"--output={output}"])
    record = json.loads(output.read_text())
    ways = record["ways"]
    assert {way["rows"] for way in ways.values()} == {60}
    # The cells of one column and ids, against whole rows of two columns.
    assert ways["own_gallery"]["bytes_per_row"] > ways["overlay"]["bytes_per_row"] > 4 * 32
    assert ways["beside_source"]["bytes_per_row"] > ways["own_gallery"]["bytes_per_row"] + 4 * 32
    assert ways["overlay"]["bytes_per_row"] < ways["merge_insert"]["bytes_per_row"]
    opens = {name: way["opens_without_setting"] for name, way in ways.items()}
    assert opens == {name: name != "overlay" for name in backfill_bytes.WAYS}
