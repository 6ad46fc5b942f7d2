"""Engines: what is done by this process, and what Spark needs before it starts."""

import subprocess
import sys
import types

import pytest

from fct_tf.common.errors import InputError, as_flags
from fct_tf.engines import engine, spark


def test_local_does_one_unit_after_the_other():
    told, made = [], []

    def make(unit, tick):
        made.append(unit)
        tick(unit)
        return -unit

    results = engine.local(make, [3, 1, 2], told.append, "units")
    assert next(results) == (3, -3) and made == [3]
    assert list(results) == [(1, -1), (2, -2)] and told == [3, 1, 2]


@pytest.mark.parametrize(
    "name, master, message",
    [
        ("local", "local[2]", "--spark_master=local[2]: goes with --engine=spark"),
        ("dask", "", "--engine=dask: it must be local or spark"),
    ],
)
def test_engines_there_are(name, master, message):
    with pytest.raises(InputError) as error, engine.open_engine(name, master):
        pass
    assert message in as_flags(error.value.marked)


@pytest.fixture
def some_pyspark(monkeypatch):
    """A pyspark that is there, and has no session."""
    module = types.ModuleType("pyspark")
    module.SparkContext = types.SimpleNamespace(_active_spark_context=None)
    monkeypatch.setitem(sys.modules, "pyspark", module)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    return module


def refusal(master=""):
    with pytest.raises(InputError) as error, engine.open_engine("spark", master):
        pass
    assert "\n" not in str(error.value)
    return as_flags(error.value.marked)


def test_without_pyspark(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    assert "pip install 'fct_tf[spark]'" in refusal()


def test_without_java(some_pyspark, monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no Java here; install Java 17 or newer" in refusal()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "no Java here" in refusal()


@pytest.mark.parametrize(
    "said, version",
    [('java version "1.8.0_392"', "8"), ('openjdk version "11.0.22" 2024-01-16', "11")],
)
def test_an_old_java(some_pyspark, monkeypatch, said, version):
    done = types.SimpleNamespace(stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *command, **settings: done)
    assert f"is Java {version}; install Java 17" in refusal()


def test_a_session_on_another_master(some_pyspark):
    some_pyspark.SparkContext._active_spark_context = types.SimpleNamespace(master="yarn")
    assert "a session on yarn is running" in refusal("local[2]")


class Raised(Exception):
    """As of py4j: what Java raised is an attribute."""

    def __init__(self, message):
        super().__init__("An error occurred while calling z:...")
        self.java_exception = types.SimpleNamespace(getMessage=lambda: message)


@pytest.mark.parametrize(
    "message, kind, told",
    [
        (
            "Job aborted due to stage failure: Task 1 failed 4 times\nDriver stacktrace:",
            InputError,
            "Spark gave up: Job aborted due to stage failure: Task 1 failed 4 times; what is "
            "finished is kept",
        ),
        (
            "Traceback (most recent call last):\n..\nModuleNotFoundError: No module named 'fct_tf'",
            InputError,
            "a worker says No module named 'fct_tf'",
        ),
        ("Traceback (most recent call last):\n  ..\nKeyError: 1", RuntimeError, "KeyError: 1"),
    ],
)
def test_what_spark_says_when_it_gives_up(message, kind, told):
    error = spark._failure(Raised(message))
    assert type(error) is kind and told in str(error)
    assert kind is RuntimeError or "\n" not in str(error)
