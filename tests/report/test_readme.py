"""What the pages show is what was measured, and what they tell to type exists and runs."""

import ast
import importlib
import json
import re
import shlex

import numpy as np
import pytest
from absl import flags

from fct_tf.experiments import cases
from fct_tf.gallery import columns
from fct_tf.models import artifact, info
from fct_tf.report import table, verdict
from tests import reference
from tests.pages import BLOCK, FIGURE, PAGES, ROOT, made, read

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
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


def test_verdicts_that_pages_quote_are_those_of_the_results():
    studies = [json.loads(path.read_text()) for path in (ROOT / "results").glob("*.json")]
    told = {
        f"{verdict.WORDS[one.status]}: {one.sentence}"
        for records in studies
        if isinstance(records, list) and "cmc" in records[0] and "case" in records[0]
        for one in verdict.of_study(table.rows(records))
    }
    blocks = [block for text in TEXTS.values() for _, block in FENCED.findall(text)]
    quoted = {
        line
        for line in "\n".join(blocks).splitlines()
        if re.match(r"(not compatible|compatible|undecided): \S+ .*\breaches ", line)
    }
    assert len(quoted) > 10 and not quoted - told


def test_every_measured_figure_of_the_readme_is_tied():
    text = FIGURE.sub("", FENCED.sub("", TEXTS["README.md"]))
    text = re.sub(r"\]\([^)]*\)|arXiv\s+\d{4}\.\d+|Apache-2\.0|3\.1[12]|95 % intervals", "", text)
    assert not re.findall(r"[-+]?\d+\.\d+|\d+ %", text)


def test_every_result_says_where_it_comes_from():
    for path in (ROOT / "results").glob("*.json"):
        content = json.loads(path.read_text())
        # The settings of records, and of what is made from them, are beside them.
        if isinstance(content, list) or path.name.endswith(".chains.json"):
            content = json.loads((path.parent / f"{path.name.split('.')[0]}.run.json").read_text())
            assert "config" in content
        assert "versions" in content and "command" in content, path.name


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_reference_is_current(page):
    shown = (reference.REFERENCE / page).read_text()
    assert shown == reference.PAGES[page](), "run python -m tests.reference"


def test_the_formats_name_every_key():
    """Pages that are written by hand, against what the code writes."""
    records = [
        record
        for path in (ROOT / "results").glob("*.json")
        if isinstance(content := json.loads(path.read_text()), list) and "cmc" in content[0]
        for record in content
    ]
    case = cases.Case("new/new", "new", "new", "new", "new", "new").keys
    column = columns.Column("embedding", 2, "ab")
    named = {
        "results_json.md": {*case, *(k for r in records for k in {**r, **(r.get("cost") or {})})},
        "gallery_format.md": {
            *(key.decode() for key in column.to_field().metadata),
            *columns.KINDS,
            *columns.DISTANCES,
        },
        "artifacts.md": {*artifact.KINDS, *artifact.TRANSFORMATION_SPACES, *info.ROLES},
    }
    for page, words in named.items():
        text = (reference.REFERENCE / page).read_text()
        missing = sorted(word for word in words if f"`{word}`" not in text)
        assert not missing, f"{page}: {missing}"


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 250


@pytest.mark.parametrize("page", ["README.md", *(p for p in TEXTS if p.startswith("docs/guides/"))])
def test_blocks_are_read_without_scrolling(page):
    """97 characters are what a page of 900 pixels shows. Printed tables are wider."""
    blocks = [block for _, block in FENCED.findall(TEXTS[page]) if "\n---" not in block]
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 97]


# Commands. What is in a block is typed as it stands, so it has every flag that the command needs;
# in the text a command may be cut short, and `..` stands for what was said before.
COMMAND = re.compile(r"python -m fct_tf\.([a-z]\w*)([^`\n]*)")


def commands(text: str) -> list[tuple[str, str]]:
    return COMMAND.findall(text.replace("\\\n", " "))


TYPED = [
    (page, *command)
    for page, text in TEXTS.items()
    for kind, block in FENCED.findall(text)
    for command in commands(block)
]
TOLD = [
    (page, *command) for page, text in TEXTS.items() for command in commands(FENCED.sub("", text))
]


@pytest.mark.parametrize("page, command, arguments", TOLD, ids=[f"{x[0]}-{x[1]}" for x in TOLD])
def test_commands_in_the_text_exist(page, command, arguments):
    values = reference.flags_of(command)
    for flag in re.findall(r"--(\w+)", arguments):
        assert flag in values, f"{page}: {command} has no flag --{flag}"


