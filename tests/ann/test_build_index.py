"""The commands build_index and search_index."""

import csv
import json
import os

import lance
import numpy as np
import pyarrow.parquet as pq
import pytest

from fct_tf import build_index, search_index
from fct_tf.ann import index
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from tests.ann.galleries import COMPLETE, COUNT, column_of, gallery_at, vectors_of

SETTINGS = [f"--{name}={value}" for name, value in COMPLETE.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A gallery, its index, and files of queries: not to be changed."""
    path = tmp_path_factory.mktemp("commands")
    gallery_at(path / "g.lance")
    index.build(path / "g.lance", "a", path / "i", COMPLETE)
    np.save(path / "q.npy", vectors_of(57, seed=3))
    np.save(path / "wide.npy", vectors_of(57, seed=3)[:, :5])
    bad = vectors_of(57, seed=3)
    bad[7] = np.inf
    np.save(path / "bad.npy", bad)
    bad[[7, 9]] = [[0], [-1e20]]
    np.save(path / "long.npy", bad)
    space, q = table.imported_space("other"), vectors_of(57, seed=3)
    ids = np.array([f"q{row}" for row in range(57)], object)
    columns = [table.Column("other", 8, space), column_of("a")]
    table.create(path / "q.lance", [table.Rows(ids, ids, {"other": q, "a": q})], columns)
    return path


def expected_of(k, vectors=None):
    vectors = vectors_of(57, seed=3) if vectors is None else vectors
    places, distances = exact.search(vectors, vectors_of(), k)
    return np.char.add("row", places.astype(str)), distances


@pytest.mark.parametrize("threads", [[], ["--threads=1"]])
@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
@pytest.mark.parametrize(
    "query", [["q.npy", "--model_name=m"], ["q.lance", "--query_column=a"]], ids=["file", "gallery"]
)
def test_search(root, tmp_path, run_door, suffix, query, threads, capsys):
    output = tmp_path / f"out{suffix}"
    flags = [f"--index={root / 'i'}", f"--query={root / query[0]}", query[1], "--k=4"]
    assert run_door(search_index, *flags, f"--output={output}", *threads) == 0
    assert "57 queries, 2203 rows searched approximately" in capsys.readouterr().out
    if suffix == ".json":
        record = json.loads(output.read_text())
        assert record["index"]["exact"] is False and record["index"]["gallery"]["version"] == 1
        pairs = [one["neighbours"] for one in record["results"]]
        ids = [[pair["id"] for pair in line] for line in pairs]
        distances = [[pair["distance"] for pair in line] for line in pairs]
        names = [one["query"] for one in record["results"]]
    else:
        if suffix == ".csv":
            lines = list(csv.DictReader(output.open()))
        else:
            lines = pq.read_table(output).to_pylist()
            assert b'"k": 4' in pq.read_schema(output).metadata[b"fct.search"]
        assert [int(line["rank"]) for line in lines] == [1, 2, 3, 4] * 57
        ids = np.array([line["id"] for line in lines]).reshape(57, 4)
        distances = np.array([float(line["distance"]) for line in lines]).reshape(57, 4)
        names = [line["query"] for line in lines[::4]]
    prefix = "q" if query[0] == "q.lance" else ""
    assert names == [f"{prefix}{row}" for row in range(57)]
    np.testing.assert_array_equal(ids, expected_of(4)[0])
    np.testing.assert_allclose(distances, expected_of(4)[1], rtol=1e-4)


def test_more_neighbours_than_there_are(root, tmp_path, run_door):
    """They take no memory."""
    output = tmp_path / "out.json"
    flags = [f"--index={root / 'i'}", f"--query={root / 'q.lance'}", "--query_column=a"]
    assert run_door(search_index, *flags, "--k=9999999999", f"--output={output}") == 0
    results = json.loads(output.read_text())["results"]
    assert {len(one["neighbours"]) for one in results} == {COUNT}


def test_the_own_row_is_left_out(root, tmp_path, run_door):
    output = tmp_path / "out.json"
    flags = [f"--index={root / 'i'}", f"--query={root / 'g.lance'}", "--query_column=a"]
    assert run_door(search_index, *flags, "--exclude_own", "--k=1", f"--output={output}") == 0
    vectors = vectors_of()
    places, _ = exact.search(vectors, vectors, 1, "l2", np.arange(len(vectors)))
    found = [one["neighbours"][0]["id"] for one in json.loads(output.read_text())["results"]]
    assert found == [f"row{place}" for place in places[:, 0]]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--query=q.npy"], "say in which space the queries lie"),
        (["--query=q.npy", "--model_name=n"], "lie in different spaces"),
        (["--query=q.npy", "--space=abc"], "lie in different spaces"),
        (["--query=q.npy", "--model=g.lance"], "no such file"),
        (["--query=q.npy", "--model_name=m", "--space=abc"], "give one of them"),
        (["--query=q.npy", "--model_name=m", "--exclude_own"], "has no ids"),
        (["--query=wide.npy", "--model_name=m"], "different dimensions: 5"),
        (["--query=wide.npy", "--allow_space_mismatch"], "must be rows of 8 values"),
        (["--query=bad.npy", "--model_name=m"], "bad.npy: row '7' with NaN or infinity"),
        (["--query=long.npy", "--model_name=m"], "long.npy: row '9' longer than 9e18"),
        (["--query=q.lance"], "--query_column is missing; q.lance has: other, a"),
        (["--query=q.lance", "--query_column=other"], "lie in different spaces"),
        (["--query=q.lance", "--query_column=a", "--space=abc"], "goes with a file"),
        (["--query=nothing.npy", "--model_name=m"], "nothing.npy"),
        (["--query=q.npy", "--index=g.lance"], "no index here"),
        (
            ["--query=q.npy", "--model_name=m", "--output=x.txt"],
            "must end with .json, .csv or .parquet",
        ),
        (["--query=q.npy", "--model_name=m", "--k=0"], "k"),
    ],
)
def test_searches_that_are_refused(root, tmp_path, run_door, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(root)
    before = sorted(os.listdir(root))
    assert run_door(search_index, "--index=i", "--output=out.json", *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir(root)) == before


def test_a_mismatch_that_is_allowed(root, tmp_path, run_door):
    flags = [f"--index={root / 'i'}", f"--query={root / 'q.npy'}", "--k=2"]
    output = tmp_path / "out.csv"
    assert run_door(search_index, *flags, "--allow_space_mismatch", f"--output={output}") == 0
    lines = list(csv.DictReader(output.open()))
    assert [line["id"] for line in lines] == expected_of(2)[0].reshape(-1).tolist()


def test_build_update_and_dry_run(tmp_path, run_door, capsys):
    gallery_at(tmp_path / "g.lance")
    flags = [f"--gallery={tmp_path / 'g.lance'}", "--column=a", f"--output={tmp_path / 'i'}"]
    assert run_door(build_index, *flags, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "2203 rows x 8, codes of all rows, 200 reordered (the build measures" in out
    assert "MB" in out
    assert not (tmp_path / "i").exists()
    assert run_door(build_index, *flags, *SETTINGS, "--reordering_data=bfloat16") == 0
    made = index.open_index(tmp_path / "i").searcher.settings
    assert (made.num_leaves, made.reordering_data) == (5, "bfloat16")
    assert run_door(build_index, *flags) == 2
    assert "exists already; pass --overwrite" in capsys.readouterr().err
    lance.dataset(str(tmp_path / "g.lance")).delete("id < 'row11'")
    update = [flags[2], "--update"]
    assert run_door(build_index, *update, "--dry_run") == 0
    told = "0 new rows, 0 changed, 113 gone"
    assert told in capsys.readouterr().out
    for expected in (told, "0 new rows, 0 changed, 0 gone"):
        assert run_door(build_index, *update) == 0
        out = capsys.readouterr().out
        assert expected in out and "2090 rows of 'a' at version 2" in out
    assert run_door(build_index, *update, f"--gallery={tmp_path / 'g.lance'}@1") == 0
    assert "113 new rows" in capsys.readouterr().out


@pytest.mark.parametrize("shards", [[], ["--shards=2"]])
def test_the_recall_of_the_build_is_told(tmp_path, run_door, capsys, caplog, monkeypatch, shards):
    """Of the worst shard; what is far from what can be had is warned of, with what to do."""
    vectors = vectors_of(2 * COUNT)
    vectors[7] *= 1e6
    gallery_at(tmp_path / "g.lance", vectors)
    flags = [f"--gallery={tmp_path / 'g.lance'}", "--column=a", f"--output={tmp_path / 'i'}"]
    few = ["--num_leaves=0", "--reordering_num_neighbors=20", *shards]
    assert run_door(build_index, *flags, *few, "--dry_run") == 0
    assert "20 reordered; about" in capsys.readouterr().out
    assert run_door(build_index, *flags, *few) == 0
    captured, manifest = capsys.readouterr(), index.Index(tmp_path / "i").manifest
    assert manifest["recall"] < 0.2
    assert f", recall@10 {manifest['recall']:.3f}" in captured.out
    told = [one for one in caplog.messages if "recall@10 of 'a' is 0." in one]
    assert len(told) == 1 + len(shards)
    assert "recall=0.95" in told[0] and "num_leaves_to_search" in told[0]
    # The update says what was measured when it was built.
    assert run_door(build_index, "--update", flags[2]) == 0
    assert f", recall@10 {manifest['recall']:.3f}" in capsys.readouterr().out
    # By default, or for a recall that is asked for, settings are taken that find them.
    caplog.clear()
    monkeypatch.setattr("fct_tf.ann.effort._SECONDS", 0.0)
    for more in ([], ["--recall=0.9"]):
        assert run_door(build_index, *flags, *shards, *more, "--overwrite") == 0
        manifest = index.open_index(tmp_path / "i").manifest
        assert manifest["recall"] >= 0.9
        assert f", recall@10 {manifest['recall']:.3f}" in capsys.readouterr().out
    assert not [one for one in caplog.messages if "recall@10 of 'a' is" in one]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--column=a"], "--gallery is missing"),
        (["--gallery=g.lance"], "--column is missing"),
        (["--gallery=g.lance", "--column=b"], "there are: a"),
        (["--gallery=g.lance", "--column=a", "--num_leaves=5000"], "num_leaves=5000"),
        (["--gallery=g.lance", "--column=a", "--hash_type=lut8"], "hash_type"),
        (["--gallery=g.lance", "--column=a", "--soar_lambda=1.5"], "distance=cosine only"),
        (["--gallery=g.lance", "--column=a", "--recall=0.9", "--num_leaves=5"], "leave num_leaves"),
        (["--gallery=g.lance", "--column=a", "--recall=1.5"], "recall"),
        (["--gallery=g.lance", "--column=a", "--num_leafs=5"], "num_leafs"),
        (["--update"], "no index here"),
        (["--update", "--num_leaves=5"], "--num_leaves: an update keeps the settings"),
        (["--update", "--overwrite"], "--overwrite: an update keeps the settings"),
        (["--update", "--output=i", "--column=b"], "i is of 'a'"),
    ],
)
def test_builds_that_are_refused(root, run_door, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(root)
    before = sorted(os.listdir(root))
    assert run_door(build_index, "--output=new.index", *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir(root)) == before


def test_every_setting_is_a_flag(run_door, capsys):
    assert run_door(build_index, "--help") == 0
    shown = capsys.readouterr().out
    for name in index.Settings().to_json():
        assert f"{name}" in shown
