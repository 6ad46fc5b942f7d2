"""Galleries that are made: refused, replaced, killed halfway."""

import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from tests.gallery.tables import column, files_of, rows


def test_a_killed_create_leaves_nothing(tmp_path):
    def failing():
        yield rows(50)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        table.create(tmp_path / "g.lance", failing(), [column("a")])
    assert files_of(tmp_path) == []


def test_a_gallery_made_meanwhile_in_an_object_store_is_kept(tmp_path):
    uri = f"file-object-store://{tmp_path}/g.lance"

    def late():
        table.create(uri, [rows(7, name="b")], [column("b")])
        yield rows(50)

    with pytest.raises(InputError, match="g.lance: another process has just made it"):
        table.create(uri, late(), [column("a")])
    assert list(table.open(uri).columns) == ["b"]


def test_a_gallery_without_rows(tmp_path):
    gallery = table.create(tmp_path / "g.lance", [], [column("a")])
    added = table.add_column(gallery, column("b", 3), lambda rows: rows.vectors["a"][:, :3], ["a"])
    read = added.read(["a", "b"], with_labels=True)
    assert len(read) == 0 and read.labels is not None and len(read.labels) == 0
    assert read.vectors["b"].shape == (0, 3)
    assert list(added.batches(["a"])) == [] and table.verify(added) == []


def test_create_refuses_or_replaces(gallery, tmp_path):
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        table.create(gallery.path, [rows(5)], [column("a")])
    table.tag(gallery.path, "live")
    again = table.create(gallery.path, [rows(5, 3)], [column("a", 3)], overwrite=True)
    assert again.num_rows == 5 and again.columns["a"].dim == 3
    assert table.open(f"{gallery.path}@live").num_rows == 101
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match="is no gallery"):
        table.create(tmp_path / "notes", [rows(5)], [column("a")], overwrite=True)


def broken(kind):
    batch = rows(20, start=40)
    if kind == "nan":
        batch.vectors["a"][7, 2] = np.nan
    elif kind == "infinite":
        batch.vectors["a"][7, 2] = -np.inf
    elif kind == "repeated":
        batch.ids[7] = "row 3"
    elif kind == "null":
        batch.ids[7] = None
    elif kind == "dims":
        batch.vectors["a"] = batch.vectors["a"][:, :3]
    return batch


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "column 'a': row 'row 47' with NaN or infinity"),
        ("infinite", "column 'a': row 'row 47' with NaN or infinity"),
        ("repeated", "id 'row 3' occurs more than once"),
        ("null", "row without id"),
        ("dims", "column 'a' needs rows of 4 values"),
    ],
)
def test_create_refuses_bad_rows_and_leaves_nothing(tmp_path, kind, message):
    with pytest.raises(InputError, match=message):
        table.create(tmp_path / "g.lance", [rows(40), broken(kind)], [column("a")])
    assert files_of(tmp_path) == []


def test_too_large_for_float16_is_refused(tmp_path):
    batch = rows(5)
    batch.vectors["a"][2] = 1e5
    with pytest.raises(InputError, match="row 'row 2' with NaN"):
        table.create(tmp_path / "g.lance", [batch], [column("a", dtype="float16")])
