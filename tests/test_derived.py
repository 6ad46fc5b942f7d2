"""An upgraded column in a gallery of its own: the same rows, whatever becomes of the sources."""

import json
import os
import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import upgrade_gallery
from fct_tf.errors import InputError
from fct_tf.gallery import derived, replace, table, upgrade, upgrade_plan
from fct_tf.gallery.columns import Column, vector_array
from tests.test_upgrade import (
    D_NEW,
    NUM_ROWS,
    expected_embedding,
    make_gallery,
    make_transformation,
    old_column,
    snapshot,
)

FIELDS = ["x_origin", "x_log_variance"]


@pytest.fixture(scope="module")
def fastfill(tmp_path_factory):
    return make_transformation(tmp_path_factory.mktemp("fastfill"), log_variance=True)


@pytest.fixture
def gallery(tmp_path):
    return make_gallery(tmp_path / "g.lance")


@pytest.fixture
def own(tmp_path):
    return str(tmp_path / "own.lance")


def doubled(gallery, path, **more):
    """A gallery of the doubled first column."""
    column = Column("x", gallery.column("embedding_old").dim, "f" * 64)
    return derived.derive(
        gallery,
        path,
        column,
        lambda rows: 2 * rows.vectors["embedding_old"],
        ["embedding_old"],
        **more,
    )


def left_beside(path):
    return sorted(os.listdir(Path(path).parent))


def test_the_same_rows_as_beside_the_sources(gallery, own, fastfill):
    before = snapshot(gallery)
    made = upgrade.upgrade(gallery, fastfill, "x", output=own, batch_size=10)
    assert snapshot(gallery).items() >= before.items()
    assert made.dataset.schema.names == ["id", "label", "x", *FIELDS]
    assert (made.path, made.version, made.pinned) == (own, 1, False)
    assert left_beside(own) == ["g.lance", "own.lance"]
    beside = upgrade.upgrade(gallery, fastfill, "x", batch_size=10)
    ours, theirs = (one.read(["x"], with_labels=True, fields=FIELDS) for one in (made, beside))
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.labels.tolist() == theirs.labels.tolist()
    np.testing.assert_array_equal(ours.vectors["x"], theirs.vectors["x"])
    for name in FIELDS:
        np.testing.assert_array_equal(ours.fields[name], theirs.fields[name])
    column, other = made.column("x"), beside.column("x")
    came_of = column.created_by.pop("gallery")
    assert came_of == {"path": gallery, "version": 1}
    assert column == other and column.created_by == other.created_by


def test_an_old_version_is_a_source_too(gallery, own, fastfill):
    first = table.open_gallery(gallery)
    table.tag(gallery, "live")
    lance.dataset(gallery).delete("id = 'gallery/3'")
    assert upgrade.upgrade(f"{gallery}@live", fastfill, "x", output=own).num_rows == NUM_ROWS
    newest = upgrade.upgrade(gallery, fastfill, "x", output=own, existing="overwrite")
    assert newest.num_rows == NUM_ROWS - 1 and newest.version == 2
    assert newest.column("x").created_by["gallery"]["version"] == first.version + 1
    assert table.open_gallery(f"{own}@1").num_rows == NUM_ROWS
    # Deleted rows leave nothing behind.
    assert sum(f.metadata.physical_rows for f in newest.dataset.get_fragments()) == NUM_ROWS - 1


def test_tables_of_other_shapes(tmp_path):
    labels = pa.array(["a", None, "a", "b"]).dictionary_encode()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2)
    embedding = old_column(dim=2).to_field()
    for name, fields, arrays in (
        ("dictionary", [pa.field("label", labels.type)], [labels]),
        ("other", [pa.field("group", pa.string())], [labels.cast(pa.string())]),
    ):
        schema = pa.schema(
            [pa.field("id", pa.string()), *fields, embedding], metadata={"fct.format": "1"}
        )
        rows = pa.Table.from_arrays([pa.array(list("dcba")), *arrays, vectors], schema=schema)
        lance.write_dataset(rows, tmp_path / name)
        source = table.open_gallery(tmp_path / name)
        made = doubled(source, f"{tmp_path}/{name}.own").read(["x"], with_labels=True)
        assert made.ids.tolist() == list("dcba")
        known = ["a", None, "a", "b"] if name == "dictionary" else [None] * 4
        assert made.labels.tolist() == known
        np.testing.assert_array_equal(made.vectors["x"], np.arange(8).reshape(4, 2) * 2)
    empty = table.open_gallery(make_gallery(tmp_path / "empty.lance", num_rows=0))
    assert doubled(empty, f"{tmp_path}/empty.own").num_rows == 0
    lance.dataset(f"{tmp_path}/other").delete("true")
    gone = table.open_gallery(tmp_path / "other")
    assert doubled(gone, f"{tmp_path}/gone.own").num_rows == 0


