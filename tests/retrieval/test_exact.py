"""Exact search and evaluation, against slow dense computations."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact, two_columns
from tests.builders import numbered, some_labels, write_gallery


def distances(query, gallery, distance):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if distance == "l2":
        return np.square(query[:, None] - gallery[None]).sum(axis=2)
    norms = [np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)]
    query, gallery = (
        query / np.where(norms[0], norms[0], 1),
        gallery / np.where(norms[1], norms[1], 1),
    )
    return 1 - query @ gallery.T


def slow(query, query_ids, query_labels, gallery, gallery_ids, gallery_labels, distance):
    """Rank and average precision of every labelled query, one at a time."""
    table = distances(query, gallery, distance)
    ranks, precisions = [], []
    for row, (own, label) in enumerate(zip(query_ids, query_labels, strict=True)):
        if label is None:
            continue
        kept = np.array([other != own for other in gallery_ids], bool)
        match = np.array([other == label for other in gallery_labels], bool)[kept]
        near = table[row][kept]
        if not match.any():
            ranks.append(0)
            precisions.append(np.nan)
            continue
        ranks.append(1 + int(np.sum(near[~match] <= near[match].min())))
        precisions.append(average_precision_score(match, -near))
    return np.array(ranks), np.array(precisions)


def check(arguments, distance, block):
    found = exact.per_query(*arguments, distance, block=block)
    rank, precision = slow(*arguments, distance)
    np.testing.assert_array_equal(found.rank, rank)
    np.testing.assert_allclose(found.average_precision, precision, atol=1e-6)
    return found


@pytest.mark.parametrize("block", [1, 7, 64, None])
@pytest.mark.parametrize("values", [2, 3, 50])
def test_query_is_gallery_with_many_ties(values, block):
    generator = np.random.default_rng(values)
    vectors = generator.integers(-values, values, (101, 5)).astype(np.float32)
    side = (vectors, numbered("row", 101), some_labels(generator, 101, 13, unlabelled=0.1))
    found = check((*side, *side), "l2", block)
    assert found.self_removed.all()


@pytest.mark.parametrize("block", [1, 13, None])
def test_separate_query_and_gallery(block):
    generator = np.random.default_rng(5)
    gallery = generator.integers(0, 4, (89, 3)).astype(np.float32)
    query = generator.integers(0, 4, (53, 3)).astype(np.float32)
    gallery_labels = some_labels(generator, 89, 7, unlabelled=0.2)
    query_labels = some_labels(generator, 53, 11, unlabelled=0.2)  # Four labels are unknown.
    # Some queries are rows of the gallery under the same id, at other positions, one of them
    # with another label there.
    query_ids = numbered("query", 53)
    query_ids[:9] = [f"row{row}" for row in range(70, 79)]
    query_labels[:9], gallery_labels[70] = gallery_labels[70:79], "c0"
    query_labels[0] = "c1"
    arguments = (query, query_ids, query_labels, gallery, numbered("row", 89), gallery_labels)
    found = check(arguments, "l2", block)
    assert (found.rank == 0).any() and found.self_removed.sum() >= 5


def test_self_is_removed_by_id_not_by_position_or_distance():
    vectors = np.array([[0.0], [0.0], [1.0]], np.float32)
    query_ids = np.array(["c", "a", "b"], object)
    gallery_ids = np.array(["a", "b", "c"], object)
    labels = np.array(["x", "x", "x"], object)
    found = exact.per_query(vectors, query_ids, labels, vectors, gallery_ids, labels)
    np.testing.assert_array_equal(found.rank, [1, 1, 1])
    np.testing.assert_array_equal(found.self_removed, [True, True, True])
    # A duplicate of the query under another id stays.
    far = np.array(["y", "x", "y"], object)
    found = exact.per_query(vectors, gallery_ids, far, vectors, gallery_ids, far)
    np.testing.assert_array_equal(found.rank, [2, 0, 2])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_real_numbers(distance):
    generator = np.random.default_rng(11)
    vectors = (generator.normal(size=(211, 17)) + 3).astype(np.float32)
    side = (vectors, numbered("row", 211), some_labels(generator, 211, 31))
    check((*side, *side), distance, 37)


def test_cosine_with_ties_and_zero_rows():
    # Rows of +-1 in 16 dimensions have norm 4: normalised they are exact, ties stay ties.
    generator = np.random.default_rng(2)
    base = np.sign(generator.normal(size=(11, 16)))
    vectors = (
        base[generator.integers(0, 11, 97)] * 2.0 ** generator.integers(0, 4, (97, 1))
    ).astype(np.float32)
    vectors[::19] = 0
    side = (vectors, numbered("row", 97), some_labels(generator, 97, 9))
    check((*side, *side), "cosine", 10)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1234567, -7e3])
def test_a_collapsed_model_scores_nothing(distance, value):
    generator = np.random.default_rng(0)
    row = np.full(67, value, np.float32) * generator.random(67).astype(np.float32)
    vectors = np.tile(row, (503, 1))
    side = (vectors, numbered("row", 503), some_labels(generator, 503, 50))
    found = exact.per_query(*side, *side, distance)
    assert np.mean(found.rank == 1) == 0
    assert (found.rank[found.rank > 0] > 400).all()
    assert np.nanmean(found.average_precision) < 0.05


def test_extreme_magnitudes_keep_the_ranking():
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(61, 8)).astype(np.float32)
    side = (numbered("row", 61), some_labels(generator, 61, 6))
    expected = exact.per_query(vectors, *side, vectors, *side)
    for factor in (2.0**-90, 2.0**90):
        scaled = vectors * np.float32(factor)
        found = exact.per_query(scaled, *side, scaled, *side)
        np.testing.assert_array_equal(found.rank, expected.rank)


def test_a_large_offset_does_not_drown_the_differences():
    generator = np.random.default_rng(1)
    vectors = generator.integers(0, 5, (61, 8)).astype(np.float32)
    side = (numbered("row", 61), some_labels(generator, 61, 6))
    expected = exact.per_query(vectors, *side, vectors, *side)
    moved = vectors + np.float32(100_000)
    found = exact.per_query(moved, *side, moved, *side)
    np.testing.assert_array_equal(found.rank, expected.rank)
    np.testing.assert_allclose(found.average_precision, expected.average_precision)


def test_unlabelled_rows_of_the_gallery_are_distractors():
    query = np.zeros((1, 1), np.float32)
    gallery = np.array([[1.0], [2.0], [3.0]], np.float32)
    labels = np.array([None, None, "x"], object)
    arguments = (query, ["q"], ["x"], gallery, ["a", "b", "c"], labels)
    found = exact.per_query(*arguments)
    assert found.rank[0] == 3 and found.average_precision[0] == pytest.approx(1 / 3)
    # A label that only queries have must not match them.
    assert exact.per_query(query, ["q"], ["z"], *arguments[3:]).rank[0] == 0


def test_empty_gallery_has_no_match():
    empty = (np.zeros((0, 2), np.float32), numbered("g", 0), numbered("g", 0))
    found = exact.per_query(
        np.zeros((3, 2), np.float32), numbered("q", 3), numbered("x", 3), *empty
    )
    np.testing.assert_array_equal(found.rank, [0, 0, 0])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 83, 100])
def test_search_equals_a_stable_sort(distance, k):
    generator = np.random.default_rng(k)
    gallery = np.sign(generator.normal(size=(83, 4))).astype(np.float32)
    query = np.sign(generator.normal(size=(29, 4))).astype(np.float32)
    exclude = generator.integers(-1, 83, 29).astype(np.int32)
    table = distances(query, gallery, distance)
    table[np.flatnonzero(exclude >= 0), exclude[exclude >= 0]] = np.inf
    order = np.argsort(table, axis=1, kind="stable")[:, :k]
    sorted_table = np.take_along_axis(table, order, axis=1)
    order[np.isinf(sorted_table)] = -1
    indices, found = exact.search(query, gallery, k, distance, exclude)
    assert indices.shape == found.shape == (29, k)
    width = order.shape[1]
    np.testing.assert_array_equal(indices[:, :width], order)
    np.testing.assert_allclose(found[:, :width], sorted_table, atol=1e-6)
    assert (indices[:, width:] == -1).all() and np.isinf(found[:, width:]).all()


def test_search_without_gallery_or_exclusion():
    indices, found = exact.search(np.zeros((2, 3)), np.zeros((0, 3)), 4)
    assert (indices == -1).all() and np.isinf(found).all()
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    indices, found = exact.search(vectors, vectors, 1)
    np.testing.assert_array_equal(indices[:, 0], np.arange(40))
    assert (found >= 0).all() and found.max() < 1e-5


@pytest.mark.parametrize("separate", [False, True])
def test_rows_of_the_own_label_and_group_do_not_count(separate):
    """As in re-identification: other views of a person by the same camera are no merit."""
    generator = np.random.default_rng(6)
    vectors = generator.integers(0, 6, (120, 4)).astype(np.float32)
    ids, labels = numbered("row", 120), some_labels(generator, 120, 9, unlabelled=0.1)
    groups = some_labels(generator, 120, 3, unlabelled=0.2)
    taken = generator.permutation(120)[:50] if separate else np.arange(120)
    query = (vectors[taken], numbered("query", 120)[taken] if separate else ids, labels[taken])
    of_query = groups[taken].copy()
    of_query[0] = "a group that no row has"
    if not separate:
        groups = of_query
    found = exact.per_query(*query, vectors, ids, labels, groups=(of_query, groups), block=11)
    table, at = distances(query[0], vectors, "l2"), 0
    for row, label in enumerate(query[2]):
        if label is None:
            continue
        kept = ids != query[1][row]
        kept &= ~((labels == label) & (groups == of_query[row]) & (of_query[row] is not None))
        near, match = table[row][kept], (labels == label)[kept]
        if match.any():
            assert found.rank[at] == 1 + np.sum(near[~match] <= near[match].min())
            expected = average_precision_score(match, -near)
            assert found.average_precision[at] == pytest.approx(expected)
        else:
            assert found.rank[at] == 0
        at += 1
    assert at == len(found.rank)


def test_bad_arguments():
    side = (np.zeros((2, 3), np.float32), numbered("a", 2), numbered("x", 2))
    other = (np.zeros((2, 4), np.float32), numbered("a", 2), numbered("x", 2))
    with pytest.raises(InputError, match="3 dimensions.*4"):
        exact.per_query(*side, *other)
    with pytest.raises(InputError, match="manhattan"):
        exact.search(side[0], side[0], 1, "manhattan")


@pytest.mark.parametrize("separate", [False, True])
def test_rows_left_out(tmp_path, separate):
    """Neither queries nor rows of the gallery, whether these are one table or two."""
    generator = np.random.default_rng(8)
    ids, labels = numbered("row", 61), some_labels(generator, 61, 7, unlabelled=0.1)
    new, old = (generator.normal(size=(61, 5)).astype(np.float32) for _ in range(2))
    gallery = write_gallery(tmp_path / "g.lance", {"new": new, "old": old}, labels, ids=ids)
    query, taken = gallery, np.arange(61)
    if separate:
        taken = generator.permutation(61)[:40]
        asked = (tmp_path / "q.lance", {"new": new[taken]}, labels[taken])
        query = write_gallery(*asked, ids=ids[taken])
    without = {"row3", "row17", "row60", "not there"} | {ids[row] for row in taken[:5]}
    settings = {"allow_space_mismatch": True, "bootstrap": 0}
    for left_out in (without, np.array(sorted(without), object)):
        record, found, found_labels = two_columns.evaluate_queries(
            query, "new", gallery, "old", without=left_out, **settings
        )
        kept = np.array([name not in without for name in ids])
        asked = taken[kept[taken]]
        sides = (new[asked], ids[asked], labels[asked], old[kept], ids[kept], labels[kept])
        rank, precision = slow(*sides, "l2")
        np.testing.assert_array_equal(found.rank, rank)
        np.testing.assert_allclose(found.average_precision, precision, atol=1e-6)
        assert record["num_gallery"] == kept.sum() and list(found_labels) == list(labels[asked])
        assert record["num_queries"] == len(rank)
        assert record["num_self_removed"] == record["num_queries"]
        assert record["map"] == pytest.approx(np.nanmean(precision), abs=1e-6)
    # Nothing left out is the evaluation as ever.
    whole, same = (
        two_columns.evaluate(query, "new", gallery, "old", **settings, **more)
        for more in ({}, {"without": {"not there"}})
    )
    assert whole == same and whole["num_gallery"] == 61
    with pytest.raises(InputError, match="no row is left"):
        two_columns.evaluate(query, "new", gallery, "old", without=set(ids), **settings)
