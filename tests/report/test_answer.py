"""The top of the page: one sentence, one chart, one table; from records written by hand."""

import json
import re

import pytest

from fct_tf.report import gain_chart, methods, page, results_page, table, verdict, verdict_page
from tests.conftest import ROOT
from tests.report.records import Reader, record
from tests.report.test_methods import COST, estimate, upgrade


def plain(html):
    """The text of HTML, with hyphens for minus signs."""
    text = re.sub(r"<[^>]+>", "", re.sub(r"</(?:p|li|small)>|<small>|<br>", "\n", html))
    return text.replace("−", "-").replace("\u00a0", " ")


def answer(records):
    """What the card says: (badge, sentence, facts, the large figure)."""
    made = table.rows(records)
    found = verdict.by_gain([row for row in made if not row["remaining"]])
    html = verdict_page.section(found, {row["case"]: row for row in methods.rows(records)})
    told = [re.search(rf'<p class="{name}"[^>]*>(.*?)</p>', html) for name in ("badge", "answer")]
    badge, sentence = (plain(one[1]) if one else "" for one in told)
    facts = [plain(item) for item in re.findall("<li>(.*?)</li>", html)]
    big = re.search(r'<p class="big"[^>]*>(.*?)<small>', html)
    return badge, sentence, facts, plain(big[1]) if big else ""


def judged(case, top1, interval, method="fct", cost=COST, seed=0, mean_precision=None, **changes):
    """An upgraded case beside an old/old of 50 % top-1 and 30 % mAP."""
    made = upgrade(case, method, 0.5, seed=seed, cost=cost, top1=top1, **changes)
    low, high = interval
    half = (high - low) / 2
    made["criterion"]["cmc@1"] = {"mean": top1 - 0.5, "low": low, "high": high, "holds": low > 0}
    if mean_precision is not None:
        made["map"] = mean_precision
        gain = mean_precision - 0.3
        made["criterion"]["map"] = {"mean": gain, "low": gain - half, "high": gain + half}
    return made


def study(*upgraded, seed=0, top=0.7):
    return [
        record("old/old", top1=0.5, seed=seed),
        *upgraded,
        record("new/new", top1=top, seed=seed),
    ]


PAIRS = {**COST, "reembedded_share": 0.2, "reembed_million_rows_s": 45.0}
FUSED = {**COST, "query_encoders": 2}
MODELS = {"query_model": "new", "gallery_model": "old", "side": "gallery"}


