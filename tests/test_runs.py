"""Working directories and files: claimed, resumed, refused, replaced."""

import json

import pytest

from fct_tf import files, runs
from fct_tf.errors import InputError


def finish(workdir):
    (workdir / "artifact").mkdir()


def test_unfinished_run_is_resumed(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "run" / "artifact"
    assert not runs.begin(workdir, output, {"a": 1}, "refuse")
    (workdir / "checkpoint").write_text("x")
    assert not runs.begin(workdir, output, {"a": 1}, "refuse")
    assert (workdir / "checkpoint").exists()


def test_finished_run(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "run" / "artifact"
    runs.begin(workdir, output, {"a": 1}, "refuse")
    finish(workdir)
    with pytest.raises(InputError, match="exists already"):
        runs.begin(workdir, output, {"a": 1}, "refuse")
    assert runs.begin(workdir, output, {"a": 1}, "skip")
    assert not runs.begin(workdir, output, {"a": 1}, "overwrite")
    assert not output.exists()


def test_other_settings_are_named(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "run" / "artifact"
    runs.begin(workdir, output, {"a": {"b": 1, "c": 2}}, "refuse")
    (workdir / "checkpoint").write_text("x")
    with pytest.raises(InputError, match=r"a\.b: 1 -> 5"):
        runs.begin(workdir, output, {"a": {"b": 5, "c": 2}}, "refuse")
    assert (workdir / "checkpoint").exists()
    assert not runs.begin(workdir, output, {"a": {"b": 5, "c": 2}}, "skip")
    assert not (workdir / "checkpoint").exists()
    assert json.loads((workdir / "settings.json").read_text()) == {"a": {"b": 5, "c": 2}}


def test_changes_lists_added_and_removed_keys():
    assert runs.changes({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]
    assert runs.changes({"a": [1, 2]}, {"a": [1, 2]}) == []


def test_workdir_below_a_regular_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file.* is in the way"):
        runs.begin(tmp_path / "file" / "run", tmp_path / "none", {}, "refuse")
    assert (tmp_path / "file").read_text() == "x"


def test_atomic_dir(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        with files.atomic_dir(target) as directory:
            (directory / "half").write_text("x")
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with files.atomic_dir(target) as directory:
        (directory / "whole").write_text("1")
    with pytest.raises(InputError, match="exists already"):
        with files.atomic_dir(target):
            pass
    with files.atomic_dir(target, overwrite=True) as directory:
        (directory / "other").write_text("2")
    assert [path.name for path in target.iterdir()] == ["other"]


def test_json_files(tmp_path):
    path = tmp_path / "deep" / "x.json"
    files.write_json(path, {"b": [1.5], "a": None})
    assert files.read_json(path) == {"b": [1.5], "a": None}
    with pytest.raises(ValueError):
        files.write_json(path, {"x": float("nan")})
    assert files.read_json(path) == {"b": [1.5], "a": None}
    path.write_text("{")
    with pytest.raises(InputError, match="x.json"):
        files.read_json(path)
    with pytest.raises(InputError, match="no such file"):
        files.read_json(tmp_path / "none.json")
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
