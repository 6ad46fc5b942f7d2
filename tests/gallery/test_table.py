"""What is written is read: rows, labels, versions, and rows that are refused."""

import json
import os
import random

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf.common.errors import InputError
from fct_tf.gallery import fragments, table
from fct_tf.gallery.ids import UniqueIds
from tests.gallery.tables import column, doubled, files_of, rows


def test_what_is_written_is_read(tmp_path):
    written = rows(101)
    created_by = {"door": "embed_gallery", "model": "old", "settings": {"batch": 3}}
    old = table.Column(
        "a", 4, "f" * 64, "float32", "side_info", "cosine", ("e" * 64,), created_by=created_by
    )
    half = table.Column("h", 3, "0" * 64, "float16")
    written.vectors["h"] = np.arange(303, dtype=np.float32).reshape(101, 3)
    parts = [
        table.Rows(
            written.ids[a:b], written.labels[a:b], {k: v[a:b] for k, v in written.vectors.items()}
        )
        for a, b in ((0, 40), (40, 101))
    ]
    path = tmp_path / "g.lance"
    table.create(path, parts, [old, half], rows_per_file=17)
    gallery = table.open(path)
    assert gallery.columns == {"a": old, "h": half}
    assert gallery.columns["a"].model == "old"
    assert (gallery.num_rows, gallery.version, len(gallery.dataset.get_fragments())) == (101, 1, 6)
    read = gallery.read(["h", "a"], with_labels=True)
    np.testing.assert_array_equal(read.ids, written.ids)
    np.testing.assert_array_equal(read.labels, written.labels)
    for name in ("a", "h"):
        assert read.vectors[name].dtype == np.float32
        np.testing.assert_array_equal(read.vectors[name], written.vectors[name])
    # The contract is what the Arrow schema says, for other tools.
    schema = lance.dataset(str(path)).schema
    assert schema.metadata == {b"fct.format": b"1"}
    assert schema.field("id").type == pa.string() and not schema.field("id").nullable
    metadata = schema.field("a").metadata
    assert metadata[b"fct.space"] == b"f" * 64 and metadata[b"fct.distance"] == b"cosine"
    assert json.loads(metadata[b"fct.compatible_with"]) == ["e" * 64]
    assert json.loads(metadata[b"fct.created_by"]) == created_by
    assert files_of(tmp_path)[0] == str(path)


@pytest.mark.parametrize("batch_size", [1, 7, 8192])
def test_batches_cover_every_row_once(gallery, batch_size):
    whole = gallery.read(["a"], with_labels=True)
    parts = list(gallery.batches(["a"], batch_size, with_labels=True))
    assert max(len(part) for part in parts) <= batch_size
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    vectors = np.concatenate([part.vectors["a"] for part in parts])
    np.testing.assert_array_equal(vectors, whole.vectors["a"])
    assert len(next(gallery.batches(["a"], with_ids=False)).ids) == 0


def test_take_by_id_in_the_order_asked_for(gallery):
    whole = gallery.read(["a"])
    wanted = ["row 100", "row 3", "row 55", "row 3"]
    taken = gallery.take(wanted, ["a"])
    assert list(taken.ids) == wanted
    np.testing.assert_array_equal(taken.vectors["a"], whole.vectors["a"][[100, 3, 55, 3]])
    assert len(gallery.take([], ["a"])) == 0
    with pytest.raises(InputError, match="no row with id 'row 101' and 1 more"):
        gallery.take(["row 1", "row 101", "row 102"], ["a"])


def test_rows_are_matched_by_id_after_an_update_moved_them(gallery):
    update = pa.table(
        {
            "id": ["row 7"],
            "a": pa.FixedSizeListArray.from_arrays(pa.array([9.0] * 4, pa.float32()), 4),
        }
    )
    before = list(gallery.read([]).ids)
    gallery.dataset.merge_insert("id").when_matched_update_all().execute(update)
    moved = table.open(gallery.path)
    assert list(moved.read([]).ids) != before
    np.testing.assert_array_equal(moved.take(["row 7"], ["a"]).vectors["a"], [[9.0] * 4])
    assert moved.columns == gallery.columns
    added = table.add_column(moved, column("b"), doubled, ["a"])
    np.testing.assert_array_equal(added.take(["row 7"], ["b"]).vectors["b"], [[18.0] * 4])
    assert added.num_rows == 101


