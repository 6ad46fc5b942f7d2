"""Backfillings that are killed: what is staged is kept, and the end is the same."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from fct_tf import backfill_gallery
from fct_tf.backfill import staged
from fct_tf.gallery import replace, table
from fct_tf.gallery.job import Job
from fct_tf.ingest import embed
from tests import killing
from tests.backfill.photos import (
    DIM,
    by_uncertainty,
    check,
    content,
    file,
    filled,
    job,
    load,
    make_gallery,
)


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


@pytest.mark.parametrize("moment", ["before the commit", "before the tag", "before the end"])
def test_killed_around_the_commit(own, photos, moment):
    """The same command ends the job: it neither backfills twice nor embeds again."""
    before = content(own / "g.lance")
    table.tag(own / "g.lance", "live")
    place = {
        "before the commit": (replace, "replace_rows"),
        "before the tag": (table, "tag"),
        "before the end": (Job, "remove"),
    }[moment]
    with killing.interrupted(*place):
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
