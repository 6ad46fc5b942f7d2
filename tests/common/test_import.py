"""Importing the package sets TensorFlow up and imports nothing heavy."""

import json
import logging
import os
import platform
import subprocess
import sys
import types

import pytest

import fct_tf

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
PORT = "tensorflow.python.util._pywrap_util_port"
X86 = ("x86_64", "AMD64")

# What a process sees after `import fct_tf`, and what a process that it starts sees.
IMPORT = """
import json, os, subprocess, sys
import fct_tf
heavy = {"tensorflow", "keras", "numpy", "lance", "scann", "absl", "fct_tf.api"}
heavy &= set(sys.modules)
child = "import os; print(os.environ.get('TF_ENABLE_ONEDNN_OPTS', 'unset'))"
child = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout
own = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "unset")
print(json.dumps({"heavy": sorted(heavy), "own": own, "child": child.strip()}))
"""


@pytest.mark.parametrize("given", [None, "0", "1"])
def test_importing_is_light_and_switches_onednn_on(given):
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= {VARIABLE: given} if given else {}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = given or ("1" if platform.machine() in X86 else "unset")
    assert json.loads(done.stdout) == {"heavy": [], "own": expected, "child": expected}
    assert not done.stderr


@pytest.mark.parametrize("machine, given, expected", [
    ("x86_64", None, "1"),
    ("AMD64", None, "1"),
    ("x86_64", "0", "0"),
    ("x86_64", "1", "1"),
    ("aarch64", None, None),
    ("arm64", "1", "1"),
])  # fmt: skip
@pytest.mark.parametrize("enabled", [None, False, True])  # None: TensorFlow is not imported yet.
def test_the_users_value_wins_and_a_late_import_is_told(
    monkeypatch, caplog, machine, given, expected, enabled
):
    if given is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, given)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delitem(sys.modules, PORT, raising=False)
    if enabled is not None:
        port = types.SimpleNamespace(IsMklEnabled=lambda: enabled)
        monkeypatch.setitem(sys.modules, PORT, port)
    with caplog.at_level(logging.WARNING):
        fct_tf._switch_on_onednn()
    assert os.environ.get(VARIABLE) == expected
    late = expected == "1" and given is None and enabled is False
    assert ["import fct_tf first" in message for message in caplog.messages] == [True] * late


def test_tensorflow_does_as_the_environment_says():
    import tensorflow as tf  # noqa: F401

    if platform.machine() in X86:
        assert sys.modules[PORT].IsMklEnabled() == (os.environ[VARIABLE] == "1")


FIRST_SESSION = """
import sys
import fct_tf
import tensorflow as tf
from fct_tf.models import sessions
tf.config.list_logical_devices()
sessions.start()
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    assert session.run(tf.constant(2)) == 2
print("heard", file=sys.stderr)
"""


@pytest.mark.slow
def test_tensorflow_starts_in_silence():
    """No notes on processor, GPU and passes; what is written afterwards is heard."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", FIRST_SESSION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "heard\n"


# Every module of these rooms, imported where TensorFlow, Keras and ScaNN cannot be.
BLOCKED = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "keras_cv", "scann"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for room in ("common", "config", "gallery", "retrieval", "api"):
    package = importlib.import_module(f"fct_tf.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"fct_tf.{room}.{module.name}")
for command in (
    *("evaluate", "inspect_gallery", "remove_rows", "train_transformation", "upgrade_gallery"),
    *("verdict", "verify_identities"),
):
    importlib.import_module(f"fct_tf.{command}")
import fct_tf
assert all(hasattr(fct_tf, name) for name in fct_tf.__all__)
"""


def test_what_works_on_rows_imports_no_tensorflow():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
