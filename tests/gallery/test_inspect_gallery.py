"""What inspect_gallery prints, verifies and tags."""

import json

import numpy as np
import pyarrow as pa
import pytest

from fct_tf import inspect_gallery
from fct_tf.gallery import table

OLD = table.imported_space("old net")
NEW = table.imported_space("new net")


def column(name, space, model, **settings):
    return table.Column(name, 3, space, created_by={"model": model}, **settings)


@pytest.fixture
def path(tmp_path):
    ids = np.array([f"i{row}" for row in range(31)], object)
    labels = np.array(["x"] * 20 + [None] * 11, object)
    rows = table.Rows(ids, labels, {"old": np.ones((31, 3), np.float32)})
    path = tmp_path / "g.lance"
    gallery = table.create(path, [rows], [column("old", OLD, "old net")], rows_per_file=7)
    origins = ["transformed", "backfilled"]
    table.add_column(
        gallery,
        column("fct", NEW, "new net", kind="transformed", compatible_with=(OLD,)),
        lambda rows: {
            "fct": rows.vectors["old"],
            "fct_origin": [origins[len(rows) == 3]] * len(rows),
        },
        ["old"],
        extra_fields=[pa.field("fct_origin", pa.string())],
    )
    return path


def test_the_table(path, run_door, capsys):
    assert run_door(inspect_gallery, f"--gallery={path}") == 0
    out = capsys.readouterr().out
    assert f"{path}, version 2: 31 rows, 20 labelled, 5 fragments" in out
    fct = next(line for line in out.splitlines() if line.startswith("fct "))
    assert fct.split() == [
        "fct", "3", "float32", "transformed", "l2", "new", "net", NEW[:12], OLD[:12], "3",
    ]  # fmt: skip
    assert "fct_origin (string)" in out and "verified" not in out


def test_json_has_full_fingerprints(path, run_door, capsys):
    assert run_door(inspect_gallery, f"--gallery={path}@1", "--json", "--verify") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["version"] == 1 and record["num_rows"] == 31 and record["problems"] == []
    assert [entry["space"] for entry in record["columns"]] == [OLD]
    assert [entry["version"] for entry in record["versions"]] == [1, 2]


def test_going_live_and_back(path, run_door, capsys):
    assert run_door(inspect_gallery, f"--gallery={path}", "--tag=live", "--verify") == 0
    assert table.open(f"{path}@live").version == 2
    out = capsys.readouterr().out
    assert "<- live" in out and "no problems" in out
    assert run_door(inspect_gallery, f"--gallery={path}@1", "--tag=live") == 0
    assert list(table.open(f"{path}@live").columns) == ["old"]
    assert run_door(inspect_gallery, f"--gallery={path}@live", "--tag=archived") == 0
    assert table.open(f"{path}@archived").version == 1


def test_problems_are_an_error_and_nothing_goes_live(path, run_door, capsys):
    bad = pa.table(
        {"id": ["i5"], "old": pa.array([[1.0, float("nan"), 1.0]], pa.list_(pa.float32(), 3))}
    )
    table.open(path).dataset.merge_insert("id").when_matched_update_all().execute(bad)
    assert run_door(inspect_gallery, f"--gallery={path}", "--verify", "--tag=live") == 2
    captured = capsys.readouterr()
    assert "1 rows with NaN or infinity in column 'old': 'i5'" in captured.out
    assert "'i5'; tag 'live' is not moved" in captured.err
    assert not table.open(path).dataset.tags.list()


@pytest.mark.parametrize(
    ("gallery", "flags", "message"),
    [
        ("nothing.lance", [], "no gallery"),
        ("g.lance@9", [], "no version 9"),
        ("g.lance@live", [], "no tag 'live'"),
        ("g.lance", ["--tag=a b"], "tag 'a b'"),
        ("g.lance", ["--tga=x"], "tga"),
    ],
)
def test_bad_input(path, run_door, capsys, gallery, flags, message):
    assert run_door(inspect_gallery, f"--gallery={path.parent / gallery}", *flags) == 2
    assert message in capsys.readouterr().err
