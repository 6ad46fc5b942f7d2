"""Fixtures shared by the tests."""

import os
from pathlib import Path

# Before TensorFlow is imported anywhere.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

from fct_tf import cli

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATASETS = ROOT.parent / "shared" / "datasets"


@pytest.fixture(scope="session")
def shared_datasets() -> Path:
    """The directory of the development data sets, where they lie beside the checkout."""
    if not SHARED_DATASETS.is_dir():
        pytest.skip("development data sets are not beside this checkout (../shared/datasets)")
    return SHARED_DATASETS


@pytest.fixture
def run_door():
    """Calls a door in this process: `run_door(module, "--flag=value", ...) -> exit status`."""

    def run(module, *arguments) -> int:
        argv = [module.__name__, *(str(argument) for argument in arguments)]
        return cli.call(module.__doc__, module.main, module.define_flags, argv)

    return run


@pytest.fixture(scope="session")
def two_devices() -> list[str]:
    """Two logical CPU devices of TensorFlow, made before it starts its runtime."""
    import tensorflow as tf

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    assert len(names) == 2, "TensorFlow was started before tests/conftest.py set its devices"
    return names


def pytest_collection_modifyitems(items):
    """Sets up two logical devices as soon as any collected module has imported TensorFlow."""
    import sys

    if "tensorflow" in sys.modules:
        import tensorflow as tf

        cpus = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