@pytest.mark.parametrize(
    "upgraded, badge, sentence, facts",
    [
        (
            [judged("new/T(old) fct", 0.6, (0.08, 0.12))],
            "▲ Compatible",
            "new/T(old) fct finds a right row first for 60.00 % of queries, 10.00 points more "
            "than old/old; no row is re-embedded.",
            [
                "95 % interval +8.00 to +12.00 points",
                "50 % of the way to new/new",
                "3.12 % of queries lose their right row",
                "1 min 15 s for a million rows",
            ],
        ),
        (
            [
                judged("new/T(old) fct", 0.6, (0.08, 0.12)),
                judged("new/T(old) p", 0.65, (0.13, 0.17), "p", PAIRS),
            ],
            "▲ Compatible",
            "new/T(old) p finds a right row first for 65.00 % of queries, 15.00 points more than "
            "old/old; 20 % of rows are re-embedded.",
            ["best of 2 by top-1", "95 % interval +13.00 to +17.00 points"],
        ),
        (
            [judged("old+new/old+T(old) f", 0.6, (0.08, 0.12), cost=FUSED, **MODELS)],
            "▲ Compatible",
            "old+new/old+T(old) f finds a right row first for 60.00 % of queries, 10.00 points "
            "more than old/old; no row is re-embedded and both models embed each query.",
            [],
        ),
        (
            [
                judged("new/T(old) a", 0.4, (-0.12, -0.08), mean_precision=0.2),
                judged("new/T(old) b", 0.3, (-0.22, -0.18), "b", mean_precision=0.1),
            ],
            "▼ Not compatible",
            "None of 2 upgrades is clearly better: the best, new/T(old) a, finds a right row first "
            "for 40.00 % of queries, 10.00 points less than old/old; no row is re-embedded.",
            ["best of 2 by top-1", "95 % interval -12.00 to -8.00 points"],
        ),
        (  # Its own interval would say that it is clear.
            [judged("new/T(old) a", 0.53, (-0.01, 0.07), mean_precision=0.33)],
            "● Undecided",
            "new/T(old) a finds a right row first for 53.00 % of queries, 3.00 points more than "
            "old/old; no row is re-embedded.",
            ["95 % interval -1.00 to +7.00 points"],
        ),
        (  # The metric that tells comes first.
            [judged("new/T(old) a", 0.49, (-0.02, 0.0), mean_precision=0.36)],
            "▲ Compatible",
            "new/T(old) a reaches 36.00 % mAP, 6.00 points more than old/old; no row is "
            "re-embedded.",
            ["95 % interval +5.00 to +7.00 points", "top-1 -1.00 points, not clear"],
        ),
        (
            [judged("new/T(old) a", 0.6, (0.08, 0.12), mean_precision=0.2)],
            "◆ Undecided",
            "new/T(old) a finds a right row first for 60.00 % of queries, 10.00 points more than "
            "old/old; no row is re-embedded.",
            ["95 % interval +8.00 to +12.00 points", "mAP -10.00 points"],
        ),
        (
            [record("new/T(old) a", "a", 0.5, confidence=None)],
            "○ Not judged",
            "new/T(old) a finds a right row first for 50.00 % of queries, as much as old/old.",
            ["measured without intervals"],
        ),
    ],
)  # fmt: skip
def test_the_answer_is_a_sentence(upgraded, badge, sentence, facts):
    records = study(*upgraded)
    if upgraded[0]["confidence"] is None:
        records = [{**one, "confidence": None} for one in records]
    # Top-5 has no interval of its own difference here: it is as top-1.
    for one in records:
        one["cmc"] = {"1": one["cmc"]["1"]}
    told = answer(records)
    assert told[:2] == (badge, sentence) and told[2][: len(facts)] == facts
    assert told[3].lstrip("+-") in sentence or "as much as" in sentence


def test_the_answer_tells_what_the_new_model_loses():
    bct = {**COST, "transformation_s": 0.0, "upgrade_million_rows_s": 0.0}
    lost = {"cmc@1": estimate(0.04), "map": estimate(0.05)}
    own = record("bct/bct", "bct", top1=0.66, new_lost=lost, free_model="new")
    records = study(judged("bct/old", 0.55, (0.03, 0.07), "bct", bct), own)
    _, sentence, facts, _ = answer(records)
    assert sentence.endswith(
        "than old/old; no row is re-embedded and the new model loses 4.00 points by it."
    )
    assert not any("million" in fact for fact in facts)


def test_rows_that_were_re_embedded_are_told_where_costs_are_not_known():
    one = record("new/T(old) p", "p", 0.6, pairs=0.05)
    assert answer(study(one))[1].endswith("than old/old; 5 % of rows are re-embedded.")
    assert answer(study({**one, "pairs": None}))[1].endswith("more than old/old.")


def test_the_answer_over_seeds():
    records = []
    for seed, top1 in enumerate((0.56, 0.6, 0.61)):
        low, high = top1 - 0.52, top1 - 0.48
        records += study(judged("new/T(old) fct", top1, (low, high), seed=seed), seed=seed)
    _, sentence, facts, big = answer(records)
    assert "59.00 % of queries, 9.00 points more" in sentence and big == "+9.00"
    assert facts[0] == "± 2.65 points over 3 seeds, clear in 3 of them"


@pytest.mark.parametrize("records", [[], study()[:1], [record("new/T(old)", "fct")]])
def test_without_a_comparison_the_card_says_why(records):
    found = verdict.by_gain(table.rows(records))
    html = verdict_page.section(found, {})
    assert "Not judged" in html and found[0].sentence.split(" ")[0] in html
    assert gain_chart.section(found, table.rows(records)) == ""


