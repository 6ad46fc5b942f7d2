"""Takedowns: rows removed from galleries and from tables made of them, for good if told to."""

from pathlib import Path

import lance
import numpy as np
import pytest

from fct_tf import inspect_gallery, remove_rows, sample_gallery
from fct_tf.gallery import describe, removal, table
from tests.builders import snapshot

DIM = 4
OLD = table.Column("old", DIM, "a" * 64)


def make(path, ids, rows_per_file=10):
    vectors = np.random.default_rng(len(ids)).normal(size=(len(ids), DIM)).astype(np.float32)
    rows = table.Rows(np.array(ids, object), None, {"old": vectors})
    table.create(path, [rows], [OLD], rows_per_file=rows_per_file)
    return str(path)


@pytest.fixture
def tables(tmp_path, run_door, capsys):
    """A source of 35 rows, a gallery made of it and a sample of 12; rows 3, 10 to 19 are gone."""
    ids = [f"photo/{i}" for i in range(35)]
    source, own = make(tmp_path / "g.lance", ids), make(tmp_path / "own.lance", ids)
    sample = str(tmp_path / "sample.lance")
    flags = [f"--gallery={source}", "--rows=20", f"--output={sample}"]
    assert run_door(sample_gallery, *flags) == 0
    gone = ["photo/3", *ids[10:20]]
    lance.dataset(source).delete(f"id IN ({', '.join(map(repr, gone))})")
    capsys.readouterr()
    return source, own, sample, set(gone)


def ids_of(path):
    return set(table.open(path).read([]).ids)


def test_rows_gone_from_the_source(tables, run_door, capsys):
    source, own, sample, gone = tables
    lance.dataset(own).delete("id = 'photo/34'")
    before = {path: (ids_of(path), table.open(path).version) for path in (own, sample)}
    assert run_door(inspect_gallery, f"--gallery={own}", f"--sources={source}") == 0
    out = capsys.readouterr().out
    assert "11 rows here are not there any more (remove_rows --sources removes them)" in out
    assert "1 rows there are not here" in out
    flags = [f"--gallery={own}", f"--gallery={sample}", f"--sources={source}"]
    untouched = snapshot(own)
    assert run_door(remove_rows, *flags, "--dry_run") == 0
    out = capsys.readouterr().out
    assert f"{own}: 11 of 34 rows would be removed" in out
    shared = len(gone & before[sample][0])
    assert 0 < shared < 11 and f"{sample}: {shared} of 20 rows would be removed" in out
    assert snapshot(own) == untouched
    assert run_door(remove_rows, *flags) == 0
    out = capsys.readouterr().out
    assert f"{own}@3: 11 of 34 rows removed" in out and "older versions still hold them" in out
    for path, (ids, version) in before.items():
        assert ids_of(path) == ids - gone
        assert table.open(path).version == version + 1  # one commit
        assert ids_of(f"{path}@{version}") == ids
        assert table.verify(table.open(path)) == []
    assert run_door(remove_rows, *flags) == 0
    assert f"{own}@3: 0 of 23 rows removed" in capsys.readouterr().out
    comparison = describe.compare(table.open(own), table.open(source))
    assert (comparison["num_gone"], comparison["num_new"]) == (0, 1)


def test_rows_of_a_file_of_ids(tables, run_door, tmp_path, capsys, caplog):
    source, own, sample, _ = tables
    names = tmp_path / "ids.txt"
    names.write_bytes("\ufeffphoto/1\r\nphoto/1\n\nphoto/22\nphoto/ü\n".encode())
    flags = [f"--gallery={path}" for path in (source, own, sample)] + [f"--ids={names}"]
    expected = {path: ids_of(path) - {"photo/1", "photo/22"} for path in (source, own, sample)}
    assert run_door(remove_rows, *flags) == 0
    assert {path: ids_of(path) for path in expected} == expected
    assert f"{source}@3: 2 of 24 rows removed" in capsys.readouterr().out
    assert "no gallery has a row with 1 of its 3 ids, such as 'photo/ü'" in caplog.text
    assert run_door(remove_rows, *flags) == 0
    assert "no gallery has a row with one of its 3 ids" in caplog.text


def test_all_rows_by_their_ids(tables, run_door, tmp_path):
    _, own, _, _ = tables
    names = tmp_path / "ids.txt"
    names.write_text("\n".join(ids_of(own)))
    assert run_door(remove_rows, f"--gallery={own}", f"--ids={names}", "--purge") == 0
    assert table.open(own).num_rows == 0


def holding(path, needle):
    """Which files below a path have these bytes."""
    found = [file for file in Path(path).rglob("*") if file.is_file()]
    return [file.name for file in found if needle in file.read_bytes()]


