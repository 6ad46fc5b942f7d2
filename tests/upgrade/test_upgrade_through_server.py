"""Upgrades, parity and the client against the package's own model server."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import check_parity, upgrade_gallery
from fct_tf.gallery import table
from fct_tf.models import export, saved_model
from fct_tf.serving import remote
from fct_tf.serving.client import connect
from fct_tf.upgrade import transform, upgrade
from tests import killing, served
from tests.builders import (
    D_NEW,
    NEW,
    finished_fragments,
    kill_at,
    make_gallery,
    make_transformation,
)
from tests.models.test_export import save_encoder

KINDS = ("grpc", "http")
ROWS_PER_FILE = 97


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Trainings' working directories, by name; those called other differ in their weights."""
    root = tmp_path_factory.mktemp("models")
    settings = {
        "fct": {"log_variance": True},
        "alone": {"side": False, "seed": 1},
        "other": {"log_variance": True, "seed": 5},
    }
    return {name: make_transformation(root / name, **more) for name, more in settings.items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder")
    save_encoder(root / "artifact", "bilinear_antialias")
    return export.export_query_encoder(root / "artifact", root / "served" / "1")


def base(tmp_path, workdirs, **versions):
    """A model's directory with `v1="fct"` as version 1, and so on."""
    path = tmp_path / "served" / "fct"
    path.mkdir(parents=True, exist_ok=True)
    for name, workdir in versions.items():
        served.publish(workdirs[workdir] / "saved_model", path, int(name[1:]))
    return path


def values_of(path, column="x"):
    """Per id: embedding, origin, log_variance; and what the column says of itself."""
    gallery = table.open_gallery(path)
    names = [f"{column}_origin", f"{column}_log_variance"]
    fields = [name for name in names if name in gallery.dataset.schema.names]
    rows = gallery.read([column], fields=fields)
    order = np.argsort(rows.ids.astype(str))
    values = {name: np.asarray(rows.fields[name])[order] for name in fields}
    return rows.ids[order], rows.vectors[column][order], values, gallery.column(column)


def assert_same_upgrade(path, local, column="x"):
    """Row by row. Batches of another size may be summed in another order."""
    ids, vectors, fields, found = values_of(path, column)
    local_ids, local_vectors, local_fields, expected = values_of(local, column)
    assert list(ids) == list(local_ids)
    np.testing.assert_allclose(vectors, local_vectors, rtol=1e-5, atol=1e-6)
    assert fields.keys() == local_fields.keys()
    for name, values in fields.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, local_fields[name], rtol=1e-5, atol=1e-6)
        else:
            assert list(values) == list(local_fields[name])
    assert found == expected and found.created_by == expected.created_by


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workdir", ["fct", "alone"])
def test_equals_the_local_upgrade(tmp_path, workdirs, run_door, capsys, kind, workdir):
    path = make_gallery(tmp_path / "g.lance", num_rows=500, rows_per_file=200)
    local = shutil.copytree(path, tmp_path / "local.lance")
    upgrade.Upgrade(local, workdirs[workdir], "x").run()
    flags = [f"--gallery={path}", "--column=x", "--tag=live"]
    with served.serving(base(tmp_path, workdirs, v1=workdir)) as running:
        flags.append(f"--server={served.address(running, kind)}")
        before = table.open_gallery(path).version
        assert run_door(upgrade_gallery, *flags, "--dry_run") == 0
        assert "rows:            500" in capsys.readouterr().out
        assert table.open_gallery(path).version == before
        assert run_door(upgrade_gallery, *flags) == 0
    assert_same_upgrade(path, local)
    assert table.open_gallery(f"{path}@live").version == before + 1


def test_label_that_moves_meanwhile(tmp_path, workdirs, monkeypatch):
    """All rows are the version's that had the label at the start."""
    path = make_gallery(tmp_path / "g.lance")
    local = shutil.copytree(path, tmp_path / "local.lance")
    upgrade.Upgrade(local, workdirs["fct"], "x").run()
    config = tmp_path / "models.config"
    text = """model_config_list {{ config {{ name: "fct" base_path: "{base}"
      model_platform: "tensorflow"
      model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
      version_labels {{ key: "stable" value: {stable} }} }} }}"""
    path_of_models = base(tmp_path, workdirs, v1="fct", v2="other")
    config.write_text(text.format(base=path_of_models, stable=1))
    more = {"model_config_file": config, "allow_version_labels_for_unavailable_models": True}
    with served.serving(None, model_config_file_poll_wait_seconds=1, **more) as running:
        address = f"{served.address(running, 'grpc')}@stable"
        model = remote.open_transformation(address)
        config.write_text(text.format(base=path_of_models, stable=2))
        with connect(address) as client:
            while client.metadata().version == 1:
                time.sleep(0.05)
        assert upgrade.Upgrade(path, model, "x").run().gallery.column("x").dim == D_NEW
        model.close()
        assert_same_upgrade(path, local)
        # Asked now, it is the other one.
        model = remote.open_transformation(address)
        other = saved_model.load_transformation(workdirs["other"])
        assert model.info == other.info != saved_model.load_transformation(workdirs["fct"]).info
        model.close()


