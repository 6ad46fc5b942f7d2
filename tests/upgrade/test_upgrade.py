"""Upgrades of small galleries with exported transformations of random weights."""

import os
import random
import shutil
import time
from pathlib import Path

import keras
import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import upgrade_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.models import artifact, export, fusion, transformation
from fct_tf.upgrade import transform, upgrade
from tests import killing

D_OLD, D_SIDE, D_NEW = 13, 7, 11
OLD, SIDE, NEW = "a" * 64, "b" * 64, "c" * 64
NUM_ROWS = 101


def make_transformation(
    directory,
    *,
    side=True,
    seed=0,
    log_variance=False,
    fused=False,
    source_space=OLD,
    target_space=NEW,
    dims=(),
):
    """A training's working directory with artifact/ and saved_model/."""
    d_source, d_target = dims or (D_OLD, D_NEW)
    model = transformation.build(d_source, d_target, D_SIDE if side else None, hidden=31, seed=seed)
    if log_variance:
        embedding = model.output["embedding"]
        head = keras.layers.Dense(1, name="log_variance")(embedding)
        model = keras.Model(model.input, {"embedding": embedding, "log_variance": head})
    info = {
        "name": "fct",
        "distance": "l2",
        "source_space": source_space,
        "side_info_space": SIDE if side else None,
        "target_space": target_space,
        "source_model": "old model",
        "target_model": "new model",
    }
    if fused:
        both = fusion.build(("l2", "l2"), (0.7, 0.4), (d_source, d_target))
        model = fusion.gallery_side(model, both)
    kind = "fused" if fused else "transformation"
    artifact.save(directory / "artifact", model, kind, info)
    export.export_transformation(directory / "artifact", directory / "saved_model")
    return directory


@pytest.fixture(scope="module")
def fct(tmp_path_factory):
    return make_transformation(tmp_path_factory.mktemp("fct"))


@pytest.fixture(scope="module")
def fct_alone(tmp_path_factory):
    """Without side-information, another seed."""
    return make_transformation(tmp_path_factory.mktemp("alone"), side=False, seed=1)


@pytest.fixture(scope="module")
def fastfill(tmp_path_factory):
    return make_transformation(tmp_path_factory.mktemp("fastfill"), log_variance=True)


def old_column(name="embedding_old", **settings):
    known = {"dim": D_OLD, "space": OLD, "created_by": {"model": "old model"}}
    return Column(name=name, **{**known, **settings})


def side_column(name="side_info"):
    return Column(name=name, dim=D_SIDE, space=SIDE, kind="side_info")


def make_gallery(path, columns=None, num_rows=NUM_ROWS, rows_per_file=37, seed=0):
    columns = [old_column(), side_column()] if columns is None else columns
    rng = np.random.default_rng(seed)
    rows = Rows(
        np.array([f"gallery/{i}" for i in range(num_rows)], object),
        np.array([None if i % 5 == 0 else f"class {i % 3}" for i in range(num_rows)], object),
        {c.name: rng.normal(size=(num_rows, c.dim)).astype(np.float32) for c in columns},
    )
    table.create(path, [rows], columns, rows_per_file=rows_per_file)
    return str(path)


@pytest.fixture
def gallery(tmp_path):
    return make_gallery(tmp_path / "gallery.lance")


def expected_embedding(workdir, rows, source="embedding_old", side="side_info"):
    inputs = {"source_embedding": rows.vectors[source]}
    if side:
        inputs["side_info"] = rows.vectors[side]
    return artifact.load(workdir / "artifact").model(inputs, training=False)


def snapshot(path):
    """Every file below a path, with its time of change."""
    parent = Path(path).parent
    return {str(f): f.stat().st_mtime_ns for f in sorted(parent.rglob("*")) if f.is_file()}


def test_rows_without_direction_are_counted(tmp_path, fct_alone, run_door, capsys):
    path, column = str(tmp_path / "g.lance"), old_column(distance="cosine")
    vectors = np.ones((NUM_ROWS, D_OLD), np.float32)
    vectors[[3, 60, 61]] = [[0], [1e-40], [1e30]]
    ids = np.array([f"r{row}" for row in range(NUM_ROWS)], object)
    table.create(path, [Rows(ids, None, {column.name: vectors})], [column], rows_per_file=37)
    problem = "3 rows with no direction (zeros, or a length beyond float32)"
    (found,) = table.verify(table.open_gallery(path))
    assert f"{problem} in column 'embedding_old'" in found and "'r3', 'r60', 'r61'" in found
    flags = [f"--gallery={path}", f"--transformation={fct_alone}", "--column=embedding_fct"]
    assert run_door(upgrade_gallery, *flags, "--batch_size=20") == 0
    assert f"column 'embedding_old' has {problem}: 'r3', 'r60', 'r61'" in capsys.readouterr().err


