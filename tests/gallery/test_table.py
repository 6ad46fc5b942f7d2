"""Galleries: written, read, extended, tagged; killed jobs and bad rows."""

import json
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
from fct_tf.gallery.ids import UniqueIds


def column(name, dim=4, model=None, **settings):
    model = model or name
    created_by = {"door": "test", "model": model}
    return table.Column(name, dim, table.imported_space(model), created_by=created_by, **settings)


def rows(count, dim=4, seed=0, start=0, name="a"):
    generator = np.random.default_rng(seed)
    ids = np.array([f"row {row}" for row in range(start, start + count)], object)
    labels = np.array([f"c{row % 3}" if row % 5 else None for row in range(count)], object)
    return table.Rows(ids, labels, {name: generator.normal(size=(count, dim)).astype(np.float32)})


@pytest.fixture
def gallery(tmp_path):
    return table.create(tmp_path / "g.lance", [rows(101)], [column("a")], rows_per_file=17)


def doubled(batch):
    return batch.vectors["a"] * 2


def files_of(path):
    return sorted(str(file) for file in path.rglob("*"))


def test_what_is_written_is_read(tmp_path):
    written = rows(101)
    created_by = {"door": "embed_gallery", "model": "old", "settings": {"batch": 3}}
    old = table.Column(
        "a", 4, "f" * 64, "float32", "side_info", "cosine", ("e" * 64,), created_by=created_by
    )
    half = table.Column("h", 3, "0" * 64, "float16")
    written.vectors["h"] = np.arange(303, dtype=np.float32).reshape(101, 3)
    parts = [
        table.Rows(
            written.ids[a:b], written.labels[a:b], {k: v[a:b] for k, v in written.vectors.items()}
        )
        for a, b in ((0, 40), (40, 101))
    ]
    path = tmp_path / "g.lance"
    table.create(path, parts, [old, half], rows_per_file=17)
    gallery = table.open(path)
    assert gallery.columns == {"a": old, "h": half}
    assert gallery.columns["a"].model == "old"
    assert (gallery.num_rows, gallery.version, len(gallery.dataset.get_fragments())) == (101, 1, 6)
    read = gallery.read(["h", "a"], with_labels=True)
    np.testing.assert_array_equal(read.ids, written.ids)
    np.testing.assert_array_equal(read.labels, written.labels)
    for name in ("a", "h"):
        assert read.vectors[name].dtype == np.float32
        np.testing.assert_array_equal(read.vectors[name], written.vectors[name])
    # The contract is what the Arrow schema says, for other tools.
    schema = lance.dataset(str(path)).schema
    assert schema.metadata == {b"fct.format": b"1"}
    assert schema.field("id").type == pa.string() and not schema.field("id").nullable
    metadata = schema.field("a").metadata
    assert metadata[b"fct.space"] == b"f" * 64 and metadata[b"fct.distance"] == b"cosine"
    assert json.loads(metadata[b"fct.compatible_with"]) == ["e" * 64]
    assert json.loads(metadata[b"fct.created_by"]) == created_by
    assert files_of(tmp_path)[0] == str(path)


@pytest.mark.parametrize("batch_size", [1, 7, 8192])
def test_batches_cover_every_row_once(gallery, batch_size):
    whole = gallery.read(["a"], with_labels=True)
    parts = list(gallery.batches(["a"], batch_size, with_labels=True))
    assert max(len(part) for part in parts) <= batch_size
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    vectors = np.concatenate([part.vectors["a"] for part in parts])
    np.testing.assert_array_equal(vectors, whole.vectors["a"])
    assert len(next(gallery.batches(["a"], with_ids=False)).ids) == 0


def test_take_by_id_in_the_order_asked_for(gallery):
    whole = gallery.read(["a"])
    wanted = ["row 100", "row 3", "row 55", "row 3"]
    taken = gallery.take(wanted, ["a"])
    assert list(taken.ids) == wanted
    np.testing.assert_array_equal(taken.vectors["a"], whole.vectors["a"][[100, 3, 55, 3]])
    assert len(gallery.take([], ["a"])) == 0
    with pytest.raises(InputError, match="no row with id 'row 101' and 1 more"):
        gallery.take(["row 1", "row 101", "row 102"], ["a"])


def test_rows_are_matched_by_id_after_an_update_moved_them(gallery):
    update = pa.table(
        {
            "id": ["row 7"],
            "a": pa.FixedSizeListArray.from_arrays(pa.array([9.0] * 4, pa.float32()), 4),
        }
    )
    before = list(gallery.read([]).ids)
    gallery.dataset.merge_insert("id").when_matched_update_all().execute(update)
    moved = table.open(gallery.path)
    assert list(moved.read([]).ids) != before
    np.testing.assert_array_equal(moved.take(["row 7"], ["a"]).vectors["a"], [[9.0] * 4])
    assert moved.columns == gallery.columns
    added = table.add_column(moved, column("b"), doubled, ["a"])
    np.testing.assert_array_equal(added.take(["row 7"], ["b"]).vectors["b"], [[18.0] * 4])
    assert added.num_rows == 101


