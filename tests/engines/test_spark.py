"""Spark makes what the local engine makes, to the bit: in one process, then on a cluster."""

import functools
import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fct_tf import build_index, evaluate, inspect_gallery, upgrade_gallery
from fct_tf.ann import index
from fct_tf.engines import engine
from fct_tf.engines.engine import local
from fct_tf.gallery import table, verify
from fct_tf.retrieval import in_parts, two_columns
from tests.ann.galleries import COMPLETE, check, gallery_at, replace
from tests.builders import (
    append_bad_row,
    content,
    make_gallery,
    snapshot,
)
from tests.clusters import needs_spark, spark_cluster
from tests.conftest import ROOT
from tests.gallery.test_missing import append
from tests.ingest.test_embed_gallery import KINDS, embedded, models  # noqa: F401
from tests.ingest.test_embed_gallery import content as embedded_content
from tests.scattered import Stopped, stopping
from tests.upgrade.test_engines import WAYS, galleries, in_order, run, upgraded  # noqa: F401

pytestmark = needs_spark


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A session in this process, with two workers: every engine `spark` of the tests is this."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("conf")
        for name, value in spark_cluster.environment(folder).items():
            patch.setenv(name, value)
        from pyspark import SparkConf, SparkContext

        made = SparkContext(conf=SparkConf().setMaster("local[2]").setAppName("tests"))
        made.setLogLevel("ERROR")
        yield made
        made.stop()


@pytest.fixture
def spark(context):
    with engine.open_engine("spark") as opened:
        yield opened


@pytest.mark.parametrize("way", WAYS)
def test_equal_to_the_bit(galleries, fastfill, spark, way):  # noqa: F811
    (here, there), pairs = galleries
    here = run(way, here, fastfill, pairs=pairs)
    there = run(way, there, fastfill, spark, pairs=pairs)
    assert content(there)[1] == content(here)[1]
    assert in_order(there) == in_order(here) and not in_order(there)[1]
    assert not list(Path(there).parent.glob("*.jobs"))


@pytest.mark.parametrize("way", ["beside", "apart"])
def test_missing_rows(galleries, fastfill, spark, way):  # noqa: F811
    written = []
    for path, used in zip(galleries[0], (local, spark), strict=True):
        own = run(way, path, fastfill)
        append(path, 9, seed=1)
        append(path, 4, seed=2)
        output = own if way == "apart" else ""
        upgraded(path, fastfill, "x", missing=True, output=output, engine=used, batch_size=4)
        written.append(own)
    assert content(written[1])[1] == content(written[0])[1]


def test_a_bad_row_is_one_line(tmp_path, fastfill, context, run_door, capfd):
    path = make_gallery(tmp_path / "g.lance", rows_per_file=13)
    append_bad_row(path)
    before = snapshot(path)
    flags = [f"--gallery={path}", f"--transformation={fastfill}", "--column=x", "--engine=spark"]
    assert run_door(upgrade_gallery, *flags) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "'broken row' with NaN or infinity" in lines[0]
    assert "Traceback" not in lines[0]
    assert before.items() <= snapshot(path).items()  # A job to go on with, once it is mended.
    assert "x" not in table.open_gallery(path).columns


def test_evaluation_and_verification(tmp_path, context, spark, run_door):
    path = make_gallery(tmp_path / "g.lance", num_rows=503, rows_per_file=97)
    gallery = table.open_gallery(path)
    sides = (gallery, "embedding_old", gallery, "embedding_old")
    expected = two_columns.evaluate(*sides)
    assert two_columns.evaluate(*sides, searching=in_parts.searching(spark)) == expected
    assert verify.look(gallery, spark) == verify.look(gallery) == ([], [])
    flags = [f"--gallery={path}", "--engine=spark"]
    output = tmp_path / "r.json"
    columns = ["--gallery_column=embedding_old", "--query_column=embedding_old"]
    assert run_door(evaluate, *flags, *columns, f"--output={output}") == 0
    assert json.loads(output.read_text()) == json.loads(json.dumps(expected))
    append_bad_row(path)
    assert run_door(inspect_gallery, *flags, "--verify") == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_embedded(images, models, tmp_path, spark, kind):  # noqa: F811
    """The same bits; and this process ends what Spark has begun."""
    # Chunks of eight batches: 24 images are three, a sample is one.
    make = functools.partial(embedded, kind, images=images, models=models, batch_size=1)
    expected = make(str(tmp_path / "a.lance"))
    found = make(str(tmp_path / "b.lance"), engine=spark)
    assert embedded_content(found) == embedded_content(expected)
    assert found.column("embedding_new") == expected.column("embedding_new")
    if kind == "artifact":
        with pytest.raises(Stopped):
            make(str(tmp_path / "c.lance"), engine=stopping(spark, 1))
        assert embedded_content(make(str(tmp_path / "c.lance"))) == embedded_content(expected)
    assert not list(tmp_path.glob("*.jobs"))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_an_index_is_built_and_updated(tmp_path, spark, distance, run_door, capsys):
    path, output = tmp_path / "g.lance", tmp_path / "i"
    gallery = gallery_at(path, distance=distance)
    build = functools.partial(index.build, gallery, "a", output, COMPLETE, shards=4)
    with pytest.raises(Stopped):
        build(engine=stopping(spark, 1))
    build(engine=local)
    check(index.open_index(output), gallery, distance)
    with pytest.raises(Stopped):
        build(engine=stopping(local, 1), overwrite=True)
    check(index.open_index(output), gallery, distance)
    build(engine=spark, overwrite=True)
    check(index.open_index(output), gallery, distance)
    replace(path)
    flags = ["--update", f"--output={output}", "--engine=spark"]
    assert run_door(build_index, *flags) == 0
    assert "0 new rows, 30 changed, 0 gone" in capsys.readouterr().out
    check(index.open_index(output), table.open_gallery(path), distance)
    assert len(list(output.iterdir())) == 5


