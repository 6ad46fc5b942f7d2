"""Fixtures of the tests of data sets. TensorFlow is imported by who needs it."""

import pytest


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    """train and val of a folder of images, with files in it that are no images."""
    from tests.data.images import COUNTS, write_images

    path = tmp_path_factory.mktemp("images") / "photos"
    write_images(path / "train", COUNTS)
    write_images(path / "val", {"cat": 2, "owl": 3}, seed=1)
    (path / "train" / "dog" / "notes.txt").write_text("not an image")
    (path / "train" / "dog" / ".hidden.png").write_text("not an image")
    (path / "train" / "README").write_text("not a class")
    return path


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning."""
    from fct_tf.data import sources

    logged = []
    monkeypatch.setattr(
        sources.logging, "warning", lambda text, *values: logged.append(text % values)
    )
    return logged


@pytest.fixture(scope="package")
def shards(tmp_path_factory):
    """The directory of a TFDS set of five files."""
    import tensorflow_datasets as tfds

    from tests.data.images import Shards

    builder = Shards(data_dir=str(tmp_path_factory.mktemp("tfds")))
    config = tfds.download.DownloadConfig(num_shards=5)
    builder.download_and_prepare(download_config=config)
    assert len(builder.info.splits["train"].shard_lengths) == 5
    return str(builder.data_dir_root)
