"""How well two rankings agree, and how close rows are: against slow computations."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import cosine_distances

from fct_tf.common.errors import InputError
from fct_tf.retrieval import agreement, exact, metrics
from tests.upgrade.verdicts import distances, resampled


def nearest(row, own, k):
    others = [number for number in range(len(row)) if number != own]
    return set(sorted(others, key=lambda number: (row[number], number))[:k])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_rankings_equal_a_slow_computation(distance, monkeypatch):
    monkeypatch.setattr("fct_tf.retrieval.distances.BLOCK_BYTES", 1)  # Several blocks of 16.
    generator = np.random.default_rng(1)

    def vectors(dim):
        if distance == "cosine":
            return generator.standard_normal((53, dim)).astype(np.float32)
        return generator.integers(0, 3, (53, dim)).astype(np.float32)  # Many ties.

    reference = agreement.Case(*(vectors(5),) * 2, distance)
    cases = {
        "a": agreement.Case(reference.query, vectors(5), distance),
        "b": agreement.Case(*(vectors(3),) * 2, "l2"),
    }
    queries = np.sort(generator.permutation(53)[:37])
    found = agreement.rankings(cases, reference, queries, (1, 7, 52))
    true = distances(reference)
    for name, case in cases.items():
        table_of = distances(case)
        for at, own in enumerate(queries):
            others = np.arange(53) != own
            expected = spearmanr(table_of[own][others], true[own][others]).statistic
            assert found[name]["spearman"][at] == pytest.approx(expected, abs=1e-9)
            for k in (1, 7, 52):
                shared = nearest(table_of[own], own, k) & nearest(true[own], own, k)
                assert found[name][f"overlap@{k}"][at] == len(shared) / k
        assert (found[name]["overlap@52"] == 1).all()


def test_rankings_of_equal_and_of_collapsed_vectors():
    generator = np.random.default_rng(0)
    new = np.repeat(generator.standard_normal((30, 4)), 2, axis=0)  # Every row has its double.
    everything = np.arange(60)
    reference = agreement.Case(new, new, "l2")
    cases = {"perfect": reference, "collapsed": agreement.Case(new, np.ones((60, 4)), "l2")}
    found = agreement.rankings(cases, reference, everything, (1, 10))
    for values in found["perfect"].values():
        np.testing.assert_allclose(values, 1, atol=1e-12)
    assert (found["collapsed"]["spearman"] == 0).all()
    assert found["collapsed"]["overlap@10"].mean() == pytest.approx(10 / 59, abs=0.1)


def test_closeness_equals_scikit_learn(monkeypatch):
    monkeypatch.setattr(agreement, "BLOCK_ROWS", 10)
    generator = np.random.default_rng(0)
    new = (generator.standard_normal((47, 6)) * [1, 2, 3, 4, 5, 6] + 3).astype(np.float32)
    upgraded = new + generator.standard_normal((47, 6)).astype(np.float32)
    for distance in ("l2", "cosine"):
        found = agreement.closeness(upgraded, new, distance)
        a, b = upgraded.astype(float), new.astype(float)
        if distance == "cosine":
            a, b = (side / np.linalg.norm(side, axis=1)[:, None] for side in (a, b))
        # Each dimension weighted by its variance: one minus all error by all variance.
        expected = r2_score(b, a, multioutput="variance_weighted")
        assert found["explained_variance"].mean() == pytest.approx(expected, abs=1e-9)
        np.testing.assert_allclose(found["cosine"], 1 - np.diag(cosine_distances(a, b)), atol=1e-7)


def test_closeness_where_nothing_is_defined():
    alike = np.full((5, 3), 0.1, np.float32)
    assert list(agreement.closeness(alike, alike, "l2")) == ["cosine"]
    zeros = agreement.closeness(np.zeros((5, 3)), np.eye(5, 3), "cosine")
    assert (zeros["cosine"] == 0).all() and np.isfinite(zeros["explained_variance"]).all()


def test_paired_differences_and_gap_shares():
    generator = np.random.default_rng(0)
    hard = generator.random(307)
    base = {"cmc@1": (hard < 0.4) * 1.0, "map": hard**2}
    value = {"map": hard**2 + 0.1 * generator.random(307), "cmc@1": (hard < 0.5) * 1.0}
    top = {"cmc@1": (hard < 0.7) * 1.0, "map": hard}
    base["map"][:5] = top["cmc@1"][3:8] = np.nan
    kept = slice(8, None)
    difference = agreement.paired_difference(value, base, 200, 3)
    gains = value["cmc@1"][5:] - base["cmc@1"][5:]
    low, high = np.percentile(resampled(gains, 200, 3), [2.5, 97.5])
    assert astuple(difference["cmc@1"]) == pytest.approx((gains.mean(), low, high))
    unpaired = agreement.intervals({"map": value["map"]}, 200, 3)["map"]
    assert difference["map"].sign == 1
    width = difference["map"].high - difference["map"].low
    assert width < (unpaired.high - unpaired.low) / 4

    shares = agreement.gap_shares(value, base, top, 200, 3)
    for name, share in shares.items():
        gain, gap = (side[name][kept] - base[name][kept] for side in (value, top))
        low, high = np.percentile(resampled(gain, 200, 3) / resampled(gap, 200, 3), [2.5, 97.5])
        assert astuple(share) == pytest.approx((gain.mean() / gap.mean(), low, high))
    assert agreement.gap_shares(value, base, base)["map"] is None
    assert agreement.gap_shares(value, top, base)["cmc@1"] is None


def test_gap_shares_where_a_resample_of_few_queries_has_no_gap():
    base = np.zeros(30)
    top = np.where(np.arange(30) < 4, 1.0, base)
    value = np.where(np.arange(30) < 9, -1.0, base)
    sides = [{"cmc@1": side} for side in (value, base, top)]
    found = [agreement.gap_shares(*sides, 20, seed)["cmc@1"] for seed in range(60)]
    assert sum(one is not None for one in found) > 10
    for one in found:
        assert one is None or np.isfinite(astuple(one)).all()
    with pytest.raises(InputError, match="nothing to compare"):
        agreement.paired_difference({"a": np.array([np.nan, 1])}, {"a": np.array([1, np.nan])})


def test_per_query_metrics_are_those_of_evaluate():
    found = exact.PerQuery(
        np.arange(4), np.array([1, 0, 3, 9]), np.array([1, np.nan, 0.5, 0.1]), np.ones(4, bool)
    )
    values = agreement.per_query_metrics(found, (1, 5))
    means = {name: estimate.mean for name, estimate in agreement.intervals(values, 10).items()}
    cmc = metrics.cmc(found.rank, (1, 5))
    mean = metrics.mean_average_precision(found.average_precision)
    assert means == pytest.approx({"cmc@1": cmc["1"], "cmc@5": cmc["5"], "map": mean})
    scann = exact.PerQuery(found.position, found.rank, np.full(4, np.nan), found.self_removed)
    assert list(agreement.per_query_metrics(scann, (1,))) == ["cmc@1"]
