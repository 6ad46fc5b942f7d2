"""The job under all that takes long: resumed, one process at a time, nothing of others touched."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import (
    backfill_gallery,
    embed_gallery,
    import_gallery,
    sample_gallery,
    upgrade_gallery,
)
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.gallery import job, table
from fct_tf.upgrade import upgrade
from tests import builders, killing, tiny
from tests.backfill import photos as backfill_photos
from tests.gallery import test_missing

SETTINGS = {"model": "a"}


class Killed(BaseException):
    pass


def made(unit):
    """What is recorded of a unit."""
    number = int(unit[-1])
    if unit.startswith("chunk"):
        return {"vectors": np.full((2, 3), number, np.float32), "ids": np.array([b"x", b"yz"])}
    return {"number": number}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def work(output, kind, calls, *, settings=SETTINGS, kill_at=None):
    """Makes four units of a kind; returns what is recorded at the end."""
    with job.open_job(output, "x") as one:
        one.start(settings)
        for unit in (f"{kind}-{number}" for number in range(4)):
            if not one.finished(unit):
                if unit == kill_at:
                    raise Killed
                calls.append(unit)
                one.record(unit, made(unit))
        records = list(one.records(kind))
        one.remove()
    return records


KINDS = pytest.mark.parametrize("kind", ["fragment", "chunk"])


@KINDS
def test_what_is_recorded_is_not_made_again(tmp_path, kind):
    calls: list[str] = []
    with pytest.raises(Killed):
        work(tmp_path / "g", kind, calls, kill_at=f"{kind}-2")
    for found, number in zip(work(tmp_path / "g", kind, calls), range(4), strict=True):
        same(found, made(f"{kind}-{number}"))
    assert calls == [f"{kind}-{number}" for number in range(4)]
    assert list(tmp_path.iterdir()) == []


@KINDS
def test_a_record_is_whole_or_not_there(tmp_path, kind, monkeypatch):
    calls: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        replace = os.replace

        def dies(source, target):
            if str(target).endswith(("-2.json", "-2.npz")):
                raise Killed
            replace(source, target)

        patch.setattr(os, "replace", dies)
        # Nothing of this process is removed, as if it had been killed.
        patch.setattr(files.Path, "unlink", lambda *_, **__: None)
        work(tmp_path / "g", kind, calls)
    assert len(list((tmp_path / "g.jobs/x").glob(f".{kind}-2*.tmp"))) == 1
    work(tmp_path / "g", kind, calls)
    assert calls == [f"{kind}-{number}" for number in (0, 1, 2, 2, 3)]
    assert list(tmp_path.iterdir()) == []


@KINDS
@pytest.mark.parametrize("change", ["settings", "no header"])
def test_records_of_others_do_not_count(tmp_path, kind, change):
    calls: list[str] = []
    with pytest.raises(Killed):
        work(tmp_path / "g", kind, calls, kill_at=f"{kind}-3")
    if change == "no header":  # It was killed while it removed its files.
        (tmp_path / "g.jobs/x/job.json").unlink()
    settings = {"model": "b"} if change == "settings" else SETTINGS
    assert len(work(tmp_path / "g", kind, calls, settings=settings)) == 4
    assert len(calls) == 7 and list(tmp_path.iterdir()) == []


def test_nothing_is_removed_before_the_work_starts(tmp_path):
    """A command that is refused for its flags leaves another's unfinished job as it is."""
    calls: list[str] = []
    with pytest.raises(Killed):
        work(tmp_path / "g", "chunk", calls, kill_at="chunk-3")
    with pytest.raises(InputError, match="no such policy"):
        with job.open_job(tmp_path / "g", "x") as one:
            assert one.is_of(SETTINGS) and not one.is_of({"model": "b"})
            raise InputError("no such policy")
    assert len(work(tmp_path / "g", "chunk", calls)) == 4 == len(calls)


@pytest.mark.parametrize("started", [False, True])
def test_a_job_without_a_record_leaves_nothing(tmp_path, started):
    with pytest.raises(Killed):
        with job.open_job(tmp_path / "g", "x") as one:
            if started:
                one.start(SETTINGS)
                Path(one.table).mkdir()
            raise Killed
    assert list(tmp_path.iterdir()) == []


