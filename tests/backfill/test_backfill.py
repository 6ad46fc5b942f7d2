"""Backfilling: chosen rows of an upgraded column get the new model's own embeddings."""

import shutil
from types import SimpleNamespace

import lance
import numpy as np
import pytest

from fct_tf.backfill import evaluate
from fct_tf.common.errors import InputError
from fct_tf.gallery import replace, table
from fct_tf.models.load import load_any
from fct_tf.retrieval import two_columns
from tests.backfill.photos import (
    DIM,
    N,
    by_uncertainty,
    check,
    content,
    door,
    file,
    filled,
    job,
    load,
    make_gallery,
    new_embeddings,
    snapshot,
)


def test_the_most_uncertain_rows_are_replaced_and_nothing_else(own, photos, run_door, capsys):
    before = content(own / "g.lance")
    old = table.open_gallery(own / "g.lance")
    live = table.tag(own / "g.lance", "live")
    assert door(run_door, photos, own) == 0
    printed = capsys.readouterr().out
    assert printed == f"{own}/g.lance@{live + 1}: column x, 9 rows backfilled\n"
    check(photos, before, content(own / "g.lance"), by_uncertainty(before, 9))
    gallery = table.open_gallery(own / "g.lance")
    assert gallery.version == live + 1 and not table.verify(gallery)
    assert table.open_gallery(f"{own}/g.lance@live").version == live
    assert sorted(path.name for path in own.iterdir()) == ["g.lance", "images"]
    column = gallery.column("x")
    assert (column.kind, column.compatible_with) == ("transformed", old.column("x").compatible_with)
    assert column.space != old.column("x").space and column.model == "fct: old -> new"
    (record,) = column.created_by["backfilled"]
    assert column.created_by["door"] == "upgrade_gallery"
    told = {key: record[key] for key in ("door", "policy", "budget", "rows", "skipped", "model")}
    assert told == {
        "door": "backfill_gallery",
        "policy": "uncertainty",
        "budget": "9",
        "rows": 9,
        "skipped": 0,
        "model": "new",
    }
    assert record["space"] == column.compatible_with[0]
    assert record["replaced_space"] == old.column("x").space
    assert gallery.column("y") == old.column("y")


def test_a_gallery_with_its_photographs_and_an_index(own, photos, run_door, capsys):
    """Rows with blobs cannot move; an index stays, and rows that changed are found without it."""
    rows = lance.dataset(str(own / "g.lance")).to_table()
    blobs = lance.blob_array([file(own, name).read_bytes() for name in rows["id"].to_pylist()])
    shutil.rmtree(own / "g.lance")
    rows = rows.append_column(lance.blob_field("photo"), blobs)
    lance.write_dataset(rows, str(own / "g.lance"), data_storage_version="2.2")
    dataset = lance.dataset(str(own / "g.lance"))
    dataset.create_index("x", "IVF_FLAT", name="x_idx", num_partitions=1)
    expected = set(by_uncertainty(content(own / "g.lance"), 2))
    assert door(run_door, photos, own, "--dry_run", budget="2") == 0
    assert "indices:         x_idx (rows that change leave them" in capsys.readouterr().out
    assert door(run_door, photos, own, budget="2") == 0
    assert filled(own / "g.lance") == expected
    dataset = lance.dataset(str(own / "g.lance"))
    for name in expected:
        query = {"column": "x", "q": new_embeddings(photos)[name], "k": 1}
        assert dataset.to_table(columns=["id"], nearest=query)["id"].to_pylist() == [name]
    read = dataset.scanner(columns=["id", "photo"], blob_handling="all_binary").to_table()
    for row in read.to_pylist():
        assert row["photo"] == file(own, row["id"]).read_bytes()


