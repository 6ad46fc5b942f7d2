"""CMC from ScaNN against exact CMC, which it must equal with one leaf and full reordering."""

import json
import sys

import lance
import numpy as np
import pytest

from fct_tf import evaluate
from fct_tf.ann import evaluation, index, scann_files
from fct_tf.ann.settings import EXACT, Settings
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.reader import open_gallery
from fct_tf.retrieval import exact, metrics, two_columns
from tests.builders import numbered
from tests.retrieval.test_distances import scene

EVERYTHING = Settings(num_leaves=1, num_leaves_to_search=1, reordering_num_neighbors=1009)


def side(count=1009, dim=13, seed=0, classes=101):
    generator = np.random.default_rng(seed)
    labels = numbered("c", generator.integers(0, classes, count))
    labels[::17] = None
    ids = numbered("row", count)
    return generator.normal(size=(count, dim)).astype(np.float32), ids, labels


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_ranks_equal_exact_ranks_up_to_the_greatest(distance):
    whole = side()
    query = side(211, seed=1)
    query[2][:3] = "unknown"
    query[1][10:20] = whole[1][100:110]
    for other in (whole, query):
        expected = exact.per_query(*other, *whole, distance)
        found, how = evaluation.per_query(*other, *whole, distance, max_rank=5, settings=EVERYTHING)
        rank = np.where(expected.rank > 5, 1010, expected.rank)
        np.testing.assert_array_equal(found.rank, rank)
        np.testing.assert_array_equal(found.self_removed, expected.self_removed)
        np.testing.assert_array_equal(found.position, expected.position)
        assert how["recall"] == 1.0 and how["recall_at"] == 5


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("name", ["groups far apart", "one far row", "narrow cone"])
def test_few_rows_are_ranked_exactly_whatever_their_numbers(name, distance):
    rows, labels = scene(name)
    whole = (rows, numbered("row ", len(rows)), labels)
    expected = exact.per_query(*whole, *whole, distance)
    found, how = evaluation.per_query(*whole, *whole, distance)
    np.testing.assert_array_equal(found.rank <= 5, expected.rank <= 5)
    assert how["num_leaves"] == 0 and how["recall"] == 1.0


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("apart", [1, 10, 1000])
def test_many_rows_of_groups_far_apart_are_found(apart, distance):
    generator = np.random.default_rng(0)
    group = generator.integers(0, 20, 6001)
    rows = generator.normal(size=(20, 96))[group] * apart + generator.normal(size=(6001, 96))
    labels = numbered("c", group)
    whole = (rows.astype(np.float32), numbered("row ", 6001), labels)
    _, how = evaluation.per_query(*whole, *whole, distance)
    assert how["num_leaves"] == 0 and how["recall"] > 0.95
    assert (how["reorder"] > 200) == (apart > 1)


def test_a_collapsed_model_scores_nothing():
    _, ids, labels = side()
    vectors = np.ones((1009, 13), np.float32)
    found, _ = evaluation.per_query(vectors, ids, labels, vectors, ids, labels, settings=EXACT)
    assert np.mean(found.rank[found.rank > 0] <= 5) == 0


def test_rows_without_direction_are_nobodys_neighbours_by_cosine():
    vectors, ids, labels = side()
    vectors[::50] = 0
    found, how = evaluation.per_query(
        vectors, ids, labels, vectors, ids, labels, "cosine",
        settings=Settings(num_leaves=1, num_leaves_to_search=1, reordering_num_neighbors=900),
    )  # fmt: skip
    expected = exact.per_query(vectors, ids, labels, vectors, ids, labels, "cosine")
    kept = vectors.any(axis=1)[found.position]
    rank = np.where(expected.rank > 5, 1010, expected.rank)
    np.testing.assert_array_equal(found.rank[kept], rank[kept])
    with pytest.raises(InputError, match="no row has a direction"):
        evaluation.per_query(vectors * 0, ids, labels, vectors * 0, ids, labels, "cosine")


def test_recall_by_hand():
    found = np.array([[1, 2, 3], [4, -1, -1], [7, 8, 9]])
    true = np.array([[3, 2, 9], [4, 5, -1], [-1, -1, -1]])
    assert evaluation.recall(found, true) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.fixture
