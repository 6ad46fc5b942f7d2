"""Records as rows of a table, and the table as text and Markdown."""

import statistics

import numpy as np
import pytest

from fct_tf.common import formats
from fct_tf.common.errors import InputError
from fct_tf.report import (
    table,
    verdict,
)
from tests.report.records import record, study


@pytest.mark.parametrize(
    "case, expected",
    [
        ("old/old", ("old", "old", False)),
        ("new/T(old)", ("new", "old", True)),
        ("new/T(old) fct, 20 % backfilled", ("new", "old", True)),
        ("T(new)/old procrustes", ("new", "old", True)),
        ("new/old (untransformed)", ("new", "old", False)),
        ("v1.2/T2(v1.1) x", ("v1.2", "v1.1", True)),
        ("no sides here", None),
        ("", None),
    ],
)
def test_sides_of_a_case(case, expected):
    found = table.sides(case)
    assert (found and (found.query, found.gallery, found.transformed)) == expected


@pytest.mark.parametrize("side, transformed", [("gallery", True), ("query", True), (None, False)])
def test_what_a_record_says_of_its_sides_counts_not_its_name(side, transformed):
    told = {"query_model": "v 2", "gallery_model": "v (1)", "side": side}
    assert table.sides_of({"case": "a/b", **told}) == table.Sides("v 2", "v (1)", transformed)
    # Results of before, and evaluations of two columns, have the name alone.
    assert table.sides_of({"case": "new/T(old) x"}) == table.Sides("new", "old", True)
    records = [
        {**record("before", top1=0.4), "query_model": "v (1)", "gallery_model": "v (1)"},
        {**record("after", "fct", top1=0.5), **told},
        {**record("anew", top1=0.6), "query_model": "v 2", "gallery_model": "v 2"},
    ]
    made = table.rows(records)
    assert [table.is_upgrade(row) for row in made] == [False, True, False]
    assert (table.baseline(made)["case"], table.ceiling(made)["case"]) == ("before", "anew")


def test_rows_of_several_seeds():
    top1 = {0: 0.5, 1: 0.53, 2: 0.47}
    upgraded = {0: 0.6, 1: 0.55, 2: 0.61}
    records = []
    for seed in (2, 0, 1):
        records.append(record("old/old", top1=top1[seed], seed=seed))
        records.append(record("new/T(old) fct", "fct", top1=upgraded[seed], seed=seed))
    old, fct = table.rows(records)
    assert [old["case"], fct["case"]] == ["old/old", "new/T(old) fct"]
    assert old["seeds"] == [2, 0, 1]
    values = fct["metrics"]["top-1"]
    assert values["mean"] == pytest.approx(np.mean(list(upgraded.values())))
    assert values["std"] == pytest.approx(np.std(list(upgraded.values()), ddof=1))
    assert (values["min"], values["max"]) == (0.55, 0.61)
    assert values["low"] is None and values["values"] == upgraded
    gains = [0.6 - 0.5, 0.55 - 0.53, 0.61 - 0.47]
    assert values["gain"] == pytest.approx(np.mean(gains))
    assert values["gain_std"] == pytest.approx(np.std(gains, ddof=1))
    assert old["metrics"]["top-1"]["gain"] is None
    assert fct["metrics"]["mAP"]["mean"] == pytest.approx(np.mean(list(upgraded.values())) - 0.2)


def test_gain_is_paired_over_the_seeds_both_cases_have():
    records = [
        record("old/old", top1=0.5, seed=0),
        record("old/old", top1=0.9, seed=1),
        record("new/T(old)", "fct", top1=0.6, seed=0),
    ]
    values = table.rows(records)[1]["metrics"]["top-1"]
    assert values["gain"] == pytest.approx(0.1)
    assert values["gain_std"] is None and values["low"] == pytest.approx(0.59)


def test_no_gain_over_other_queries():
    records = [record("old/old"), record("new/T(old)", "fct", top1=0.6, num_queries=97)]
    assert table.rows(records)[1]["metrics"]["top-1"]["gain"] is None
    found = verdict.of_study(table.rows(records))[0]
    assert found.status == "unknown" and "same queries" in found.sentence