def test_units_tries_and_names(context, spark, tmp_path):
    """One that fails is tried again where Spark does so; its rows count once."""
    told, units = [], list(range(7))

    def make(unit, tick):
        tick(10 + unit)
        return {"unit": unit, "large": b"x" * 100_000}

    made = dict(spark(make, units, told.append, "a name"))
    assert {unit: one["unit"] for unit, one in made.items()} == {u: u for u in units}
    assert sum(told) == sum(10 + unit for unit in units)
    tracker = context.statusTracker()
    stages = itertools.takewhile(bool, map(tracker.getStageInfo, itertools.count()))
    assert "a name (7 units)" in [stage.name for stage in stages]
    assert not tracker.getActiveJobsIds()


def test_stopped_early_no_task_goes_on(context, spark, tmp_path):
    def make(unit, tick):
        (tmp_path / str(unit)).touch()
        if unit:
            time.sleep(600)
        return unit

    results = spark(make, list(range(6)), lambda count: None, "slow")
    assert next(results) == (0, 0)
    results.close()
    end = time.monotonic() + 60  # Spark ends a job in a thread of its own, long before its tasks.
    while context.statusTracker().getActiveJobsIds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_error_of_ours_keeps_its_traceback(spark):
    def make(unit, tick):
        raise KeyError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(spark(make, [1], lambda count: None, "bug"))


def test_another_master_is_refused(context):
    with pytest.raises(Exception, match="a session on local.2. is running"):
        with engine.open_engine("spark", "local[1]"):
            pass


LAUNCHER = "from fct_tf.__main__ import main\nmain()\n"


@pytest.mark.slow
def test_spark_submit(tmp_path, fastfill):
    """The session, its master and settings are those that spark-submit gives."""
    import pyspark

    path = make_gallery(tmp_path / "g.lance")
    shutil.copytree(path, tmp_path / "expected.lance")
    expected = str(tmp_path / "expected.lance")
    upgraded(expected, fastfill, "x")
    (tmp_path / "job.py").write_text(LAUNCHER)
    command = [f"{Path(pyspark.__file__).parent}/bin/spark-submit", "--master", "local[2]"]
    command += ["job.py", "upgrade_gallery", "--gallery=g.lance", f"--transformation={fastfill}"]
    done = subprocess.run(
        [*command, "--column=x", "--engine=spark"],
        env=spark_cluster.environment(tmp_path / "conf"),
        cwd=tmp_path,  # Paths that are relative mean the same to the workers.
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(path) == content(expected)


@pytest.mark.parametrize(
    "master, told", [("nonsense", "a master is local[2], spark://"), ("local[x]", "local[x]")]
)
@pytest.mark.slow
def test_a_master_that_is_none(tmp_path, fastfill, master, told):
    path = make_gallery(tmp_path / "g.lance")
    flags = [f"--gallery={path}", f"--transformation={fastfill}", "--column=x"]
    command = [sys.executable, "-m", "fct_tf.upgrade_gallery", *flags, "--engine=spark"]
    done = subprocess.run(
        [*command, f"--spark_master={master}"],
        env=spark_cluster.environment(tmp_path / "conf"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"--spark_master={master}: Spark does not start" in line and told in line
