"""Every ranking against float64, on rows whose numbers are hard for float32.

The slow side computes each distance from the float32 rows themselves, one pair after the other.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_tf.backfill import curves, priority
from fct_tf.common.errors import InputError
from fct_tf.retrieval import agreement, distances, exact, open_set, verification
from tests.builders import numbered

CLASSES, PER_CLASS, DIM = 23, 7, 12


def scene(name, seed=0):
    """float32 [161, 12] of 23 classes: values whose products float32 rounds too much."""
    generator = np.random.default_rng(seed)
    labels = np.arange(CLASSES * PER_CLASS) % CLASSES
    centres = generator.normal(size=(CLASSES, DIM))
    rows = centres[labels] + 0.8 * generator.normal(size=(len(labels), DIM))
    if name == "offset":
        rows += 1000
    elif name == "one far row":
        rows += 1000
        rows[7] = 1e5
    elif name == "many far rows":
        rows += 1000
        rows[::5] *= -3e3
    elif name == "outliers near 100":
        rows = 1 + 1e-3 * rows
        rows[generator.integers(0, len(rows), 9), generator.integers(0, DIM, 9)] = 100
    elif name == "widths":
        rows *= np.geomspace(1e-3, 1e3, DIM)
    elif name == "wide dimension that says nothing":
        rows[:, 0] = 1e5 * (labels % 2)
    elif name == "groups far apart":
        rows += 1e5 * generator.normal(size=(3, DIM))[labels % 3]
    elif name == "groups at all distances":
        rows += np.geomspace(1, 1e6, CLASSES)[labels][:, None] * generator.normal(size=(1, DIM))
    elif name == "tight classes":
        rows = 10 * centres[labels] + 1e-4 * generator.normal(size=(len(labels), DIM))
    elif name == "huge and tiny":
        rows[:80] *= 1e-4
        rows[80:90] *= 1e5
    elif name == "narrow cone":
        rows = 300 + 1e-2 * rows
    elif name == "integers":
        rows = np.round(2 * rows)
    elif name == "signs far away":
        rows = np.sign(rows) + 70_000
    elif name == "few points":
        rows = centres[labels % 5] + 1000
    elif name == "one point":
        rows = np.tile(centres[:1], (len(labels), 1)) / 3
    elif name == "one direction":
        rows = generator.integers(1, 2000, (len(labels), 1)) * np.round(centres[:1] * 64)
    elif name == "zero rows":
        rows[::9] = 0
    return rows.astype(np.float32), numbered("class ", labels)


SCENES = [
    "plain",
    "offset",
    "one far row",
    "many far rows",
    "outliers near 100",
    "widths",
    "wide dimension that says nothing",
    "groups far apart",
    "groups at all distances",
    "tight classes",
    "huge and tiny",
    "narrow cone",
    "integers",
    "signs far away",
    "few points",
    "one point",
    "one direction",
    "zero rows",
]
EVERY = pytest.mark.parametrize("name", SCENES)
BOTH = pytest.mark.parametrize("distance", ["l2", "cosine"])


def slow(query, gallery, distance):
    """float64 [q, g], from numbers of more digits; cosines that agree in 44 bits are a tie."""
    query, gallery = query.astype(np.longdouble), gallery.astype(np.longdouble)
    if distance == "l2":
        return np.square(query[:, None] - gallery[None]).sum(axis=2).astype(np.float64)
    lengths = [np.sqrt(np.square(side).sum(axis=1))[:, None] for side in (query, gallery)]
    query, gallery = (
        side / np.where(length > 0, length, 1)
        for side, length in zip((query, gallery), lengths, strict=True)
    )
    found = np.square(query[:, None] - gallery[None]).sum(axis=2) / 2
    found[(lengths[0] == 0) | (lengths[1] == 0).T] = 1
    found[found < 1e-30] = 0
    mantissa, exponent = np.frexp(found.astype(np.float64))
    return np.ldexp(np.round(mantissa * 2**44), exponent - 44)


def ranks_and_precisions(table, labels):
    """By the definitions, of all rows against all others."""
    rank, precision = [], []
    for at, row in enumerate(table):
        others = np.arange(len(row)) != at
        near, match = row[others], (labels == labels[at])[others]
        rank.append(1 + np.sum(near[~match] <= near[match].min()))
        counts = [(np.sum(near[match] <= t), np.sum(near <= t)) for t in near[match]]
        precision.append(np.mean([own / every for own, every in counts]))
    return np.array(rank), np.array(precision)


@EVERY
@BOTH
def test_ranks_and_precisions(name, distance):
    rows, labels = scene(name)
    ids = numbered("row ", len(rows))
    found = exact.per_query(rows, ids, labels, rows, ids, labels, distance, block=37)
    rank, precision = ranks_and_precisions(slow(rows, rows, distance), labels)
    np.testing.assert_array_equal(found.rank, rank)
    np.testing.assert_allclose(found.average_precision, precision, rtol=1e-12)


@EVERY
@BOTH
@pytest.mark.parametrize("k", [1, 20, 400])
def test_search(name, distance, k):
    rows, _ = scene(name)
    query = rows[::3]
    table = slow(query, rows, distance)
    left_out = np.arange(0, len(rows), 3)
    table[np.arange(len(query)), left_out] = np.inf
    expected = np.argsort(table, axis=1, kind="stable")[:, : min(k, len(rows) - 1)]
    indices, values = exact.search(query, rows, k, distance, left_out)
    width = expected.shape[1]
    np.testing.assert_array_equal(indices[:, :width], expected)
    np.testing.assert_allclose(
        values[:, :width], np.take_along_axis(table, expected, axis=1), rtol=1e-6
    )
    assert (indices[:, width:] == -1).all() and np.isinf(values[:, width:]).all()


@EVERY
@BOTH
def test_verification(name, distance):
    rows, labels = scene(name)
    table, fars = slow(rows, rows, distance), (0.3, 0.01, 1e-3)
    same = (labels[:, None] == labels) & ~np.eye(len(rows), dtype=bool)
    different = np.sort(table[labels[:, None] != labels])
    side = (rows, numbered("row ", len(rows)), labels)
    found = verification.verify(side, side, fars, distance, block=41)
    for at, far in enumerate(fars):
        threshold = different[int(far * len(different))]
        assert found.thresholds[at] == pytest.approx(threshold, rel=1e-9, abs=1e-37)
        assert found.false_accepts[at] == np.sum(different < threshold)
        np.testing.assert_array_equal(found.passed[:, at], ((table < threshold) & same).sum(axis=1))


@EVERY
@BOTH
def test_open_set(name, distance):
    rows, labels = scene(name)
    enrolled = (np.arange(len(rows)) % 3 == 0) & (np.arange(len(rows)) % CLASSES < 12)
    side = (rows, numbered("row ", len(rows)), labels)
    found = open_set.search(side, side, enrolled, distance, block=17)
    table = slow(rows[~enrolled], rows[enrolled], distance)
    mate = labels[~enrolled][:, None] == labels[enrolled]
    nearest_mate = np.where(mate, table, np.inf).min(axis=1)
    nearest_other = np.where(mate, np.inf, table).min(axis=1)
    np.testing.assert_array_equal(found.first, nearest_mate < nearest_other)
    np.testing.assert_allclose(found.nearest, table.min(axis=1), rtol=1e-12)


@EVERY
@BOTH
def test_backfilling_curves(name, distance):
    """Each point as the evaluation of a gallery whose first rows are replaced."""
    rows, labels = scene(name)
    before = scene(name, seed=1)[0]
    before[5:9] = rows[5:9]
    ids = numbered("row ", len(rows))
    order = np.random.default_rng(3).permutation(len(rows))
    found = curves.per_query(
        (rows, ids, labels), before, (rows, ids, labels), [order, order[::-1]], distance, block=50
    )
    old, new = slow(rows, before, distance), slow(rows, rows, distance)
    for number, rows_in_order in enumerate((order, order[::-1])):
        for point in (0, 4, 11, 21):
            table = old.copy()
            replaced = rows_in_order[: found.rows[point]]
            table[:, replaced] = new[:, replaced]
            rank, precision = ranks_and_precisions(table, labels)
            np.testing.assert_array_equal(found.rank[number, point], rank)
            np.testing.assert_allclose(
                found.average_precision[number, point], precision, rtol=1e-12
            )


@EVERY
@BOTH
def test_agreement(name, distance):
    rows, _ = scene(name)
    other = scene("plain", seed=2)[0]
    queries = np.arange(0, len(rows), 4)
    cases = {"case": agreement.Case(rows, rows, distance)}
    reference = agreement.Case(other, other, "l2")
    found = agreement.rankings(cases, reference, queries, (1, 10))["case"]
    tables = [slow(rows, rows, distance), slow(other, other, "l2")]
    for at, query in enumerate(queries):
        near = [np.delete(table[query], query) for table in tables]
        tops = [np.argsort(side, kind="stable") for side in near]
        for k in (1, 10):
            shared = len(set(tops[0][:k]) & set(tops[1][:k])) / k
            assert found[f"overlap@{k}"][at] == shared
        ranks = [
            (np.searchsorted(np.sort(side), side) + np.searchsorted(np.sort(side), side, "right"))
            / 2
            for side in near
        ]
        flat = min(np.ptp(side) for side in ranks) == 0
        expected = 0.0 if flat else np.corrcoef(*ranks)[0, 1]
        assert found["spearman"][at] == pytest.approx(expected, abs=1e-12)


@EVERY
def test_losses_of_the_order_by_ranks(name):
    """A query loses by rows that would stay farther than they belong."""
    rows, _ = scene(name)
    stays = scene(name, seed=1)[0]
    near, lost = priority.losses(rows, stays, np.arange(len(rows)), offset=3, depth=10)
    predicted, moved = slow(rows, rows, "l2"), slow(rows, stays, "l2")
    np.fill_diagonal(predicted, np.inf)
    agreeing = 0
    for query in range(len(rows)):
        for place, row in enumerate(near[query]):
            others = np.delete(near[query], place)  # Ranks beyond the last of them do not count.
            after = 1 + np.sum(predicted[query, others] < moved[query, row])
            expected = max(1 / (4 + place) - 1 / (3 + after), 0)
            agreeing += abs(lost[query, place] - expected) < 1e-6
    if name not in ("few points", "one point", "signs far away", "integers"):  # Ties in any order.
        assert agreeing >= 0.99 * near.size


@EVERY
@BOTH
def test_entries_further_apart_than_the_slack_are_in_order(name, distance):
    rows, _ = scene(name)
    sides = distances.Distances(rows, rows, distance)
    block, true = sides.block(slice(0, len(rows))), slow(rows, rows, distance)
    for at in range(len(rows)):
        entries = block.entries[at].astype(np.float64)
        for mark in (3, 40, 100):
            limit = np.sort(entries)[mark]
            mark_row = int(np.flatnonzero(entries == limit)[0])
            (slack,) = sides.slack(np.array([at]), np.array([limit]))
            assert (true[at][entries < limit - slack] < true[at, mark_row]).all()
            assert (true[at][entries > limit + slack] > true[at, mark_row]).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    dim=st.integers(1, 40),
    offset=st.sampled_from([0, 1, 1e3, 1e6]),
    spread=st.sampled_from([0, 1e-3, 1, 1e4]),
    far=st.sampled_from([0, 1, 20]),
    factor=st.sampled_from([1, 1e3, 1e10]),
    digits=st.sampled_from([None, 0, 2]),
    distance=st.sampled_from(["l2", "cosine"]),
)
def test_any_rows(seed, dim, offset, spread, far, factor, digits, distance):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 9, 50)
    rows = generator.normal(size=(50, dim)) * 10 ** generator.uniform(-2, 2, dim)
    rows += offset + spread * generator.normal(size=(9, dim))[labels]
    rows[generator.integers(0, 50, far)] *= factor
    rows = (rows if digits is None else np.round(rows, digits)).astype(np.float32)
    rows[:9], labels[:9] = rows[9:18], np.arange(9)
    rows, labels, ids = np.tile(rows, (2, 1)), np.tile(labels.astype(str), 2), numbered("row ", 100)
    found = exact.per_query(
        rows, ids, labels.astype(object), rows, ids, labels.astype(object), distance
    )
    rank, precision = ranks_and_precisions(slow(rows, rows, distance), labels)
    np.testing.assert_array_equal(found.rank, rank)
    np.testing.assert_allclose(found.average_precision, precision, rtol=1e-12)


def test_the_report_of_a_far_row():
    """2,000 rows around 1000 have a top-1 of 87 %, whether one of them is far away or not."""
    generator = np.random.default_rng(0)
    labels = np.arange(2000) % 200
    rows = generator.normal(size=(200, 64))[labels] + 1.2 * generator.normal(size=(2000, 64)) + 1000
    rows = rows.astype(np.float32)
    texts, ids = labels.astype(str).astype(object), numbered("row ", 2000)
    found = exact.per_query(rows, ids, texts, rows, ids, texts)
    assert np.mean(found.rank == 1) == pytest.approx(0.8710)
    rows[7] = 1e5
    found = exact.per_query(rows, ids, texts, rows, ids, texts)
    assert np.mean(found.rank == 1) == pytest.approx(0.8700)


@BOTH
def test_numbers_at_the_end_of_float32_are_refused(distance):
    """Their lengths and squared differences overflow; what is smaller is ranked as ever."""
    rows, labels = scene("plain")
    largest = 2.0**120 if distance == "cosine" else 2.0**58
    for factor in (largest, -largest):
        large = rows.copy()
        large[7] *= np.float32(factor)
        expected = np.argsort(slow(rows, large, distance), axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(exact.search(rows, large, 5, distance)[0], expected)
        assert np.isfinite(exact.search(rows, large, len(large), distance)[1]).all()
    large[7], ids = 3e38, numbered("row ", len(rows))
    if distance == "l2":
        for sides, name in (((rows, large), "gallery"), ((large, rows), "queries")):
            with pytest.raises(InputError, match=f"{name}: row '7' longer than 9e18"):
                exact.search(*sides, 5, distance)
    with pytest.raises(InputError, match="numbers as great as 3e\\+38, 2.46e\\+37"):
        exact.per_query(large, ids, labels, large, ids, labels, distance)
