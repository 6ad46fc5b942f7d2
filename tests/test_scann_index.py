"""ScaNN against exact search, which it must equal with one leaf and full reordering."""

import json
import sys

import numpy as np
import pytest

from fct_tf import evaluate
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import exact, scann_index
from tests.test_distances import names, scene

EVERYTHING = scann_index.Parameters(num_leaves=1, num_leaves_to_search=1, reorder=1009)


def side(count=1009, dim=13, seed=0, classes=101):
    generator = np.random.default_rng(seed)
    labels = np.array([f"c{value}" for value in generator.integers(0, classes, count)], object)
    labels[::17] = None
    ids = np.array([f"row{row}" for row in range(count)], object)
    return generator.normal(size=(count, dim)).astype(np.float32), ids, labels


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("parameters", [EVERYTHING, scann_index.Parameters(0, 0, 0)])
def test_equals_exact_search(distance, parameters):
    gallery, query = side()[0], side(211, seed=1)[0]
    indices, distances = scann_index.Index(gallery, distance, parameters).search(query, 7)
    expected, true = exact.search(query, gallery, 7, distance)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, true, atol=1e-4)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_ranks_equal_exact_ranks_up_to_the_greatest(distance):
    whole = side()
    query = side(211, seed=1)
    query[2][:3] = "unknown"
    query[1][10:20] = whole[1][100:110]
    for other in (whole, query):
        expected = exact.per_query(*other, *whole, distance)
        found, how = scann_index.per_query(
            *other, *whole, distance, max_rank=5, parameters=EVERYTHING
        )
        rank = np.where(expected.rank > 5, 1010, expected.rank)
        np.testing.assert_array_equal(found.rank, rank)
        np.testing.assert_array_equal(found.self_removed, expected.self_removed)
        np.testing.assert_array_equal(found.position, expected.position)
        assert how["recall"] == 1.0 and how["recall_at"] == 5


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("name", ["groups far apart", "one far row", "narrow cone"])
def test_few_rows_are_ranked_exactly_whatever_their_numbers(name, distance):
    rows, labels = scene(name)
    whole = (rows, names(len(rows)), labels)
    expected = exact.per_query(*whole, *whole, distance)
    found, how = scann_index.per_query(*whole, *whole, distance)
    np.testing.assert_array_equal(found.rank <= 5, expected.rank <= 5)
    assert how["num_leaves"] == 0 and how["recall"] == 1.0


def test_a_collapsed_model_scores_nothing():
    _, ids, labels = side()
    vectors = np.ones((1009, 13), np.float32)
    found, _ = scann_index.per_query(
        vectors, ids, labels, vectors, ids, labels, parameters=scann_index.Parameters(0, 0, 0)
    )
    assert np.mean(found.rank[found.rank > 0] <= 5) == 0


def test_usual_parameters_find_most_neighbours():
    # Clusters, as embeddings have them.
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(300, 16)) * 3
    gallery = (
        centres[generator.integers(0, 300, 6007)] + generator.normal(size=(6007, 16))
    ).astype(np.float32)
    index = scann_index.Index(gallery, "l2")
    assert index.parameters == scann_index.Parameters(155, 10, 100)
    indices, _ = index.search(gallery[:500], 10)
    true, _ = exact.search(gallery[:500], gallery, 10)
    assert 0.8 < scann_index.recall(indices, true) <= 1


def test_recall_by_hand():
    found = np.array([[1, 2, 3], [4, -1, -1], [7, 8, 9]])
    true = np.array([[3, 2, 9], [4, 5, -1], [-1, -1, -1]])
    assert scann_index.recall(found, true) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_small_galleries():
    gallery = side(3)[0]
    indices, distances = scann_index.Index(gallery, "l2").search(gallery, 5)
    np.testing.assert_array_equal(indices[:, 0], [0, 1, 2])
    assert (indices[:, 3:] == -1).all() and np.isinf(distances[:, 3:]).all()
    with pytest.raises(InputError, match="at least one row"):
        scann_index.Index(gallery[:0], "l2")
    with pytest.raises(InputError, match="ScaNN cannot index 3 rows"):
        scann_index.Index(gallery, "l2", EVERYTHING)


@pytest.fixture
def flags(tmp_path):
    vectors, ids, labels = side()
    column = table.Column("a", 13, table.imported_space("m"), created_by={"model": "m"})
    table.create(tmp_path / "g.lance", [table.Rows(ids, labels, {"a": vectors})], [column])
    names = {"gallery": tmp_path / "g.lance", "gallery_column": "a", "query_column": "a"}
    names |= {"output": tmp_path / "r.json", "search": "scann"}
    return [f"--{key}={value}" for key, value in names.items()]


def test_evaluate_with_scann(flags, tmp_path, run_door, capsys):
    assert run_door(evaluate, *flags) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    gallery = table.open(tmp_path / "g.lance")
    expected = exact.evaluate(gallery, "a", gallery, "a")
    assert record["cmc"] == expected["cmc"]
    assert record["map"] is None and record["confidence"]["map"] is None
    assert record["search"]["name"] == "scann" and record["search"]["recall"] == 1.0
    assert "recall 100.00 %" in capsys.readouterr().out


def test_without_scann_search_is_exact(flags, tmp_path, run_door, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann", None)
    monkeypatch.delitem(sys.modules, "fct_tf.retrieval.scann_index", raising=False)
    monkeypatch.delattr("fct_tf.retrieval.scann_index", raising=False)
    assert run_door(evaluate, *flags) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["search"] == "exact" and record["map"] is not None
    assert "searching exactly" in capsys.readouterr().err
