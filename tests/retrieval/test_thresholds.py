"""Thresholds carried over to other spaces, against slower computations of another make."""

from dataclasses import astuple

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_distances

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import thresholds, verification
from fct_tf.retrieval.agreement import Case
from tests.builders import numbered

COUNT = 173
SHARES = (0.02, 0.3)


def table_of(case):
    if case.distance == "cosine":
        return cosine_distances(case.query.astype(float), case.gallery.astype(float))
    return np.square(case.query[:, None].astype(float) - case.gallery[None]).sum(axis=2)


def items(ties=False, count=COUNT, classes=25, distances=("l2", "l2", "l2")):
    """Cases of one set of items, ids, and labels of which some are missing."""
    generator = np.random.default_rng(3)
    codes = generator.integers(0, classes, count)
    old, new = (
        generator.standard_normal((classes, dim))[codes]
        + generator.uniform(0.4, 1.2) * generator.standard_normal((count, dim))
        for dim in (4, 6)
    )
    mapped = 1.5 * new + 0.5 * generator.standard_normal(new.shape)
    if ties:
        old, new, mapped = (np.round(side) for side in (old, new, mapped))
    sides = [side.astype(np.float32) for side in (old, new, mapped)]
    pairs = ((sides[0], sides[0]), (sides[1], sides[2]), (sides[1], sides[1]))
    cases = {
        name: Case(*pair, distance)
        for name, pair, distance in zip(("old", "up", "new"), pairs, distances, strict=True)
    }
    labels = numbered("c", codes)
    labels[::11] = None
    return cases, numbered("row", count), labels


def kinds_of_pairs(ids, labels):
    """bool [n, n]: pairs of different and of the same identities, each from both ends."""
    if labels is None:
        different = ids[:, None] != ids[None]
        return different, np.zeros_like(different)
    known = np.array([label is not None for label in labels])
    both = known[:, None] & known[None]
    same = both & (labels[:, None] == labels[None])
    return both & ~same, same & ~np.eye(len(ids), dtype=bool)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("distances", [("l2",) * 3, ("cosine",) * 3, ("l2", "cosine", "l2")])
@pytest.mark.parametrize("ties", [False, True])
def test_translated_thresholds_equal_a_slow_computation(labelled, distances, ties, monkeypatch):
    monkeypatch.setattr("fct_tf.retrieval.distances.BLOCK_BYTES", 1)  # Several blocks of 16.
    if ties and "cosine" in distances:
        distances = ("l2", "l2", "l2")  # Cosines of a double computation may tie otherwise.
    cases, ids, labels = items(ties, distances=distances)
    labels = labels if labelled else None
    different, same = kinds_of_pairs(ids, labels)
    tables = {name: table_of(case) for name, case in cases.items()}
    # Half way between two distances, where rounding decides nothing; with ties a distance itself.
    seen = np.unique(np.round(tables["old"][different], 9))
    wanted = [seen[int(share * len(seen))] for share in SHARES]
    if not ties:
        wanted = [(a + seen[seen > a][0]) / 2 for a in wanted]
    found = thresholds.translate(cases, ids, labels, wanted, 50, 1)
    for threshold, one in zip(wanted, found, strict=True):
        accepts = np.sum(tables["old"][different] < threshold)
        assert (one.threshold, one.num_pairs) == (threshold, different.sum())
        assert one.num_false_accepts == accepts
        assert one.far.low <= one.far.mean == accepts / different.sum() <= one.far.high
        if labelled:
            assert one.tar.mean == pytest.approx(np.mean(tables["old"][same] < threshold))
        for name, carried in one.cases.items():
            values = np.sort(tables[name][different])
            value = values[accepts]
            assert carried.value.mean == pytest.approx(value, rel=1e-5)
            assert carried.value.low <= carried.value.mean <= carried.value.high
            assert carried.num_false_accepts == np.sum(values < value * (1 - 1e-6)) <= accepts
            if not labelled:
                assert carried.tar is carried.tar_difference is one.tar is None
                continue
            passed = tables[name][same] < value * (1 - 1e-6)
            assert carried.tar.mean == pytest.approx(passed.mean())
            change = passed.mean() - one.tar.mean
            assert carried.tar_difference.mean == pytest.approx(change)
            for estimate in (carried.tar, carried.tar_difference):
                assert estimate.low <= estimate.mean <= estimate.high


