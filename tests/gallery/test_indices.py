"""Lance's own indices on a gallery: none is lost without a word, and none answers wrongly."""

import dataclasses

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import import_gallery, inspect_gallery, sample_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import describe, indices, replace, table
from fct_tf.gallery.columns import vector_array
from tests.builders import snapshot

DIM = 16
X = table.Column("x", DIM, "a" * 64, kind="transformed")
OTHER = table.Column("other", DIM, "b" * 64)
# What is built on which column, and what is told of it.
KINDS = {
    "x_pq": ("x", "IVF_PQ", {"num_partitions": 2, "num_sub_vectors": 4, "metric": "cosine"}),
    "x_flat": ("x", "IVF_FLAT", {"num_partitions": 2}),
    "x_hnsw": ("x", "IVF_HNSW_SQ", {"num_partitions": 1, "m": 10, "ef_construction": 50}),
    "origin_idx": ("x_origin", "BITMAP", {}),
}
TOLD = {
    "x_pq": ["IVF_PQ", "metric_type COSINE", "num_bits 8", "num_sub_vectors 4", "num_partitions"],
    "x_flat": ["IVF_FLAT", "metric_type L2", "num_partitions 2"],
    "x_hnsw": ["IVF_HNSW_SQ", "max_connections 10", "construction_ef 50"],
    "origin_idx": ["Bitmap"],
}


def build(path, name):
    column, kind, settings = KINDS[name]
    dataset = lance.dataset(path)
    if kind.startswith("IVF"):
        dataset.create_index(column, kind, name=name, **settings)
    else:
        dataset.create_scalar_index(column, kind, name=name)


@pytest.fixture
def path(tmp_path):
    """300 rows in three fragments; scalar indices on id and label, one on another column."""
    rng = np.random.default_rng(0)
    ids = np.array([f"g/{i}" for i in range(300)], object)
    labels = np.array([f"class{i % 7}" for i in range(300)], object)
    rows = table.Rows(ids, labels, {"other": rng.normal(size=(300, DIM)).astype(np.float32)})
    path = str(tmp_path / "g.lance")
    table.create(path, [rows], [OTHER], rows_per_file=100)
    add(path)
    dataset = lance.dataset(path)
    dataset.create_index("other", "IVF_FLAT", name="other_idx", num_partitions=2)
    dataset.create_scalar_index("id", "BTREE")
    dataset.create_scalar_index("label", "BITMAP")
    return path


def add(path, **more):
    def compute(rows):
        origin = np.full(len(rows), "transformed", object)
        return {"x": 2 * rows.vectors["other"], "x_origin": origin}

    fields = [pa.field("x_origin", pa.string())]
    return table.add_column(table.open(path), X, compute, ["other"], extra_fields=fields, **more)


def names(path):
    return [one.name for one in indices.indices_of(lance.dataset(path))]


KEPT = ["id_idx", "label_idx", "other_idx"]


@pytest.mark.parametrize("name", KINDS)
def test_an_index_goes_with_its_column_only_if_told_to(path, name, caplog):
    build(path, name)
    before = snapshot(path)
    with pytest.raises(InputError) as error:
        add(path, overwrite=True)
    assert all(
        told in str(error.value) for told in [repr(name), "`drop_indices=True`", *TOLD[name]]
    )
    assert snapshot(path) == before and name in names(path)
    with caplog.at_level("INFO", logger="absl"):
        add(path, overwrite=True, drop_indices=True)
    assert f"{name!r} on {KINDS[name][0]}" in caplog.text and "is dropped" in caplog.text
    assert names(path) == KEPT
    dataset = lance.dataset(path)
    assert dataset.to_table(filter="id = 'g/7'", columns=["label"]).to_pylist() == [
        {"label": "class0"}
    ]


def test_an_index_that_comes_while_the_column_is_computed(path):
    def compute(rows):
        if "x_flat" not in names(path):
            build(path, "x_flat")
        return 2 * rows.vectors["other"]

    with pytest.raises(InputError, match="'x_flat' on x"):
        table.add_column(table.open(path), X, compute, ["other"], overwrite=True)
    assert "x_flat" in names(path)