@pytest.mark.parametrize("page, command, arguments", TYPED, ids=[f"{x[0]}-{x[1]}" for x in TYPED])
def test_commands_in_blocks_parse(page, command, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = [command, *shlex.split(arguments, comments=True)]
    # An experiment file of the reader's own stands for one that is there.
    argv = [re.sub(r"^--config=my.*", "--config=configs/omniglot.py", one) for one in argv]
    values = reference.flags_of(command, argv)
    try:
        left = values(argv)
    except flags.Error as error:
        pytest.fail(f"{page}: {command} {arguments}: {error}")
    assert len(left) == 1, f"{page}: {command} takes no {left[1:]}"


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_they_stand(tmp_path, monkeypatch, run_door, capsys):
    """On the vectors of the Python above them, saved as .npy files: the verdict is the same one."""
    blocks = [block for _, block in FENCED.findall(TEXTS["README.md"])]
    (code,) = [block for block in blocks if block.startswith("import fct_tf")]
    (typed,) = [commands(block) for block in blocks if "--embeddings=old.npy" in block]
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(code[code.index("import numpy") : code.index("vectors, models")], made)
    np.save("old.npy", made["old"])
    np.save("new.npy", made["new"])
    ids = [f"{number}\n" for number in range(len(made["old"]))]
    (tmp_path / "ids.txt").write_text("".join(ids))
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in made["labels"]))
    for name, arguments in typed:
        module = importlib.import_module(f"fct_tf.{name}")
        assert run_door(module, *shlex.split(arguments)) == 0, capsys.readouterr().err
    shown = RUN[0][2].partition(" points")[0]
    assert NUMBER.sub("#", shown) in NUMBER.sub("#", capsys.readouterr().out)


# Python. All of it compiles; what is followed by its output runs, in an empty directory.
PYTHON = [
    (page, block)
    for page, text in TEXTS.items()
    for kind, block in FENCED.findall(text)
    if kind == "python"
]
PRINTS = re.compile(r"```python\n([^`]*?)```\n\nprints[^`]*?\n\n```\n(.*?)```", re.S)
RUN = [(page, *match) for page, text in TEXTS.items() for match in PRINTS.findall(text)]
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.mark.parametrize("page, code", PYTHON, ids=[page for page, _ in PYTHON])
def test_python_compiles(page, code):
    ast.parse(code, page)


@pytest.mark.parametrize(
    "page, code, shown",
    [pytest.param(*x, id=x[0], marks=() if x[0] == "README.md" else pytest.mark.slow) for x in RUN],
)
def test_python_prints_what_the_page_shows(page, code, shown, tmp_path, monkeypatch, capsys):
    """Figures may differ a little between processors; the page wraps long lines."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
    printed, shown = (" ".join(text.split()) for text in (capsys.readouterr().out, shown))
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    figures = ([float(one) for one in NUMBER.findall(text)] for text in (printed, shown))
    np.testing.assert_allclose(*figures, atol=1.5)


def test_the_readme_has_python_that_runs():
    assert "README.md" in [page for page, *_ in RUN]


# Links, to files and to the headings in them.
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)|(?:src|srcset|href)=\"(?!https?:)([^\"]+)\"")
LINKS = [
    (page, a or b) for page, text in TEXTS.items() for a, b in LINK.findall(FENCED.sub("", text))
]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    names: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if name in names else name)
        names[name] = names.get(name, 0) + 1
    return found


def test_anchors_are_githubs():
    text = "# A `b_c`, d!\n## [Link](x.md) twice\n## Link twice\n```\n# no heading\n```\n"
    assert anchors(text) == {"a-b_c-d", "link-twice", "link-twice-1"}


@pytest.mark.parametrize("page, link", LINKS, ids=[f"{page}-{link}" for page, link in LINKS])
def test_links_lead_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists(), f"{page}: {link}"
    if anchor:
        assert anchor in anchors(target.read_text()), f"{page}: {link}"


def test_files_that_pages_name_are_there():
    where = re.compile(r"\b(?:fct_tf|tests|benchmarks|configs)/[a-z0-9_/]+\.py\b")
    named = {(page, path) for page, text in TEXTS.items() for path in where.findall(text)}
    assert len(named) > 20
    assert not [(page, path) for page, path in named if not (ROOT / path).exists()]


def test_every_page_is_on_the_map():
    """From the README over docs/index.md a reader comes to every page."""
    seen: set[str] = set()
    left = ["README.md"]
    while left:
        page = left.pop()
        if page in seen or page not in TEXTS:
            continue
        seen.add(page)
        for name, link in LINKS:
            target = ((ROOT / name).parent / link.partition("#")[0]).resolve()
            if name == page and target.is_relative_to(ROOT):
                left.append(str(target.relative_to(ROOT)))
    assert not set(TEXTS) - seen
