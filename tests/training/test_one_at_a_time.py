"""One process at a time trains in a working directory, until it ends or is killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fct_tf import study, train_backbone, train_side_info, train_transformation
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.training import loop
from tests import tiny
from tests.training.test_train_transformation import make_rows

NAMES = ["transformation", "backbone", "side_info", "study"]


@pytest.fixture(scope="module")
def commands(images, tmp_path_factory):
    """Each command with its flags, but for --workdir."""
    root = tmp_path_factory.mktemp("made")
    config = f"--config={tiny.experiment_file(root / 'e.py', images)}"
    columns, again = ["--source=old", "--target=new"], "--overwrite"
    gallery = f"--gallery={make_rows(root / 'rows.lance')}"
    return {
        "transformation": [train_transformation, "--method=affine", gallery, *columns, again],
        "backbone": [train_backbone, config, "--model=new", again],
        "side_info": [train_side_info, config, again],
        "study": [study, config],
    }


def refused(run_door, capsys, command, workdir):
    """Whether a command is refused the directory in one line, and leaves it as it is."""
    before = sorted(workdir.rglob("*"))
    capsys.readouterr()
    status = run_door(*command, f"--workdir={workdir}")
    told = f"error: {workdir}: another process is at work on this; wait until it has ended\n"
    return status == 2 and capsys.readouterr().err == told and sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_its_directory(commands, tmp_path, run_door, monkeypatch, capsys, name):
    """From its start until it fails; a study also holds what it trains at the moment."""
    command, workdir, tried = commands[name], tmp_path / "runs" / "one", []

    def begin(directory, *_, **__):
        tried.append(refused(run_door, capsys, command, workdir))
        if name == "study":
            tried.append(refused(run_door, capsys, commands["side_info"], Path(directory)))
        raise InputError("stopped here")

    monkeypatch.setattr(runs, "begin", begin)
    assert run_door(*command, f"--workdir={workdir}") == 2
    assert tried and all(tried)
    assert capsys.readouterr().err == "error: stopped here\n"
    # Nothing is left of it, and nothing holds it.
    assert not workdir.parent.exists()
    with runs.locked(workdir, "the next"):
        pass


def test_a_killed_process_holds_nothing(commands, tmp_path, run_door, capsys):
    workdir = tmp_path / "run"
    program = (
        "import sys\n"
        "from fct_tf.common import runs\n"
        "with runs.locked(sys.argv[1], 'it'):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, str(workdir)], **pipes) as other:
        try:
            other.stdout.readline()
            for name in NAMES:
                assert refused(run_door, capsys, commands[name], workdir), name
        finally:
            other.kill()
    assert run_door(*commands["transformation"], f"--workdir={workdir}") == 0
    assert (workdir / "saved_model").exists()


@pytest.mark.parametrize("strategy, kind, index, holds", [
    ("multi_worker", "worker", 0, True),
    ("multi_worker", "worker", 1, False),
    ("multi_worker", "chief", 0, True),
    ("one_device", "worker", 1, True),  # A cluster manager sets TF_CONFIG for whatever it runs.
    ("one_device", None, 0, True),
    ("multi_worker", None, 0, True),  # To be refused for want of TF_CONFIG.
])  # fmt: skip
def test_of_several_workers_the_chief_holds_it(tmp_path, monkeypatch, strategy, kind, index, holds):
    cluster = {"worker": ["a:1", "b:1"]} | ({"chief": ["c:1"]} if kind == "chief" else {})
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if kind:
        task = {"cluster": cluster, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    config = tiny.experiment(tmp_path)
    config.training.strategy = strategy

    @loop.alone
    def train(config, *, workdir):
        if holds:
            with pytest.raises(InputError, match="another process"), runs.locked(workdir, "it"):
                pass
            return workdir
        with runs.locked(workdir, "it"):
            return workdir

    assert train(config, workdir=tmp_path / "run") == tmp_path / "run"