def test_labels_may_be_absent_or_a_dictionary(tmp_path):
    base = rows(10)
    schema = pa.schema([pa.field("id", pa.string()), column("a").to_field()], {"fct.format": "1"})
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.vectors["a"].reshape(-1)), 4)
    without = tmp_path / "without.lance"
    lance.write_dataset(
        pa.Table.from_arrays([pa.array(base.ids), vectors], schema=schema), str(without)
    )
    assert list(table.open(without).read(["a"], with_labels=True).labels) == [None] * 10
    dictionary = tmp_path / "dictionary.lance"
    schema = schema.append(pa.field("label", pa.dictionary(pa.int32(), pa.string())))
    labels = pa.array(base.labels, pa.string()).dictionary_encode()
    arrays = [pa.array(base.ids), vectors, labels]
    lance.write_dataset(
        pa.Table.from_arrays(arrays, schema=schema), str(dictionary), max_rows_per_file=4
    )
    gallery = table.open(dictionary)
    np.testing.assert_array_equal(gallery.read([], with_labels=True).labels, base.labels)
    added = table.add_column(gallery, column("b"), doubled, ["a"])
    assert added.version == 2
    read = added.read(["a", "b"], with_labels=True)
    np.testing.assert_array_equal(read.labels, base.labels)
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)


def test_versions_and_tags(gallery):
    path = gallery.path
    assert table.tag(path, "live") == 1
    table.add_column(gallery, column("b"), doubled, ["a"])
    assert list(table.open(f"{path}@live").columns) == ["a"]
    assert list(table.open(f"{path}@1").columns) == ["a"]
    assert list(table.open(f"{path}@2").columns) == ["a", "b"]
    assert table.tag(path, "live") == 2
    assert list(table.open(f"{path}@live").columns) == ["a", "b"]
    assert table.tag(f"{path}@1", "live") == 1
    assert table.open(f"{path}@live").version == 1
    with pytest.raises(InputError, match="no tag 'lvie'; there are: live"):
        table.open(f"{path}@lvie")
    with pytest.raises(InputError, match="no version 7; the newest is 2"):
        table.open(f"{path}@7")
    with pytest.raises(InputError, match="tag '12'"):
        table.tag(path, "12")


def test_a_path_with_an_at_sign(tmp_path):
    path = tmp_path / "me@home.lance"
    table.create(path, [rows(3)], [column("a")])
    assert table.open(path).num_rows == table.open(f"{path}@1").num_rows == 3


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

    def stopping(batch):
        calls.append(batch.ids[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return doubled(batch)

    with pytest.raises(KeyboardInterrupt):
        table.add_column(gallery, column("b"), stopping, ["a"])
    assert table.open(gallery.path).version == 1
    added = table.add_column(gallery, column("b"), stopping, ["a"])
    assert len(calls) == 7 and calls[4] == calls[3]
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


def test_a_killed_create_leaves_nothing(tmp_path):
    def failing():
        yield rows(50)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        table.create(tmp_path / "g.lance", failing(), [column("a")])
    assert files_of(tmp_path) == []


def test_a_gallery_made_meanwhile_in_an_object_store_is_kept(tmp_path):
    uri = f"file-object-store://{tmp_path}/g.lance"

    def late():
        table.create(uri, [rows(7, name="b")], [column("b")])
        yield rows(50)

    with pytest.raises(InputError, match="g.lance: another process has just made it"):
        table.create(uri, late(), [column("a")])
    assert list(table.open(uri).columns) == ["b"]


def test_a_gallery_without_rows(tmp_path):
    gallery = table.create(tmp_path / "g.lance", [], [column("a")])
    added = table.add_column(gallery, column("b", 3), lambda rows: rows.vectors["a"][:, :3], ["a"])
    read = added.read(["a", "b"], with_labels=True)
    assert len(read) == 0 and read.labels is not None and len(read.labels) == 0
    assert read.vectors["b"].shape == (0, 3)
    assert list(added.batches(["a"])) == [] and table.verify(added) == []


def test_create_refuses_or_replaces(gallery, tmp_path):
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        table.create(gallery.path, [rows(5)], [column("a")])
    table.tag(gallery.path, "live")
    again = table.create(gallery.path, [rows(5, 3)], [column("a", 3)], overwrite=True)
    assert again.num_rows == 5 and again.columns["a"].dim == 3
    assert table.open(f"{gallery.path}@live").num_rows == 101
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match="is no gallery"):
        table.create(tmp_path / "notes", [rows(5)], [column("a")], overwrite=True)


def broken(kind):
    batch = rows(20, start=40)
    if kind == "nan":
        batch.vectors["a"][7, 2] = np.nan
    elif kind == "infinite":
        batch.vectors["a"][7, 2] = -np.inf
    elif kind == "repeated":
        batch.ids[7] = "row 3"
    elif kind == "null":
        batch.ids[7] = None
    elif kind == "dims":
        batch.vectors["a"] = batch.vectors["a"][:, :3]
    return batch


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "column 'a': row 'row 47' with NaN or infinity"),
        ("infinite", "column 'a': row 'row 47' with NaN or infinity"),
        ("repeated", "id 'row 3' occurs more than once"),
        ("null", "row without id"),
        ("dims", "column 'a' needs rows of 4 values"),
    ],
)
def test_create_refuses_bad_rows_and_leaves_nothing(tmp_path, kind, message):
    with pytest.raises(InputError, match=message):
        table.create(tmp_path / "g.lance", [rows(40), broken(kind)], [column("a")])
    assert files_of(tmp_path) == []