def test_adds_a_column_in_one_commit(gallery, fct):
    before = table.open_gallery(gallery)
    upgraded = (
        upgrade.Upgrade(gallery, fct / "saved_model", "embedding_fct", batch_size=10).run().gallery
    )
    assert upgraded.version == before.version + 1
    assert upgraded.num_rows == NUM_ROWS
    names = ["embedding_old", "side_info"]
    old_rows = before.read(names, with_labels=True)
    rows = upgraded.read(
        [*names, "embedding_fct"], with_labels=True, fields=["embedding_fct_origin"]
    )
    assert list(rows.ids) == list(old_rows.ids)
    assert list(rows.labels) == list(old_rows.labels)
    for name in names:
        np.testing.assert_array_equal(rows.vectors[name], old_rows.vectors[name])
    expected = expected_embedding(fct, rows)["embedding"]
    np.testing.assert_allclose(rows.vectors["embedding_fct"], expected, atol=1e-5)
    assert set(rows.fields["embedding_fct_origin"]) == {"transformed"}
    assert "embedding_fct_log_variance" not in upgraded.dataset.schema.names
    assert not os.path.exists(f"{gallery}.jobs")


def test_metadata_of_the_column(gallery, fct, tmp_path):
    upgraded = upgrade.Upgrade(gallery, fct / "saved_model", "embedding_fct").run().gallery
    column = upgraded.column("embedding_fct")
    assert (column.dim, column.dtype, column.kind) == (D_NEW, "float32", "transformed")
    assert column.distance == "l2"
    assert column.compatible_with == (NEW,)
    assert column.space not in (OLD, SIDE, NEW)
    made = column.created_by
    assert made["door"] == "upgrade_gallery"
    assert made["source"] == [
        {"column": "embedding_old", "space": OLD},
        {"column": "side_info", "space": SIDE},
    ]
    assert made["settings"]["transformation"] == artifact.load(fct / "artifact").space
    assert "old model" in column.model and "new model" in column.model
    # Queries of the new model may be compared with it, those of the old one not.
    new = Column(name="q", dim=D_NEW, space=NEW)
    table.check_spaces(new, column)
    with pytest.raises(InputError, match="different spaces"):
        table.check_spaces(Column(name="q", dim=D_NEW, space=OLD), column)
    # The space is that of the transformation: the same in another gallery, not in another seed.
    other = make_gallery(tmp_path / "other.lance", num_rows=5, seed=1)
    again = upgrade.Upgrade(other, fct / "saved_model", "x").run().gallery.column("x")
    assert again.space == column.space
    changed = make_transformation(tmp_path / "changed", seed=3)
    third = upgrade.Upgrade(other, changed / "saved_model", "y").run().gallery.column("y")
    assert third.space != column.space


def test_log_variance(gallery, fastfill):
    upgraded = upgrade.Upgrade(gallery, fastfill, "x").run().gallery
    rows = upgraded.read(["embedding_old", "side_info", "x"], fields=["x_log_variance"])
    expected = expected_embedding(fastfill, rows)
    np.testing.assert_allclose(
        rows.fields["x_log_variance"], expected["log_variance"][:, 0], atol=1e-5
    )
    np.testing.assert_allclose(rows.vectors["x"], expected["embedding"], atol=1e-5)
    assert upgraded.dataset.schema.field("x_log_variance").type == pa.float32()


def test_without_side_information_and_half_precision(tmp_path, fct_alone):
    path = make_gallery(tmp_path / "g.lance", [old_column(dtype="float16")])
    upgraded = upgrade.Upgrade(path, fct_alone, "x", batch_size=7).run().gallery
    rows = upgraded.read(["embedding_old", "x"])
    expected = expected_embedding(fct_alone, rows, side=None)["embedding"]
    np.testing.assert_allclose(rows.vectors["x"], expected, atol=1e-5)


