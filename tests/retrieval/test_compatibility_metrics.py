"""Criterion, update gain, negative flips and chains of versions, against plain loops."""

import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.retrieval import compatibility, exact


def per_query(rank, position=None, precision=None):
    rank = np.array(rank, np.int64)
    position = np.arange(len(rank)) if position is None else np.array(position)
    precision = np.where(rank > 0, 1 / np.maximum(rank, 1), np.nan)
    return exact.PerQuery(position, rank, precision, np.ones(len(rank), bool))


def drawn(seed, count=300, highest=7):
    return np.random.default_rng(seed).integers(0, highest, count)


def test_update_gain():
    # BCT on ImageNet, top-1: old 39.5, new/old 42.2, free new model 66.3.
    assert compatibility.update_gain(39.5, 42.2, 66.3) == pytest.approx(2.7 / 26.8)
    assert compatibility.update_gain(0.5, 0.75, 0.75) == 1
    assert compatibility.update_gain(0.5, 0.25, 0.75) == -1
    assert compatibility.update_gain(0.5, 0.6, 0.5) is None
    assert compatibility.update_gain(0.5, 0.4, 0.3) is None


@pytest.mark.parametrize("k", [1, 3])
def test_negative_flips_by_loops(k):
    before, after = drawn(0), drawn(1)
    negative = positive = count = 0
    for a, b in zip(before, after, strict=True):
        if a == 0 or b == 0:
            continue  # Without a match in one of the cases.
        count += 1
        negative += a <= k < b
        positive += b <= k < a
    flips = compatibility.negative_flips(per_query(before), per_query(after), k, resamples=200)
    assert flips.negative.mean == pytest.approx(negative / count)
    assert flips.positive.mean == pytest.approx(positive / count)
    assert flips.negative.low < flips.negative.mean < flips.negative.high
    # What is gained is the difference of both.
    met = compatibility.criterion(per_query(before), per_query(after), (k,), resamples=200)
    assert met[f"cmc@{k}"].mean == pytest.approx(flips.positive.mean - flips.negative.mean)


def test_same_case_never_flips():
    flips = compatibility.negative_flips(*[per_query(drawn(0))] * 2, resamples=20)
    assert flips.negative.mean == flips.positive.mean == flips.negative.high == 0


def test_criterion_is_paired():
    before = drawn(2, highest=3) + 1
    after = before.copy()
    after[:20] = 1  # Twenty queries may improve, the others are as easy or hard as before.
    met = compatibility.criterion(per_query(before), per_query(after), resamples=400)
    assert list(met) == ["cmc@1", "cmc@5", "map"]
    gained = np.mean(after == 1) - np.mean(before == 1)
    assert met["cmc@1"].mean == pytest.approx(gained) and met["cmc@1"].sign == 1
    # Pairing keeps the interval as narrow as what has changed: a binomial's of 13 in 300.
    assert met["cmc@1"].high - met["cmc@1"].low < 4 * np.sqrt(gained / 300) * 1.1
    assert met["cmc@5"].mean == met["cmc@5"].sign == 0
    assert met["map"].mean == pytest.approx(np.mean(1 / after) - np.mean(1 / before))
    turned = compatibility.criterion(per_query(after), per_query(before), resamples=400)
    assert turned["cmc@1"].sign == -1


def test_only_queries_of_both_cases_count():
    before = per_query([1, 1, 2, 1], position=[0, 2, 5, 7])
    after = per_query([2, 1, 1, 2], position=[2, 5, 6, 7])
    # Rows 2, 5 and 7: right to wrong, wrong to right, right to wrong.
    flips = compatibility.negative_flips(before, after, resamples=20)
    assert flips.negative.mean == pytest.approx(2 / 3)
    assert flips.positive.mean == pytest.approx(1 / 3)
    met = compatibility.criterion(before, after, (1,), resamples=20)
    assert met["cmc@1"].mean == pytest.approx(-1 / 3)
    with pytest.raises(InputError, match="nothing to compare"):
        compatibility.negative_flips(before, per_query([1, 0, 1], position=[1, 2, 3]))


def test_queries_are_matched_by_id_where_rows_have_moved():
    ranks, moved = drawn(3) + 1, np.random.default_rng(0).permutation(300)
    ids = np.array([f"row {row}" for row in range(300)], object)
    later = np.where(ranks == 2, 1, ranks)
    expected = compatibility.negative_flips(per_query(ranks), per_query(later), resamples=20)
    found = compatibility.negative_flips(
        per_query(ranks), per_query(later[moved]), ids=(ids, ids[moved]), resamples=20
    )
    assert found.negative.mean == 0 < found.positive.mean == expected.positive.mean
    by_row = compatibility.negative_flips(per_query(ranks), per_query(later[moved]), resamples=20)
    assert by_row.negative.mean > 0.05


@pytest.mark.parametrize("versions", [2, 3, 7])
def test_chain_by_loops(versions):
    generator = np.random.default_rng(versions)
    matrix = generator.integers(0, 5, (versions, versions)) / 4  # With ties: not better.
    matrix[np.triu_indices(versions, 1)] = np.nan
    pairs = better = 0
    values = []
    for i in range(versions):
        for j in range(i + 1):
            values.append(matrix[i, j])
            if i > j:
                pairs += 1
                better += matrix[i, j] > matrix[j, j]
    found = compatibility.chain(matrix.tolist())
    assert found.ac == pytest.approx(better / pairs)
    assert found.am == pytest.approx(sum(values) / len(values))


def test_chain_by_hand_and_refusals():
    assert compatibility.chain([[0.5, 9], [0.6, 0.7]]) == (1.0, pytest.approx(0.6))
    assert compatibility.chain([[0.5, 9], [0.5, 0.7]]).ac == 0
    assert compatibility.chain([[0.5]]) == (None, 0.5)
    for wrong, told in (
        ([[1.0, 2.0]], "one row and one column"),
        ([], "one row and one column"),
        ([[0.1, 0.2], [np.nan, 0.3]], "missing"),
    ):
        with pytest.raises(InputError, match=told):
            compatibility.chain(wrong)
