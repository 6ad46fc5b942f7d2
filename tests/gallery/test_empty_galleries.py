"""Galleries without rows: the right answer, or one line before anything is written."""

import numpy as np
import pytest

from fct_tf import (
    backfilling_curve,
    evaluate,
    import_gallery,
    inspect_gallery,
    remove_rows,
    sample_gallery,
    verdict,
    verify_identities,
)
from fct_tf.backfill import plan
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from tests.builders import make_gallery, snapshot

DIM = 4
OLD = table.Column("old", DIM, "a" * 64)
X = table.Column("x", DIM, "b" * 64, kind="transformed", compatible_with=("c" * 64,))
NEW = table.Column("new", DIM, "c" * 64)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("empty", 0), ("full", 30)):
        make_gallery(tmp_path / f"{name}.lance", [OLD, X, NEW], num_rows=count)
    np.savez(tmp_path / "v.npz", v=np.ones((3, DIM), np.float32), ids=np.array(["a", "b", "c"]))
    (tmp_path / "ids.txt").write_text("gallery/1\n")
    return tmp_path


SIDES = [("empty", "empty"), ("empty", "full"), ("full", "empty")]
COLUMNS = ["--gallery_column=x", "--query_column=new"]


@pytest.mark.parametrize("query, gallery", SIDES)
@pytest.mark.parametrize(
    "door, flags",
    [
        (evaluate, COLUMNS),
        (evaluate, [*COLUMNS, "--search=scann", "--per_class_output=c.csv"]),
        (verify_identities, COLUMNS),
        (backfilling_curve, ["--column=x", "--target_column=new", "--policies=random"]),
        (verdict, ["--old=old", "--upgraded=x", "--new=new", "--sample={query}.lance"]),
    ],
)
def test_nothing_to_measure(paths, run_door, capsys, door, flags, query, gallery):
    before = snapshot(paths / "full.lance")
    flags = [flag.format(query=query) for flag in flags]
    flags += [] if door is verdict else [f"--query={query}.lance"]
    assert run_door(door, f"--gallery={gallery}.lance", "--output=out.json", *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: empty.lance: has no rows; name a gallery with some"
    assert snapshot(paths / "full.lance") == before


@pytest.mark.parametrize(
    "door, flags",
    [
        (sample_gallery, ["--share=0.5", "--output=s.lance"]),
        (sample_gallery, ["--rows=5", "--output=s.lance"]),
        (sample_gallery, ["--backfilled=x", "--output=s.lance"]),
        (import_gallery, ["--embeddings=v.npz", "--key=v", "--column=y", "--model_name=m"]),
    ],
)
def test_nothing_to_work_on(paths, run_door, capsys, door, flags):
    before = snapshot(paths / "full.lance")
    assert run_door(door, "--gallery=empty.lance", *flags) == 2
    assert "empty.lance: has no rows" in capsys.readouterr().err
    assert snapshot(paths / "full.lance") == before


def test_nothing_to_backfill(paths):
    with pytest.raises(InputError, match="has no rows"):
        plan.check(table.open("empty.lance"), "x", None, False)


def test_right_answers(paths, run_door, capsys):
    assert run_door(inspect_gallery, "--gallery=empty.lance", "--verify") == 0
    assert "no problems" in capsys.readouterr().out
    assert run_door(inspect_gallery, "--gallery=empty.lance", "--sources=full.lance") == 0
    assert "0 rows here are not there any more, 30 rows there" in capsys.readouterr().out
    assert run_door(remove_rows, "--gallery=empty.lance", "--ids=ids.txt", "--purge") == 0
    assert "0 of 0 rows removed" in capsys.readouterr().out


def test_a_gallery_all_of_whose_rows_were_deleted(paths, run_door, capsys):
    table.open("full.lance").dataset.delete("true")
    flags = ["--gallery=full.lance", *COLUMNS, "--output=out.json"]
    assert run_door(evaluate, *flags) == 2
    assert "full.lance: has no rows" in capsys.readouterr().err
