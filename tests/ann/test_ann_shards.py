"""An index in shards: it answers as one in one piece does, whatever happens while it is made."""

import itertools
import json
import os
import shutil

import lance
import numpy as np
import pytest

from fct_tf import build_index, evaluate, search_index
from fct_tf.ann import index, rows, scann_files, store
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import local
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from tests.ann.galleries import (
    BROKEN,
    CHANGES,
    COMPLETE,
    COUNT,
    DIM,
    QUERIES,
    append,
    append_new,
    break_file,
    check,
    column_of,
    copying,
    delete,
    forget,
    gallery_at,
    overwrite,
    replace,
    rows_at,
    vectors_of,
)
from tests.scattered import Stopped, scattered, stopping

ONE_LEAF = {"num_leaves": 1, "num_leaves_to_search": 1, "reordering_num_neighbors": 4000}
SHARDS = 3  # Of the four fragments of `gallery_at`.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gallery and an index of it in shards, not to be changed: copy them."""
    root = tmp_path_factory.mktemp("made")
    gallery_at(root / "g.lance")
    index.build(root / "g.lance", "a", root / "i", COMPLETE, shards=SHARDS)
    return root


def names_of(path):
    return sorted(os.listdir(path))


@pytest.mark.parametrize("engine", [local, scattered])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("shards, settings", [(1, ONE_LEAF), (3, ONE_LEAF), (4, COMPLETE)])
def test_built_moved_and_searched(distance, shards, settings, engine, tmp_path, monkeypatch):
    gallery = gallery_at(tmp_path / "g.lance", distance=distance)
    more = {"shards": shards, "engine": engine}
    check(index.build(gallery, "a", tmp_path / "i", settings, **more), gallery, distance)
    directories = [f"shard-{number}-1" for number in range(1, shards + 1)]
    assert names_of(tmp_path / "i") == sorted([*directories, store.MANIFEST])
    monkeypatch.chdir(tmp_path)
    shutil.move("i", "elsewhere")
    opened = index.open_index("elsewhere")
    check(opened, gallery, distance)
    assert store.shards(opened.manifest) == directories
    assert not opened.searcher.is_exact and opened.searcher.settings.num_leaves in (1, 5)
    # Rows are in the gallery's order, and a query's own row is left out in whichever shard it is.
    assert opened.ids.to_pylist() == [f"row{row}" for row in range(COUNT)]
    own = np.arange(0, COUNT, 101)
    answer = opened.search(
        vectors_of()[own], 5, space=gallery.column("a"), exclude=[f"row{row}" for row in own]
    )
    expected, _ = exact.search(vectors_of()[own], vectors_of(), 5, distance, own)
    np.testing.assert_array_equal(answer.ids, np.char.add("row", expected.astype(str)))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("k", [1, 7, 23, 24])
def test_ties_come_in_the_order_of_rows(tmp_path, distance, k):
    """Shards of few rows are searched exactly: equal distances to the bit, in every shard."""
    vectors = np.random.default_rng(0).integers(-1, 2, (23, DIM)).astype(np.float32)
    vectors[:, 0] = 1
    vectors[7:] = np.tile(vectors[:7], (3, 1))[:16]
    ids = np.array([f"row{row}" for row in range(23)], object)
    written = [table.Rows(ids, ids, {"a": vectors})]
    table.create(tmp_path / "g.lance", written, [column_of(distance=distance)], rows_per_file=6)
    opened = index.build(tmp_path / "g.lance", "a", tmp_path / "i", shards=4)
    assert opened.searcher.is_exact and not opened.searcher.lacks_scann
    answer = opened.search(vectors, k, space=opened.column)
    places, distances = exact.search(vectors, vectors, k, distance)
    np.testing.assert_array_equal(answer.distances, distances)
    # Where there are fewer rows than asked for.
    np.testing.assert_array_equal(answer.ids, np.append(ids, None)[places])


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("sizes", [[10] * 7, [1, 1, 1, 1, 1, 1, 64], [64, 1, 1, 1, 1, 1, 1]])
def test_fragments_are_dealt_out_in_order(tmp_path, sizes, shards):
    total = sum(sizes)
    ids = np.array([f"row{row}" for row in range(total)], object)
    stops = np.cumsum(sizes)
    path, vectors = tmp_path / "g.lance", vectors_of(total)
    for start, stop in zip([0, *stops], stops, strict=False):
        part = slice(start, stop)
        if start == 0:
            table.create(path, [table.Rows(ids[part], ids[part], {"a": vectors[part]})], [COLUMN])
        else:
            append(path, ids[part], vectors[part])
    opened = index.build(path, "a", tmp_path / "i", shards=shards)
    check(opened, table.open_gallery(path))
    own = [fragments_of(opened, name) for name in store.shards(opened.manifest)]
    assert len(own) == shards and all(own)
    assert [one for part in own for one in part] == [str(number) for number in range(7)]
    if len(set(sizes)) == 1:
        assert max(map(len, own)) - min(map(len, own)) <= 1


