"""Rows replaced in place: what changes, what stays to the bit, what is written."""

import dataclasses

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf.common.errors import InputError
from fct_tf.gallery import replace, table
from fct_tf.gallery.columns import vector_array

DIM = 64
FCT = table.Column("x", DIM, "x" * 64, kind="transformed", compatible_with=("n" * 64,))
FIELDS = [pa.field("x_origin", pa.string()), pa.field("x_log_variance", pa.float32())]


def make(path, count=400, rows_per_file=100, dtype="float32"):
    """An upgraded gallery with a dictionary column, whose field ids are not 0, 1, 2, ..."""
    rng = np.random.default_rng(0)
    ids = np.array([f"g/{i}" for i in range(count)], object)
    labels = np.array([None if i % 3 else f"class{i % 7}" for i in range(count)], object)
    columns = [table.Column(name, 2 * DIM, name[0] * 64) for name in ("old", "gone")]
    vectors = {c.name: rng.normal(size=(count, c.dim)).astype(np.float32) for c in columns}
    rows = table.Rows(ids, labels, vectors)
    table.create(path, [rows], columns, rows_per_file=rows_per_file)
    lance.dataset(str(path)).drop_columns(["gone"])
    tint = pa.array(["red", None, "blue", "red"] * (count // 4)).dictionary_encode()
    schema = pa.schema([pa.field("tint", tint.type)])
    batch = pa.record_batch([tint], schema=schema)
    lance.dataset(str(path)).add_columns(pa.RecordBatchReader.from_batches(schema, [batch]))
    made = dataclasses.replace(FCT, dtype=dtype)

    def transformed(rows):
        return {
            "x": rows.vectors["old"][:, :DIM],
            "x_origin": np.full(len(rows), "transformed", object),
            "x_log_variance": rows.vectors["old"][:, 0],
        }

    table.add_column(table.open(path), made, transformed, ["old"], extra_fields=FIELDS)
    return str(path)


def change(path, ids, seed=1, space="y" * 64, before=FCT.space):
    """Replaces rows by random vectors; returns these by id, as they are stored."""
    dataset = lance.dataset(path)
    column = table.open(path).column("x")
    vectors = np.random.default_rng(seed).normal(size=(len(ids), DIM)).astype(column.dtype)

    def values(place):
        return {
            "x": vector_array(vectors[place], column, [ids[i] for i in place], path),
            "x_origin": pa.array(["backfilled"] * len(place)),
            "x_log_variance": pa.nulls(len(place), pa.float32()),
        }

    made = dataclasses.replace(column, space=space, created_by={"note": "changed"})
    version = replace.replace_rows(path, made, ids, values, space=before)
    assert version == dataset.version + 1
    return dict(zip(ids, vectors, strict=True))


def content(path):
    """All rows by id."""
    rows = lance.dataset(path).to_table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def check(path, before, changed):
    after = content(path)
    assert after.keys() == before.keys()
    for name, row in after.items():
        if name in changed:
            np.testing.assert_array_equal(np.array(row["x"], np.float32), changed[name])
            assert (row["x_origin"], row["x_log_variance"]) == ("backfilled", None)
            assert all(row[f] == before[name][f] for f in ("old", "label", "tint"))
        else:
            assert row == before[name]
    column = table.open(path).column("x")
    assert column.space == "y" * 64 and column.created_by == {"note": "changed"}
    assert column.compatible_with == FCT.compatible_with and column.kind == "transformed"
    assert not table.verify(table.open(path))
    lance.dataset(path).validate()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scattered_rows_move_and_no_file_is_rewritten(tmp_path, dtype):
    path = make(tmp_path / "g.lance", dtype=dtype)
    before = content(path)
    files = {f.name: f.read_bytes() for f in (tmp_path / "g.lance/data").iterdir()}
    ids = [f"g/{i}" for i in (399, 0, 150, 151, 33)]
    check(path, before, change(path, [*ids, "elsewhere"]))
    there = list((tmp_path / "g.lance/data").iterdir())
    assert len(there) == len(files) + 1
    for file in there:
        if file.name in files:
            assert file.read_bytes() == files[file.name]
    fragments = lance.dataset(path).get_fragments()
    assert [f.count_rows() for f in fragments] == [98, 98, 100, 99, 5]


def test_bytes_are_those_of_the_rows(tmp_path):
    path = make(tmp_path / "g.lance", count=40_000, rows_per_file=8_000)
    size = sum(f.stat().st_size for f in (tmp_path / "g.lance/data").iterdir())
    dropped = 40_000 * 4 * 2 * DIM  # Its values are still in the files.
    known = {f.name for f in (tmp_path / "g.lance").rglob("*")}
    ids = [f"g/{i}" for i in np.random.default_rng(2).permutation(40_000)[:400]]
    estimate = replace.estimate_bytes(lance.dataset(path), FCT, 400)
    change(path, ids)
    new = [f for f in (tmp_path / "g.lance").rglob("*") if f.name not in known and f.is_file()]
    data = sum(f.stat().st_size for f in new if f.parent.name in ("data", "_deletions"))
    assert data / (size - dropped) < 0.011
    # The estimate counts the dropped column too, since it goes by the sizes of files.
    assert data < estimate < 2 * data


def test_a_fragment_of_which_most_rows_change_gets_a_new_file_of_the_column(tmp_path):
    path = make(tmp_path / "g.lance")
    before = content(path)
    # All of the first file, most of the second, one of the fourth.
    ids = [f"g/{i}" for i in [*range(100), *range(105, 195), 333]]
    check(path, before, change(path, ids))
    fragments = lance.dataset(path).get_fragments()
    assert [f.count_rows() for f in fragments] == [100, 100, 100, 99, 1]
    known = {f.fragment_id: [d.fields for d in f.metadata.files] for f in fragments}
    assert len(known[0]) == len(known[2])  # In the place of the file that held it alone.
    # Again, when rows have moved and files have been replaced.
    before = content(path)
    again = change(path, ids[::7], seed=3, space="z" * 64, before="y" * 64)
    after = content(path)
    for name in after:
        vector = again.get(name, before[name]["x"])
        np.testing.assert_array_equal(np.array(after[name]["x"], np.float32), vector)


def test_all_rows(tmp_path):
    path = make(tmp_path / "g.lance")
    before = content(path)
    check(path, before, change(path, sorted(before)))


def test_after_it_columns_are_added_and_replaced_as_ever(tmp_path):
    path = make(tmp_path / "g.lance")
    change(path, [f"g/{i}" for i in [*range(120), 333]])
    numbers = table.Column("w", 1, "w" * 64)
    for overwrite in (False, True):
        added = table.add_column(
            table.open(path),
            numbers,
            lambda rows: np.array([[float(name[2:])] for name in rows.ids]),
            ["old"],
            overwrite=overwrite,
            batch_size=17,
        )
        rows = added.read(["w"])
        assert [f"g/{int(w)}" for w in rows.vectors["w"][:, 0]] == list(rows.ids)
    short = dataclasses.replace(FCT, dim=3)
    replaced = table.add_column(
        table.open(path), short, lambda rows: np.ones((len(rows), 3)), [], overwrite=True
    )
    assert (replaced.read(["x"]).vectors["x"] == 1).all() and replaced.num_rows == 400
    lance.dataset(path).optimize.compact_files()
    assert not table.verify(table.open(path))


def test_older_versions_and_tags_stay(tmp_path):
    path = make(tmp_path / "g.lance")
    before = content(path)
    version = table.tag(path, "live")
    change(path, ["g/1", "g/2"])
    live = lance.dataset(path, version="live")
    assert live.version == version
    assert {row["id"]: row for row in live.to_table().to_pylist()} == before


def test_a_commit_of_somebody_else_in_between(tmp_path, monkeypatch):
    path = make(tmp_path / "g.lance")
    commit, calls = lance.LanceDataset.commit, []

    def late(*arguments, **more):
        calls.append(1)
        if len(calls) == 1:
            # A row that is to change goes, another column comes.
            lance.dataset(path).delete("id = 'g/2'")
            numbers = table.Column("w", 1, "w" * 64)
            table.add_column(table.open(path), numbers, lambda r: np.ones((len(r), 1)), [])
        return commit(*arguments, **more)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(late))
    before = content(path)
    column = table.open(path).column("x")
    vectors = np.ones((3, DIM), np.float32)

    def values(place):
        return {"x": vector_array(vectors[place], column, list(place), path)}

    made = dataclasses.replace(column, space="y" * 64)
    replace.replace_rows(path, made, ["g/1", "g/2", "g/3"], values, space=FCT.space)
    assert len(calls) > 2
    after = content(path)
    assert after.keys() == before.keys() - {"g/2"}
    assert {name for name, row in after.items() if row["x"] == [1.0] * DIM} == {"g/1", "g/3"}
    assert all(row["w"] == [1.0] for row in after.values())


def test_refused(tmp_path):
    path = make(tmp_path / "g.lance")
    version = lance.dataset(path).version
    with pytest.raises(InputError, match="column 'x' has been changed in the meantime"):
        change(path, ["g/1"], before="o" * 64)
    dataset = lance.dataset(path)
    lance.write_dataset(dataset.take([1]), path, mode="append")
    with pytest.raises(InputError, match="id 'g/1' occurs more than once"):
        change(path, ["g/5", "g/1"])
    assert lance.dataset(path).version == version + 1
