"""Galleries in a bucket: whatever is done to one on a disk, with the same rows in the end."""

import shutil
from types import SimpleNamespace

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import (
    Gallery,
    build_index,
    embed_gallery,
    evaluate,
    import_gallery,
    inspect_gallery,
    remove_rows,
    sample_gallery,
    search_index,
    upgrade_gallery,
)
from fct_tf.backfill import backfill
from fct_tf.common import files, objects, stores
from fct_tf.common.errors import InputError
from fct_tf.gallery import job, table, verify
from tests.backfill import photos as backfilling
from tests.upgrade.test_upgrade import make_gallery, make_transformation

WAYS = ("disk", "bucket")


@pytest.fixture(scope="module")
def fastfill(tmp_path_factory):
    return make_transformation(tmp_path_factory.mktemp("fastfill"), log_variance=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return backfilling.make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def both(place, tmp_path):
    """The same place on the disk and in the bucket."""
    return dict(zip(WAYS, (str(tmp_path), place), strict=True))


def rows_of(uri):
    """All rows of a gallery by id."""
    opened = table.open_gallery(uri)
    return {row["id"]: row for row in opened.dataset.to_table().to_pylist()}


def jobs_left(place):
    return [name for name in objects.listed(place) if ".jobs" in name]


def test_from_import_to_roll_back(both, fastfill, run_door, tmp_path, capsys):
    rng = np.random.default_rng(3)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(60, 13)).astype(np.float32))
    np.save(tmp_path / "new.npy", rng.normal(size=(60, 11)).astype(np.float32))
    (tmp_path / "ids.txt").write_text("".join(f"m:{i}\n" for i in range(60)))
    (tmp_path / "labels.txt").write_text("".join(f"class {i % 7}\n" for i in range(60)))
    model = make_transformation(tmp_path / "t", side=False, source_space=table.imported_space("m"))
    found, scores = {}, {}
    for way, root in both.items():
        gallery = f"{root}/g.lance"

        def door(module, *arguments, path=gallery):
            assert run_door(module, f"--gallery={path}", *arguments) == 0

        ids, labels = f"--ids={tmp_path}/ids.txt", f"--labels={tmp_path}/labels.txt"
        door(
            import_gallery,
            f"--embeddings={tmp_path}/vectors.npy",
            "--model_name=m",
            labels,
            "--column=old",
        )
        door(
            import_gallery,
            f"--embeddings={tmp_path}/new.npy",
            "--model_name=n",
            ids,
            "--column=new",
        )
        door(inspect_gallery, "--tag=live")
        door(upgrade_gallery, f"--transformation={model}", "--column=x", "--tag=live")
        own = f"{root}/own.lance"
        door(upgrade_gallery, f"--transformation={model}", "--column=x", f"--output={own}")
        door(inspect_gallery, "--verify", "--tag=live", path=f"{gallery}@2")  # Rolled back.
        assert Gallery.open(gallery).tags == {"live": 2}
        assert "x" not in Gallery.open(f"{gallery}@live").columns
        results = tmp_path / f"{way}.json"
        pair = ["--gallery_column=x", "--query_column=new", "--allow_space_mismatch"]
        door(evaluate, *pair, f"--output={results}")
        scores[way] = {
            k: v for k, v in files.read_json(results).items() if k not in ("query", "gallery")
        }
        found[way] = (rows_of(gallery), rows_of(own))
        (tmp_path / "doomed.txt").write_text("m:3\nm:4\n")
        door(remove_rows, f"--ids={tmp_path}/doomed.txt")
        assert Gallery.open(gallery).num_rows == 58
        assert not verify.verify(table.open_gallery(gallery))
    assert found["disk"] == found["bucket"] and scores["disk"] == scores["bucket"]
    assert len(found["disk"][0]) == 60
    assert not jobs_left(both["bucket"])
    assert "no problems" in capsys.readouterr().out


