"""Galleries of the indexes' tests, what is done to them, and what an index has to answer."""

import contextlib
import datetime
import os
import shutil

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf.ann import index, rows, store
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.retrieval import exact

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


def copied(made, tmp_path):
    """A copy of both; the index follows the copy of the gallery."""
    shutil.copytree(made, tmp_path / "copy")
    manifest = tmp_path / "copy" / "i" / store.MANIFEST
    content = files.read_json(manifest)
    content["gallery"]["uri"] = str(tmp_path / "copy" / "g.lance")
    files.write_json(manifest, content)
    return tmp_path / "copy"


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


# What may have happened to a file of an index.
BROKEN = ("truncated", "changed", "missing", "a link elsewhere")


def break_file(path, how):
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "a link elsewhere":
        elsewhere = path.parents[2] / "other"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)


@contextlib.contextmanager
def copying(target, moments, functions):
    """Copies `target` into `moments` before and after each call of `functions`, (module, name)."""
    moments.mkdir()
    copytree = shutil.copytree

    def noting(function):
        def noted(*arguments, **named):
            note()
            result = function(*arguments, **named)
            note()
            return result

        return noted

    def note():
        if target.exists():
            copytree(target, moments / str(len(os.listdir(moments))))

    with pytest.MonkeyPatch.context() as patch:
        for module, name in functions:
            patch.setattr(module, name, noting(getattr(module, name)))
        yield


def append(path, ids, vectors):
    """Rows behind the others as they are, whatever their values; None is no value."""
    lance.write_dataset(_rows(path, ids, vectors), str(path), mode="append")


def _rows(path, ids, vectors, label=None):
    schema = lance.dataset(str(path)).schema
    values = [None if vector is None else vector.tolist() for vector in vectors]
    columns = {"id": list(ids), "label": [label] * len(ids), "a": values}
    return pa.table({name: pa.array(columns[name]) for name in schema.names}).cast(schema)


def append_new(path):
    """40 rows, the last three without a value."""
    append(path, [f"new{row}" for row in range(40)], [*vectors_of(37, seed=4), *[None] * 3])


def replace(path, start=100, count=30, vectors=None):
    """Other values for some rows, which Lance writes behind the others."""
    vectors = vectors_of(count, seed=5) if vectors is None else vectors
    new = _rows(path, [f"row{row}" for row in range(start, start + count)], vectors, "z")
    lance.dataset(str(path)).merge_insert("id").when_matched_update_all().execute(new)


def delete(path):
    lance.dataset(str(path)).delete("id in ('row3', 'row9', 'row1500', 'row2202')")


def relabel(path):
    """Rows are written anew with the same vectors."""
    lance.dataset(str(path)).update({"label": "'other'"}, where="id < 'row15'")


def compact(path):
    delete(path)
    lance.dataset(str(path)).optimize.compact_files(materialize_deletions_threshold=0)


def empty(path):
    """Rows lose their values."""
    replace(path, vectors=[None] * 30)


def many(path):
    for change in (append_new, delete, replace, relabel, compact):
        change(path)


def forget(path):
    """Older versions are given up."""
    many(path)
    lance.dataset(str(path)).cleanup_old_versions(datetime.timedelta(microseconds=1))


def overwrite(path):
    """The column is made anew: one row is another."""
    vectors = vectors_of()
    vectors[17] += 1
    gallery_at(path, vectors, overwrite=True)


# A change of `gallery_at`, and how many rows are then new, changed and gone.
CHANGES = [
    (append_new, (37, 0, 0)),
    (replace, (0, 30, 0)),
    (delete, (0, 0, 4)),
    (relabel, (0, 0, 0)),
    (compact, (0, 0, 4)),
    (empty, (0, 0, 30)),
    (many, (37, 30, 4)),
    (forget, (37, 30, 4)),
    (overwrite, (0, 1, 0)),
]


def rows_at(moments, *, is_new):
    """Rows of the index at each moment that `copying` has kept; 0: there is none yet."""
    for moment in moments.iterdir():
        if is_new and not (moment / store.MANIFEST).exists():
            with pytest.raises(InputError, match="no index here"):
                index.load_index(moment)
            yield 0
        else:
            yield index.load_index(moment).num_rows
