"""What may happen to a cluster in the middle of an upgrade: the same rows come out, none twice."""

import random
import shutil
import subprocess
import sys

import psutil
import pytest

from fct_tf.gallery import table
from tests.builders import (
    content,
    finished_fragments,
    make_gallery,
)
from tests.clusters import needs_spark, spark_cluster, wait_until
from tests.conftest import ROOT
from tests.upgrade.test_engines import in_order, upgraded

pytestmark = [*needs_spark, pytest.mark.slow]

NUM_FRAGMENTS, ROWS = 12, 61
# Batches are tiny, which is what makes the work slow.
BATCH = 2


@pytest.fixture(scope="module")
def expected(tmp_path_factory, fastfill):
    """(The gallery to upgrade, what an upgrade by the local engine has in the end)."""
    folder = tmp_path_factory.mktemp("expected")
    path = make_gallery(folder / "g.lance", num_rows=NUM_FRAGMENTS * ROWS, rows_per_file=ROWS)
    table.tag(path, "live")
    done = str(folder / "done.lance")
    shutil.copytree(path, done)
    upgraded(done, fastfill, "x", batch_size=BATCH)
    return path, content(done)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = spark_cluster.Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


class Driver:
    """upgrade_gallery in a process of its own, on `master` or without Spark."""

    def __init__(self, folder, path, work, master="", **settings):
        flags = [f"--gallery={path}", f"--transformation={work}", "--column=x", "--tag=live"]
        flags += [f"--batch_size={BATCH}"]
        flags += ["--engine=spark", f"--spark_master={master}"] if master else []
        self._log = folder / "driver.log"
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fct_tf.upgrade_gallery", *flags],
                env=spark_cluster.environment(folder / "conf", **settings),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.running():
            self.kill()

    def running(self):
        return self._process.poll() is None

    def succeeded(self):
        return self._process.wait(300) == 0

    def log(self):
        return self._log.read_text()[-4000:]

    def kill(self):
        """Kills it alone; whether it was running. Its Java notices, and ends."""
        java = psutil.Process(self._process.pid).children(recursive=True)
        was_running = self.running()
        self._process.kill()
        self._process.wait()
        _, left = psutil.wait_procs(java, timeout=60)
        assert not left
        return was_running


@pytest.fixture
def path(tmp_path, expected):
    shutil.copytree(expected[0], tmp_path / "g.lance")
    return str(tmp_path / "g.lance")


def wait_for(driver, path, fragments):
    """Waits until so many fragments are recorded; the job must not be done before."""
    wait_until(lambda: finished_fragments(path) >= fragments or not driver.running(), 180)
    assert driver.running(), f"the job was faster, or failed: {driver.log()}"


def check_untouched(path):
    gallery = table.open_gallery(path)
    assert gallery.version == 1 and "x" not in gallery.columns
    assert table.open_gallery(f"{path}@live").version == 1


def check_done(path, expected):
    assert content(path) == expected[1]
    ids, left = in_order(path)
    assert len(ids) == len(set(ids)) == NUM_FRAGMENTS * ROWS
    gallery = table.open_gallery(path)
    assert gallery.version == 2 == table.open_gallery(f"{path}@live").version
    # What was being written at a kill -9 has a temporary name.
    assert all(name.startswith(".tmp") for name in left)


def moments(seed, count):
    """So many numbers of recorded fragments, rising, with some left to do behind the last."""
    return sorted(random.Random(seed).sample(range(1, NUM_FRAGMENTS - 2), count))


def test_executors_are_killed(tmp_path, cluster, path, expected, fastfill):
    with Driver(tmp_path, path, fastfill, cluster.master) as driver:
        for moment in moments(0, 3):
            wait_for(driver, path, moment)
            check_untouched(path)
            wait_until(cluster.kill_executor)
        assert driver.succeeded(), driver.log()
    check_done(path, expected)


def test_workers_are_lost(tmp_path, cluster, path, expected, fastfill):
    with Driver(tmp_path, path, fastfill, cluster.master) as driver:
        for moment in moments(1, 2):
            wait_for(driver, path, moment)
            check_untouched(path)
            cluster.lose_worker()
        assert driver.succeeded(), driver.log()
    check_done(path, expected)


def test_the_driver_is_killed(tmp_path, cluster, path, expected, fastfill):
    """And started again, by the same engine or the other."""
    for moment, master in zip(moments(2, 3), [cluster.master, "", cluster.master], strict=True):
        with Driver(tmp_path, path, fastfill, master) as driver:
            wait_for(driver, path, moment)
            assert driver.kill()
        check_untouched(path)
        assert moment <= finished_fragments(path) < NUM_FRAGMENTS
    with Driver(tmp_path, path, fastfill, cluster.master) as driver:
        assert driver.succeeded(), driver.log()
    check_done(path, expected)


def test_units_of_slow_executors_are_done_by_others_too(
    tmp_path, cluster, path, expected, fastfill
):
    settings = {
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.quantile": "0.1",
        "spark.speculation.multiplier": "1.1",
    }
    stopped: list = []
    try:
        with Driver(tmp_path, path, fastfill, cluster.master, **settings) as driver:
            for moment, worker in zip(moments(3, 2), cluster.workers, strict=True):
                wait_for(driver, path, moment)
                check_untouched(path)
                resume(stopped)
                (executor,) = cluster.executors(worker)
                stopped = spark_cluster.below(executor.pid)
                for process in stopped:
                    process.suspend()
            assert stopped
            assert driver.succeeded(), driver.log()
    finally:
        resume(stopped)
    check_done(path, expected)


def resume(stopped):
    for process in stopped:
        if process.is_running():
            process.resume()
