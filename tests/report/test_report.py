"""The report: rows, verdicts, figures and the page."""

import json
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from fct_tf.common import formats
from fct_tf.common.errors import InputError
from fct_tf.report import (
    backfilling_plots,
    chain_tables,
    curves,
    line_labels,
    page,
    plots,
    table,
    training_page,
    verdict,
)
from fct_tf.report.css import STYLE
from fct_tf.report.pictures import Example


def record(case, method="independent", top1=0.5, seed=0, half_width=0.01, **changes):
    """A record as `evaluate` and `study` write it; top-5 and mAP follow from top-1."""
    cmc = {"1": top1, "5": top1 + 0.1}
    made = {
        "query": {"path": "g", "version": 1, "column": "q", "space": "aa", "model": "new"},
        "gallery": {"path": "g", "version": 1, "column": "g", "space": "bb", "model": "old"},
        "num_queries": 101,
        "num_gallery": 103,
        "distance": "l2",
        "search": "exact",
        "cmc": cmc,
        "map": top1 - 0.2,
        "confidence": {
            "cmc": {k: [value - half_width, value + half_width] for k, value in cmc.items()},
            "map": [top1 - 0.2 - half_width, top1 - 0.2 + half_width],
        },
        "case": case,
        "method": method,
        "seed": seed,
    }
    return {**made, **changes}


def study(upgraded=0.6, seed=0, **changes):
    return [
        record("old/old", top1=0.5, seed=seed, **changes),
        record("new/old", top1=0.21, seed=seed, **changes),
        record("new/T(old) fct", "fct", top1=upgraded, seed=seed, **changes),
        record("new/new", top1=0.7, seed=seed, **changes),
    ]


def status(records):
    return verdict.of_study(table.rows(records))[0].status


def image(value=0, shape=(7, 5, 3)):
    return np.full(shape, value, np.uint8)


