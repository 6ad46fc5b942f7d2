"""Recall as it is measured while an index is built, and settings that it is enough with."""

import numpy as np
import pytest

from fct_tf.ann import fitting, scann_files
from fct_tf.ann.engines import Scann
from fct_tf.ann.merged import Merged
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact
from tests.ann.test_ann_searcher import clusters, recall

FEW = {"reordering_num_neighbors": 20, "dimensions_per_block": 4}


@pytest.fixture(autouse=True)
def scann():
    """Without it there are no codes that could find too little."""
    assert scann_files.available()


def asked(rows, k=10, distance="l2", count=300):
    """Queries that are near rows of all kinds, and their exact neighbours."""
    queries = rows[::-1][:count] * np.float32(1.001)
    return queries, exact.search(queries, rows, k, distance)[0]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("factor", [1, 1e2, 1e6, 1e12])
@pytest.mark.parametrize("data", ["float32", "int8"])
def test_the_recall_of_a_build_is_the_true_one(distance, factor, data):
    """Whatever the longest row is: the distances of the others may be tiny beside its own."""
    rows = clusters(3001)
    rows[7] *= np.float32(factor)
    settings = Settings.for_rows(*rows.shape, distance, reordering_data=data, **FEW)
    searcher = Searcher.taking(rows.copy(), distance, settings, measured=True)
    own = np.arange(0, len(rows), 31)
    true, _ = exact.search(rows[own], rows, 10, distance, own)
    found, _ = searcher.search(rows[own], 11)
    kept = np.argsort(found == own[:, None], axis=1, kind="stable")[:, :10]
    measured = recall(np.take_along_axis(found, kept, axis=1), true)
    assert searcher.recall == pytest.approx(measured, abs=0.03)
    if factor > 1e3 and distance == "l2":
        assert searcher.recall < 0.3


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("factor", [1e2, 1e6, 1e12])
def test_a_few_long_rows_cost_the_others_no_recall(distance, factor, count):
    rows = clusters(6007)
    rows[7 : 7 + count] *= np.float32(factor)
    searcher = Searcher.build(rows, distance)
    # Nor by reordering all of them.
    assert searcher.settings.reordering_num_neighbors <= 16 * 200
    assert searcher.settings.score == ("brute_force" if distance == "l2" else "ah")
    queries, true = asked(rows, 10, distance)
    assert searcher.recall >= 0.9
    assert recall(searcher.search(queries, 10)[0], true) >= 0.9
    # The long ones are found too.
    np.testing.assert_array_equal(searcher.search(rows[7:8], 1)[0], [[7]])


def test_rows_are_reordered_before_the_rows_themselves_are_compared():
    rows = clusters(3001)
    assert Searcher.build(rows).settings.score == "ah"
    settings = Settings.for_rows(*rows.shape, **FEW)
    engine = Scann(scann_files.build(rows, settings, 1), settings, rows.shape[1])
    before = fitting.recall(engine, rows)
    after, found = fitting.fitting(engine, rows, "l2", 1)
    assert after is engine and before < 0.9 <= found == fitting.recall(engine, rows)
    assert 20 < engine.settings.reordering_num_neighbors <= 16 * 20


def test_leaves_that_are_not_searched_are_no_reason_to_compare_rows():
    """No other codes find what lies in them."""
    rows = np.random.default_rng(0).normal(size=(3001, 24)).astype(np.float32)
    few = {"num_leaves": 50, "num_leaves_to_search": 2, "reordering_num_neighbors": 400}
    settings = Settings.for_rows(*rows.shape, **few)
    engine = Scann(scann_files.build(rows, settings, 1), settings, rows.shape[1])
    after, found = fitting.fitting(engine, rows, "l2", 1)
    assert after is engine and found < 0.5
    assert fitting.recall(engine, rows, 50) >= 0.9


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_recall_of_a_handful_of_rows(count):
    rows = clusters(3001)[:count]
    settings = Settings(num_leaves=0, score="brute_force", score_data="bfloat16")
    engine = Scann(scann_files.build(rows, settings, 1), settings, rows.shape[1])
    assert fitting.recall(engine, rows) == 1


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("leaves", [0, 60])
def test_a_search_for_many_reorders_some_for_each(leaves, parts):
    """Where just as many as are asked for are reordered, what codes misplace is lost."""
    rows = clusters(6007, 32)
    settings = Settings.for_rows(*rows.shape, num_leaves=leaves, num_leaves_to_search=leaves)
    cut = np.array_split(np.arange(len(rows)), parts)
    searcher = Merged([Searcher.build(rows[part], settings=settings) for part in cut])
    usual = settings.reordering_num_neighbors
    for k in (usual // 2, usual, 2 * usual, 5 * usual):
        queries, true = asked(rows, k, count=100)
        few, _ = searcher.search(queries, k, reordering_num_neighbors=1)
        found, _ = searcher.search(queries, k)
        assert recall(found, true) >= 0.95
        assert parts > 1 or recall(few, true) < 0.95
    # By other words they are as many as the settings say, and no more than there are rows.
    ten, _ = searcher.search(rows[:99], 10)
    same, _ = searcher.search(rows[:99], 10, reordering_num_neighbors=usual)
    np.testing.assert_array_equal(ten, same)
    everything, _ = searcher.search(rows[:9], len(rows))
    assert (np.sort(everything, axis=1) == np.arange(len(rows))).all()


def test_settings_that_reorder_few_for_each_go_on_so():
    """What the tuner found for 10 neighbours is not made slower for 11."""
    rows = clusters(3001)
    settings = Settings.for_rows(*rows.shape, reordering_num_neighbors=10)
    searcher = Searcher.build(rows, settings=settings)
    queries, _ = asked(rows)
    found, _ = searcher.search(queries, 40)
    same, _ = searcher.search(queries, 40, reordering_num_neighbors=40)
    np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("more", [{"reordering_data": "int8"}, {"reordering_data": "bfloat16"},
                                  {"score": "brute_force", "score_data": "int8"}, {}])  # fmt: skip
def test_no_distance_is_below_zero(distance, more):
    rows = clusters(3001)
    settings = Settings.for_rows(*rows.shape, distance, **more)
    _, distances = Searcher.build(rows, distance, settings).search(rows, 5)
    assert distances.min() >= 0 and (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("bad", [1e19, -4e18, 3e38])
def test_rows_and_queries_too_long_for_squared_distances(bad):
    rows = clusters(3001)
    long = rows.copy()
    long[5] = bad
    with pytest.raises(InputError, match="rows: row '5' longer than 9e18"):
        Searcher.build(long)
    for searcher in (Searcher.build(rows), Searcher.build(rows[:100])):
        with pytest.raises(InputError, match="queries: row '2' longer"):
            searcher.search(long[3:9], 2)
        with pytest.raises(InputError, match="rows: row '0' longer"):
            searcher.upsert([5], long[5:6])
    long[5] = np.sign(bad) * 8e18 / rows.shape[1] ** 0.5
    for some in (long, long[:100]):
        for distances in (
            Searcher.build(some).search(some[:9], 3)[1],
            exact.search(some[:9], some, len(some))[1],
        ):
            assert np.isfinite(distances).all()
    assert Searcher.build(long, "cosine").search(long[:9], 3)[1].max() < 2
