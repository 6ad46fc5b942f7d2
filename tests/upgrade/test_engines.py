"""An upgrade by any engine is the same to the bit, and continues what another has begun."""

import datetime
import os
import pickle
import shutil
import time
from pathlib import Path

import cloudpickle
import lance
import numpy as np
import pytest

from fct_tf import upgrade_gallery
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import local
from fct_tf.gallery import fragments, removal, table
from fct_tf.models import saved_model
from fct_tf.upgrade.upgrade import Upgrade
from tests.builders import (
    D_OLD,
    NUM_ROWS,
    append_bad_row,
    content,
    make_gallery,
    make_pairs,
    make_transformation,
    old_column,
    snapshot,
)
from tests.gallery.test_missing import append
from tests.scattered import Stopped, scattered, stopping

WAYS = ["beside", "apart", "added version"]


@pytest.fixture
def galleries(tmp_path):
    """Two equal galleries in directories of their own, and rows that the new model has embedded."""
    path = make_gallery(tmp_path / "a" / "g.lance", rows_per_file=23)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    pairs, _ = make_pairs(tmp_path / "pairs.lance", ["gallery/3", "gallery/40", "gallery/100"])
    return (path, str(tmp_path / "b" / "g.lance")), pairs


def upgraded(path, work, column, **settings):
    """The gallery with the new column."""
    return Upgrade(path, work, column, **settings).run().gallery


def in_order(path):
    """Ids in the table's order, and the data files that are there but not named by the table."""
    gallery = table.open_gallery(path)
    named = {
        file["path"]
        for version in gallery.dataset.versions()
        for fragment in gallery.dataset.checkout_version(version["version"]).get_fragments()
        for file in fragment.metadata.to_json()["files"]
    }
    return list(gallery.read([]).ids), set(os.listdir(f"{path}/data")) - named


def run(way, path, work, engine=local, **more):
    """Upgrades in one of the ways; the path with the column `x`."""
    output = str(Path(path).parent / "own.lance") if way != "beside" else ""
    if way == "added version" and not os.path.exists(output):
        upgraded(path, work, "y", output=output)
    settings = {"existing": "overwrite"} if way == "added version" else {}
    upgraded(path, work, "x", batch_size=7, output=output, engine=engine, **settings, **more)
    return output or path


@pytest.mark.parametrize("way", WAYS)
def test_equal_to_the_bit(galleries, fastfill, way):
    (here, there), pairs = galleries
    here = run(way, here, fastfill, pairs=pairs)
    there = run(way, there, fastfill, scattered, pairs=pairs)
    expected, found = content(here), content(there)
    # Where a gallery of its own comes from is told by its path.
    if way == "beside":
        assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert sum(row[1] == "backfilled" for row in found[1].values()) == 3
    # What lost attempts wrote is gone, and so is the job.
    assert in_order(there) == in_order(here) and not in_order(there)[1]
    assert not list(Path(there).parent.glob("*.jobs"))