COLUMN = column_of()


def fragments_of(opened, name):
    return [*files.read_json(f"{opened.path}/{name}/{store.MANIFEST}")["fragments"]]


@pytest.mark.parametrize("engine", [local, scattered])
@pytest.mark.parametrize("change, told", CHANGES)
def test_update_by_the_rows_that_differ(root, change, told, engine):
    opened = index.open_index(root / "i")
    change(root / "g.lance")
    gallery = table.open_gallery(root / "g.lance")
    assert opened.version != gallery.version and opened.stale() == sum(told)
    found = opened.update(engine=engine)
    assert (found.new, len(found.ids) - found.new, len(found.gone)) == told
    check(opened, gallery)
    check(index.open_index(root / "i"), gallery)
    assert opened.stale() == 0 and opened.moved_on() == ""
    assert names_of(root / "i") == sorted([*store.shards(opened.manifest), store.MANIFEST])
    assert opened.update(engine=engine).count == 0
    if change not in (forget, overwrite):  # And back.
        old = table.open_gallery(f"{root / 'g.lance'}@1")
        opened.update(old, engine=engine)
        check(opened, old)


def test_shards_that_have_not_changed_stay(root):
    opened = index.open_index(root / "i")
    lance.dataset(str(root / "g.lance")).delete("id = 'row3'")
    opened.update()
    directories = store.shards(opened.manifest)
    assert directories == ["shard-1-2", "shard-2-1", "shard-3-1"]
    # A new fragment goes where the fewest rows are: 699, 700 and 803.
    append(root / "g.lance", ["a", "b"], vectors_of(2, seed=5))
    opened.update()
    assert store.shards(opened.manifest) == ["shard-1-3", "shard-2-1", "shard-3-1"]
    append(root / "g.lance", ["c"], vectors_of(1, seed=6))
    opened.update()
    assert store.shards(opened.manifest) == ["shard-1-3", "shard-2-4", "shard-3-1"]
    check(opened, table.open_gallery(root / "g.lance"))


def test_shards_that_no_row_is_left_for(root, tmp_path, caplog):
    path = root / "g.lance"
    opened = index.open_index(root / "i")
    lance.dataset(str(path)).delete(f"id in {tuple(f'row{row}' for row in range(700, 1400))}")
    assert len(opened.update().gone) == 700
    assert store.shards(opened.manifest) == ["shard-1-1", "shard-3-1"]
    check(opened, table.open_gallery(path))
    # One whose rows have no value is not built, and its rows are counted.
    append(path, ["n1", "n2"], [None, None])
    gallery = table.open_gallery(path)
    built = index.build(gallery, "a", tmp_path / "i", COMPLETE, shards=4)
    check(built, gallery)
    assert len(store.shards(built.manifest)) == 3 and built.manifest["left_out"]["null"] == 2
    lance.dataset(str(path)).delete("id like 'row%'")
    with pytest.raises(InputError, match="has no row left to index"):
        opened.update()
    with pytest.raises(InputError, match="has no row to index .2 without a value"):
        index.build(path, "a", tmp_path / "none", shards=1)
    assert not (tmp_path / "none").exists() and index.open_index(root / "i").num_rows == COUNT - 700


def written(path, name):
    """What is another number once a shard has been written anew."""
    return os.stat(path / name / store.MANIFEST).st_ino


@pytest.mark.parametrize("begun, ended", [(local, scattered), (scattered, local)])
@pytest.mark.parametrize("what", ["build", "overwrite", "update"])
def test_begun_by_one_engine_and_ended_by_another(root, tmp_path, what, begun, ended, caplog):
    for change in (append_new, delete, replace):
        change(root / "g.lance")
    gallery = table.open_gallery(root / "g.lance")
    path = tmp_path / "new" if what == "build" else root / "i"

    def run(engine):
        if what == "update":
            return index.Index(path).update(engine=engine)
        more = {"shards": 3, "engine": engine, "overwrite": True}
        return index.build(gallery, "a", path, ONE_LEAF, **more)

    with pytest.raises(Stopped):
        run(stopping(begun, 1))
    if what == "build":
        with pytest.raises(InputError, match="no index here"):
            index.open_index(path)
    else:
        assert index.load_index(path).num_rows == COUNT
    generation = 1 if what == "build" else 2
    name = next(one for one in names_of(path) if one.endswith(f"-{generation}"))
    before = written(path, name)
    with caplog.at_level("INFO", logger="absl"):
        run(ended)
    assert "2 of 3 shards are there already" in caplog.text
    assert written(path, name) == before
    check(index.open_index(path), gallery)
    assert len(names_of(path)) == 4


