"""Agreement of rankings and the verdict door, against slower computations of another make."""

import json
import os
import subprocess
import sys
from dataclasses import astuple, replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, r2_score
from sklearn.metrics.pairwise import cosine_distances

from fct_tf import verdict
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import agreement, exact, metrics
from fct_tf.upgrade import judge, sentence, slices

SPACE = {name: table.imported_space(name) for name in ("old", "new", "T", "both")}
COUNT, CLASSES = 211, 12
NOISE = 1.8


def distances(case):
    if case.distance == "cosine":
        return cosine_distances(case.query.astype(float), case.gallery.astype(float))
    return np.square(case.query[:, None].astype(float) - case.gallery[None]).sum(axis=2)


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


def resampled(values, resamples, seed):
    """Means of resamples drawn as `metrics.bootstrap` draws them, row by row."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(values), len(values), np.int32) for _ in range(resamples))
    return np.array([values[drawn].mean(axis=0) for drawn in draws])


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


def column(name, dim, space, *compatible_with, kind="embedded"):
    made_by = {"model": f"{space} net"}
    return table.Column(
        name, dim, SPACE[space], compatible_with=compatible_with, created_by=made_by, kind=kind
    )


COLUMNS = {
    "old": column("old", 3, "old"),
    "new": column("new", 5, "new"),
    **{
        name: column(name, 5, "T", SPACE["new"])
        for name in ("perfect", "good", "middling", "useless")
    },
}


def data(labelled=True):
    generator = np.random.default_rng(5)
    classes = generator.integers(0, CLASSES, COUNT)
    old, new = (generator.standard_normal((CLASSES, dim))[classes] for dim in (3, 5))
    vectors = {
        "old": old + 0.8 * generator.standard_normal(old.shape),
        "new": new + 0.4 * generator.standard_normal(new.shape),
    }
    vectors["perfect"] = vectors["new"]
    vectors["good"] = vectors["new"] + 0.2 * generator.standard_normal(new.shape)
    vectors["middling"] = vectors["new"] + NOISE * generator.standard_normal(new.shape)
    vectors["useless"] = generator.standard_normal(new.shape)
    labels = np.array([f"c{value}" for value in classes], object)
    labels[::7] = None
    ids = np.array([f"row{row}" for row in range(COUNT)], object)
    vectors = {name: values.astype(np.float32) for name, values in vectors.items()}
    return table.Rows(ids, labels if labelled else None, vectors)


def some(rows, kept, *names):
    labels = None if rows.labels is None else rows.labels[kept]
    return table.Rows(rows.ids[kept], labels, {name: rows.vectors[name][kept] for name in names})


@pytest.fixture
def path(tmp_path):
    rows = data()
    table.create(
        tmp_path / "g.lance", [rows], [COLUMNS[name] for name in rows.vectors], rows_per_file=50
    )
    return tmp_path / "g.lance"


@pytest.fixture
def door(path, run_door):
    def run(upgraded, *flags):
        defaults = ["--old=old", "--new=new", "--bootstrap=200"]
        names = {flag.partition("=")[0] for flag in flags}
        defaults = [flag for flag in defaults if flag.partition("=")[0] not in names]
        gallery = [] if "--gallery" in names else [f"--gallery={path}"]
        return run_door(verdict, *gallery, f"--upgraded={upgraded}", *defaults, *flags)

    return run


def judged(path, upgraded, **settings):
    gallery = table.open(path)
    return judge.judge(gallery, "old", upgraded, "new", bootstrap=200, **settings)


def slow(query, gallery, rows):
    """(CMC@1, CMC@5, mAP) of the labelled rows, one at a time."""
    ranks, precisions, _ = one_by_one(query, gallery, rows)
    return [np.mean(ranks <= 1), np.mean(ranks <= 5), np.mean(precisions)]


def one_by_one(query, gallery, rows):
    """Rank, average precision and id of each labelled row that has a match."""
    ranks, precisions, ids = [], [], []
    for vector, own, label in zip(query, rows.ids, rows.labels, strict=True):
        kept = rows.ids != own
        match = rows.labels[kept] == label
        if label is None or not match.any():
            continue
        distance = np.square(gallery[kept].astype(float) - vector).sum(axis=1)
        ranks.append(1 + np.sum(distance[~match] <= distance[match].min()))
        precisions.append(average_precision_score(match, -distance))
        ids.append(own)
    return np.array(ranks), np.array(precisions), ids


def means(estimates):
    return [value["mean"] for value in estimates.values()]


def test_a_good_upgrade(path, door, capsys):
    output = path.parent / "v.json"
    flags = ["--table", "--require_compatible", f"--output={output}", "--max_queries=0"]
    assert door("good", *flags) == 0
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert printed.splitlines()[0] == f"{record['sentence']} -> {output}"
    assert record == judged(path, "good", max_queries=0)  # The same through JSON and Python.
    rows = data()
    sides = {"old/old": ("old", "old"), "new/T(old)": ("new", "good"), "new/new": ("new", "new")}
    expected = {}
    for case, (query, gallery) in sides.items():
        expected[case] = slow(rows.vectors[query], rows.vectors[gallery], rows)
        assert means(record["labels"][case]) == pytest.approx(expected[case], abs=1e-9)
    base, upgraded, top = (np.array(expected[case]) for case in sides)
    labels = record["labels"]
    assert means(labels["difference"]) == pytest.approx(upgraded - base)
    assert means(labels["gap_share"]) == pytest.approx((upgraded - base) / (top - base))
    assert list(labels["difference"]) == ["cmc@1", "cmc@5", "map"]
    for estimates in (*labels.values(), *record["agreement"].values(), record["closeness"]):
        for value in estimates.values() if isinstance(estimates, dict) else ():
            assert isinstance(value, float) or value["low"] <= value["mean"] <= value["high"]
    assert labels["num_queries"] == COUNT - 31 and labels["num_queries_without_label"] == 31
    assert record["agreement"]["num_queries"] == record["num_rows"] == COUNT
    assert record["agreement"]["chance"]["overlap@10"] == 10 / (COUNT - 1)
    assert record["verdict"] == "compatible"
    gain, share = labels["difference"]["cmc@1"], labels["gap_share"]["cmc@1"]
    told = "compatible: new/T(old) beats old/old by +{:.2f} points top-1 [+{:.2f}, +{:.2f}], +"
    assert printed.startswith(told.format(*(100 * gain[key] for key in ("mean", "low", "high"))))
    told = "; closes {:.0f} % [{:.0f}, {:.0f}] of the gap in top-1, "
    assert told.format(*(100 * share[key] for key in ("mean", "low", "high"))) in printed
    assert f"({COUNT - 31} queries, {COUNT} rows of {COUNT})" in printed
    lines = printed.splitlines()[1:]
    assert lines[0].split() == ["top-1", "top-5", "mAP"]
    assert [line[:10] for line in lines[1:4]] == ["old/old   ", "new/T(old)", "new/new   "]
    assert lines[-1].startswith("Percent; in brackets: 95 %")


def test_a_perfect_upgrade_closes_the_gap(path):
    record = judged(path, "perfect")
    assert record["verdict"] == "compatible"
    for share in record["labels"]["gap_share"].values():
        assert list(share.values()) == pytest.approx([1, 1, 1])
    assert record["labels"]["new/T(old)"] == record["labels"]["new/new"]
    for value in record["agreement"]["new/T(old)"].values():
        assert value["mean"] == pytest.approx(1)
    assert record["closeness"]["cosine"]["mean"] == pytest.approx(1)
    assert record["closeness"]["explained_variance"]["mean"] == 1


def test_a_useless_upgrade(door, path, capsys):
    assert door("useless") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("not compatible: new/T(old) is worse than old/old, -")
    assert "(negative: below old/old)" in printed and printed.count("\n") == 1
    with pytest.raises(SystemExit) as exit_:
        door("useless", "--require_compatible")
    assert exit_.value.code == judge.NOT_COMPATIBLE_STATUS == 3
    record = judged(path, "useless")
    assert record["agreement"]["new/T(old)"]["spearman"]["mean"] == pytest.approx(0, abs=0.1)
    assert record["agreement"]["difference"]["overlap@10"]["high"] < 0
    assert record["closeness"]["explained_variance"]["mean"] < 0


def test_undecided(door, capsys):
    assert door("middling") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("undecided: new/T(old) is neither clearly better nor worse than")
    with pytest.raises(SystemExit) as exit_:
        door("middling", "--require_compatible")
    assert exit_.value.code == 3


def test_verdicts_from_intervals():
    def conclude(*intervals):
        difference = {
            f"cmc@{k}": {"mean": (low + high) / 2, "low": low, "high": high}
            for k, (low, high) in enumerate(intervals, start=1)
        }
        labels = {"difference": difference, "gap_share": dict.fromkeys(difference)}
        labels |= {"num_queries": 10, "num_queries_without_match": 3}
        for name, mean in (("negative_flips", 0.02), ("positive_flips", 0.04)):
            labels[name] = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
        record = {"labels": labels, "agreement": {}, "num_rows": 20, "num_gallery": 30}
        record |= {"case": sentence.UPGRADED, "slices": None, "against": None, "thresholds": []}
        return sentence.conclude(record)

    assert conclude((0.01, 0.03), (-0.01, 0.01)) == (
        "compatible",
        "compatible: new/T(old) beats old/old by +2.00 points top-1 [+1.00, +3.00], 0.00 top-2 "
        "[-1.00, +1.00]; new/new is not clearly better than old/old: no gap to close; negative "
        "flips 2.00 % [1.00, 3.00], positive 4.00 % [3.00, 5.00] (7 queries, 20 rows of 30)",
    )
    assert conclude((-0.03, -0.01), (-0.01, 0.01))[0] == "not compatible"
    assert conclude((0.0, 0.03), (-0.03, 0.0))[0] == "undecided"
    verdict_, told = conclude((0.01, 0.03), (-0.03, -0.01))
    assert verdict_ == "undecided" and "beats old/old by one metric and is worse by" in told


@pytest.mark.parametrize("labels", ["none", "unique"])
def test_without_labels(tmp_path, door, capsys, labels):
    rows = data(labelled=False)
    if labels == "unique":
        rows = table.Rows(rows.ids, rows.ids, rows.vectors)
    table.create(tmp_path / "u.lance", [rows], [COLUMNS[name] for name in rows.vectors])
    output = tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 'u.lance'}", f"--output={output}", "--overlap_ks=1,10"]
    assert door("good", *flags, "--max_queries=97", "--table") == 0
    captured = capsys.readouterr()
    record = json.loads(output.read_text())
    found = record["agreement"]
    assert record["verdict"] == "without labels" and record["labels"] is None
    assert found["num_queries"] == 97
    cases = (sentence.UPGRADED, sentence.OLD)
    upgraded, alone = (100 * found[case]["overlap@10"]["mean"] for case in cases)
    line, header = captured.out.splitlines()[:2]
    assert line.startswith("without labels: ranking agrees with the new model's for ")
    assert f"and {upgraded:.2f} % [" in line and f"and {alone:.2f} % [" in line
    assert "agreement is no measure of accuracy" in line
    assert header.split() == ["overlap@1", "overlap@10", "spearman"]
    assert ("no row has the label of another" in captured.err) == (labels == "unique")
    with pytest.raises(SystemExit) as exit_:
        door("good", *flags[:1], "--require_compatible")
    assert exit_.value.code == 3


def test_a_sample_is_matched_by_id(path, tmp_path, door):
    rows = data()
    kept = np.random.default_rng(2).permutation(COUNT)[:151]
    sample = some(rows, kept, "new", "old")
    strangers = np.array(["stranger1", "stranger2"], object)
    beside = table.Rows(
        strangers, None, {name: sample.vectors[name][:2] for name in ("new", "old")}
    )
    table.create(tmp_path / "s.lance", [sample, beside], [COLUMNS["new"], COLUMNS["old"]])
    output = tmp_path / "v.json"
    assert door("good", f"--sample={tmp_path / 's.lance'}", f"--output={output}") == 0
    record = json.loads(output.read_text())
    assert record["num_rows"] == 151 and record["num_not_in_gallery"] == 2
    assert record["num_gallery"] == COUNT
    assert record["columns"]["new"]["path"] == str(tmp_path / "s.lance")
    chosen = some(rows, kept, "new", "good")
    expected = slow(chosen.vectors["new"], chosen.vectors["good"], chosen)
    assert means(record["labels"]["new/T(old)"]) == pytest.approx(expected, abs=1e-9)


def test_an_upgrade_in_a_gallery_of_its_own(path, tmp_path, door, capsys):
    """The same verdict where --old lies in another gallery, in another order."""
    rows, mixed = data(), np.random.default_rng(3).permutation(COUNT)
    good = replace(COLUMNS["good"], created_by={"gallery": {"path": "g.lance", "version": 7}})
    table.create(tmp_path / "own.lance", [some(rows, mixed, "good")], [good])
    own, sources = table.open(tmp_path / "own.lance"), table.open(path)
    beside = judged(path, "good")
    found = judge.judge(own, "old", "good", "new", sources=sources, bootstrap=200)
    for record in (beside, found):
        record["columns"] = {name: told["column"] for name, told in record["columns"].items()}
    assert found == beside
    flags = [f"--gallery={tmp_path / 'own.lance'}"]
    assert door("good", *flags, f"--sources={path}") == 0
    assert capsys.readouterr().out == f"{beside['sentence']}\n"
    assert door("good", *flags) == 2
    assert "(g.lance@7); name that one with --sources" in capsys.readouterr().err
    assert door("good", "--old=gone") == 2
    assert "no embedding column 'gone'" in capsys.readouterr().err


def test_excluded_rows_are_neither_queries_nor_found(path, tmp_path, door, capsys):
    rows = data()
    # What was left out is perfect, the rest useless.
    trained = np.arange(COUNT) % 3 == 0
    rows.vectors["good"][~trained] = rows.vectors["useless"][~trained]
    rows.vectors["good"][trained] = rows.vectors["new"][trained]
    table.create(tmp_path / "h.lance", [rows], [COLUMNS[name] for name in rows.vectors])
    table.create(tmp_path / "p.lance", [some(rows, trained, "new")], [COLUMNS["new"]])
    pairs, output = f"{tmp_path / 'p.lance'}", tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 'h.lance'}", f"--output={output}"]
    assert door("good", *flags, f"--exclude={pairs}") == 0
    record = json.loads(output.read_text())
    left = some(rows, ~trained, "new", "useless")
    expected = slow(left.vectors["new"], left.vectors["useless"], left)
    assert means(record["labels"]["new/T(old)"]) == pytest.approx(expected, abs=1e-9)
    assert record["num_excluded"] == trained.sum() and record["num_rows"] == (~trained).sum()
    capsys.readouterr()
    assert door("good", *flags, "--overwrite", f"--sample={pairs}", f"--exclude={pairs}") == 2
    error = capsys.readouterr().err
    assert f"p.lance: 0 rows to judge by ({trained.sum()} excluded, 0 not in gallery)" in error


def test_labels_of_the_sample_where_the_gallery_has_none(tmp_path, door, path):
    rows = data()
    bare = data(labelled=False)
    table.create(tmp_path / "u.lance", [bare], [COLUMNS[name] for name in bare.vectors])
    table.create(tmp_path / "s.lance", [some(rows, slice(None), "new")], [COLUMNS["new"]])
    output = tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 'u.lance'}", f"--sample={tmp_path / 's.lance'}"]
    assert door("good", *flags, f"--output={output}") == 0
    assert json.loads(output.read_text())["labels"] == judged(path, "good")["labels"]


def test_what_is_doubtful_is_said(path, tmp_path, door, capsys):
    few = some(data(), slice(0, 60), "new")
    few.labels[5] = "another"
    table.create(tmp_path / "s.lance", [few], [COLUMNS["new"]])
    gallery = table.open(path)
    origin = pa.field("good_origin", pa.string())
    table.add_column(
        gallery,
        COLUMNS["good"],
        lambda rows: {
            "good": rows.vectors["new"],
            "good_origin": np.where(np.char.endswith(rows.ids.astype(str), "1"), "backfilled", "x"),
        },
        ["new"],
        extra_fields=[origin],
        overwrite=True,
    )
    assert door("good", f"--sample={tmp_path / 's.lance'}") == 0
    error = capsys.readouterr().err
    assert "60 rows to judge by (0 excluded, 0 not in gallery): the intervals are wide" in error
    assert "the new model itself made 6 of these 60 rows of 'good'" in error
    assert "of 60 queries whose id the gallery has, 1 with another label" in error


def flipped(rows, before, after):
    """(negative, positive) flips of each labelled query, and the queries' ids."""
    (was, _, ids), (now, _, _) = (
        one_by_one(rows.vectors[query], rows.vectors[gallery], rows)
        for query, gallery in (before, after)
    )
    return (was <= 1) & (now > 1), (was > 1) & (now <= 1), ids


