"""Lance tables of others: adopted where they lie, or copied into a gallery."""

import re
import uuid

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import import_gallery, inspect_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import table

ROWS, DIM = 300, 8
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
UUIDS = [uuid.UUID(int=row * 2**90 + 7) for row in range(ROWS)]
GONE = 7  # This row was deleted.
KEPT = [row for row in range(ROWS) if row != GONE]


def fixed(values=VECTORS, kind=None):
    return pa.array(list(values), kind or pa.list_(pa.float32(), DIM))


def columns():
    return {
        "n": pa.array(range(ROWS)),
        "key": pa.array([one.bytes for one in UUIDS], pa.binary(16)),
        "loose": pa.array([one.bytes for one in UUIDS], pa.binary()),
        "uuid": pa.array([one.bytes for one in UUIDS], pa.uuid()),
        "name": pa.array([f"photo {row}" for row in range(ROWS)], pa.large_string()),
        "album": pa.array([f"a{row % 3}" if row % 5 else None for row in range(ROWS)]),
        "vector": fixed(),
        "facts": pa.array([{"wide": row, "tags": ["x", str(row)]} for row in range(ROWS)]),
    }


@pytest.fixture
def make(tmp_path):
    """Writes a table as its owner has it: several fragments, a deleted row."""

    def write(**changed):
        made = {name: values for name, values in {**columns(), **changed}.items() if values}
        path = tmp_path / "db" / "photos.lance"
        whole = pa.table(made).replace_schema_metadata({"owner": "me"})
        lance.write_dataset(whole, path, max_rows_per_file=110).delete(f"n = {GONE}")
        return path

    return write


@pytest.fixture
def adopt(run_door, tmp_path):
    def run(*flags, gallery="db/photos.lance"):
        gallery = f"--gallery={tmp_path / gallery}"
        return run_door(import_gallery, "--adopt", gallery, "--model_name=clip", *flags)

    return run


def content(dataset, names):
    return dataset.to_table(columns=names).to_pylist()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("n", [str(row) for row in KEPT]),
        ("key", [str(UUIDS[row]) for row in KEPT]),
        ("loose", [str(UUIDS[row]) for row in KEPT]),
        ("uuid", [str(UUIDS[row]) for row in KEPT]),
        ("name", [f"photo {row}" for row in KEPT]),
    ],
)
def test_a_table_is_adopted_where_it_lies(make, adopt, capsys, ids, expected):
    path = make()
    dataset = lance.dataset(path)
    dataset.create_scalar_index("n", "BTREE")
    dataset.create_index("vector", "IVF_FLAT", num_partitions=2, metric="cosine")
    before = lance.dataset(path)
    theirs, indices = before.schema, before.describe_indices()
    near = {
        "nearest": {"column": "vector", "q": VECTORS[3], "k": 5, "nprobes": 2},
        "columns": ["n"],
    }
    files = {file.name for file in (path / "data").iterdir()}
    assert adopt(f"--ids={ids}", "--labels=album", "--distance=cosine") == 0
    out, error = capsys.readouterr()
    assert "the index" not in error
    assert "column 'vector' adopted, 299 rows of 8 float32" in out
    assert f"added: column 'id', from '{ids}'\nadded: column 'label', from 'album'\n" in out
    gallery = table.open(path)
    rows = gallery.read(["vector"], with_labels=True)
    assert list(rows.ids) == expected
    assert list(rows.labels) == [f"a{row % 3}" if row % 5 else None for row in KEPT]
    np.testing.assert_array_equal(rows.vectors["vector"], VECTORS[KEPT])
    column = gallery.columns["vector"]
    assert (column.distance, column.kind, column.model) == ("cosine", "imported", "clip")
    assert column.space == table.imported_space("clip")
    # One commit; what was there is there, and the new files are too small to hold vectors.
    now = gallery.dataset
    assert now.version == before.version + 1
    assert content(now, theirs.names) == content(before, theirs.names)
    assert now.schema.metadata == {b"owner": b"me", b"fct.format": b"1"}
    assert [str(one) for one in now.describe_indices()] == [str(one) for one in indices]
    assert now.to_table(**near) == before.to_table(**near)
    assert "ANN" in now.scanner(**near).explain_plan()
    added = [file for file in (path / "data").iterdir() if file.name not in files]
    assert len(added) == 3
    assert table.verify(gallery) == []
    # The owner's own writes go on, and a later adoption gives their rows ids.
    more = pa.table(columns()).slice(0, 2)
    more = more.set_column(0, "n", pa.array([1000, 1001]))
    lance.write_dataset(more, path, mode="append")
    with pytest.raises(InputError, match="without id"):
        table.open(path).read(["vector"])
    fresh = f"--ids={ids}"
    assert adopt(fresh, "--overwrite") == (0 if ids == "n" else 2)
    if ids == "n":
        assert list(table.open(path).read(["vector"]).ids) == [*expected, "1000", "1001"]