def test_door(gallery, own, fastfill, run_door, capsys):
    flags = [f"--gallery={gallery}", f"--transformation={fastfill}", "--column=x"]
    flags += [f"--output={own}/", "--tag=live"]
    assert run_door(upgrade_gallery, *flags, "--dry_run") == 0
    told = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    ids = [f"gallery/{i}" for i in range(NUM_ROWS)]
    written = NUM_ROWS * (4 * D_NEW + len("transformed") + 4 + round(np.mean([*map(len, ids)])))
    assert told["bytes written"].strip() == f"{written:,}"
    assert int(told["free disk bytes"].replace(",", "")) > 0
    assert left_beside(own) == ["g.lance"]

    assert run_door(upgrade_gallery, *flags) == 0
    assert capsys.readouterr().out == f"{own}@1: {NUM_ROWS} rows, column x\n"
    assert run_door(upgrade_gallery, *flags, "--overwrite") == 0
    assert table.open_gallery(f"{own}@live").version == 2
    table.tag(f"{own}@1", "live")
    assert table.open_gallery(f"{own}@live").version == 1


def test_door_refuses(gallery, own, fastfill, run_door, capsys, tmp_path):
    def refused(message, output, *more):
        before = snapshot(own)
        flags = [f"--gallery={gallery}", f"--transformation={fastfill}", "--column=x"]
        for dry in ([], ["--dry_run"]):
            assert run_door(upgrade_gallery, *flags, f"--output={output}", *more, *dry) == 2
            assert message in capsys.readouterr().err
            assert snapshot(own) == before

    (tmp_path / "photos").mkdir()
    refused("photos: exists already and is no gallery", tmp_path / "photos", "--overwrite")
    refused("g.lance: exists already; pass --overwrite", gallery)
    refused("g.lance: is the gallery that is read", gallery, "--overwrite")
    refused("leave the part after '@' out", f"{own}@live")
    upgrade.upgrade(gallery, fastfill, "x", output=own)
    refused("own.lance: exists already; pass --overwrite", own)


def test_bad_rows_leave_nothing(gallery, own):
    vectors = np.zeros((1, old_column().dim), np.float32)
    source = table.open_gallery(gallery)

    def bad(rows):
        values = np.repeat(vectors, len(rows), axis=0)
        values[rows.ids == "gallery/5"] = np.nan
        return values

    column = Column("x", vectors.shape[1], "f" * 64)
    with pytest.raises(InputError, match="'gallery/5'.*NaN"):
        derived.derive(source, own, column, bad, ["embedding_old"])
    assert left_beside(own) == ["g.lance"]


def test_what_another_job_left_is_not_taken(gallery, own):
    source = table.open_gallery(gallery)

    class Killed(Exception):
        pass

    def dies(rows):
        if "gallery/80" in rows.ids:
            raise Killed
        return np.zeros((len(rows), 3), np.float32)

    with pytest.raises(Killed):
        derived.derive(source, own, Column("x", 3, "e" * 64), dies, ["embedding_old"])
    assert left_beside(own) == [".own.lance.staged", "g.lance", "own.lance.jobs"]
    made = doubled(source, own)
    rows, stored = made.read(["x"]), source.read(["embedding_old"])
    np.testing.assert_array_equal(rows.vectors["x"], 2 * stored.vectors["embedding_old"])
    assert left_beside(own) == ["g.lance", "own.lance"]
    assert len(list(Path(own, "data").iterdir())) == 3


