"""Flags, errors and exit status."""

import ast
import importlib
import inspect
import logging
import pickle
import re
import subprocess
import sys
import types

import pytest

from fct_tf import Gallery
from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from tests import reference
from tests.conftest import ROOT


def door(body=lambda values: None, config=True):
    def define_flags(values):
        if config:
            cli.define_config(values)
        flag_groups.Group(values, flag_groups.RUN).integer("number", "A number.", 3)

    return types.SimpleNamespace(
        __name__="door", __doc__="A door.", main=body, define_flags=define_flags
    )


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from fct_tf import config\n"
        "def get_config():\n"
        "    c = config.experiment('x')\n"
        "    c.models.new = config.model()\n"
        "    return c\n"
    )
    return path


def test_overrides_reach_the_config(run_door, config_file):
    seen = {}
    status = run_door(
        door(lambda values: seen.update(value=values.config.models.new.train_epochs)),
        f"--config={config_file}",
        "--config.models.new.train_epochs=7",
        "--config.models.new.classes.first=4",
    )
    assert status == 0
    assert seen == {"value": 7}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.models.new.train_epoch=7"], "did you mean models.new.train_epochs?"),
        (["--config.models.new.train_epochs=many"], "many"),
        (
            ["--config.transformations.fct.pairs.draw=random"],
            "unknown key in {config}; pairs are always drawn at random, leave it out",
        ),
        (["--nummber=4"], "nummber"),
        (["--number=four"], "four"),
        (["stray"], "stray"),
    ],
)
def test_bad_flags_exit_2_with_one_line(run_door, config_file, capsys, arguments, message):
    status = run_door(door(), f"--config={config_file}", *arguments)
    error = capsys.readouterr().err
    assert status == 2
    assert message.format(config=config_file) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        ("x = 1\n", "defines no get_config"),
        ("def get_config(:\n", "invalid syntax"),
        (
            "from fct_tf import config\n"
            "def get_config():\n"
            "    c = config.experiment('x')\n"
            "    c.datasets = 3\n"
            "    return c\n",
            "dataset",
        ),
        (
            "from fct_tf import config\n"
            "def get_config():\n"
            "    c = config.experiment('x')\n"
            "    c.transformations.fct = config.transformation()\n"
            "    c.transformations.fct.pairs.draw = 'spread'\n"
            "    return c\n",
            "draw: unknown key; pairs are always drawn at random, leave it out",
        ),
    ],
)
def test_bad_config_files(run_door, tmp_path, capsys, content, message):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    status = run_door(door(), f"--config={path}")
    error = capsys.readouterr().err
    assert status == 2
    assert str(path) in error and message in error
    assert error.count("\n") == 1


def test_missing_config(run_door, capsys):
    assert run_door(door()) == 2
    assert "config" in capsys.readouterr().err


def test_input_error_is_one_line_and_bugs_keep_their_traceback(run_door, capsys):
    def bad(values):
        raise InputError("photos.lance: row 'a'\n has NaN")

    assert run_door(door(bad, config=False)) == 2
    assert capsys.readouterr().err == "error: photos.lance: row 'a' has NaN\n"

    def bug(values):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_door(door(bug, config=False))


@pytest.mark.parametrize(
    "message, in_python, as_flags",
    [
        ("pass ``overwrite=True`` to", "pass `overwrite=True` to", "pass --overwrite to"),
        ("``share=2.0``: must be", "`share=2.0`: must be", "--share=2.0: must be"),
        ("one with ``side_info``", "one with `side_info`", "one with --side_info"),
        ("``images=folder:a b``: no", "`images=folder:a b`: no", "--images=folder:a b: no"),
        (
            "Keras: no `build` in ``a b``",
            "Keras: no `build` in ``a b``",
            "Keras: no `build` in ``a b``",
        ),
        ("make it: upgrade_gallery --side=query", *2 * ["make it: upgrade_gallery --side=query"]),
    ],
)
def test_messages_name_arguments_in_python_and_flags_in_a_command(
    run_door, capsys, message, in_python, as_flags
):
    def bad(values):
        raise InputError(message)

    assert str(InputError(message)) == in_python
    assert str(pickle.loads(pickle.dumps(InputError(message)))) == in_python
    assert run_door(door(bad, config=False)) == 2
    assert capsys.readouterr().err == f"error: {as_flags}\n"
    warning = logging.LogRecord("absl", logging.WARNING, "x.py", 1, "%s", (message,), None)
    assert cli._NamingFlags("%(message)s").format(warning) == as_flags


# What knows flags alone, as no one calls it from Python.
KNOW_FLAGS = {"ann/benchmark_flags.py", "serving/server.py", "common/cli.py"}
MENTION = re.compile(rf"({'|'.join(reference.COMMANDS)}|tfds build)[^;,.(]*")


def test_no_message_of_the_library_names_a_flag():
    """Except of a command that it tells to run: a notebook has no flags."""
    looked_at = 0
    for path in sorted((ROOT / "fct_tf").glob("*/*.py")):
        if str(path.relative_to(ROOT / "fct_tf")) in KNOW_FLAGS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called != "InputError" and not called.startswith("logging."):
                continue
            looked_at += 1
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            message = "".join(text for text in texts if isinstance(text, str))
            left = MENTION.sub("", message).replace("--config", "")
            assert not re.search(r"(?<![\w-])--\w", left), f"{path}:{node.lineno}: {message}"
    assert looked_at > 500