@pytest.mark.parametrize(
    "why, kept",
    [("nothing", {1, 2}), ("settings", set()), ("broken", {2}), ("rows", {2}), ("update", set())],
)
def test_what_fits_counts_and_nothing_else(root, why, kept):
    """Of what a killed job left: what is whole, and of the same rows and request."""
    path = root / "i"
    with pytest.raises(Stopped):
        more = {"shards": 3, "overwrite": True, "engine": stopping(local, 1)}
        index.build(root / "g.lance", "a", path, ONE_LEAF, **more)
    before = {number: written(path, f"shard-{number}-2") for number in (1, 2)}
    if why == "broken":
        data = path / "shard-1-2" / "generation-1" / "dataset.npy"
        data.write_bytes(data.read_bytes()[:-1] + b"x")
    if why in ("rows", "update"):
        lance.dataset(str(root / "g.lance")).delete("id in ('row3', 'row1500')")
    if why == "update":
        opened = index.Index(path)
        opened.update()
        assert store.shards(opened.manifest) == ["shard-1-2", "shard-2-1", "shard-3-2"]
    else:
        settings = COMPLETE if why == "settings" else ONE_LEAF
        opened = index.build(root / "g.lance", "a", path, settings, shards=3, overwrite=True)
    check(opened, table.open_gallery(root / "g.lance"))
    leaves = {part.settings.num_leaves for part in opened.searcher.parts}
    assert leaves == ({5} if why in ("settings", "update") else {1})
    there = [number for number in before if (path / f"shard-{number}-2").exists()]
    assert {one for one in there if written(path, f"shard-{one}-2") == before[one]} == kept


@pytest.mark.parametrize(
    "name, how",
    [
        *itertools.product(
            ["manifest.json", "generation-1/dataset.npy", "generation-1/ids.arrow"],
            BROKEN,
        ),
        ("generation-1", "missing"),
    ],
)
def test_a_broken_shard_is_refused_by_name(root, name, how):
    path = root / "i" / "shard-2-1" / name
    if path.is_dir():
        path.rename(root / "away")
    else:
        break_file(path, how)
    for call in (index.open_index, lambda path: index.Index(path).search(QUERIES, 1)):
        with pytest.raises(InputError) as error:
            call(root / "i")
        assert str(path) in str(error.value) and "build_index --overwrite" in str(error.value)


@pytest.mark.parametrize(
    "files_of",
    [{}, {"../x/manifest.json": {}}, {"shard-1-1/other.json": {}}, {"shard-1-1/manifest.json": 3}],
)
def test_a_broken_manifest(root, files_of):
    path = root / "i" / store.MANIFEST
    content = files.read_json(path)
    for name in files_of:
        files_of = {name: files_of[name] or {"bytes": 1, "sha256": ""}}
    files.write_json(path, {**content, "files": files_of})
    with pytest.raises(InputError, match="manifest.json: broken; build it again"):
        index.open_index(root / "i")


@pytest.mark.parametrize("first, then", [(None, 2), (2, None), (2, 4)])
def test_built_over_one_of_another_kind(root, tmp_path, first, then):
    path, gallery = tmp_path / "i", table.open_gallery(root / "g.lance")
    index.build(gallery, "a", path, COMPLETE, shards=first)
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        index.build(gallery, "a", path, COMPLETE, shards=then)
    reader = index.open_index(path)
    index.build(gallery, "a", path, COMPLETE, shards=then, overwrite=True)
    check(reader, gallery)
    assert reader.refresh() and not reader.refresh()
    check(reader, gallery)
    assert reader.manifest["generation"] == "generation-2"
    assert len(names_of(path)) == 1 + (then or 1)