@pytest.mark.parametrize("upgraded", ["good", "middling", "useless"])
def test_flips(path, door, capsys, upgraded):
    record = judged(path, upgraded)
    labels = record["labels"]
    negative, positive, _ = flipped(data(), ("old", "old"), ("new", upgraded))
    for name, flips in (("negative", negative), ("positive", positive)):
        low, high = np.percentile(resampled(flips[:, None].astype(float), 200, 0), [2.5, 97.5])
        expected = [flips.mean(), low, high]
        assert list(labels[f"{name}_flips"].values()) == pytest.approx(expected)
    change = labels["positive_flips"]["mean"] - labels["negative_flips"]["mean"]
    assert labels["difference"]["cmc@1"]["mean"] == pytest.approx(change)
    for told in ("; negative flips", ", positive"):
        flips = negative if "negative" in told else positive
        assert f"{told} {100 * flips.mean():.2f} % [" in record["sentence"]
    assert door(upgraded, "--table") == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(next(line for line in lines if "negative flips  " in line))
    assert lines[at + 1].startswith(f"old/old to new/T(old)  {100 * negative.mean():.2f} [")


def groups_of(rows):
    """int [n]: the number of each row's class, 0 without label."""
    return np.array([int((label or "c0")[1:]) for label in rows.labels])


