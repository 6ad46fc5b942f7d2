"""The walk of docs/guides/object_stores.md as commands, killed once; no secret is left behind."""

import json
import signal
import subprocess
import sys
import time

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import Transformation
from fct_tf.gallery import table
from fct_tf.ingest import adopt
from tests import buckets
from tests.clusters import needs_spark, spark_cluster
from tests.conftest import ROOT
from tests.upgrade.test_upgrade import make_transformation

ROWS, PARTS = 2000, 40


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A server with a table of vectors in its bucket, and files beside it in `tmp_path`."""
    monkeypatch.setenv("FCT_TF_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    with buckets.served() as server, buckets.opened(server):
        bucket = server.bucket("walk-bucket")
        ids = pa.array([f"photo-{i}" for i in range(ROWS)])
        labels = pa.array([f"class {i % 50}" for i in range(ROWS)])
        flat = pa.array(rng.normal(size=ROWS * 13).astype(np.float32))
        vectors = pa.FixedSizeListArray.from_arrays(flat, 13)
        lance.write_dataset(
            pa.table({"id": ids, "label": labels, "vector": vectors}),
            f"{bucket}/photos.lance",
            max_rows_per_file=ROWS // PARTS,
            storage_options=server.options,
        )
        chosen = sorted(rng.choice(ROWS, 400, replace=False))
        np.save(tmp_path / "new.npy", rng.normal(size=(400, 11)).astype(np.float32))
        (tmp_path / "ids.txt").write_text("".join(f"photo-{i}\n" for i in chosen))
        (tmp_path / "labels.txt").write_text("".join(f"class {i % 50}\n" for i in chosen))
        spaces = {name: table.imported_space(name) for name in ("old", "new")}
        trained = make_transformation(
            tmp_path / "trained", side=False, source_space=spaces["old"], target_space=spaces["new"]
        )
        Transformation.load(trained).save(f"{bucket}/fct")
        yield server, bucket


class Walk:
    """Commands in processes of their own, and all that they say."""

    def __init__(self, directory, server, **environment):
        self.directory, self.said = directory, []
        (directory / "home").mkdir()
        options = server.write_options(directory.parent / f"{directory.name}.options.json")
        self.options = [f"--storage_options={options}"]
        self.environment = {
            **buckets.without_stores(),
            "PYTHONPATH": str(ROOT),
            "HOME": str(directory / "home"),
            "XDG_CACHE_HOME": str(directory / "home" / "cache"),
            "TMPDIR": str(directory / "home"),
            **environment,
        }

    def start(self, command, *flags):
        arguments = [sys.executable, "-m", f"fct_tf.{command}", *flags, *self.options]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            arguments, cwd=self.directory, env=self.environment, stdout=pipe, stderr=pipe
        )

    def end(self, process):
        out, err = process.communicate(timeout=300)
        self.said += [out, err]
        return out.decode() + err.decode()

    def run(self, command, *flags, status=(0,)):
        process = self.start(command, *flags)
        said = self.end(process)
        assert process.returncode in status, said
        return said

    def holds_no_secret(self, server, bucket):
        secret = buckets.SECRET.encode()
        contents = server.contents(bucket)
        assert contents and not [key for key, content in contents.items() if secret in content]
        for path in self.directory.rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path
        assert self.said and not [one for one in self.said if secret in one]
        return contents


@pytest.mark.slow
def test_the_walk(made, tmp_path):
    server, bucket = made
    directory = tmp_path / "walk"
    directory.mkdir()
    walk = Walk(directory, server)
    gallery = f"--gallery={bucket}/photos.lance"
    adopted = ("--adopt", "--key=vector", "--model_name=old")
    assert f"{ROWS} rows" in walk.run("import_gallery", gallery, *adopted)
    walk.run("inspect_gallery", gallery, "--tag=live")

    upgrade = (gallery, f"--transformation={bucket}/fct", "--column=fct", "--batch_size=10")
    process = walk.start("upgrade_gallery", *upgrade)
    jobs = "photos.lance.jobs/fct/"

    def recorded():
        return [key for key in server.contents("walk-bucket") if key.startswith(f"{jobs}fragment-")]

    while len(recorded()) < 5 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    walk.end(process)
    assert process.returncode == -signal.SIGKILL
    kept = recorded()
    assert 5 <= len(kept) < PARTS and f"{jobs}lock.json" in server.contents("walk-bucket")
    contents = server.contents("walk-bucket")
    finished = {one["path"] for key in kept for one in json.loads(contents[key])["files"]}
    said = walk.run("upgrade_gallery", *upgrade, "--tag=next")
    assert "goes on after process" in said and f"{ROWS} rows, column fct" in said
    after = server.contents("walk-bucket")
    assert not [key for key in after if ".jobs" in key]
    # What was finished before the kill was not made again, and no row twice.
    assert {f"photos.lance/data/{name}" for name in finished} <= {*after}
    opened = table.open_gallery(f"{bucket}/photos.lance@next")
    rows = opened.read(["fct", "vector"])
    assert len({*rows.ids}) == len(rows.ids) == ROWS
    expected = Transformation.load(f"{bucket}/fct")(rows.vectors["vector"])
    np.testing.assert_allclose(rows.vectors["fct"], expected, rtol=1e-4, atol=1e-5)

    sample = f"--gallery={bucket}/sample.lance"
    new = ("--embeddings=../new.npy", "--ids=../ids.txt", "--labels=../labels.txt", "--column=new")
    walk.run("import_gallery", sample, *new, "--model_name=new")
    query = (f"--query={bucket}/sample.lance", "--query_column=new", "--gallery_column=fct")
    walk.run("evaluate", f"{gallery}@next", *query, "--output=results.json")
    named = (f"--sample={bucket}/sample.lance", "--old=vector", "--upgraded=fct", "--new=new")
    # Of random vectors: not compatible, or undecided.
    walk.run("verdict", gallery, *named, "--output=verdict", status=(0, 3))
    assert "live" in walk.run("inspect_gallery", f"{gallery}@next", "--tag=live")
    walk.run("inspect_gallery", f"{gallery}@live", "--verify")
    walk.run("inspect_gallery", f"{gallery}@2", "--tag=live")
    assert "fct" not in table.open_gallery(f"{bucket}/photos.lance@live").columns
    contents = walk.holds_no_secret(server, "walk-bucket")
    assert any(key.startswith("photos.lance/_refs/tags/") for key in contents)


@needs_spark[0]
@needs_spark[1]
@pytest.mark.parametrize("way", ["file", "environment"])
def test_spark_workers_open_the_store(made, tmp_path, way):
    server, bucket = made
    directory = tmp_path / "walk"
    directory.mkdir()
    environment = spark_cluster.environment(tmp_path)
    walk = Walk(directory, server, **environment, SPARK_LOCAL_DIRS=str(tmp_path / "spark"))
    if way == "environment":
        walk.options = []
        for name, value in server.options.items():
            walk.environment[f"AWS_{name.removeprefix('aws_')}".upper()] = value
    adopt.adopt(f"{bucket}/photos.lance", "old", key="vector")
    upgrade = (f"--gallery={bucket}/photos.lance", f"--transformation={bucket}/fct", "--column=fct")
    said = walk.run("upgrade_gallery", *upgrade, "--engine=spark", "--spark_master=local[2]")
    assert f"{ROWS} rows, column fct" in said
    assert len({*table.open_gallery(f"{bucket}/photos.lance").read(["fct"]).ids}) == ROWS
    walk.holds_no_secret(server, "walk-bucket")
