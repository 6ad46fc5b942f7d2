"""The benchmark of training on rows against training on images, tiny."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf.gallery import table
from fct_tf.models import artifact, preprocess
from tests import tiny


@pytest.fixture
def benchmark(script):
    return script("rows_vs_images")


@pytest.fixture
def images(tmp_path):
    return tiny.image_folder(tmp_path / "images", per_class=6)


@pytest.fixture
def models(tmp_path):
    """Networks of random weights where a study keeps its trained ones."""
    preprocessing = preprocess.preprocessing("symmetric", 16, "bilinear_antialias")
    for seed, name in enumerate(("old", "new", "side_info")):
        keras.utils.set_random_seed(seed)
        image = keras.Input((16, 16, 3))
        pooled = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(image))
        network = keras.Model(image, keras.layers.Dense(8)(pooled))
        kind = "side_info" if name == "side_info" else "backbone"
        info = {"name": name, "distance": "l2", "preprocessing": preprocessing}
        artifact.save(tmp_path / "models" / name / "artifact", network, kind, info)
    return tmp_path / "models"


@pytest.mark.slow
def test_rows_vs_images(benchmark, images, models, tmp_path, run_door, monkeypatch, capsys):
    output = tmp_path / "out.json"
    config = tiny.experiment_file(tmp_path / "tiny_config.py", images)
    flags = [f"--config={config}", "--name=fct", f"--models={models}", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["rows_vs_images.py", *map(str, flags)])
    assert run_door(benchmark, *flags) == 0
    assert str(tmp_path) not in output.read_text()
    record = json.loads(output.read_text())
    assert (record["num_images"], record["epochs"], record["steps"]) == (24, 2, 6)
    images_way, rows_way = record["on_images"], record["on_rows"]
    assert rows_way["seconds"] == pytest.approx(
        rows_way["embedding_s"] + rows_way["training_s"], abs=0.11
    )
    for way in (images_way, rows_way):
        assert 0 < way["accuracy"]["top_1"] <= way["accuracy"]["top_5"] <= 1
    for key, points in record["points_above_images"].items():
        expected = 100 * (rows_way["accuracy"][key] - images_way["accuracy"][key])
        assert points == pytest.approx(expected, abs=0.01)
    assert "times as fast" in capsys.readouterr().out

    assert run_door(benchmark, *flags, "--config.transformations.fct.pairs.share=0.2") == 2
    assert "not trained once on the clean training images" in capsys.readouterr().err


def test_images_read_without_augmentation_are_the_rows(benchmark, images, models, tmp_path):
    config = tiny.experiment(images)
    loaded = benchmark.load_images(config, "train")
    networks = benchmark.models_of(config, "fct", models)
    gallery = table.open_gallery(benchmark.embed(loaded, networks, tmp_path / "g.lance", 5))
    reader = benchmark.ImagesReader(loaded, networks, schema.augment("none"), 0)
    order = np.random.default_rng(0).permutation(24).reshape(4, 6)
    batches = list(reader([], {}, 0.0, [])(tf.data.Dataset.from_tensor_slices(order)))
    stored = gallery.read(["embedding_old", "embedding_new", "side_info"]).vectors
    for role, (column, _) in networks.items():
        read = np.concatenate([batch[role] for batch in batches])
        np.testing.assert_allclose(read, stored[column][order.reshape(-1)], atol=1e-5)
    assert reader.epochs == 1
    # Augmented, every epoch is another one.
    reader = benchmark.ImagesReader(loaded, networks, schema.augment("affine"), 0)
    read = reader([], {}, 0.0, [])
    first, second = (next(iter(read(tf.data.Dataset.from_tensor_slices(order)))) for _ in range(2))
    assert not np.allclose(first["target"], second["target"])