def test_labels_may_be_absent_or_a_dictionary(tmp_path):
    base = rows(10)
    schema = pa.schema([pa.field("id", pa.string()), column("a").to_field()], {"fct.format": "1"})
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.vectors["a"].reshape(-1)), 4)
    without = tmp_path / "without.lance"
    lance.write_dataset(
        pa.Table.from_arrays([pa.array(base.ids), vectors], schema=schema), str(without)
    )
    assert list(table.open(without).read(["a"], with_labels=True).labels) == [None] * 10
    dictionary = tmp_path / "dictionary.lance"
    schema = schema.append(pa.field("label", pa.dictionary(pa.int32(), pa.string())))
    labels = pa.array(base.labels, pa.string()).dictionary_encode()
    arrays = [pa.array(base.ids), vectors, labels]
    lance.write_dataset(
        pa.Table.from_arrays(arrays, schema=schema), str(dictionary), max_rows_per_file=4
    )
    gallery = table.open(dictionary)
    np.testing.assert_array_equal(gallery.read([], with_labels=True).labels, base.labels)
    added = table.add_column(gallery, column("b"), doubled, ["a"])
    assert added.version == 2
    read = added.read(["a", "b"], with_labels=True)
    np.testing.assert_array_equal(read.labels, base.labels)
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)


def test_versions_and_tags(gallery):
    path = gallery.path
    assert table.tag(path, "live") == 1
    table.add_column(gallery, column("b"), doubled, ["a"])
    assert list(table.open(f"{path}@live").columns) == ["a"]
    assert list(table.open(f"{path}@1").columns) == ["a"]
    assert list(table.open(f"{path}@2").columns) == ["a", "b"]
    assert table.tag(path, "live") == 2
    assert list(table.open(f"{path}@live").columns) == ["a", "b"]
    assert table.tag(f"{path}@1", "live") == 1
    assert table.open(f"{path}@live").version == 1
    with pytest.raises(InputError, match="no tag 'lvie'; there are: live"):
        table.open(f"{path}@lvie")
    with pytest.raises(InputError, match="no version 7; the newest is 2"):
        table.open(f"{path}@7")
    with pytest.raises(InputError, match="tag '12'"):
        table.tag(path, "12")


def test_a_path_with_an_at_sign(tmp_path):
    path = tmp_path / "me@home.lance"
    table.create(path, [rows(3)], [column("a")])
    assert table.open(path).num_rows == table.open(f"{path}@1").num_rows == 3


def raw_gallery(path, ids, vectors, metadata=None):
    """A gallery as another tool may have written it, unchecked."""
    schema = pa.schema(
        [pa.field("id", pa.string()), column("a").to_field()], metadata or {"fct.format": "1"}
    )
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), 4)
    mask = pa.array(np.isnan(vectors).all(axis=1))
    if np.isnan(vectors).all(axis=1).any():
        values = pa.FixedSizeListArray.from_arrays(values.values, 4, mask=mask)
    lance.write_dataset(
        pa.Table.from_arrays([pa.array(ids, pa.string()), values], schema=schema), str(path)
    )
    return table.open(path)


