"""Rows that came after a column was made: computed alone, in place and in a gallery of its own."""

import os
import random
import shutil

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import evaluate, inspect_gallery, upgrade_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import missing, table
from fct_tf.gallery.columns import Column
from fct_tf.gallery.job import Job
from fct_tf.gallery.replace import replace_rows
from fct_tf.upgrade import transform, upgrade
from tests import killing
from tests.builders import (
    D_NEW,
    D_OLD,
    content,
    finished_fragments,
    kill_at,
    make_gallery,
    make_transformation,
    old_column,
    side_column,
    snapshot,
    start_door,
)

FIELDS = ["x_origin", "x_log_variance"]
WAYS = ["beside", "apart"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_transformation(tmp_path_factory.mktemp("other"), log_variance=True, seed=1)


def append(path, count, *, seed=9, only=("embedding_old", "side_info")):
    """Rows as plain Lance appends them: ids, labels and what is `only`, nothing of the column."""
    dataset, rng = lance.dataset(path), np.random.default_rng(seed)
    fields = [dataset.schema.field(name) for name in ("id", "label", *only)]
    arrays = [
        pa.array([f"new/{seed}/{i}" for i in range(count)]),
        pa.array([None if i % 2 else "class 1" for i in range(count)]),
    ]
    for field in fields[2:]:
        values = rng.normal(size=count * field.type.list_size).astype(np.float32)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values), field.type.list_size))
    rows = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    lance.write_dataset(rows, path, mode="append")
    return arrays[0].to_pylist()


@pytest.fixture
def grown(tmp_path, fastfill):
    """(gallery, output) by way: upgraded, one row backfilled, then grown by two fragments."""

    def make(way):
        path, own = make_gallery(tmp_path / "g.lance"), str(tmp_path / "own.lance")
        written = own if way == "apart" else path
        upgrade.Upgrade(path, fastfill, "x", output=own if way == "apart" else "").run()
        column = table.open(written).column("x")

        def values(place):
            vector = pa.array(np.ones(D_NEW, np.float32))
            return {
                "x": pa.FixedSizeListArray.from_arrays(vector, D_NEW),
                "x_origin": pa.array(["backfilled"]),
                "x_log_variance": pa.nulls(1, pa.float32()),
            }

        replace_rows(written, column, ["gallery/5"], values, space=column.space)
        append(path, 9, seed=1)
        append(path, 4, seed=2)
        return path, own if way == "apart" else ""

    return make


def by_id(path):
    rows = table.open(path).read(["x"], fields=FIELDS, with_labels=True)
    values = zip(
        rows.vectors["x"].tolist(),
        rows.fields["x_origin"],
        rows.fields["x_log_variance"].tolist(),
        rows.labels,
        strict=True,
    )
    return dict(zip(rows.ids, values, strict=True))


def ids_of(path):
    return set(table.open(path).read([]).ids)