def test_too_large_for_float16_is_refused(tmp_path):
    batch = rows(5)
    batch.vectors["a"][2] = 1e5
    with pytest.raises(InputError, match="row 'row 2' with NaN"):
        table.create(tmp_path / "g.lance", [batch], [column("a", dtype="float16")])


def raw_gallery(path, ids, vectors, metadata=None):
    """A gallery as another tool may have written it, unchecked."""
    schema = pa.schema(
        [pa.field("id", pa.string()), column("a").to_field()], metadata or {"fct.format": "1"}
    )
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), 4)
    mask = pa.array(np.isnan(vectors).all(axis=1))
    if np.isnan(vectors).all(axis=1).any():
        values = pa.FixedSizeListArray.from_arrays(values.values, 4, mask=mask)
    lance.write_dataset(
        pa.Table.from_arrays([pa.array(ids, pa.string()), values], schema=schema), str(path)
    )
    return table.open(path)


def test_bad_rows_of_other_tools_are_refused_at_reading_and_found_by_verify(tmp_path):
    ids = [f"i{row}" for row in range(30)]
    good = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert table.verify(raw_gallery(tmp_path / "good.lance", ids, good)) == []

    bad = good.copy()
    bad[[3, 5, 7, 9, 11, 13], 1] = np.nan
    gallery = raw_gallery(tmp_path / "nan.lance", ids, bad)
    message = "column 'a': row 'i3' and 5 more rows with NaN or infinity"
    for read in (
        lambda: gallery.read(["a"]),
        lambda: list(gallery.batches(["a"])),
        lambda: gallery.take(["i3"], ["a"]),
        lambda: table.add_column(gallery, column("b"), doubled, ["a"]),
    ):
        with pytest.raises(InputError, match="row 'i3'.*with NaN or infinity"):
            read()
    with pytest.raises(InputError, match=message):
        gallery.read(["a"])
    (problem,) = table.verify(gallery)
    assert (
        "6 rows with NaN or infinity in column 'a': 'i3', 'i5', 'i7', 'i9', 'i11', ..." in problem
    )

    gallery = raw_gallery(tmp_path / "twice.lance", [*ids[:29], "i4"], good)
    for read in (
        lambda: gallery.read(["a"]),
        lambda: list(gallery.batches(["a"], 3)),
        lambda: table.add_column(gallery, column("b"), doubled, ["a"]),
    ):
        with pytest.raises(InputError, match="id 'i4' occurs more than once"):
            read()
    assert "1 rows with an id that another row has: 'i4'" in table.verify(gallery)[0]

    gallery = raw_gallery(tmp_path / "null.lance", [*ids[:29], None], good)
    with pytest.raises(InputError, match="without id"):
        gallery.read(["a"])
    assert "1 rows without id: number 29" in table.verify(gallery)[0]

    bad = good.copy()
    bad[8] = np.nan
    gallery = raw_gallery(tmp_path / "absent.lance", ids, bad)
    with pytest.raises(InputError, match="row 'i8' has no vector in column 'a'"):
        gallery.read(["a"])
    assert "1 rows with no vector in column 'a': 'i8'" in table.verify(gallery)[0]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_broken_data_file_is_named(gallery, damage):
    file = sorted((gallery.dataset.uri and os.scandir(f"{gallery.path}/data")), key=str)[2]
    if damage == "truncated":
        with open(file.path, "r+b") as stream:
            stream.truncate(os.path.getsize(file.path) // 2)
    else:
        os.unlink(file.path)
    opened = table.open(gallery.path)
    said = "bytes instead of" if damage == "truncated" else "data file is missing"
    for read in (lambda: opened.read(["a"]), lambda: opened.take(["row 1", "row 50"], ["a"])):
        with pytest.raises(InputError, match=said) as error:
            read()
        assert file.name in str(error.value) and "\n" not in str(error.value)
    (problem,) = table.verify(opened)
    assert file.name in problem and said in problem


def test_what_is_no_gallery_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing.lance: no gallery"):
        table.open(tmp_path / "nothing.lance")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no gallery"):
        table.open(tmp_path / "empty")
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "other.lance"))
    with pytest.raises(InputError, match="other.lance: a Lance dataset but no gallery"):
        table.open(tmp_path / "other.lance")
    vectors = np.zeros((1, 4), np.float32)
    with pytest.raises(InputError, match="gallery format 2.*up to 1"):
        raw_gallery(tmp_path / "new.lance", ["x"], vectors, {"fct.format": "2"})


