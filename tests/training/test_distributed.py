"""Replicas agree with one device: the same batches give the same weights."""

import json
import socket

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (conftest makes two logical devices where it is imported)

from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.models import artifact, backbone
from fct_tf.training import backbone as backbone_training
from fct_tf.training import side_info, transformation
from tests import killing, tiny
from tests.builders import write_gallery


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.image_folder(tmp_path_factory.mktemp("images"), per_class=24)


def five_steps(images, batch_size, strategy):
    config = tiny.experiment(images, batch_size=batch_size)
    for section in (config.models.new, config.side_info, config.transformations.fct):
        section.train_epochs = section.warmup_epochs = 0
        section.train_steps = 5
    # In float32 a rounding difference may flip a ReLU, and then gradients differ for good.
    config.models.new.backbone.dtype = config.side_info.backbone.dtype = "float64"
    config.training.steps_per_call = 5
    config.training.strategy = strategy
    config.training.devices = 2 if strategy == "mirrored" else 0
    config.training.deterministic = False  # A determinism that this test does not need.
    return config


def weights(path):
    return artifact.load(path).model.get_weights()


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def differ(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)) > 1e-3


@pytest.fixture
def network(request, monkeypatch):
    """`one_layer` instead of a network with batch normalisation, or "" for that itself."""
    if request.param:
        monkeypatch.setattr(backbone, "build", tiny.one_layer)
    return request.param


SLOW = pytest.param("", marks=pytest.mark.slow, id="resnet")
NETWORKS = pytest.mark.parametrize("network", ["one_layer", SLOW], indirect=True)


@pytest.mark.slow
def test_backbone_on_two_devices_equals_one(images, two_devices, tmp_path):
    one, two, other = (
        backbone_training.train(five_steps(images, size, strategy), "new", tmp_path / name)
        for name, size, strategy in (
            ("one", 32, "one_device"),
            ("two", 32, "mirrored"),
            ("other", 34, "one_device"),
        )
    )
    assert_same(weights(one), weights(two))
    assert_same([artifact.load(one).classifier[0]], [artifact.load(two).classifier[0]])
    # Twice 16 is not twice 17: the comparison would notice a wrong batch.
    assert differ(weights(one), weights(other))


@NETWORKS
def test_side_info_on_two_devices_equals_one(images, two_devices, tmp_path, network):
    # SimCLR: negatives come from both replicas, or the loss would be another one.
    paths = []
    for strategy in ("one_device", "mirrored"):
        config = five_steps(images, 16, strategy)
        paths.append(side_info.train(config, tmp_path / strategy))
    assert_same(*map(weights, paths))


def test_batch_that_does_not_divide(images, two_devices, tmp_path):
    with pytest.raises(InputError, match="batch_size=15 does not divide by 2 replicas"):
        side_info.train(five_steps(images, 15, "mirrored"), tmp_path)


def write_random(path, rng, count, **settings):
    names, labels = ("old", "side", "new"), [f"class {row % 16}" for row in range(count)]
    vectors = {name: rng.normal(size=(count, 8)).astype(np.float32) for name in names}
    write_gallery(path, vectors, labels, **settings)
    return str(path)


# A quick one, of the model alone: test_two_replicas_equal_one in test_transformation_model.py.
@pytest.mark.slow
def test_transformation_on_two_devices_equals_one(images, two_devices, tmp_path):
    path = write_random(tmp_path / "rows.lance", np.random.default_rng(0), 64)
    one, two = (
        transformation.train(
            five_steps(images, 16, strategy),
            "fct",
            path,
            "old",
            "new",
            tmp_path / strategy,
            side_info="side",
        )
        for strategy in ("one_device", "mirrored")
    )
    assert_same(weights(one / "artifact"), weights(two / "artifact"))


@pytest.mark.slow
def test_all_that_a_transformation_can_train_with_on_two_devices(images, two_devices, tmp_path):
    rng = np.random.default_rng(0)
    paths = [
        write_random(tmp_path / f"{name}.lance", rng, count, ids=name)
        for name, count in (("rows", 96), ("pairs", 20))
    ]
    made = []
    for strategy in ("one_device", "mirrored"):
        config = five_steps(images, 16, strategy)
        section = config.transformations.fct
        section.update(affine_init=True, pairs={"share": 0.2, "method": "rows"}, dtype="float64")
        workdir = tmp_path / strategy
        arguments = (config, "fct", paths[0], "old", "new", workdir)
        transformation.train(*arguments, side_info="side", pairs=paths[1])
        made.append(artifact.load(workdir / "artifact"))
    assert_same(*(one.model.get_weights() for one in made))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.slow
@NETWORKS
def test_two_workers_train_and_agree_with_one_device(images, tmp_path, network):
    config = tmp_path / "e.py"
    config.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(tiny.__file__).rsplit('/', 2)[0]!r})\n"
        "from pathlib import Path\n"
        "from tests import tiny\n"
        "from tests.training.test_distributed import five_steps\n"
        f"{tiny.ONE_LAYER if network else ''}"
        "def get_config():\n"
        f"    return five_steps(Path({str(images)!r}), 32, 'multi_worker')\n"
    )
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    command = ["fct_tf.train_backbone", f"--config={config}", "--model=new"]
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": n}} for n in range(2)]
    workers = [
        killing.Program([*command, f"--workdir={tmp_path}/workers"], TF_CONFIG=json.dumps(task))
        for task in tasks
    ]
    ended = [worker.wait() for worker in workers]
    assert ended == [0, 0], "\n".join(worker.errors() for worker in workers)[-3000:]
    one = backbone_training.train(five_steps(images, 32, "one_device"), "new", tmp_path / "one")
    assert_same(weights(one), weights(tmp_path / "workers" / "artifact"))
    assert read_json(tmp_path / "workers" / "settings.json") == read_json(
        tmp_path / "one" / "settings.json"
    )
