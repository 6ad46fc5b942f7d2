"""Artifacts: what is saved is what is loaded, whole or not at all; users' own models."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf.common.errors import InputError
from fct_tf.models import artifact, backbone, preprocess, transformation
from fct_tf.models.load import load_any
from tests import replicas

SIZE = 16
PREPROCESSING = preprocess.preprocessing("imagenet", SIZE)
INFO = {
    "name": "old",
    "distance": "cosine",
    "preprocessing": PREPROCESSING,
    "training": {"seed": 3},
}


def network(seed=0, **settings):
    width = 1.0 if settings.get("name", "").startswith("keras_cv:") else 0.0625
    given = {"width": width, "embedding_dim": 7, **settings}
    return backbone.build(schema.backbone(**given), SIZE, seed)


def pixels(n=5):
    return np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained-like model and its artifact; tests leave it as it is."""
    model = network()
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if not weight.path.endswith("kernel"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    path = tmp_path_factory.mktemp("artifact") / "old"
    weights = rng.normal(size=(7, 3)).astype(np.float32)
    artifact.save(path, model, "backbone", INFO, classifier=(weights, ["a", "b", "ß/ć"]))
    return model, weights, path


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the artifact, to be damaged."""
    import shutil

    return shutil.copytree(saved[2], tmp_path / "copy")


def test_what_is_saved_is_loaded(saved):
    model, weights, path = saved
    loaded = artifact.load(path)
    images = pixels()
    expected = model(preprocess.apply(images, PREPROCESSING), training=False)
    embeddings = loaded.embed(images)
    assert embeddings.dtype == tf.float32
    np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(loaded.embed(images.astype(np.float32)), embeddings)
    for a, b in zip(model.weights, loaded.model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    np.testing.assert_array_equal(loaded.classifier[0], weights)
    assert loaded.classifier[1] == ("a", "b", "ß/ć")
    assert (loaded.kind, loaded.name, loaded.distance, loaded.dim) == (
        "backbone",
        "old",
        "cosine",
        7,
    )
    assert loaded.preprocessing == PREPROCESSING and loaded.compatible_with == []
    assert loaded.info["training"] == {"seed": 3}
    assert loaded.info["versions"]["tensorflow"] == tf.__version__
    assert load_any(path).space == loaded.space


def test_fingerprint_sees_weights_and_preprocessing_and_no_names(saved):
    model, _, path = saved
    space = artifact.load(path).space
    other = {**PREPROCESSING, "resize": "center_crop"}
    assert artifact.fingerprint(model, other) != space
    renamed = keras.models.clone_model(model)
    for layer in renamed.layers:
        layer.name = f"renamed_{layer.name}"
    renamed.set_weights(model.get_weights())
    assert artifact.fingerprint(renamed, PREPROCESSING) == space
    changed = renamed.weights[-1].numpy()
    changed[0] = np.nextafter(changed[0], 2)  # the smallest change there is
    renamed.weights[-1].assign(changed)
    assert artifact.fingerprint(renamed, PREPROCESSING) != space
    assert artifact.fingerprint(network(seed=1), PREPROCESSING) != artifact.fingerprint(
        network(seed=2), PREPROCESSING
    )
    a, b = np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)
    assert artifact.tensors_sha256([a], {}) != artifact.tensors_sha256([b], {})
    assert artifact.tensors_sha256([a], {}) != artifact.tensors_sha256([a.astype("f8")], {})


def test_file_is_readable_without_this_package(saved):
    with zipfile.ZipFile(saved[2] / "model.keras") as file:
        assert b"fct_tf" not in file.read("config.json")


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "resnet34", "stem": "3x3", "normalize": True},
        {"dtype": "bfloat16"},
        pytest.param({"name": "keras_cv:efficientnetv2_b0"}, marks=pytest.mark.slow),
    ],
    ids=["resnet34", "bfloat16", "efficientnet"],
)
def test_other_networks_reload(settings, tmp_path):
    model = network(**settings)
    artifact.save(tmp_path / "a", model, "side_info", INFO)
    loaded = artifact.load(tmp_path / "a")
    expected = model(preprocess.apply(pixels(), PREPROCESSING), training=False).numpy()
    tolerance = 0.02 if settings.get("dtype") else 1e-5
    np.testing.assert_allclose(
        loaded.embed(pixels()), expected, atol=tolerance * np.abs(expected).max()
    )
    assert artifact.fingerprint(loaded.model, PREPROCESSING) == loaded.space
    assert loaded.kind == "side_info" and loaded.classifier is None


def test_transformation(tmp_path):
    model = transformation.build(5, 7, 3, hidden=11)
    spaces = {"source_space": "a" * 64, "side_info_space": "b" * 64, "target_space": "c" * 64}
    info = {"name": "fct", "distance": "l2", **spaces}
    artifact.save(tmp_path / "fct", model, "transformation", info)
    loaded = artifact.load(tmp_path / "fct")
    assert loaded.info["dims"] == {"source_embedding": 5, "side_info": 3, "embedding": 7}
    inputs = {"source_embedding": tf.ones([2, 5]), "side_info": tf.ones([2, 3])}
    np.testing.assert_allclose(
        loaded.model(inputs)["embedding"], model(inputs)["embedding"], rtol=1e-5, atol=1e-6
    )
    # The same map of other vectors makes other vectors.
    artifact.save(tmp_path / "2", model, "transformation", {**info, "source_space": "d" * 64})
    assert artifact.load(tmp_path / "2").space != loaded.space
    with pytest.raises(InputError, match="reads embeddings and not images"):
        load_any(tmp_path / "fct")


def test_model_of_two_replicas(two_devices, tmp_path):
    with replicas.strategy().scope():
        config = schema.backbone(width=0.0625, embedding_dim=7).copy_and_resolve_references()
        config.unlock()
        config.sync_batch_norm = True
        model = backbone.build(config, SIZE)
    artifact.save(tmp_path / "a", model, "backbone", INFO)
    assert artifact.load(tmp_path / "a").space == artifact.fingerprint(network(), PREPROCESSING)


def test_batches_of_any_size(saved):
    loaded = artifact.load(saved[2])
    whole = loaded.embed(pixels(13)).numpy()
    parts = [loaded.embed(pixels(13)[a : a + 5]).numpy() for a in (0, 5, 10)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)


def test_existing_artifact_is_refused(saved, copy):
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        artifact.save(copy, network(), "backbone", INFO)
    artifact.save(copy, network(seed=9), "backbone", {**INFO, "name": "new"}, overwrite=True)
    loaded = artifact.load(copy)
    assert loaded.name == "new" and loaded.classifier is None  # nothing of the former is left
    assert loaded.space == artifact.fingerprint(network(seed=9), PREPROCESSING)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "encoder"}, "kind 'encoder'"),
        ({"info": {"name": "x", "distance": "l2"}}, "preprocessing"),
        ({"classifier": (np.ones((6, 2)), ["a", "b"])}, "classifier: weights"),
        ({"classifier": (np.ones((7, 2)), ["a"])}, "classifier: weights"),
    ],
)
def test_wrong_arguments_write_nothing(change, message, tmp_path):
    arguments = {"kind": "backbone", "info": INFO, **change}
    with pytest.raises(ValueError, match=message):
        artifact.save(tmp_path / "a", network(), **arguments)
    assert not list(tmp_path.iterdir())


def test_failing_save_leaves_the_former_artifact(copy, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    space = artifact.load(copy).space
    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space"):
        artifact.save(
            copy, network(9), "backbone", INFO, classifier=(np.ones((7, 1)), "a"), overwrite=True
        )
    assert artifact.load(copy).space == space
    assert os.listdir(copy.parent) == [copy.name]


@pytest.mark.slow
def test_killed_save_leaves_the_former_artifact(copy):
    """SIGKILL between the files of an artifact; the next save clears what was left."""
    program = f"""
import os, signal
import numpy as np
from fct_tf.models import artifact
from tests.models import test_artifact
np.savez = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
classifier = (np.ones((7, 1)), ["a"])
artifact.save({str(copy)!r}, test_artifact.network(9), "backbone", test_artifact.INFO,
              classifier=classifier, overwrite=True)
"""
    space = artifact.load(copy).space
    ended = subprocess.run([sys.executable, "-c", program])
    assert ended.returncode == -signal.SIGKILL
    assert artifact.load(copy).space == space
    artifact.save(copy, network(9), "backbone", INFO, overwrite=True)
    assert artifact.load(copy).space != space
    assert os.listdir(copy.parent) == [copy.name]


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.unlink])
@pytest.mark.parametrize("name", ["model.keras", "classifier.npz"])
def test_damaged_file_is_named(copy, damage, name):
    damage(copy / name)
    with pytest.raises(InputError, match=f"copy/{name}: (changed or damaged|missing)"):
        artifact.load(copy)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "model.json: not a readable JSON file"),
        ("[]", "model.json: does not describe a model artifact"),
        ('{"format": 1}', "model.json: does not describe a model artifact"),
    ],
)
def test_damaged_description(copy, text, message):
    (copy / "model.json").write_text(text)
    with pytest.raises(InputError, match=message):
        artifact.load(copy)


def test_later_format_is_refused(copy):
    info = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**info, "format": 2}))
    with pytest.raises(InputError, match="artifact format 2, this version reads 1"):
        artifact.load(copy)


def test_damaged_weights_behind_a_right_checksum(copy):
    """A file that was damaged before it was described is still one line, not a traceback."""
    truncate(copy / "model.keras")
    info = json.loads((copy / "model.json").read_text())
    info["files"]["model.keras"] = hashlib.sha256((copy / "model.keras").read_bytes()).hexdigest()
    (copy / "model.json").write_text(json.dumps(info))
    loaded = artifact.load(copy)
    with pytest.raises(InputError, match="model.keras: cannot be read") as error:
        loaded.embed(pixels())
    assert "\n" not in str(error.value)


def test_missing_artifact(tmp_path):
    with pytest.raises(InputError, match=r"not a model artifact \(no such directory\)"):
        artifact.load(tmp_path / "none")
    with pytest.raises(InputError, match="no such model"):
        load_any(tmp_path / "none")
    with pytest.raises(InputError, match="neither a model artifact nor a SavedModel"):
        load_any(tmp_path)


# --- users' own models ------------------------------------------------------------------------


def own_model(output="vector", channels=3, size=SIZE):
    inputs = keras.Input((size, size, channels))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(6, 3, kernel_initializer=keras.initializers.GlorotUniform(1))(x)
    if output == "vector":
        x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_own_keras_model(tmp_path, suffix):
    model = own_model()
    path = tmp_path / f"mine{suffix}"
    model.save(path)
    loaded = load_any(path)
    # It scales inside, so it is given the pixels as they are.
    np.testing.assert_allclose(loaded.embed(pixels()), model(pixels()), rtol=1e-5, atol=1e-6)
    assert (loaded.name, loaded.kind, loaded.dim, loaded.distance) == ("mine", "backbone", 6, "l2")
    raw = preprocess.preprocessing("raw", SIZE)
    assert loaded.space == artifact.fingerprint(model, raw)
    other = load_any(path, preprocessing="symmetric", name="x", distance="cosine")
    assert other.space != loaded.space and (other.name, other.distance) == ("x", "cosine")
    expected = model(pixels() / np.float32(127.5) - 1)
    np.testing.assert_allclose(other.embed(pixels()), expected, rtol=1e-4, atol=1e-6)


def test_own_saved_model(tmp_path):
    model = own_model()
    model.export(tmp_path / "mine", verbose=False)
    loaded = load_any(tmp_path / "mine")
    np.testing.assert_allclose(loaded.embed(pixels()), model(pixels()), rtol=1e-5, atol=1e-6)
    assert (loaded.dim, loaded.preprocessing["size"]) == (6, SIZE)
    assert load_any(tmp_path / "mine").space == loaded.space
    model.layers[-2].kernel.assign_add(model.layers[-2].kernel)
    model.export(tmp_path / "other", verbose=False)
    assert load_any(tmp_path / "other").space != loaded.space


def test_own_saved_model_of_bytes(tmp_path):
    """A query encoder takes uint8 and names its output; several outputs need that name."""

    class Encoder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.uint8, "image")])
        def encode(self, image):
            mean = tf.reduce_mean(tf.cast(image, tf.float32), axis=[1, 2])
            return {"embedding": mean, "brightness": mean[:, 0]}

    module = Encoder()
    tf.saved_model.save(module, str(tmp_path / "e"), signatures={"serving_default": module.encode})
    expected = pixels().mean(axis=(1, 2))
    np.testing.assert_allclose(load_any(tmp_path / "e").embed(pixels()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "model, message",
    [
        (
            lambda: own_model("map"),
            r"one vector per image, \[batch, d\]; it returns \[1, 14, 14, 6\]",
        ),
        (lambda: own_model(channels=1), "colour images"),
        (lambda: own_model(size=None), "images of any size"),
        (lambda: transformation.build(3, 3, 3, hidden=4), "must have one input, images"),
    ],
)
def test_unfit_keras_models(model, message, tmp_path):
    model().save(tmp_path / "mine.keras")
    with pytest.raises(InputError, match=message) as error:
        load_any(tmp_path / "mine.keras")
    assert "mine.keras" in str(error.value) and "\n" not in str(error.value)


def test_model_of_any_size_with_a_size(tmp_path):
    model = own_model(size=None)
    model.save(tmp_path / "mine.keras")
    loaded = load_any(tmp_path / "mine.keras", image_size=SIZE)
    np.testing.assert_allclose(loaded.embed(pixels()), model(pixels()), rtol=1e-5, atol=1e-6)
    own_model().save(tmp_path / "fixed.keras")
    with pytest.raises(InputError, match="takes images of 16 pixels, not 20"):
        load_any(tmp_path / "fixed.keras", image_size=20)


def test_unreadable_models(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(InputError, match="notes.txt: cannot be read"):
        load_any(tmp_path / "notes.txt")
    (tmp_path / "sm").mkdir()
    (tmp_path / "sm" / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(InputError, match="the SavedModel cannot be loaded"):
        load_any(tmp_path / "sm")
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "bare"))
    with pytest.raises(InputError, match="no signature serving_default"):
        load_any(tmp_path / "bare")
