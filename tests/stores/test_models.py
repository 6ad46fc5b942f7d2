"""Artifacts and SavedModels in a bucket: read and written there, whole or not at all."""

import pickle
import shutil

import keras
import numpy as np
import pytest

from fct_tf import Gallery, Model, Transformation, export_serving
from fct_tf.common import copies, objects
from fct_tf.common.errors import InputError
from fct_tf.models import artifact, export, saved_model
from fct_tf.models.load import load_any
from tests.upgrade.test_upgrade import make_gallery, make_transformation


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FCT_TF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The working directory of a training."""
    return make_transformation(tmp_path_factory.mktemp("fct"))


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))


INFO = {
    "name": "small",
    "distance": "l2",
    "preprocessing": {"size": 8, "scaling": "raw", "resize": "bilinear_antialias"},
}
IMAGES = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)


def save(uri, network, **more):
    kept = artifact.load(uri).info if more.pop("like", None) else INFO
    return artifact.save(uri, network, "backbone", kept, **more)


@pytest.fixture
def info(trained):
    """What a transformation's model.json needs."""
    known = artifact.load(trained).info
    keys = ("name", "distance", "source_space", "side_info_space", "target_space")
    return {key: known[key] for key in keys}


@pytest.fixture
def model(trained):
    return artifact.load(trained).model


def test_an_artifact_there_and_back(place, trained, model, info, monkeypatch, cache):
    uri, written, write = f"{place}/run/artifact", [], objects.write
    monkeypatch.setattr(objects, "write", lambda *what: (written.append(what[0]), write(*what)))
    made = artifact.save(uri, model, "transformation", info)
    assert made == uri and written[-1] == f"{uri}/model.json" and len(written) == 2
    read = artifact.load(f"{place}/run")
    assert read.info == artifact.load(uri).info and read.space == artifact.load(trained).space
    inputs = {"source_embedding": np.ones((2, 13)), "side_info": np.ones((2, 7))}
    np.testing.assert_array_equal(read.model(inputs)["embedding"], model(inputs)["embedding"])
    with pytest.raises(InputError, match="artifact: exists already; pass `overwrite=True`"):
        artifact.save(uri, model, "transformation", info)
    # Another process, on another machine: from the store, not from this machine's copy.
    carried = pickle.dumps(read)
    shutil.rmtree(cache)
    assert pickle.loads(carried).space == read.space

    export.export_transformation(uri, f"{place}/run/saved_model")
    assert written[-1] == f"{place}/run/saved_model/saved_model.pb"
    for path in (f"{place}/run", uri, f"{place}/run/saved_model/"):
        assert saved_model.load_transformation(path).info["space"] == read.space


def test_copied_once_and_again_when_it_has_changed(
    place,
    trained,
    model,
    info,
    monkeypatch,
    cache,
):
    uri, fetched, download = f"{place}/artifact", [], objects.download
    monkeypatch.setattr(
        objects, "download", lambda *what: (fetched.append(what[0]), download(*what))
    )
    artifact.save(uri, model, "transformation", info)
    for _ in range(3):
        artifact.load(uri)
    assert len(fetched) == 2
    artifact.save(uri, model, "transformation", {**info, "name": "another"}, overwrite=True)
    assert artifact.load(uri).name == "another" and len(fetched) == 4
    assert len([*cache.iterdir()]) == 2  # The earlier one may be in use.


@pytest.mark.parametrize("stopped_at", [0, 1])
def test_half_an_upload_is_none(place, model, info, monkeypatch, stopped_at):
    uri, count, write = f"{place}/artifact", [], objects.write

    def failing(*what):
        if len(count) == stopped_at:
            raise InputError("connection reset")
        count.append(what)
        write(*what)

    monkeypatch.setattr(objects, "write", failing)
    with pytest.raises(InputError, match="connection reset"):
        artifact.save(uri, model, "transformation", info)
    with pytest.raises(InputError, match="not a model artifact"):
        artifact.load(uri)
    monkeypatch.setattr(objects, "write", write)
    artifact.save(uri, model, "transformation", info)
    assert artifact.load(uri).name == info["name"]


def test_a_damaged_file_is_named(place, model, info):
    uri = f"{place}/artifact"
    artifact.save(uri, model, "transformation", info)
    content = bytearray(objects.read(f"{uri}/model.keras"))
    content[len(content) // 2] ^= 1
    objects.write(f"{uri}/model.keras", bytes(content))
    with pytest.raises(InputError, match="model.keras: changed or damaged since it was saved"):
        artifact.load(uri)


def test_files_that_change_while_they_are_copied(place, monkeypatch):
    uri, download, times = f"{place}/m", objects.download, []
    for name in ("a", "b"):
        objects.write(f"{uri}/{name}", b"1")

    def changing(one, path):
        download(one, path)
        if one.endswith("a") and len(times) < 1:
            times.append(1)
            objects.write(f"{uri}/a", b"2")
            objects.write(f"{uri}/b", b"2")

    monkeypatch.setattr(objects, "download", changing)
    copy = copies.local(uri)
    assert [(copy / name).read_bytes() for name in ("a", "b")] == [b"2", b"2"]


def test_models_of_a_user_s_own(place, network, tmp_path):
    network.save(tmp_path / "own.keras")
    network.export(tmp_path / "own", verbose=False)
    objects.write(f"{place}/own.keras", tmp_path / "own.keras")
    copies.put(tmp_path / "own", f"{place}/exported", "saved_model.pb")
    expected = Model.load(tmp_path / "own.keras")
    for path in (f"{place}/own.keras", f"{place}/exported"):
        found = Model.load(path, image_size=8)
        assert found.space == expected.space
        np.testing.assert_allclose(found.embed(IMAGES), expected.embed(IMAGES), rtol=1e-5)
    assert (found.name, expected.name) == ("exported", "own")
    with pytest.raises(InputError, match="none: no such model"):
        load_any(f"{place}/none")


def test_transformations_in_python_and_by_version(place, trained, run_door, cache):
    local = Transformation.load(trained)
    assert local.save(f"{place}/kept") == f"{place}/kept"
    kept = Transformation.load(f"{place}/kept")
    gallery = Gallery.open(make_gallery(f"{place}/g.lance"))
    gallery.upgrade(kept, "x")
    gallery.upgrade(local, "y")
    rows = gallery.read(["x", "y"])
    np.testing.assert_array_equal(rows.vectors["x"], rows.vectors["y"])
    for _ in range(2):
        flags = (f"--model={place}/kept/artifact", f"--output={place}/served", "--batch_sizes=1")
        assert run_door(export_serving, *flags) == 0
    assert objects.folders(f"{place}/served") == ["1", "2"]
    shutil.rmtree(cache)
    assert Transformation.load(f"{place}/served").path.name == "2"
    assert len([*cache.iterdir()]) == 1  # The version alone.
    assert pickle.loads(pickle.dumps(kept.loaded)).info == kept.info