def test_help(run_door, capsys):
    assert run_door(door(), "--help") == 0
    shown = capsys.readouterr().out
    assert "A door." in shown and "--number: A number. (default: 3)" in shown
    assert "--config" in shown


@pytest.mark.parametrize("command", reference.COMMANDS)
def test_every_flag_is_in_one_group(command, capsys):
    """By what it is for; the same heading is the same words in every command."""
    values = reference.flags_of(command)
    groups = flag_groups.of(values)
    grouped = [flag.name for defined in groups.values() for flag in defined]
    assert sorted(grouped) == sorted(values)
    assert cli.call("", lambda _: None, door_of(command), [command, "--help"]) == 0
    shown = capsys.readouterr().out
    for heading, defined in groups.items():
        assert heading[0].isupper() and heading.endswith(":")
        _, _, below = shown.partition(f"\n\n{heading}\n")
        listed = re.findall(r"^  --(\w+)", below.partition("\n\n")[0], re.M)
        assert listed == [flag.name for flag in defined]


def door_of(command):
    return importlib.import_module(f"fct_tf.{command}").define_flags


# Command, what its flags are the arguments of, and the method of `fct_tf.Gallery` that does it.
SHARED = {
    "upgrade_gallery": ("upgrade.upgrade.Upgrade", "upgrade"),
    "backfill_gallery": ("backfill.backfill.Backfill", "backfill"),
    "sample_gallery": ("upgrade.reembed_sample.sample_gallery", "sample"),
    "embed_gallery": ("ingest.embed_images.embed_gallery", "embed"),
    "import_gallery": ("ingest.import_files.import_embeddings", "import_embeddings"),
    "verdict": ("upgrade.judge.judge", "judge"),
    "evaluate": ("retrieval.two_columns.evaluate_queries", "evaluate"),
    "backfilling_curve": ("backfill.evaluate.evaluate", "backfilling_curve"),
    "build_index": ("ann.index.build", "build_index"),
    "verify_identities": ("retrieval.identities.verify", None),
    "export_serving": ("serving.exports.export_model", None),
    "check_parity": ("serving.parity.check", None),
}


@pytest.mark.parametrize("command", SHARED)
def test_defaults_are_the_same_in_a_command_in_the_library_and_in_python(command):
    path, method = SHARED[command]
    module, _, name = path.rpartition(".")
    takes = getattr(importlib.import_module(f"fct_tf.{module}"), name)
    functions = [takes, *([getattr(Gallery, method)] if method else [])]
    values = reference.flags_of(command)
    compared = 0
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in values or parameter.default is parameter.empty:
                continue
            default = values[parameter.name].default
            if default is None and function is not takes:
                continue  # What must be given, Python may take for granted: the budget.
            assert plain(default) == plain(parameter.default), (function, parameter)
            compared += 1
    assert compared >= len(functions)


def plain(default):
    """None, nothing and the empty text are the same; numbers of a list flag are texts; a flag names
    the engine that the library is given."""
    if callable(default):
        default = default.__name__
    if isinstance(default, list | tuple):
        default = [float(one) if re.match(r"\d", str(one)) else one for one in default]
    return default or None


@pytest.mark.parametrize("place", ["fct_tf", "configs", "benchmarks"])
def test_commands_in_heads_keep_their_lines(place):
    """A single backslash at the end of a line joins it with the next in what --help shows."""
    for path in sorted((ROOT / place).glob("*.py")):
        head = ast.get_docstring(ast.parse(path.read_text())) or ""
        for line in head.splitlines():
            assert "      --" not in line.lstrip(), f"{path}: {line}"


def test_a_missing_flag_is_named(run_door, capsys):
    from fct_tf import evaluate

    assert run_door(evaluate, "--gallery=g.lance", "--gallery_column=a", "--output=r.json") == 2
    assert capsys.readouterr().err == "error: --query_column is missing; name it, see --help\n"


@pytest.mark.parametrize("name", ["evaluate", "inspect_gallery", "import_gallery"])
def test_doors_as_programs(name):
    result = subprocess.run(
        [sys.executable, "-m", f"fct_tf.{name}", "--no_such_flag"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "no_such_flag" in result.stderr


UNITS = {
    "_s": "Seconds",
    "seconds": "Seconds",
    "_ms": "Milliseconds",
    "micros": "Microseconds",
    "bytes": "Bytes",
    "_gib": "GiB",
}


@pytest.mark.parametrize("command", reference.COMMANDS)
def test_help_says_what_a_command_does_how_and_in_which_units(command):
    doc = importlib.import_module(f"fct_tf.{command}").__doc__
    first, _, rest = doc.partition("\n")
    assert len(first) <= 100 and first.endswith(".") and rest.startswith("\n"), first
    assert f"python -m fct_tf.{command} " in doc
    values = reference.flags_of(command)
    for name in values:
        text = values[name].help
        assert text.strip().partition("\n")[0].rstrip(";").endswith((".", ")")), f"--{name}: {text}"
        for ending, unit in UNITS.items():
            if name.endswith(ending):
                assert unit in text, f"--{name}: {text}"