def grouped_gallery(path, kind, name="camera"):
    """A gallery with `name` 0 to 4 by class, null in part; T fails in 1, 4 has few rows."""
    rows = data()
    groups = groups_of(rows) % 4
    groups[:9] = 4
    rows.vectors["good"][groups == 1] *= -1
    rows.vectors["old"][groups == 1] *= 0.01  # Found before: far from all others,
    rows.vectors["old"][groups == 1] += 10 * groups_of(rows)[groups == 1, None]  # and by class.
    table.create(path, [rows], [COLUMNS[name] for name in rows.vectors])
    values = [None if group == 3 else group for group in groups.tolist()]
    as_text = [value if value is None or kind != pa.string() else f"c{value}" for value in values]
    of_rows = dict(zip(rows.ids, as_text, strict=True))
    opened = table.open(path)
    opened.dataset.add_columns(
        lambda batch: pa.record_batch(
            [pa.array([of_rows[i] for i in batch["id"].to_pylist()], kind)], [name]
        ),
        read_columns=["id"],
    )
    texts = [None if value is None else str(value) for value in as_text]
    return rows, dict(zip(rows.ids, texts, strict=True))


@pytest.mark.parametrize("where", ["gallery", "sample"])
@pytest.mark.parametrize("kind", [pa.string(), pa.int16()])
def test_slices(tmp_path, door, capsys, where, kind, path):
    rows, of_rows = grouped_gallery(tmp_path / "h.lance", kind)
    flags = [f"--gallery={tmp_path / 'h.lance'}", "--groups=camera"]
    if where == "sample":  # The gallery has no such column, the sample has.
        table.create(tmp_path / "i.lance", [rows], [COLUMNS[name] for name in rows.vectors])
        flags[0] = f"--gallery={tmp_path / 'i.lance'}"
        flags.append(f"--sample={tmp_path / 'h.lance'}")
    output = tmp_path / "v.json"
    assert door("good", *flags, "--table", f"--output={output}") == 0
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())["slices"]
    sides = (("old", "old"), ("new", "good"))
    before, after = (one_by_one(rows.vectors[q], rows.vectors[g], rows) for q, g in sides)
    negative, positive, ids = flipped(rows, *sides)
    groups = np.array([of_rows[i] for i in ids], object)
    assert {one["group"] for one in found["slices"]} == set(groups)
    assert (found["num_slices"], found["num_too_small"]) == (5, 1)
    for one in found["slices"]:
        own = np.array([group == one["group"] for group in groups])
        assert one["num_queries"] == own.sum()
        gains = {f"cmc@{k}": ((after[0] <= k) * 1.0 - (before[0] <= k))[own] for k in (1, 5)}
        gains["map"] = (after[1] - before[1])[own]
        told = one["difference"] | {name: one[name] for name in ("negative_flips",)}
        for name, values in (gains | {"negative_flips": negative[own] * 1.0}).items():
            assert told[name]["mean"] == pytest.approx(values.mean())
            if own.sum() < 20:
                assert one["verdict"] == "too small" and told[name]["low"] is None
                continue
            low, high = np.percentile(resampled(values[:, None], 200, 0), [2.5, 97.5])
            assert [told[name]["low"], told[name]["high"]] == pytest.approx([low, high])
        assert one["positive_flips"]["mean"] == pytest.approx(positive[own].mean())
    judged_ = [one for one in found["slices"] if one["verdict"] != "too small"]
    order = [one["difference"]["cmc@1"]["mean"] for one in judged_]
    assert order == sorted(order) and found["slices"][-1]["verdict"] == "too small"
    worst = found["slices"][0]
    assert worst["group"] in ("c1", "1") and worst["verdict"] == "not compatible"
    line = printed.splitlines()[0]
    loss = worst["difference"]["cmc@1"]
    assert "; of 5 slices by camera " in line and f"most {worst['group']}: -" in line
    assert f"{100 * loss['mean']:.2f} points top-1 [" in line
    assert f", {worst['num_queries']} queries; 1 too small (under 20 queries)" in line
    shown = [text for text in printed.splitlines() if text.startswith(("c", "camera"))]
    assert sum(" compatible" in text or "undecided" in text for text in shown[1:]) <= 3
    with pytest.raises(SystemExit) as exit_:
        door("good", *flags, "--require_compatible_slices")
    assert exit_.value.code == 3


