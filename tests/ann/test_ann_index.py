"""The index on the disk: moved, broken, changed with its gallery, searched while it changes."""

import json
import os
import pickle
import shutil
import threading

import lance
import numpy as np
import pyarrow as pa
import pytest
from absl import logging as absl_logging

from fct_tf.ann import index, rows, scann_files, store
from fct_tf.common import files, runs
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from tests import killing

DIM, COUNT = 8, 2203
# All leaves are searched and all rows reordered, so that answers equal exact ones.
COMPLETE = {"num_leaves": 5, "num_leaves_to_search": 5, "reordering_num_neighbors": 4000}
QUERIES = np.random.default_rng(9).normal(size=(23, DIM)).astype(np.float32)


def vectors_of(count=COUNT, seed=0):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def column_of(name="a", model="m", distance="l2"):
    space = table.imported_space(model)
    return table.Column(name, DIM, space, distance=distance, created_by={"model": model})


def gallery_at(path, vectors=None, distance="l2", **settings):
    vectors = vectors_of() if vectors is None else vectors
    ids = np.array([f"row{row}" for row in range(len(vectors))], object)
    labels = np.array([f"c{row % 7}" for row in range(len(vectors))], object)
    parts = [slice(start, start + 700) for start in range(0, len(vectors), 700)]
    written = [table.Rows(ids[part], labels[part], {"a": vectors[part]}) for part in parts]
    table.create(path, written, [column_of(distance=distance)], rows_per_file=700, **settings)
    return table.open_gallery(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gallery and a complete index of it, not to be changed: copy them."""
    root = tmp_path_factory.mktemp("made")
    gallery_at(root / "g.lance")
    index.build(root / "g.lance", "a", root / "i", COMPLETE)
    return root


def copied(made, tmp_path):
    """A copy of both; the index follows the copy of the gallery."""
    shutil.copytree(made, tmp_path / "copy")
    manifest = tmp_path / "copy" / "i" / store.MANIFEST
    content = files.read_json(manifest)
    content["gallery"]["uri"] = str(tmp_path / "copy" / "g.lance")
    files.write_json(manifest, content)
    return tmp_path / "copy"


@pytest.fixture
def root(made, tmp_path):
    return copied(made, tmp_path)


def check(found: index.Index, gallery, distance="l2"):
    """Its answers are the exact ones of the gallery's rows that have a value."""
    read = rows.read(gallery, gallery.column("a"))
    answer = found.search(QUERIES, 6, space=gallery.column("a"))
    places, distances = exact.search(QUERIES, read.vectors, 6, distance)
    names = np.array(read.ids.to_pylist(), object)
    np.testing.assert_array_equal(answer.ids, names[places])
    np.testing.assert_allclose(answer.distances, distances, atol=1e-4)
    assert answer.version == gallery.version and found.num_rows == len(read.ids)
    np.testing.assert_array_equal(
        found._state.digests, read.digests[exact.row_numbers(found.ids.to_pylist(), names)]
    )


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_built_moved_and_searched(distance, tmp_path, monkeypatch):
    gallery = gallery_at(tmp_path / "g.lance", distance=distance)
    built = index.build(gallery, "a", tmp_path / "i", COMPLETE)
    check(built, gallery, distance)
    monkeypatch.chdir(tmp_path)
    shutil.move("i", "elsewhere")
    opened = index.open_index("elsewhere")
    check(opened, gallery, distance)
    assert opened.column.space == gallery.column("a").space
    manifest = json.loads((tmp_path / "elsewhere" / store.MANIFEST).read_text())
    assert manifest["settings"]["num_leaves"] == 5 and manifest["versions"]["scann"]
    assert manifest["left_out"] == {"null": 0, "without_direction": 0}
    # A query's own row is left out by id, and as many are found all the same.
    own = [f"row{row}" for row in range(23)]
    vectors = vectors_of()[:23]
    answer = opened.search(vectors, 5, space=gallery.column("a"), exclude=own)
    expected, _ = exact.search(vectors, vectors_of(), 5, distance, np.arange(23))
    np.testing.assert_array_equal(answer.ids, np.char.add("row", expected.astype(str)))


def test_few_rows_and_rows_without_scann(root, tmp_path, monkeypatch, caplog):
    few = index.build(gallery_at(tmp_path / "few.lance", vectors_of(50)), "a", tmp_path / "few")
    check(index.open_index(tmp_path / "few"), table.open_gallery(tmp_path / "few.lance"))
    assert few.searcher.is_exact and few.search(QUERIES, 60, space=few.column).ids[0, 50] is None
    monkeypatch.setattr(scann_files, "available", lambda: False)
    opened = index.open_index(root / "i")
    check(opened, table.open_gallery(root / "g.lance"))
    with pytest.raises(InputError, match="searched, and not changed"):
        opened.delete(["row0"])
    built = index.build(root / "g.lance", "a", tmp_path / "without")
    check(built, table.open_gallery(root / "g.lance"))
    monkeypatch.undo()
    with caplog.at_level("WARNING"):
        again = index.open_index(tmp_path / "without")
    assert "searched exactly, for want of ScaNN" in caplog.text
    check(again, table.open_gallery(root / "g.lance"))


NAMES = ["dataset.npy", "hashed_dataset.npy", "ids.arrow", "scann_config.pb", "searcher.json"]


@pytest.mark.parametrize("name", [*NAMES, "serialized_partitioner.pb", "ah_codebook.pb"])
@pytest.mark.parametrize("how", ["truncated", "changed", "missing", "a link elsewhere"])
def test_a_broken_file_is_refused_by_name(root, name, how):
    path = root / "i" / "generation-1" / name
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "a link elsewhere":
        (root / "other").write_bytes(content)
        path.symlink_to(root / "other")
    with pytest.raises(InputError) as error:
        index.open_index(root / "i")
    assert str(path) in str(error.value) and "build_index --overwrite" in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no index here"),
        ("{", "not a readable JSON"),
        ("[]", "not the manifest of an index"),
        ('{"format": 3}', "install a newer fct_tf"),
        ('{"format": 2}', "broken"),
        ('{"format": 1, "generation": "../../etc", "files": {}}', "broken"),
        ('{"format": 1, "generation": "generation-1", "files": {"../x": {}}}', "broken"),
        ('{"format": 1, "generation": "generation-1", "files": {}}', "broken"),
        ('{"format": 1, "generation": "generation-1", "files": {"ids.arrow": 3}}', "broken"),
    ],
)
def test_a_broken_manifest(root, content, message):
    path = root / "i" / store.MANIFEST
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=message):
        index.open_index(root / "i")


