"""Fixtures of the tests of galleries."""

import pytest

from fct_tf.gallery import table
from tests.gallery.tables import column, rows


@pytest.fixture
def gallery(tmp_path):
    """A gallery of 101 rows in six files, with the column `a`."""
    return table.create(tmp_path / "g.lance", [rows(101)], [column("a")], rows_per_file=17)
