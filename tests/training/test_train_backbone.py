"""Training of a backbone: it learns, resumes bitwise, and says what is wrong."""

import json

import numpy as np
import pytest
import tensorflow as tf

from fct_tf import train_backbone
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.models import artifact
from fct_tf.training import backbone, side_info
from tests import killing, tiny


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


def test_training_learns_and_leaves_an_artifact(images, tmp_path):
    config = tiny.experiment(images, epochs=8)
    config.training.checkpoint_minutes = 10.0
    path = backbone.train(config, "new", tmp_path / "new")
    loaded = artifact.load(path)
    assert loaded.kind == "backbone"
    weights, label_names = loaded.classifier
    assert weights.shape == (8, 4)
    assert label_names == ("class0", "class1", "class2", "class3")
    history = losses(tmp_path / "new")
    assert np.mean(history[-3:]) < np.mean(history[:3])
    assert list((tmp_path / "new" / "tensorboard").iterdir())
    batch = tf.zeros([3, 16, 16, 3])
    assert loaded.embed(batch).shape == (3, 8)


def test_old_model_learns_only_its_classes(images, tmp_path, small_network):
    path = backbone.train(tiny.experiment(images, epochs=1), "old", tmp_path / "old")
    assert artifact.load(path).classifier[1] == ("class0", "class1")


def test_finished_run_is_refused_skipped_or_replaced(images, tmp_path, small_network):
    config = tiny.experiment(images, epochs=1)
    path = backbone.train(config, "new", tmp_path / "new")
    space = artifact.load(path).space
    with pytest.raises(InputError, match="exists already"):
        backbone.train(config, "new", tmp_path / "new")
    backbone.train(config, "new", tmp_path / "new", existing="skip")
    assert artifact.load(path).space == space
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        backbone.train(config, "new", tmp_path / "new", seed=1)
    backbone.train(config, "new", tmp_path / "new", seed=1, existing="overwrite")
    assert artifact.load(path).space != space


def test_non_finite_loss_stops_and_names_the_step(images, tmp_path, small_network):
    config = tiny.experiment(images)
    config.models.new.optimizer.learning_rate = 1e30
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+"):
        backbone.train(config, "new", tmp_path / "new")
    assert not (tmp_path / "new" / "artifact").exists()


def test_batch_larger_than_the_data(images, tmp_path):
    config = tiny.experiment(images, batch_size=64)
    with pytest.raises(InputError, match="lower batch_size"):
        backbone.train(config, "new", tmp_path / "new")


def test_unknown_model(images, tmp_path):
    with pytest.raises(InputError, match=r"`model=newest`: .*new, old"):
        backbone.train(tiny.experiment(images), "newest", tmp_path / "new")


def test_workdir_below_a_regular_file(images, tmp_path, run_door, capsys):
    (tmp_path / "file").write_text("kept")
    config = tiny.experiment_file(tmp_path / "e.py", images)
    status = run_door(
        train_backbone, f"--config={config}", "--model=new", f"--workdir={tmp_path}/file/run"
    )
    error = capsys.readouterr().err
    assert status == 2 and f"{tmp_path}/file" in error.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "kept"


def test_side_info(images, tmp_path, small_network):
    config = tiny.experiment(images, epochs=4)
    config.training.checkpoint_minutes = 10.0
    path = side_info.train(config, tmp_path / "side_info")
    loaded = artifact.load(path)
    assert loaded.kind == "side_info"
    assert loaded.embed(tf.zeros([2, 16, 16, 3])).shape == (2, 8)
    history = losses(tmp_path / "side_info")
    assert np.mean(history[-3:]) < np.mean(history[:3])


def _kill_and_compare(images, tmp_path, moments, seed):
    """Kills one run at several seeded moments; its end must be that of an undisturbed run."""
    config = tiny.experiment_file(tmp_path / "e.py", images, epochs=6)
    arguments = ["fct_tf.train_backbone", f"--config={config}", "--model=new"]
    killing.run([*arguments, f"--workdir={tmp_path}/undisturbed"])
    rng = np.random.default_rng(seed)
    metrics = tmp_path / "killed" / "metrics.jsonl"

    def lines():
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    killed = 0
    for _ in range(moments):
        # 30 steps in calls of two: on average a run is killed after a few more calls.
        target = lines() + int(rng.integers(0, 1 + 24 // moments))
        killed += killing.kill_when(
            [*arguments, f"--workdir={tmp_path}/killed"],
            lambda target=target: lines() >= target and metrics.exists(),
            float(rng.uniform(0, 0.1)),
        )
        if (tmp_path / "killed" / "artifact").exists():
            break
    assert killed
    if not (tmp_path / "killed" / "artifact").exists():
        killing.run([*arguments, f"--workdir={tmp_path}/killed"])
    infos = [
        read_json(tmp_path / run / "artifact" / "model.json") for run in ("undisturbed", "killed")
    ]
    assert infos[0]["space"] == infos[1]["space"]
    assert losses(tmp_path / "undisturbed") == losses(tmp_path / "killed")


# A quick one: test_stopped_training_continues_bitwise in test_compatibility.py.
@pytest.mark.slow
def test_killed_training_continues_bitwise_ten_times(images, tmp_path):
    _kill_and_compare(images, tmp_path, moments=10, seed=1)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_unreadable_image_is_named(tmp_path, small_network, cache):
    images = tiny.image_folder(tmp_path / "images")
    (images / "train" / "class1" / "3.png").write_bytes(b"no picture")
    config = tiny.experiment(images)
    config.dataset.cache = cache
    with pytest.raises(InputError, match="train/class1/3.png"):
        backbone.train(config, "new", tmp_path / "new")
    config.dataset.on_bad_image = "skip"
    path = backbone.train(config, "new", tmp_path / "skipping")
    assert read_json(path / "model.json")["facts"]["images"] == 39