def test_nothing_is_unpickled(root, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for directory in (root / "i", root / "i" / "generation-1"):
        (directory / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        (directory / "scann_assets.pbtxt").write_text('assets { asset_path: "/etc/passwd" }')
    opened = index.open_index(root / "i")
    check(opened, table.open_gallery(root / "g.lance"))
    opened.delete(["row5"])
    assert "generation-2" in os.listdir(root / "i") and opened.num_rows == COUNT - 1
    written = os.listdir(root / "i" / "generation-2")
    assert not [name for name in written if name.endswith((".pkl", ".pbtxt"))]


def test_spaces(root):
    opened = index.load_index(root / "i")
    other = column_of(model="other")
    for space, message in (
        (other, "lie in different spaces.*model other.*model m"),
        (other.space, "lie in different spaces"),
        (None, "say in which space"),
        (table.Column("w", 3, opened.column.space), "different dimensions: 3"),
    ):
        with pytest.raises(InputError, match=message):
            opened.search(QUERIES, 3, space=space)
    compatible = table.Column("q", DIM, other.space, compatible_with=(opened.column.space,))
    expected = opened.search(QUERIES, 3, space=opened.column.space).ids
    for more in ({"space": compatible}, {"space": other, "allow_space_mismatch": True}):
        np.testing.assert_array_equal(opened.search(QUERIES, 3, **more).ids, expected)
    assert opened.search(QUERIES, 3, allow_space_mismatch=True).ids.shape == (23, 3)


def _append(path, count=40, null=3):
    """Rows behind the others, the last ones without a value."""
    dataset = lance.dataset(str(path))
    vectors = pa.array([*vectors_of(count - null, seed=4).tolist(), *[None] * null])
    ids = [f"new{row}" for row in range(count)]
    columns = {"id": ids, "label": [None] * count, "a": vectors}
    schema = dataset.schema
    new = pa.table({name: pa.array(columns[name]) for name in schema.names}).cast(schema)
    lance.write_dataset(new, str(path), mode="append")


def _replace(path, start=100, count=30, null=False):
    """Other values for some rows, which Lance writes behind the others."""
    dataset = lance.dataset(str(path))
    values = [None] * count if null else vectors_of(count, seed=5).tolist()
    ids = [f"row{row}" for row in range(start, start + count)]
    schema = dataset.schema
    columns = {"id": ids, "label": ["z"] * count, "a": values}
    new = pa.table({name: pa.array(columns[name]) for name in schema.names}).cast(schema)
    dataset.merge_insert("id").when_matched_update_all().execute(new)


def _delete(path):
    lance.dataset(str(path)).delete("id in ('row3', 'row9', 'row1500', 'row2202')")


def _label(path):
    """Rows are written anew with the same vectors."""
    lance.dataset(str(path)).update({"label": "'other'"}, where="id < 'row15'")


def _compact(path):
    _delete(path)
    lance.dataset(str(path)).optimize.compact_files(materialize_deletions_threshold=0)


def _null(path):
    _replace(path, null=True)


def _many(path):
    for change in (_append, _delete, _replace, _label, _compact):
        change(path)


def _forgotten(path):
    """Older versions are given up."""
    import datetime

    _many(path)
    lance.dataset(str(path)).cleanup_old_versions(datetime.timedelta(microseconds=1))


def _overwritten(path):
    """The column is made anew: one row is another."""
    vectors = vectors_of()
    vectors[17] += 1
    gallery_at(path, vectors, overwrite=True)


@pytest.mark.parametrize(
    "change, told",
    [
        (_append, (37, 0, 0)),
        (_replace, (0, 30, 0)),
        (_delete, (0, 0, 4)),
        (_label, (0, 0, 0)),
        (_compact, (0, 0, 4)),
        (_null, (0, 0, 30)),
        (_many, (37, 30, 4)),
        (_forgotten, (37, 30, 4)),
        (_overwritten, (0, 1, 0)),
    ],
)
def test_update_by_the_rows_that_differ(root, change, told):
    opened = index.open_index(root / "i")
    change(root / "g.lance")
    gallery = table.open_gallery(root / "g.lance")
    assert opened.version != gallery.version and opened.stale() == sum(told)
    found = opened.update()
    assert (found.new, len(found.ids) - found.new, len(found.gone)) == told
    check(opened, gallery)
    check(index.open_index(root / "i"), gallery)
    assert opened.stale() == 0 and opened.manifest["training"]["changed"] == sum(told)
    assert len(os.listdir(root / "i")) == 2
    # And back.
    before = table.open_gallery(f"{root / 'g.lance'}")
    assert opened.update(before).count == 0


def test_only_fragments_that_changed_are_read(root, monkeypatch):
    opened = index.open_index(root / "i")
    _delete(root / "g.lance")  # In three fragments of four.
    read, blocks = [], rows.blocks

    def noted(gallery, column, fragments=None):
        read.append(fragments)
        return blocks(gallery, column, fragments)

    monkeypatch.setattr(rows, "blocks", noted)
    opened.update()
    assert read == [[0, 2, 3]]


@pytest.mark.parametrize("call", ["update", "stale", "build"])
def test_reading_that_is_broken_off_takes_no_row_for_gone(root, monkeypatch, call):
    opened = index.open_index(root / "i")
    _delete(root / "g.lance")
    batches = lance.LanceScanner.to_batches
    monkeypatch.setattr(lance.LanceScanner, "to_batches", lambda scan: [*batches(scan)][:-1])
    ways = {
        "update": opened.update,
        "stale": opened.stale,
        "build": lambda: index.build(root / "g.lance", "a", root / "i", overwrite=True),
    }
    with pytest.raises(InputError, match="g.lance: .*broken off"):
        ways[call]()
    monkeypatch.undo()
    assert index.open_index(root / "i").num_rows == COUNT
    opened.update()
    check(opened, table.open_gallery(root / "g.lance"))


def test_an_older_version_can_be_had_again(root):
    opened = index.open_index(root / "i")
    old = table.open_gallery(root / "g.lance")
    _many(root / "g.lance")
    opened.update()
    opened.update(table.open_gallery(f"{root / 'g.lance'}@{old.version}"))
    check(opened, old)


@pytest.mark.parametrize(
    "why, settings, count",
    [
        ("more than 50% of the rows differ", COMPLETE, COUNT),
        ("its settings are for 2203", {}, 4500),
    ],
)
def test_much_change_builds_anew(tmp_path, caplog, why, settings, count):
    gallery_at(tmp_path / "g.lance")
    built = index.build(tmp_path / "g.lance", "a", tmp_path / "i", settings)
    vectors = vectors_of(count)
    vectors[: 1200 if settings else 0] += 0.5
    gallery_at(tmp_path / "g.lance", vectors, overwrite=True)
    with caplog.at_level("INFO"):
        built.update()
    assert "built anew" in caplog.text and built.manifest["training"]["changed"] == 0
    assert built.num_rows == count == built.manifest["training"]["num_rows"]
    if settings:
        assert why in caplog.text and built.searcher.settings.num_leaves == 5
        check(built, table.open_gallery(tmp_path / "g.lance"))
    else:
        assert built.searcher.settings.training_sample_size == 4500


def test_int8_rows_are_built_anew_and_some_change_rebalances(root, tmp_path, caplog):
    settings = {**COMPLETE, "reordering_data": "int8"}
    int8 = index.build(root / "g.lance", "a", tmp_path / "int8", settings)
    opened = index.open_index(root / "i")
    _replace(root / "g.lance", start=200, count=600)
    with caplog.at_level("INFO"):
        assert int8.update().count == 600
        assert "cannot change rows under these settings" in caplog.text
        opened.update()
    assert "are made anew" in caplog.text and opened.manifest["training"]["changed"] == 0
    check(opened, table.open_gallery(root / "g.lance"))
    assert int8.stale() == 0 and int8.searcher.settings.reordering_data == "int8"


def test_codes_alone_are_built_anew_when_much_has_changed(root, tmp_path, caplog):
    settings = {**COMPLETE, "reordering_num_neighbors": 0}
    codes = index.build(root / "g.lance", "a", tmp_path / "codes", settings)
    codes.delete([f"row{row}" for row in range(500)])
    with caplog.at_level("INFO"):
        assert codes.update().new == 500
    assert "leaves cannot be made of codes" in caplog.text and codes.num_rows == COUNT


def test_an_index_whose_gallery_has_moved_on_says_so(root, caplog):
    path = root / "g.lance"
    table.tag(path, "live")
    live = index.build(f"{path}@live", "a", root / "live", COMPLETE)
    pinned = index.build(f"{path}@1", "a", root / "pinned", COMPLETE)
    caplog.clear()
    with caplog.at_level("WARNING"):
        index.open_index(root / "i")
        # Nothing of its rows has changed.
        lance.dataset(str(path)).add_columns({"other": "1"})
        index.open_index(root / "i")
    assert not caplog.messages
    _delete(path)
    with caplog.at_level("WARNING"):
        for name in ("i", "live", "pinned"):
            index.open_index(root / name)
    (message,) = caplog.messages
    assert "is of version 1 of" in message and "--update" in message and "\n" not in message
    assert live.stale() == 0 == pinned.stale()
    table.tag(path, "live")
    assert live.stale() == 4 and live.update().count == 4 and pinned.stale() == 0
    shutil.move(path, root / "away")
    caplog.clear()
    with caplog.at_level("WARNING"):
        index.open_index(root / "i")
    assert not caplog.messages


def test_a_column_of_another_space_is_refused(root, caplog):
    opened = index.open_index(root / "i")
    ids = np.array([f"row{row}" for row in range(50)], object)
    written = [table.Rows(ids, ids, {"a": vectors_of(50)})]
    table.create(root / "g.lance", written, [column_of(model="next")], overwrite=True)
    for call in (opened.update, opened.stale):
        with pytest.raises(InputError, match="model next.*by now.*build it again with build_index"):
            call()
    with caplog.at_level("WARNING"):
        index.open_index(root / "i")
    assert "lies in another space" in caplog.text


def test_changed_by_hand(root):
    opened = index.open_index(root / "i")
    vectors = vectors_of(3, seed=8)
    opened.upsert(["row7", "mine", "row2000"], vectors)
    opened.delete(["row0", "row2202", "mine"])
    opened.rebalance()
    assert opened.num_rows == COUNT - 2 and opened.version is None
    answer = index.load_index(root / "i").search(vectors, 1, space=opened.column)
    assert answer.ids[:, 0].tolist()[::2] == ["row7", "row2000"] and answer.ids[1, 0] != "mine"
    for call, message in (
        (lambda: opened.delete(["nobody"]), "no row with id 'nobody'"),
        (lambda: opened.upsert(["a", "a"], vectors[:2]), "each once"),
        (lambda: opened.upsert(["a"], vectors[:1, :3]), "1 x 8 fit"),
        (lambda: opened.upsert(["a"], vectors[:1] * np.nan), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    # An update looks at all rows, and finds what was done.
    assert opened.stale() == 4
    opened.update()
    check(opened, table.open_gallery(root / "g.lance"))


def test_random_changes_of_the_disk_agree_with_a_dictionary(root):
    generator = np.random.default_rng(1)
    opened = index.open_index(root / "i")
    truth = {f"row{row}": vector for row, vector in enumerate(vectors_of())}
    for step in range(12):
        gone = [str(one) for one in generator.choice(list(truth), 40, replace=False)]
        ids = [str(one) for one in generator.choice(list(truth), 30, replace=False)]
        ids += [f"step{step}-{row}" for row in range(20)]
        vectors = vectors_of(50, seed=100 + step)
        opened.upsert(ids, vectors)
        truth |= dict(zip(ids, vectors, strict=True))
        opened.delete(gone)
        truth = {name: vector for name, vector in truth.items() if name not in set(gone)}
        names = np.array(list(truth), object)
        places, _ = exact.search(QUERIES, np.stack(list(truth.values())), 6)
        answer = index.load_index(root / "i").search(QUERIES, 6, space=opened.column)
        np.testing.assert_array_equal(answer.ids, names[places])


def test_rows_that_have_no_place_in_it(tmp_path, caplog):
    vectors = vectors_of(2500)
    vectors[[5, 8]] = 0
    gallery = gallery_at(tmp_path / "g.lance", vectors, distance="cosine")
    _append(tmp_path / "g.lance")
    gallery = table.open_gallery(tmp_path / "g.lance")
    with caplog.at_level("INFO"):
        built = index.build(gallery, "a", tmp_path / "i", COMPLETE)
    assert built.manifest["left_out"] == {"null": 3, "without_direction": 2}
    assert built.num_rows == 2535 and "2 rows are left out" in caplog.text
    check(built, gallery, "cosine")


def test_bad_galleries(tmp_path):
    bad = vectors_of(40)
    gallery_at(tmp_path / "g.lance", bad, distance="cosine")
    gallery_at(tmp_path / "zero.lance", bad * 0, distance="cosine")
    twice = [table.Rows(np.array(["x", "y"], object), None, {"a": bad[:2]})]
    table.create(tmp_path / "twice.lance", twice, [column_of()])
    _rows_as_they_are(tmp_path / "twice.lance", [("y", bad[0])])
    _rows_as_they_are(tmp_path / "g.lance", [("bad", bad[0] * np.nan)])
    for name, column, message in (
        ("nothing", "a", "no gallery"),
        ("g", "b", "no embedding column 'b'; there are: a"),
        ("g", "a", "row 'bad' with NaN"),
        ("zero", "a", "no row to index"),
        ("twice", "a", "id 'y' occurs more than once"),
    ):
        with pytest.raises(InputError, match=message):
            index.build(tmp_path / f"{name}.lance", column, tmp_path / "i")
        assert not (tmp_path / "i").exists()


def _rows_as_they_are(path, pairs):
    schema = lance.dataset(str(path)).schema
    columns = {"id": [one for one, _ in pairs], "label": [None] * len(pairs)}
    columns["a"] = [vector.tolist() for _, vector in pairs]
    new = pa.table({name: pa.array(columns[name]) for name in schema.names}).cast(schema)
    lance.write_dataset(new, str(path), mode="append")


def test_existing_outputs(root, tmp_path):
    path = root / "g.lance"
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        index.build(path, "a", root / "i")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds 'letter.txt' and no index"):
        index.build(path, "a", tmp_path / "mine", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a file of that name"):
        index.build(path, "a", tmp_path / "file", overwrite=True)
    again = index.build(path, "a", root / "i", overwrite=True)
    assert again.manifest["generation"] == "generation-2"
    assert sorted(os.listdir(root / "i")) == ["generation-2", store.MANIFEST]


def test_two_writers(root):
    opened = index.open_index(root / "i")
    with runs.locked(root / "i", "the index"):
        for call in (
            lambda: index.build(root / "g.lance", "a", root / "i", overwrite=True),
            opened.update,
            lambda: opened.delete(["row0"]),
        ):
            with pytest.raises(InputError, match="another process is at work") as error:
                call()
            assert "\n" not in str(error.value)
    # What another writer did meanwhile counts.
    other = index.open_index(root / "i")
    other.delete(["row0"])
    opened.delete(["row1"])
    assert opened.num_rows == COUNT - 2 and other.refresh() and not other.refresh()
    assert other.num_rows == COUNT - 2


# Whatever a writer has done when it is killed, the index opens and the next writer succeeds.
@pytest.mark.parametrize("what", ["build", "overwrite", "update", "by hand"])
def test_killed_at_any_moment(root, tmp_path, monkeypatch, what):
    _delete(root / "g.lance")
    target = tmp_path / "new" if what == "build" else root / "i"
    moments = tmp_path / "moments"
    moments.mkdir()

    def noting(function):
        def noted(*arguments, **named):
            for when in ("before", "after"):
                if when == "after":
                    result = function(*arguments, **named)
                # Files that go while they are copied are none that anybody reads.
                kept = moments / str(len(os.listdir(moments)))
                if target.exists():
                    copytree(target, kept)
            return result

        return noted

    copytree, opened = shutil.copytree, None if what == "build" else index.load_index(root / "i")
    with monkeypatch.context() as patched:
        for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree")):
            patched.setattr(module, name, noting(getattr(module, name)))
        if opened is None or what == "overwrite":
            index.build(root / "g.lance", "a", target, COMPLETE, overwrite=True)
        elif what == "update":
            opened.update()
        else:
            opened.upsert(["row8"], vectors_of(1, seed=3))
    seen = set()
    for moment in sorted(moments.iterdir(), key=lambda path: int(path.name)):
        if what == "build" and not (moment / store.MANIFEST).exists():
            with pytest.raises(InputError, match="no index here"):
                index.load_index(moment)
            seen.add(0)
        else:
            seen.add(index.load_index(moment).num_rows)
    assert seen == {"build": {0, COUNT - 4}, "by hand": {COUNT}}.get(what, {COUNT, COUNT - 4})
    for moment in (moments / "0", moments / str(len(os.listdir(moments)) // 2)):
        if what == "update":
            again = index.load_index(moment)
            again.update()
        else:
            again = index.build(root / "g.lance", "a", moment, COMPLETE, overwrite=True)
        check(again, table.open_gallery(root / "g.lance"))
        assert len(os.listdir(moment)) == 2


def test_a_failed_write_leaves_nothing(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    opened = index.open_index(root / "i")
    with monkeypatch.context() as patched:
        patched.setattr(scann_files, "save", full)
        with pytest.raises(InputError, match="cannot be written.*No space left"):
            opened.delete(["row0"])
    assert sorted(os.listdir(root / "i")) == ["generation-1", store.MANIFEST]
    assert opened.num_rows == COUNT


def test_readers_keep_a_whole_index_while_a_writer_changes_it(root):
    """Every answer is that of one generation: a row of each is nearest to its own query."""
    writer = index.open_index(root / "i")
    reader = index.open_index(root / "i")
    query = np.full((1, DIM), 9, np.float32)
    # Generation g has this row alone near the query, at a distance that tells g.
    marks = {f"mark{step}": query[0] + step / 100 for step in range(6)}
    done, problems, seen = threading.Event(), [], set()

    def look():
        while not done.is_set():
            for one in (reader, writer, index.load_index(root / "i")):
                found = one.search(query, 2, space=one.column)
                step = int(found.generation.removeprefix("generation-")) - 2
                expected = (f"mark{step // 2}",) if step >= 0 else ()
                near = tuple(found.ids[0][found.distances[0] < 1])
                if step % 2 == 1:  # Between its deletion and the next mark there is none.
                    expected = ()
                if near != expected:
                    problems.append((found.generation, near))
                seen.add(found.generation)
            reader.refresh()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for name, vector in marks.items():
        writer.upsert([name], vector[None])
        writer.delete([name])
    done.set()
    for thread in threads:
        thread.join()
    assert not problems and len(seen) > 2


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.4])
def test_sigkill_in_a_build_and_an_update(root, delay_s):
    gallery, path = root / "g.lance", root / "i"
    build = ["fct_tf.build_index", f"--gallery={gallery}", "--column=a", f"--output={path}"]
    _delete(gallery)
    for arguments in ([*build, "--overwrite"], [build[0], build[3], "--update"]):
        shutil.copytree(path, root / "before", dirs_exist_ok=True)
        killing.kill_when(arguments, lambda: len(os.listdir(path)) > 2, delay_s)
        assert index.load_index(path).num_rows in (COUNT, COUNT - 4)
        killing.run(arguments)
        assert index.load_index(path).num_rows == COUNT - 4
        assert len(os.listdir(path)) == 2
        shutil.rmtree(path)
        shutil.move(root / "before", path)


absl_logging.use_absl_handler()