def test_what_else_lies_in_the_directory_stays(tmp_path):
    (tmp_path / "g.jobs/x").mkdir(parents=True)
    for name in ("notes.json", "vectors.txt", "chunk.npz"):
        (tmp_path / "g.jobs/x" / name).write_text("precious")
    work(tmp_path / "g", "chunk", [])
    assert len(list((tmp_path / "g.jobs/x").iterdir())) == 3


def test_chunks_as_one_array(tmp_path):
    with job.open_job(tmp_path / "g", "x") as one:
        one.start(SETTINGS)
        for number in (10, 9):
            one.record(f"chunk-{number:04d}", made(f"chunk-{number % 10}"))
        np.testing.assert_array_equal(
            one.stacked("vectors", 4, 3), np.repeat([[9.0] * 3, [0.0] * 3], 2, axis=0)
        )
        one.remove()


# Two processes of each kind -------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """images/, new.keras and a table of its embeddings, an upgraded gallery of other rows, and
    a transformation."""
    directory = backfill_photos.make_photos(tmp_path_factory.mktemp("photos"))
    backfill_photos.make_gallery(directory, directory / "g.lance")
    builders.make_transformation(directory / "map")
    builders.make_gallery(directory / "rows.lance")
    upgrade.Upgrade(f"{directory}/rows.lance", directory / "map", "y").run()
    test_missing.append(f"{directory}/rows.lance", 9)
    np.save(directory / "e.npy", np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32))
    ids = pa.array([f"row {row}" for row in range(30)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(90, np.float32)), 3)
    lance.write_dataset(pa.table({"id": ids, "vector": vectors}), directory / "table.lance")
    tiny.experiment_file(directory / "experiment.py", directory / "images")
    return directory


def commands(photos, place):
    """Name -> command, its flags, and the gallery that it makes or changes in `place`."""
    images = [f"--images=folder:{photos}/images:val", f"--model={photos}/new.keras"]
    source = [f"--embeddings={photos}/e.npy", "--model_name=m", "--column=e"]
    rows, own = [f"--gallery={place}/rows.lance"], f"--output={place}/out.lance"
    upgraded = [f"--transformation={photos}/map"]
    g, out = [f"--gallery={place}/g.lance"], [f"--gallery={place}/out.lance"]
    return {
        "embed a gallery": (embed_gallery, [*out, *images, "--column=e"], "out"),
        "embed a column": (embed_gallery, [*g, *images, "--column=e"], "g"),
        "import a gallery": (import_gallery, [*out, *source], "out"),
        "import a column": (
            import_gallery, [*g, f"--embeddings={photos}/all.npz", *source[1:]], "g"
        ),
        "adopt a table": (
            import_gallery,
            [f"--gallery={place}/table.lance", "--adopt", "--model_name=m"],
            "table",
        ),
        "sample rows": (sample_gallery, [*g, own, "--rows=9"], "out"),
        "sample images": (sample_gallery, [*g, own, "--rows=9", *images], "out"),
        "upgrade": (upgrade_gallery, [*rows, *upgraded, "--column=x"], "rows"),
        "upgrade apart": (upgrade_gallery, [*rows, *upgraded, "--column=x", own], "out"),
        "upgrade again": (
            upgrade_gallery, [*rows, *upgraded, "--column=y", "--overwrite"], "rows"
        ),
        "upgrade missing": (
            upgrade_gallery, [*rows, *upgraded, "--column=y", "--missing"], "rows"
        ),
        "backfill": (backfill_gallery, [*g, *images, "--column=x", "--budget=9"], "g"),
    }  # fmt: skip


NAMES = list(commands("", ""))


def prepared(photos, place):
    """The commands, at copies of the galleries."""
    place.mkdir(exist_ok=True)
    for name in ("g.lance", "rows.lance", "table.lance"):
        shutil.copytree(photos / name, place / name)
    if not (photos / "all.npz").exists():
        ids = table.open_gallery(photos / "g.lance").read([]).ids
        vectors = np.arange(len(ids) * 5, dtype=np.float32).reshape(-1, 5)
        np.savez(photos / "all.npz", embeddings=vectors, ids=ids.astype(str))
    return commands(photos, place)


def content(path):
    """Rows by id, with all that is in them."""
    rows = lance.dataset(str(path)).to_table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) > 0
    return {row["id"]: row for row in rows}


def refused(error, place, output):
    """Whether one line says that another process is at work on this output."""
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    start = f"error: {place}/{output}.lance: another process is at work on this"
    return len(lines) == 1 and lines[0].startswith(start) and error.endswith(lines[0] + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_second_one_is_refused(photos, tmp_path, run_door, monkeypatch, capsys, name):
    """Ten times while the first one is at work, which ends as if it had been alone."""
    module, flags, output = prepared(photos, tmp_path / "alone")[name]
    assert run_door(module, *flags) == 0
    alone, place = tmp_path / "alone" / f"{output}.lance", tmp_path / "two"
    module, flags, _ = prepared(photos, place)[name]
    statuses, jobs = [], []
    begin, record = job.Job.__init__, job.Job.record

    def try_again(count):
        for _ in range(count):
            capsys.readouterr()
            statuses.append(run_door(module, *flags))
            assert refused(capsys.readouterr().err, place, output)

    def beginning(self, *arguments, **more):
        begin(self, *arguments, **more)
        jobs.append(self)
        # Making a gallery from rows at hand records nothing.
        if self is jobs[0]:
            at_hand = ("import a gallery", "adopt a table", "sample rows")
            try_again(10 if name in at_hand else 5)

    def recording(self, *what):
        record(self, *what)
        if len(statuses) < 10:
            try_again(5)

    monkeypatch.setattr(job.Job, "__init__", beginning)
    monkeypatch.setattr(job.Job, "record", recording)
    assert run_door(module, *flags) == 0
    assert statuses == [2] * 10
    assert content(place / f"{output}.lance") == content(alone)
    left = [sorted(path.name for path in where.iterdir()) for where in (place, alone.parent)]
    assert left[0] == left[1] and not any(name.endswith(".jobs") for name in left[0])


def locked(jobs):
    """Whether a process holds a job in this directory; asked without taking the lock."""
    try:
        held = {path.stat().st_ino for path in jobs.iterdir()}
    except FileNotFoundError:  # Not yet, or not any more.
        return False
    lines = Path("/proc/locks").read_text().splitlines()
    return any(int(line.split()[5].split(":")[2]) in held for line in lines if "FLOCK" in line)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_second_process_is_refused(photos, tmp_path, run_door, capsys, name):
    """Of two processes, ten times, the first one stopped for a while after it began."""
    module, flags, output = prepared(photos, tmp_path / "alone")[name]
    assert run_door(module, *flags) == 0
    alone = content(tmp_path / "alone" / f"{output}.lance")
    for attempt in range(10):
        place = tmp_path / f"two{attempt}"
        module, flags, _ = prepared(photos, place)[name]
        jobs, written = place / f"{output}.lance.jobs", place / f"{output}.lance"
        first = killing.Program([module.__name__, *flags])
        while first.running() and not locked(jobs):
            time.sleep(0.0005)
        # A short job may have ended by now, or have made all that it makes.
        with contextlib.suppress(ProcessLookupError):
            os.kill(first.pid, signal.SIGSTOP)
            if locked(jobs):
                capsys.readouterr()
                assert run_door(module, *flags) == 2
                error = capsys.readouterr().err
                assert refused(error, place, output) or "exists already" in error
            os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 0, first.errors()
        assert content(written) == alone
        assert not jobs.exists()


def test_of_processes_that_make_one_gallery_one_does(tmp_path):
    """Twenty at once, of which some come when another has just ended."""
    import threading

    column = table.Column("a", 2, "f" * 64)
    gate, results = threading.Barrier(20), []

    def make(number):
        rows = table.Rows(np.array(["r"], object), None, {"a": np.full((1, 2), number)})
        gate.wait()
        try:
            results.append(table.create(tmp_path / "g.lance", [rows], [column]).num_rows)
        except InputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=make, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if result != 1]
    assert len(results) == 20 and len(errors) == 19
    assert all("another process is at work" in e or "exists already" in e for e in errors)
    assert [path.name for path in tmp_path.iterdir()] == ["g.lance"]