class Reader(HTMLParser):
    """Checks that elements nest; collects text, files referred to and attributes."""

    VOID = {"meta", "img", "source", "br", "wbr"}

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text, self.files = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        files = [value for name, value in attrs if name in ("src", "srcset", "href")]
        self.files += [name for name in files if not name.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


# Rows


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


# Text


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


# Verdict


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


# Figures


def test_at_most_five_cases_are_drawn_each_in_a_colour_of_its_own():
    tops = {"a": 0.61, "b": 0.64, "c": 0.63, "d": 0.62}
    records = [*study(), record("side_info/side_info", "side_info")]
    records += [record(f"new/T(old) {name}", name, top1) for name, top1 in tops.items()]
    records.append(record("new/T(old) a (remaining 80 %)", "a", 0.9, scoring="remaining"))
    for given in (records, records[::-1]):
        drawn = plots.drawn_cases(table.rows(given))
        names = [row["case"] for row in drawn]
        assert names == ["old/old", "new/new", *(f"new/T(old) {name}" for name in "bcd")]
        looks = plots.styles(drawn)
        assert (looks["old/old"], looks["new/new"]) == (plots.OLD, plots.NEW)
        assert len({look.light for look in looks.values()}) == plots.MOST_LINES
    without = plots.drawn_cases(table.rows([record(f"c{k}") for k in range(9)]))
    assert len(without) == len(plots.styles(without)) == plots.MOST_LINES


def contrast(one, other):
    """Contrast ratio of WCAG 2 between two #rrggbb colours."""

    def luminance(color):
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", plots.THEMES)
def test_lines_can_be_read_as_text_on_both_backgrounds(theme):
    """Each bears its name in its colour."""
    looks = [plots.OLD, plots.NEW, *plots.UPGRADED, *backfilling_plots._STYLES.values()]
    for color in (plots.INK[theme], *(look.color(theme) for look in looks)):
        assert contrast(color, plots.CARD[theme]) >= 4.5, color


def palette(theme):
    """The variables of the style sheet."""
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")[:2]
    found = {}
    for part in (light, dark.split("* {")[0])[: 1 + (theme == "dark")]:
        found |= dict(re.findall(r"--(\w+): (#\w{6});", part))
    return found


def mixed(color, share, ground):
    """`share` of a colour over a ground, as `color-mix` with transparent paints it."""
    channels = [[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in (color, ground)]
    return "#" + "".join(
        f"{round(share * a + (1 - share) * b):02x}" for a, b in zip(*channels, strict=True)
    )


@pytest.mark.parametrize("theme", plots.THEMES)
def test_text_stands_out_in_both_schemes(theme):
    colors = palette(theme)
    assert colors["card"] == plots.CARD[theme]
    for ground in ("page", "card", "code"):
        for text in ("ink", "soft", "accent", "good", "bad", "warn"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for ground in ("good", "bad"):  # Signs on pictures.
        assert contrast(colors["card"], colors[ground]) >= 4.5, ground
    share = int(re.search(r"var\(--shade\) \* (\d+)%", STYLE)[1]) / 100
    darkest = mixed(colors["accent"], share, colors["card"])
    for text in ("ink", "good", "bad"):
        assert contrast(colors[text], darkest) >= 4.5, text


@pytest.mark.parametrize("suffix", ["svg", "png"])
@pytest.mark.parametrize("records", [study(), study()[:1], [{"case": "$a_b$", "cmc": {"1": 0.5}}]])
def test_figures_are_written(tmp_path, records, suffix):
    for theme in plots.THEMES:
        path = tmp_path / f"cmc.{suffix}"
        plots.cmc(plots.drawn_cases(table.rows(records)), path, theme)
        if suffix == "svg":
            root = ElementTree.parse(path).getroot()
            texts = {
                "".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")
            }
            assert {one["case"] for one in records} - {"new/old"} <= texts  # Names, not a legend.
            assert not re.search(r"<[^<>]*\d\.\d{3}", path.read_text())
        else:
            assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.3


def test_equal_data_gives_equal_figures(tmp_path):
    for name in ("a", "b"):
        plots.cmc(table.rows(study()), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def drawn_labels(courses):
    """Boxes of the labels of lines, and the lines' names that stand in them."""
    with matplotlib.rc_context(plots.settings("light")):
        figure, axes = plots.panel()
        for name, course in courses.items():
            axes.plot(np.arange(len(course)), course, label=name)
        line_labels.write(axes)
        return {text.get_text(): text.get_window_extent() for text in axes.texts}, axes.bbox


@pytest.mark.parametrize(
    "courses",
    [
        {
            name: np.linspace(0, 1, 20) ** power
            for name, power in zip("abcde", range(1, 6), strict=True)
        },
        {f"a rather long name {k}": 60 + k + 10 * np.log1p(np.arange(9)) for k in range(5)},
        {name: np.ones(5) for name in ("one", "and the same")},
        {"a point": np.ones(1)},
    ],
)
def test_each_line_bears_its_name_and_no_name_hides_another(courses):
    boxes, axes = drawn_labels(courses)
    assert set(boxes) == set(courses)
    for name, box in boxes.items():
        assert axes.x0 <= box.x0 and box.x1 <= axes.x1, name
        assert not any(box.overlaps(other) for at, other in boxes.items() if at != name)


def test_read_curve(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 40, "loss": 2.5, "learning_rate": 0.1}\n'
        '{"step": 20, "loss": 3.5}\n'
        '{"step": 60, "loss": NaN, "learning_rate": 0.1}\n'
        '[1]\n\n{"loss": 1}\n{"step": 80, "lo'
    )
    curve = curves.read_curve(path, "seed 0")
    assert curve.steps.tolist() == [20, 40] and curve.loss.tolist() == [3.5, 2.5]
    assert np.isnan(curve.learning_rate[0]) and curve.learning_rate[1] == 0.1
    assert curves.read_curve(tmp_path / "missing") is None
    path.write_text("")
    assert curves.read_curve(path) is None
    assert curves.read_curve(tmp_path) is None


@pytest.mark.parametrize("length", [1, 2, 59, 61, 4999])
@pytest.mark.parametrize("rate", [0.1, float("nan")])
def test_loss_curves_of_any_length(tmp_path, length, rate):
    curve = curves.Curve(
        "seed 0",
        np.arange(1, length + 1) * 20,
        np.geomspace(100, 1e-3, length),
        np.full(length, rate),
    )
    curves.loss([curve, curve][: 1 + length % 2], tmp_path / "loss.svg", "dark")
    assert (tmp_path / "loss.svg").stat().st_size < 60_000


def test_thinned_curve_keeps_the_mean():
    x, y = np.arange(4999), np.random.default_rng(0).normal(size=4999)
    steps, values = curves._thinned(x, y)
    assert len(steps) <= curves._MAX_POINTS
    assert values[0] == pytest.approx(y[:13].mean()) and steps[0] == 6
    assert values[-1] == pytest.approx(y[4992:].mean())


# Page


def runs(tmp_path, seeds=(0,)):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 20 * i, "loss": 3 / i, "learning_rate": 0.1} for i in range(1, 91)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"backbone": "resnet18", "parameters": 7380000, "duration_s": 200.4, "batch size": 128}
    made = []
    for seed in seeds:
        made.append(page.TrainingRun("old", seed, path, facts))
        made.append(page.TrainingRun("<new>", seed, tmp_path / "missing", {"note": "a & b"}))
    return made


def test_page(tmp_path):
    label = 'A<u>&"c"'
    example = Example(
        *(image(10), label, [(image(20), "wrong<u>"), (image(30), label)], [(image(30), label)]),
        case="new/T(old) fct",
    )
    index = page.write(
        tmp_path / "report",
        title="<script>alert(1)</script> & co",
        records=study(),
        runs=runs(tmp_path),
        examples=[example],
        config={"name": "x</pre><u>", "nested": {"epochs": 12}},
        command="python -m fct_tf.study --config='<a>'",
        versions={"numpy": "2.<0>"},
    )
    assert index == tmp_path / "report" / "index.html"
    read = Reader(index)
    tags = [tag for tag, _ in read.tags]
    assert "script" not in tags and "u" not in tags and tags.count("h1") == 1
    for told in (
        "<script>alert(1)</script> & co",
        "Compatible",
        "10.00 points more than old/old",
        "101 queries",
        "L2 distance",
        "7,380,000",
        "3 min 20 s",
        "<new>",
        "No training metrics were found",
        label,
        "wrong<u>",
        "1 of 2 right",
        "1 of 1 right",
        '"nested": {',
        "--config='<a>'",
        "2.<0>",
        "before and after the upgrade (new/T(old) fct)",
    ):
        assert told in read.text.replace("\u00a0", " "), told
    assert read.files and all((index.parent / name).is_file() for name in read.files)
    assert not any(":" in name or name.startswith("/") for name in read.files), "no network"
    alternatives = [attributes["alt"] for tag, attributes in read.tags if tag == "img"]
    assert f"right: {label}" in alternatives and "wrong: wrong<u>" in alternatives
    # One file for each image, also where it is shown twice.
    assert len(list((index.parent / "images").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_images_are_written_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    example = Example(pixels, "a", [(pixels[:, :, 0], "a"), (pixels[:, :, :1], "b")], [])
    index = page.write(tmp_path / "report", title="t", records=study(), examples=[example])
    written = sorted(
        (matplotlib.image.imread(path)[..., :3] * 255).round().astype(np.uint8).tolist()
        for path in (index.parent / "images").iterdir()
    )
    gray = np.repeat(pixels[:, :, :1], 3, axis=2)
    assert written == sorted([pixels.tolist(), gray.tolist()])


def test_page_of_several_seeds(tmp_path):
    records = study(0.6, seed=0) + study(0.64, seed=1)
    index = page.write(
        tmp_path / "report", title="t", records=records, runs=runs(tmp_path, seeds=(0, 1))
    )
    told = Reader(index).text
    assert "2 seeds" in told and "every seed" in told and "± 2.83" in told
    assert "± 2.83 points over 2 seeds, clear in 2 of them" in told


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("old/old")],
        [{"case": "a", "cmc": {}, "map": None}],
        study(0.4, map=None, confidence=None),
        [{**record("old/old"), "cmc": {}}],
    ],
)
def test_page_of_little(tmp_path, records):
    index = page.write(tmp_path / "report", title="t", records=records)
    read = Reader(index)
    assert all((index.parent / name).is_file() for name in read.files)