def test_named_columns(tmp_path, fct):
    columns = [old_column("one"), old_column("two"), side_column("side_one"), side_column()]
    path = make_gallery(tmp_path / "g.lance", columns)
    with pytest.raises(InputError, match="columns one, two all lie in the space.*`source`"):
        upgrade.Upgrade(path, fct, "x").run()
    with pytest.raises(InputError, match="side_one, side_info all lie.*`side_info`"):
        upgrade.Upgrade(path, fct, "x", source="two").run()
    upgraded = upgrade.Upgrade(path, fct, "x", source="two", side_info="side_one").run().gallery
    rows = upgraded.read(["two", "side_one", "x"])
    expected = expected_embedding(fct, rows, "two", "side_one")["embedding"]
    np.testing.assert_allclose(rows.vectors["x"], expected, atol=1e-5)


def test_spaces_that_do_not_fit_are_refused(tmp_path, fct):
    other = old_column("other", space="d" * 64, created_by={"model": "another model"})
    path = make_gallery(tmp_path / "g.lance", [other, side_column()])
    before = snapshot(path)
    for source in (None, "other"):
        with pytest.raises(InputError) as error:
            upgrade.Upgrade(path, fct, "x", source=source).run()
        for part in (OLD, "d" * 64, "old model", "another model", path):
            assert part in str(error.value)
    with pytest.raises(InputError, match="no embedding column 'none'"):
        upgrade.Upgrade(path, fct, "x", source="none").run()
    assert snapshot(path) == before
    allowed = (
        upgrade.Upgrade(path, fct, "x", source="other", allow_space_mismatch=True).run().gallery
    )
    assert allowed.column("x").created_by["source"][0]["space"] == "d" * 64


def test_dimensions_that_do_not_fit_are_refused(tmp_path, fct):
    path = make_gallery(tmp_path / "g.lance", [old_column(dim=D_OLD + 1), side_column()])
    with pytest.raises(InputError, match="has 14 values per row.*reads 13 as source_embedding"):
        upgrade.Upgrade(path, fct, "x").run()


def test_side_information_missing_or_too_much(tmp_path, fct, fct_alone):
    path = make_gallery(tmp_path / "g.lance", [old_column()])
    with pytest.raises(InputError, match=f"no column in space {SIDE}.*reads as side_info"):
        upgrade.Upgrade(path, fct, "x").run()
    path = make_gallery(tmp_path / "h.lance")
    with pytest.raises(InputError, match="without side-information"):
        upgrade.Upgrade(path, fct_alone, "x", side_info="side_info").run()


def test_an_upgraded_column_is_the_source_of_the_next_upgrade(gallery, fct, tmp_path):
    newest = make_transformation(
        tmp_path / "next", side=False, source_space=NEW, target_space="e" * 64, dims=(D_NEW, 5)
    )
    upgrade.Upgrade(gallery, fct, "version_2").run()
    upgraded = upgrade.Upgrade(gallery, newest, "version_3").run().gallery
    rows = upgraded.read(["version_2", "version_3"])
    expected = expected_embedding(newest, rows, "version_2", None)["embedding"]
    np.testing.assert_allclose(rows.vectors["version_3"], expected, atol=1e-5)
    assert upgraded.column("version_3").compatible_with == ("e" * 64,)


def test_door(gallery, fct, fct_alone, run_door, capsys):
    arguments = [f"--gallery={gallery}", "--column=x"]
    assert run_door(upgrade_gallery, *arguments, f"--transformation={fct}", "--tag=live") == 0
    live = table.open_gallery(f"{gallery}@live")
    assert capsys.readouterr().out == f"{gallery}@{live.version}: {NUM_ROWS} rows, column x\n"
    first = live.read(["x"]).vectors["x"]

    other = f"--transformation={fct_alone / 'saved_model'}"
    before = snapshot(gallery)
    assert run_door(upgrade_gallery, *arguments, other) == 2
    assert "column 'x' exists already; pass --overwrite" in capsys.readouterr().err
    assert run_door(upgrade_gallery, *arguments, other, "--tag=live") == 2
    assert run_door(upgrade_gallery, *arguments, f"--transformation={fct}", "--tag=live") == 2
    assert snapshot(gallery) == before

    assert run_door(upgrade_gallery, *arguments, other, "--overwrite") == 0
    rows = table.open_gallery(gallery).read(["embedding_old", "x"])
    expected = expected_embedding(fct_alone, rows, side=None)["embedding"]
    np.testing.assert_allclose(rows.vectors["x"], expected, atol=1e-5)
    # The tag moves only when told to, and the old content is still behind it.
    still = table.open_gallery(f"{gallery}@live")
    assert still.version == live.version
    np.testing.assert_array_equal(still.read(["x"]).vectors["x"], first)


