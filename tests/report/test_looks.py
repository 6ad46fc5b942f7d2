"""The page in a browser: at a telephone's and a desk's width, in both schemes, by keyboard."""

import json
import re

import matplotlib.image
import numpy as np
import pytest

from fct_tf.report import page, plots
from fct_tf.report.pictures import Example
from tests import browser
from tests.conftest import ROOT
from tests.report.records import Reader

WIDTHS = (400, 1280, 1400)
THEMES = ("light", "dark")


def results(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def examples():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    label = "LATIN SMALL LETTER REVERSED R WITH AN_UNBROKEN_FISHHOOK_AND_TAIL"
    found = [(pixels[k], label if k % 2 else "x") for k in range(5)]
    return [Example(pixels[5], label, found, found[::-1], "new/T(old) fct")] * 6


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A report with all that a report can have, of results as they are."""
    directory = tmp_path_factory.mktemp("looks")
    metrics = directory / "metrics.jsonl"
    steps = [{"step": 20 * k, "loss": 3 / k, "learning_rate": 0.1} for k in range(1, 91)]
    metrics.write_text("".join(json.dumps(step) + "\n" for step in steps))
    facts = {"images": 4200, "classes": 300, "parameters": 742_896, "steps": 650}
    facts |= {"batch_size": 64, "duration_s": 200.4, "backbone": "resnet18", "rows": 9}
    models = ("old", "a_model_with_a_long_name")
    across = [
        {**one, "method": "fct", "seed": 0} for one in results("ann_across_omniglot")["records"]
    ]
    return page.write(
        directory / "report",
        title="Model change: a_name_that_is_long_and_cannot_be_broken_at_any_space_in_it",
        records=results("omniglot_faces"),
        runs=[page.TrainingRun(name, seed, metrics, facts) for name in models for seed in (0, 1)],
        examples=examples(),
        chains=results("omniglot_chain.chains"),
        backfilling=[one for one in results("omniglot.backfilling") if "fastfill" in one["method"]],
        across=across,
        config=results("omniglot.run")["config"],
        command="python -m fct_tf.study --config=configs/omniglot.py --workdir=" + 30 * "long/",
        versions={"numpy": "2"},
    )


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    program = browser.executable()
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(browser.NAMES)}")
    with browser.opened(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


# What needs no browser.


def test_figures_are_small_and_have_few_lines(index):
    figures = list(index.parent.glob("*.svg"))
    assert len(figures) > 30
    for path in figures:
        text = path.read_text()
        assert len(text) < 60_000 and "<text" in text, path.name
    assert set(Reader(index).files) == {
        str(path.relative_to(index.parent)) for path in index.parent.rglob("*.*g")
    }


def test_everything_has_a_name(index):
    read = Reader(index)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and "results" in ids
    for tag, attributes in read.tags:
        if tag == "img":
            assert attributes["alt"], attributes
        if tag == "figure":
            assert attributes["aria-label"], attributes
        if attributes.get("role"):
            assert attributes["aria-label"], attributes
    html = index.read_text()
    assert html.count("<table>") == html.count("<caption") == html.count("</table>") > 10
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))


# What does.

OPEN = "document.querySelectorAll('details').forEach(e => e.open = true)"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(tab, index, width):
    """Neither folded nor with all that unfolds."""
    tab.open(index, width)
    for unfold in ("0", OPEN):
        tab.run(unfold)
        sizes = tab.run("[document.scrollingElement.scrollWidth, innerWidth]")
        assert sizes == [width, width]
        assert tab.run(browser.OVERFLOWING) == []


@pytest.mark.parametrize("theme", THEMES)
def test_figures_are_those_of_the_scheme(tab, index, theme):
    tab.open(index, 1400, theme)
    shown = tab.run("[...document.querySelectorAll('picture img')].map(e => e.currentSrc)")
    assert shown and all(name.endswith(f"-{theme}.svg") for name in shown)


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", (400, 1400))
def test_screenshots(tab, index, tmp_path, width, theme):
    """They lie in pytest's directory, to be looked at; what they must show is checked."""
    tab.open(index, width, theme)
    tab.run("Promise.all([...document.images].map(e => e.decode()))")
    assert tab.run("[...document.images].every(e => e.naturalWidth > 0)")
    tab.screenshot(tmp_path / "page.png")
    pixels = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[1] == width and pixels.shape[0] > 2000
    assert (pixels[0, 0].mean() > 0.5) == (theme == "light")  # The page itself.
    card = np.array([int(plots.CARD[theme][at : at + 2], 16) for at in (1, 3, 5)]) / 255
    assert (np.abs(pixels - card).max(axis=-1) < 0.01).mean() > 0.3


def test_the_answer_the_chart_and_the_table_come_first(tab, index):
    """On a desk the answer and the beginning of the chart need no scrolling."""
    tab.open(index, 1400)
    tops = tab.run("['.verdict', '#gain', '#results'].map(e => "
                   "document.querySelector(e).getBoundingClientRect().top)")  # fmt: skip
    assert tops == sorted(tops) and tops[1] < 450


def test_by_keyboard(tab, index):
    """The first key press leads past the top, and all that unfolds is reached and unfolds."""
    tab.open(index, 1280)
    focused = "document.activeElement"
    tab.press("Tab")
    assert tab.run(f"{focused}.className") == "skip"
    assert tab.run(f"{focused}.getBoundingClientRect().top") >= 0
    tab.press("Enter")
    assert tab.run("location.hash") == "#results"
    summaries = tab.run("document.querySelectorAll('summary').length")
    reached = 0
    for _ in range(100):
        tab.press("Tab")
        if tab.run(f"{focused}.tagName") != "SUMMARY":
            continue
        assert tab.run(f"getComputedStyle({focused}).outlineStyle") == "solid"
        tab.press("Enter")
        assert tab.run(f"{focused}.parentElement.open")
        reached += 1
        tab.press("Enter")  # Closed again: what is in it would be reached next.
        if reached == summaries:
            break
    assert reached == summaries > 5


def test_what_a_screen_reader_says(tab, index):
    tab.open(index, 400)
    tab.run(OPEN)
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    said: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            name = node.get("name", {}).get("value", "")
            said.setdefault(node["role"]["value"], []).append(name)
    for role in ("image", "figure", "table", "heading", "link"):
        assert said[role] and all(said[role]), role
    # On a telephone lines become blocks, and a table is a table all the same.
    assert len(said["table"]) > 10 and "Results" in said["table"] and said["rowheader"]
    gains = [text for text in said["StaticText"] if text in (", clearly above", ", clearly below")]
    assert gains
