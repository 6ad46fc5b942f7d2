"""Experiments on large data sets: pipeline, models and one real step, on mocked data.

Everything is as the experiment file says, but for the image size and the batch: a step of
ResNet-50 on 224 pixels and 1024 images is no work for a test machine.
"""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fct_tf.data import datasets
from fct_tf.models import artifact
from fct_tf.training import backbone, side_info
from tests.config.test_config import load

SIZE = 32


def shrink(config):
    """One step on four small images."""
    config.dataset.image_size = SIZE
    config.training.strategy = "one_device"
    for section in (config.models.new, config.models.old, config.side_info):
        section.batch_size = 4
        section.train_epochs = section.warmup_epochs = None
        section.train_steps = 1
    return config


@pytest.fixture
def mocked():
    with tfds.testing.mock_data(num_examples=12):
        yield


@pytest.mark.parametrize(
    "name, num_classes, old_classes",
    [("cifar100", 100, 50), ("imagenet", 1000, 500), ("places365", 365, 182)],
)
def test_pipeline_of_tfds_experiments(mocked, name, num_classes, old_classes):
    config = shrink(load(name))
    images = datasets.load(
        config.dataset.train, image_size=SIZE, resize="center_crop", cache="none"
    )
    assert len(images.label_names) == num_classes
    batch = next(
        iter(datasets.train_batches(images, 4, seed=0, epoch=0, augment=config.models.new.augment))
    )
    assert batch["image"].shape == (4, SIZE, SIZE, 3)
    assert round(config.models.old.classes.fraction * num_classes - 0.5) == old_classes
    gallery = datasets.load(config.dataset.gallery, image_size=SIZE, cache="none")
    assert sum(len(b["id"]) for b in datasets.eval_batches(gallery, 5)) == gallery.num_examples


@pytest.mark.slow
def test_one_step_of_the_papers_backbone(mocked, tmp_path):
    path = backbone.train(shrink(load("cifar100")), "new", tmp_path / "new")
    loaded = artifact.load(path)
    assert loaded.dim == 128
    assert loaded.info["training"]["model"]["backbone"]["name"] == "resnet50"
    assert np.isfinite(loaded.classifier[0]).all()


@pytest.mark.slow
def test_one_step_with_margins(mocked, tmp_path):
    """A face-like model: embeddings of length one, compared by cosine."""
    config = shrink(load("omniglot_faces"))
    config.models.new.backbone.update(name="resnet10", width=0.125)
    loaded = artifact.load(backbone.train(config, "new", tmp_path / "new"))
    assert loaded.distance == "cosine" and loaded.info["classifier_scale"] == 16
    lengths = np.linalg.norm(loaded.embed(np.full((3, SIZE, SIZE, 3), 200.0, np.float32)), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


@pytest.mark.slow
def test_one_step_of_each_model_of_an_experiment(mocked, tmp_path):
    config = shrink(load("imagenet"))
    for model in ("old", "new"):
        backbone.train(config, model, tmp_path / model)
    side_info.train(config, tmp_path / "side_info")


@pytest.mark.parametrize("name", [pytest.param("vggface2", marks=pytest.mark.slow), "image_folder"])
def test_one_step_of_folder_experiments(images, tmp_path, name):
    config = shrink(load(name))
    config.dataset.train = f"folder:{images}:train"
    config.models.old.backbone.width = 0.125
    path = backbone.train(config, "old", tmp_path / "old")
    assert artifact.load(path).classifier[1] == ("class0", "class1")
