"""Working directories and files: claimed, resumed, refused, replaced."""

import json
import os
import socket
import subprocess
import sys

import pytest

from fct_tf.common import files, runs
from fct_tf.common.errors import InputError


def finish(workdir):
    (workdir / "artifact").mkdir()


def test_unfinished_run_is_resumed(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "run" / "artifact"
    assert not runs.begin(workdir, output, {"a": 1}, "refuse")
    (workdir / "checkpoints").mkdir()
    assert not runs.begin(workdir, output, {"a": 1}, "refuse")
    assert (workdir / "checkpoints").exists()


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
    # Nothing has been made yet: the settings may still change.
    runs.begin(workdir, output, {"a": {"b": 1, "c": 3}}, "refuse")
    runs.begin(workdir, output, {"a": {"b": 1, "c": 2}}, "refuse")
    (workdir / "checkpoints").mkdir()
    (workdir / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a\.b: 1 -> 5"):
        runs.begin(workdir, output, {"a": {"b": 5, "c": 2}}, "refuse")
    assert (workdir / "checkpoints").exists()
    assert not runs.begin(workdir, output, {"a": {"b": 5, "c": 2}}, "skip")
    assert not (workdir / "checkpoints").exists()
    assert (workdir / "thesis.txt").read_text() == "mine"
    assert json.loads((workdir / "settings.json").read_text()) == {"a": {"b": 5, "c": 2}}


def test_what_is_not_known_to_be_a_run_is_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="'checkpoints' but no settings.json"):
        runs.begin(tmp_path, tmp_path / "artifact", {}, "overwrite")
    assert (tmp_path / "checkpoints").exists()


def test_changes_lists_added_and_removed_keys():
    assert runs.changes({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]
    assert runs.changes({"a": [1, 2]}, {"a": [1, 2]}) == []


def test_workdir_below_a_regular_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file.* is in the way"):
        runs.begin(tmp_path / "file" / "run", tmp_path / "none", {}, "refuse")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("there, kept", [
    ("", []),
    ("a", ["a"]),
    ("a/run", ["a", "a/run"]),
    ("a/run/x", ["a", "a/run", "a/run/x"]),
])  # fmt: skip
def test_what_a_lock_leaves(tmp_path, there, kept):
    """Nothing that was made for it and stayed empty; all that was there before."""
    run = tmp_path / "a" / "run"
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ZeroDivisionError), runs.locked(run, "it"):
        for _ in range(2):  # Who is refused takes nothing away.
            with pytest.raises(InputError, match="it: another process is at work"):
                with runs.locked(run, "it"):
                    pass
        raise ZeroDivisionError
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == kept
    with runs.locked(run, "it"):
        (run / "made").touch()
    assert (run / "made").exists()


def test_a_lock_whose_directory_went_leaves_that_of_the_next(tmp_path):
    with runs.locked(tmp_path / "run", "it"):
        (tmp_path / "run").rmdir()
        (tmp_path / "run").mkdir()
    assert (tmp_path / "run").exists()


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


def test_atomic_dir_made_by_another_process_meanwhile(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(InputError, match="exists already"):
        with files.atomic_dir(target) as late:
            (late / "late").write_text("x")
            with files.atomic_dir(target) as early:
                (early / "early").write_text("x")
            assert (late / "late").exists()
    assert [path.name for path in target.iterdir()] == ["early"]
    with files.atomic_dir(target, overwrite=True) as late:
        with files.atomic_dir(target, overwrite=True) as early:
            (early / "early").write_text("x")
        (late / "late").write_text("x")
    assert [path.name for path in target.iterdir()] == ["late"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_atomic_dir_lost_between_its_renames(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("x")
    replace = files.os.replace

    def fails(made_meanwhile):
        def move(source, destination):
            if destination == target and str(source).endswith(".tmp"):
                if made_meanwhile:
                    target.mkdir()
                    (target / "other").write_text("x")
                raise OSError("not empty")
            replace(source, destination)

        return move

    for made_meanwhile, error, left in ((False, OSError, "old"), (True, InputError, "other")):
        monkeypatch.setattr(files.os, "replace", fails(made_meanwhile))
        with pytest.raises(error):
            with files.atomic_dir(target, overwrite=True) as directory:
                (directory / "new").write_text("x")
        assert [path.name for path in target.iterdir()] == [left]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left(tmp_path, caplog):
    """Removed where its process is known to be gone, else named."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname().replace(".", "-")
    dead = tmp_path / f".out.{here}.{ended.pid}.01234567.tmp"
    alive = tmp_path / f".out.{here}.{os.getpid()}.01234567.tmp"
    elsewhere = tmp_path / f".out.another.{ended.pid}.01234567.tmp"
    for left in (dead, alive, elsewhere):
        left.mkdir()
    with files.atomic_dir(tmp_path / "out"):
        pass
    assert not dead.exists() and alive.exists() and elsewhere.exists()
    assert str(alive) in caplog.text and str(elsewhere) in caplog.text


def test_a_text_that_cannot_be_written(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="x: cannot be written"):
        files.atomic_write_text(tmp_path / "x", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "obj, lines",
    [
        ([], ["[", "", "]"]),
        ([{"a": 0.1, "b": [1, None]}, {"a": "ä\n"}], None),
        ({"x": {"y": [1e-07, 2]}, 'a "b"': [[1], [2]]}, None),
    ],
)
def test_results_have_a_record_a_line(tmp_path, obj, lines):
    path = tmp_path / "results.json"
    files.write_records(path, obj)
    assert files.read_json(path) == obj
    written = path.read_text().splitlines()
    assert len(written) == len(obj) + 2 if lines is None else written == lines
    if isinstance(obj, dict):
        assert list(files.read_json(path)) == list(obj)
    with pytest.raises(ValueError):
        files.write_records(path, [float("nan")])
    assert files.read_json(path) == obj


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