def drawn(records):
    made = table.rows(records)
    found = verdict.by_gain([row for row in made if not row["remaining"]])
    return gain_chart.section(found[::-1], made)  # In whatever order.


def marks(html):
    """Of each line of the chart: tone, name, figure and interval, places of bar and mark."""
    items = re.findall(r'<li class="(\w+)">(.*?)</li>', html)
    found = []
    for tone, item in items:
        name = plain(re.search(r'class="name">(.*?)</span>', item)[1])
        value, small = (
            plain(one) for one in re.search(r"<b>(.*?)</b><small>(.*?)</s", item).groups()
        )
        places = [float(one) for one in re.findall(r"--\w+:([\d.]+)%", item)]
        found.append((tone, name, value, small, places))
    return found


def test_the_chart_has_a_mark_per_upgrade_by_gain():
    remaining = judged("new/T(old) c (remaining 80 %)", 0.9, (0.3, 0.5), "c", scoring="remaining")
    html = drawn(
        study(
            judged("new/T(old) a", 0.52, (-0.02, 0.06), "a"),
            judged("T(new)/old b", 0.45, (-0.07, -0.03), "b"),
            judged("new/T(old) c", 0.6, (0.08, 0.12), "c"),
            remaining,
            record("new/old", top1=0.01),
        )
    )
    assert [mark[:4] for mark in marks(html)] == [
        ("better", "new/T(old) c", "+10.00", "+8.00 to +12.00"),
        ("unclear", "new/T(old) a", "+2.00", "-2.00 to +6.00"),
        ("worse", "T(new)/old b", "-5.00", "-7.00 to -3.00"),
    ]
    # From -7 to +20 points, where new/new is, with 4 % at both ends.
    span, low = 0.27 * 1.08, -0.07 - 0.27 * 0.04
    for (*_, places), expected in zip(
        marks(html), [(0.08, 0.12, 0.1), (-0.02, 0.06, 0.02), (-0.07, -0.03, -0.05)], strict=True
    ):
        assert places == pytest.approx([100 * (x - low) / span for x in expected], abs=0.01)
    zero, top = (float(re.search(rf"--{name}:([\d.]+)%", html)[1]) for name in ("zero", "top"))
    assert (zero, top) == pytest.approx((100 * -low / span, 100 * (0.2 - low) / span), abs=0.01)
    assert "bars: 95 % interval of the difference" in html and "new/new: everything" in html


def test_a_gain_far_below_does_not_flatten_the_others():
    far = judged("new/T(old) far", 0.1, (-0.42, -0.38), "far")
    html = drawn(study(judged("new/T(old) a", 0.52, (-0.02, 0.06), "a"), far))
    assert [mark[2] for mark in marks(html)] == ["+2.00", "-40.00"]
    assert marks(html)[1][4] == [] and "off the scale" in html
    assert float(re.search(r"--zero:([\d.]+)%", html)[1]) < 25
    # Alone it is all there is.
    assert "off the scale" in drawn(study(far))


@pytest.mark.parametrize("known", [True, False])
def test_a_gain_without_an_interval_is_a_mark_alone(known):
    one = record("new/T(old) a", "a", 0.6, confidence=None)
    if known:
        one = judged("new/T(old) a", 0.6, (0.08, 0.12), "a")
    (mark,) = marks(drawn(study(one)))
    assert len(mark[4]) == (3 if known else 1)
    assert mark[3] == ("+8.00 to +12.00" if known else "")


def test_the_chart_over_seeds_spans_the_deviation():
    records = []
    for seed, top1 in enumerate((0.56, 0.6, 0.61)):
        records += study(judged("new/T(old) a", top1, (0.01, 0.2), seed=seed), seed=seed)
    html = drawn(records)
    assert marks(html)[0][:4] == ("better", "new/T(old) a", "+9.00", "± 2.65")
    assert "bars: standard deviation over 3 seeds" in html


