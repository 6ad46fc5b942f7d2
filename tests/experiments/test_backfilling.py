"""Backfilling curves equal one full evaluation per point, and the AUC a plain mean."""

import numpy as np
import pytest

from fct_tf.backfill import curves
from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact, metrics
from tests.builders import numbered, some_labels


def evaluated(query, transformed, gallery, order, distance="l2"):
    """Rank and average precision [22, q] by 22 evaluations of the whole gallery."""
    vectors, ids, labels = gallery
    rank, precision = [], []
    for point in range(22):
        mixed = transformed.copy()
        rows = order[: int(point * len(vectors) / 21 + 1e-9)]
        mixed[rows] = vectors[rows]
        found = exact.per_query(*query, mixed, ids, labels, distance)
        rank.append(found.rank)
        precision.append(found.average_precision)
    return np.array(rank), np.array(precision)


def check(query, transformed, gallery, orders, distance="l2", block=None):
    found = curves.per_query(query, transformed, gallery, orders, distance, block)
    assert found.rank.shape == (len(orders), 22, len(found.position))
    for at, order in enumerate(orders):
        rank, precision = evaluated(query, transformed, gallery, order, distance)
        np.testing.assert_array_equal(found.rank[at], rank)
        np.testing.assert_allclose(found.average_precision[at], precision, rtol=1e-12)
    alone = exact.per_query(*query, *gallery, distance)
    np.testing.assert_array_equal(found.position, alone.position)
    np.testing.assert_array_equal(found.self_removed, alone.self_removed)
    return found


@pytest.mark.parametrize("rows", [1, 2, 5, 20, 21, 22, 23, 43, 101])
@pytest.mark.parametrize("values", [2, 9])
def test_any_number_of_rows_with_ties(rows, values):
    """Small integers: distances are exact, and many rows tie."""
    generator = np.random.default_rng(rows)
    new, transformed = generator.integers(0, values, (2, rows, 3)).astype(np.float32)
    gallery = (new, numbered("r", rows), some_labels(generator, rows, 3))
    orders = [generator.permutation(rows) for _ in range(3)]
    check(gallery, transformed, gallery, orders, block=7)


@pytest.mark.parametrize("block", [None, 13])
def test_separate_queries_distractors_and_queries_without_match(block):
    generator = np.random.default_rng(1)
    new, transformed = generator.integers(0, 4, (2, 97, 4)).astype(np.float32)
    gallery = (new, numbered("r", 97), some_labels(generator, 97, 4, unlabelled=0.3))
    query_ids = np.concatenate([numbered("q", 20), numbered("r", 97)[40:71]])
    query = generator.integers(0, 4, (51, 4)).astype(np.float32)
    labels = some_labels(generator, 51, 6, unlabelled=0.2)  # Two labels are not in the gallery.
    orders = [generator.permutation(97), np.arange(97)]
    found = check((query, query_ids, labels), transformed, gallery, orders, block=block)
    assert (found.rank == 0).any() and found.self_removed.sum() > 10
    assert len(found.position) < 51


def test_cosine_with_zero_rows():
    generator = np.random.default_rng(2)
    new, transformed = generator.integers(-1, 2, (2, 60, 4)).astype(np.float32)
    new[3] = transformed[5] = 0
    # Of length 1, 2 or 4: unit rows are exact.
    for side in (new, transformed):
        kept = np.isin((side**2).sum(axis=1), (0, 1, 4))
        side[~kept] = [1, 1, 1, 1]
    gallery = (new, numbered("r", 60), some_labels(generator, 60, 4))
    check(gallery, transformed, gallery, [generator.permutation(60)], "cosine")


def test_real_numbers():
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(11, 16))
    label = generator.integers(0, 11, 211)
    new = (centres[label] + generator.normal(size=(211, 16))).astype(np.float32)
    transformed = (new + generator.normal(size=new.shape)).astype(np.float32)
    gallery = (new, numbered("r", 211), numbered("c", label))
    order = generator.permutation(211)
    for distance in ("l2", "cosine"):
        found = curves.per_query(gallery, transformed, gallery, [order], distance)
        rank, precision = evaluated(gallery, transformed, gallery, order, distance)
        # Distances are rounded after another shift: now and then two near ones change places.
        assert np.mean(found.rank[0] != rank) < 0.01
        assert np.mean(~np.isclose(found.average_precision[0], precision, rtol=1e-12)) < 0.01
        np.testing.assert_allclose(found.average_precision[0], precision, rtol=0.01)