@pytest.mark.parametrize("bad", [[1e19, 0, 0, 0], [0, -6e18, 6e18, 6e18], [3e38] * 4])
def test_rows_too_long_for_squared_distances_are_refused_by_id(tmp_path, bad):
    """Where the distance is cosine they may be kept, see `Directions`."""
    ids, vectors = [f"i{row}" for row in range(9)], np.zeros((9, 4), np.float32)
    vectors[2] = [8.9e18, 0, 0, 0]
    gallery = raw_gallery(tmp_path / "good.lance", ids, vectors)
    assert table.verify(gallery) == [] and len(gallery.read(["a"])) == 9
    vectors[[3, 5]] = bad
    gallery = raw_gallery(tmp_path / "long.lance", ids, vectors)
    ids = np.array(ids, object)
    for call in (
        lambda: gallery.read(["a"]),
        lambda: list(gallery.batches(["a"])),
        lambda: gallery.take(["i3", "i5"], ["a"]),
        lambda: table.add_column(gallery, column("b"), doubled, ["a"]),
        lambda: table.create(
            tmp_path / "new.lance", [table.Rows(ids, None, {"a": vectors})], [column("a")]
        ),
    ):
        with pytest.raises(InputError, match="column 'a': row 'i3' and 1 more rows longer than 9e"):
            call()
    (problem,) = table.verify(gallery)
    assert "2 rows longer than 9e18" in problem and "in column 'a': 'i3', 'i5'" in problem
    assert not (tmp_path / "new.lance").exists()
    cosine = table.Column("a", 4, "f" * 64, distance="cosine")
    made = table.create(tmp_path / "c.lance", [table.Rows(ids, None, {"a": vectors})], [cosine])
    np.testing.assert_array_equal(made.read(["a"]).vectors["a"], vectors)


def test_bad_rows_of_other_tools_are_refused_at_reading_and_found_by_verify(tmp_path):
    ids = [f"i{row}" for row in range(30)]
    good = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert table.verify(raw_gallery(tmp_path / "good.lance", ids, good)) == []

    bad = good.copy()
    bad[[3, 5, 7, 9, 11, 13], 1] = np.nan
    gallery = raw_gallery(tmp_path / "nan.lance", ids, bad)
    message = "column 'a': row 'i3' and 5 more rows with NaN or infinity"
    for read in (
        lambda: gallery.read(["a"]),
        lambda: list(gallery.batches(["a"])),
        lambda: gallery.take(["i3"], ["a"]),
        lambda: table.add_column(gallery, column("b"), doubled, ["a"]),
    ):
        with pytest.raises(InputError, match="row 'i3'.*with NaN or infinity"):
            read()
    with pytest.raises(InputError, match=message):
        gallery.read(["a"])
    (problem,) = table.verify(gallery)
    assert (
        "6 rows with NaN or infinity in column 'a': 'i3', 'i5', 'i7', 'i9', 'i11', ..." in problem
    )

    gallery = raw_gallery(tmp_path / "twice.lance", [*ids[:29], "i4"], good)
    for read in (
        lambda: gallery.read(["a"]),
        lambda: list(gallery.batches(["a"], 3)),
        lambda: table.add_column(gallery, column("b"), doubled, ["a"]),
    ):
        with pytest.raises(InputError, match="id 'i4' occurs more than once"):
            read()
    assert "1 rows with an id that another row has: 'i4'" in table.verify(gallery)[0]

    gallery = raw_gallery(tmp_path / "null.lance", [*ids[:29], None], good)
    with pytest.raises(InputError, match="without id"):
        gallery.read(["a"])
    assert "1 rows without id: number 29" in table.verify(gallery)[0]

    bad = good.copy()
    bad[8] = np.nan
    gallery = raw_gallery(tmp_path / "absent.lance", ids, bad)
    with pytest.raises(InputError, match="row 'i8' has no vector in column 'a'"):
        gallery.read(["a"])
    assert "1 rows with no vector in column 'a': 'i8'" in table.verify(gallery)[0]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_broken_data_file_is_named(gallery, damage):
    file = sorted((gallery.dataset.uri and os.scandir(f"{gallery.path}/data")), key=str)[2]
    if damage == "truncated":
        with open(file.path, "r+b") as stream:
            stream.truncate(os.path.getsize(file.path) // 2)
    else:
        os.unlink(file.path)
    opened = table.open(gallery.path)
    said = "bytes instead of" if damage == "truncated" else "data file is missing"
    for read in (lambda: opened.read(["a"]), lambda: opened.take(["row 1", "row 50"], ["a"])):
        with pytest.raises(InputError, match=said) as error:
            read()
        assert file.name in str(error.value) and "\n" not in str(error.value)
    (problem,) = table.verify(opened)
    assert file.name in problem and said in problem


def test_what_is_no_gallery_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing.lance: no gallery"):
        table.open(tmp_path / "nothing.lance")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no gallery"):
        table.open(tmp_path / "empty")
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "other.lance"))
    with pytest.raises(InputError, match="other.lance: a Lance dataset but no gallery"):
        table.open(tmp_path / "other.lance")
    vectors = np.zeros((1, 4), np.float32)
    with pytest.raises(InputError, match="gallery format 2.*up to 1"):
        raw_gallery(tmp_path / "new.lance", ["x"], vectors, {"fct.format": "2"})


