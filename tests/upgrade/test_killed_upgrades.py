"""Upgrades that are killed resume and end in the same gallery."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fct_tf.gallery import table
from fct_tf.upgrade import transform, upgrade
from tests import killing
from tests.builders import (
    D_NEW,
    D_OLD,
    content,
    expected_embedding,
    finished_fragments,
    kill_at,
    make_gallery,
    make_transformation,
    start_door,
)

NUM_FRAGMENTS = 13


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


def test_job_of_other_settings_starts_from_scratch(tmp_path, fastfill):
    path = make_gallery(tmp_path / "g.lance")
    with killing.interrupted(transform, "run_model", 3):
        upgrade.Upgrade(path, fastfill, "x").run()
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
