"""The verdict on an upgrade: with labels and without, on a sample, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from fct_tf.gallery import table
from fct_tf.upgrade import judge, sentence
from tests.upgrade.verdicts import COLUMNS, COUNT, SPACE, column, data, judged, means, slow, some


def test_a_good_upgrade(judged_path, run_verdict, capsys):
    output = judged_path.parent / "v.json"
    flags = ["--table", "--require_compatible", f"--output={output}", "--max_queries=0"]
    assert run_verdict("good", *flags) == 0
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert printed.splitlines()[0] == f"{record['sentence']} -> {output}"
    assert record == judged(judged_path, "good", max_queries=0)  # The same through JSON and Python.
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


def test_a_perfect_upgrade_closes_the_gap(judged_path):
    record = judged(judged_path, "perfect")
    assert record["verdict"] == "compatible"
    for share in record["labels"]["gap_share"].values():
        assert list(share.values()) == pytest.approx([1, 1, 1])
    assert record["labels"]["new/T(old)"] == record["labels"]["new/new"]
    for value in record["agreement"]["new/T(old)"].values():
        assert value["mean"] == pytest.approx(1)
    assert record["closeness"]["cosine"]["mean"] == pytest.approx(1)
    assert record["closeness"]["explained_variance"]["mean"] == 1


def test_a_useless_upgrade(run_verdict, judged_path, capsys):
    assert run_verdict("useless") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("not compatible: new/T(old) is worse than old/old, -")
    assert "(negative: below old/old)" in printed and printed.count("\n") == 1
    with pytest.raises(SystemExit) as exit_:
        run_verdict("useless", "--require_compatible")
    assert exit_.value.code == judge.NOT_COMPATIBLE_STATUS == 3
    record = judged(judged_path, "useless")
    assert record["agreement"]["new/T(old)"]["spearman"]["mean"] == pytest.approx(0, abs=0.1)
    assert record["agreement"]["difference"]["overlap@10"]["high"] < 0
    assert record["closeness"]["explained_variance"]["mean"] < 0


def test_undecided(run_verdict, capsys):
    assert run_verdict("middling") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("undecided: new/T(old) is neither clearly better nor worse than")
    with pytest.raises(SystemExit) as exit_:
        run_verdict("middling", "--require_compatible")
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
def test_without_labels(tmp_path, run_verdict, capsys, labels):
    rows = data(labelled=False)
    if labels == "unique":
        rows = table.Rows(rows.ids, rows.ids, rows.vectors)
    table.create(tmp_path / "u.lance", [rows], [COLUMNS[name] for name in rows.vectors])
    output = tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 'u.lance'}", f"--output={output}", "--overlap_ks=1,10"]
    assert run_verdict("good", *flags, "--max_queries=97", "--table") == 0
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
        run_verdict("good", *flags[:1], "--require_compatible")
    assert exit_.value.code == 3


def test_a_sample_is_matched_by_id(judged_path, tmp_path, run_verdict):
    rows = data()
    kept = np.random.default_rng(2).permutation(COUNT)[:151]
    sample = some(rows, kept, "new", "old")
    strangers = np.array(["stranger1", "stranger2"], object)
    beside = table.Rows(
        strangers, None, {name: sample.vectors[name][:2] for name in ("new", "old")}
    )
    table.create(tmp_path / "s.lance", [sample, beside], [COLUMNS["new"], COLUMNS["old"]])
    output = tmp_path / "v.json"
    assert run_verdict("good", f"--sample={tmp_path / 's.lance'}", f"--output={output}") == 0
    record = json.loads(output.read_text())
    assert record["num_rows"] == 151 and record["num_not_in_gallery"] == 2
    assert record["num_gallery"] == COUNT
    assert record["columns"]["new"]["path"] == str(tmp_path / "s.lance")
    chosen = some(rows, kept, "new", "good")
    expected = slow(chosen.vectors["new"], chosen.vectors["good"], chosen)
    assert means(record["labels"]["new/T(old)"]) == pytest.approx(expected, abs=1e-9)


def test_an_upgrade_in_a_gallery_of_its_own(judged_path, tmp_path, run_verdict, capsys):
    """The same verdict where --old lies in another gallery, in another order."""
    rows, mixed = data(), np.random.default_rng(3).permutation(COUNT)
    good = replace(COLUMNS["good"], created_by={"gallery": {"path": "g.lance", "version": 7}})
    table.create(tmp_path / "own.lance", [some(rows, mixed, "good")], [good])
    own, sources = table.open(tmp_path / "own.lance"), table.open(judged_path)
    beside = judged(judged_path, "good")
    found = judge.judge(own, "old", "good", "new", sources=sources, bootstrap=200)
    for record in (beside, found):
        record["columns"] = {name: told["column"] for name, told in record["columns"].items()}
    assert found == beside
    flags = [f"--gallery={tmp_path / 'own.lance'}"]
    assert run_verdict("good", *flags, f"--sources={judged_path}") == 0
    assert capsys.readouterr().out == f"{beside['sentence']}\n"
    assert run_verdict("good", *flags) == 2
    assert "(g.lance@7); name that one with --sources" in capsys.readouterr().err
    assert run_verdict("good", "--old=gone") == 2
    assert "no embedding column 'gone'" in capsys.readouterr().err


def test_excluded_rows_are_neither_queries_nor_found(judged_path, tmp_path, run_verdict, capsys):
    rows = data()
    # What was left out is perfect, the rest useless.
    trained = np.arange(COUNT) % 3 == 0
    rows.vectors["good"][~trained] = rows.vectors["useless"][~trained]
    rows.vectors["good"][trained] = rows.vectors["new"][trained]
    table.create(tmp_path / "h.lance", [rows], [COLUMNS[name] for name in rows.vectors])
    table.create(tmp_path / "p.lance", [some(rows, trained, "new")], [COLUMNS["new"]])
    pairs, output = f"{tmp_path / 'p.lance'}", tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 'h.lance'}", f"--output={output}"]
    assert run_verdict("good", *flags, f"--exclude={pairs}") == 0
    record = json.loads(output.read_text())
    left = some(rows, ~trained, "new", "useless")
    expected = slow(left.vectors["new"], left.vectors["useless"], left)
    assert means(record["labels"]["new/T(old)"]) == pytest.approx(expected, abs=1e-9)
    assert record["num_excluded"] == trained.sum() and record["num_rows"] == (~trained).sum()
    capsys.readouterr()
    assert (
        run_verdict("good", *flags, "--overwrite", f"--sample={pairs}", f"--exclude={pairs}") == 2
    )
    error = capsys.readouterr().err
    assert f"p.lance: 0 rows to judge by ({trained.sum()} excluded, 0 not in gallery)" in error


def test_labels_of_the_sample_where_the_gallery_has_none(tmp_path, run_verdict, judged_path):
    rows = data()
    bare = data(labelled=False)
    table.create(tmp_path / "u.lance", [bare], [COLUMNS[name] for name in bare.vectors])
    table.create(tmp_path / "s.lance", [some(rows, slice(None), "new")], [COLUMNS["new"]])
    output = tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 'u.lance'}", f"--sample={tmp_path / 's.lance'}"]
    assert run_verdict("good", *flags, f"--output={output}") == 0
    assert json.loads(output.read_text())["labels"] == judged(judged_path, "good")["labels"]


def test_what_is_doubtful_is_said(judged_path, tmp_path, run_verdict, capsys):
    few = some(data(), slice(0, 60), "new")
    few.labels[5] = "another"
    table.create(tmp_path / "s.lance", [few], [COLUMNS["new"]])
    gallery = table.open(judged_path)
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
    assert run_verdict("good", f"--sample={tmp_path / 's.lance'}") == 0
    error = capsys.readouterr().err
    assert "60 rows to judge by (0 excluded, 0 not in gallery): the intervals are wide" in error
    assert "the new model itself made 6 of these 60 rows of 'good'" in error
    assert "of 60 queries whose id the gallery has, 1 with another label" in error


def test_spaces(run_verdict, judged_path, tmp_path, capsys):
    rows = data()
    columns = {**COLUMNS, "good": column("good", 5, "T")}
    table.create(tmp_path / "w.lance", [rows], [columns[name] for name in rows.vectors])
    flags = [f"--gallery={tmp_path / 'w.lance'}"]
    assert run_verdict("good", *flags) == 2
    error = capsys.readouterr().err
    for part in (SPACE["T"], SPACE["new"], "T net", "new net", "--allow_space_mismatch"):
        assert part in error
    assert run_verdict("good", *flags, "--allow_space_mismatch") == 0
    assert run_verdict("old", *flags, "--allow_space_mismatch") == 2
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
def test_bad_flags(judged_path, run_verdict, capsys, flags, message):
    (judged_path.parent / "file").write_text("x")
    assert (
        run_verdict("good", *(flag.replace("DIRECTORY", str(judged_path.parent)) for flag in flags))
        == 2
    )
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1] and captured.err.count("error: ") == 1
    assert sorted(os.listdir(judged_path.parent)) == ["file", "g.lance"] and not captured.out


def test_no_tensorflow_is_imported():
    code = (
        "import sys, fct_tf.verdict\n"
        "heavy = {'tensorflow', 'keras', 'scann', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
