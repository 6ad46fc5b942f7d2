"""Verdicts that compare more: fused columns, another column, thresholds of distances."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fct_tf.gallery import table
from fct_tf.retrieval import agreement
from fct_tf.upgrade import sentence
from tests.upgrade.verdicts import (
    COLUMNS,
    COUNT,
    column,
    data,
    distances,
    flipped,
    means,
    slow,
    some,
)

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


def test_a_fused_column_and_a_second_comparison(tmp_path, run_verdict, capsys):
    gallery, sample, rows = fused_tables(tmp_path, "queries")
    output = tmp_path / "v.json"
    flags = [f"--gallery={gallery}", f"--sample={sample}", "--against=middling"]
    flags += ["--threshold=0.5", "--groups=label", "--table"]
    assert run_verdict("rows", *flags, f"--output={output}") == 0
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


@pytest.mark.parametrize("same_space", [True, False])
def test_one_fused_column_against_another(tmp_path, run_verdict, same_space):
    """The other is searched by the queries of its own space."""
    gallery, sample, rows = fused_tables(tmp_path, "queries", upgraded="middling")
    path, output = tmp_path / "both.lance", tmp_path / "v.json"
    other = [replace(FUSED[name], name=f"other_{name}", space="other") for name in FUSED]
    if same_space:  # In one space, as rows of one fused search with and without pairs.
        other = [replace(other[0], space=FUSED["rows"].space)]
    rows.vectors["other_rows"] = rows.vectors["rows"].copy()
    if not same_space:
        rows.vectors["other_queries"] = rows.vectors["queries"]
    rows.vectors["rows"] = rows.vectors["queries"]
    made = {**COLUMNS, **FUSED, **{column.name: column for column in other}}
    table.create(path, [rows], [made[name] for name in rows.vectors])
    flags = [f"--gallery={path}", "--against=other_rows", "--query_column=queries"]
    flags.append(f"--output={output}")
    assert run_verdict("rows", *flags) == 0
    record = json.loads(output.read_text())
    asked = "queries" if same_space else "other_queries"
    assert record["columns"]["against_query"]["column"] == asked
    assert record["against"]["case"] == f"{asked}/other_rows"

    def right(stored):
        near = ((rows.vectors["queries"][:, None] - rows.vectors[stored][None]) ** 2).sum(2)
        np.fill_diagonal(near, np.inf)
        return rows.labels[near.argmin(axis=1)] == rows.labels

    counts = Counter(rows.labels)
    matched = [label is not None and counts[label] > 1 for label in rows.labels]
    gain = (right("rows").astype(float) - right("other_rows"))[matched]
    assert record["against"]["difference"]["cmc@1"]["mean"] == pytest.approx(gain.mean())


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
def test_a_fused_column_without_its_queries(tmp_path, run_verdict, capsys, columns, message):
    gallery, sample, rows = fused_tables(tmp_path, *columns)
    flags = [f"--gallery={gallery}", f"--sample={sample}"]
    assert run_verdict("rows", *flags) == 2
    assert message in capsys.readouterr().err
    assert run_verdict("rows", *flags, "--query_column=new") == 2
    assert "columns 'new' and 'rows' lie in different spaces" in capsys.readouterr().err
    assert run_verdict("good", *flags, "--against=old") == 2
    assert "columns 'new' and 'old' lie in different spaces" in capsys.readouterr().err
    if columns:
        assert run_verdict("rows", *flags, "--query_column=b") == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_thresholds(judged_path, tmp_path, run_verdict, capsys, labelled):
    rows = data(labelled)
    table.create(tmp_path / "t.lance", [rows], [COLUMNS[name] for name in rows.vectors])
    output = tmp_path / "v.json"
    flags = [f"--gallery={tmp_path / 't.lance'}", "--threshold=1.5", "--threshold=0.62"]
    assert run_verdict("good", *flags, "--table", f"--output={output}", "--overlap_ks=1") == 0
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
        assert run_verdict("good", *flags, f"--threshold={bad}") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error and f"--threshold={float(bad):g}" in error
    for bad in ("nan", "close", "-1"):
        assert run_verdict("good", *flags, f"--threshold={bad}") == 2
        capsys.readouterr()
