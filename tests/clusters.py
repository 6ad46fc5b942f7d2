"""Clusters of the tests; what they need of this machine."""

import shutil
import sys
import time

import pytest

from tests.conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import spark_cluster as spark_cluster  # noqa: E402


def missing() -> str:
    """What is missing here for Spark, or an empty string."""
    try:
        import pyspark  # noqa: F401
    except ImportError:
        return "no pyspark (pip install 'fct_tf[spark]')"
    return "" if shutil.which("java") else "no Java (apt-get install openjdk-17-jre-headless)"


needs_spark = [pytest.mark.spark, pytest.mark.skipif(bool(missing()), reason=missing())]


def wait_until(true, timeout_s: float = 120) -> None:
    """Waits until `true()`."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
