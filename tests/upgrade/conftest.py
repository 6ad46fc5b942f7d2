"""Fixtures of the tests of upgrades."""

import pytest

from fct_tf import verdict
from fct_tf.gallery import table
from tests.builders import make_gallery


@pytest.fixture
def judged_path(tmp_path):
    """A gallery of rows with the columns of `tests.upgrade.verdicts`."""
    from tests.upgrade.verdicts import COLUMNS, data

    rows = data()
    table.create(
        tmp_path / "g.lance", [rows], [COLUMNS[name] for name in rows.vectors], rows_per_file=50
    )
    return tmp_path / "g.lance"


@pytest.fixture
def run_verdict(judged_path, run_door):
    """`run_verdict(column, *flags) -> exit status`, on that gallery."""

    def run(upgraded, *flags):
        defaults = ["--old=old", "--new=new", "--bootstrap=200"]
        names = {flag.partition("=")[0] for flag in flags}
        defaults = [flag for flag in defaults if flag.partition("=")[0] not in names]
        gallery = [] if "--gallery" in names else [f"--gallery={judged_path}"]
        return run_door(verdict, *gallery, f"--upgraded={upgraded}", *defaults, *flags)

    return run


@pytest.fixture
def gallery(tmp_path):
    """The path of a gallery with an old embedding and side-information."""
    return make_gallery(tmp_path / "gallery.lance")