# Whatever a writer has done when it is killed, the index opens and the next writer succeeds.
@pytest.mark.parametrize("what", ["build", "overwrite", "update"])
def test_killed_at_any_moment(root, tmp_path, what):
    delete(root / "g.lance")
    target = tmp_path / "new" if what == "build" else root / "i"
    moments = tmp_path / "moments"

    def run(path):
        if what == "update":
            index.Index(path).update()
        else:
            more = {"shards": 2, "overwrite": True}
            index.build(root / "g.lance", "a", path, COMPLETE, **more)

    with copying(target, moments, ((os, "replace"), (os, "rename"), (shutil, "rmtree"))):
        run(target)
    seen = set(rows_at(moments, is_new=what == "build"))
    assert seen == ({0, COUNT - 4} if what == "build" else {COUNT, COUNT - 4})
    for moment in (moments / "0", moments / str(len(os.listdir(moments)) // 2)):
        run(moment)
        check(index.load_index(moment), table.open_gallery(root / "g.lance"))
        assert len(names_of(moment)) == (4 if what == "update" else 3)


def test_what_goes_wrong_leaves_the_old_index(root, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path, gallery = root / "i", root / "g.lance"
    delete(gallery)
    before = names_of(path)
    opened = index.open_index(path)
    for call in (
        opened.update,
        lambda: index.build(gallery, "a", path, COMPLETE, shards=2, overwrite=True),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(scann_files, "save", full)
            with pytest.raises(InputError, match="cannot be written.*No space left"):
                call()
        assert names_of(path) == before
    append(gallery, ["bad"], [np.full(DIM, np.nan, np.float32)])
    with pytest.raises(InputError, match="row 'bad' with NaN"):
        opened.update()
    assert index.open_index(path).num_rows == COUNT


def test_ids_that_repeat_in_another_shard(root):
    append(root / "g.lance", ["row5"], vectors_of(1))
    opened = index.open_index(root / "i")
    for call in (
        opened.update,
        lambda: index.build(root / "g.lance", "a", root / "other", shards=2),
    ):
        with pytest.raises(InputError, match="row5"):
            call()
    assert names_of(root) == ["g.lance", "i"] and index.open_index(root / "i").num_rows == COUNT


def test_by_hand_it_is_not_changed(root):
    opened = index.open_index(root / "i")
    for call in (
        lambda: opened.delete(["row0"]),
        lambda: opened.upsert(["row0"], vectors_of(1)),
        opened.rebalance,
    ):
        with pytest.raises(InputError, match="is in shards, which follow the gallery"):
            call()
    check(opened, table.open_gallery(root / "g.lance"))


def test_commands(root, tmp_path, run_door, capsys):
    flags = [f"--gallery={root / 'g.lance'}", "--column=a", f"--output={tmp_path / 'i'}"]
    settings = [f"--{name}={value}" for name, value in COMPLETE.items()]
    assert run_door(build_index, *flags, *settings, "--shards=2", "--dry_run") == 0
    assert "2203 rows x 8, 2 shards of about 1102 rows, 5 leaves" in capsys.readouterr().out
    assert not (tmp_path / "i").exists()
    assert run_door(build_index, *flags, *settings, "--shards=2") == 0
    assert "2203 rows of 'a' at version 1, 2 shards, the largest of 5 leaves" in (
        capsys.readouterr().out
    )
    delete(root / "g.lance")
    for arguments, message in (
        ([*flags, "--overwrite", "--shards=5"], "--shards=5 must be 4 at most"),
        ([*flags, "--overwrite", "--engine=spark"], "--engine: makes shards; say how many"),
        ([flags[2], "--update", "--shards=2"], "--shards: an update keeps the settings"),
    ):
        assert run_door(build_index, *arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert run_door(build_index, flags[2], "--update") == 0
    assert "0 new rows, 0 changed, 4 gone; 2199 rows" in capsys.readouterr().out
    query = [f"--query={root / 'g.lance'}", "--query_column=a"]
    output = tmp_path / "found.json"
    search = [f"--index={tmp_path / 'i'}", *query, "--exclude_own", "--k=2", f"--output={output}"]
    assert run_door(search_index, *search) == 0
    record = json.loads(output.read_text())
    assert record["index"]["shards"] == 2 and record["index"]["num_rows"] == 2199
    assert "2199 queries, 2199 rows searched approximately" in capsys.readouterr().out
    read = rows.read(table.open_gallery(root / "g.lance"), COLUMN)
    places, _ = exact.search(read.vectors, read.vectors, 2, "l2", np.arange(2199))
    ids = read.ids.to_numpy(zero_copy_only=False)
    found = [[one["id"] for one in line["neighbours"]] for line in record["results"]]
    np.testing.assert_array_equal(found, ids[places])
    results = []
    for more in (["--search=scann", f"--index={tmp_path / 'i'}"], []):
        assert run_door(evaluate, *flags[:1], *query, "--gallery_column=a", "--ks=1,5",
                        f"--output={tmp_path / 'r.json'}", "--overwrite", *more) == 0  # fmt: skip
        results.append(json.loads((tmp_path / "r.json").read_text()))
    assert results[0]["cmc"] == results[1]["cmc"] and results[0]["search"]["recall"] == 1
    assert results[0]["search"]["index"]["shards"] == 2


@pytest.mark.parametrize("shards", [0, -1, True, 2.5, "4"])
def test_numbers_of_shards_that_cannot_be(root, tmp_path, shards):
    with pytest.raises(InputError, match="shards=.*must be (a whole number|1 or more)"):
        index.build(root / "g.lance", "a", tmp_path / "i", COMPLETE, shards=shards)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("name", [store.IDS, "searcher.json"])
def test_an_update_refuses_a_shard_with_a_file_missing(root, name):
    """Also where that shard does not change."""
    path = next((root / "i" / "shard-2-1").rglob(name))
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: missing; put it back"):
        index.Index(root / "i").update()
