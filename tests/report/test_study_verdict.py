"""The verdict of a study's records."""

import pytest

from fct_tf.report import (
    page,
    plots,
    table,
    verdict,
)
from tests.report.records import Reader, record, study


def status(records):
    return verdict.of_study(table.rows(records))[0].status


@pytest.mark.parametrize(
    "upgraded, expected", [(0.6, "better"), (0.4, "worse"), (0.505, "unclear"), (0.495, "unclear")]
)
def test_status(upgraded, expected):
    assert status(study(upgraded)) == expected


def test_verdict_sentence():
    found = verdict.of_study(table.rows(study(0.6)))[0]
    assert found.sentence == (
        "new/T(old) fct reaches 60.00 % top-1, 10.00 points more than old/old (50.00 %); "
        "its 95 % interval, 59.00 to 61.00 %, excludes old/old; "
        "share of the gap from old/old to new/new closed: 50 % in top-1, 50 % in top-5, "
        "50 % in mAP."
    )
    found = verdict.of_study(table.rows(study(0.4)))[0]
    assert found.status == "worse"
    assert "10.00 points less than old/old" in found.sentence
    assert "-50 % in top-1" in found.sentence and "negative: below old/old" in found.sentence
    found = verdict.of_study(table.rows(study(0.505)))[0]
    assert "includes old/old" in found.sentence


def test_verdict_on_metrics_that_disagree():
    records = study(0.6)
    records[2]["map"] = 0.2
    records[2]["confidence"]["map"] = [0.19, 0.21]
    found = verdict.of_study(table.rows(records))[0]
    assert found.status == "mixed"
    assert "mAP goes the other way (-10.00 points)" in found.sentence


def test_a_gap_within_the_interval_has_no_share():
    records = study(0.6)
    records[3] = record("new/new", top1=0.505)
    found = verdict.of_study(table.rows(records))[0]
    assert [c.gap_share for c in found.comparisons] == [None] * 3
    assert "new/new is not clearly better than old/old: no gap to close" in found.sentence


def test_without_intervals_there_is_no_judgement():
    records = study(0.6, confidence=None)
    assert status(records) == "unjudged"
    assert "no interval was computed" in verdict.of_study(table.rows(records))[0].sentence


def test_every_seed_must_be_clear():
    assert status(study(0.6, seed=0) + study(0.62, seed=1)) == "better"
    records = study(0.6, seed=0) + study(0.505, seed=1)
    found = verdict.of_study(table.rows(records))[0]
    assert found.status == "unclear"
    assert (found.comparisons[0].seeds_clear, found.comparisons[0].seeds) == (1, 2)
    assert "in 1 of 2" in found.sentence


def test_the_best_upgrade_comes_first():
    records = [*study(0.55), record("new/T(old) x", "x", top1=0.65)]
    found = verdict.of_study(table.rows(records))
    assert [item.case for item in found] == ["new/T(old) x", "new/T(old) fct"]


@pytest.mark.parametrize(
    "records", [[], [record("old/old")], [record("new/T(old)", "fct")], study()[2:]]
)
def test_nothing_to_compare(records):
    assert status(records) == "unknown"


def test_a_map_of_queries_is_an_upgrade_between_the_same_references(tmp_path):
    records = study(0.45)
    records.insert(3, record("T(new)/old affine_query", "affine_query", top1=0.6))
    for given in (records, [r for r in records if "/T(" not in r["case"]]):
        made = table.rows(given)
        (row,) = (row for row in made if row["case"].startswith("T(new)"))
        assert table.is_upgrade(row)
        assert (table.baseline(made)["case"], table.ceiling(made)["case"]) == ("old/old", "new/new")
        assert row["metrics"]["top-1"]["gain"] == pytest.approx(0.1)
        found = verdict.of_study(made)[0]
        assert (found.case, found.status) == ("T(new)/old affine_query", "better")
        assert (found.base, found.top) == ("old/old", "new/new")
        assert found.comparisons[0].gap_share == pytest.approx(0.5)
        assert "10.00 points more than old/old (50.00 %)" in found.sentence
        assert "compatible: T(new)/old affine_query reaches 60.00 % top-1" in verdict.text(given)
        looks = plots.styles(plots.drawn_cases(made))
        assert looks["old/old"] == plots.OLD and looks["new/new"] == plots.NEW
        assert looks[row["case"]] in plots.UPGRADED
    index = page.write(tmp_path / "report", title="t", records=records)
    assert "T(new)/old affine_query" in Reader(index).text