def test_a_report_is_replaced_and_nothing_else_is(tmp_path):
    for title in ("first", "second"):
        index = page.write(tmp_path / "report", title=title, records=study())
    assert "second" in Reader(index).text
    other = tmp_path / "photos"
    other.mkdir()
    (other / "index.html").write_text("<html>mine</html>")
    for path in (other, other / "index.html"):
        with pytest.raises(InputError, match="is no report"):
            page.write(path, title="t", records=study())
    assert (other / "index.html").read_text() == "<html>mine</html>"


def test_a_failed_report_leaves_the_old_one(tmp_path):
    index = page.write(tmp_path / "report", title="first", records=study())
    bad = Example(np.zeros((3, 3, 3), np.float32), "<x>", [], [])
    with pytest.raises(
        InputError, match=r"example image of '<x>': .* received float32 \[3, 3, 3\]"
    ):
        page.write(tmp_path / "report", title="second", records=study(), examples=[bad])
    assert "first" in Reader(index).text
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


# Maps of queries


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


# Chains of versions


def chains():
    """Two chains of three versions, worked out by hand."""

    def values(matrix, ac, am):
        seeds = {"0": {"matrix": matrix, "ac": ac, "am": am}}
        return {"matrix": matrix, "ac": ac, "am": am, "seeds": seeds}

    low, high = [[[0.3], [0.01, 0.4], [0.02, 0.03, 0.5]], [[0.3], [0.31, 0.4], [0.32, 0.39, 0.5]]]
    return {
        "alone": {
            "versions": ["v1", "v2", "v3"],
            "metrics": {"cmc@1": values(low, 0.0, 0.21), "map": values(low, 0.0, 0.21)},
        },
        "a|<b>": {
            "versions": ["v1", "v2|x", "v3<y>"],
            "metrics": {"cmc@1": values(high, 2 / 3, 0.37), "map": values(high, 2 / 3, 0.37)},
        },
    }