def test_door_refuses(gallery, fct, run_door, tmp_path, capsys):
    def refused(message, *arguments, column="x", transformation=fct, gallery=gallery):
        named = [
            f"--gallery={gallery}",
            f"--transformation={transformation}",
            f"--column={column}",
        ]
        assert run_door(upgrade_gallery, *named, *arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error

    refused("no gallery", gallery=tmp_path / "none.lance")
    refused("no such directory", transformation=tmp_path / "none")
    refused("not a possible column name", column="a.b")
    refused("exists already", column="embedding_old")
    replaced = ("--overwrite", "--source=embedding_old")
    refused("choose another name", *replaced, column="embedding_old")
    refused("batch_size", "--batch_size=0")
    version = table.open_gallery(gallery).version
    upgrade.Upgrade(gallery, fct, "y").run()
    for dry in ([], ["--dry_run"]):
        refused("changes are made to the newest version", *dry, gallery=f"{gallery}@{version}")


@pytest.mark.parametrize("column", ["x", "embedding_old"])
def test_dry_run_changes_nothing(fastfill, run_door, tmp_path, capsys, column):
    path = make_gallery(tmp_path / "g.lance")
    before = snapshot(path)
    arguments = [f"--gallery={path}", f"--transformation={fastfill}", f"--column={column}"]
    status = run_door(upgrade_gallery, *arguments, "--dry_run", "--tag=live", "--batch_size=50")
    assert snapshot(path) == before
    printed = capsys.readouterr()
    if column == "embedding_old":
        assert status == 2 and "exists already" in printed.err
        return
    assert status == 0
    told = dict(line.split(":", 1) for line in printed.out.splitlines())
    assert told["rows"].strip() == str(NUM_ROWS)
    assert told["bytes read"].strip() == f"{NUM_ROWS * 4 * (D_OLD + D_SIDE):,}"
    written = NUM_ROWS * (4 * D_NEW + len("transformed") + 4)
    assert told["bytes written"].strip() == f"{written:,}"
    assert float(told["estimated time"].split()[0].replace(",", "")) >= 0
    free = int(told["free disk bytes"].replace(",", ""))
    assert 0 < free <= shutil.disk_usage(tmp_path).total


def append_bad_row(path):
    """A row with NaN, as another program may write it."""
    bad = np.zeros((1, D_OLD), np.float32)
    bad[0, 3] = np.nan
    vectors = [(bad, D_OLD), (np.zeros((1, D_SIDE), np.float32), D_SIDE)]
    arrays = [pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), d) for v, d in vectors]
    schema = lance.dataset(path).schema
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["broken row"]), pa.array([None], pa.string()), *arrays], schema=schema
    )
    lance.write_dataset(pa.Table.from_batches([batch]), path, mode="append")


def test_bad_source_row_is_named(tmp_path, fct):
    path = make_gallery(tmp_path / "g.lance")
    append_bad_row(path)
    version = table.open_gallery(path).version
    with pytest.raises(InputError, match="embedding_old.*'broken row' with NaN or infinity"):
        upgrade.Upgrade(path, fct, "x").run()
    assert table.open_gallery(path).version == version


def test_not_finite_results_are_refused(gallery, tmp_path, monkeypatch, fastfill):
    run = transform.run_model

    def broken(model, sources, rows):
        outputs = run(model, sources, rows)
        outputs["log_variance"][list(rows.ids).index("gallery/1")] = np.nan
        return outputs

    version = table.open_gallery(gallery).version
    monkeypatch.setattr(transform, "run_model", broken)
    with pytest.raises(InputError, match="'gallery/1'.*log_variance of nan"):
        upgrade.Upgrade(gallery, fastfill, "x").run()
    assert table.open_gallery(gallery).version == version


def test_skip_leaves_what_is_there(gallery, fct, fct_alone):
    first = upgrade.Upgrade(gallery, fct, "x", existing="skip").run().gallery
    assert (
        upgrade.Upgrade(gallery, fct, "x", existing="skip").run().gallery.version == first.version
    )
    changed = upgrade.Upgrade(gallery, fct_alone, "x", existing="skip").run().gallery
    assert changed.version == first.version + 1
    assert changed.column("x").space != first.column("x").space