def test_an_adopted_table_is_worked_on(make, adopt, capsys):
    path = make()
    dataset = lance.dataset(path)
    dataset.create_index("vector", "IVF_FLAT", num_partitions=2, metric="cosine")
    assert adopt("--ids=n") == 0
    error = capsys.readouterr().err
    assert "the index 'vector_idx' compares 'vector' by cosine, but --distance says l2" in error
    gallery = table.open(path)
    assert gallery.read([], with_labels=True).labels.tolist() == [None] * len(KEPT)
    made = table.Column("twice", DIM, "0" * 64)
    table.add_column(gallery, made, lambda rows: rows.vectors["vector"] * 2, ["vector"])
    rows = table.open(path).take(["9", "200"], ["twice"])
    np.testing.assert_array_equal(rows.vectors["twice"], VECTORS[[9, 200]] * 2)


def test_ids_and_labels_that_are_there_stay(make, adopt, capsys):
    own = pa.array([f"own {row}" for row in range(ROWS)])
    path = make(id=own, label=pa.array([f"c{row % 4}" for row in range(ROWS)]).dictionary_encode())
    assert adopt() == 0
    assert "added" not in capsys.readouterr().out
    rows = table.open(path).read(["vector"], with_labels=True)
    assert rows.ids[8] == "own 9" and rows.labels[8] == "c1"
    assert adopt() == 2
    assert "'vector' is an embedding column already; pass --overwrite" in capsys.readouterr().err
    assert adopt("--overwrite", "--distance=cosine") == 0
    assert table.open(path).columns["vector"].distance == "cosine"
    assert adopt("--overwrite", "--ids=n") == 2
    assert "has a column 'id' already" in capsys.readouterr().err


def test_rows_without_vector(make, adopt, run_door, capsys):
    vectors = [None if row in (3, 200) else vector for row, vector in enumerate(VECTORS)]
    path = make(vector=fixed(vectors))
    assert adopt("--ids=n", "--distance=cosine") == 0
    assert "2 rows have no vector in 'vector'" in capsys.readouterr().out
    assert run_door(inspect_gallery, f"--gallery={path}") == 0
    assert run_door(inspect_gallery, f"--gallery={path}", "--verify") == 2
    assert "2 rows with no vector in column 'vector': '3', '200'" in capsys.readouterr().out
    with pytest.raises(InputError, match="row '3' has no vector in column 'vector'; "):
        table.open(path).read(["vector"])


def changed(row, value):
    vectors = VECTORS.copy()
    vectors[row] = value
    return fixed(vectors)


REPEATED = pa.array([*range(ROWS - 1), 12])
HOLES = pa.array([None if row == 40 else row for row in range(ROWS)])
DOUBLE = pa.list_(pa.float64(), DIM)