def test_chains_as_text():
    lines = chain_tables.text(chains()).splitlines()
    assert lines[14:20] == [
        "a|<b>, top-1       v1     v2|x  v3<y>",
        "------------  -------  -------  -----",
        "v1            30.00",
        "v2|x          31.00 +  40.00",
        "v3<y>         32.00 +  39.00 -  50.00",
        "AC 0.67, AM 37.00",
    ]
    assert "alone, mAP" in lines[7] and lines[-1].startswith("Percent; row: version of the queries")
    assert "seeds" not in lines[-1]


def test_chains_as_markdown():
    blocks = chain_tables.markdown(chains()).split("\n\n")
    assert blocks[4].splitlines() == [
        r"| a\|<b>, top-1 | v1 | v2\|x | v3<y> |",
        "| --- | ---: | ---: | ---: |",
        "| v1 | 30.00 |  |  |",
        r"| v2\|x | 31.00 ▲ | 40.00 |  |",
        "| v3<y> | 32.00 ▲ | 39.00 ▼ | 50.00 |",
    ]
    assert blocks[5] == "AC 0.67, AM 37.00"


def test_chains_on_the_page(tmp_path):
    several = chains()
    several["alone"]["metrics"]["map"]["seeds"]["1"] = {}
    index = page.write(tmp_path / "report", title="t", records=study(), chains=several)
    read = Reader(index)
    for told in ("Chains of versions", "a|<b>", "v3<y>", "31.00 ▲", "39.00 ▼", "0.67", "2 seeds"):
        assert told in read.text, told
    shades = [
        attributes["style"]
        for tag, attributes in read.tags
        if tag == "td" and attributes.get("class") == "shade"
    ]
    # One scale for both chains: 1 % is the least, 50 % the greatest.
    assert len(shades) == 24 and shades[1] == "--shade:0.00" and shades[5] == "--shade:1.00"
    assert shades[12] == f"--shade:{0.29 / 0.49:.2f}"
    without = page.write(tmp_path / "other", title="t", records=study())
    assert "Chains" not in Reader(without).text


def test_chains_that_are_all_the_same_have_no_shade():
    made = chains()
    del made["alone"]
    made["a|<b>"]["metrics"]["map"]["matrix"] = [[0.5], [0.5, 0.5], [0.5, 0.5, 0.5]]
    assert chain_tables.section(made).count("--shade:0.00") == 6 + 1


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("duration_s", 7.25, "7.2 s"),
        ("duration_s", 59.7, "1 min 0 s"),
        ("duration_s", 7265, "2 h 1 min"),
        ("images_per_s", 2134.7, "2,134.7"),
        ("size_bytes", 29_500_000, "29.5 MB"),
        ("loss", 0.00012345, "0.0001234"),
        ("classes", 964, "964"),
        ("frozen", True, "yes"),
        ("missing", None, "–"),
        ("loss", float("nan"), "–"),
        ("name", "resnet18", "resnet18"),
    ],
)
def test_facts(key, value, expected):
    assert training_page.fact(key, value) == expected


def test_imports_no_tensorflow():
    code = "import sys, fct_tf.report.page; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
