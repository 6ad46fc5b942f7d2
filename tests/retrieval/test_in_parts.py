"""A gallery searched part by part finds what a search in memory finds, to the last digit."""

import json

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import distances, in_parts, two_columns
from tests.builders import numbered
from tests.scattered import scattered

SPACE = "a" * 64


def column(name, dim, distance="l2"):
    return table.Column(name, dim, SPACE, distance=distance)


# What rows may be like: name -> a function of a generator and a number of rows.
ROWS = {
    "normal": lambda rng, count: rng.normal(size=(count, 17)),
    # Ties everywhere, and products without rounding.
    "few_integers": lambda rng, count: rng.integers(0, 3, (count, 4)),
    # Of one length: cosines without scaling. Most pairs tie.
    "codes": lambda rng, count: rng.choice([-1, 1], (count, 9)),
    # Distances that float32 cannot tell apart.
    "far_from_zero": lambda rng, count: 1000 + 1e-3 * rng.normal(size=(count, 5)),
    "two_groups": lambda rng, count: (
        rng.normal(size=(count, 6)) + rng.choice([0, 3000], (count, 1))
    ),
    "repeated": lambda rng, count: rng.normal(size=(7, 8))[rng.integers(0, 7, count)],
    "some_zeros": lambda rng, count: rng.normal(size=(count, 3)) * rng.integers(0, 2, (count, 1)),
    "few_dims": lambda rng, count: rng.normal(size=(count, 1)),
}


@pytest.fixture
def small_parts(monkeypatch):
    """Blocks and parts of primes, so that small galleries have several of each."""
    monkeypatch.setattr(in_parts, "MIN_UNIT_ROWS", 37)
    monkeypatch.setattr(in_parts, "MAX_BLOCK_ROWS", 53)
    monkeypatch.setattr(in_parts, "BLOCK_BYTES", 4 * 17 * 23)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 4 * 17 * 16)


def make(path, name, rows, seed, count, distance, prefix="row", labels=7):
    rng = np.random.default_rng(seed)
    vectors = np.asarray(rows(rng, count), np.float32)
    ids = numbered(prefix, count)
    known = numbered("c", rng.integers(0, labels, count))
    known[::9] = None
    made = table.Rows(ids, known, {name: vectors})
    return table.create(path, [made], [column(name, vectors.shape[1], distance)], rows_per_file=40)


def both(asked, query, gallery, name, **settings):
    """(record, per query, labels) in memory and in parts."""
    return [
        two_columns.evaluate_queries(asked, query, gallery, name, searching=searching, **settings)
        for searching in (None, in_parts.searching(scattered))
    ]


def check_equal(in_memory, parts):
    assert json.dumps(in_memory[0]) == json.dumps(parts[0])
    for field in ("position", "rank", "average_precision", "self_removed"):
        np.testing.assert_array_equal(getattr(parts[1], field), getattr(in_memory[1], field))
    assert list(parts[2]) == list(in_memory[2])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ROWS)
def test_equals_a_search_in_memory(tmp_path, small_parts, kind, distance):
    gallery = make(tmp_path / "g.lance", "x", ROWS[kind], 0, 103, distance)
    check_equal(*both(gallery, "x", gallery, "x", bootstrap=50))
    # Other queries; some have an id, or a label, that the gallery has not.
    queries = make(tmp_path / "q.lance", "q", ROWS[kind], 1, 61, distance, labels=11)
    check_equal(*both(queries, "q", gallery, "x", ks=(1, 3), bootstrap=0))
    check_equal(*both(queries, "q", gallery, "x", without={"row3", "row50"}, bootstrap=0))


def test_groups_and_other_labels_than_texts(tmp_path, small_parts):
    """exclude_same, and fields that have no value in some rows."""
    path = make_with_cameras(tmp_path / "g.lance", 0)
    asked = make_with_cameras(tmp_path / "q.lance", 1, prefix="asked")
    check_equal(*both(path, "x", path, "x", exclude_same="camera", bootstrap=0))
    check_equal(*both(asked, "x", path, "x", exclude_same="camera", bootstrap=0))


def make_with_cameras(path, seed, prefix="row"):
    gallery = make(path, "x", ROWS["few_integers"], seed, 101, "l2", prefix)
    cameras = pa.array([None if row % 11 == 0 else f"c{row % 3}" for row in range(101)])
    rows = gallery.dataset.to_table().append_column("camera", cameras)
    rows = rows.replace_schema_metadata(gallery.dataset.schema.metadata)
    lance.write_dataset(rows, path, mode="overwrite", max_rows_per_file=40)
    return table.open_gallery(path)


def test_no_query_finds_a_match(tmp_path, small_parts, caplog):
    gallery = make(tmp_path / "g.lance", "x", ROWS["normal"], 0, 41, "l2", labels=1)
    ids, labels = np.array(["a", "b"], object), np.array(["other", None], object)
    rows = table.Rows(ids, labels, {"q": np.ones((2, 17), np.float32)})
    asked = table.create(tmp_path / "q.lance", [rows], [column("q", 17)])
    check_equal(*both(asked, "q", gallery, "x"))
    assert caplog.text.count("has a row of its label") == 2


def test_ids_that_mean_other_rows_are_doubted(tmp_path, small_parts, caplog):
    gallery = make(tmp_path / "g.lance", "x", ROWS["normal"], 0, 61, "l2")
    asked = make(tmp_path / "q.lance", "q", ROWS["normal"], 1, 61, "l2")
    check_equal(*both(asked, "q", gallery, "x", bootstrap=0))
    first, second = (record.getMessage() for record in caplog.records)
    assert first == second and "another label" in first and "another vector" in first


@pytest.mark.parametrize("what", ["labels", "rows", "repeated", "infinite"])
def test_bad_input_is_refused_alike(tmp_path, small_parts, what):
    gallery = make(tmp_path / "g.lance", "x", ROWS["normal"], 0, 61, "l2")
    stored, without = gallery.dataset.to_table(), ()
    if what == "labels":
        stored = stored.set_column(1, "label", pa.nulls(61, pa.string()))
    elif what == "rows":
        without = stored["id"].to_pylist()
    elif what == "repeated":
        stored = pa.concat_tables([stored, stored.slice(40, 1)])
    else:
        vectors = np.ones((61, 17), np.float32)
        vectors[50, 3] = np.inf
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 17)
        stored = stored.set_column(2, gallery.dataset.schema.field("x"), values)
    stored = stored.cast(gallery.dataset.schema)
    lance.write_dataset(stored, gallery.path, mode="overwrite", max_rows_per_file=40)
    gallery = table.open_gallery(gallery.path)
    told = []
    for searching in (None, in_parts.searching(scattered)):
        with pytest.raises(InputError) as error:
            two_columns.evaluate_queries(
                gallery, "x", gallery, "x", searching=searching, without=without
            )
        told.append(str(error.value))
    if what == "repeated":  # In parts it also says which rows.
        assert all("id 'row40' occurs more than once" in one for one in told)
    else:
        assert told[0] == told[1]


def test_an_index_is_not_searched_by_a_cluster(tmp_path):
    gallery = make(tmp_path / "g.lance", "x", ROWS["normal"], 0, 11, "l2")
    settings = {"approximate": object(), "searching": in_parts.searching(scattered)}
    with pytest.raises(InputError, match="engine=spark`: goes with an exact search"):
        two_columns.evaluate_queries(gallery, "x", gallery, "x", **settings)