def test_upgrades_of_several_galleries_are_each_compared_with_their_own():
    first = {"query_model": "v2", "gallery_model": "v1", "side": "gallery"}
    second = {"query_model": "v3", "gallery_model": "v2", "side": "gallery"}
    records = [
        record("v1/v1", top1=0.3),
        record("v2/v2", top1=0.5),
        {**judged("v2/T(v1) a", 0.4, (0.08, 0.12), "a"), **first},
        {**judged("v3/T(v2) b", 0.45, (-0.07, -0.03), "b"), **second},
    ]
    html = drawn(records)
    assert [mark[1:3] for mark in marks(html)] == [
        ("v2/T(v1) a", "+10.00"), ("v3/T(v2) b", "-5.00"),
    ]  # fmt: skip
    assert "over each gallery before its change" in html and "--top" not in html
    assert "v2/T(v1) a finds a right row first for 40.00 % of queries" in answer(records)[1]


def results(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    "name", ["quickstart", "omniglot", "glyphs", "text_rows", "tiny_imagenet100_fct",
             "omniglot_fct", "omniglot_chain", "omniglot_faces", "reference_rows"]
)  # fmt: skip
def test_the_table_has_at_most_six_columns_on_the_change(name):
    """Everything else is there on demand."""
    records = results(name)
    made = table.rows(records)
    found = verdict.by_gain([row for row in made if not row["remaining"]])
    html = results_page.section(made, found, {row["case"]: row for row in methods.rows(records)})
    first, *others = re.findall(r"<table>.*?</table>", html, re.S)
    heads = re.findall(r'<th scope="col">', first)
    assert 3 < len(heads) <= 6
    shown = [plain(one).split("\n")[0] for one in re.findall(r'<th scope="row".*?</th>', first)]
    metrics = {row["case"]: row["metrics"][table.shown(made)[0]]["mean"] for row in made}
    values = [metrics[case] for case in shown]
    assert values == sorted(values, reverse=True)
    upgrades = {row["case"] for row in made if table.is_upgrade(row) and not row["remaining"]}
    assert upgrades <= set(shown) and not any("remaining" in case for case in shown)
    assert table.baseline(made)["case"] in shown and table.ceiling(made)["case"] in shown
    every = {plain(one) for one in re.findall(r'<th scope="row".*?</th>', others[0])}
    assert every == set(metrics)
    # What the chart shows is what the table says.
    gains = [mark[1] for mark in marks(gain_chart.section(found, made))]
    assert sorted(gains) == sorted(upgrades)


def test_no_mark_contradicts_the_interval_that_is_drawn():
    for name in ("quickstart", "omniglot", "glyphs", "text_rows", "omniglot_faces"):
        for tone, case, value, small, _ in marks(drawn(results(name))):
            low, high = (float(end) for end in small.split(" to "))
            assert low <= float(value) <= high, (name, case)
            assert tone == ("better" if low > 0 else "worse" if high < 0 else "unclear") or 0 in (
                low, high
            ), (name, case)  # fmt: skip


def test_the_order_of_the_page(tmp_path):
    """What a reader wants first stands first."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 20, "loss": 3}\n{"step": 40, "loss": 2}\n')
    run = page.TrainingRun("old", 0, metrics, {"parameters": 7})
    index = page.write(
        tmp_path / "report",
        title="t",
        records=study(judged("new/T(old) fct", 0.6, (0.08, 0.12))),
        runs=[run],
        backfilling=results("text_rows.backfilling"),
        command="x",
    )
    read = Reader(index)
    ids = [
        attributes["id"] for tag, attributes in read.tags if tag == "section" and "id" in attributes
    ]
    assert ids == ["gain", "results", "ranks", "backfilling", "trained", "costs", "repeat"]
    first = next(attributes for tag, attributes in read.tags if tag == "section")
    assert first["aria-label"] == "Verdict"