def start_door(path, address, *more):
    command = ["fct_tf.upgrade_gallery", f"--gallery={path}", f"--server={address}"]
    return killing.Program([*command, "--column=x", "--tag=live", *more])


def counted(monkeypatch):
    """The rows that are computed from now on, batch by batch."""
    computed, run = [], transform.run_model
    monkeypatch.setattr(
        transform,
        "run_model",
        lambda model, sources, rows: computed.append(len(rows)) or run(model, sources, rows),
    )
    return computed


# A quick one, of a server that goes: test_server_that_restarts_loses_nothing.
@pytest.mark.slow
def test_killed_client_resumes(tmp_path, workdirs, monkeypatch, run_door):
    fragments = 13
    path = make_gallery(
        tmp_path / "g.lance", num_rows=fragments * ROWS_PER_FILE, rows_per_file=ROWS_PER_FILE
    )
    live = table.tag(path, "live")
    local = shutil.copytree(path, tmp_path / "local.lance")
    upgrade.Upgrade(local, workdirs["fct"], "x", batch_size=2).run()
    with served.serving(base(tmp_path, workdirs, v1="fct")) as running:
        address = served.address(running, "grpc")
        for target in (2, 9):
            process = start_door(path, address, "--batch_size=2")
            assert kill_at(process, path, target, 0.01), "faster than the kill: make it slower"
            assert table.open_gallery(f"{path}@live").version == live
        before = finished_fragments(path)
        assert 9 <= before < fragments
        computed = counted(monkeypatch)
        flags = [f"--gallery={path}", f"--server={address}", "--column=x", "--tag=live"]
        assert run_door(upgrade_gallery, *flags, "--batch_size=2") == 0
    assert sum(computed) == (fragments - before) * ROWS_PER_FILE
    assert table.open_gallery(f"{path}@live").version == live + 1
    assert_same_upgrade(path, local)


def test_server_that_restarts_loses_nothing(tmp_path, workdirs, monkeypatch, run_door):
    path = make_gallery(tmp_path / "g.lance", num_rows=900, rows_per_file=ROWS_PER_FILE)
    local = shutil.copytree(path, tmp_path / "local.lance")
    upgrade.Upgrade(local, workdirs["fct"], "x", batch_size=10).run()
    computed, run = counted(monkeypatch), transform.run_model
    stopped, port = threading.Event(), served.free_port()
    folder = base(tmp_path, workdirs, v1="fct")

    def until_stopped(*arguments):
        if len(computed) == 30:  # In the midst of a fragment.
            stack.close()
            stopped.set()
        return run(*arguments)

    def restart():
        stopped.wait()
        time.sleep(0.5)
        with served.serving(folder, port=port):
            done.wait()

    done, stack = threading.Event(), contextlib.ExitStack()
    stack.enter_context(served.serving(folder, port=port))
    thread = threading.Thread(target=restart)
    thread.start()
    monkeypatch.setattr(transform, "run_model", until_stopped)
    flags = [f"--gallery={path}", f"--server=grpc://127.0.0.1:{port}/fct", "--column=x"]
    assert run_door(upgrade_gallery, *flags, "--batch_size=10") == 0
    assert stopped.is_set()
    done.set()
    thread.join()
    assert sum(computed) == 900  # Nothing is done twice.
    assert_same_upgrade(path, local)


def test_server_that_stays_away(tmp_path, workdirs, monkeypatch, run_door, capsys):
    """One line, nothing half-written; started again the job continues."""
    path = make_gallery(tmp_path / "g.lance", num_rows=900, rows_per_file=ROWS_PER_FILE)
    live = table.tag(path, "live")
    folder, port = base(tmp_path, workdirs, v1="fct"), served.free_port()
    computed, run = counted(monkeypatch), transform.run_model
    stack = contextlib.ExitStack()
    stack.enter_context(served.serving(folder, port=port))

    def until_stopped(*arguments):
        if len(computed) == 45:
            stack.close()
        return run(*arguments)

    monkeypatch.setattr(transform, "run_model", until_stopped)
    flags = [f"--gallery={path}", f"--server=grpc://127.0.0.1:{port}/fct", "--column=x"]
    flags += ["--batch_size=10", "--server_timeout_s=1", "--tag=live"]
    assert run_door(upgrade_gallery, *flags) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"error: grpc://127.0.0.1:{port}: no answer within 1 s")
    )
    assert table.open_gallery(path).version == table.open_gallery(f"{path}@live").version == live
    before = finished_fragments(path)
    assert before == 4
    monkeypatch.setattr(transform, "run_model", run)
    computed.clear()
    with served.serving(folder, port=port):
        assert run_door(upgrade_gallery, *flags) == 0
    assert sum(computed) == 900 - before * ROWS_PER_FILE
    assert table.open_gallery(f"{path}@live").version == live + 1