@pytest.mark.parametrize("labelled", [True, False])
def test_intervals_are_those_of_resampled_identities(labelled):
    """Whole identities are drawn again and thresholds found anew among the pairs that result."""
    cases, ids, labels = items(count=240, classes=60)
    labels = labels if labelled else None
    different, _ = kinds_of_pairs(ids, labels)
    tables = {name: table_of(case) for name, case in cases.items()}
    threshold = float(np.quantile(tables["old"][different], 0.05))
    one = thresholds.translate(cases, ids, labels, [threshold], 1000, 0)[0]
    query, row = np.nonzero(different)
    names = ids if labels is None else np.array([str(label) for label in labels])
    kept = np.unique(names[query])
    number = np.searchsorted(kept, names)  # Of None: of no account, it is in no pair.
    generator, fars = np.random.default_rng(5), []
    carried = {name: [] for name in ("up", "new")}
    ordered = {name: np.argsort(tables[name][query, row], kind="stable") for name in carried}
    for _ in range(400):
        times = np.bincount(generator.integers(0, len(kept), len(kept)), minlength=len(kept))
        weight = (times[number % len(kept)][query] * times[number % len(kept)][row]).astype(float)
        fars.append(weight[tables["old"][query, row] < threshold].sum() / weight.sum())
        for name, order in ordered.items():
            upto = np.cumsum(weight[order]) / weight.sum()
            at = min(np.searchsorted(upto, fars[-1], side="right"), len(order) - 1)
            carried[name].append(tables[name][query, row][order[at]])
    for estimate, drawn in (
        (one.far, fars),
        *((one.cases[name].value, values) for name, values in carried.items()),
    ):
        low, high = np.percentile(drawn, [2.5, 97.5])
        near = 0.2 * (high - low)
        assert estimate.low == pytest.approx(low, abs=near)
        assert estimate.high == pytest.approx(high, abs=near)


def test_a_threshold_carried_to_its_own_space_lets_the_same_pairs_pass():
    cases, ids, labels = items()
    again = {"old": cases["old"], "same": cases["old"]}
    one = thresholds.translate(again, ids, labels, [1.3], 200, 0)[0]
    carried = one.cases["same"]
    assert carried.num_false_accepts == one.num_false_accepts and carried.tar == one.tar
    assert astuple(carried.tar_difference) == (0, 0, 0)
    # The same draws move both rates: nothing is uncertain but where in a gap the threshold lies.
    assert carried.value.low == carried.value.mean == carried.value.high >= 1.3


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("end", "which"), [("min", "none"), ("max", "all")])
def test_a_threshold_that_the_rows_cannot_tell_of(labelled, end, which):
    cases, ids, labels = items()
    labels = labels if labelled else None
    different, _ = kinds_of_pairs(ids, labels)
    limit = getattr(table_of(cases["old"])[different], end)()
    beyond = limit * {"min": 0.999, "max": 1.001}[end]
    with pytest.raises(InputError, match=f"{which} of {different.sum()} pairs") as told:
        thresholds.translate(cases, ids, labels, [1.0, beyond], 50, 0)
    words = str(told.value)
    assert f"`threshold={beyond:g}" in words and f"{limit:.6g}: name one there" in words
    named = float(words.split("thresholds ")[1].split(":")[0].split()[-1])
    assert named == pytest.approx(limit, rel=1e-5)
    for huge in (1e300,):
        with pytest.raises(InputError, match="all of"):
            thresholds.translate(cases, ids, labels, [huge], 50, 0)


def test_counts_are_exact_where_float32_is_not():
    """Pairs that lie at the threshold itself, far from the origin, are not nearer than it."""
    base = np.arange(40, dtype=np.float32)[:, None] * np.ones(3, np.float32) + 4096
    ids = numbered("row", 40)
    pairs = verification.label_pairs((base, ids, ids), (base, ids, ids), "l2")
    found = thresholds.passing(pairs, [3.0, 3.0000001, 12.0, 12.000001])
    assert found.total.tolist() == [0, 78, 78, 78 + 76]
    assert (found.different[:, 1] == np.where(np.arange(40) % 39 == 0, 2, 4)).all()


