"""An index that follows its gallery, or is changed by hand."""

import os
import shutil

import lance
import numpy as np
import pytest

from fct_tf.ann import index, rows
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from tests.ann.galleries import (
    CHANGES,
    COMPLETE,
    COUNT,
    QUERIES,
    check,
    column_of,
    delete,
    gallery_at,
    many,
    replace,
    vectors_of,
)


@pytest.mark.parametrize("change, told", CHANGES)
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
    delete(root / "g.lance")  # In three fragments of four.
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
    delete(root / "g.lance")
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
    many(root / "g.lance")
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
    with caplog.at_level("INFO", logger="absl"):
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
    replace(root / "g.lance", start=200, count=600)
    with caplog.at_level("INFO", logger="absl"):
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
    with caplog.at_level("INFO", logger="absl"):
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
    delete(path)
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