def test_slices_by_label_and_those_that_lose_nothing(path, door):
    verdict_ = judge.Verdict(judged(path, "good", groups="label"))
    found = verdict_.record["slices"]
    labelled = [label for label in data().labels if label is not None]
    sizes = {label: labelled.count(label) for label in set(labelled)}
    assert {one["group"]: one["num_queries"] for one in found["slices"]} == sizes
    assert found["num_too_small"] == sum(size < 20 for size in sizes.values()) > 0
    assert not verdict_.losing_slices and "by label none clearly loses; " in verdict_.sentence
    flags = ["--require_compatible_slices", "--groups=label"]
    assert verdict_.compatible and door("good", *flags) == 0
    with pytest.raises(SystemExit) as exit_:
        door("useless", *flags)
    assert exit_.value.code == 3
    old = {key: value for key, value in verdict_.record.items() if key not in ("case", "slices")}
    del old["thresholds"], old["against"], old["labels"]["negative_flips"]
    assert judge.Verdict(old).details().startswith("  ") and not judge.Verdict(old).losing_slices


def test_the_table_shows_ten_slices_and_says_how_many_more():
    generator = np.random.default_rng(0)
    before = {"cmc@1": generator.integers(0, 2, 400).astype(float)}
    after = {"cmc@1": generator.integers(0, 2, 400).astype(float)}
    flips = {"negative": np.zeros(400), "positive": np.zeros(400)}
    groups = np.array([f"g{number % 16:02}" for number in range(400)], object)
    found = slices.by_group("place", groups, after, before, flips, (100, 0))
    lines = sentence._slices_table(found)
    assert [line[:3] for line in lines[1:11]] == [one["group"] for one in found["slices"][:10]]
    assert len(lines) == 13 and "the worst first; 6 more." in lines[11]


