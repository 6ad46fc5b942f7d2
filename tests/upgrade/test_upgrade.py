"""Upgrades of small galleries with exported transformations of random weights."""

import os
import shutil

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import upgrade_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.models import artifact
from fct_tf.upgrade import transform, upgrade
from tests.builders import (
    D_NEW,
    D_OLD,
    D_SIDE,
    NEW,
    NUM_ROWS,
    OLD,
    SIDE,
    append_bad_row,
    expected_embedding,
    make_gallery,
    make_pairs,
    make_transformation,
    old_column,
    side_column,
    snapshot,
)


@pytest.fixture(scope="module")
def fct(tmp_path_factory):
    return make_transformation(tmp_path_factory.mktemp("fct"))


@pytest.fixture(scope="module")
def fct_alone(tmp_path_factory):
    """Without side-information, another seed."""
    return make_transformation(tmp_path_factory.mktemp("alone"), side=False, seed=1)


def test_rows_without_direction_are_counted(tmp_path, fct_alone, run_door, capsys):
    path, column = str(tmp_path / "g.lance"), old_column(distance="cosine")
    vectors = np.ones((NUM_ROWS, D_OLD), np.float32)
    vectors[[3, 60, 61]] = [[0], [1e-40], [1e-20]]
    ids = np.array([f"r{row}" for row in range(NUM_ROWS)], object)
    table.create(path, [Rows(ids, None, {column.name: vectors})], [column], rows_per_file=37)
    problem = "3 rows with no direction (zeros, or a length beyond float32)"
    (found,) = table.verify(table.open_gallery(path))
    assert f"{problem} in column 'embedding_old'" in found and "'r3', 'r60', 'r61'" in found
    flags = [f"--gallery={path}", f"--transformation={fct_alone}", "--column=embedding_fct"]
    assert run_door(upgrade_gallery, *flags, "--batch_size=20") == 0
    assert f"column 'embedding_old' has {problem}: 'r3', 'r60', 'r61'" in capsys.readouterr().err


def test_what_comes_out_too_long_is_refused(tmp_path, fct_alone, run_door, capsys):
    path, column = str(tmp_path / "g.lance"), old_column(distance="cosine")
    vectors = np.ones((NUM_ROWS, D_OLD), np.float32)
    vectors[60] = 1e30
    ids = np.array([f"r{row}" for row in range(NUM_ROWS)], object)
    table.create(path, [Rows(ids, None, {column.name: vectors})], [column], rows_per_file=37)
    flags = [f"--gallery={path}", f"--transformation={fct_alone}", "--column=embedding_fct"]
    assert run_door(upgrade_gallery, *flags, "--batch_size=20") == 2
    error = capsys.readouterr().err
    assert "row 'r60'" in error and "longer than 9e18" in error
    assert table.open_gallery(path).version == 1


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