def flags(tmp_path):
    vectors, ids, labels = side(2203)
    columns = [
        table.Column(name, 13, table.imported_space("m"), created_by={"model": "m"})
        for name in ("a", "b")
    ]
    written = table.Rows(ids, labels, {"a": vectors, "b": vectors})
    table.create(tmp_path / "g.lance", [written], columns)
    flags = {"gallery": tmp_path / "g.lance", "gallery_column": "a", "query_column": "a"}
    flags |= {"output": tmp_path / "r.json", "search": "scann"}
    return [f"--{key}={value}" for key, value in flags.items()]


def test_evaluate_with_scann_in_memory_and_from_an_index(flags, tmp_path, run_door, capsys):
    gallery = open_gallery(tmp_path / "g.lance")
    settings = {"num_leaves": 3, "num_leaves_to_search": 3, "reordering_num_neighbors": 2203}
    built = index.build(gallery, "a", tmp_path / "i", settings)
    # Its rows are in another order than the gallery's.
    vectors = gallery.read(["a"]).vectors["a"]
    built.delete(["row0", "row7"])
    built.upsert(["row7", "row0"], vectors[[7, 0]])
    expected = two_columns.evaluate(gallery, "a", gallery, "a")
    assert run_door(evaluate, *flags, f"--index={tmp_path / 'i'}") == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["cmc"] == expected["cmc"]
    assert record["map"] is None and record["confidence"]["map"] is None
    assert record["search"] == {
        "name": "scann",
        "num_leaves": 3,
        "num_leaves_to_search": 3,
        "reorder": 2203,
        "recall": 1.0,
        "recall_at": 5,
        "recall_queries": 1000,
        "index": {"path": str(tmp_path / "i"), "generation": "generation-3"},
    }
    assert "recall 100.00 %" in capsys.readouterr().out
    assert run_door(evaluate, *flags, "--overwrite") == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["search"]["num_leaves"] == 0 and 0.5 < record["search"]["recall"] <= 1


def test_an_index_of_something_else_is_refused(flags, tmp_path, run_door, capsys):
    index.build(tmp_path / "g.lance", "a", tmp_path / "i")
    of_it = f"--index={tmp_path / 'i'}"
    for more, message in (
        ([of_it, "--search=exact"], "goes with --search=scann"),
        ([of_it, "--gallery_column=b"], "is of column 'a'"),
        ([of_it, "--distance=cosine"], "has distance l2, not cosine"),
        ([f"--index={tmp_path}"], "no index here"),
    ):
        assert run_door(evaluate, *flags, *more) == 2
        assert message in capsys.readouterr().err
    lance.dataset(str(tmp_path / "g.lance")).delete("id = 'row5'")
    assert run_door(evaluate, *flags, of_it) == 2
    assert "0 new rows, 0 changed, 1 gone); run build_index --update" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_without_scann_search_is_exact(flags, tmp_path, run_door, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann", None)
    scann_files.available.cache_clear()
    try:
        assert run_door(evaluate, *flags) == 0
    finally:
        scann_files.available.cache_clear()
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["search"] == "exact" and record["map"] is not None
    assert "searching exactly" in capsys.readouterr().err


# Within 0.2 points of exact CMC by the defaults.
@pytest.mark.parametrize(
    "gallery, column",
    [("reference_rows", "embedding_new"), ("reference_rows", "embedding_old"),
     ("text_rows", "embedding_new"), ("text_rows", "embedding_old")],
)  # fmt: skip
@pytest.mark.slow
def test_cmc_of_real_rows(shared_datasets, gallery, column):
    opened = open_gallery(shared_datasets / gallery / "test.lance")
    read = opened.read([column], with_labels=True)
    whole = (read.vectors[column], read.ids, read.labels)
    distance = opened.column(column).distance
    expected = metrics.cmc(exact.per_query(*whole, *whole, distance).rank, (1, 5))
    found, how = evaluation.per_query(*whole, *whole, distance)
    for k, value in metrics.cmc(found.rank, (1, 5)).items():
        assert abs(value - expected[k]) <= 0.002, (k, value, expected, how)