@pytest.mark.parametrize("moment", ["commit", "rename"])
def test_killed_at_its_end(gallery, own, monkeypatch, moment):
    """Between the commit of the staged table and its move, or just before the commit."""

    class Killed(Exception):
        pass

    def dies(*_, **__):
        raise Killed

    source = table.open_gallery(gallery)
    with monkeypatch.context() as patched:
        owner = (lance.LanceDataset, "commit") if moment == "commit" else (os, "replace")
        kept = os.replace
        if moment == "rename":

            def replace_others(a, b):
                return dies() if str(b) == own else kept(a, b)

            patched.setattr(*owner, replace_others)
        else:
            patched.setattr(*owner, dies)
        with pytest.raises(Killed):
            doubled(source, own)
    assert not os.path.exists(own)
    made = derived.derive(
        source,
        own,
        Column("x", old_column().dim, "f" * 64),
        lambda rows: pytest.fail("computed again"),
        ["embedding_old"],
    )
    assert made.version == 1 and made.num_rows == NUM_ROWS
    assert left_beside(own) == ["g.lance", "own.lance"]


def test_a_gallery_made_meanwhile_is_kept(gallery, own):
    source = table.open_gallery(gallery)

    def compute(rows):
        if not os.path.exists(own):
            shutil.copytree(gallery, own)
        return rows.vectors["embedding_old"]

    column = Column("x", old_column().dim, "f" * 64)
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        derived.derive(source, own, column, compute, ["embedding_old"])
    assert list(table.open_gallery(own).columns) == list(source.columns)


def test_replacing_rows_writes_their_bytes_alone(tmp_path, fastfill):
    """Beside the sources they are moved too; the ids and a few words on each row come on top."""
    rows, changed = 2000, 100
    path = make_gallery(tmp_path / "g.lance", num_rows=rows, rows_per_file=1000)
    upgrade.upgrade(path, fastfill, "x")
    own = upgrade.upgrade(path, fastfill, "x", output=str(tmp_path / "own.lance")).path
    written = {}
    for one in (path, own):
        gallery = table.open_gallery(one)
        column = gallery.column("x")
        ids = [f"gallery/{i}" for i in range(0, rows, rows // changed)]
        new = np.random.default_rng(0).normal(size=(changed, D_NEW)).astype(np.float32)

        def values(place, ids=ids, new=new, column=column):
            return {"x": vector_array(new[place], column, [ids[i] for i in place], "x")}

        before = {*Path(one, "data").iterdir()}
        replace.replace_rows(one, column, ids, values, space=column.space)
        found = table.open_gallery(one).take(ids, ["x"]).vectors["x"]
        np.testing.assert_array_equal(found, new)
        written[one] = sum(f.stat().st_size for f in {*Path(one, "data").iterdir()} - before)
        bare = changed * 4 * D_NEW
        assert written[one] > bare
    sources = changed * 4 * (13 + 7)
    assert written[path] - written[own] > 0.9 * sources


def test_sources_are_asked_for(gallery, own, fastfill):
    made = upgrade.upgrade(gallery, fastfill, "x", output=own)
    column = made.column("x")
    message = f"was made from another gallery \\({gallery}@1\\); name that one with --sources"
    with pytest.raises(InputError, match=message):
        derived.open_sources(made, column, "")
    assert derived.open_sources(made, column, gallery).path == gallery
    beside = upgrade.upgrade(gallery, fastfill, "x")
    assert derived.open_sources(beside, beside.column("x"), "") is beside


def test_a_chain_of_galleries(gallery, own, fastfill, tmp_path):
    """What was upgraded into a gallery of its own is upgraded again, under the same name."""
    upgrade.upgrade(gallery, fastfill, "x", output=own)
    newest = "d" * 64
    following = make_transformation(
        tmp_path / "following",
        side=False,
        seed=3,
        source_space="c" * 64,
        target_space=newest,
        dims=(D_NEW, 5),
    )
    made = upgrade.upgrade(own, following, "x", output=str(tmp_path / "next.lance"))
    assert made.column("x").compatible_with == (newest,)
    stored = table.open_gallery(own).read(["x"])
    expected = expected_embedding(following, stored, source="x", side=None)["embedding"]
    np.testing.assert_allclose(made.read(["x"]).vectors["x"], expected, atol=1e-5)
    assert json.loads(made.dataset.schema.field("x").metadata[b"fct.created_by"])["gallery"]
    plan = upgrade_plan.plan(own, following, "x", output=str(tmp_path / "third.lance"))
    assert plan.num_rows == NUM_ROWS
