"""What the README shows is what was measured, and what it tells to type exists."""

import importlib
import json
import re

import numpy as np
import pytest
from absl import flags

from fct_tf.common import cli
from tests.pages import BLOCK, FIGURE, PAGES, ROOT, made, read

TEXTS = {page.name: page.read_text() for page in PAGES}
BLOCKS = [(name, *match[1:5]) for name, text in TEXTS.items() for match in BLOCK.findall(text)]
FIGURES = [(name, *match) for name, text in TEXTS.items() for match in FIGURE.findall(text)]


def test_pages_show_results():
    assert {kind for _, kind, *_ in BLOCKS} >= {"text", "table"} and FIGURES
    for name, text in TEXTS.items():
        marks = len(re.findall(r"<!-- \w+: results/", text))
        assert marks == text.count("<!-- end -->") == len(BLOCK.findall(text)), name


@pytest.mark.parametrize(
    "page, kind, path, kept, shown", BLOCKS, ids=["".join(x[:4]) for x in BLOCKS]
)
def test_tables_are_those_of_the_results(page, kind, path, kept, shown):
    assert shown == made(kind, path, kept), f"{page}: {path} has changed; run python -m tests.pages"


@pytest.mark.parametrize("page, shown, percent, path, key", FIGURES, ids=[x[4] for x in FIGURES])
def test_figures_are_those_of_the_results(page, shown, percent, path, key):
    value = read(path)
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    value = 100 * value if percent else value  # Also of points.
    digits = len(shown.partition(".")[2])
    assert float(shown.replace(",", "")) == round(value, digits), f"{page}: {path} {key} is {value}"


COMMANDS = [
    found
    for text in TEXTS.values()
    for found in re.findall(r"python -m fct_tf\.(\w+)([^`\n]*)", text.replace("\\\n", " "))
]


@pytest.mark.parametrize("door, arguments", COMMANDS, ids=[door for door, _ in COMMANDS])
def test_commands_name_real_doors_and_flags(door, arguments):
    module = importlib.import_module(f"fct_tf.{door}")
    values = flags.FlagValues()
    cli._argv[:] = [door]
    module.define_flags(values)
    for flag in re.findall(r"--(\w+)", arguments):
        assert flag in values, f"{door} has no flag --{flag}"


def test_every_result_says_where_it_comes_from():
    for path in (ROOT / "results").glob("*.json"):
        content = json.loads(path.read_text())
        # The settings of records, and of what is made from them, are beside them.
        if isinstance(content, list) or path.name.endswith(".chains.json"):
            content = json.loads((path.parent / f"{path.name.split('.')[0]}.run.json").read_text())
            assert "config" in content
        assert "versions" in content and "command" in content, path.name


SNIPPET = re.compile(r"```python\n(import fct_tf\n.*?)```\n\nprints\n\n```\n(.*?)```", re.S)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_python_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    """In an empty directory; figures may differ a little between processors."""
    monkeypatch.chdir(tmp_path)
    ((code, shown),) = SNIPPET.findall(TEXTS["README.md"])
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    figures = ([float(one) for one in NUMBER.findall(text)] for text in (printed, shown))
    np.testing.assert_allclose(*figures, atol=1.5)


LINKS = [
    (page, target)
    for page in PAGES
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXTS[page.name])
]


@pytest.mark.parametrize("page, target", LINKS, ids=[target for _, target in LINKS])
def test_links_lead_somewhere(page, target):
    assert (page.parent / target).exists()
