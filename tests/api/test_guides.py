"""Every command of the guides runs as it stands, in the directory that examples/tour.py makes.

The study that it is made of is the quickstart's, with fewer images and one short pass over them.
"""

import importlib
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from fct_tf.common import cli
from fct_tf.experiments import study
from tests import buckets, tiny
from tests.clusters import needs_spark
from tests.conftest import ROOT
from tests.served import free_port

GUIDES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "guides").glob("*.md"))}
FIRST = "upgrade_your_gallery"
BLOCKS = re.compile(r"^```(python)?\n(.*?)^```$", re.M | re.S)
SET_UP = "make quickstart\n. .venv/bin/activate\npython examples/tour.py\ncd runs/tour\n"
# What begins a line of a block that is typed; other blocks show what was printed, or begin in a
# fresh clone (`make`).
TYPED = ("python", "head", "tail", "export")
STATUS = {"verdict": (0, 3)}  # Whether these models are compatible is chance.


def lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def typed(text: str) -> list[tuple[str, str]]:
    """(kind, block) of what a reader types: commands, or Python."""
    return [
        (kind or "shell", block)
        for kind, block in BLOCKS.findall(text)
        if kind == "python" or block.split()[0] in TYPED
    ]


def takes_long(line: str) -> bool:
    """Minutes to hours, some on data of its own: test_readme parses it, others run the like."""
    return "--config=configs/" in line or "benchmark_scann" in line


class Reader:
    """Types a guide in a directory."""

    def __init__(self, directory, monkeypatch):
        self.directory, self.ports = directory, {"8500": free_port(), "8501": free_port()}
        self.servers: list[subprocess.Popen] = []
        monkeypatch.chdir(directory)
        monkeypatch.setenv("PWD", str(directory))

    def types(self, guide: str) -> None:
        for kind, block in typed(GUIDES[guide]):
            if named := re.match(r"# (\w+\.py)\n", block):  # To be saved.
                (self.directory / named[1]).write_text(block)
                continue
            if kind == "python":
                exec(compile(self.here(block), guide, "exec"), {})
                continue
            for line in lines(block):
                if not takes_long(line):
                    assert self.runs(self.here(line)), f"{guide}: {line}"

    def here(self, text: str) -> str:
        for known, free in self.ports.items():
            text = re.sub(rf"\b{known}\b", str(free), text)
        return text

    def runs(self, line: str) -> bool:
        words = shlex.split(os.path.expandvars(line))
        if words[:2] != ["python", "-m"]:
            return subprocess.run(line, shell=True).returncode == 0
        name = words[2].removeprefix("fct_tf.")
        if name == "model_server":
            return self.serves(words[1:])
        module = importlib.import_module(words[2])
        argv = [name, *words[3:]]
        try:
            status = cli.call(module.__doc__, module.main, module.define_flags, argv)
        except SystemExit as ended:
            status = ended.code
        return status in STATUS.get(name, (0,))

    def serves(self, words: list[str]) -> bool:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        server = subprocess.Popen([sys.executable, *words], env=environment)
        self.servers.append(server)
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.ports["8500"]), 1).close()
                return True
            except OSError:
                time.sleep(0.1)
        return False

    def leaves(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


@pytest.fixture
def reader(monkeypatch):
    readers = []

    def begin(directory):
        readers.append(Reader(directory, monkeypatch))
        return readers[-1]

    yield begin
    for one in readers:
        one.leaves()


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """What `make quickstart` and examples/tour.py leave."""
    at = tmp_path_factory.mktemp("checkout")
    images = tiny.image_folder(at / "images", classes=16, per_class=20)
    config = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]()
    config.dataset.update(train=f"folder:{images}:train", gallery=f"folder:{images}:val")
    config.dataset.image_size = 16
    trained = [*config.models.values(), config.side_info, config.transformations.fct]
    for section in trained:
        section.update(train_epochs=1, warmup_epochs=0, batch_size=32)
    for section in trained[:-1]:
        section.backbone.update(name="resnet10", width=0.0625)
    config.transformations.fct.hidden = 16
    study.study(config, at / "runs" / "glyphs")
    example = runpy.run_path(str(ROOT / "examples" / "tour.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        patch.setattr(sys, "argv", ["tour.py"])
        example["main"]()
    return at / "runs" / "tour"


@pytest.fixture(scope="module")
def upgraded(tour, tmp_path_factory):
    """The same after the first guide, from which the others go on."""
    directory = tmp_path_factory.mktemp("upgraded") / "tour"
    shutil.copytree(tour, directory)
    with pytest.MonkeyPatch.context() as patch:
        Reader(directory, patch).types(FIRST)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide",
    [
        *sorted(GUIDES.keys() - {FIRST, "spark", "object_stores"}),
        pytest.param("spark", marks=needs_spark),
    ],
)
def test_a_guide_runs_as_it_stands(upgraded, reader, tmp_path, guide):
    shutil.copytree(upgraded, tmp_path / "tour")
    reader(tmp_path / "tour").types(guide)


@pytest.mark.slow
def test_the_guide_of_object_stores_runs(upgraded, reader, tmp_path, monkeypatch):
    """Its bucket is on this machine, and `store.json` says so."""
    shutil.copytree(upgraded, tmp_path / "tour")
    monkeypatch.setenv("FCT_TF_CACHE", str(tmp_path / "cache"))
    with buckets.served() as server, buckets.opened(server):
        assert server.bucket("my-bucket") in GUIDES["object_stores"]
        server.write_options(tmp_path / "tour" / "store.json")
        reader(tmp_path / "tour").types("object_stores")
        assert not [key for key in server.contents("my-bucket") if ".jobs" in key]


def test_the_guides_begin_with_the_tour():
    assert f"```\n{SET_UP}```" in GUIDES[FIRST]


def test_what_is_typed_is_told_from_what_is_printed():
    """No block has both: what is printed would be typed, or a command not be tried."""
    for guide, text in GUIDES.items():
        for kind, block in BLOCKS.findall(text):
            if not kind and not block.startswith("make "):
                begun = [line.split()[0] in TYPED for line in lines(block) if line.strip()]
                assert all(begun) or not any(begun), f"{guide}: {block}"
