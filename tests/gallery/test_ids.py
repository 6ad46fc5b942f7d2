"""Repeated ids of a whole gallery, found in runs far smaller than the gallery."""

import random
import tempfile

import numpy as np
import pyarrow as pa
import pytest

from fct_tf.common.errors import InputError
from fct_tf.gallery import ids


def batches(values, size=7):
    parts = range(0, len(values), size)
    return lambda: (pa.array(values[start : start + size], pa.string()) for start in parts)


@pytest.fixture(params=[13, 1 << 20])
def run_ids(request, monkeypatch):
    monkeypatch.setattr(ids, "_RUN_IDS", request.param)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 13, 500])
def test_unique_ids_pass(run_ids, count):
    ids.check_ids(batches([f"row {row}" for row in range(count)]), "g")


@pytest.mark.parametrize("first, second", [(0, 499), (250, 251), (6, 7), (498, 499)])
def test_one_repeated_id_is_named_wherever_it_is(run_ids, first, second):
    values = [f"row {row}" for row in range(500)]
    values[second] = values[first]
    with pytest.raises(InputError, match=f"^g: id 'row {first}' occurs more than once"):
        ids.check_ids(batches(values), "g")


def test_all_ids_twice(run_ids, monkeypatch):
    monkeypatch.setattr(ids, "_MAX_SUSPECTS", 5)
    with pytest.raises(InputError, match="id 'row [0-9]+' occurs more than once"):
        ids.check_ids(batches([f"row {row // 2}" for row in range(500)]), "g")


def test_a_missing_id_is_named(run_ids):
    with pytest.raises(InputError, match="^g: row 37 has no id"):
        ids.check_ids(batches([f"row {row}" if row != 37 else None for row in range(50)]), "g")


def test_ids_of_equal_hash_are_no_repetition(run_ids, monkeypatch):
    monkeypatch.setattr(ids, "_hash", len)
    values = [f"row {row}" for row in range(300)]
    ids.check_ids(batches(values), "g")
    with pytest.raises(InputError, match="id 'row 4' occurs more than once"):
        ids.check_ids(batches([*values, "row 4"]), "g")


def test_repeated_hashes_are_those_of_a_plain_count(run_ids, monkeypatch):
    monkeypatch.setattr(ids, "_MAX_SUSPECTS", 10_000)
    generator = np.random.default_rng(0)
    bounds = np.iinfo(np.int64)
    values = generator.integers(bounds.min, bounds.max, 3000, endpoint=True)
    edges = [bounds.min, bounds.max, 0, -1, 2**54, 2**54 - 1, -(2**54)]
    values = np.concatenate([values, values[::7], edges, edges])
    generator.shuffle(values)
    unique, counts = np.unique(values, return_counts=True)
    found = ids._repeated(np.array_split(values.copy(), random.Random(0).randrange(2, 90)))
    assert found == set(unique[counts > 1].tolist())


def test_no_room_for_the_temporary_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match="ids cannot be checked .*; .*set TMPDIR"):
        ids.check_ids(batches(["a", "b"]), "g")


@pytest.mark.parametrize("kind", [list, np.array, pa.array])
def test_places_of_ids_in_others(kind):
    known = ["c", "a", "é", "a"]
    np.testing.assert_array_equal(ids.places(kind(["a", "b", "é"]), kind(known)), [1, -1, 2])
    assert ids.places([], known).dtype == ids.places(["a"], []).dtype == np.int64


def test_places_asked_for_again_and_again():
    find = ids.Lookup(["c", "a", "é"])
    np.testing.assert_array_equal(find(["é", "x", "c"]), [2, -1, 0])
    np.testing.assert_array_equal(find.of_rows(["é", "c"], "g"), [2, 0])
    with pytest.raises(InputError, match="g: row 'x' has come in the meantime; start the same"):
        find.of_rows(["é", "x"], "g")
