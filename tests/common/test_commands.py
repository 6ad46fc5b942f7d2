"""The command `fct`: all commands by name, listed without importing one."""

import ast
import configparser
import importlib
import json
import subprocess
import sys

import pytest

import fct_tf
from fct_tf import __main__ as door
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "fct_tf").glob("[a-z]*.py"))


@pytest.fixture
def fct(monkeypatch, capsys):
    """`fct(*arguments)` -> status, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fct", *arguments])
        with pytest.raises(SystemExit) as ended:
            door.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_every_command_is_listed_with_its_first_line(fct, arguments):
    status, shown, errors = fct(*arguments)
    assert (status, errors) == (0, "")
    listed = dict(line.split(maxsplit=1) for line in shown.splitlines() if line[:2] == "  ")
    for name in NAMES:
        head = ast.get_docstring(ast.parse((ROOT / "fct_tf" / f"{name}.py").read_text()))
        assert listed.pop(name) == head.splitlines()[0]
        assert head.splitlines()[0].endswith("."), f"{name}: more than a line"
    assert not listed


@pytest.mark.parametrize("argument", ["--version", "version"])
def test_version(fct, argument):
    assert fct(argument) == (0, f"fct_tf {fct_tf.__version__}\n", "")


@pytest.mark.parametrize(
    "given, told",
    [
        ("evalute", "; did you mean evaluate?"),
        ("upgrade-galery", "; did you mean upgrade_gallery?"),
        ("__main__", ""),
        ("common", ""),  # A room of the package, no command.
        ("--verbose", ""),
    ],
)
def test_what_is_no_command_is_one_line(fct, given, told):
    status, shown, errors = fct(given)
    assert (status, shown) == (2, "")
    assert errors == f"error: {given}: is no command{told}, see fct --help\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_that_of_its_module(fct, monkeypatch, name):
    module = importlib.import_module(f"fct_tf.{name}")
    called = []
    monkeypatch.setattr(door.cli, "run", lambda *given: called.append((given, list(sys.argv))))
    for spelt in (name, name.replace("_", "-")):
        monkeypatch.setattr(sys, "argv", ["fct", spelt, "--help", "--flag=a b"])
        door.main()
    expected = (module.__doc__, module.main, module.define_flags)
    assert called == 2 * [(expected, [f"fct {name}", "--help", "--flag=a b"])]


def test_listing_imports_no_command_and_nothing_heavy():
    code = "import json, sys; from fct_tf import __main__ as door; door._help()\n"
    code += "print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(json.loads(done.stdout))
    assert not imported & {"tensorflow", "keras", "numpy", "lance", "scann", "ml_collections"}
    assert not imported & {f"fct_tf.{name}" for name in NAMES}


def test_installed_as_fct():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    script = setup["options.entry_points"]["console_scripts"].strip()
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "fct" and getattr(importlib.import_module(module), function) is door.main


def test_the_container_is_built_of_files_that_are_there():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    steps = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines()]
    copied = [
        path
        for step in steps
        if step[:1] == ["COPY"]
        for path in step[1:-1]
        if not path.startswith("--")
    ]
    assert copied and set(copied) == {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / path).exists() for path in copied)
    (extras,) = (step[1].partition("=")[2] for step in steps if step[:1] == ["ARG"])
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    assert ["ENTRYPOINT", '["fct"]'] in steps