def make_pairs(path, ids, *, space=NEW, seed=7):
    """Rows that the new model has embedded, beside a column of the same size in another space."""
    columns = [Column(name, dim=D_NEW, space=s) for name, s in (("other", "o" * 64), ("z", space))]
    rng = np.random.default_rng(seed)
    vectors = {c.name: rng.normal(size=(len(ids), D_NEW)).astype(np.float32) for c in columns}
    table.create(path, [Rows(np.array(ids, object), None, vectors)], columns)
    return str(path), dict(zip(ids, vectors["z"], strict=True))


def test_rows_that_the_new_model_has_embedded(gallery, fastfill, tmp_path):
    # In another order than the gallery's, over all of its files, and one that it does not have.
    ids = [f"gallery/{i}" for i in (100, 3, 40, 0, 99, 38)] + ["elsewhere"]
    pairs, known = make_pairs(tmp_path / "pairs.lance", ids)
    upgraded = upgrade.Upgrade(gallery, fastfill, "x", pairs=pairs, batch_size=10).run().gallery
    fields = ["x_origin", "x_log_variance"]
    rows = upgraded.read(["embedding_old", "side_info", "x"], fields=fields)
    expected = expected_embedding(fastfill, rows)
    filled = np.isin(rows.ids, ids)
    assert filled.sum() == 6 and len(rows.ids) == NUM_ROWS
    for row, name in enumerate(rows.ids):
        if filled[row]:
            np.testing.assert_array_equal(rows.vectors["x"][row], known[name])
    np.testing.assert_allclose(
        rows.vectors["x"][~filled], expected["embedding"].numpy()[~filled], atol=1e-5
    )
    np.testing.assert_array_equal(rows.fields["x_origin"] == "backfilled", filled)
    assert set(rows.fields["x_origin"]) == {"backfilled", "transformed"}
    np.testing.assert_array_equal(np.isnan(rows.fields["x_log_variance"]), filled)
    assert upgraded.dataset.to_table(columns=["x_log_variance"])[0].null_count == 6
    # Comparable with the new model, but not the space that the transformation alone makes.
    column = upgraded.column("x")
    assert column.compatible_with == (NEW,)
    alone = upgrade.Upgrade(gallery, fastfill, "y").run().gallery
    assert alone.column("y").space != column.space
    np.testing.assert_allclose(
        alone.read(["y"]).vectors["y"][~filled], rows.vectors["x"][~filled], atol=1e-6
    )


def test_skip_knows_the_pairs(gallery, fct, tmp_path):
    pairs, _ = make_pairs(tmp_path / "pairs.lance", ["gallery/1", "gallery/2"])
    more, _ = make_pairs(tmp_path / "more.lance", ["gallery/1", "gallery/2", "gallery/3"])
    origins = []
    for named in (pairs, pairs, more, ""):
        found = upgrade.Upgrade(gallery, fct, "x", pairs=named, existing="skip").run().gallery
        rows = found.read([], fields=["x_origin"])
        origins.append((found.version, int(np.sum(rows.fields["x_origin"] == "backfilled"))))
    first = origins[0][0]
    assert origins == [(first, 2), (first, 2), (first + 1, 3), (first + 2, 0)]


def test_bad_pairs(gallery, fct, tmp_path, run_door, capsys, caplog):
    before = snapshot(gallery)
    other, _ = make_pairs(tmp_path / "other.lance", ["gallery/1"], space="n" * 64)
    for pairs, message in (
        (other, f"other.lance: no column in the space {NEW} that the transformation maps to"),
        (tmp_path / "none.lance", "none.lance: no gallery"),
    ):
        flags = [f"--gallery={gallery}", f"--transformation={fct}", "--column=x"]
        assert run_door(upgrade_gallery, *flags, f"--pairs={pairs}") == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    unchanged = {path: time for path, time in snapshot(gallery).items() if path in before}
    assert unchanged == before and "x" not in table.open_gallery(gallery).columns
    strangers, _ = make_pairs(tmp_path / "strangers.lance", ["elsewhere"])
    upgrade.Upgrade(gallery, fct, "x", pairs=strangers).run()
    assert "none of the rows of" in caplog.text and "strangers.lance" in caplog.text