FUSED = {
    "rows": column("rows", 8, "both", kind="fused"),
    "queries": column("queries", 8, "both", kind="fused"),
}


def fused_tables(tmp_path, *queries, upgraded="good"):
    """A gallery with a fused column beside the others, and a sample with query columns."""
    rows = data()
    both = {"rows": np.hstack([rows.vectors["old"], rows.vectors[upgraded]])}
    both["queries"] = np.hstack([rows.vectors["old"], rows.vectors["new"]])
    rows.vectors["rows"] = both["rows"]
    columns = [{**COLUMNS, **FUSED}[name] for name in rows.vectors]
    table.create(tmp_path / "g2.lance", [rows], columns)
    sample = some(rows, np.random.default_rng(2).permutation(COUNT)[:171], "new")
    for name in queries:
        own = dict(zip(rows.ids, both["queries"], strict=True))
        sample.vectors[name] = np.array([own[i] for i in sample.ids])
    made = [COLUMNS["new"], *(replace(FUSED["queries"], name=name) for name in queries)]
    table.create(tmp_path / "s2.lance", [sample], made)
    kept = np.isin(rows.ids, sample.ids)
    rows.vectors.update(both)
    whole = some(rows, kept, *rows.vectors)
    return tmp_path / "g2.lance", tmp_path / "s2.lance", whole


