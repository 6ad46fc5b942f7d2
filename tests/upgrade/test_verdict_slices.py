"""Negative flips, and the verdict on each group of queries."""

import json

import numpy as np
import pyarrow as pa
import pytest

from fct_tf.gallery import table
from fct_tf.upgrade import judge, sentence, slices
from tests.upgrade.verdicts import COLUMNS, data, flipped, judged, one_by_one, resampled


@pytest.mark.parametrize("upgraded", ["good", "middling", "useless"])
def test_flips(judged_path, run_verdict, capsys, upgraded):
    record = judged(judged_path, upgraded)
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
    assert run_verdict(upgraded, "--table") == 0
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
def test_slices(tmp_path, run_verdict, capsys, where, kind, judged_path):
    rows, of_rows = grouped_gallery(tmp_path / "h.lance", kind)
    flags = [f"--gallery={tmp_path / 'h.lance'}", "--groups=camera"]
    if where == "sample":  # The gallery has no such column, the sample has.
        table.create(tmp_path / "i.lance", [rows], [COLUMNS[name] for name in rows.vectors])
        flags[0] = f"--gallery={tmp_path / 'i.lance'}"
        flags.append(f"--sample={tmp_path / 'h.lance'}")
    output = tmp_path / "v.json"
    assert run_verdict("good", *flags, "--table", f"--output={output}") == 0
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
        run_verdict("good", *flags, "--require_compatible_slices")
    assert exit_.value.code == 3


def test_slices_by_label_and_those_that_lose_nothing(judged_path, run_verdict):
    verdict_ = judge.Verdict(judged(judged_path, "good", groups="label"))
    found = verdict_.record["slices"]
    labelled = [label for label in data().labels if label is not None]
    sizes = {label: labelled.count(label) for label in set(labelled)}
    assert {one["group"]: one["num_queries"] for one in found["slices"]} == sizes
    assert found["num_too_small"] == sum(size < 20 for size in sizes.values()) > 0
    assert not verdict_.losing_slices and "by label none clearly loses; " in verdict_.sentence
    flags = ["--require_compatible_slices", "--groups=label"]
    assert verdict_.compatible and run_verdict("good", *flags) == 0
    with pytest.raises(SystemExit) as exit_:
        run_verdict("useless", *flags)
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
