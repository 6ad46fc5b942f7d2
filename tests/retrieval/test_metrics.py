"""Metrics from ranks, against scikit-learn and values worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fct_tf.retrieval import metrics


def test_rank_and_precision_by_hand():
    # Ranking: match at 1, other at 2, match at 3, other at 4; then a query without match; then
    # three rows at one distance, one of them a match.
    rank, precision = metrics.rank_and_precision(
        np.array([1, 2, 1]), np.array([1, 3, 3]), np.array([0, 2, 2, 3])
    )
    np.testing.assert_array_equal(rank, [1, 0, 3])
    np.testing.assert_allclose(precision, [(1 / 1 + 2 / 3) / 2, np.nan, 1 / 3])


@pytest.mark.parametrize("values", [2, 3, 7, 1000])
def test_average_precision_equals_scikit_learn_with_ties(values):
    generator = np.random.default_rng(values)
    for _ in range(50):
        distance = generator.integers(0, values, 41).astype(np.float32)
        match = generator.random(41) < 0.2
        match[generator.integers(41)] = True
        near = np.sort(distance[match])
        counts = [np.searchsorted(np.sort(of), near, "right") for of in (near, distance)]
        _, precision = metrics.rank_and_precision(*counts, np.array([0, len(near)]))
        assert precision[0] == pytest.approx(average_precision_score(match, -distance), abs=1e-12)


def test_queries_without_match_are_left_out_of_both():
    rank = np.array([1, 0, 4, 2])
    assert metrics.cmc(rank, (1, 2, 5)) == {"1": 1 / 3, "2": 2 / 3, "5": 1.0}
    assert metrics.mean_average_precision(np.array([0.5, np.nan, 1.0])) == 0.75


def test_no_match_at_all_is_none_not_zero():
    assert metrics.cmc(np.array([0, 0]), (1,)) == {"1": None}
    assert metrics.mean_average_precision(np.array([np.nan])) is None


def test_bootstrap_covers_the_standard_error_and_repeats():
    generator = np.random.default_rng(0)
    values = np.stack([generator.random(1009) < 0.7, generator.random(1009)], axis=1) * 1.0
    low, high = metrics.bootstrap(values, 1000, seed=3)
    again = metrics.bootstrap(values, 1000, seed=3)
    np.testing.assert_array_equal([low, high], again)
    expected = 1.96 * values.std(axis=0) / np.sqrt(len(values))
    np.testing.assert_allclose((high - low) / 2, expected, rtol=0.1)
    np.testing.assert_allclose((high + low) / 2, values.mean(axis=0), atol=0.005)