def test_tag_of_a_job_killed_after_its_commit(gallery, fct):
    table.tag(gallery, "live")
    version = (
        upgrade.Upgrade(gallery, fct, "x").run().gallery.version
    )  # as if killed before tagging
    assert upgrade.Upgrade(gallery, fct, "x", tag="live").run().gallery.version == version
    assert table.open_gallery(f"{gallery}@live").version == version
    with pytest.raises(InputError, match="exists already"):
        upgrade.Upgrade(gallery, fct, "x", tag="live").run()


def test_empty_gallery(tmp_path, fct):
    path = make_gallery(tmp_path / "g.lance", num_rows=0)
    assert upgrade.Upgrade(path, fct, "x").plan().num_rows == 0
    assert upgrade.Upgrade(path, fct, "x").run().gallery.column("x").dim == D_NEW


@pytest.mark.parametrize("output", ["", "own.lance"])
def test_indices_are_named_before_they_are_lost(gallery, fct, run_door, tmp_path, capsys, output):
    output = str(tmp_path / output) if output else ""
    written = output or gallery
    upgrade.Upgrade(gallery, fct, "x", output=output).run()
    dataset = lance.dataset(written)
    dataset.create_index("x", "IVF_FLAT", name="x_idx", num_partitions=2)
    dataset.create_scalar_index("id", "BTREE")
    flags = [f"--gallery={gallery}", f"--transformation={fct}", "--column=x", "--overwrite"]
    flags += [f"--output={output}"] if output else []
    before = snapshot(gallery)
    for more in ([], ["--dry_run"]):
        assert run_door(upgrade_gallery, *flags, *more) == 2
        error = capsys.readouterr().err
        assert "'x_idx' on x (IVF_FLAT, metric_type L2, num_partitions 2)" in error
        assert ("'id_idx'" in error) == bool(output)
    assert run_door(upgrade_gallery, *flags, "--dry_run", "--drop_indices") == 0
    assert "drops the index: 'x_idx' on x (IVF_FLAT" in capsys.readouterr().out
    assert snapshot(gallery) == before
    assert run_door(upgrade_gallery, *flags, "--drop_indices") == 0
    left = [one["name"] for one in lance.dataset(written).list_indices()]
    assert left == ([] if output else ["id_idx"])


# Killed jobs ---------------------------------------------------------------------------------

NUM_FRAGMENTS = 13


def start_door(path, workdir, *more):
    """The door in a process of its own, slowed down by tiny batches."""
    command = ["fct_tf.upgrade_gallery", f"--gallery={path}"]
    command += [f"--transformation={workdir}", "--column=x", "--batch_size=2", "--tag=live", *more]
    return killing.Program(command)


def finished_fragments(path):
    return len(list(Path(f"{path}.jobs/x").glob("fragment-*.json")))


def kill_at(process, path, fragments, delay_s):
    """Kills `process` a little after so many fragments are recorded; whether it was running."""
    while process.running() and finished_fragments(path) < fragments:
        time.sleep(0.001)
    time.sleep(delay_s)
    return process.kill()


def content(path):
    """All that the upgrade wrote, by id, to the bit."""
    gallery = table.open_gallery(path)
    rows = gallery.read(["x"], fields=["x_origin", "x_log_variance"])
    field = gallery.dataset.schema.field("x")
    assert len(set(rows.ids)) == len(rows.ids)
    return dict(field.metadata), {
        i: (vector.tobytes(), origin, log_variance.tobytes())
        for i, vector, origin, log_variance in zip(
            rows.ids,
            rows.vectors["x"],
            rows.fields["x_origin"],
            rows.fields["x_log_variance"],
            strict=True,
        )
    }


def check_killed_jobs(tmp_path, workdir, moments, seed, output=""):
    path = make_gallery(tmp_path / "g.lance", num_rows=NUM_FRAGMENTS * 97, rows_per_file=97)
    live = table.tag(path, "live")
    undisturbed = str(tmp_path / "undisturbed.lance")
    if output:
        upgrade.Upgrade(path, workdir, "x", batch_size=2, output=undisturbed).run()
    else:
        shutil.copytree(path, undisturbed)
        upgrade.Upgrade(undisturbed, workdir, "x", batch_size=2).run()
    rng = random.Random(seed)
    targets = sorted(rng.sample(range(NUM_FRAGMENTS), moments))
    more = [f"--output={output}"] if output else []
    for target in targets:
        process = start_door(path, workdir, *more)
        was_running = kill_at(process, output or path, target, rng.uniform(0, 0.03))
        assert was_running, "the job was faster than the kill: make it slower"
        assert target <= finished_fragments(output or path)
        gallery = table.open_gallery(path)
        assert gallery.version == live and "x" not in gallery.columns
        assert table.open_gallery(f"{path}@live").version == live
        assert not output or not os.path.exists(output)
    return path, undisturbed, live