def test_rows_that_came_later_and_backfilled_ones(both, photos, fastfill, tmp_path):
    """Rows of a column replaced in place, and those that it lacks."""
    shutil.copytree(photos / "images", tmp_path / "images")
    found = {}
    for way, root in both.items():
        path = f"{root}/g.lance"
        backfilling.make_gallery(photos, path)
        model, images = backfilling.load(photos, tmp_path)
        (tmp_path / "images/val/class0/1.png").rename(tmp_path / "away.png")
        done = backfill.Backfill(path, "x", model, images, "uncertainty", "24", batch_size=4).run()
        assert (done.embedded, [name for name, _ in done.skipped]) == (23, ["val/class0/1.png"])
        report = (
            done.report
            if way == "disk"
            else SimpleNamespace(read_text=lambda uri=done.report: objects.read(uri).decode())
        )
        assert report.read_text() == f"val/class0/1.png\t{done.skipped[0][1]}\n"
        (tmp_path / "away.png").rename(tmp_path / "images/val/class0/1.png")
        again = backfill.Backfill(path, "x", model, images, "uncertainty", "24", batch_size=4).run()
        assert (again.embedded, again.skipped) == (1, [])
        found[way] = rows_of(path)
        assert not verify.verify(table.open_gallery(path))
    assert found["disk"] == found["bucket"]
    assert [*objects.listed(both["bucket"])] == [
        name for name in objects.listed(both["bucket"]) if name.startswith("g.lance/")
    ]

    found = {}
    for way, root in both.items():
        path = make_gallery(f"{root}/h.lance")
        Gallery.open(path).upgrade(fastfill, "x", output=f"{root}/own.lance")
        Gallery.open(path).upgrade(fastfill, "x")
        rng = np.random.default_rng(1)
        more = pa.table(
            {
                "id": ["late/1", "late/2"],
                "embedding_old": pa.array(
                    rng.normal(size=(2, 13)).tolist(), pa.list_(pa.float32(), 13)
                ),
                "side_info": pa.array(rng.normal(size=(2, 7)).tolist(), pa.list_(pa.float32(), 7)),
            }
        )
        lance.write_dataset(more, path, mode="append", storage_options=stores.options(path))
        Gallery.open(path).upgrade(fastfill, "x", missing=True)
        Gallery.open(path).upgrade(fastfill, "x", output=f"{root}/own.lance", missing=True)
        found[way] = rows_of(path), rows_of(f"{root}/own.lance")
    assert found["disk"] == found["bucket"]
    assert found["disk"][1]["late/2"]["x"] == found["disk"][0]["late/2"]["x"] is not None


def test_images_embedded_and_judged(both, photos, run_door, tmp_path):
    found = {}
    for way, root in both.items():
        images, gallery = f"--images=folder:{photos}/images:val", f"--gallery={root}/g.lance"
        for name in ("other", "new"):
            model = f"--model={photos}/{name}.keras"
            assert run_door(embed_gallery, gallery, images, model, f"--column={name}") == 0
        sample = [gallery, f"--output={root}/s.lance", "--rows=10", images, "--column=again"]
        assert run_door(sample_gallery, *sample, f"--model={photos}/new.keras") == 0
        opened = Gallery.open(f"{root}/g.lance")
        verdict = opened.judge(
            "other",
            "new",
            "again",
            sample=f"{root}/s.lance",
            bootstrap=20,
            allow_space_mismatch=True,
        )
        found[way] = (
            rows_of(f"{root}/g.lance"),
            rows_of(f"{root}/s.lance"),
            verdict.record["verdict"],
        )
    assert found["disk"] == found["bucket"]
    assert len(found["disk"][1]) == 10
    assert not jobs_left(both["bucket"])
    # An index is built of it, and searched by rows of it.
    index = tmp_path / "index"
    gallery = f"--gallery={both['bucket']}/g.lance"
    assert run_door(build_index, gallery, "--column=new", f"--output={index}") == 0
    query = [
        f"--query={both['bucket']}/g.lance",
        "--query_column=new",
        f"--output={tmp_path}/n.json",
    ]
    assert run_door(search_index, f"--index={index}", *query) == 0


class Killed(Exception):
    """In place of a kill: nothing is tidied up behind it."""


def stopped_after(count, made):
    """A computation that fails after `count` batches; `made` gets the rows of each."""

    def compute(rows):
        if len(made) >= count:
            raise Killed
        made.append(len(rows))
        return 2 * rows.vectors["embedding_old"]

    return compute


def doubled(rows):
    return 2 * rows.vectors["embedding_old"]


def column(name="x"):
    return table.Column(name, 13, "x" * 64, created_by={"model": "doubled"})


