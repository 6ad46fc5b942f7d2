"""The figures of the pages: drawn from the results beside them, and small."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from fct_tf.common.files import read_json
from fct_tf.report import plots
from tests.conftest import ROOT

MOST_BYTES = 60_000
RESULTS = ROOT / "results"
COMMITTED = sorted(
    path for folder in ("results", "docs") for path in (ROOT / folder).rglob("*.svg")
)
BY_HAND = {"docs/upgrade.svg"}


def shapes(path):
    """The texts of an SVG in order, and all coordinates of its paths."""
    root = ElementTree.parse(path).getroot()
    name = "{http://www.w3.org/2000/svg}"
    texts = ["".join(text.itertext()) for text in root.iter(f"{name}text")]
    paths = " ".join(one.get("d") for one in root.iter(f"{name}path"))
    return texts, np.array([float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", paths)])


def pairs(figures, path):
    figures.plot_pairs(read_json(RESULTS / "reference_rows_pairs.json"), path)


def policies(figures, path):
    figures.plot_policies(read_json(RESULTS / "reference_rows_fastfill.json"), path)


def load(serving_load, path):
    serving_load.plot(read_json(RESULTS / "serving_load.json"), path)


def libraries(comparison, path):
    found = read_json(RESULTS / "ann_comparison.json")["results"]
    comparison.draw([one for one in found if one["library"] != "exact"], path.parent)


DRAWN = {
    "results/reference_rows_pairs.svg": ("reference_rows_figures", pairs),
    "results/reference_rows_fastfill.svg": ("reference_rows_figures", policies),
    "results/serving_load.svg": ("serving_load", load),
    "docs/results/ann_comparison_rows128_2.svg": ("ann_comparison", libraries),
    "docs/results/ann_comparison_rows384_2.svg": ("ann_comparison", libraries),
}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_figures_are_small(path):
    assert path.stat().st_size < MOST_BYTES
    ElementTree.parse(path)


def test_every_committed_figure_is_drawn_from_results():
    assert {str(path.relative_to(ROOT)) for path in COMMITTED} == {*DRAWN, *BY_HAND}


@pytest.mark.parametrize("name", DRAWN)
def test_committed_figures_are_those_of_the_results(name, tmp_path, script):
    module, draw = DRAWN[name]
    path = tmp_path / name.rpartition("/")[2]
    with matplotlib.rc_context(plots.settings("light")):
        draw(script(module), path)
    (texts, values), (expected_texts, expected) = shapes(ROOT / name), shapes(path)
    assert texts == expected_texts, "draw it anew"
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, atol=0.1)