# Splits of the identities, and rows taken of each identity.
SPLITS, DRAWINGS = 10, 6


def judged_elsewhere(rows, mapped, number):
    """A threshold of FAR 1e-3 carried over on half of the identities, judged on the others.

    Returns:
      For new/T(old) and new/new: its FAR there with the interval, that at both ends of the
      threshold's interval, and the FAR there of the old threshold, in old/old and as it is.
    """
    names = np.unique(rows.labels.astype(str))
    half = np.random.default_rng(number).permutation(names)[: len(names) // 2]
    chosen = np.isin(rows.labels.astype(str), half)

    def cases(kept):
        old, new = (rows.vectors[f"embedding_{model}"][kept] for model in ("old", "new"))
        pairs = {"old": (old, old), "up": (new, mapped[kept]), "new": (new, new)}
        return {name: Case(*pair, "l2") for name, pair in pairs.items()}

    def pairs_of(name):
        case = cases(~chosen)[name]
        both = [(side, rows.ids[~chosen], rows.labels[~chosen]) for side in case[:2]]
        return verification.label_pairs(*both, "l2")

    sides = rows.ids[chosen], rows.labels[chosen]
    old = rows.vectors["embedding_old"][chosen]
    threshold = float(verification.verify((old, *sides), (old, *sides), (1e-3,)).thresholds[0])
    one = thresholds.translate(cases(chosen), *sides, [threshold], 500, number)[0]
    assert one.far.mean == pytest.approx(1e-3, rel=1e-3)
    before = pairs_of("old")
    of_old = thresholds.passing(before, [threshold]).total[0] / before.num_different.sum()
    for name, carried in one.cases.items():
        pairs = pairs_of(name)
        number_ = pairs.num_different.sum()
        rates = thresholds.passing(pairs, [*astuple(carried.value), threshold]).total / number_
        # Carried to its own space a rate keeps its interval.
        again = {name: cases(~chosen)[name], "same": cases(~chosen)[name]}
        there = rows.ids[~chosen], rows.labels[~chosen]
        far = thresholds.translate(again, *there, [carried.value.mean], 500, number)[0].far
        yield name, far, rates[1:3], float(of_old), float(rates[3])


@pytest.mark.slow
def test_a_threshold_keeps_its_rate_on_other_identities(shared_datasets):
    """Omniglot's characters: found on half of them, judged on the others, several splits.

    Both halves are samples, so that of ten intervals of one half's about eight hold.
    """
    train, test = (
        table.open(shared_datasets / "reference_rows" / f"{name}.lance").read(
            ["embedding_old", "embedding_new"], with_labels=True
        )
        for name in ("train", "test")
    )
    sources, targets = (train.vectors[f"embedding_{model}"] for model in ("old", "new"))
    affine = Ridge(1.0).fit(sources, targets)
    order = np.argsort(test.labels.astype(str), kind="stable")
    kept = np.sort(order.reshape(-1, 20)[:, :DRAWINGS].ravel())
    rows = table.Rows(
        test.ids[kept],
        test.labels[kept],
        {name: values[kept] for name, values in test.vectors.items()},
    )
    mapped = affine.predict(rows.vectors["embedding_old"]).astype(np.float32)
    found = [one for split in range(SPLITS) for one in judged_elsewhere(rows, mapped, split)]
    for name in ("up", "new"):
        own = [one[1:] for one in found if one[0] == name]
        keeps = [far.low <= 1e-3 <= far.high for far, *_ in own]
        brackets = [low <= of_old <= high for _, (low, high), of_old, _ in own]
        assert sum(keeps) >= 6 and sum(brackets) >= 6
        assert np.mean([far.mean for far, *_ in own]) == pytest.approx(1e-3, rel=0.2)
        # The old distance as it is would be another rate altogether.
        assert np.mean([rate for *_, rate in own]) < 4e-4
