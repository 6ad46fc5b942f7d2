"""Verification and open-set search, against scikit-learn and plain loops; their door."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from fct_tf import verify_identities
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import open_set, verification
from tests.builders import numbered

FARS = (0.5, 0.1, 0.01, 0.001)


CENTRES = np.random.default_rng(0).integers(-3, 4, (30, 4)).astype(np.float32)


def side(seed, count=83, values=1, classes=9, prefix="row", unlabelled=0.1):
    """Whole numbers around centres: rounding has no say in ties."""
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, classes, count)
    labels = numbered("c", numbers)
    labels[generator.random(count) < unlabelled] = None
    vectors = CENTRES[numbers] + generator.integers(-values, values + 1, (count, 4))
    return vectors.astype(np.float32), numbered(prefix, count), labels


def real_side(seed=4, count=211, classes=23):
    """Points around centres, away from zero."""
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, classes, count)
    vectors = 1.5 * CENTRES[numbers].repeat(4, axis=1) + generator.normal(size=(count, 16)) * 4 + 3
    labels = numbered("c", numbers)
    return vectors.astype(np.float32), numbered("row", count), labels


def another_column(both):
    """Of the same rows. Two ends of one pair tie but for rounding, those of two columns do not."""
    noise = np.random.default_rng(1).normal(size=both[0].shape).astype(np.float32)
    return (both[0] + noise / 8, *both[1:])


def distance_table(query, gallery, distance):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if distance == "l2":
        return np.square(query[:, None] - gallery[None]).sum(axis=2)
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    return 1 - query @ gallery.T


def loops(query, gallery, distance="l2"):
    """(distances, whether same label, query rows) of all pairs that count."""
    table_ = distance_table(query[0], gallery[0], distance)
    found = [
        (table_[i, j], query[2][i] == gallery[2][j], i)
        for i in range(len(query[1]))
        for j in range(len(gallery[1]))
        if query[2][i] is not None and gallery[2][j] is not None and query[1][i] != gallery[1][j]
    ]
    return tuple(np.array(column) for column in zip(*found, strict=True))


def check(query, gallery, block=None, distance="l2"):
    found = verification.verify(query, gallery, FARS, distance, block)
    distances, same, rows = loops(query, gallery, distance)
    fpr, tpr, _ = roc_curve(same, -distances, drop_intermediate=False)
    assert found.num_different == (~same).sum() and found.num_same.sum() == same.sum()
    np.testing.assert_array_equal(
        found.position, [i for i, x in enumerate(query[2]) if x is not None]
    )
    for at, far in enumerate(FARS):
        # The curve's thresholds let ties pass together, the best within the rate is ours.
        within = np.round(fpr * found.num_different) <= far * found.num_different + 1e-9
        assert found.tar[at] == pytest.approx(tpr[within].max(), abs=1e-12)
        accepts = np.round(fpr[within].max() * found.num_different)
        assert found.false_accepts[at] == accepts
        by_hand = np.sort(distances[~same])[int(far * found.num_different + 1e-9)]
        assert found.thresholds[at] == pytest.approx(by_hand, rel=1e-5, abs=1e-30)
        passed = [np.sum(same & (rows == i) & (distances < by_hand)) for i in found.position]
        np.testing.assert_array_equal(found.passed[:, at], passed)
    return found, fpr, tpr


@pytest.mark.parametrize("block", [1, 7, None])
@pytest.mark.parametrize("values", [0, 1, 40])
def test_one_table_with_many_ties(values, block):
    both = side(values, values=values)
    found, fpr, tpr = check(both, both, block)
    # Every point of the ROC is one of the curve's, in its order, to the end.
    curve = {(round(a, 12), round(b, 12)) for a, b in zip(fpr, tpr, strict=True)}
    assert {(round(a, 12), round(b, 12)) for a, b in found.roc} <= curve
    assert (np.diff(found.roc, axis=0) >= 0).all()
    np.testing.assert_array_equal(found.roc[-1], [1, 1])


@pytest.mark.parametrize("block", [1, 13, None])
def test_separate_query_and_gallery(block):
    gallery = side(5, 89, unlabelled=0.2)
    query = side(6, 53, classes=14, prefix="query")  # Five labels are not in the gallery.
    query[1][:9] = [f"row{row}" for row in range(70, 79)]  # Same ids at other rows.
    check(query, gallery, block)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_real_numbers_in_blocks_of_any_size(distance):
    gallery = real_side()
    query = another_column(gallery)
    found, *_ = check(query, gallery, None, distance)
    assert 0.2 < found.tar[1] < 0.9
    for block in (1, 16, 50):
        again = verification.verify(query, gallery, FARS, distance, block)
        np.testing.assert_array_equal(again.passed, found.passed)
        np.testing.assert_allclose(again.thresholds, found.thresholds, rtol=1e-5)
        np.testing.assert_allclose(again.roc[-1], 1)


def line(query, gallery):
    """One-dimensional rows, {place: label}, ids all different."""
    return tuple(
        (np.array([[x] for x, _ in rows], np.float32), numbered(prefix, len(rows)),
         np.array([label for _, label in rows], object))
        for prefix, rows in (("q", query), ("g", gallery))
    )  # fmt: skip


def test_the_tie_rule_by_hand():
    pairs = line([(0, "x")], [(2, "x"), (1, "y"), (3, "y"), (4, "z"), (5, "y"), (6, None)])
    # Squared distances: 4 of the same label, 1 9 16 25 of others. One of four may pass.
    found = verification.verify(*pairs, (0.25, 0.5, 0.2))
    np.testing.assert_allclose(found.thresholds, [9, 16, 1])
    np.testing.assert_array_equal(found.false_accepts, [1, 2, 0])
    np.testing.assert_array_equal(found.tar, [1, 1, 0])
    # Two others at the threshold: one may pass, but not one of them alone.
    pairs = line([(0, "x")], [(2, "x"), (2, "y"), (-2, "y"), (4, "z"), (5, "y")])
    found = verification.verify(*pairs, (0.25, 0.5))
    np.testing.assert_allclose(found.thresholds, [4, 16])
    np.testing.assert_array_equal(found.false_accepts, [0, 2])
    np.testing.assert_array_equal(found.tar, [0, 1])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("value", [0.0, 0.1234567, -7e3])
def test_a_collapsed_model_verifies_and_finds_nobody(distance, value):
    row = np.float32(value) * np.random.default_rng(0).random(67).astype(np.float32)
    both = (np.tile(row, (203, 1)), *real_side(count=203)[1:])
    found = verification.verify(both, both, (0.9, 0.1, 1e-4), distance)
    np.testing.assert_array_equal(found.tar, 0)
    np.testing.assert_array_equal(found.false_accepts, 0)
    np.testing.assert_array_equal(found.roc, [[0, 0], [1, 1]])
    enrolled = open_set.enrolled_rows(both[1], both[2], both[1])
    searched = open_set.search(both, both, enrolled, distance)
    assert not searched.found(0.5).any() and not searched.first.any()


def test_copies_under_other_labels_are_pairs_like_any_other():
    # Rounding takes some of their distances, 0, below it.
    vectors, ids, labels = real_side()
    copies = (vectors, numbered("copy", 211), np.full(211, "x", object))
    sides = zip((vectors, ids, labels), copies, strict=True)
    query = tuple(np.concatenate(parts) for parts in sides)
    found = verification.verify(query, query, (0.002,))
    same = sum(np.sum(query[2] == label) - 1 for label in query[2])
    assert found.num_same.sum() == same and found.num_different == 422 * 421 - same
    assert found.thresholds[0] < 1e-3 and found.tar[0] == 0


def test_intervals_let_no_tie_pass():
    query, gallery = line(
        [(0, "a"), (0, "b"), (4, "new"), (6, "other")], [(1, "a"), (-1, "b"), (3, "a"), (-3, "b")]
    )
    query[0][:2] = [[1.5], [-1.5]]  # A quarter from their mates, as strangers are.
    query[0][2:] = [[0.5], [2.5]]
    found = open_set.search(query, gallery, np.ones(4, bool))
    np.testing.assert_array_equal(found.nearest, [0.25] * 4)
    assert found.first[:2].all() and not found.found(0.5).any()
    np.testing.assert_array_equal(open_set.intervals(found, query[2], (0.5,), 20), [[0], [0]])


def test_allowed_is_of_the_decimal_number():
    assert verification.allowed(0.29, 100) == 29  # 0.29 * 100 is 28.999999999999996.
    assert verification.allowed(1e-4, 173_702_220) == 17_370
    assert verification.allowed(np.float64(0.1), 9) == 0
    for rate in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            verification.allowed(rate, 10)


def test_verification_needs_both_kinds_of_pairs():
    vectors, ids, labels = side(0, unlabelled=0)
    for same in (np.full(83, "x"), numbered("only", 83)):
        what = "different labels" if same[0] == "x" else "one label"
        with pytest.raises(InputError, match=f"no two rows with {what}"):
            verification.verify((vectors, ids, same), (vectors, ids, same))
    with pytest.raises(InputError, match="dimensions"):
        verification.verify((vectors, ids, labels), (vectors[:, :2], ids, labels))


def test_enrolled_rows():
    _, ids, labels = side(3, 400, classes=20)
    enrolled = open_set.enrolled_rows(ids, labels, ids, 0.3, 0.25, seed=7)
    known = {label for label in labels if label is not None}
    inside = set(labels[enrolled])
    assert len(known) == 20 and len(inside) == 14 and None not in inside
    for label in inside:
        rows = np.sum(labels == label)
        assert np.sum(enrolled & (labels == label)) == round(rows / 4)
    # Order of rows does not matter, the seed does.
    order = np.random.default_rng(0).permutation(400)
    again = open_set.enrolled_rows(ids[order], labels[order], ids, 0.3, 0.25, seed=7)
    np.testing.assert_array_equal(again, enrolled[order])
    assert (open_set.enrolled_rows(ids, labels, ids, 0.3, 0.25, seed=8) != enrolled).any()
    # Rows that are no query are all enrolled, except those of absent labels.
    other = open_set.enrolled_rows(ids, labels, ["elsewhere"], 0.3, seed=7)
    np.testing.assert_array_equal(other, [label in inside for label in labels])
    assert open_set.enrolled_rows(ids, labels, ["elsewhere"], 0.0).sum() == np.sum(labels != None)  # noqa: E711
    # One row of a label is enrolled, of two one; of two labels one is absent.
    few = np.array(["a", "b", "b"], object)
    for seed in range(5):
        chosen = open_set.enrolled_rows(ids[:3], few, ids[:3], 0.01, 0.99, seed)
        assert chosen.sum() == 1
    assert open_set.enrolled_rows(ids[:3], few, ids[:3], 0.0).sum() == 2
    for name, shares in (("absent_share", (1.0, 0.5)), ("enrolled_share", (0.5, 0.0))):
        with pytest.raises(InputError, match=name):
            open_set.enrolled_rows(ids, labels, ids, *shares)


@pytest.mark.parametrize("block", [1, 11, None])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("separate", [False, True])
def test_open_set_search_by_loops(separate, distance, block):
    gallery = real_side() if distance == "cosine" else side(8, 150, values=2, classes=12)
    query = gallery
    if separate:
        vectors, _, labels = real_side(5, 90, 30) if distance == "cosine" else side(9, 90, 2, 14)
        query = (vectors, numbered("query", 90), labels)
        query[1][:20] = gallery[1][40:60]  # Some of these ids are enrolled: they do not search.
    enrolled = open_set.enrolled_rows(*gallery[1:], query[1], seed=1)
    found = open_set.search(query, gallery, enrolled, distance, block)
    inside = set(gallery[2][enrolled])
    distances = distance_table(query[0], gallery[0][enrolled], distance)
    mated, alarms = {}, []
    for row, (own, label) in enumerate(zip(*query[1:], strict=True)):
        if label is None or own in set(gallery[1][enrolled]):
            continue
        mates = gallery[2][enrolled] == label
        if label in inside:
            mated[row] = (distances[row][mates].min(), distances[row][~mates].min())
        else:
            alarms.append(distances[row].min())
    assert mated and alarms and found.num_enrolled == enrolled.sum()
    np.testing.assert_array_equal(found.position[found.mated], list(mated))
    assert len(found.position) == len(mated) + len(alarms)
    for fpir in (0.3, 0.05, 0.001):
        threshold = sorted(alarms)[int(fpir * len(alarms))]
        hits = [mate < other and mate < threshold for mate, other in mated.values()]
        assert found.threshold(fpir) == pytest.approx(threshold, rel=1e-5)
        np.testing.assert_array_equal(found.found(fpir), hits)
    assert 0 < np.mean(found.found(0.3)) < 1


def test_open_set_ties_by_hand():
    # The mate of q0 is as near as a stranger's row; q1's nearest is its mate; q2, q3 are alone.
    query, gallery = line(
        [(0, "a"), (9, "b"), (4, "new"), (14, "new")], [(1, "a"), (-1, "b"), (10, "b")]
    )
    found = open_set.search(query, gallery, np.ones(3, bool))
    np.testing.assert_array_equal(found.mated, [True, True, False, False])
    np.testing.assert_array_equal(found.nearest, [1, 1, 9, 16])
    np.testing.assert_array_equal(found.found(0.1), [False, True])
    query[0][2] = 2  # Now as near to `a` as q1 is to its mate: none of two may raise an alarm.
    found = open_set.search(query, gallery, np.ones(3, bool))
    np.testing.assert_array_equal(found.found(0.1), [False, False])
    np.testing.assert_array_equal(found.found(0.5), [False, True])
    for labels, kind in ((["a"] * 4, "non-mated"), (["new"] * 4, "mated")):
        with pytest.raises(InputError, match=f"no {kind} query"):
            open_set.search((*query[:2], np.array(labels, object)), gallery, np.ones(3, bool))


def test_intervals_are_those_of_repeated_queries():
    both = real_side()
    labels = both[2]
    found = verification.verify(both, both, (0.1, 0.01))
    drawn = list(verification.drawn_identities(labels, found.position, 40, 3))
    known = np.unique(labels)
    for weight in drawn:
        each = [set(weight[labels == label]) for label in known]
        assert all(len(values) == 1 for values in each)
        assert sum(values.pop() for values in each) == len(known)
    tars = []
    for weight in drawn:
        rows = np.repeat(np.arange(len(weight)), weight)
        tars.append(found.passed[rows].sum(axis=0) / found.num_same[rows].sum())
    expected = np.percentile(tars, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(verification.tar_intervals(found, labels, 40, 3), expected)
    assert (expected[0] < found.tar).all() and (found.tar < expected[1]).all()

    enrolled = open_set.enrolled_rows(*both[1:], both[1])
    searched = open_set.search(both, both, enrolled)
    groups = [np.flatnonzero(searched.mated), np.flatnonzero(~searched.mated)]
    alone = groups[1][np.argsort(searched.nearest[groups[1]])]
    draws = [
        verification.drawn_identities(labels, searched.position[group], 40, [3, number])
        for number, group in enumerate((groups[0], alone))
    ]
    tpirs = []
    for mated_weight, alone_weight in zip(*draws, strict=True):
        rows = np.concatenate([np.repeat(groups[0], mated_weight), np.repeat(alone, alone_weight)])
        sample = open_set.OpenSet(
            *(getattr(searched, n)[rows] for n in ("position", "mated", "first", "nearest")), 0
        )
        tpirs.append([np.mean(sample.found(fpir)) for fpir in (0.2, 0.05)])
    expected = np.percentile(tpirs, [2.5, 97.5], axis=0)
    made = open_set.intervals(searched, labels, (0.2, 0.05), 40, 3)
    np.testing.assert_allclose(made, expected)
    assert (expected[0] < expected[1]).all()


@pytest.fixture
def path(tmp_path):
    vectors, ids, labels = real_side()
    labels = labels.astype(object)
    labels[::10] = None
    columns = [
        table.Column(name, 16, table.imported_space(name), created_by={"model": name})
        for name in ("old", "new")
    ]
    rows = table.Rows(ids, labels, {"old": vectors, "new": -vectors})
    table.create(tmp_path / "g.lance", [rows], columns)
    table.create(tmp_path / "none.lance", [table.Rows(ids, None, rows.vectors)], columns)
    return tmp_path / "g.lance"


@pytest.fixture
def door(path, run_door):
    def run(*flags, gallery=path, gallery_column="old"):
        output = path.parent / "r.json"
        made = [f"--gallery={gallery}", f"--gallery_column={gallery_column}", f"--output={output}"]
        return run_door(verify_identities, *made, "--query_column=old", *flags)

    return run


def test_the_record(path, door, capsys):
    assert door("--fars=0.01,1e-1", "--fpirs=0.1", "--bootstrap=50", "--seed=2") == 0
    record = json.loads((path.parent / "r.json").read_text())
    rows = table.open(path).read(["old"], with_labels=True)
    both = (rows.vectors["old"], rows.ids, rows.labels)
    found = verification.verify(both, both, (0.1, 0.01))
    rates = record["verification"]["rates"]
    assert [rate["far"] for rate in rates] == [0.1, 0.01]
    assert [rate["tar"] for rate in rates] == found.tar.tolist()
    assert [rate["threshold"] for rate in rates] == found.thresholds.tolist()
    assert [rate["num_false_accepts"] for rate in rates] == found.false_accepts.tolist()
    assert all(rate["low"] < rate["tar"] < rate["high"] for rate in rates)
    assert record["verification"]["roc"] == found.roc.tolist()
    assert record["num_queries"] == 189 and record["num_gallery_without_label"] == 22
    pairs = [record["verification"][f"num_{kind}_pairs"] for kind in ("same", "different")]
    assert sum(pairs) == 189 * 188

    enrolled = open_set.enrolled_rows(rows.ids, rows.labels, rows.ids, seed=2)
    searched = open_set.search(both, both, enrolled)
    part = record["open_set"]
    assert part["num_enrolled"] + part["num_mated"] + part["num_non_mated"] == 189
    assert part["num_enrolled"] == enrolled.sum() and part["absent_share"] == 0.5
    (rate,) = part["rates"]
    assert rate["tpir"] == np.mean(searched.found(0.1)) and rate["fpir"] == 0.1
    assert rate["low"] <= rate["tpir"] <= rate["high"]
    out = capsys.readouterr().out
    assert f"old/old: TAR@FAR 0.1 {100 * found.tar[0]:.2f} %" in out and "TPIR@FPIR 0.1" in out


def test_parts_and_refusals(path, door, capsys, caplog):
    assert door("--fars=", "--fpirs=0.001", "--bootstrap=0") == 0
    record = json.loads((path.parent / "r.json").read_text())
    assert record["verification"] is None and record["open_set"]["rates"][0]["low"] is None
    assert "less than one" in caplog.text
    # Another table with the same ids: a row is not compared with itself there either.
    assert door("--fpirs=", f"--query={path.parent / 'none.lance'}", "--overwrite") == 2
    assert "none.lance: no row has a label" in capsys.readouterr().err
    assert door("--fars=0.1", "--fpirs=", f"--query={path}@1", "--overwrite") == 0
    assert json.loads((path.parent / "r.json").read_text())["open_set"] is None
    capsys.readouterr()
    for flags, told in (
        ([], "pass --overwrite"),
        (["--overwrite", "--fars=2"], "--fars=2: rates between 0 and 1"),
        (["--overwrite", "--fpirs=x"], "--fpirs=x: rates"),
        (["--overwrite", "--fars=", "--fpirs="], "nothing to measure"),
        (["--overwrite", "--absent_share=1"], "g.lance: absent_share 1.0"),
        (["--overwrite", "--absent_share=0"], "g.lance: no non-mated query"),
    ):
        assert door(*flags) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("error:") == 1
    assert door("--overwrite", gallery_column="new") == 2
    assert "--allow_space_mismatch" in capsys.readouterr().err
    assert door("--overwrite", "--allow_space_mismatch", gallery_column="new") == 0
    rates = json.loads((path.parent / "r.json").read_text())["verification"]["rates"]
    assert rates[0]["tar"] < 0.05


def test_the_door_needs_no_tensorflow():
    code = "import sys, fct_tf.verify_identities; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
