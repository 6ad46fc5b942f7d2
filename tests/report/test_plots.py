"""Figures of a report: colours, labels, curves."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import numpy as np
import pytest

from fct_tf.report import (
    backfilling_plots,
    curves,
    line_labels,
    plots,
    table,
)
from fct_tf.report.css import STYLE
from tests.report.records import record, study


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