@pytest.mark.parametrize("job_dir", [None, "disk", "bucket"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_job_goes_on_where_it_was(place, tmp_path, job_dir, apart):
    gallery = table.open_gallery(make_gallery(f"{place}/g.lance", rows_per_file=30))
    output = f"{place}/own.lance" if apart else ""
    given = {"disk": tmp_path / "jobs", "bucket": f"{place}/jobs"}.get(job_dir)

    def add(compute, **more):
        settings = {"output": output, "job_dir": given, **more}
        return table.add_column(gallery, column(), compute, ["embedding_old"], **settings)

    first, second = [], []
    with pytest.raises(Killed):
        add(stopped_after(2, first))
    records = job.job_directory(output or gallery.path, "x", given)
    in_store = job_dir != "disk"
    left = (
        objects.listed(records)
        if in_store
        else sorted(p.name for p in (tmp_path / "jobs/x").iterdir())
    )
    assert [*left] == ["fragment-0.json", "fragment-1.json", "job.json"]
    assert job.unfinished(output or gallery.path, "x", given)
    made = add(stopped_after(9, second))
    assert (sum(first), sum(second)) == (60, 41)
    rows = made.read(["x"])
    source = gallery.read(["embedding_old"]).vectors["embedding_old"]
    np.testing.assert_array_equal(rows.vectors["x"], 2 * source)
    assert not job.unfinished(output or gallery.path, "x", given)
    assert not jobs_left(place) and not [one for one in objects.listed(place) if "/jobs" in one]


def test_what_a_killed_process_wrote_goes_when_the_job_ends(place, monkeypatch):
    gallery = table.open_gallery(make_gallery(f"{place}/g.lance", rows_per_file=60))
    record = job.Job.record

    def killed(self, unit, made):
        raise Killed

    monkeypatch.setattr(job.Job, "record", killed)
    with pytest.raises(Killed):
        table.add_column(gallery, column(), doubled, ["embedding_old"])
    monkeypatch.setattr(job.Job, "record", record)
    before = {*objects.listed(f"{place}/g.lance/data")}
    # Nothing was recorded, so this is another job: what it did not write is not its own.
    made = table.add_column(gallery, column(), doubled, ["embedding_old"])
    named = {
        f["path"] for one in made.dataset.get_fragments() for f in one.metadata.to_json()["files"]
    }
    assert before - named and before <= {*objects.listed(f"{place}/g.lance/data")}

    # A second attempt at a fragment of the same job.
    attempts = []

    def twice(make, units, tick, name):
        for unit in units:
            make(unit, tick)
            attempts.append(unit)
            yield unit, make(unit, tick)

    there = {*objects.listed(f"{place}/g.lance/data")}
    made = table.add_column(gallery, column("y"), doubled, ["embedding_old"], engine=twice)
    assert len(attempts) == 2 and len({*objects.listed(f"{place}/g.lance/data")} - there) == 2


def test_other_settings_start_anew(place):
    gallery = table.open_gallery(make_gallery(f"{place}/g.lance", rows_per_file=30))
    with pytest.raises(Killed):
        table.add_column(gallery, column(), stopped_after(2, []), ["embedding_old"])
    other = table.Column("x", 13, "y" * 64)
    made: list = []
    table.add_column(gallery, other, stopped_after(9, made), ["embedding_old"])
    assert sum(made) == 101


def test_a_job_in_a_store_is_of_an_output_in_one(place, tmp_path):
    gallery = table.open_gallery(make_gallery(tmp_path / "g.lance"))
    with pytest.raises(InputError, match="job_dir=s3.*is on a disk, and so must the unfinished"):
        table.add_column(gallery, column(), doubled, ["embedding_old"], job_dir=f"{place}/jobs")


def test_a_missing_data_file_is_named(place):
    path = make_gallery(f"{place}/g.lance")
    (name,) = [one for one in objects.listed(f"{path}/data")][:1]
    objects.remove(f"{path}/data/{name}")
    with pytest.raises(InputError, match=f"data/{name}: data file is missing"):
        table.open_gallery(path).read(["embedding_old"])
    assert any(name in problem for problem in verify.verify(table.open_gallery(path)))


def test_a_path_of_a_file_uri_is_one_of_the_disk(tmp_path):
    path = make_gallery(f"file://{tmp_path}/g.lance")
    gallery = table.open_gallery(path)
    assert gallery.path == f"{tmp_path}/g.lance"
    table.add_column(gallery, column(), doubled, ["embedding_old"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.lance"]


def test_stores_that_only_lance_reaches(tmp_path):
    """Kinds such as oss:// and cos://: the job's records lie on a disk, as they always did."""
    gallery = table.open_gallery(make_gallery(f"file-object-store://{tmp_path}/g.lance"))
    with pytest.raises(InputError, match="g.lance: say where to keep the unfinished job .job_dir"):
        table.add_column(gallery, column(), doubled, ["embedding_old"])
    given = {"job_dir": tmp_path / "jobs"}
    made = table.add_column(gallery, column(), doubled, ["embedding_old"], **given)
    assert len(made.read(["x"]).ids) == 101 and not verify.verify(made)
    assert [*(tmp_path / "jobs").iterdir()] == []