def test_metrics_may_be_missing():
    bare = {"case": "new/T(old)", "method": "fct", "cmc": {"1": 0.3, "10": 0.9}, "map": None}
    not_finite = record("old/old", top1=float("nan"))
    made = table.rows([bare, not_finite, {"case": "x", "cmc": {}}])
    assert list(made[0]["metrics"]) == ["top-1", "top-5", "top-10", "mAP"]
    assert made[0]["metrics"]["top-5"] is None and made[0]["metrics"]["mAP"] is None
    assert made[0]["metrics"]["top-1"]["low"] is None
    assert made[1]["metrics"]["top-1"] is None
    assert table.shown(made) == ["top-1"]
    assert table.rows([]) == []
    assert "n/a" in table.text([bare, not_finite])


def test_case_falls_back_to_the_models():
    made = table.rows([{**record("", top1=0.5), "case": None}])
    assert made[0]["case"] == "new/old"


def test_a_shared_case_is_split_by_method_and_search():
    scann = {"name": "scann", "leaves": 7}
    records = [
        record("new/T(old)", "fct"),
        record("new/T(old)", "fastfill"),
        record("new/T(old)", "fct", search=scann),
    ]
    names = [row["case"] for row in table.rows(records)]
    assert names[1] == "new/T(old) fastfill"
    assert names[0] == "new/T(old) fct (exact)"
    assert names[2].startswith("new/T(old) fct (") and "scann" in names[2]


def test_approximate_search_is_averaged_over_seeds_whatever_its_recall():
    def scann(seed, recall, leaves=7):
        how = {"name": "scann", "num_leaves": leaves, "recall": recall, "recall_queries": 90 + seed}
        return record("new/T(old)", "fct", 0.5 + 0.1 * seed, seed, search=how)

    records = [scann(0, 0.91), scann(1, 0.93), scann(0, 0.99, leaves=3)]
    first, second = table.rows(records)
    assert first["seeds"] == [0, 1] and second["seeds"] == [0]
    assert first["metrics"]["top-1"]["mean"] == pytest.approx(0.55)
    assert first["case"] == "new/T(old) (scann, num_leaves 7)"


def test_two_records_of_one_seed_are_refused():
    with pytest.raises(InputError, match="case 'old/old': two records of seed 3"):
        table.rows([record("old/old", seed=3), record("old/old", seed=3, top1=0.1)])


def test_baseline_and_ceiling_follow_the_names_of_the_models():
    records = [
        record("v1/v1", top1=0.4),
        record("v2/T(v1) fct", "fct", top1=0.5),
        record("v2/v2", top1=0.6),
    ]
    made = table.rows(records)
    assert table.baseline(made)["case"] == "v1/v1" and table.ceiling(made)["case"] == "v2/v2"
    # With a map of the queries the gallery stays old, so the same two cases frame it.
    made = table.rows([*records[::2], record("T(v2)/v1 ridge", "ridge", top1=0.5)])
    assert table.baseline(made)["case"] == "v1/v1" and table.ceiling(made)["case"] == "v2/v2"


def test_untransformed_is_no_upgrade_and_compatible_training_is():
    made = table.rows([record("new/old"), record("new/old bct", "bct")])
    assert [table.is_upgrade(row) for row in made] == [False, True]


def test_console_table():
    lines = table.text(study()).splitlines()
    assert lines[0].split()[:4] == ["case", "top-1", "top-5", "mAP"]
    assert (
        lines[2].split()
        == "old/old 50.00 [49.00-51.00] 60.00 [59.00-61.00] 30.00 [29.00-31.00]".split()
    )
    assert lines[4].endswith("+10.00 / +10.00 / +10.00")
    assert lines[4].startswith("new/T(old) fct  60.00 [59.00-61.00]")
    assert len({line.index("]") for line in lines[2:6]}) == 1, "columns are aligned"
    assert all(line.isascii() for line in lines), "any console can print it"
    assert "95 % bootstrap interval" in lines[-1] and "over old/old" in lines[-1]


def test_console_table_of_seeds():
    told = table.text(study(0.6, seed=0) + study(0.64, seed=1))
    deviation = 100 * statistics.stdev([0.6, 0.64])
    assert f"62.00 +/- {deviation:.2f}" in told
    assert "standard deviation over 2 seeds" in told and "interval" not in told


def test_markdown_table():
    told = table.markdown([*study(), record("a|b", top1=0.3)])
    lines = told.splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert "| old/old | 50.00 [49.00–51.00] |" in told
    assert "a\\|b" in told
    assert table.markdown([]) == table.text([]) == "no results"


def test_signs():
    assert formats.signed(0.0317) == "+3.17" and formats.signed(-0.5) == "-50.00"
    assert formats.signed(0.00004) == formats.signed(-0.00004) == "0.00"