@pytest.mark.parametrize("way", ["beside", "apart"])
def test_missing_rows(galleries, fastfill, way):
    written = []
    for path, engine in zip(galleries[0], (local, scattered), strict=True):
        own = run(way, path, fastfill)
        append(path, 9, seed=1)
        append(path, 4, seed=2)
        output = own if way == "apart" else ""
        request = Upgrade(
            path, fastfill, "x", missing=True, output=output, engine=engine, batch_size=4
        )
        assert request.run().missing.count == 13
        written.append(own)
        assert not list(Path(own).parent.glob("*.jobs"))
    here, there = written
    assert content(there)[1] == content(here)[1]
    assert in_order(there)[0] == in_order(here)[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first, second", [(local, scattered), (scattered, local)])
def test_what_one_engine_has_begun_the_other_continues(galleries, fastfill, way, first, second):
    (here, there), pairs = galleries
    expected = content(run(way, here, fastfill, pairs=pairs))
    version = table.tag(there, "live")
    with pytest.raises(Stopped):
        run(way, there, fastfill, stopping(first, 2), pairs=pairs)
    assert table.open_gallery(there).version == version
    made = []

    def counting(make, units, tick, name):
        made.extend(units)
        return second(make, units, tick, name)

    there = run(way, there, fastfill, counting, pairs=pairs)
    assert len(made) == 5 - 2
    assert content(there)[1] == expected[1]
    assert not in_order(there)[1] and not list(Path(there).parent.glob("*.jobs"))


def test_a_bad_row_is_named_and_nothing_changes(tmp_path, fastfill):
    path = make_gallery(tmp_path / "g.lance")
    append_bad_row(path)
    before = table.open_gallery(path).version
    with pytest.raises(InputError, match="embedding_old.*'broken row' with NaN or infinity"):
        upgraded(path, fastfill, "x", engine=scattered)
    assert table.open_gallery(path).version == before


def test_rows_without_direction_are_counted_by_any_engine(tmp_path, fastfill, caplog):
    """Of a job that was stopped too: its notes are recorded."""
    work = make_transformation(tmp_path / "alone", side=False)
    column = old_column(distance="cosine")
    vectors = np.ones((NUM_ROWS, D_OLD), np.float32)
    vectors[[3, 60, 61]] = 0
    ids = np.array([f"r{row}" for row in range(NUM_ROWS)], object)
    path = str(tmp_path / "g.lance")
    table.create(path, [table.Rows(ids, None, {column.name: vectors})], [column], rows_per_file=23)
    with pytest.raises(Stopped):
        upgraded(path, work, "x", engine=stopping(scattered, 3))
    upgraded(path, work, "x", engine=scattered)
    assert "has 3 rows with no direction" in caplog.text
    assert "'r3', 'r60', 'r61'" in caplog.text


def test_pairs_of_an_earlier_process_count(galleries, fastfill, caplog):
    """No warning that the table has none of the rows, where they were filled before a stop."""
    (path, _), pairs = galleries
    with pytest.raises(Stopped):
        upgraded(path, fastfill, "x", pairs=pairs, engine=stopping(local, 4))
    upgraded(path, fastfill, "x", pairs=pairs)
    assert "none of the rows" not in caplog.text


def test_a_transformation_that_was_replaced_is_not_taken_for_itself(tmp_path, fastfill):
    work = tmp_path / "work"
    shutil.copytree(fastfill, work)
    pickled = cloudpickle.dumps(saved_model.load_transformation(work))
    again = pickle.loads(pickled)
    assert again.info["space"] == saved_model.load_transformation(fastfill).info["space"]
    shutil.rmtree(work)
    make_transformation(work, seed=5)
    with pytest.raises(InputError, match="is now the transformation"):
        pickle.loads(pickled)


def test_leftovers_of_others_stay(tmp_path, fastfill):
    path = make_gallery(tmp_path / "g.lance")
    data = Path(path) / "data"
    with pytest.raises(Stopped):
        upgraded(path, fastfill, "other", engine=stopping(scattered, 1))
    of_other = set(os.listdir(data))
    (data / ".tmpRecent").write_bytes(b"x")
    (data / ".tmpOld").write_bytes(b"x")
    (data / "notes.txt").write_text("mine")
    old = time.time() - fragments.STALE_S - 60
    os.utime(data / ".tmpOld", (old, old))
    upgraded(path, fastfill, "x", engine=scattered)
    left = set(os.listdir(data))
    assert of_other < left and {".tmpRecent", "notes.txt"} < left and ".tmpOld" not in left
    upgraded(path, fastfill, "other")
    assert in_order(path)[1] == {".tmpRecent", "notes.txt"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--spark_master=local[2]"], "--spark_master=local[2]: goes with --engine=spark"),
        (["--engine=dask"], "engine"),
    ],
)
def test_flags(galleries, fastfill, run_door, capsys, flags, message):
    path = galleries[0][0]
    before = snapshot(path)
    door = [f"--gallery={path}", f"--transformation={fastfill}", "--column=x"]
    assert run_door(upgrade_gallery, *door, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert snapshot(path) == before


@pytest.mark.parametrize("how", ["purged", "cleaned by Lance, a week later"])
def test_an_attempt_that_ends_after_the_commit(galleries, fastfill, how):
    """Its file is no version's: it changes nothing, until it goes."""
    (here, path), _ = galleries
    upgraded(here, fastfill, "x")
    calls = []

    def late(make, units, tick, name):
        calls.append((make, units[1]))
        return local(make, units, tick, name)

    upgraded(path, fastfill, "x", engine=late)
    for make, unit in calls:
        make(unit, lambda count: None)
    ids, left = in_order(path)
    assert len(left) == 1 and content(path) == content(here)
    if how == "purged":
        removal.purge_versions(path, removal.with_ids([]))
    else:
        old = time.time() - 8 * 24 * 3600
        os.utime(f"{path}/data/{left.pop()}", (old, old))
        # Older than any version: none is given up.
        lance.dataset(path).cleanup_old_versions(older_than=datetime.timedelta(days=3650))
        assert len(lance.dataset(path).versions()) == 2
    assert in_order(path) == (ids, set())
    assert content(path)[1] == content(here)[1] and table.verify(table.open_gallery(path)) == []


def test_a_job_goes_on_after_a_purge(galleries, fastfill):
    (here, path), _ = galleries
    upgraded(here, fastfill, "x")
    with pytest.raises(Stopped):
        upgraded(path, fastfill, "x", engine=stopping(local, 3))
    assert len(in_order(path)[1]) >= 3
    removal.purge_versions(path, removal.with_ids([]))
    assert not in_order(path)[1]
    upgraded(path, fastfill, "x")
    assert content(path)[1] == content(here)[1] and not in_order(path)[1]