def test_a_fused_column_and_a_second_comparison(tmp_path, door, capsys):
    gallery, sample, rows = fused_tables(tmp_path, "queries")
    output = tmp_path / "v.json"
    flags = [f"--gallery={gallery}", f"--sample={sample}", "--against=middling"]
    flags += ["--threshold=0.5", "--groups=label", "--table"]
    assert door("rows", *flags, f"--output={output}") == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(output.read_text())
    case = "old+new/old+T(old)"
    assert record["case"] == sentence.FUSED == case
    assert record["columns"]["query"]["column"] == "queries"
    assert record["columns"]["query"]["path"] == str(sample)
    assert record["columns"]["against"]["path"] == str(gallery)
    expected = slow(rows.vectors["queries"], rows.vectors["rows"], rows)
    assert means(record["labels"][case]) == pytest.approx(expected, abs=1e-9)
    assert record["thresholds"][0]["upgraded"]["value"] > 0.5 and "new/T(old)" not in lines[0]
    other = slow(rows.vectors["new"], rows.vectors["middling"], rows)
    against = record["against"]
    assert against["case"] == "new/middling"
    gains = np.array(expected) - other
    assert means(against["difference"]) == pytest.approx(gains)
    found = flipped(rows, ("new", "middling"), ("queries", "rows"))
    for name, flips in zip(("negative", "positive"), found, strict=False):
        assert against[f"{name}_flips"]["mean"] == pytest.approx(flips.mean())
    assert lines[0].startswith(f"{record['verdict']}: {case} beats old/old by")
    assert f"; to new/middling +{100 * gains[0]:.2f} points top-1 [" in lines[0]
    assert any(line.startswith(f"new/middling to {case}  +") for line in lines)
    assert any(line.startswith(f"{case} with new/new") for line in lines)
    assert any(line.startswith("rows to queries") for line in lines)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            [],
            "s2.lance: no column of queries in the space of the fused column 'rows'; make it "
            "with upgrade_gallery --side=query",
        ),
        (
            ["a", "b"],
            "s2.lance: several columns (a, b) of queries in the space of the fused "
            "column 'rows'; name one with --query_column",
        ),
    ],
)
def test_a_fused_column_without_its_queries(tmp_path, door, capsys, columns, message):
    gallery, sample, rows = fused_tables(tmp_path, *columns)
    flags = [f"--gallery={gallery}", f"--sample={sample}"]
    assert door("rows", *flags) == 2
    assert message in capsys.readouterr().err
    assert door("rows", *flags, "--query_column=new") == 2
    assert "columns 'new' and 'rows' lie in different spaces" in capsys.readouterr().err
    assert door("good", *flags, "--against=old") == 2
    assert "columns 'new' and 'old' lie in different spaces" in capsys.readouterr().err
    if columns:
        assert door("rows", *flags, "--query_column=b") == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_thresholds(path, tmp_path, door, capsys, labelled):
    rows = data(labelled)
    table.create(tmp_path / "t.lance", [rows], [COLUMNS[name] for name in rows.vectors])
    output = tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 't.lance'}", "--threshold=1.5", "--threshold=0.62"]
    assert door("good", *flags, "--table", f"--output={output}", "--overlap_ks=1") == 0
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert [one["old"] for one in record["thresholds"]] == [0.62, 1.5]
    known = np.array(
        [labelled and label is not None for label in (rows.labels if labelled else rows.ids)]
    )
    same = np.zeros((COUNT, COUNT), bool)
    if labelled:
        same = known[:, None] & known & (rows.labels[:, None] == rows.labels)
    pair = (known[:, None] & known if labelled else np.ones_like(same)) & ~np.eye(COUNT, dtype=bool)
    sides = {"old": ("old", "old"), "upgraded": ("new", "good"), "new": ("new", "new")}
    tables = {
        role: distances(agreement.Case(*(rows.vectors[name] for name in names), "l2"))
        for role, names in sides.items()
    }
    for one in record["thresholds"]:
        assert one["by"] == ("labels" if labelled else "all pairs")
        assert one["distance"] == dict.fromkeys(sides, "l2")
        accepts = np.sum(tables["old"][pair & ~same] < one["old"])
        assert one["num_false_accepts"] == accepts
        assert one["far"]["mean"] == accepts / one["num_pairs"] == accepts / (pair & ~same).sum()
        for role, table_ in tables.items():
            value = one["old"]
            if role != "old":
                value = one[role]["value"]
                expected = np.sort(table_[pair & ~same])[accepts]
                assert value == pytest.approx(expected, rel=1e-5)
                assert one[role]["low"] <= value <= one[role]["high"]
            if labelled:
                share = np.mean(table_[pair & same] < value * (1 - 1e-6))
                assert one[f"tar_{role}"]["mean"] == pytest.approx(share)
            else:
                assert one[f"tar_{role}"] is None
    first = record["thresholds"][0]
    assert f"; threshold 0.62 becomes {first['upgraded']['value']:.4g} [" in printed.splitlines()[0]
    assert ("TAR at FAR" in printed.splitlines()[0]) == labelled
    assert "threshold 0.62" in printed and "old/old, squared L2" in printed
    for bad, message in (("1e-9", "none of"), ("1e9", "all of"), ("0", "a distance above 0")):
        assert door("good", *flags, f"--threshold={bad}") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error and f"--threshold={float(bad):g}" in error
    for bad in ("nan", "close", "-1"):
        assert door("good", *flags, f"--threshold={bad}") == 2
        capsys.readouterr()


