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
from fct_tf.backfill import job_order
from fct_tf.common.errors import InputError
from fct_tf.gallery import add_column, derived, replace, table
from fct_tf.gallery.columns import Column, vector_array
from fct_tf.upgrade import upgrade
from tests import killing
from tests.builders import (
    D_NEW,
    NUM_ROWS,
    expected_embedding,
    make_gallery,
    make_transformation,
    old_column,
    snapshot,
)

FIELDS = ["x_origin", "x_log_variance"]


@pytest.fixture
def gallery(tmp_path):
    return make_gallery(tmp_path / "g.lance")


@pytest.fixture
def own(tmp_path):
    return str(tmp_path / "own.lance")


def doubled(gallery, path, **more):
    """A gallery of the doubled first column."""
    column = Column("x", gallery.column("embedding_old").dim, "f" * 64)
    return table.add_column(
        gallery,
        column,
        lambda rows: 2 * rows.vectors["embedding_old"],
        ["embedding_old"],
        output=path,
        **more,
    )


def left_beside(path):
    return sorted(os.listdir(Path(path).parent))


def test_the_same_rows_as_beside_the_sources(gallery, own, fastfill):
    before = snapshot(gallery)
    made = upgrade.Upgrade(gallery, fastfill, "x", output=own, batch_size=10).run().gallery
    after = snapshot(gallery)
    assert {name: after[name] for name in after if not name.startswith(own)} == before
    assert made.dataset.schema.names == ["id", "label", "x", *FIELDS]
    assert (made.path, made.version, made.pinned) == (own, 1, False)
    assert left_beside(own) == ["g.lance", "own.lance"]
    beside = upgrade.Upgrade(gallery, fastfill, "x", batch_size=10).run().gallery
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
    assert (
        upgrade.Upgrade(f"{gallery}@live", fastfill, "x", output=own).run().gallery.num_rows
        == NUM_ROWS
    )
    newest = upgrade.Upgrade(gallery, fastfill, "x", output=own, existing="overwrite").run().gallery
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
    upgrade.Upgrade(gallery, fastfill, "x", output=own).run()
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
        table.add_column(source, column, bad, ["embedding_old"], output=own)
    assert left_beside(own) == ["g.lance"]


def test_what_another_job_left_is_not_taken(gallery, own):
    source = table.open_gallery(gallery)

    def dies(rows):
        if "gallery/80" in rows.ids:
            raise Killed
        return np.zeros((len(rows), 3), np.float32)

    with pytest.raises(Killed):
        table.add_column(source, Column("x", 3, "e" * 64), dies, ["embedding_old"], output=own)
    assert left_beside(own) == ["g.lance", "own.lance.jobs"]
    made = doubled(source, own)
    rows, stored = made.read(["x"]), source.read(["embedding_old"])
    np.testing.assert_array_equal(rows.vectors["x"], 2 * stored.vectors["embedding_old"])
    assert left_beside(own) == ["g.lance", "own.lance"]
    assert len(list(Path(own, "data").iterdir())) == 3