@pytest.mark.parametrize("index", [None, "IVF_FLAT"])
@pytest.mark.parametrize("blob", [False, True])
def test_purged_rows_are_in_no_file(tmp_path, run_door, capsys, index, blob):
    # One file, of which so little is deleted that Lance would leave it as it is.
    path = make(tmp_path / "g.lance", [f"secret/{i:03}" for i in range(64)], rows_per_file=64)
    dataset = lance.dataset(path)
    if blob:
        photos = [f"photograph of {i:03}".encode() for i in range(64)]
        path = with_blobs(path, tmp_path / "b.lance", photos)
        dataset = lance.dataset(path)
    if index:
        dataset.create_index("old", index, num_partitions=1)
        dataset.create_scalar_index("id", "BTREE")
    needles = [table.open(path).take(["secret/007"], ["old"]).vectors["old"].tobytes()]
    needles += [b"secret/007"] + ([b"photograph of 007"] if blob else [])
    assert all(holding(path, needle) for needle in needles)
    live = table.tag(path, "live")
    names = tmp_path / "ids.txt"
    names.write_text("secret/007\n")
    flags = [f"--gallery={path}", f"--ids={names}"]
    assert run_door(remove_rows, *flags) == 0
    out = capsys.readouterr().out
    assert "--purge gives those without a tag up" in out and "still held by the tag live" in out
    assert run_door(remove_rows, *flags, "--purge") == 0
    out = capsys.readouterr().out
    assert "purged: " in out and "still held by the tag live" in out
    assert table.open(f"{path}@live").version == live
    assert all(holding(path, needle) for needle in needles)
    table.tag(path, "live")
    assert run_door(remove_rows, *flags, "--purge") == 0
    assert "tag" not in capsys.readouterr().out
    assert not any(holding(path, needle) for needle in needles)
    assert ids_of(path) == {f"secret/{i:03}" for i in range(64)} - {"secret/007"}
    assert table.verify(table.open(path)) == []


def with_blobs(path, target, photos):
    rows = lance.dataset(path).to_table()
    rows = rows.append_column(lance.blob_field("photo"), lance.blob_array(photos))
    lance.write_dataset(rows, target, data_storage_version="2.2")
    return str(target)


def test_an_index_that_lance_does_not_write_anew_is_named(tmp_path, run_door, capsys):
    path = make(tmp_path / "g.lance", [f"s/{i}" for i in range(64)])
    stable = str(tmp_path / "stable.lance")
    lance.write_dataset(lance.dataset(path).to_table(), stable, enable_stable_row_ids=True)
    lance.dataset(stable).create_scalar_index("id", "BTREE")
    names = tmp_path / "ids.txt"
    names.write_text("s/7\n")
    assert run_door(remove_rows, f"--gallery={stable}", f"--ids={names}", "--purge") == 0
    assert "index 'id_idx' may still hold them" in capsys.readouterr().out


def test_rows_that_come_meanwhile_are_looked_at(tables, monkeypatch):
    source, own, _, gone = tables
    doomed, seen = removal.not_in(table.open(source)), []

    def with_another(gallery):
        found = doomed(gallery)
        if not seen:
            lance.dataset(own).delete("id IN ('photo/3', 'photo/0')")
        seen.append(gallery.version)
        return found

    assert removal.remove(own, with_another) == 10
    assert seen == [1, 2]
    assert ids_of(own) == {f"photo/{i}" for i in range(35)} - gone - {"photo/0"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--gallery={own}"], "name the rows with --ids"),
        (["--gallery={own}", "--ids={ids}", "--sources={source}"], "name the rows with --ids"),
        (["--gallery={own}", "--ids={tmp}/none.txt"], "none.txt: no such file"),
        (["--gallery={own}", "--ids={tmp}/empty.txt"], "names no row"),
        (["--gallery={own}", "--ids={tmp}/latin-1.txt"], "line 2 is not UTF-8 text"),
        (["--gallery={own}@1", "--ids={ids}"], "changes are made to the newest version"),
        (["--gallery={own}", "--gallery={tmp}/no.lance", "--ids={ids}"], "no gallery"),
        (["--gallery={own}", "--gallery={other}", "--sources={source}"], "has no row of"),
        (["--gallery={own}", "--sources={tmp}/no.lance"], "no gallery"),
    ],
)
def test_refused_before_anything_changes(tables, tmp_path, run_door, capsys, flags, message):
    source, own, _, _ = tables
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "ids.txt").write_text("photo/0\n")
    (tmp_path / "latin-1.txt").write_text("photo/0\nphoto/é\n", encoding="latin-1")
    other = make(tmp_path / "other.lance", ["x", "y"])
    lance.dataset(own).delete("id = 'photo/30'")
    before = snapshot(own)
    place = {"own": own, "source": source, "tmp": tmp_path, "other": other}
    filled = [flag.format(ids=tmp_path / "ids.txt", **place) for flag in flags]
    assert run_door(remove_rows, *filled) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]
    assert snapshot(own) == before