@pytest.mark.parametrize("collapsed", ["transformed", "new", "both"])
@pytest.mark.parametrize("value", [0.1, 1234.567])
def test_a_collapsed_side_scores_as_in_a_full_evaluation(collapsed, value):
    generator = np.random.default_rng(4)
    new, transformed = generator.normal(size=(2, 83, 24)).astype(np.float32)
    if collapsed != "new":
        transformed[:] = np.float32(value)
    if collapsed != "transformed":
        new[:] = np.float32(value)
    gallery = (new, numbered("r", 83), some_labels(generator, 83, 5))
    found = curves.per_query(gallery, transformed, gallery, [generator.permutation(83)])
    counts = {label: np.sum(gallery[2] == label) for label in gallery[2]}
    worst = np.array([83 - counts[label] + 1 for label in gallery[2]])
    if collapsed != "new":
        np.testing.assert_array_equal(found.rank[0, 0], worst)
    if collapsed != "transformed":
        np.testing.assert_array_equal(found.rank[0, 21], worst)


def test_a_large_offset_does_not_drown_the_differences():
    generator = np.random.default_rng(5)
    new, transformed = generator.integers(0, 5, (2, 50, 4)).astype(np.float32)
    labels, order = some_labels(generator, 50, 4), generator.permutation(50)
    near, far = (
        curves.per_query(
            (new + offset, numbered("r", 50), labels),
            transformed + offset,
            (new + offset, numbered("r", 50), labels),
            [order],
        )
        for offset in np.float32([0, 4096])
    )
    np.testing.assert_array_equal(near.rank, far.rank)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_ends_are_evaluations_however_far_apart_the_sides_are(distance):
    """A map that is hardly trained gives rows that nearly fall together, far from the queries."""
    generator = np.random.default_rng(9)
    new = (300 + 50 * generator.normal(size=(101, 6))).astype(np.float32)
    transformed = (0.4 + 3e-4 * generator.normal(size=(101, 6))).astype(np.float32)
    gallery = (new, numbered("r", 101), some_labels(generator, 101, 7))
    order = generator.permutation(101)
    found = curves.per_query(gallery, transformed, gallery, [order], distance)
    for point, stored in ((0, transformed), (21, new)):
        alone = exact.per_query(*gallery, stored, *gallery[1:], distance)
        np.testing.assert_array_equal(found.rank[0, point], alone.rank)
        np.testing.assert_allclose(
            found.average_precision[0, point], alone.average_precision, rtol=1e-12
        )


def test_rows_that_are_backfilled_already_tie_with_new_rows():
    """Of each label one row is backfilled, and the gallery has every image twice."""
    generator = np.random.default_rng(10)
    new = np.repeat(generator.normal(size=(40, 24)), 2, axis=0).astype(np.float32)
    # Apart from the new rows, so that both sides are shifted by vectors of their own.
    transformed = (new + 7 + generator.normal(size=new.shape)).astype(np.float32)
    transformed[::2] = new[::2]
    labels = np.array(["a", "b"] * 40, object)  # The other copy has the other label.
    gallery = (new, numbered("r", 80), labels)
    order = np.concatenate([np.arange(1, 80, 2), np.arange(0, 80, 2)])
    found = curves.per_query(gallery, transformed, gallery, [order])
    rank, precision = evaluated(gallery, transformed, gallery, order)
    half = found.rows >= 40
    np.testing.assert_array_equal(found.rank[0][half], rank[half])
    np.testing.assert_allclose(found.average_precision[0][half], precision[half], rtol=1e-12)


def test_empty_gallery():
    query = (np.ones((2, 3), np.float32), numbered("r", 2), np.array(["a", "b"], object))
    empty = np.empty((0, 3), np.float32)
    gallery = (empty, numbered("r", 0), np.empty(0, object))
    found = curves.per_query(query, empty, gallery, [np.arange(0)])
    assert (found.rank == 0).all() and np.isnan(found.average_precision).all()
    assert curves.auc(curves.curve(found, 0, 0, (1,)), (1,)) == {"1": None, "map": None}


def test_points_and_bad_orders():
    assert curves.replaced(13180).tolist() == [int(i * 13180 / 21) for i in range(22)]
    assert curves.replaced(3).tolist() == [0] * 7 + [1] * 7 + [2] * 7 + [3]
    vectors = np.ones((3, 2), np.float32)
    gallery = (vectors, numbered("r", 3), np.array(["a"] * 3, object))
    for order in ([0, 1], [0, 1, 1], [1, 2, 3]):
        with pytest.raises(InputError, match="order 0 is no order of 3 rows"):
            curves.per_query(gallery, vectors, gallery, [np.array(order)])
    with pytest.raises(InputError, match="same rows"):
        curves.per_query(gallery, vectors[:2], gallery, [])


