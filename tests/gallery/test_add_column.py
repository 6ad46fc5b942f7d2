"""Columns added in one commit: beside others' commits, stopped, killed and resumed."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf.common.errors import InputError
from fct_tf.gallery import fragments, table
from tests.gallery.tables import column, doubled, files_of, rows


@pytest.mark.parametrize("batch_size", [1, 7, 8192])
def test_add_column(gallery, batch_size):
    seen = []

    def compute(batch):
        seen.append(len(batch))
        return doubled(batch)

    new = column("b", kind="transformed", compatible_with=("x",))
    table.tag(gallery.path, "live")
    added = table.add_column(gallery, new, compute, ["a"], batch_size=batch_size)
    assert added.version == 2 and added.columns["b"] == new
    assert max(seen) <= batch_size and sum(seen) == 101
    read = added.read(["a", "b"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)
    assert added.columns["a"] == gallery.columns["a"]
    assert table.open(f"{gallery.path}@live").version == 1
    assert not os.path.exists(f"{gallery.path}.jobs")
    assert added.dataset.schema.metadata == {b"fct.format": b"1"}
    added.dataset.validate()


@pytest.mark.parametrize("batch_size", [1, 5, 8192])
def test_deleted_rows_get_no_value(gallery, batch_size):
    gallery.dataset.delete("id in ('row 0', 'row 7', 'row 33', 'row 34', 'row 35', 'row 100')")
    left = table.open(gallery.path)
    added = table.add_column(left, column("b"), doubled, ["a"], batch_size=batch_size)
    read = added.read(["a", "b"])
    assert len(read) == 95 and list(read.ids) == list(left.read([]).ids)
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)


def with_companions(batch):
    certain = np.arange(len(batch), dtype=np.float32)
    certain[0] = np.nan
    origin = ["transformed"] * len(batch)
    return {"b": doubled(batch), "b_origin": origin, "b_log_variance": certain}


COMPANIONS = (pa.field("b_origin", pa.string()), pa.field("b_log_variance", pa.float32()))


def test_companion_fields_come_and_go_with_their_column(gallery):
    added = table.add_column(
        gallery, column("b"), with_companions, ["a"], extra_fields=COMPANIONS, batch_size=200
    )
    assert added.version == 2
    read = added.read(["b"], fields=["b_origin", "b_log_variance"])
    assert set(read.fields["b_origin"]) == {"transformed"}
    assert np.isnan(read.fields["b_log_variance"][0]) and read.fields["b_log_variance"][1] == 1
    assert added.dataset.to_table(["b_log_variance"])["b_log_variance"].null_count == 6
    # A replacement without log-variance must not leave that of the old values behind.
    replaced = table.add_column(
        added,
        column("b", 3, model="other"),
        lambda batch: batch.vectors["a"][:, :3] * 3,
        ["a"],
        overwrite=True,
    )
    assert replaced.version == 3
    assert replaced.dataset.schema.names == ["id", "label", "a", "b"]
    assert replaced.columns["b"].dim == 3 and replaced.columns["b"].model == "other"
    read = replaced.read(["a", "b"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"][:, :3] * 3)
    replaced.dataset.validate()
    # Back to the version before, then forward again.
    assert table.open(f"{gallery.path}@2").columns["b"].dim == 4
    table.open(f"{gallery.path}@2").dataset.restore()
    assert "b_origin" in table.open(gallery.path).dataset.schema.names


def test_an_existing_column_is_refused(gallery):
    added = table.add_column(gallery, column("b"), doubled, ["a"])
    with pytest.raises(InputError, match="column 'b' exists already; pass `overwrite=True`"):
        table.add_column(added, column("b"), doubled, ["a"])
    with pytest.raises(InputError, match="'label': not a possible column name"):
        table.add_column(added, column("label"), doubled, ["a"])
    assert table.open(gallery.path).version == 2


def test_changes_go_to_the_newest_version(gallery):
    table.add_column(gallery, column("b"), doubled, ["a"])
    # An unpinned gallery follows; one opened at an old version does not.
    table.add_column(gallery, column("c"), doubled, ["a"])
    with pytest.raises(InputError, match="newest version \\(3\\), not to 1"):
        table.add_column(table.open(f"{gallery.path}@1"), column("d"), doubled, ["a"])


def test_commits_of_others_meanwhile_are_kept(gallery):
    first = []

    def compute(batch):
        if not first:
            first.append(1)
            table.add_column(table.open(gallery.path), column("other"), doubled, ["a"])
        return batch.vectors["a"] * 5

    added = table.add_column(gallery, column("b"), compute, ["a"])
    read = added.read(["a", "b", "other"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 5)
    np.testing.assert_array_equal(read.vectors["other"], read.vectors["a"] * 2)
    assert added.version == 3
    added.dataset.validate()


def test_rows_changed_meanwhile_are_computed_again(gallery):
    first = []

    def compute(batch):
        if len(first) == 4:
            gallery.dataset.delete("id = 'row 3'")
        first.append(len(batch))
        return doubled(batch)

    with pytest.raises(InputError, match="rows have changed"):
        table.add_column(gallery, column("b"), compute, ["a"])
    assert "b" not in table.open(gallery.path).columns
    before = len(first)
    added = table.add_column(table.open(gallery.path), column("b"), compute, ["a"])
    assert first[before:] == [16]  # Only the fragment with the deleted row.
    read = added.read(["a", "b"])
    assert len(read) == 100
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)


def test_a_stopped_job_goes_on(gallery):
    calls = []
    stopped(gallery)
    assert table.open(gallery.path).version == 1
    added = table.add_column(gallery, column("b"), counted(calls), ["a"])
    assert calls == [17, 17, 16]
    read = added.read(["a", "b"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)
    assert added.version == 2 and not os.path.exists(f"{gallery.path}.jobs")


def test_a_job_refused_at_its_first_fragment_leaves_nothing(gallery, tmp_path, capfd):
    before = files_of(tmp_path)

    def bad(batch):
        vectors = doubled(batch)
        vectors[3] = np.inf
        return vectors

    with pytest.raises(InputError, match="column 'b': row 'row 3' with NaN or infinity"):
        table.add_column(gallery, column("b"), bad, ["a"])
    assert files_of(tmp_path) == before
    assert capfd.readouterr().err == ""


def stopped(gallery, name="b", **settings):
    """Leaves a job of a column with its first three fragments finished."""
    calls = []

    def stopping(batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return doubled(batch)

    with pytest.raises(KeyboardInterrupt):
        table.add_column(gallery, column(name), stopping, ["a"], **settings)


def counted(calls):
    return lambda batch: calls.append(len(batch)) or doubled(batch)


def test_what_lies_in_the_job_directory_is_not_touched(gallery, tmp_path):
    place = tmp_path / "place"
    (place / "b").mkdir(parents=True)
    for name in ("job.json", "notes.txt", "b/notes.txt"):
        (place / name).write_text("precious")
    stopped(gallery, job_dir=place)
    stopped(gallery, "c", job_dir=place)
    # Other settings: the job of b starts from scratch, that of c goes on.
    for name, model, computed in (("b", "other", 6), ("c", "c", 3)):
        calls = []
        table.add_column(gallery, column(name, model=model), counted(calls), ["a"], job_dir=place)
        assert len(calls) == computed
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert left == ["b/notes.txt", "job.json", "notes.txt"]
    assert (place / "b/notes.txt").read_text() == "precious" and not (place / "c").exists()


def test_a_job_file_of_something_else_is_refused(gallery, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/job.json").write_text('["mine"]')
    with pytest.raises(InputError, match="job.json: not written by a job; choose another job_dir"):
        table.add_column(gallery, column("b"), doubled, ["a"], job_dir=tmp_path)
    assert (tmp_path / "b/job.json").read_text() == '["mine"]'


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_staged_files_that_are_gone_are_computed_again(gallery, tmp_path, remote, damage):
    known = set(os.listdir(f"{gallery.path}/data"))
    opened = table.open(f"file://{gallery.path}" if remote else gallery.path)
    stopped(opened, job_dir=tmp_path / "job")
    first, *others = (f for f in os.listdir(f"{gallery.path}/data") if f not in known)
    assert len(others) >= 2
    if damage == "missing":
        os.unlink(f"{gallery.path}/data/{first}")
    else:
        os.truncate(f"{gallery.path}/data/{first}", 50)
    calls = []
    added = table.add_column(
        opened, column("b"), counted(calls), ["a"], job_dir=tmp_path / "job", batch_size=100
    )
    assert len(calls) == 4  # Three fragments were never finished.
    read = added.read(["a", "b"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)
    assert table.verify(table.open(gallery.path)) == []


def test_what_is_returned_is_what_was_committed(gallery, monkeypatch):
    commit = fragments.commit

    def overtaken(path, *arguments, **settings):
        version = commit(path, *arguments, **settings)
        lance.dataset(path).delete("id = 'row 3'")
        return version

    monkeypatch.setattr(fragments, "commit", overtaken)
    added = table.add_column(gallery, column("b"), doubled, ["a"])
    monkeypatch.undo()
    assert (added.version, added.num_rows) == (2, 101)
    assert table.open(gallery.path).version == 3
    further = table.add_column(added, column("c"), doubled, ["a"])
    assert (further.version, further.num_rows) == (4, 100)


def test_a_slash_at_the_end_of_a_path_changes_nothing(gallery, tmp_path):
    for uri in (
        f"{gallery.path}/",
        f"{gallery.path}//",
        f"{gallery.path}/@1",
        gallery.path + "@1/",
    ):
        assert table.open(uri).path == gallery.path
    before = set(os.listdir(gallery.path))
    stopped(table.open(f"{gallery.path}/"))
    assert set(os.listdir(gallery.path)) == before
    assert os.path.isdir(f"{gallery.path}.jobs/b")


def test_a_column_may_be_named_twice(gallery):
    once = gallery.read(["a"]).vectors
    twice = gallery.read(["a", "a"], fields=["label", "label"]).vectors
    np.testing.assert_array_equal(twice["a"], once["a"])
    assert len(gallery.take(["row 1"], ["a", "a"])) == 1
    added = table.add_column(gallery, column("b"), doubled, ["a", "a"])
    np.testing.assert_array_equal(added.read(["b"]).vectors["b"], once["a"] * 2)


SCRIPT = """
    import sys, time
    import numpy as np
    from fct_tf.gallery import table
    path, model = sys.argv[1:]
    def compute(batch):
        time.sleep(0.01)
        return batch.vectors["a"] * 2
    column = table.Column("b", 4, table.imported_space(model), created_by={"model": model})
    print("ready", flush=True)
    table.add_column(table.open(path), column, compute, ["a"], overwrite="+" in model)
"""


def kill_and_resume(tmp_path, seed, kills):
    path = tmp_path / "g.lance"
    if not path.exists():
        table.create(path, [rows(211)], [column("a")], rows_per_file=7)
        table.tag(path, "live")
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(SCRIPT))
    start = table.open(path).version
    generator = random.Random(seed)
    command = [sys.executable, str(script), str(path), "model" if start == 1 else f"model +{start}"]
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(generator.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        killed += process.returncode == -signal.SIGKILL
        if table.open(path).version > start:
            break
        assert table.open(path).num_rows == 211
    if table.open(path).version == start:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    gallery = table.open(path)
    assert gallery.version == start + 1
    read = gallery.read(["a", "b"])
    np.testing.assert_array_equal(read.ids, rows(211).ids)
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)
    assert table.open(f"{path}@live").version == 1
    assert table.verify(gallery) == []
    gallery.dataset.validate()
    return killed


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_job_ends_in_the_same_content_with_one_commit(tmp_path, seed):
    assert kill_and_resume(tmp_path, seed, kills=1) == 1


@pytest.mark.slow
def test_many_kills_also_while_a_column_is_replaced(tmp_path):
    assert sum(kill_and_resume(tmp_path, seed, kills=3) for seed in range(6)) >= 10
