"""ScaNN against exact search, which it must equal with one leaf and full reordering."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest

from fct_tf.ann import scann_files
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import EXACT, Settings
from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact
from tests.retrieval.test_distances import scene

ALL = {"num_leaves": 1, "num_leaves_to_search": 1, "reordering_num_neighbors": 1009}
# One leaf, all rows reordered; no leaves; no codes; several leaves that are all searched; exact.
COMPLETE = {
    "one leaf": Settings(**ALL),
    "no leaves": Settings(reordering_num_neighbors=1009),
    "no codes": Settings(num_leaves=7, num_leaves_to_search=7, score="brute_force"),
    "seven leaves": Settings(**{**ALL, "num_leaves": 7, "num_leaves_to_search": 7}),
    "few dimensions at a time": Settings(**ALL, dimensions_per_block=5, hash_type="lut256"),
    "exact": EXACT,
}


def rows_of(count=1009, dim=13, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def clusters(count=6007, dim=16):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(300, dim)) * 3
    rows = centres[generator.integers(0, 300, count)] + generator.normal(size=(count, dim))
    return rows.astype(np.float32)


def recall(found, true):
    return np.mean([np.isin(right, row).mean() for row, right in zip(found, true, strict=True)])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_defaults_are_for_rows_of_few_dimensions_too(dim):
    rows = rows_of(2003, dim)
    true, _ = exact.search(rows[:100], rows, 10)
    assert recall(Searcher.build(rows).search(rows[:100], 10)[0], true) > 0.8


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("name", COMPLETE)
def test_equals_exact_search(distance, name):
    gallery, query = rows_of(), rows_of(211, seed=1)
    searcher = Searcher.build(gallery, distance, COMPLETE[name])
    expected, true = exact.search(query, gallery, 7, distance)
    for threads in (1, 2, None):
        found, distances = searcher.search(query, 7, threads=threads)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(distances, true, atol=1e-4)
    one, distance_of_one = searcher.search(query[:1], 7, threads=1)
    np.testing.assert_array_equal(one, expected[:1])
    np.testing.assert_allclose(distance_of_one, true[:1], atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [{"residual_quantization": True}, {"soar_lambda": 1.5}, {"avq": 2.0}],
    ids=lambda more: next(iter(more)),
)
def test_what_inner_products_alone_have_finds_the_same_by_cosine(more):
    gallery, query = rows_of(), rows_of(211, seed=1)
    settings = Settings(**{**ALL, "num_leaves": 5, "num_leaves_to_search": 5}, **more)
    found, distances = Searcher.build(gallery, "cosine", settings).search(query, 7)
    expected, true = exact.search(query, gallery, 7, "cosine")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(distances, true, atol=1e-4)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_rows_far_from_zero_keep_their_digits(distance):
    rows, _ = scene("narrow cone")
    settings = Settings(num_leaves=1, num_leaves_to_search=1, reordering_num_neighbors=len(rows))
    _, distances = Searcher.build(rows, distance, settings).search(rows, 5)
    _, true = exact.search(rows, rows, 5, distance)
    np.testing.assert_allclose(distances, true, rtol=1e-2, atol=float(true.max()) * 1e-5)


def test_blocks_are_as_good_as_all_rows():
    rows = rows_of(1009)
    blocks = (rows[start : start + 101] for start in range(0, len(rows), 101))
    searcher = Searcher.from_blocks(blocks, *rows.shape, "l2", COMPLETE["seven leaves"])
    np.testing.assert_array_equal(searcher.search(rows, 5)[0], exact.search(rows, rows, 5)[0])
    for blocks, message in (([rows[:9]], "9 rows came"), ([rows[:9], rows[:9, :3]], "a block")):
        with pytest.raises(InputError, match=message):
            Searcher.from_blocks(blocks, *rows.shape, "l2")


def test_the_defaults_find_most_neighbours_and_searches_may_ask_for_more():
    rows = clusters()
    scanned = Searcher.build(rows)
    assert not scanned.is_exact and scanned.settings.num_leaves == 0
    searcher = Searcher.build(rows, settings=Settings.for_rows(*rows.shape, num_leaves=155))
    assert searcher.settings.num_leaves_to_search == 50
    assert searcher.settings.reordering_num_neighbors == 100
    true, _ = exact.search(rows[:500], rows, 10)
    found = recall(searcher.search(rows[:500], 10)[0], true)
    more, distances = searcher.search(
        rows[:500], 10, num_leaves_to_search=155, reordering_num_neighbors=6007
    )
    less = recall(searcher.search(rows[:500], 10, num_leaves_to_search=1)[0], true)
    assert 0.8 < found <= 1 and less < found and recall(more, true) == 1
    assert (np.diff(distances) >= 0).all()
    assert recall(scanned.search(rows[:500], 10)[0], true) > 0.8


@pytest.mark.parametrize(
    "num_rows, dim, given, leaves, searched, block",
    [
        (2000, 16, {}, 0, 0, 2),
        (24_999, 384, {}, 0, 0, 6),
        (24_999, 72, {}, 0, 0, 4),
        (24_999, 3, {}, 0, 0, 2),
        (24_999, 1, {}, 0, 0, 1),
        (25_000, 384, {}, 316, 50, 2),
        (1_000_000, 128, {}, 2000, 133, 2),
        (1_000_000, 128, {"num_leaves": 0}, 0, 0, 6),
        # Whoever speaks of leaves gets some.
        (10_000, 128, {"num_leaves_to_search": 20}, 200, 20, 2),
        (10_000, 128, {"soar_lambda": 1.5}, 200, 50, 2),
        (10_000, 128, {"residual_quantization": True}, 200, 50, 2),
        (10_000, 128, {"score": "brute_force"}, 200, 50, 2),
        (500, 128, {"dimensions_per_block": 4}, 0, 0, 4),
    ],
)
def test_the_defaults_by_rows(num_rows, dim, given, leaves, searched, block):
    settings = Settings.for_rows(num_rows, dim, "cosine", **given)
    found = (settings.num_leaves, settings.num_leaves_to_search, settings.dimensions_per_block)
    assert found == (leaves, searched, block)
    reordered = 0 if settings.score == "brute_force" else 100 if leaves else 200
    assert settings.reordering_num_neighbors == reordered
    assert Settings.for_rows(1999, dim).is_exact


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("data", ["float32", "bfloat16", "int8"])
def test_saved_moved_and_loaded(distance, data, tmp_path, monkeypatch):
    rows = clusters() + 40
    settings = Settings.for_rows(*rows.shape, distance, reordering_data=data)
    searcher = Searcher.build(rows, distance, settings)
    expected = searcher.search(rows[:99], 10)
    monkeypatch.chdir(tmp_path)
    searcher.save("before")
    shutil.move("before", "after")
    names = os.listdir("after")
    assert not [name for name in names if not name.endswith((".npy", ".pb", ".json"))]

    # Nothing that lies beside it is unpickled.
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "unpickled"),)

    (tmp_path / "after" / "scann_docids.pkl").write_bytes(pickle.dumps(Trap()))
    for path in ("after", tmp_path / "after"):
        found = Searcher.load(path).search(rows[:99], 10)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    assert not (tmp_path / "unpickled").exists()
    # Without ScaNN, the rows are searched exactly, as the index holds them.
    monkeypatch.setattr(scann_files, "available", lambda: False)
    without = Searcher.load("after")
    assert without.is_exact
    true, _ = exact.search(rows[:99], rows, 10, distance)
    least = {"float32": 1.0, "bfloat16": 0.97, "int8": 0.9}[data]
    assert recall(without.search(rows[:99], 10)[0], true) >= least
    assert Searcher.build(rows, distance, settings).is_exact


def test_exact_ones_are_saved_too(tmp_path):
    rows = rows_of()
    Searcher.build(rows).save(tmp_path / "few")
    np.testing.assert_array_equal(
        Searcher.load(tmp_path / "few").search(rows, 3)[0], exact.search(rows, rows, 3)[0]
    )


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../other.npy", "scann_docids.pkl", "a.npy\nassets", "missing.npy"]
)
def test_a_file_list_leads_nowhere_else(name, tmp_path):
    Searcher.build(clusters(2003)).save(tmp_path / "index")
    header = tmp_path / "index" / "searcher.json"
    content = json.loads(header.read_text())
    content["assets"][name] = "DATASET_NPY"
    header.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no file of an index|no such file"):
        Searcher.load(tmp_path / "index")


class Model:
    """What a searcher must answer, in NumPy."""

    def __init__(self, rows):
        self.rows = rows.copy()

    def upsert(self, numbers, vectors):
        new = np.argsort(numbers)
        for number, vector in zip(numbers[new], vectors[new], strict=True):
            if number == len(self.rows):
                self.rows = np.concatenate([self.rows, vector[None]])
            self.rows[number] = vector

    def delete(self, numbers, places, moved):
        rows = self.rows.copy()
        rows[places] = self.rows[moved]
        kept = len(rows) - len(numbers)
        # What moved came from the end, and what stays is where it was.
        assert set(np.arange(kept)) - set(places) == set(np.arange(kept)) - set(numbers)
        assert set(moved) == set(np.arange(kept, len(rows))) - set(numbers)
        self.rows = rows[:kept]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("name", ["seven leaves", "no codes", "no leaves", "exact"])
def test_thousand_random_changes_agree_with_numpy(distance, name):
    generator = np.random.default_rng(5)
    settings = COMPLETE[name]
    rows = rows_of(499)
    searcher, model = Searcher.build(rows, distance, _with_all(settings, 499)), Model(rows)
    for step in range(1000):
        what = generator.choice(4, p=[0.45, 0.35, 0.01, 0.19])
        count = int(generator.integers(1, 9))
        size = len(model.rows)
        if what == 0:
            old = generator.choice(size, min(size, int(generator.integers(0, count + 1))), False)
            numbers = np.concatenate([old, size + np.arange(count - len(old))])
            generator.shuffle(numbers)
            vectors = generator.normal(size=(len(numbers), 13)).astype(np.float32)
            searcher.upsert(numbers, vectors)
            model.upsert(numbers, vectors)
        elif what == 1:
            numbers = generator.choice(size, min(size - 40, count), False)
            model.delete(numbers, *searcher.delete(numbers))
        elif what == 2:
            searcher.rebalance()
        if what == 3 or step == 999:
            query = generator.normal(size=(5, 13)).astype(np.float32)
            found, distances = searcher.search(query, 6, reordering_num_neighbors=5000)
            expected, true = exact.search(query, model.rows, 6, distance)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_allclose(distances, true, atol=1e-4)
        assert searcher.num_rows == len(model.rows)


def _with_all(settings, count):
    reordered = min(settings.reordering_num_neighbors, count)
    return Settings(**{**settings.to_json(), "reordering_num_neighbors": reordered})


def test_few_rows_and_refusals():
    rows = rows_of(3)
    found, distances = Searcher.build(rows).search(rows, 5)
    np.testing.assert_array_equal(found[:, 0], [0, 1, 2])
    assert (found[:, 3:] == -1).all() and np.isinf(distances[:, 3:]).all()
    bad = rows_of()
    bad[7, 2] = np.nan
    zero = rows_of()
    zero[9] = 0
    searcher = Searcher.build(rows)
    for call, message in (
        (lambda: Searcher.build(rows[:0]), "at least one row"),
        (lambda: Searcher.build(rows, "euclid"), "it must be one of"),
        (lambda: Searcher.build(rows, "l2", Settings(**ALL)), "ScaNN cannot index 3 rows"),
        (lambda: Searcher.build(bad), "rows: row '7' with NaN"),
        (lambda: Searcher.build(zero, "cosine"), "row 9: has no direction"),
        (lambda: searcher.search(rows[:, :5], 1), "must be rows of 13"),
        (lambda: searcher.search(rows, 0), "k=0"),
        (lambda: searcher.search(bad[7:8], 1), "queries: row '0' with NaN"),
        (lambda: searcher.upsert([5], rows[:1]), "without a gap"),
        (lambda: searcher.upsert([1, 1], rows[:2]), "each once"),
        (lambda: searcher.delete([3]), "from 0 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    "distance, changed",
    [("l2", {"reordering_data": "int8"}), ("cosine", {"soar_lambda": 1.5})]
    + [("cosine", {"soar_lambda": 1.5, "residual_quantization": True})],
)
def test_what_scann_cannot_change_is_refused(distance, changed):
    settings = Settings.for_rows(2003, 16, distance, **changed)
    assert not settings.can_change
    searcher = Searcher.build(clusters(2003), distance, settings)
    for change in (lambda: searcher.upsert([1], rows_of(1, 16)), lambda: searcher.delete([1])):
        with pytest.raises(InputError, match="int8 to reorder by.*SOAR.*build it again"):
            change()


def test_soar_is_not_changed_in_place():
    """ScaNN itself would end the process."""
    settings = Settings.for_rows(2003, 16, "cosine", residual_quantization=True, soar_lambda=1.5)
    searcher = Searcher.build(clusters(2003), "cosine", settings)
    for change in (lambda: searcher.upsert([1], rows_of(1, 16)), lambda: searcher.delete([1])):
        with pytest.raises(InputError, match="SOAR.*build it again"):
            change()


def test_a_query_of_zeros_is_at_distance_one_of_all_by_cosine():
    _, distances = Searcher.build(clusters(2003), "cosine").search(np.zeros((2, 16)), 4)
    assert (distances == 1).all()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_leafs": 3}, "num_leafs: no setting of ScaNN"),
        ({"num_leaves": 3000}, "num_leaves=3000: must be from 0 to 2000"),
        ({"num_leaves": 2.5}, "num_leaves=2.5: must be of type int"),
        (
            {"num_leaves": 89, "num_leaves_to_search": 0},
            "num_leaves_to_search=0: must be from 1 to",
        ),
        ({"dimensions_per_block": 0}, "dimensions_per_block=0"),
        ({"reordering_data": "float16"}, "must be float32 or bfloat16 or int8"),
        ({"soar_lambda": 1.5}, "distance=cosine only"),
        ({"score": "brute_force", "score_data": "bfloat16"}, "without leaves only"),
        ({"pca_reduction_dim": 4, "truncate_dim": 4}, "give one of them"),
        ({"anisotropic_quantization_threshold": float("nan")}, "must be of type float"),
    ],
)
def test_settings_that_do_not_fit(changed, message):
    with pytest.raises(InputError, match=message):
        Settings.for_rows(2000, 16, "l2", **changed)


def test_settings_survive_json():
    settings = Settings.for_rows(5000, 32, "cosine", soar_lambda=1.5, spherical=True)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(InputError, match="spherical='yes'"):
        Settings.from_json({"spherical": "yes"})


# Every setting reaches ScaNN: what changes it changes the configuration.
@pytest.mark.parametrize("name", [*Settings().to_json()])
def test_every_setting_is_in_the_configuration(name):
    base = {"num_leaves": 64, "num_leaves_to_search": 8, "reordering_num_neighbors": 50}
    if name == "score_data":
        base |= {"score": "brute_force", "reordering_num_neighbors": 0}
    if name.startswith("upper_tree"):
        base |= {"upper_tree_num_leaves": 8, "upper_tree_num_leaves_to_search": 2}
    if name == "overretrieve_factor":
        base |= {"soar_lambda": 1.5}
    if name == "upper_tree_overretrieve_factor":
        base |= {"upper_tree_soar_lambda": 1.5}
    if name == "pca_truncation_threshold":
        base |= {"pca_significance_threshold": 0.9}
    if name in ("avq", "soar_lambda", "overretrieve_factor", "residual_quantization"):
        base |= {"residual_quantization": True}
    other = {
        "score": "brute_force",
        "hash_type": "lut256",
        "score_data": "int8",
        "reordering_data": "int8",
        "upper_tree_scoring_mode": "bfloat16",
        "random_init": False,
        "residual_quantization": False,
    }
    usual = {**Settings().to_json(), **base}
    value = other.get(name, True if usual[name] is False else 7)
    changed = Settings(**{**usual, name: value})
    assert scann_files.config((1000, 16), Settings(**usual)) != scann_files.config(
        (1000, 16), changed
    )