def data_bytes(path):
    root = os.path.join(path, "data")
    return {name: os.path.getsize(os.path.join(root, name)) for name in os.listdir(root)}


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_came_later_and_no_others(grown, fastfill, way, tmp_path):
    path, own = grown(way)
    written = own or path
    before = lance.dataset(written)
    old_rows = {row["id"]: row for row in before.to_table(filter="x IS NOT NULL").to_pylist()}
    files = data_bytes(written)
    done, found, _ = upgrade.Upgrade(
        path, fastfill, "x", output=own, tag="live", missing=True
    ).run()
    assert (found.count, found.new, found.gone) == (13, 13 if own else 0, 0)
    assert done.version == before.version + 1 == table.open(f"{written}@live").version
    # As if all rows had been transformed at once, but for the one that was backfilled.
    whole = str(tmp_path / "whole.lance")
    upgrade.Upgrade(path, fastfill, "x", output=whole).run()
    after, expected = by_id(written), by_id(whole)
    assert len(after) == 114
    assert after["gallery/5"][:2] == ([1.0] * D_NEW, "backfilled")
    del after["gallery/5"], expected["gallery/5"]
    assert after.keys() == expected.keys()
    for name, (vector, origin, log_variance, label) in after.items():
        np.testing.assert_allclose(vector, expected[name][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(log_variance, expected[name][2], rtol=1e-4, atol=1e-5)
        assert (origin, label) == ("transformed", expected[name][3])
    now = lance.dataset(written)
    kept = {row["id"]: row for row in now.to_table().to_pylist()}
    assert {name: kept[name] for name in old_rows} == old_rows
    assert done.column("x").space == table.open(f"{written}@{before.version}").column("x").space
    # Files of rows that were there are the same; what is new is about the column of 13 rows.
    new = {name: size for name, size in data_bytes(written).items() if name not in files}
    assert files.items() <= data_bytes(written).items()
    assert sum(new.values()) < 13 * (4 * D_NEW + 60) + len(new) * 3000
    known = {f.path for fragment in now.get_fragments() for f in fragment.metadata.files}
    assert set(files) & {f.path for x in before.get_fragments() for f in x.metadata.files} <= known
    assert not os.path.exists(f"{written}.jobs")
    assert done.column("x").created_by.get("gallery", {}).get("version") == (4 - 1 if own else None)


@pytest.mark.parametrize("way", WAYS)
def test_a_second_run_does_nothing_and_says_so(grown, fastfill, way, run_door, capsys, tmp_path):
    path, own = grown(way)
    flags = [f"--gallery={path}", f"--transformation={fastfill}", "--column=x", "--missing"]
    flags += [f"--output={own}"] if own else []
    assert run_door(inspect_gallery, f"--gallery={path}") == 0
    told = "x lacks 13 rows; complete it: python -m fct_tf.upgrade_gallery --gallery="
    assert (told in capsys.readouterr().out) == (not own)
    untouched = snapshot(path)
    assert run_door(upgrade_gallery, *flags, "--dry_run") == 0
    assert "rows:            13 missing" in capsys.readouterr().out
    assert snapshot(path) == untouched
    assert run_door(upgrade_gallery, *flags) == 0
    assert "13 of 114 rows were missing" in capsys.readouterr().out
    done = snapshot(path)
    assert run_door(upgrade_gallery, *flags) == 0
    assert "complete" in capsys.readouterr().out and snapshot(path) == done
    assert run_door(upgrade_gallery, *flags, "--dry_run") == 0
    assert "rows:            0 missing" in capsys.readouterr().out
    assert run_door(inspect_gallery, f"--gallery={own or path}") == 0
    assert "lacks" not in capsys.readouterr().out


def test_few_rows_among_many_move_alone(tmp_path, fastfill):
    """A row whose value was taken away by another tool in a large fragment."""
    path = make_gallery(tmp_path / "g.lance", num_rows=600, rows_per_file=600)
    upgrade.Upgrade(path, fastfill, "x").run()
    expected = content(path)
    lance.dataset(path).update(
        {"x": "NULL", "x_origin": "NULL", "x_log_variance": "NULL"}, where="id = 'gallery/77'"
    )
    files = data_bytes(path)
    done, found, _ = upgrade.Upgrade(path, fastfill, "x", missing=True).run()
    assert found.count == 1 and done.num_rows == 600
    new = sum(size for name, size in data_bytes(path).items() if name not in files)
    assert new < 600 * D_NEW  # a quarter of the column
    assert content(path)[1].keys() == expected[1].keys()
    assert content(path)[1]["gallery/77"][1] == "transformed"


def test_rows_without_a_value_in_a_gallery_of_its_own(grown, fastfill):
    path, own = grown("apart")
    dataset = lance.dataset(own)
    names = [dataset.schema.field(name) for name in ("id", "label")]
    taken = pa.Table.from_arrays(
        [pa.array(["new/1/0"]), pa.array(["mine"])], schema=pa.schema(names)
    )
    lance.write_dataset(taken, own, mode="append")
    done, found, _ = upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert (found.count, found.new) == (13, 12)
    assert by_id(own)["new/1/0"][1:] == ("transformed", by_id(own)["new/1/0"][2], "mine")
    assert done.num_rows == 114


def test_rows_gone_from_the_sources_are_said(grown, fastfill, run_door, capsys):
    path, own = grown("apart")
    lance.dataset(path).delete("id IN ('gallery/1', 'gallery/40')")
    flags = [f"--gallery={path}", f"--transformation={fastfill}", "--column=x", "--missing"]
    assert run_door(upgrade_gallery, *flags, f"--output={own}") == 0
    out = capsys.readouterr().out
    assert "2 rows are not in" in out
    assert f"python -m fct_tf.remove_rows --gallery={own} --sources={path}" in out


def test_refused(grown, fastfill, other, run_door, capsys, tmp_path):
    path, own = grown("apart")
    upgrade.Upgrade(path, fastfill, "x").run()
    append(path, 3, seed=3)
    side = f"--gallery={path}", "--missing", "--column=x"

    def refused(message, *flags, base=side):
        before = snapshot(path)
        assert run_door(upgrade_gallery, *base, *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
        assert snapshot(path) == before

    refused("was made by the transformation", f"--transformation={other}")
    refused("--overwrite", f"--transformation={fastfill}", "--overwrite")
    refused("--pairs", f"--transformation={fastfill}", f"--pairs={path}")
    base = side[:2]
    refused("leave --missing out", f"--transformation={fastfill}", "--column=y", base=base)
    refused("was made by", f"--transformation={fastfill}", "--column=side_info", base=base)
    refused("made from another gallery", f"--transformation={fastfill}",
            base=(f"--gallery={own}", *side[1:]))  # fmt: skip
    strangers = make_gallery(tmp_path / "s.lance", num_rows=3)
    lance.dataset(strangers).delete("true")
    refused("has no row of", f"--transformation={fastfill}", f"--output={own}",
            base=(f"--gallery={strangers}", *side[1:]))  # fmt: skip
    # Embedded again by another model: what the column was made from is not there any more.
    changed = old_column(space="d" * 64)
    table.add_column(
        table.open(path),
        changed,
        lambda rows: np.zeros((len(rows), D_OLD)),
        [],
        overwrite=True,
    )
    refused("lies in space " + "d" * 64, f"--transformation={fastfill}")


@pytest.mark.parametrize("way", WAYS)
def test_null_sources_are_named_with_what_to_do(grown, fastfill, way):
    path, own = grown(way)
    append(path, 1, seed=4, only=("embedding_old",))
    version = table.open(own or path).version
    for _ in range(2):  # What is staged until then is kept.
        with pytest.raises(InputError, match="row 'new/4/0' has no vector in column 'side_info'"):
            upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
        assert finished_fragments(own or path) == 2
    assert table.open(own or path).version == version


@pytest.mark.parametrize(
    "made, flags",
    [
        (
            {"door": "upgrade_gallery", "model": "fct: a -> b"},
            "upgrade_gallery --gallery={path} --column=x --transformation=SAVED_MODEL --missing "
            "(SAVED_MODEL of fct: a -> b)",
        ),
        (
            {"door": "upgrade_gallery", "gallery": {"path": "photos.lance", "version": 3}},
            "upgrade_gallery --gallery=photos.lance --column=x --output={path} "
            "--transformation=SAVED_MODEL --missing",
        ),
        (
            {"door": "embed_gallery", "settings": {"images": "folder:my pics", "model": "m.keras"}},
            "embed_gallery --gallery={path} --column=x --images='folder:my pics' --model=m.keras",
        ),
        (
            {"door": "embed_gallery", "settings": {"images": "a", "model": "m", "match_dims": 4}},
            "embed_gallery --gallery={path} --column=x --images=a --model=m --match_dims=4 "
            "--missing",
        ),
        (
            {"door": "import_gallery", "model": "clip"},
            "import_gallery --gallery={path} --column=x --embeddings=FILE --ids=FILE "
            "--model_name=clip --distance=l2 --kind=embedded --overwrite",
        ),
        ({}, "complete the column first"),
    ],
)
def test_a_column_with_nulls_names_the_command(tmp_path, run_door, capsys, made, flags):
    x = Column("x", 3, "f" * 64, created_by=made)
    path = make_gallery(tmp_path / "g.lance", [old_column(), side_column(), x])
    append(path, 2)
    flags = flags.format(path=path).replace(
        "'--images=folder:my pics'", "--images='folder:my pics'"
    )
    arguments = [f"--gallery={path}", "--gallery_column=x", "--query_column=x"]
    assert run_door(evaluate, *arguments, f"--output={tmp_path}/r.json") == 2
    assert flags in capsys.readouterr().err
    with pytest.raises(InputError, match="has no vector in column 'x'"):
        table.open(path).take(["new/9/0"], ["x"])
    assert missing.find(table.open(path), "x").count == 2
    assert missing.ids(table.open(path), "x") == ["new/9/0", "new/9/1"]


# Killed jobs ---------------------------------------------------------------------------------

PARTS = 11


def kill_and_resume(tmp_path, workdir, monkeypatch, way, moments, seed):
    path, own = make_gallery(tmp_path / "g.lance", num_rows=40), str(tmp_path / "own.lance")
    output = own if way == "apart" else ""
    upgrade.Upgrade(path, workdir, "x", output=output).run()
    for part in range(PARTS):
        append(path, 97, seed=part)
    written = output or path
    live = table.tag(written, "live")
    undisturbed = str(tmp_path / "undisturbed.lance")
    shutil.copytree(written, undisturbed)
    source = path if output else undisturbed
    upgrade.Upgrade(
        source, workdir, "x", batch_size=2, output=undisturbed if output else "", missing=True
    ).run()
    rng = random.Random(seed)
    for target in sorted(rng.sample(range(PARTS), moments)):
        process = start_door(path, workdir, "--missing", *([f"--output={own}"] if output else []))
        assert kill_at(process, written, target, rng.uniform(0, 0.03)), "too fast for the kill"
        assert target <= finished_fragments(written)
        assert table.open(written).version == live == table.open(f"{written}@live").version
    before, computed, run = finished_fragments(written), [], transform.run_model
    monkeypatch.setattr(
        transform,
        "run_model",
        lambda model, sources, rows: computed.append(len(rows)) or run(model, sources, rows),
    )
    done, _, _ = upgrade.Upgrade(
        path, workdir, "x", batch_size=2, output=output, tag="live", missing=True
    ).run()
    assert sum(computed) == (PARTS - before) * 97
    assert done.version == live + 1 == table.open(f"{written}@live").version
    assert content(written) == content(undisturbed)
    assert not os.path.exists(f"{written}.jobs")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_jobs_resume(tmp_path, fastfill, monkeypatch, way):
    kill_and_resume(tmp_path, fastfill, monkeypatch, way, moments=2, seed=0)


def noted(monkeypatch):
    """The ids of all rows that the model runs over, call by call."""
    run, calls = transform.run_model, []

    def noting(model, sources, rows):
        calls.append(list(rows.ids))
        return run(model, sources, rows)

    monkeypatch.setattr(transform, "run_model", noting)
    return calls


@pytest.mark.parametrize("way", WAYS)
def test_stopped_jobs_resume(grown, fastfill, monkeypatch, way):
    """What was staged counts, also after a backfilling; rows that changed since are made again."""
    path, own = grown(way)
    calls = noted(monkeypatch)
    with killing.interrupted(transform, "run_model", 2):
        upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert finished_fragments(own or path) == 1
    append(path, 2, seed=5)
    upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert [len(ids) for ids in calls] == [9, 4, 2]
    assert len(by_id(own or path)) == 116


def test_other_rows_of_a_fragment_are_staged_again(grown, fastfill, monkeypatch):
    """What was staged is of the rows that were missing then."""
    path, own = grown("apart")
    lance.dataset(own).delete("id = 'gallery/1'")
    calls = noted(monkeypatch)
    with killing.interrupted(transform, "run_model", 2):
        upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    lance.dataset(own).delete("id = 'gallery/2'")
    done, found, _ = upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert calls[:2] == [["gallery/1"], ["gallery/1", "gallery/2"]]
    assert found.new == 15 and done.num_rows == len(by_id(own)) == 114


@pytest.mark.parametrize("way", WAYS)
def test_repeated_ids_are_refused_before_the_work(grown, fastfill, way):
    path, own = grown(way)
    append(path, 4, seed=2)
    before = snapshot(own or path)
    with pytest.raises(InputError, match="id 'new/2/0' occurs more than once"):
        upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert snapshot(own or path) == before


def test_a_field_that_may_not_be_null(grown, fastfill):
    path, own = grown("apart")
    rows = lance.dataset(own).to_table()
    must = pa.field("must", pa.int32(), nullable=False)
    lance.write_dataset(rows.append_column(must, pa.array([1] * len(rows), pa.int32())), own,
                        mode="overwrite")  # fmt: skip
    with pytest.raises(InputError, match="field 'must' may not be null"):
        upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert table.open(own).num_rows == len(rows)
    assert not os.path.exists(f"{own}.jobs")
    # As the message says.
    new = sorted(ids_of(path) - ids_of(own))
    schema = pa.schema([lance.dataset(own).schema.field(name) for name in ("id", "must")])
    given = pa.Table.from_arrays([pa.array(new), pa.array([2] * 13, pa.int32())], schema=schema)
    lance.write_dataset(given, own, mode="append")
    upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    assert by_id(own).keys() == ids_of(path)


def test_other_fields_of_a_gallery_of_its_own_are_null_in_new_rows(grown, fastfill):
    path, own = grown("apart")
    lance.dataset(own).add_columns(pa.field("price", pa.int64()))
    lance.dataset(own).update({"price": "1"})
    upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    prices = lance.dataset(own).to_table(columns=["price"])["price"]
    assert prices.null_count == 13 and len(prices) == 114
    assert table.verify(table.open(own)) == []


@pytest.mark.parametrize("way", WAYS)
def test_killed_between_commit_and_end(grown, fastfill, way):
    path, own = grown(way)
    with killing.interrupted(Job, "remove"):
        upgrade.Upgrade(path, fastfill, "x", output=own, missing=True).run()
    version = table.open(own or path).version
    done, found, _ = upgrade.Upgrade(
        path, fastfill, "x", output=own, tag="live", missing=True
    ).run()
    assert found.count == 0 and done.version == version
    assert table.open(f"{own or path}@live").version == version
    assert not os.path.exists(f"{own or path}.jobs")


def test_sources_replaced_meanwhile_are_seen(grown, fastfill, monkeypatch):
    path, _ = grown("beside")
    run = transform.run_model

    def replacing(model, sources, rows):
        changed = old_column(space="d" * 64)
        zeros = np.zeros((1, D_OLD), np.float32)
        if "embedding_old" in table.open(path).columns and not replaced:
            replaced.append(True)
            table.add_column(
                table.open(path), changed, lambda r: np.repeat(zeros, len(r), 0), [],
                overwrite=True,
            )  # fmt: skip
        return run(model, sources, rows)

    replaced: list[bool] = []
    monkeypatch.setattr(transform, "run_model", replacing)
    with pytest.raises(InputError, match="has changed in the meantime"):
        upgrade.Upgrade(path, fastfill, "x", missing=True).run()
    assert missing.find(table.open(path), "x").count == 13