def test_a_gallery_that_is_replaced_loses_all(path, tmp_path, run_door, capsys):
    source = str(tmp_path / "source.lance")
    rng = np.random.default_rng(1)
    ids = np.array([f"s/{i}" for i in range(9)], object)
    rows = table.Rows(ids, None, {"other": rng.normal(size=(9, DIM)).astype(np.float32)})
    table.create(source, [rows], [OTHER])
    before = snapshot(path)
    with pytest.raises(InputError, match="'id_idx'.*'label_idx'.*'other_idx'.*`drop_indices=True`"):
        table.create(path, [rows], [OTHER], overwrite=True)

    def derive(**more):
        column = table.Column("y", DIM, "c" * 64)
        compute = [lambda rows: rows.vectors["other"], ["other"]]
        return table.add_column(
            table.open(source), column, *compute, output=path, overwrite=True, **more
        )

    with pytest.raises(InputError, match="would lose the indices"):
        derive()
    flags = [f"--gallery={source}", "--rows=4", f"--output={path}", "--overwrite"]
    assert run_door(sample_gallery, *flags) == 2
    assert "'other_idx' on other (IVF_FLAT" in capsys.readouterr().err
    assert {name: time for name, time in snapshot(path).items() if "g.lance" in name} == {
        name: time for name, time in before.items() if "g.lance" in name
    }
    assert run_door(sample_gallery, *flags, "--drop_indices") == 0
    assert names(path) == [] and table.open(path).num_rows == 4
    lance.dataset(path).create_scalar_index("id", "BTREE")
    assert derive(drop_indices=True).num_rows == 9


def test_import_asks_too(path, tmp_path, run_door, capsys):
    build(path, "x_flat")
    np.savez(tmp_path / "x.npz", x=np.ones((300, 4), np.float32), ids=table.open(path).read([]).ids.astype(str))  # fmt: skip # noqa: E501
    flags = [f"--gallery={path}", f"--embeddings={tmp_path}/x.npz", "--key=x", "--column=x"]
    flags += ["--model_name=m", "--overwrite"]
    assert run_door(import_gallery, *flags) == 2
    assert "'x_flat' on x (IVF_FLAT" in capsys.readouterr().err
    assert run_door(import_gallery, *flags, "--drop_indices") == 0
    assert names(path) == KEPT


@pytest.mark.parametrize("name", ["x_flat", "x_pq"])
def test_rows_that_change_are_found_as_if_there_were_no_index(path, name, caplog):
    """One fragment's column is written anew, and three scattered rows move."""
    build(path, name)
    changed = [f"g/{i}" for i in [*range(100, 200), 5, 6, 250]]
    vectors = 30 + np.random.default_rng(2).normal(size=(len(changed), DIM)).astype(np.float32)

    def values(place):
        ids = [changed[i] for i in place]
        return {"x": vector_array(vectors[place], X, ids, path)}

    made = dataclasses.replace(X, space="d" * 64)
    with caplog.at_level("INFO", logger="absl"):
        replace.replace_rows(path, made, changed, values, space=X.space)
    dataset = lance.dataset(path)
    uncovered = {one.name: one.num_uncovered for one in indices.indices_of(dataset)}
    assert uncovered == {"id_idx": 3, "label_idx": 3, "other_idx": 3, name: 103}
    assert f"103 rows are not in index {name!r}" in caplog.text
    for place in (0, 99, 101):
        query = {"column": "x", "q": vectors[place], "k": 1, "nprobes": 2}
        found = dataset.to_table(columns=["id"], nearest=query).to_pylist()
        assert found[0]["id"] == changed[place]
    assert dataset.count_rows("id = 'g/5'") == 1
    dataset.optimize.optimize_indices()
    assert not any(one.num_uncovered for one in indices.indices_of(lance.dataset(path)))


def test_they_are_listed(path, run_door, capsys):
    assert run_door(inspect_gallery, f"--gallery={path}") == 0
    out = capsys.readouterr().out
    assert (
        "  other_idx on other: IVF_FLAT, metric_type L2, num_partitions 2; 0 rows not in it" in out
    )
    assert "  label_idx on label: Bitmap; 0 rows not in it" in out
    described = describe.describe(table.open(path))["indices"]
    assert [one["name"] for one in described] == KEPT
    assert described[2]["settings"] == {"metric_type": "L2", "num_partitions": 2}