def test_a_second_job_goes_on(own, photos):
    """A budget is of one job; what is backfilled has no log-variance and is not chosen again."""
    before = content(own / "g.lance")
    spaces = {table.open_gallery(own / "g.lance").column("x").space}
    for budget, count in (("9", 9), ("25%", 15), ("50%", 24), ("1", 24)):
        done = job(photos, own, budget=budget)
        check(photos, before, content(own / "g.lance"), by_uncertainty(before, count))
        spaces.add(done.gallery.column("x").space)
    assert done.embedded == 0
    # Nothing was left to do in the last one: no commit.
    records = done.gallery.column("x").created_by["backfilled"]
    assert [record["rows"] for record in records] == [9, 6, 9] and len(spaces) == 4


def test_without_log_variance_and_with_one_row_left(photos, tmp_path, run_door, capsys):
    shutil.copytree(photos / "images", tmp_path / "images")
    make_gallery(photos, tmp_path / "g.lance", log_variance=False)
    before = snapshot(tmp_path)
    assert door(run_door, photos, tmp_path) == 2
    assert "policy uncertainty: the column has no log-variance" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert door(run_door, photos, tmp_path, "--policy=random", budget=str(N - 1)) == 0
    rows = lance.dataset(f"{tmp_path}/g.lance").to_table(columns=["x_origin"])
    assert rows["x_origin"].to_pylist().count("backfilled") == N - 1


@pytest.mark.parametrize("policy", ["uncertainty", "distance"])
def test_a_sequence_of_jobs_walks_along_the_curve(own, photos, policy):
    """Jobs one after the other give the accuracy that the curve foretold."""
    path, known = own / "g.lance", new_embeddings(photos)
    column = table.Column("new", DIM, table.open_gallery(photos / "all.lance").columns["new"].space)
    table.add_column(
        table.open_gallery(path), column, lambda rows: np.stack([known[i] for i in rows.ids]), []
    )
    opened = table.open_gallery(path)
    foretold = evaluate.evaluate(opened, "new", opened, "x", "new", [policy], ks=(1, 5))
    curve = {point["rows"]: point for point in foretold[0]["curve"]}
    assert len(curve) == 22
    done = 0
    for rows in sorted(curve)[:3] + sorted(curve)[-2:]:
        if rows > done:
            target = {"target_column": "new"} if policy == "distance" else {}
            job(photos, own, policy, str(rows - done), **target)
            done = rows
        opened = table.open_gallery(path)
        found = two_columns.evaluate(opened, "new", opened, "x", ks=(1, 5))
        assert found["map"] == pytest.approx(curve[rows]["map"], abs=1e-9)
        assert found["cmc"] == curve[rows]["cmc"]


def test_order_of_a_file_and_rows_that_it_does_not_name(own, photos, run_door, capsys):
    before = content(own / "g.lance")
    listed = [*sorted(before)[5:15]]
    (own / "order.txt").write_text("\n".join(listed))
    order = f"file:{own}/order.txt"
    job(photos, own, order, "4")
    assert filled(own / "g.lance") == {*listed[:4]}
    job(photos, own, order, "100%")
    assert filled(own / "g.lance") == {*listed}
    check(photos, before, content(own / "g.lance"), listed)
    (own / "order.txt").write_text("\n".join([*listed, "val/gone.png"]))
    assert door(run_door, photos, own, f"--policy={order}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "order.txt: line 11: the gallery has no row 'val/gone.png'; give one id a line"
    )


def test_oracle(own, photos):
    """The rows that the transformation gets most wrong."""
    known = new_embeddings(photos)
    column = table.open_gallery(photos / "all.lance").columns["new"]
    table.add_column(
        table.open_gallery(own / "g.lance"),
        column,
        lambda rows: np.stack([known[name] for name in rows.ids]),
        [],
    )
    before = content(own / "g.lance")
    error = {i: np.linalg.norm(np.subtract(row["x"], row["new"])) for i, row in before.items()}
    job(photos, own, "distance", "7", target_column="new")
    assert filled(own / "g.lance") == {*sorted(error, key=error.get)[-7:]}
    with pytest.raises(InputError, match="different spaces"):
        job(photos, own, "distance", "2", target_column="side")
    with pytest.raises(InputError, match="only `policy=distance`"):
        job(photos, own, target_column="new")


