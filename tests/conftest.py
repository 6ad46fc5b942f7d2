"""Fixtures shared by the tests."""

import importlib
import os
from pathlib import Path

# Before TensorFlow is imported anywhere.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

from fct_tf.common import cli

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


@pytest.fixture
def script(monkeypatch):
    """Imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of small images, 40 in train and 24 in val, of four classes; not to be changed."""
    from tests import tiny

    return tiny.image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def small_network(monkeypatch) -> None:
    """Models of one layer instead of those that an experiment names."""
    from fct_tf.models import backbone
    from tests import tiny

    monkeypatch.setattr(backbone, "build", tiny.one_layer)


@pytest.fixture(scope="session")
def fastfill(tmp_path_factory) -> Path:
    """The working directory of a transformation that tells a log-variance."""
    from tests.builders import make_transformation

    return make_transformation(tmp_path_factory.mktemp("fastfill"), log_variance=True)


@pytest.fixture(scope="session")
def two_devices() -> list[str]:
    """Two logical CPU devices of TensorFlow, made before it starts its runtime."""
    import tensorflow as tf

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    assert len(names) == 2, "TensorFlow was started before tests/conftest.py set its devices"
    return names


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The URI of an empty bucket of a store on this machine, which this process can open."""
    from tests import buckets

    with pytest.MonkeyPatch.context() as patch, buckets.served() as server:
        patch.setenv("FCT_TF_CACHE", str(tmp_path_factory.mktemp("cache")))
        with buckets.opened(server):
            yield server.bucket("gallery-bucket")


def pytest_collection_modifyitems(items):
    """Sets up two logical devices as soon as any collected module has imported TensorFlow."""
    import sys

    if "tensorflow" in sys.modules:
        import tensorflow as tf

        cpus = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory) -> dict[int, Path]:
    """SavedModels of the model server's tests: factor -> path."""
    from tests.model_servers import save

    directory = tmp_path_factory.mktemp("saved_models")
    paths = {factor: directory / str(factor) for factor in (1, 2)}
    for factor, path in paths.items():
        save(path, factor)
    return paths


@pytest.fixture(scope="session")
def shared_input_model(tmp_path_factory) -> Path:
    """A SavedModel of TensorFlow 1's kind: signatures on one placeholder, with method names."""
    import tensorflow as tf

    path = tmp_path_factory.mktemp("saved_models") / "shared_input"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.string, [None], name="examples")
        features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
        x = tf.io.parse_example(inputs, features)["x"]
        info = v1.saved_model.build_tensor_info
        build = v1.saved_model.build_signature_def
        signatures = {
            name: build({"inputs": info(inputs)}, {alias: info(x)}, f"tensorflow/serving/{name}")
            for name, alias in (("classify", "scores"), ("regress", "outputs"))
        }
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return path