@pytest.mark.parametrize("moment", ["commit", "rename"])
def test_killed_at_its_end(gallery, own, monkeypatch, moment):
    """Between the commit of the staged table and its move, or just before the commit."""

    def dies(*_, **__):
        raise Killed

    source = table.open_gallery(gallery)
    with monkeypatch.context() as patched:
        owner = (lance.LanceDataset, "commit") if moment == "commit" else (os, "rename")
        kept = os.rename
        if moment == "rename":

            def rename_others(a, b):
                return dies() if str(b) == own else kept(a, b)

            patched.setattr(*owner, rename_others)
        else:
            patched.setattr(*owner, dies)
        with pytest.raises(Killed):
            doubled(source, own)
    assert not os.path.exists(own)
    made = table.add_column(
        source,
        Column("x", old_column().dim, "f" * 64),
        lambda rows: pytest.fail("computed again"),
        ["embedding_old"],
        output=own,
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
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        table.add_column(source, column, compute, ["embedding_old"], output=own)
    assert list(table.open_gallery(own).columns) == list(source.columns)


def test_replacing_rows_writes_their_bytes_alone(tmp_path, fastfill):
    """Beside the sources they are moved too; the ids and a few words on each row come on top."""
    rows, changed = 2000, 100
    path = make_gallery(tmp_path / "g.lance", num_rows=rows, rows_per_file=1000)
    upgrade.Upgrade(path, fastfill, "x").run()
    own = (
        upgrade.Upgrade(path, fastfill, "x", output=str(tmp_path / "own.lance")).run().gallery.path
    )
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
    made = upgrade.Upgrade(gallery, fastfill, "x", output=own).run().gallery
    column = made.column("x")
    message = f"was made from another gallery \\({gallery}@1\\); name that one with `sources`"
    with pytest.raises(InputError, match=message):
        derived.open_sources(made, column, "")
    assert derived.open_sources(made, column, gallery).path == gallery
    beside = upgrade.Upgrade(gallery, fastfill, "x").run().gallery
    assert derived.open_sources(beside, beside.column("x"), "") is beside


def test_a_chain_of_galleries(gallery, own, fastfill, tmp_path):
    """What was upgraded into a gallery of its own is upgraded again, under the same name."""
    upgrade.Upgrade(gallery, fastfill, "x", output=own).run()
    newest = "d" * 64
    following = make_transformation(
        tmp_path / "following",
        side=False,
        seed=3,
        source_space="c" * 64,
        target_space=newest,
        dims=(D_NEW, 5),
    )
    made = upgrade.Upgrade(own, following, "x", output=str(tmp_path / "next.lance")).run().gallery
    assert made.column("x").compatible_with == (newest,)
    stored = table.open_gallery(own).read(["x"])
    expected = expected_embedding(following, stored, source="x", side=None)["embedding"]
    np.testing.assert_allclose(made.read(["x"]).vectors["x"], expected, atol=1e-5)
    assert json.loads(made.dataset.schema.field("x").metadata[b"fct.created_by"])["gallery"]
    plan = upgrade.Upgrade(own, following, "x", output=str(tmp_path / "third.lance")).plan()
    assert plan.num_rows == NUM_ROWS


# What may happen in between --------------------------------------------------------------------


class Killed(Exception):
    pass


def stopped(write, gallery, *, at=80, column=None):
    """A job that ends in the fragment of row `at`, as a kill would end it."""

    def dies(rows):
        if f"gallery/{at}" in rows.ids:
            raise Killed
        return 2 * rows.vectors["embedding_old"]

    column = column or Column("x", old_column().dim, "f" * 64)
    with pytest.raises(Killed):
        write(gallery, column=column, compute=dies, read=["embedding_old"])


def ways(own):
    """A column beside the others, and one of its own."""
    return {
        "beside": table.add_column,
        "apart": lambda gallery, **what: table.add_column(gallery, output=own, **what),
    }


def check_doubled(write, gallery):
    """Runs the job to its end; the rows it computed."""
    seen = []

    def compute(rows):
        seen.extend(rows.ids)
        return 2 * rows.vectors["embedding_old"]

    column = Column("x", old_column().dim, "f" * 64)
    made = write(gallery, column=column, compute=compute, read=["embedding_old"])
    stored = table.open_gallery(gallery.path).read(["embedding_old"])
    rows = made.take(stored.ids, ["x"])
    np.testing.assert_array_equal(rows.vectors["x"], 2 * stored.vectors["embedding_old"])
    assert not os.path.exists(f"{made.path}.jobs")
    return seen


def changed(gallery, **more):
    """Other values of the source column, in the same space."""
    column = gallery.column("embedding_old")
    values = {"column": column, "compute": lambda rows: rows.vectors["embedding_old"] + 1}
    return table.add_column(gallery, **values, read=["embedding_old"], overwrite=True, **more)


@pytest.mark.parametrize("way", ["beside", "apart"])
def test_sources_replaced_in_between_are_read_again(gallery, own, way):
    write = ways(own)[way]
    stopped(write, table.open_gallery(gallery))
    changed(table.open_gallery(gallery))
    assert len(check_doubled(write, table.open_gallery(gallery))) == NUM_ROWS


@pytest.mark.parametrize("way", ["beside", "apart"])
def test_rows_replaced_in_between_are_read_again(gallery, own, way):
    """Those of a fragment whose column was rewritten; the others' records hold."""
    write = ways(own)[way]
    opened = table.open_gallery(gallery)
    stopped(write, opened)
    column = opened.column("embedding_old")
    ids = [f"gallery/{i}" for i in range(37)]

    def values(place):
        return {column.name: vector_array(np.full((len(place), 13), 3.0), column, place, "x")}

    replace.replace_rows(gallery, column, ids, values, space=column.space)
    seen = check_doubled(write, table.open_gallery(gallery))
    assert set(ids) <= set(seen) and "gallery/40" not in seen


@pytest.mark.parametrize("way", ["beside", "apart"])
def test_columns_that_come_in_between_are_no_obstacle(gallery, own, way):
    write = ways(own)[way]
    stopped(write, table.open_gallery(gallery))
    opened = table.open_gallery(gallery)
    table.add_column(opened, Column("y", 2, "e" * 64), lambda rows: np.ones((len(rows), 2)), [])
    cut_off = Path(f"{own}.jobs", "x", "table.lance", "data", "cut_off.lance")
    if way == "apart":
        cut_off.touch()
    assert "gallery/1" not in check_doubled(write, table.open_gallery(gallery))
    assert way == "beside" or len(list(Path(own, "data").iterdir())) == 3


def test_labels_that_come_in_between_are_copied(tmp_path, own):
    path = make_gallery(tmp_path / "g.lance")
    lance.dataset(path).drop_columns(["label"])
    write = ways(own)["apart"]
    stopped(write, table.open_gallery(path))
    lance.dataset(path).add_columns({"label": "'cat'"})
    check_doubled(write, table.open_gallery(path))
    assert set(table.open_gallery(own).read([], with_labels=True).labels) == {"cat"}


def test_of_two_jobs_for_one_path_the_first_to_end_has_it(gallery, own):
    """They differ in the column, so neither waits for the other."""
    source = table.open_gallery(gallery)

    def compute(rows):
        if not os.path.exists(own):
            doubled(source, own)
        return rows.vectors["embedding_old"]

    column = Column("y", old_column().dim, "e" * 64)
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        table.add_column(source, column, compute, ["embedding_old"], output=own)
    made = table.open_gallery(own)
    assert list(made.columns) == ["x"] and made.num_rows == len(made.read(["x"])) == NUM_ROWS


@pytest.mark.parametrize("moment", ["writing", "committing"])
def test_a_gallery_in_an_object_store_made_meanwhile_is_kept(
    gallery, own, tmp_path, monkeypatch, moment
):
    """Nothing can be moved there: what is written is looked at before the commit."""
    source, there = table.open_gallery(gallery), f"file-object-store://{own}"
    job_dir, stage_missing = tmp_path / "jobs", add_column.stage_missing
    made = doubled(source, there, job_dir=job_dir)
    assert made.num_rows == NUM_ROWS and not (job_dir / "x").exists()
    shutil.rmtree(own)

    def compute(rows):
        if moment == "writing" and "gallery/100" in rows.ids:
            shutil.copytree(gallery, own, dirs_exist_ok=True)
        return rows.vectors["embedding_old"]

    def then_another(*what, **more):
        records = stage_missing(*what, **more)
        shutil.copytree(gallery, own, dirs_exist_ok=True)
        return records

    if moment == "committing":
        monkeypatch.setattr(add_column, "stage_missing", then_another)
    told = "another process has just made it" if moment == "writing" else "exists already"
    column = Column("x", old_column().dim, "f" * 64)
    with pytest.raises(InputError, match=told):
        table.add_column(source, column, compute, ["embedding_old"], output=there, job_dir=job_dir)
    assert list(table.open_gallery(own).columns) == list(source.columns)


def test_a_source_replaced_before_the_commit_is_seen(gallery):
    def compute(rows):
        if "gallery/100" in rows.ids:
            changed(table.open_gallery(gallery), job_dir=f"{gallery}.other")
        return rows.vectors["embedding_old"]

    column = Column("x", old_column().dim, "f" * 64)
    with pytest.raises(InputError, match="its rows have changed while the column was computed"):
        table.add_column(table.open_gallery(gallery), column, compute, ["embedding_old"])
    assert len(check_doubled(table.add_column, table.open_gallery(gallery))) == NUM_ROWS


@pytest.mark.parametrize("change", ["delete", "append"])
def test_killed_before_its_move_and_then_the_rows_change(gallery, own, monkeypatch, change):
    with monkeypatch.context() as patched:
        patched.setattr(derived, "_move", lambda made, path: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            doubled(table.open_gallery(gallery), own)
    dataset = lance.dataset(gallery)
    if change == "delete":
        dataset.delete("id = 'gallery/50'")
    else:
        rows = dataset.take([3]).set_column(0, "id", pa.array(["new"]))
        lance.write_dataset(rows.cast(dataset.schema), gallery, mode="append")
    seen = check_doubled(ways(own)["apart"], table.open_gallery(gallery))
    assert len(seen) == (36 if change == "delete" else 1)
    made = table.open_gallery(own)
    assert made.version == 1 and made.num_rows == lance.dataset(gallery).count_rows()


def test_what_was_begun_before_a_gallery_came_is_removed(gallery, own):
    source = table.open_gallery(gallery)
    write = ways(own)["apart"]
    stopped(write, source)
    shutil.copytree(gallery, own)
    assert len(check_doubled(lambda *a, **k: write(*a, **k, overwrite=True), source)) == NUM_ROWS
    assert left_beside(own) == ["g.lance", "own.lance"]


def test_returns_its_own_version(gallery, own, monkeypatch):
    commit = derived.commit

    def then_another(target, *what):
        version = commit(target, *what)
        lance.dataset(target).delete("id = 'gallery/3'")
        return version

    monkeypatch.setattr(derived, "commit", then_another)
    made = doubled(table.open_gallery(gallery), own)
    assert (made.version, made.num_rows, made.pinned) == (1, NUM_ROWS, False)


def test_a_tag_is_for_these_rows(gallery, own, fastfill, tmp_path, run_door, capsys):
    """A column of the same space may have been made from other rows."""
    upgrade.Upgrade(gallery, fastfill, "x", output=own).run()
    other = make_gallery(tmp_path / "other.lance", num_rows=50, seed=1)
    flags = [f"--transformation={fastfill}", "--column=x", f"--output={own}", "--tag=live"]
    assert run_door(upgrade_gallery, f"--gallery={other}", *flags) == 2
    assert "own.lance: exists already; pass --overwrite" in capsys.readouterr().err
    assert not lance.dataset(own).tags.list()
    made = upgrade.Upgrade(other, fastfill, "x", output=own, existing="skip").run().gallery
    assert (made.version, made.num_rows) == (2, 50)
    again = upgrade.Upgrade(other, fastfill, "x", output=own, existing="skip").run().gallery
    assert again.version == 2
    assert run_door(upgrade_gallery, f"--gallery={other}", *flags) == 0
    assert table.open_gallery(f"{own}@live").version == 2


def test_warns_of_all_that_is_lost(gallery, own, fastfill, caplog):
    paid = {"backfilled": [{"rows": 3}], "gallery": {"path": "g.lance", "version": 7}}
    column = Column("z", 13, "f" * 64, kind="transformed", created_by=paid)
    source = table.open_gallery(gallery)
    rows = source.read(["embedding_old"])
    vectors = {"z": rows.vectors["embedding_old"]}
    table.create(own, [table.Rows(rows.ids, None, vectors)], [column])
    upgrade.Upgrade(gallery, fastfill, "x", output=own, existing="overwrite").run()
    advice = f"--gallery={own}@1 --backfilled=z --sources=g.lance@7 make a table for ``pairs``"
    assert advice in caplog.text


def test_places_that_will_not_do(gallery, own, tmp_path, fastfill, run_door, capsys):
    def refused(message, output, *more):
        before = snapshot(gallery)
        flags = [f"--gallery={gallery}", f"--transformation={fastfill}", "--column=x"]
        assert run_door(upgrade_gallery, *flags, f"--output={output}", *more) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert snapshot(gallery) == before

    refused("/: exists already and is no gallery", "/")
    refused("is the gallery that is read", f"file://{gallery}", "--overwrite", "--job_dir=/tmp")
    refused("would lie in the gallery that is read", f"{gallery}/own")
    refused("the unfinished job would lie in", tmp_path / "x", f"--job_dir={tmp_path}")
    refused("the unfinished job would lie in", tmp_path / "x", f"--job_dir={tmp_path}/x/y")
    (tmp_path / "file").touch()
    refused("cannot make this directory", tmp_path / "file" / "own", f"--job_dir={tmp_path}/j")
    (tmp_path / "file").unlink()
    if os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev:
        refused("lies on another file system than", own, f"--job_dir=/dev/shm/{tmp_path.name}")
        assert not os.path.exists(f"/dev/shm/{tmp_path.name}/x")


@pytest.mark.parametrize("way", ["beside", "apart"])
def test_a_missing_data_file_is_named(gallery, own, way):
    changed(table.open_gallery(gallery))
    opened = table.open_gallery(gallery)
    described = opened.dataset.get_fragments()[1].metadata.to_json()["files"]
    path = Path(gallery, "data", described[-1]["path"])
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: data file is missing"):
        check_doubled(ways(own)[way], opened)


def test_ranks_with_sources_of_the_same_name(tmp_path, own):
    alone = make_transformation(tmp_path / "alone", side=False)
    columns = [old_column("x"), old_column("again")]
    source = make_gallery(tmp_path / "g.lance", columns)
    made = upgrade.Upgrade(source, alone, "x", source="again", output=own).run().gallery

    def order(**more):
        return job_order.in_order(
            made, made.column("x"), "ranks", transformation=str(alone), **more
        )

    assert set(order(sources=source)) == set(made.read([]).ids)
    assert made.column("x").created_by["source"][0]["column"] == "again"
    other = make_gallery(tmp_path / "other.lance", [old_column("x")])
    with pytest.raises(InputError, match=f"no column 'again' as that .* name {source}@1 with"):
        order(sources=other)
    lance.dataset(source).delete("id = 'gallery/3'")
    with pytest.raises(InputError, match="'gallery/3'; name a gallery, or a version of it, that"):
        order(sources=source)
    assert len(order(sources=f"{source}@1")) == NUM_ROWS


@pytest.mark.slow
@pytest.mark.parametrize("second", ["x", "y"])
def test_two_processes_one_of_which_makes_it(gallery, own, fastfill, second):
    """The other is refused in one line, whichever of them it is."""
    command = ["fct_tf.upgrade_gallery", f"--gallery={gallery}"]
    command += [f"--transformation={fastfill}", f"--output={own}", "--batch_size=1"]
    started = [killing.Program([*command, f"--column={name}"]) for name in ("x", second)]
    assert sorted(program.wait() for program in started) == [0, 2]
    (refused,) = [program.errors() for program in started if program.wait() == 2]
    told = refused.strip().splitlines()[-1]
    assert "another process is at work on this" in told or "exists already" in told
    made = table.open_gallery(own)
    (name,) = made.columns
    assert len(made.read([name])) == NUM_ROWS