def test_budget_of_time(own, photos, monkeypatch):
    """Embedding stops after the batch in which the time is up, in the order of the policy."""
    before = content(own / "g.lance")
    order = by_uncertainty(before, N)
    file(own, order[1]).unlink()  # Reached, so it is reported; the next one is not.
    file(own, order[-1]).unlink()
    done = job(photos, own, budget="0.00001min")
    assert (done.embedded, [name for name, _ in done.skipped]) == (4, [order[1]])
    check(photos, before, content(own / "g.lance"), {*order[:5]} - {order[1]})
    done = job(photos, own, budget="10min")
    assert (done.embedded, len(done.skipped)) == (18, 2)


def test_dry_run_changes_nothing(own, photos, run_door, capsys):
    order = by_uncertainty(content(own / "g.lance"), N)
    file(own, order[0]).unlink()
    before = snapshot(own)
    assert door(run_door, photos, own, "--dry_run", "--tag=live", budget="25%") == 0
    told = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    told = {key: value.strip() for key, value in told.items()}
    assert told["rows"] == "6 of 24 left, 24 in all" and told["without image"] == "1"
    size = sum(file(own, name).stat().st_size for name in order[1:7])
    assert told["image bytes"] == f"{size:,}"
    dataset = table.open_gallery(own / "g.lance").dataset
    column = table.open_gallery(own / "g.lance").column("x")
    written = replace.estimate_bytes(dataset, column, 6)
    assert told["bytes written"] == f"{written:,}" and written >= 6 * 4 * DIM
    assert float(told["estimated time"].split()[0].replace(",", "")) >= 0
    assert int(told["free disk bytes"].replace(",", "")) > 0
    assert door(run_door, photos, own, "--dry_run", budget="1000min") == 0
    assert "23 of 24 left" in capsys.readouterr().out
    assert snapshot(own) == before


def test_refused(own, photos, run_door, capsys, tmp_path):
    def refused(message, *arguments, **more):
        assert door(run_door, photos, own, *arguments, **more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error, error
        return error

    before = snapshot(own)
    new = table.open_gallery(own / "g.lance").column("x").compatible_with[0]
    other = load_any(photos / "other.keras").space
    for dry in ([], ["--dry_run"]):
        error = refused("or pass --allow_space_mismatch", *dry, model="other")
        assert new in error and other in error and "fct: old -> new" in error
    refused("has 3 values per row", "--allow_space_mismatch", model="wide")
    refused("--budget=many", budget="many")
    refused(
        "--policy=best: unknown policy 'best'; choose one of uncertainty, random", "--policy=best"
    )
    refused("cannot be read", f"--policy=file:{own}/none.txt")
    refused("--target_column", "--policy=distance")
    refused("no embedding column 'z'", "--column=z")
    refused("is not one that upgrade_gallery made (kind embedded)", "--column=old")
    refused("no gallery", f"--gallery={own}/none.lance")
    refused("no such model", f"--model={own}/none")
    refused("no such image folder", f"--images=folder:{own}/none")
    refused("is a directory", f"--skipped={own}")
    refused("batch_size", "--batch_size=0")
    version = table.open_gallery(own / "g.lance").version
    refused("changes are made to the newest version", f"--gallery={own}/g.lance@{version - 1}")
    assert snapshot(own) == before


def test_a_model_of_another_space_if_told_to(own, photos, run_door):
    assert door(run_door, photos, own, "--allow_space_mismatch", model="other") == 0
    column = table.open_gallery(own / "g.lance").column("x")
    assert column.created_by["backfilled"][0]["space"] == load_any(photos / "other.keras").space


def test_not_finite_embeddings_are_refused(own, photos):
    loaded, _ = load(photos, own)
    model = SimpleNamespace(
        name="new", space=loaded.space, dim=DIM, distance="l2", embed=lambda p: loaded.embed(p) / 0
    )
    version = table.open_gallery(own / "g.lance").version
    with pytest.raises(InputError, match="embedding: row 'val/.*with NaN or infinity"):
        job(photos, own, model=model)
    assert table.open_gallery(own / "g.lance").version == version
    # With the mended model it succeeds.
    assert job(photos, own).embedded == 9