def test_version_that_goes_away(tmp_path, workdirs, monkeypatch, run_door, capsys):
    path = make_gallery(tmp_path / "g.lance")
    folder = base(tmp_path, workdirs, v1="fct")
    run = transform.run_model

    def after_swap(*arguments):
        if not (folder / "2").exists():
            served.publish(workdirs["other"] / "saved_model", folder, 2)
            while 1 in [v for v, state in client.versions().items() if state != "END"]:
                time.sleep(0.05)
        return run(*arguments)

    monkeypatch.setattr(transform, "run_model", after_swap)
    with served.serving(folder) as running, connect(served.address(running, "grpc")) as client:
        flags = [f"--gallery={path}", f"--server={client.address}", "--column=x"]
        assert run_door(upgrade_gallery, *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "version 1 is not loaded (loaded: 2)" in error
        assert "x" not in table.open_gallery(path).columns
        assert run_door(upgrade_gallery, *flags) == 0
    rows = table.open_gallery(path).read(["embedding_old", "side_info", "x"])
    other = saved_model.load_transformation(workdirs["other"])
    expected = other(rows.vectors["embedding_old"], rows.vectors["side_info"])["embedding"]
    np.testing.assert_allclose(rows.vectors["x"], expected, rtol=1e-5, atol=1e-6)


def test_door_refuses(tmp_path, workdirs, encoder, run_door, capsys):
    path = make_gallery(tmp_path / "g.lance")

    def refused(message, *flags):
        assert run_door(upgrade_gallery, f"--gallery={path}", "--column=x", *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error

    refused("--transformation or --server: name what")
    refused("not an address", "--server=localhost:8500/fct")
    with served.serving(base(tmp_path, workdirs, v1="fct")) as running:
        server = f"--server={served.address(running, 'grpc')}"
        refused("no version has the label 'stable'", f"{server}@stable")
        refused("version 4 is not loaded (loaded: 1)", f"{server}@4")
        refused("no model 'fctx'", f"{server}x")
        other = f"--transformation={workdirs['other']}"
        refused("name the one that is meant", server, other)
        refused("no embedding column 'missing'", server, "--source=missing")
    with served.serving(encoder.parent) as running:
        refused("a transformation is needed", f"--server={served.address(running, 'grpc')}")


@pytest.mark.parametrize("described", [False, True])
def test_version_that_does_not_say_what_it_is(tmp_path, workdirs, run_door, capsys, described):
    """As those that were exported by earlier versions of this package."""
    workdir = workdirs["alone"]
    loaded = tf.saved_model.load(workdir / "saved_model")
    signature = loaded.signatures["serving_default"]
    archive = keras.export.ExportArchive()
    spec = tf.TensorSpec([None, 13], tf.float32, name="source_embedding")
    archive.track(loaded)
    archive.add_endpoint(
        "serving_default", lambda x: signature(source_embedding=x), input_signature=[spec]
    )
    folder = tmp_path / "served" / "fct"
    archive.write_out(str(folder / "1"), verbose=False)
    path = make_gallery(tmp_path / "g.lance")
    local = shutil.copytree(path, tmp_path / "local.lance")
    with served.serving(folder) as running:
        flags = [f"--gallery={path}", "--column=x", f"--server={served.address(running, 'grpc')}"]
        if not described:
            assert run_door(upgrade_gallery, *flags) == 2
            assert "does not say which space" in capsys.readouterr().err
            return
        assert run_door(upgrade_gallery, *flags, f"--transformation={workdir}") == 0
    upgrade.Upgrade(local, workdir, "x").run()
    assert_same_upgrade(path, local)


# The client against the real server.


@pytest.mark.parametrize("kind", KINDS)
def test_client_of_a_query_encoder(encoder, kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 31, 37, 3), np.uint8)
    files = [tf.io.encode_png(image).numpy() for image in pixels]
    files[1] = tf.io.encode_jpeg(pixels[1]).numpy()
    local = tf.saved_model.load(encoder)
    with served.serving(encoder.parent) as running:
        with connect(served.address(running, kind)) as client:
            embedding, from_files = client.embed(pixels), client.embed_encoded(files)
    expected = local.signatures["serving_default"](image=pixels)["embedding"]
    np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-6)
    expected = local.signatures["encoded"](image_bytes=tf.constant(files))["embedding"]
    np.testing.assert_allclose(from_files, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_space_that_a_served_version_writes(tmp_path, workdirs, kind):
    info = saved_model.load_transformation(workdirs["alone"]).info
    rows = np.zeros((200, 13), np.float32)
    with served.serving(base(tmp_path, workdirs, v1="alone")) as running:
        address = served.address(running, kind)
        with connect(address, space=info["space"]) as client:
            assert client.about() == info
            assert client.transform(rows)["embedding"].shape == (200, D_NEW)
        with connect(address, space=NEW) as client:
            with pytest.raises(Exception, match=f"writes space {info['space']}, expected is {NEW}"):
                client.transform(rows)


# Parity.


@pytest.mark.parametrize("kind", KINDS)
def test_parity(tmp_path, workdirs, run_door, capsys, kind):
    path = make_gallery(tmp_path / "g.lance")
    output = tmp_path / "parity.json"
    with served.serving(base(tmp_path, workdirs, v1="fct")) as running:
        flags = [f"--server={served.address(running, kind)}", "--rows=90"]
        for more in ([], [f"--gallery={path}", f"--output={output}"]):
            model = f"--model={workdirs['fct']}"
            assert run_door(check_parity, *flags, model, *more) == 0
            out = capsys.readouterr().out
            assert "serving_default: embedding: 90 rows" in out
            assert "serving_default: log_variance: 90 rows" in out and "equals" in out
        record = json.loads(output.read_text())
        assert record["parity"] and record["served_space"] == record["local_space"]
        assert record["differences"]["serving_default: embedding"]["relative"] < 1e-5
        assert record["differences"]["serving_default: embedding"]["row"].startswith("gallery/")
        with pytest.raises(SystemExit, match="3"):
            run_door(check_parity, *flags, f"--model={workdirs['other']}")
        out = capsys.readouterr().out
        assert "spaces differ" in out and "DIFFERS FROM" in out
    assert run_door(check_parity, *flags, model, "--timeout_s=0.3") == 2
    assert "no answer within 0.3 s" in capsys.readouterr().err


@pytest.mark.parametrize("images", [False, True])
def test_parity_of_an_encoder(tmp_path, encoder, run_door, capsys, images):
    more = []
    if images:
        folder = tmp_path / "images" / "class"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for side in (29, 31, 40):
            image = tf.io.encode_png(rng.integers(0, 256, (side, side, 3), np.uint8))
            (folder / f"{side}.png").write_bytes(image.numpy())
        more = [f"--images=folder:{tmp_path / 'images'}"]
    with served.serving(encoder.parent) as running:
        flags = [f"--server={served.address(running, 'grpc')}", f"--model={encoder}", "--rows=20"]
        assert run_door(check_parity, *flags, *more) == 0
    counts = {
        line.split(":")[0]: int(line.split()[2])
        for line in capsys.readouterr().out.splitlines()[:-1]
    }
    # `resized` takes the one image that has the model's own size.
    expected = {"serving_default": 3, "encoded": 3, "resized": 1} if images else {}
    assert counts == (expected or dict.fromkeys(("serving_default", "encoded", "resized"), 20))


@pytest.mark.slow
def test_many_rows_with_kills_on_both_sides(tmp_path, workdirs):
    """200,000 rows; the client and the server are killed midway, the server twice."""
    count = 200_000
    path = make_gallery(tmp_path / "g.lance", num_rows=count, rows_per_file=10_000)
    live = table.tag(path, "live")
    local = shutil.copytree(path, tmp_path / "local.lance")
    upgrade.Upgrade(local, workdirs["fct"], "x").run()
    folder, port = base(tmp_path, workdirs, v1="fct"), served.free_port()
    more = {"tensorflow_intra_op_parallelism": 1}
    server = served.start(folder, port, **more)
    try:
        address = f"grpc://127.0.0.1:{port}/fct"
        assert kill_at(start_door(path, address), path, 3, 0.05)
        door = start_door(path, address)
        for target in (6, 12):
            while finished_fragments(path) < target:
                assert door.running(), door.errors()
                time.sleep(0.01)
            server.send_signal(signal.SIGKILL)
            server.wait()
            assert table.open_gallery(f"{path}@live").version == live
            server = served.start(folder, port, **more)
        assert door.wait() == 0, door.errors()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert table.open_gallery(f"{path}@live").version == live + 1
    assert not os.path.exists(f"{path}.jobs")
    assert_same_upgrade(path, local)
