"""Fixtures of the tests of backfilling. TensorFlow is imported by who needs it."""

import shutil

import pytest


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    """images/, new.keras and two other models, and all.lance, the first one's embeddings."""
    from tests.backfill.photos import make_photos

    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def own(photos, tmp_path):
    """A copy of the images and an upgraded gallery of them; the path of both."""
    from tests.backfill.photos import make_gallery

    shutil.copytree(photos / "images", tmp_path / "images")
    make_gallery(photos, tmp_path / "g.lance")
    return tmp_path