def test_spaces(door, path, tmp_path, capsys):
    rows = data()
    columns = {**COLUMNS, "good": column("good", 5, "T")}
    table.create(tmp_path / "w.lance", [rows], [columns[name] for name in rows.vectors])
    flags = [f"--gallery={tmp_path / 'w.lance'}"]
    assert door("good", *flags) == 2
    error = capsys.readouterr().err
    for part in (SPACE["T"], SPACE["new"], "T net", "new net", "--allow_space_mismatch"):
        assert part in error
    assert door("good", *flags, "--allow_space_mismatch") == 0
    assert door("old", *flags, "--allow_space_mismatch") == 2
    assert (
        "different dimensions: 5 (model new net) and 3 (model old net)" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gallery=nothing.lance"], "nothing.lance: no gallery"),
        (["--sample=nothing.lance"], "nothing.lance: no gallery"),
        (["--exclude=nothing.lance"], "nothing.lance: no gallery"),
        (["--new=nwe"], "no embedding column 'nwe'; there are: old, new, perfect"),
        (["--old=label"], "no embedding column 'label'"),
        (["--old=new"], "'new' and 'new' lie in one space (model new net): there is no upgrade"),
        (["--ks=0"], "--ks=0: whole numbers from 1"),
        (["--overlap_ks=ten"], "--overlap_ks=ten: whole numbers from 1"),
        (["--overlap_ks=211"], "--overlap_ks: a row has only 210 others; name a smaller k"),
        (["--bootstrap=0"], "bootstrap"),
        (["--groups=camera"], "--groups=camera: no column of strings or whole numbers of this"),
        (["--groups=old"], "--groups=old: no column of strings or whole numbers of this name"),
        (["--against=gone"], "no embedding column 'gone'"),
        (["--query_column=gone"], "no embedding column 'gone'"),
        (["--require_compatible_slices"], "needs --groups=COLUMN"),
        (["--output=DIRECTORY"], "is a directory; name a file"),
        (["--output=DIRECTORY/file"], "file: exists already; pass --overwrite"),
        (["--unknown=1"], "unknown"),
    ],
)
def test_bad_flags(path, door, capsys, flags, message):
    (path.parent / "file").write_text("x")
    assert door("good", *(flag.replace("DIRECTORY", str(path.parent)) for flag in flags)) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1] and captured.err.count("error: ") == 1
    assert sorted(os.listdir(path.parent)) == ["file", "g.lance"] and not captured.out


def test_no_tensorflow_is_imported():
    code = (
        "import sys, fct_tf.verdict\n"
        "heavy = {'tensorflow', 'keras', 'scann', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