def test_an_unknown_column_lists_those_there_are(gallery):
    with pytest.raises(InputError, match="no embedding column 'b'; there are: a"):
        gallery.column("b")
    with pytest.raises(InputError, match="no embedding column 'label'; there are: a"):
        gallery.read(["label"])


def test_spaces_fit_or_are_refused():
    old, new = column("old"), column("new")
    table.check_spaces(old, column("other", model="old"))
    with pytest.raises(InputError) as error:
        table.check_spaces(new, old)
    for part in (old.space, new.space, "model old", "model new", "`allow_space_mismatch=True`"):
        assert part in str(error.value)
    table.check_spaces(new, old, allow_mismatch=True)
    friend = table.Column("friend", 4, "f" * 64, compatible_with=(old.space,))
    table.check_spaces(friend, old)
    table.check_spaces(old, friend)
    # Not transitive: a friend of old is no friend of what old is compatible with.
    third = table.Column("third", 4, "3" * 64, compatible_with=(old.space,))
    with pytest.raises(InputError, match="different spaces"):
        table.check_spaces(friend, third)
    wide = column("old", 5, model="old")
    with pytest.raises(InputError, match="different dimensions: 5 .* and 4"):
        table.check_spaces(wide, old, allow_mismatch=True)


def test_unique_ids_finds_repetitions_across_batches():
    generator = random.Random(0)
    unique = UniqueIds()
    seen: set[str] = set()
    for _ in range(60):
        batch = [str(generator.randrange(20_000)) for _ in range(generator.randrange(40))]
        expected = []
        for value in batch:
            if value in seen:
                expected.append(value)
            seen.add(value)
        assert unique.add(batch) == expected


def test_ids_of_equal_hash_are_no_repetition(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr("fct_tf.gallery.ids._hash", lambda text: len(text))
    assert len(gallery.read(["a"])) == 101
    assert table.add_column(gallery, column("b"), doubled, ["a"]).num_rows == 101
    assert table.verify(table.open(gallery.path)) == []
    ids = [f"i{row}" for row in range(30)]
    vectors = np.zeros((30, 4), np.float32)
    twice = raw_gallery(tmp_path / "twice.lance", [*ids[:28], "i4", "i20"], vectors)
    with pytest.raises(InputError, match="id 'i4' occurs more than once"):
        twice.read(["a"])
    with pytest.raises(InputError, match="id 'i4' occurs more than once"):
        table.add_column(twice, column("b"), doubled, ["a"])
    (problem,) = table.verify(twice)
    assert "'i4'" in problem and "'i20'" in problem and "'i5'" not in problem


def test_fragments_staged_elsewhere_are_committed_here(gallery):
    """What a distributed engine does: stage in workers, pass JSON, commit once."""
    field = column("b").to_field()

    def compute(batch):
        values = batch["a"].flatten().to_numpy() * 2
        return [pa.FixedSizeListArray.from_arrays(pa.array(values), 4)]

    def stage(number):
        return fragments.stage_fragment(gallery.dataset, number, compute, ["a"], [field], 5)

    records = [
        json.loads(json.dumps(stage(fragment.fragment_id)))
        for fragment in reversed(gallery.dataset.get_fragments())
    ]
    assert fragments.commit(gallery.path, records, [field]) == 2
    read = table.open(gallery.path).read(["a", "b"])
    np.testing.assert_array_equal(read.vectors["b"], read.vectors["a"] * 2)


def test_the_reference_galleries_follow_the_contract(shared_datasets):
    for name, count in (("train", 19280), ("test", 13180)):
        gallery = table.open(shared_datasets / "reference_rows" / f"{name}.lance")
        assert gallery.num_rows == count
        assert list(gallery.columns) == ["embedding_old", "side_info", "embedding_new"]
        assert {c.dim for c in gallery.columns.values()} == {128}
        assert table.verify(gallery) == []
