"""An index: built, opened, moved, searched, and searched while it changes."""

import json
import shutil
import threading

import numpy as np
import pytest

from fct_tf.ann import index, scann_files, store
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from tests.ann.galleries import (
    COMPLETE,
    DIM,
    QUERIES,
    append,
    append_new,
    check,
    column_of,
    gallery_at,
    vectors_of,
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


def test_rows_that_have_no_place_in_it(tmp_path, caplog):
    vectors = vectors_of(2500)
    vectors[[5, 8]] = 0
    gallery = gallery_at(tmp_path / "g.lance", vectors, distance="cosine")
    append_new(tmp_path / "g.lance")
    gallery = table.open_gallery(tmp_path / "g.lance")
    with caplog.at_level("INFO", logger="absl"):
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
    append(tmp_path / "twice.lance", ["y"], bad[:1])
    append(tmp_path / "g.lance", ["bad"], bad[:1] * np.nan)
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
