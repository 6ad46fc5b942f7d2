"""Peers of ScaNN behind one interface, against exact search."""

import os

import numpy as np
import pytest

from fct_tf.ann import peers
from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact

# Settings of a search that looks everywhere, with the default of a build of 1009 rows.
EVERYWHERE = {
    "scann": {"num_leaves_to_search": 64, "reordering_num_neighbors": 1009},
    "faiss_ivf": {"nprobe": 63, "k_factor": 145},
    "faiss_hnsw": {"efSearch": 1009},
    "hnswlib": {"ef": 1009},
    "faiss_flat": {},
    "exact": {},
}


def side(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("dim", [13, 16])
@pytest.mark.parametrize("name", peers.LIBRARIES)
def test_searching_everywhere_equals_exact_search_and_a_saved_index_answers_alike(
    name, dim, distance, tmp_path
):
    rows, queries = side(1009, dim), side(53, dim, seed=1)
    expected, true = exact.search(queries, rows, 7, distance)
    index = peers.LIBRARIES[name].build(rows, distance, threads=2)
    found, values = index.search(queries, 7, threads=1, **EVERYWHERE[name])
    # Only rows whose distances float32 can hardly tell apart may change places.
    differ = found != expected
    np.testing.assert_allclose(values, true, rtol=1e-4, atol=1e-5)
    assert differ.mean() < 0.01
    assert (found.dtype, values.dtype) == (np.int64, np.float32)

    index.save(tmp_path / "saved")
    again = peers.LIBRARIES[name].load(tmp_path / "saved")
    np.testing.assert_array_equal(again.search(queries, 7, **EVERYWHERE[name])[0], found)
    written = [entry.stat().st_size for entry in os.scandir(tmp_path / "saved")]
    assert index.nbytes == again.nbytes
    if name != "scann":  # Whose sizes are those of memory.
        assert max(written) - 200 <= index.nbytes <= max(written)


@pytest.mark.parametrize("name", peers.LIBRARIES)
def test_more_neighbours_than_rows_and_rows_that_are_all_alike(name):
    rows = np.vstack([side(97, 4), np.repeat(side(1, 4), 100, axis=0)])
    found, values = peers.LIBRARIES[name].build(rows, "l2").search(side(3, 4, seed=2), 211)
    assert found.shape == values.shape == (3, 211)
    assert ((found == -1) == np.isinf(values)).all() and (found[:, 197:] == -1).all()
    assert (found[:, 0] >= 0).all()


def test_a_search_setting_is_of_one_search_only():
    rows, queries = side(2003, 8), side(211, 8, seed=1)
    index = peers.LIBRARIES["faiss_ivf"].build(rows, "l2")
    narrow = index.search(queries, 5, nprobe=1, k_factor=1)[0]
    index.search(queries, 5, nprobe=89, k_factor=50)
    np.testing.assert_array_equal(index.search(queries, 5, nprobe=1, k_factor=1)[0], narrow)


@pytest.mark.parametrize("name, settings, message", [
    ("faiss_ivf", {"nlists": 3}, "no setting 'nlists'; there are: nlist, m"),
    ("faiss_ivf", {"m": 5}, "nlist=64, m=5: The dimension"),
    ("faiss_ivf", {"nlist": 5000}, "nlist=5000 is more than there are rows"),
    ("exact", {"nlist": 3}, "no setting 'nlist'; there are: none"),
])  # fmt: skip
def test_settings_that_a_library_refuses_are_named(name, settings, message):
    with pytest.raises(InputError, match=message):
        peers.LIBRARIES[name].build(side(1009, 16), "l2", settings)


def test_a_library_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=r"faiss is not installed: pip install 'fct_tf\[ann\]'"):
        peers.LIBRARIES["faiss_ivf"].build(side(100, 4), "l2")


def test_unit_vectors_of_lengths_that_float32_cannot_square():
    rows = side(50, 4).astype(np.float64) * 10.0 ** np.linspace(-30, 30, 50)[:, None]
    rows[3] = 0
    unit = peers.side(rows, "cosine")
    lengths = np.linalg.norm(unit, axis=1)
    assert lengths[3] == 0
    np.testing.assert_allclose(np.delete(lengths, 3), 1, rtol=1e-6)
