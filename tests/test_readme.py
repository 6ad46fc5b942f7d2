"""What the README shows is what was measured, and what it tells to type exists."""

import importlib
import json
import re
from pathlib import Path

import pytest
from absl import flags

from fct_tf import cli
from fct_tf.report import identities, methods, table, verdict

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# <!-- table: results/NAME.json --> stands before every table made from results, and so do
# <!-- methods: .. --> and <!-- identities: .. --> before those of methods and of verification;
# `key=value` behind the name, the value in JSON, keeps the records that have it.
MAKERS = {
    "table": table.markdown,
    "methods": methods.markdown,
    "identities": identities.markdown,
}
TABLES = re.findall(
    rf"<!-- ({'|'.join(MAKERS)}): (results/\S+\.json)((?: \S+=\S+)*) -->\n\n((?:\|.*\n)+)", README
)
# <!-- text: results/NAME.json --> stands before what a study printed.
TEXTS = re.findall(
    r"<!-- text: (results/\S+\.json) -->\n\n```\n(.*?)\nreport: \S+\n```", README, re.S
)
# `value` <!-- results/NAME.json key.key --> stands behind every single figure.
FIGURES = re.findall(r"([\d.,]+)( ?%)?\s*<!-- (results/\S+\.json) (\S+) -->", README)


def test_readme_has_tables_and_figures():
    assert TABLES and TEXTS and FIGURES


@pytest.mark.parametrize("path, shown", TEXTS, ids=[path for path, _ in TEXTS])
def test_printed_tables_are_those_of_the_results(path, shown):
    assert shown == verdict.text(json.loads((ROOT / path).read_text()))


@pytest.mark.parametrize("kind, path, kept, shown", TABLES, ids=["".join(x[:3]) for x in TABLES])
def test_tables_are_those_of_the_results(kind, path, kept, shown):
    rows = [line for line in shown.strip().splitlines()]
    records = json.loads((ROOT / path).read_text())
    for key, value in (part.split("=") for part in kept.split()):
        records = [record for record in records if record.get(key) == json.loads(value)]
    made = [line for line in MAKERS[kind](records).splitlines() if line.startswith("|")]
    assert rows == made, f"README.md: the table of {path} is another; its rows are now {made}"


@pytest.mark.parametrize("shown, percent, path, key", FIGURES, ids=[x[3] for x in FIGURES])
def test_figures_are_those_of_the_results(shown, percent, path, key):
    value = json.loads((ROOT / path).read_text())
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    value = 100 * value if percent else value
    digits = len(shown.partition(".")[2])
    assert float(shown.replace(",", "")) == round(value, digits), f"{path} {key} is {value}"


COMMANDS = re.findall(r"python -m fct_tf\.(\w+)([^`\n]*)", README.replace("\\\n", " "))


@pytest.mark.parametrize("door, arguments", COMMANDS, ids=[door for door, _ in COMMANDS])
def test_commands_name_real_doors_and_flags(door, arguments):
    module = importlib.import_module(f"fct_tf.{door}")
    values = flags.FlagValues()
    cli._argv[:] = [door]
    module.define_flags(values)
    for flag in re.findall(r"--(\w+)", arguments):
        assert flag in values, f"README.md: {door} has no flag --{flag}"


def test_every_result_says_where_it_comes_from():
    for path in (ROOT / "results").glob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, list):  # Records; their settings are beside them.
            content = json.loads(path.with_suffix(".run.json").read_text())
            assert "config" in content
        assert "versions" in content and "command" in content, path.name


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