def test_curve_and_auc():
    """Worked out apart from the package: 22 average precisions by scikit-learn, and their mean."""
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(6)
    new, transformed = generator.integers(0, 5, (2, 40, 3)).astype(np.float32)
    labels = np.array([f"c{i % 4}" for i in range(40)], object)
    order = generator.permutation(40)
    gallery = (new, numbered("r", 40), labels)
    found = curves.per_query(gallery, transformed, gallery, [order])
    points = curves.curve(found, 0, 40, (1, 5))
    expected: dict[str, list] = {"1": [], "5": [], "map": []}
    for point in range(22):
        stored = transformed.copy()
        stored[order[: point * 40 // 21]] = new[order[: point * 40 // 21]]
        hits, precision = {1: [], 5: []}, []
        for at in range(40):
            others = np.arange(40) != at
            distance = ((stored[others] - new[at]) ** 2).sum(axis=1)
            match = labels[others] == labels[at]
            precision.append(average_precision_score(match, -distance))
            rank = 1 + np.sum(distance[~match] <= distance[match].min())
            for k, values in hits.items():
                values.append(rank <= k)
        expected["map"].append(np.mean(precision))
        for k, values in hits.items():
            expected[str(k)].append(np.mean(values))
        assert points[point]["rows"] == point * 40 // 21
        assert points[point]["share"] == (point * 40 // 21) / 40
        assert points[point]["map"] == pytest.approx(expected["map"][-1])
        assert points[point]["cmc"]["5"] == pytest.approx(expected["5"][-1])
    area = curves.auc(points, (1, 5))
    assert list(area) == ["1", "5", "map"]
    for name, values in expected.items():
        assert area[name] == pytest.approx(sum(values) / 22)


def test_groups_are_the_curves_of_their_queries():
    generator = np.random.default_rng(7)
    new, transformed = generator.integers(0, 5, (2, 60, 3)).astype(np.float32)
    labels = some_labels(generator, 60, 4)
    labels[0] = "alone"  # Has no match.
    gallery, order = (new, numbered("r", 60), labels), generator.permutation(60)
    found = curves.per_query(gallery, transformed, gallery, [order])
    group = np.array(["many" if label in ("c0", "c1", "c2") else label for label in labels], object)
    group[labels == "c3"] = None
    made = curves.by_group(found, 0, 60, group, (1,))
    assert list(made["groups"]) == ["alone", "many"]
    assert made["num_queries_without_group"] == np.sum(labels == "c3")
    assert made["groups"]["alone"]["auc"] == {"1": None, "map": None}
    assert made["groups"]["alone"]["num_queries_without_match"] == 1
    assert made["gap"] is None  # Of one group with values.
    group[0] = None
    group[labels == "c3"] = "few"
    made = curves.by_group(found, 0, 60, group, (1,))
    for name, record in made["groups"].items():
        chosen = group == name
        query = (new[chosen], numbered("r", 60)[chosen], labels[chosen])
        rank, precision = evaluated(query, transformed, gallery, order)
        assert record["num_queries"] == chosen.sum()
        for point, values in enumerate(record["curve"]):
            assert values["map"] == pytest.approx(precision[point].mean())
            assert values["cmc"]["1"] == pytest.approx(np.mean(rank[point] == 1))
    few, many = (made["groups"][name]["curve"] for name in ("few", "many"))
    for gap, a, b in zip(made["gap"]["curve"], few, many, strict=True):
        assert gap["map"] == pytest.approx(abs(a["map"] - b["map"]))
        assert gap["cmc"]["1"] == pytest.approx(abs(a["cmc"]["1"] - b["cmc"]["1"]))
    gaps = [gap["map"] for gap in made["gap"]["curve"]]
    assert made["gap"]["auc"]["map"] == pytest.approx(np.mean(gaps))


def test_metrics_are_those_of_the_package():
    """A curve's ends are evaluations of the two columns."""
    generator = np.random.default_rng(8)
    new, transformed = generator.integers(0, 5, (2, 60, 3)).astype(np.float32)
    gallery = (new, numbered("r", 60), some_labels(generator, 60, 4))
    found = curves.per_query(gallery, transformed, gallery, [np.arange(60)])
    points = curves.curve(found, 0, 60, (1, 5))
    for point, stored in ((0, transformed), (21, new)):
        whole = exact.per_query(*gallery, stored, *gallery[1:])
        assert points[point]["cmc"] == metrics.cmc(whole.rank, (1, 5))
        mean = metrics.mean_average_precision(whole.average_precision)
        assert points[point]["map"] == pytest.approx(mean)
