"""An index to be opened, changed and broken."""

import pytest

from fct_tf.ann import index
from tests.ann.galleries import COMPLETE, copied, gallery_at


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A gallery and a complete index of it, not to be changed: copy them."""
    root = tmp_path_factory.mktemp("made")
    gallery_at(root / "g.lance")
    index.build(root / "g.lance", "a", root / "i", COMPLETE)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy of both, to be changed."""
    return copied(made, tmp_path)