def finish(path, undisturbed, live, workdir, monkeypatch, output=""):
    written = output or path
    before = finished_fragments(written)
    computed = []
    run = transform.run_model
    monkeypatch.setattr(
        transform,
        "run_model",
        lambda model, sources, rows: computed.append(len(rows)) or run(model, sources, rows),
    )
    done = (
        upgrade.Upgrade(path, workdir, "x", batch_size=2, output=output, tag="live").run().gallery
    )
    # What had been finished is not computed again.
    assert sum(computed) == (NUM_FRAGMENTS - before) * 97
    version = 1 if output else live + 1
    assert done.version == version
    assert table.open_gallery(f"{written}@live").version == version
    assert content(written) == content(undisturbed)
    assert not os.path.exists(f"{written}.jobs")


def files_of(path):
    """How many files of which length, by directory."""
    found = [f.relative_to(path) for f in Path(path).rglob("*") if f.is_file()]
    return sorted((f.parts[0], (Path(path) / f).stat().st_size) for f in found if "data" in f.parts)


def check_own_gallery(tmp_path, fastfill, monkeypatch, **settings):
    output = str(tmp_path / "own.lance")
    killed = check_killed_jobs(tmp_path, fastfill, output=output, **settings)
    finish(*killed, fastfill, monkeypatch, output=output)
    # Neither the staged table nor what a kill had cut off is left.
    assert files_of(output) == files_of(killed[1])
    assert sorted(os.listdir(tmp_path)) == ["g.lance", "own.lance", "undisturbed.lance"]
    assert table.open_gallery(killed[0]).version == killed[2]


@pytest.mark.slow
def test_killed_jobs_of_a_gallery_of_its_own_resume(tmp_path, fastfill, monkeypatch):
    check_own_gallery(tmp_path, fastfill, monkeypatch, moments=2, seed=0)


@pytest.mark.slow
def test_killed_jobs_resume_at_many_moments(tmp_path, fastfill, monkeypatch):
    killed = check_killed_jobs(tmp_path, fastfill, moments=10, seed=1)
    finish(*killed, fastfill, monkeypatch)


@pytest.mark.slow
def test_killed_jobs_of_a_gallery_of_its_own_resume_at_many_moments(
    tmp_path, fastfill, monkeypatch
):
    check_own_gallery(tmp_path, fastfill, monkeypatch, moments=10, seed=1)


def test_job_of_other_settings_starts_from_scratch(tmp_path, fastfill, monkeypatch):
    path = make_gallery(tmp_path / "g.lance")
    run, calls = transform.run_model, []

    def dies(model, sources, rows):
        calls.append(len(rows))
        if len(calls) > 2:
            raise KeyboardInterrupt
        return run(model, sources, rows)

    monkeypatch.setattr(transform, "run_model", dies)
    with pytest.raises(KeyboardInterrupt):
        upgrade.Upgrade(path, fastfill, "x").run()
    monkeypatch.setattr(transform, "run_model", run)
    assert finished_fragments(path) == 2
    other = make_transformation(tmp_path / "other", seed=5)
    upgraded = upgrade.Upgrade(path, other, "x").run().gallery
    rows = upgraded.read(["embedding_old", "side_info", "x"])
    expected = expected_embedding(other, rows)["embedding"]
    np.testing.assert_allclose(rows.vectors["x"], expected, atol=1e-5)
    assert "x_log_variance" not in upgraded.dataset.schema.names


@pytest.mark.slow
def test_killed_jobs_of_a_fused_column_resume(tmp_path, monkeypatch):
    workdir = make_transformation(tmp_path / "fused", log_variance=True, fused=True)
    killed = check_killed_jobs(tmp_path, workdir, moments=4, seed=2)
    assert table.open_gallery(killed[1]).column("x").dim == D_OLD + D_NEW
    finish(*killed, workdir, monkeypatch)