def test_an_unknown_column_lists_those_there_are(gallery):
    with pytest.raises(InputError, match="no embedding column 'b'; there are: a"):
        gallery.column("b")
    with pytest.raises(InputError, match="no embedding column 'label'; there are: a"):
        gallery.read(["label"])


def test_spaces_fit_or_are_refused():
    old, new = column("old"), column("new")
    table.check_spaces(old, column("other", model="old"))
    with pytest.raises(InputError) as error:
        table.check_spaces(new, old)
    for part in (old.space, new.space, "model old", "model new", "`allow_space_mismatch=True`"):
        assert part in str(error.value)
    table.check_spaces(new, old, allow_mismatch=True)
    friend = table.Column("friend", 4, "f" * 64, compatible_with=(old.space,))
    table.check_spaces(friend, old)
    table.check_spaces(old, friend)
    # Not transitive: a friend of old is no friend of what old is compatible with.
    third = table.Column("third", 4, "3" * 64, compatible_with=(old.space,))
    with pytest.raises(InputError, match="different spaces"):
        table.check_spaces(friend, third)
    wide = column("old", 5, model="old")
    with pytest.raises(InputError, match="different dimensions: 5 .* and 4"):
        table.check_spaces(wide, old, allow_mismatch=True)


def test_unique_ids_finds_repetitions_across_batches():
    generator = random.Random(0)
    unique = UniqueIds()
    seen: set[str] = set()
    for _ in range(60):
        batch = [str(generator.randrange(20_000)) for _ in range(generator.randrange(40))]
        expected = []
        for value in batch:
            if value in seen:
                expected.append(value)
            seen.add(value)
        assert unique.add(batch) == expected


def test_ids_of_equal_hash_are_no_repetition(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr("fct_tf.gallery.ids._hash", lambda text: len(text))
    assert len(gallery.read(["a"])) == 101
    assert table.add_column(gallery, column("b"), doubled, ["a"]).num_rows == 101
    assert table.verify(table.open(gallery.path)) == []
    ids = [f"i{row}" for row in range(30)]
    vectors = np.zeros((30, 4), np.float32)
    twice = raw_gallery(tmp_path / "twice.lance", [*ids[:28], "i4", "i20"], vectors)
    with pytest.raises(InputError, match="id 'i4' occurs more than once"):
        twice.read(["a"])
    with pytest.raises(InputError, match="id 'i4' occurs more than once"):
        table.add_column(twice, column("b"), doubled, ["a"])
    (problem,) = table.verify(twice)
    assert "'i4'" in problem and "'i20'" in problem and "'i5'" not in problem


def test_fragments_staged_elsewhere_are_committed_here(gallery):
    """What a distributed engine does: stage in workers, pass JSON, commit once."""
    field = column("b").to_field()

    def compute(batch):
        values = batch["a"].flatten().to_numpy() * 2
        return [pa.FixedSizeListArray.from_arrays(pa.array(values), 4)]

    def stage(number):
        return fragments.stage_fragment(gallery.dataset, number, compute, ["a"], [field], 5)

    records = [
        json.loads(json.dumps(stage(fragment.fragment_id)))
        for fragment in reversed(gallery.dataset.get_fragments())
    ]
    assert fragments.commit(gallery.path, records, [field]) == 2
    read = table.open(gallery.path).read(["a", "b"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)


def test_the_reference_galleries_follow_the_contract(shared_datasets):
    for name, count in (("train", 19280), ("test", 13180)):
        gallery = table.open(shared_datasets / "reference_rows" / f"{name}.lance")
        assert gallery.num_rows == count
        assert list(gallery.columns) == ["embedding_old", "side_info", "embedding_new"]
        assert {c.dim for c in gallery.columns.values()} == {128}
        assert table.verify(gallery) == []