@pytest.mark.parametrize(
    ("table_columns", "flags", "message"),
    [
        ({"m": REPEATED}, ["--ids=m"], r"column 'm': id '12' occurs more than once \(row 11 and"),
        ({"m": HOLES}, ["--ids=m"], "column 'm': row 39 has no id"),
        ({"m": pa.array([1.5] * ROWS)}, ["--ids=m"], "cannot read as text the column 'm'"),
        ({}, ["--ids=nothing"], "has no column 'nothing' of --ids; columns .* are: n, key"),
        ({}, [], "has no column 'id'; name the one .* with --ids: n, key"),
        ({}, ["--ids=n", "--labels=facts"], "cannot read as text the column 'facts' of --labels"),
        ({"id": pa.array(range(ROWS))}, [], "'id' is int64, but a gallery's is text; rename"),
        ({"label": pa.array(range(ROWS))}, ["--ids=n"], "'label' is int64, but a gallery's is"),
        ({"vector": changed(9, np.nan)}, ["--ids=n"], "'vector': row '9' with NaN"),
        ({"vector": changed(9, 0)}, ["--ids=n", "--distance=cosine"], "1 row with no direction"),
        ({"vector": fixed(kind=DOUBLE)}, ["--ids=n"], r"'vector' is fixed_size_list.*copy it: --e"),
        ({"vector": fixed(kind=pa.list_(pa.float32()))}, ["--ids=n"], "'vector' is list.*copy it"),
        ({}, ["--ids=n", "--key=album"], "'album' is string, and only a fixed-size list"),
        ({}, ["--ids=n", "--key=nothing"], "no column 'nothing'; there are: n, key"),
        ({"vector": None}, ["--ids=n"], "which column holds the embeddings"),
        ({}, ["--ids=n", "--embeddings=e.npy"], "--embeddings: --adopt takes the vectors"),
        ({}, ["--ids=n", "--column=new", "--key=vector"], "an adopted column keeps its name"),
        ({}, ["--ids=n", "--compatible_with=old"], "--compatible_with=old: neither a fingerprint"),
    ],
)
def test_what_cannot_be_adopted(make, adopt, capsys, table_columns, flags, message):
    path = make(**table_columns)
    before = sorted(path.rglob("*"))
    assert adopt(*flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {path}: ") or error.startswith("error: --")
    assert re.search(message, error), error
    assert sorted(path.rglob("*")) == before


def test_no_table_to_adopt(adopt, tmp_path, capsys):
    assert adopt(gallery="nothing.lance") == 2
    assert "nothing.lance: no gallery (Lance dataset) here" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [None, DOUBLE, pa.list_(pa.float16()), pa.list_(pa.float32())])
def test_a_table_is_copied(make, run_door, tmp_path, kind):
    path = make(vector=fixed(VECTORS.astype(np.float16) if kind else VECTORS, kind))
    flags = ["--column=old", "--model_name=clip", "--ids=uuid", "--labels=album"]
    copy = f"--gallery={tmp_path / 'g.lance'}"
    assert run_door(import_gallery, f"--embeddings={path}", copy, *flags) == 0
    lance.dataset(path).delete("n > 100")
    gallery = table.open(tmp_path / "g.lance")
    rows = gallery.read(["old"], with_labels=True)
    assert list(rows.ids) == [str(UUIDS[row]) for row in KEPT]
    assert rows.labels[8] == "a0"
    expected = VECTORS[KEPT].astype(np.float16) if kind else VECTORS[KEPT]
    np.testing.assert_array_equal(rows.vectors["old"], expected.astype(np.float32))
    assert gallery.columns["old"].created_by["settings"]["embeddings_version"] == 2
    # A column added by id, from a version of the table.
    flags[0] = "--column=again"
    assert run_door(import_gallery, f"--embeddings={path}@2", copy, *flags, "--labels=") == 0
    rows = table.open(tmp_path / "g.lance").read(["old", "again"])
    np.testing.assert_array_equal(rows.vectors["old"], rows.vectors["again"])


def test_a_foreign_table_is_told_how_to_come_in(make):
    with pytest.raises(InputError, match="with import_gallery --adopt, or a copy"):
        table.open(make())
