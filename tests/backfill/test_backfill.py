"""Backfilling: whose images are read, which rows change, and what survives interruptions."""

import shutil
from types import SimpleNamespace

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import backfill_gallery, sample_gallery
from fct_tf.backfill import backfill, evaluate, staged
from fct_tf.common.errors import InputError
from fct_tf.data import by_id
from fct_tf.gallery import replace, table
from fct_tf.gallery.job import Job
from fct_tf.ingest import embed, embed_images
from fct_tf.models import artifact
from fct_tf.models.load import load_any
from fct_tf.retrieval import two_columns
from fct_tf.training import transformation as transformation_training
from tests import killing, tiny

N = 24  # images of the split val: 4 classes of 6
DIM = 3
BYTES = {"x_log_variance", "x_origin"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def make_photos(directory):
    """images/, the new model, and a table of its embeddings of all images."""
    import keras

    images = tiny.image_folder(directory / "images")
    for seed, (name, dim) in enumerate((("new", DIM), ("other", DIM), ("wide", DIM + 1))):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((16, 16, 3))
        outputs = keras.layers.Dense(dim)(keras.layers.Flatten()(inputs))
        keras.Model(inputs, outputs).save(directory / f"{name}.keras")
    embed_images.embed_gallery(
        f"{directory}/all.lance", f"folder:{images}:val", f"{directory}/new.keras", "new"
    )
    return directory


@pytest.fixture
def own(photos, tmp_path):
    """A copy of the images and an upgraded gallery of them; the path of both."""
    shutil.copytree(photos / "images", tmp_path / "images")
    make_gallery(photos, tmp_path / "g.lance")
    return tmp_path


def new_embeddings(photos):
    rows = table.open_gallery(photos / "all.lance").read(["new"])
    return dict(zip(rows.ids, rows.vectors["new"], strict=True))


def make_gallery(photos, path, *, log_variance=True, rows_per_file=7, **settings):
    """An upgraded gallery in an order of its own, with a further transformed column."""
    known = table.open_gallery(photos / "all.lance")
    ids = known.read([]).ids[np.random.default_rng(5).permutation(N)]
    labels = np.array([None if i % 5 == 0 else name.split("/")[1] for i, name in enumerate(ids)])
    rng = np.random.default_rng(0)
    columns = [table.Column("old", 40, "o" * 64), table.Column("side", 2, "s" * 64)]
    vectors = {c.name: rng.normal(size=(N, c.dim)).astype(np.float32) for c in columns}
    rows = table.Rows(ids, labels, vectors)
    table.create(path, [rows], columns, rows_per_file=rows_per_file)
    space = known.columns["new"].space
    for name in ("y", "x"):
        made = table.Column(
            name,
            DIM,
            name * 64,
            kind="transformed",
            compatible_with=(space,),
            created_by={"door": "upgrade_gallery", "model": "fct: old -> new"},
        )
        fields = [pa.field(f"{name}_origin", pa.string())]
        if log_variance:
            fields.append(pa.field(f"{name}_log_variance", pa.float32()))

        def transformed(rows, name=name):
            return {
                name: rows.vectors["old"][:, :DIM],
                f"{name}_origin": np.full(len(rows), "transformed", object),
                f"{name}_log_variance": np.round(rows.vectors["old"][:, 0]),  # With ties.
            }

        table.add_column(
            table.open_gallery(path), made, transformed, ["old"], extra_fields=fields, **settings
        )
    return str(path)


def load(photos, directory, name="new"):
    model = load_any(photos / f"{name}.keras")
    images = by_id.load(
        f"folder:{directory}/images:val", image_size=16, resize=model.preprocessing["resize"]
    )
    return model, images


def job(photos, directory, policy="uncertainty", budget="9", model=None, **more):
    loaded, images = load(photos, directory)
    return backfill.Backfill(
        directory / "g.lance", "x", model or loaded, images, policy, budget, batch_size=4, **more
    ).run()


def door(run_door, photos, directory, *more, model="new", budget="9"):
    return run_door(
        backfill_gallery,
        f"--gallery={directory}/g.lance",
        "--column=x",
        f"--model={photos}/{model}.keras",
        f"--images=folder:{directory}/images:val",
        f"--budget={budget}",
        "--batch_size=4",
        *more,
    )


def content(path):
    """All rows by id, vectors and all."""
    rows = lance.dataset(str(path)).to_table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == N
    return {row["id"]: row for row in rows}


def filled(path):
    return {name for name, row in content(path).items() if row["x_origin"] == "backfilled"}


def file(directory, name):
    return directory / "images" / name


def snapshot(directory):
    return {str(f): f.stat().st_mtime_ns for f in directory.rglob("*") if f.is_file()}


def by_uncertainty(rows, count):
    """The ids with the largest log-variance; ties as the policy breaks them."""
    from fct_tf.upgrade import sample

    ids = [name for name, row in rows.items() if row["x_log_variance"] is not None]
    tie = {ids[place]: rank for rank, place in enumerate(sample.order(ids, 0))}
    return sorted(ids, key=lambda i: (-rows[i]["x_log_variance"], tie[i]))[:count]


def check(photos, before, after, changed):
    """Only the rows `changed` differ, in the column x alone, and have the new model's vectors."""
    expected = new_embeddings(photos)
    for name, row in after.items():
        if name not in changed:
            assert row == before[name]
            continue
        np.testing.assert_allclose(row["x"], expected[name], rtol=1e-4, atol=1e-3)
        assert (row["x_origin"], row["x_log_variance"]) == ("backfilled", None)
        others = row.keys() - {"x", *BYTES}
        assert {"label", "old", "side", "y", "y_origin"} < others
        assert all(row[key] == before[name][key] for key in others)


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


def test_only_images_of_chosen_rows_are_opened(own, photos):
    """All others are no images at all, and nobody notices."""
    before = content(own / "g.lance")
    chosen = by_uncertainty(before, 9)
    for name in before.keys() - set(chosen):
        file(own, name).write_bytes(b"none")
    done = job(photos, own)
    assert (done.embedded, done.skipped) == (9, [])
    check(photos, before, content(own / "g.lance"), chosen)


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


def test_missing_and_broken_images(own, photos, run_door, capsys):
    before = content(own / "g.lance")
    chosen = by_uncertainty(before, 12)
    gone, broken = chosen[2], chosen[4]
    kept = {name: file(own, name).read_bytes() for name in (gone, broken)}
    file(own, gone).unlink()
    file(own, broken).write_bytes(kept[broken][:40])
    report = own / "g.lance.x.skipped.tsv"
    assert door(run_door, photos, own) == 0
    assert f"8 rows backfilled, 2 skipped, see {report}" in capsys.readouterr().out
    assert report.read_text().splitlines() == [
        f"{gone}\t{staged.MISSING}",
        f"{broken}\t{staged.UNREADABLE}",
    ]
    # A row without image does not use the budget up, a broken one does.
    check(photos, before, content(own / "g.lance"), {*chosen[:10]} - {gone, broken})
    record = table.open_gallery(own / "g.lance").column("x").created_by["backfilled"][0]
    assert (record["rows"], record["skipped"]) == (8, 2)
    # Once they are there again, the next job takes them first.
    for name, encoded in kept.items():
        file(own, name).write_bytes(encoded)
    assert door(run_door, photos, own, budget="3") == 0
    check(photos, before, content(own / "g.lance"), {*chosen[:11]})
    assert not report.exists()


def test_report_of_ones_own(own, photos, run_door, capsys):
    file(own, by_uncertainty(content(own / "g.lance"), 1)[0]).unlink()
    report = own / "skipped.tsv"
    assert door(run_door, photos, own, f"--skipped={report}", budget="1") == 0
    assert len(report.read_text().splitlines()) == 1
    before = snapshot(own)
    assert door(run_door, photos, own, f"--skipped={report}", budget="1") == 2
    assert "skipped.tsv: exists already; pass --overwrite" in capsys.readouterr().err
    assert snapshot(own) == before
    assert door(run_door, photos, own, f"--skipped={report}", "--overwrite", budget="1") == 0


def test_no_image_at_all(own, photos, run_door, capsys):
    """Nothing is committed, all is reported, and that is no error."""
    for path in (own / "images/val").rglob("*.png"):
        path.write_bytes(b"none")
    version = table.open_gallery(own / "g.lance").version
    assert door(run_door, photos, own, budget="100%") == 0
    assert "0 rows backfilled, 24 skipped" in capsys.readouterr().out
    assert table.open_gallery(own / "g.lance").version == version
    assert len((own / "g.lance.x.skipped.tsv").read_text().splitlines()) == N
    assert not (own / "g.lance.jobs").exists()


def test_images_deleted_while_the_job_runs(own, photos, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    before = content(own / "g.lance")
    order = by_uncertainty(before, N)
    loaded, images = load(photos, own)
    doomed = order[-2:]

    def deleting(pixels):
        for name in doomed:
            file(own, name).unlink(missing_ok=True)
        return loaded.embed(pixels)

    model = SimpleNamespace(name="new", space=loaded.space, dim=DIM, distance="l2", embed=deleting)
    done = backfill.Backfill(
        own / "g.lance", "x", model, images, "uncertainty", "100%", batch_size=1
    ).run()
    assert done.skipped == [(name, staged.UNREADABLE) for name in doomed]
    assert done.embedded == N - 2
    check(photos, before, content(own / "g.lance"), order[:-2])


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


def test_seconds_of_a_killed_job_count(own, photos, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    record = Job.record

    def killed(self, unit, made):
        chunk = unit.startswith("chunk")
        record(self, unit, made | {"seconds": np.float64(3600)} if chunk else made)
        if chunk:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            job(photos, own, budget="10min")
    assert job(photos, own, budget="10min").embedded == 4


def test_images_that_are_read_in_their_own_order_only(own, photos):
    """As a TFDS data set's: places rise, and there is no budget of time."""
    import dataclasses

    model, images = load(photos, own)
    source, asked = images.source, []

    def encoded(places):
        asked.append(places)
        return source.encoded(places)

    ordered = dataclasses.replace(
        images, source=dataclasses.replace(source, random_access=False, encoded=encoded)
    )
    before = content(own / "g.lance")
    arguments = (own / "g.lance", "x", model, ordered, "uncertainty")
    with pytest.raises(InputError, match="can only be read in its own order"):
        backfill.Backfill(*arguments, "10min").run()
    assert not asked and not (own / "g.lance.jobs").exists()
    backfill.Backfill(*arguments, "9", batch_size=4).run()
    assert (np.diff(asked[0]) > 0).all() and len(asked[0]) == 9
    check(photos, before, content(own / "g.lance"), by_uncertainty(before, 9))


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


# Killed jobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the commit", "before the tag", "before the end"])
def test_killed_around_the_commit(own, photos, monkeypatch, moment):
    """The same command ends the job: it neither backfills twice nor embeds again."""
    before = content(own / "g.lance")
    table.tag(own / "g.lance", "live")
    place = {
        "before the commit": (replace, "replace_rows"),
        "before the tag": (table, "tag"),
        "before the end": (Job, "remove"),
    }[moment]

    def killed(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        with pytest.raises(KeyboardInterrupt):
            job(photos, own, tag="live")
    version = table.open_gallery(own / "g.lance").version
    loaded, _ = load(photos, own)
    never = SimpleNamespace(name="new", space=loaded.space, dim=DIM, distance="l2", embed=None)
    done = job(photos, own, model=never, tag="live")
    assert done.embedded == 9
    assert done.gallery.version == version + (moment == "before the commit")
    assert table.open_gallery(f"{own}/g.lance@live").version == done.gallery.version
    check(photos, before, content(own / "g.lance"), by_uncertainty(before, 9))
    assert sorted(path.name for path in own.iterdir()) == ["g.lance", "images"]


def stopped(photos, own, monkeypatch, chunks, **more):
    """A job that is stopped when so many chunks are staged."""
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    record, calls = Job.record, []

    def killed(self, unit, made):
        record(self, unit, made)
        calls.append(unit.startswith("chunk"))
        if sum(calls) == chunks:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            job(photos, own, **more)


def test_what_is_staged_is_not_embedded_again(own, photos, monkeypatch):
    before = content(own / "g.lance")
    chosen = by_uncertainty(before, 9)
    stopped(photos, own, monkeypatch, chunks=1)
    # An image that is embedded already may go; one that is not is reported.
    file(own, chosen[0]).unlink()
    file(own, chosen[6]).unlink()
    loaded, _ = load(photos, own)
    seen = []

    def counted(pixels):
        seen.append(len(pixels))
        return loaded.embed(pixels)

    model = SimpleNamespace(name="new", space=loaded.space, dim=DIM, distance="l2", embed=counted)
    done = job(photos, own, model=model)
    assert sum(seen) == 4 and done.embedded == 8
    assert done.skipped == [(chosen[6], staged.MISSING)]
    check(photos, before, content(own / "g.lance"), {*chosen} - {chosen[6]})


def test_a_job_of_other_settings_or_of_another_column_starts_anew(own, photos, monkeypatch):
    stopped(photos, own, monkeypatch, chunks=1, policy="random")
    before = content(own / "g.lance")
    assert job(photos, own).embedded == 9
    check(photos, before, content(own / "g.lance"), by_uncertainty(before, 9))
    # Another job backfills rows of the column before this one goes on.
    stopped(photos, own, monkeypatch, chunks=1, budget="5")
    shutil.move(own / "g.lance.jobs", own / "aside")
    assert job(photos, own, budget="3").embedded == 3
    shutil.move(own / "aside", own / "g.lance.jobs")
    assert job(photos, own, budget="5").embedded == 5
    check(photos, before, content(own / "g.lance"), by_uncertainty(before, 17))
    assert not (own / "g.lance.jobs").exists()


def kill_and_compare(photos, tmp_path, run_door, moments, seed):
    """Killed at seeded moments, a job ends in the same content as an undisturbed one."""

    def make(name):
        (tmp_path / name).mkdir()
        make_gallery(photos, tmp_path / name / "g.lance")
        table.tag(tmp_path / name / "g.lance", "live")

    make("undisturbed")
    make("killed")

    def arguments(name):
        return [
            f"--gallery={tmp_path}/{name}/g.lance",
            "--column=x",
            f"--model={photos}/new.keras",
            f"--images=folder:{photos}/images:val",
            "--budget=20",
            "--batch_size=1",
            "--tag=done",
        ]

    assert run_door(backfill_gallery, *arguments("undisturbed")) == 0
    rng = np.random.default_rng(seed)
    directory = tmp_path / "killed" / "g.lance.jobs" / "backfill_x"
    path = tmp_path / "killed" / "g.lance"
    before, killed = content(path), 0

    def reached(target):
        return {
            0: lambda: directory.exists(),
            1: lambda: (directory / "chosen.json").exists(),
            2: lambda: (directory / "committing.json").exists(),
        }.get(target, lambda: len(list(directory.glob("chunk-*.npz"))) >= target - 2)

    for target in rng.integers(0, 6, moments):
        died = killing.kill_when(
            ["fct_tf.backfill_gallery", *arguments("killed")],
            reached(int(target)),
            float(rng.uniform(0, 0.15)),
        )
        killed += died
        gallery = table.open_gallery(path)
        if "backfilled" in gallery.column("x").created_by:
            if killed:
                break
            shutil.rmtree(tmp_path / "killed")  # It was faster than its killer: once more.
            make("killed")
            continue
        assert content(path) == before and "done" not in gallery.dataset.tags.list()
    assert killed
    # A job that was killed when it had ended would be followed by another one.
    column = table.open_gallery(path).column("x")
    if (directory / "job.json").exists() or "backfilled" not in column.created_by:
        assert run_door(backfill_gallery, *arguments("killed")) == 0
    undisturbed = tmp_path / "undisturbed" / "g.lance"
    assert content(path) == content(undisturbed) and len(filled(path)) == 20
    fields = [table.open_gallery(p).dataset.schema.field("x") for p in (path, undisturbed)]
    assert fields[0].metadata == fields[1].metadata
    live, done = (table.open_gallery(f"{path}@{tag}") for tag in ("live", "done"))
    assert done.version == live.version + 1
    # Killed while it cleaned up, a job may leave records; without the header they are nobody's.
    assert not (directory / "job.json").exists()


# Quick ones, stopped at chosen places: test_killed_around_the_commit.
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_jobs_end_bitwise_as_if_undisturbed_ten_times(photos, tmp_path, run_door, seed):
    kill_and_compare(photos, tmp_path, run_door, moments=10, seed=seed)


# Backfilled rows as pairs --------------------------------------------------------------------


def pairs(run_door, own, *more, gallery="g.lance"):
    return run_door(
        sample_gallery,
        f"--gallery={own}/{gallery}",
        "--backfilled=x",
        f"--output={own}/pairs.lance",
        *more,
    )


def test_backfilled_rows_are_pairs_without_reading_an_image(own, photos, run_door, capsys):
    assert pairs(run_door, own) == 2
    assert "'x' has no backfilled rows" in capsys.readouterr().err
    job(photos, own)
    shutil.rmtree(own / "images")
    assert pairs(run_door, own, "--column=embedding_new") == 0
    gallery, made = (table.open_gallery(own / f"{name}.lance") for name in ("g", "pairs"))
    assert list(made.columns) == ["old", "side", "embedding_new"]
    rows = made.read(list(made.columns), with_labels=True)
    assert {*rows.ids} == filled(own / "g.lance")
    stored = gallery.take(rows.ids, ["old", "side", "x"])
    assert rows.labels.tolist() == stored.labels.tolist()
    for name, column in (("old", "old"), ("side", "side"), ("embedding_new", "x")):
        np.testing.assert_array_equal(rows.vectors[name], stored.vectors[column])
    column = made.column("embedding_new")
    assert (column.space, column.kind) == (gallery.column("x").compatible_with[0], "embedded")
    assert column.model == "new" and column.created_by["source"][0]["column"] == "x"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rows=3"], "leave --share, --rows"),
        (["--images=folder:x", "--model=y"], "leave --share, --rows"),
        (["--column=old"], "has a column 'old' already"),
        (["--backfilled=old"], "'old' is not one that upgrade_gallery made"),
        (["--backfilled=z"], "no embedding column 'z'"),
        (["--column=a.b"], "'a.b'"),
    ],
)
def test_bad_flags_of_pairs(own, photos, run_door, capsys, flags, message):
    job(photos, own)
    assert pairs(run_door, own, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (own / "pairs.lance").exists()


def test_the_next_transformation_learns_from_them_and_keeps_them(own, photos, run_door, caplog):
    """Backfill, make pairs, train on them, upgrade again: the rows paid for stay to the bit."""
    from fct_tf.upgrade import upgrade

    new = new_embeddings(photos)
    space = table.open_gallery(own / "g.lance").column("x").compatible_with[0]
    gallery = table.open_gallery(own / "g.lance")
    rows = gallery.read(["old"])
    train = [gallery.column("old"), table.Column("embedding_new", DIM, space)]
    target = np.stack([new[name] for name in rows.ids]) + np.float32(5)  # Of another domain.
    vectors = {"old": rows.vectors["old"], "embedding_new": target}
    table.create(own / "train.lance", [table.Rows(rows.ids, None, vectors)], train)
    job(photos, own)
    assert pairs(run_door, own) == 0
    config = tiny.experiment(own)
    section = config.transformations.fct_no_side_info
    section.map = "affine"
    section.pairs.share, section.pairs.method = 0.2, "rows"
    transformation_training.train(
        config,
        "fct_no_side_info",
        f"{own}/train.lance",
        "old",
        "embedding_new",
        own / "run",
        pairs=f"{own}/pairs.lance",
    )
    info = artifact.load(own / "run/artifact").info
    assert info["facts"]["pairs"] == 9
    in_one_command(own, config)
    before = content(own / "g.lance")
    kept = filled(own / "g.lance")
    more = {"pairs": f"{own}/pairs.lance", "existing": "overwrite"}
    made = upgrade.Upgrade(own / "g.lance", own / "run", "x", **more).run().gallery
    assert "are transformed again" not in caplog.text
    rows = made.read(["x"], fields=["x_origin"])
    for name, vector, origin in zip(
        rows.ids, rows.vectors["x"], rows.fields["x_origin"], strict=True
    ):
        assert (origin == "backfilled") == (name in kept)
        assert (vector.tolist() == before[name]["x"]) == (name in kept)
    # Without them it says what is lost, and the version from which it is still to be had.
    job(photos, own, "random", "1")
    version = table.open_gallery(own / "g.lance").version
    upgrade.Upgrade(own / "g.lance", own / "run", "x", existing="overwrite").run()
    assert f"g.lance@{version} --backfilled=x" in caplog.text
    assert pairs(run_door, own, "--overwrite", gallery=f"g.lance@{version}") == 0
    assert table.open_gallery(own / "pairs.lance").num_rows == 10


def in_one_command(own, config):
    """Training on the gallery's backfilled rows is training on a table of them."""

    arguments = (config, "fct_no_side_info", f"{own}/train.lance", "old", "embedding_new")
    flags = {"pairs": f"{own}/g.lance", "backfilled": "x"}
    transformation_training.train(*arguments, own / "one", **flags)
    one, two = (artifact.load(own / name / "artifact") for name in ("one", "run"))
    for ours, theirs in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept, made = (table.open_gallery(own / name) for name in ("one/pairs.lance", "pairs.lance"))
    assert kept.dataset.to_table().equals(made.dataset.to_table())
    # What is there is used, and is not another's.
    transformation_training.train(*arguments, own / "one", existing="skip", **flags)
    assert table.open_gallery(own / "one/pairs.lance").version == kept.version
    with pytest.raises(InputError, match="column 'y' has no backfilled rows"):
        transformation_training.train(*arguments, own / "one", **{**flags, "backfilled": "y"})
    with pytest.raises(InputError, match="name it with `pairs`"):
        transformation_training.train(*arguments, own / "two", backfilled="x")
    assert not (own / "two").exists()
    # Whatever is refused changes no pairs and leaves none: those of the run are its own.
    refused_or_begun_anew(own, arguments, flags)


def refused_or_begun_anew(own, arguments, flags):
    """What becomes of WORKDIR/pairs.lance."""

    def pairs_there(name):
        return set(table.open_gallery(own / name / "pairs.lance").read([]).ids)

    began = pairs_there("one")
    path, other = own / "g.lance", own / "other.lance"
    shutil.copytree(path, other)
    more = sorted(set(content(other)) - began)[:3]
    rows = lance.dataset(str(other))
    rows.update({"x_origin": "'backfilled'"}, where=f"id in ('{more[0]}', '{more[1]}')")
    flags = {**flags, "pairs": str(other)}
    for wrong in ({"base": own / "one"}, {"side_info": "side"}):
        for name, existing in (("one", "overwrite"), ("two", "refuse")):
            with pytest.raises(InputError, match="leave `"):
                transformation_training.train(
                    *arguments, own / name, existing=existing, **flags, **wrong
                )
    assert pairs_there("one") == began and not (own / "two").exists()
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        transformation_training.train(*arguments, own / "one", **flags)
    # A finished run goes on being the one of its own pairs, though more rows are backfilled now.
    transformation_training.train(*arguments, own / "one", existing="skip", **flags)
    assert pairs_there("one") == began
    rows.update({"x_origin": "'transformed'"}, where=f"id = '{min(began)}'")
    with pytest.raises(InputError, match=f"row '{min(began)}' is not backfilled in 'x'"):
        transformation_training.train(*arguments, own / "one", existing="skip", **flags)
    transformation_training.train(*arguments, own / "one", existing="overwrite", **flags)
    assert pairs_there("one") == began - {min(began)} | {*more[:2]}
    assert not list((own / "one").glob(".*"))


def test_jobs_that_learn_from_those_before_them_walk_along_their_curve(
    own, photos, run_door, capsys
):
    """The policy `ranks`: what was backfilled tells, by the transformation, what comes next."""
    from fct_tf.upgrade import upgrade

    new, path = new_embeddings(photos), own / "g.lance"
    gallery = table.open_gallery(path)
    column = table.Column("new", DIM, gallery.column("x").compatible_with[0])
    table.add_column(gallery, column, lambda rows: np.stack([new[i] for i in rows.ids]), [])
    config = tiny.experiment(own)
    config.transformations.fct_no_side_info.map = "affine"
    arguments = ("fct_no_side_info", str(path), "old", "new", own / "run")
    transformation_training.train(config, *arguments)
    upgrade.Upgrade(path, own / "run", "x", source="old", existing="overwrite").run()
    opened = table.open_gallery(path)
    (record,) = evaluate.evaluate(opened, "new", opened, "x", "new", ["ranks"])
    transformation = {"transformation": str(own / "run")}
    cuts = [point["rows"] for point in record["curve"]]
    for before, after in zip(cuts[:9], cuts[1:9], strict=False):
        job(photos, own, "ranks", str(after - before), **transformation)
    found = two_columns.evaluate(table.open_gallery(path), "new", table.open_gallery(path), "x")
    point = record["curve"][8]
    assert found["map"] == pytest.approx(point["map"], abs=1e-9)
    assert found["cmc"] == {k: point["cmc"][k] for k in ("1", "5")}
    assert len(filled(path)) == cuts[8]
    # Without its transformation there is nothing to learn by.
    assert door(run_door, photos, own, "--policy=ranks") == 2
    assert "--transformation: name what the column was made with" in capsys.readouterr().err
    flag = f"--transformation={own}/run"
    assert door(run_door, photos, own, "--policy=random", flag) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_column_in_a_gallery_of_its_own_goes_the_same_way(own, photos, run_door, capsys):
    """Ranks, pairs and training read what it was made from in the gallery it was made from."""
    from fct_tf.upgrade import upgrade

    new, path, apart = new_embeddings(photos), own / "g.lance", own / "apart.lance"
    gallery = table.open_gallery(path)
    column = table.Column("new", DIM, gallery.column("x").compatible_with[0])
    train = shutil.copytree(path, own / "train.lance")
    stored = gallery.read(["old", "side"], with_labels=True)
    back = {name: values[::-1] for name, values in stored.vectors.items()}
    mixed = own / "mixed.lance"  # The same rows in another order.
    columns = [gallery.column(name) for name in back]
    table.create(mixed, [table.Rows(stored.ids[::-1], stored.labels[::-1], back)], columns)
    table.add_column(
        table.open_gallery(train), column, lambda rows: np.stack([new[i] for i in rows.ids]), []
    )
    config = tiny.experiment(own)
    config.transformations.fct_no_side_info.map = "affine"
    arguments = (config, "fct_no_side_info", str(train), "old", "new")
    transformation_training.train(*arguments, own / "run")
    upgrade.Upgrade(path, own / "run", "x", output=str(apart)).run()
    upgrade.Upgrade(path, own / "run", "x", existing="overwrite").run()
    model, images = load(photos, own)
    for budget in ("6", "3", "4"):
        for where, sources in ((path, ""), (apart, str(mixed))):
            more = {"transformation": str(own / "run"), "sources": sources}
            backfill.Backfill(where, "x", model, images, "ranks", budget, **more).run()
        assert len(filled(apart)) == len(filled(path))
    assert filled(apart) == filled(path)
    by_id = content(path)
    for name, row in content(apart).items():
        assert {"id", "label", "x", "x_origin"} == set(row)
        assert row == {field: by_id[name][field] for field in row}

    flags = [f"--output={own}/pairs.lance", "--backfilled=x", "--column=new"]
    assert run_door(sample_gallery, f"--gallery={apart}", *flags) == 2
    assert f"{path}@" in capsys.readouterr().err and not (own / "pairs.lance").exists()
    assert run_door(sample_gallery, f"--gallery={apart}", *flags, f"--sources={mixed}") == 0
    made = table.open_gallery(own / "pairs.lance")
    assert list(made.columns) == ["old", "side", "new"]
    rows = made.read(["old", "new"], with_labels=True)
    for name, label, old, vector in zip(
        rows.ids, rows.labels, rows.vectors["old"], rows.vectors["new"], strict=True
    ):
        assert (label, by_id[name]["x_origin"]) == (by_id[name]["label"], "backfilled")
        np.testing.assert_array_equal(old, np.float32(by_id[name]["old"]))
        np.testing.assert_array_equal(vector, np.float32(by_id[name]["x"]))

    section = config.transformations.fct_no_side_info
    section.pairs.share, section.pairs.method = 0.2, "rows"
    known = {"pairs": str(apart), "backfilled": "x", "sources": str(mixed)}
    transformation_training.train(*arguments, own / "one", **known)
    transformation_training.train(*arguments, own / "two", pairs=str(own / "pairs.lance"))
    one, two = (artifact.load(own / name / "artifact") for name in ("one", "two"))
    for ours, theirs in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept = str(own / "one" / "pairs.lance")
    more = {"output": str(apart), "pairs": kept, "existing": "overwrite"}
    again = upgrade.Upgrade(path, own / "one", "x", **more).run().gallery
    assert again.version == 5 and filled(apart) == filled(path)


@pytest.mark.parametrize("policy", ["random", "uncertainty"])
def test_sources_are_for_ranks_and_backfilled_rows(own, photos, run_door, capsys, policy):
    sources = f"--sources={own}/g.lance"
    assert door(run_door, photos, own, f"--policy={policy}", sources) == 2
    assert "only --policy=ranks reads" in capsys.readouterr().err
    flags = [f"--gallery={own}/g.lance", f"--output={own}/pairs.lance", "--rows=3"]
    assert run_door(sample_gallery, *flags, sources) == 2
    assert "goes with --backfilled" in capsys.readouterr().err

    config = tiny.experiment(own)
    with pytest.raises(InputError, match="goes with `backfilled`"):
        transformation_training.train(
            config, "fct_no_side_info", "g", "old", "new", own / "r", sources="x"
        )
