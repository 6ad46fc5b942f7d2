"""What a study says to type next exists, and serves the right model."""

import importlib
import re
import shlex
import sys

import pytest
from absl import flags

from fct_tf import config as schema
from fct_tf.common import cli
from fct_tf.experiments import next_steps
from tests.conftest import ROOT


def experiment(train="glyphs:train[:70%]"):
    config = schema.experiment("x")
    config.seeds = (3, 4)
    config.dataset.train = train
    config.transformations = schema.transformations(0.2)
    fused = schema.transformation()
    fused.base, fused.fusion.weight = "fct", 0.5
    config.transformations.fct_fused = fused
    return config


def records(**by_method):
    return [{"method": method, "map": value} for method, value in by_method.items()]


MEASURED = {
    "independent": 0.9,  # new/new
    "affine": 0.3,
    "fct": 0.5,
    "affine_query": 0.8,  # Changes queries, not the gallery.
    "fct_pairs": 0.6,  # Rests on fct.
    "fct_fused": 0.7,
}


def commands(text):
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


def test_commands_are_real_and_serve_the_best_map(tmp_path, monkeypatch):
    monkeypatch.setattr(next_steps, "program", lambda: "fct")
    shown = next_steps.text(experiment(), records(**MEASURED), tmp_path / "my runs")
    titles = [line for line in shown.splitlines() if not line.startswith("  ")]
    assert titles == ["open the report:", "serve it:", "try your own folder:"]
    report, serve, own = commands(shown)
    assert shlex.split(report)[-1] == str(tmp_path / "my runs" / "report" / "index.html")
    made = tmp_path / "my runs" / "seed_3" / "fct" / "artifact"
    assert f"--model={made}" in shlex.split(serve)
    for command in [*serve.split(" && "), own]:
        _, door, *arguments = shlex.split(command)
        module, values = importlib.import_module(f"fct_tf.{door}"), flags.FlagValues()
        cli._argv[:] = [door]
        module.define_flags(values)
        for flag in re.findall(r"--(\w+)", " ".join(arguments)):
            assert flag in values, f"{door} has no flag --{flag}"
    root = ROOT
    assert (root / re.search(r"--config=(\S+)", own)[1]).exists()


@pytest.mark.parametrize(
    "measured, served",
    [
        ({"affine": 0.6, "fct": 0.5}, "affine"),
        ({"independent": 0.5, "fct_fused": 0.7}, None),
        ({"independent": 0.5}, None),
    ],
)
def test_what_is_served(tmp_path, measured, served):
    shown = next_steps.text(experiment("folder:images:train"), records(**measured), tmp_path)
    assert ("serve it:" in shown) == (served is not None)
    assert f"/seed_3/{served}/artifact" in shown or served is None
    assert "own folder" not in shown  # These images are the user's own.


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("has_script", [True, False])
def test_commands_work_where_they_are_read(tmp_path, monkeypatch, active, has_script):
    """From the directory of a virtual environment, active or not, or run from a checkout alone."""
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    for name in ["python", *["fct"] * has_script]:
        (scripts / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("PATH", str(scripts if active else tmp_path))
    monkeypatch.chdir(tmp_path)
    if has_script:
        expected = "fct" if active else ".venv/bin/fct"
    else:
        expected = "python -m fct_tf" if active else ".venv/bin/python -m fct_tf"
    assert next_steps.program() == expected
