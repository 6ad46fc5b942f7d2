"""Published versions: what is in them, what is checked, and that they come whole or not at all."""

import dataclasses
import functools
import json
import re
import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from tensorflow_serving.apis import prediction_log_pb2

from fct_tf import export_serving, model_server, serving_config
from fct_tf.common import objects
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.models import artifact, export, saved_model, transformation
from fct_tf.models.load import load_any
from fct_tf.retrieval import exact
from fct_tf.serving import chain, configuration, publish, server, top_k, warmup
from fct_tf.serving.servable import Servable
from fct_tf.upgrade import upgrade
from tests import model_servers
from tests.models.test_export import randomize_batch_norm, save_encoder, save_transformation

DIMS = {"source": 5, "side_info": 5, "target": 6}
ROWS = 300


def encoder(path, name, seed):
    """A small encoder of images of 29 pixels with a space of its own, to 5 values."""
    keras.utils.set_random_seed(seed)
    made = save_encoder(path, "bilinear_antialias")
    described = json.loads((made / "model.json").read_text())
    (made / "model.json").write_text(json.dumps({**described, "name": name}))
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Encoders old and side, the transformation fct, a map back, and a gallery of their rows."""
    place = tmp_path_factory.mktemp("place")
    keras.utils.set_random_seed(0)
    spaces = {
        role: artifact.load(encoder(place / role, role, seed)).space
        for seed, role in enumerate(("old", "side"))
    }
    fct = transformation.build(DIMS["source"], DIMS["target"], DIMS["side_info"], hidden=31)
    randomize_batch_norm(fct)
    read = {"source_space": spaces["old"], "side_info_space": spaces["side"]}
    save_transformation(place / "fct", fct, side_info_model="side", **read)
    back = transformation.build(DIMS["target"], DIMS["source"], hidden=31)
    randomize_batch_norm(back)
    read = {"source_space": "c" * 64, "side_info_space": None, "target_space": spaces["old"]}
    save_transformation(place / "back", back, name="back", **read)

    rng = np.random.default_rng(0)
    source, side = rng.normal(size=(2, ROWS, 5)).astype(np.float32)
    model: keras.Model = artifact.load(place / "fct").model
    new = model({"source_embedding": source, "side_info": side}, training=False)["embedding"]
    vectors = {"old": source, "side": side, "new": new.numpy()}
    columns = [
        Column("old", 5, spaces["old"]),
        Column("side", 5, spaces["side"], kind="side_info"),
        Column("new", 6, "c" * 64, created_by={"model": "new"}),
    ]
    ids = np.array([f"row{number}" for number in range(ROWS)], object)
    labels = np.array([f"label{number % 40}" for number in range(ROWS)], object)
    table.create(str(place / "gallery.lance"), [Rows(ids, labels, vectors)], columns)
    return place


@pytest.fixture(scope="module")
def fct(place):
    return export.build(place / "fct")


def logged(version):
    """The warm-up requests of a version: (signature, input -> array)."""
    found = []
    for record in tf.data.TFRecordDataset(str(version / warmup.PATH)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        found.append((request.model_spec.signature_name, inputs))
    return found


def names(base):
    return sorted(entry.name for entry in base.iterdir() if entry.name != ".highest_version")


def test_version_of_a_transformation(place, tmp_path, run_door, capsys):
    base = tmp_path / "models" / "fct"
    gallery = place / "gallery.lance"
    arguments = [f"--model={place / 'fct'}", f"--output={base}", f"--warmup_rows={gallery}"]
    assert run_door(export_serving, *arguments) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(base / "1")]
    version = base / "1"
    assert names(base) == ["1"]
    assert names(version) == [
        *("assets", "assets.extra", "batching_params.pbtxt", "fingerprint.pb"),
        *("model.json", "saved_model.pb", "variables"),
    ]
    requests = logged(version)
    sizes = {}
    for signature, inputs in requests:
        sizes.setdefault(signature, []).append({len(value) for value in inputs.values()})
    assert sizes == {
        "serving_default": [{1}, {8}, {32}, {128}],
        "about": [{1}, {8}, {32}, {128}],
    }
    stored = table.open_gallery(gallery).read(["old", "side"]).vectors
    for _, inputs in requests[:4]:
        for name, column in (("source_embedding", "old"), ("side_info", "side")):
            rows = {row.tobytes() for row in stored[column]}
            assert {row.tobytes() for row in inputs[name]} <= rows
    described = json.loads((version / "model.json").read_text())
    loaded = artifact.load(place / "fct")
    assert described["space"] == loaded.space
    assert described["target_space"] == "c" * 64
    assert described["dims"] == {"source_embedding": 5, "side_info": 5, "embedding": 6}
    assert described["signatures"]["serving_default"] == {
        "inputs": {
            "side_info": {"dtype": "float32", "shape": [None, 5]},
            "source_embedding": {"dtype": "float32", "shape": [None, 5]},
        },
        "outputs": {"embedding": {"dtype": "float32", "shape": [None, 6]}},
    }
    assert described["warmup"]["source"] == str(gallery)
    assert described["verified"]["rows"] == 1 + 8 + 32 + 128
    assert 0 < described["verified"]["largest_row_error"] < described["verified"]["tolerance"]
    assert "saved_model.pb" in described["sha256"] and len(described["fingerprint"]) == 64


@pytest.mark.parametrize("given", [True, False])
def test_version_of_an_encoder(place, tmp_path, run_door, given):
    files = {"a.jpg": tf.io.encode_jpeg, "b.png": tf.io.encode_png}
    rng = np.random.default_rng(0)
    for name, encode in files.items():
        image = rng.integers(0, 256, (41, 37, 3), np.uint8)
        tf.io.write_file(str(tmp_path / "images" / name), encode(image))
    arguments = [f"--model={place / 'old'}", f"--output={tmp_path / 'query'}", "--batch_sizes=1,4"]
    arguments += [f"--warmup_images={tmp_path / 'images'}"] * given
    assert run_door(export_serving, *arguments) == 0
    version = tmp_path / "query" / "1"
    assert not (version / "batching_params.pbtxt").exists()
    found = logged(version)
    assert {signature for signature, _ in found} == {
        "serving_default", "encoded", "resized", "about",
    }  # fmt: skip
    encoded = [inputs["image_bytes"] for signature, inputs in found if signature == "encoded"]
    # One request of one image for each format, then batches of both.
    assert [len(contents) for contents in encoded] == [1, 1, 4]
    starts = {bytes(content[:4]) for contents in encoded for content in contents}
    assert starts == {b"\xff\xd8\xff\xe0", b"\x89PNG"}
    if given:
        stored = {(tmp_path / "images" / name).read_bytes() for name in files}
        assert {bytes(content) for contents in encoded for content in contents} == stored
    described = json.loads((version / "model.json").read_text())
    assert described["preprocessing"]["size"] == 29
    assert described["verified"]["signatures"] == ["about", "encoded", "resized", "serving_default"]
    # What a server does on loading.
    servable = Servable("query", 1, str(version))
    for signature, inputs in found:
        for output in servable.run(signature, inputs).values():
            assert len(output) == len(next(iter(inputs.values())))
    servable.close()
    # The version is a model like its artifact, and no artifact.
    assert load_any(tmp_path / "query").space == described["space"]
    assert load_any(version).space == described["space"]
    with pytest.raises(InputError, match="a SavedModel, not a model artifact"):
        artifact.load(version)


def test_maps_of_the_query_side(place, tmp_path):
    version = publish.publish(export.build(place / "back"), tmp_path / "back", batch_sizes=[2])
    loaded = saved_model.load_transformation(version)
    assert loaded.dims == {"source_embedding": 6, "embedding": 5}
    described = json.loads((tmp_path / "back" / "1" / "model.json").read_text())
    assert (described["source_space"], described["side_info_space"]) == ("c" * 64, None)
    assert (tmp_path / "back" / "1" / "batching_params.pbtxt").exists()


def off_by(served, **changes):
    """The same model, that is expected to answer something else."""

    def expected(signature, inputs):
        found = served.expected(signature, inputs)
        for name, change in changes.items():
            found[name] = change(found[name])
        return found

    return dataclasses.replace(served, expected=expected)


def in_row(row, change):
    def changed(values):
        values = values.copy()
        values[row] = change(values[row])
        return values

    return changed


@pytest.mark.parametrize(
    "change, message",
    [
        # 1, 8 and 32 rows do not have it.
        (in_row(100, lambda row: row * 1.001), "128 rows: embedding of row 100 is off by 0.001"),
        (in_row(0, lambda row: row[::-1]), "serving_default, 1 rows: embedding of row 0 is off"),
        (lambda values: values[:, :3], r"has shape \[1, 6\], not \[1, 3\]"),
    ],
)
def test_what_does_not_pass_is_not_published(fct, tmp_path, change, message):
    served = off_by(fct, embedding=change)
    with pytest.raises(InputError, match=f"not published.*{message}"):
        publish.publish(served, tmp_path / "fct")
    assert names(tmp_path / "fct") == []
    assert publish.publish(fct, tmp_path / "fct", batch_sizes=[1]) == str(tmp_path / "fct" / "1")
    # It is the verification that refuses.
    if "100" in message:
        assert publish.publish(served, tmp_path / "fct", verify=False).endswith("/2")
        assert publish.publish(served, tmp_path / "fct", tolerance=0.01).endswith("/3")


@pytest.mark.parametrize("broken", ["nan", "fails"])
def test_models_that_break_in_the_session(fct, tmp_path, broken):
    function, specs = fct.endpoints["serving_default"]

    def wrong(*inputs):
        found = function(*inputs)
        rows = found["embedding"]
        if broken == "nan":
            return {"embedding": tf.where(tf.reduce_sum(rows) > 1e9, rows, rows / 0.0 - rows / 0.0)}
        check = tf.debugging.Assert(tf.shape(rows)[0] < 8, ["too many"])
        with tf.control_dependencies([check]):
            return {"embedding": tf.identity(rows)}

    served = dataclasses.replace(fct, endpoints={"serving_default": (wrong, specs)})
    message = "row 0 is NaN" if broken == "nan" else "8 rows.*too many"
    with pytest.raises(InputError, match=f"not published: signature serving_default.*{message}"):
        publish.publish(served, tmp_path / "fct")
    assert names(tmp_path / "fct") == []


def test_versions_only_grow(fct, tmp_path, monkeypatch):
    base = tmp_path / "fct"

    def add(**settings):
        return publish.publish(fct, base, batch_sizes=[], verify=False, **settings)

    assert add() == str(base / "1")
    assert add(version=4) == str(base / "4")
    with pytest.raises(
        InputError, match="`version=3`: .*has had version 4, and versions only grow"
    ):
        add(version=3)
    # Whatever becomes of the highest one.
    shutil.rmtree(base / "4")
    with pytest.raises(InputError, match="has had version 4"):
        add(version=4)
    assert add() == str(base / "5")
    with pytest.raises(InputError, match="5: exists already"):
        add(version=5)
    before = (base / "5" / "saved_model.pb").stat().st_ino
    assert add(version=5, overwrite=True) == str(base / "5")
    assert (base / "5" / "saved_model.pb").stat().st_ino != before
    # Names that TF Serving reads as numbers are taken; others are none of ours.
    (base / "00009").mkdir()
    (base / ".tmp-11").mkdir()
    assert add() == str(base / "10")
    assert names(base) == [".tmp-11", "00009", "1", "10", "5"]
    with pytest.raises(InputError, match="2\\^63"):
        add(version=1 << 63)
    # Another process takes the number between the look and the rename.
    there, looks = publish._Disk._there, []

    def stale(store):
        found = there(store)
        looks.append(found)
        if len(looks) == 2:
            (base / "11").mkdir()
        return found

    monkeypatch.setattr(publish._Disk, "_there", stale)
    assert add() == str(base / "12")
    assert list((base / "11").iterdir()) == []


def test_old_bases_without_the_mark(fct, tmp_path):
    """Older versions have neither warm-up nor model.json, and still count and load."""
    base = tmp_path / "fct"
    publish.publish(fct, base, version=3)
    for path in ("model.json", "batching_params.pbtxt", warmup.PATH, "../.highest_version"):
        (base / "3" / path).unlink()
    assert saved_model.load_transformation(base).info["space"] == fct.info["space"]
    assert publish.publish(fct, base, batch_sizes=[1]) == str(base / "4")


def test_object_stores_get_saved_model_pb_last(fct, bucket, monkeypatch):
    base, written, write = f"{bucket}/models/fct", [], objects.write

    def noting(uri, content):
        if fails_at and uri.endswith(fails_at):
            raise InputError("connection reset")
        written.append(uri)
        write(uri, content)

    fails_at = None
    monkeypatch.setattr(objects, "write", noting)
    assert publish.publish(fct, base, batch_sizes=[1]) == f"{base}/1"
    assert written[-1] == f"{base}/1/saved_model.pb"
    assert {name.rpartition("/")[2] for name in written} >= {
        "model.json", "fct_tf.json", "variables.index", "batching_params.pbtxt",
    }  # fmt: skip
    assert saved_model.load_transformation(base).info["space"] == fct.info["space"]
    # A transfer that breaks leaves nothing that loads, and its number is not used again.
    fails_at = "model.json"
    with pytest.raises(InputError, match="fct/2: cannot be written.*no saved_model.pb, delete it"):
        publish.publish(fct, base, batch_sizes=[1])
    there = objects.listed(base)
    assert "2/assets.extra/fct_tf.json" in there and "2/saved_model.pb" not in there
    assert saved_model.locate(base).name == "1"
    fails_at = None
    assert publish.publish(fct, base, batch_sizes=[1]) == f"{base}/3"
    for version in (1, 2):
        with pytest.raises(InputError, match=f"{version}.*(exists already|versions only grow)"):
            publish.publish(fct, base, version=version, overwrite=True)


def test_bfloat16_says_what_it_costs(place, tmp_path, run_door, capsys, caplog):
    gallery = place / "gallery.lance"
    arguments = [f"--model={place / 'fct'}", f"--output={tmp_path / 'fct'}", "--dtype=bfloat16"]
    assert run_door(export_serving, *arguments, f"--warmup_rows={gallery}") == 0
    found = json.loads((tmp_path / "fct" / "1" / "model.json").read_text())["accuracy"]
    assert found["rows"] == ROWS
    assert 1e-4 < found["mean_row_error"] < found["largest_row_error"] < 0.05
    assert found["retrieval"]["query_column"] == "new"
    rows = table.open_gallery(gallery).read(["old", "side", "new"], with_labels=True)
    loaded = saved_model.load_transformation(tmp_path / "fct" / "1")
    upgraded = loaded(rows.vectors["old"], rows.vectors["side"])["embedding"]
    own = np.arange(ROWS)
    nearest, _ = exact.search(rows.vectors["new"], upgraded, 1, exclude=own)
    top_1 = np.mean(rows.labels[nearest[:, 0]] == rows.labels)
    assert found["retrieval"]["top_1"]["bfloat16"] == pytest.approx(top_1)
    assert "top-1" in caplog.text and "error of a row" in caplog.text
    # Without a gallery with the new model's rows, the error of rows alone.
    assert run_door(export_serving, *arguments) == 0
    found = json.loads((tmp_path / "fct" / "2" / "model.json").read_text())["accuracy"]
    assert found["retrieval"] is None and found["largest_row_error"] > 0


def test_bfloat16_that_costs_too_much_is_refused(place, tmp_path, monkeypatch):
    from fct_tf.serving import accuracy

    served = export.build(place / "fct", dtype="bfloat16")
    monkeypatch.setattr(accuracy, "MOST_POINTS", -200.0)

    def check(directory):
        return accuracy.measure(directory, served, str(place / "gallery.lance"))

    with pytest.raises(
        InputError, match="not published: `dtype=bfloat16` costs .* points of top-1"
    ):
        publish.publish(served, tmp_path / "fct", check=check)
    assert names(tmp_path / "fct") == []


def test_chain_is_its_parts(place, tmp_path, run_door):
    arguments = [f"--model={place / 'fct'}", f"--encoder={place / 'old'}"]
    arguments += [f"--side_info_encoder={place / 'side'}", "--batch_sizes=1,3"]
    assert run_door(export_serving, *arguments, f"--output={tmp_path / 'chain'}") == 0
    version = tmp_path / "chain" / "1"
    loaded = tf.saved_model.load(str(version))
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (4, 29, 29, 3), np.uint8)
    models = {role: artifact.load(place / role) for role in ("old", "side", "fct")}
    inputs = {
        "source_embedding": models["old"].embed(images).numpy(),
        "side_info": models["side"].embed(images).numpy(),
    }
    expected = models["fct"].model(inputs, training=False)["embedding"]
    found = loaded.signatures["serving_default"](image=tf.constant(images))["embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    files = tf.constant([tf.io.encode_png(image).numpy() for image in images])
    found = loaded.signatures["encoded"](image_bytes=files)["embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    described = json.loads((version / "model.json").read_text())
    assert described["kind"] == "chain" and not (version / "batching_params.pbtxt").exists()
    # Its space is that of the column which an upgrade makes.
    copy = tmp_path / "gallery.lance"
    shutil.copytree(place / "gallery.lance", copy)
    publish.publish(export.build(place / "fct"), tmp_path / "fct", batch_sizes=[1])
    upgraded = upgrade.Upgrade(str(copy), tmp_path / "fct", "fct").run().gallery
    assert upgraded.column("fct").space == described["space"]
    assert described["compatible_with"] == ["c" * 64]


@pytest.mark.slow
def test_chain_of_a_users_own_models(tmp_path):
    """A Keras file and a SavedModel of the user's own."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((16, 16, 3))
    own = keras.Model(
        inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    )
    own.save(tmp_path / "own.keras")
    own.export(tmp_path / "exported" / "1", verbose=False)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    mlp = transformation.build(4, 6, hidden=8)
    for name in ("own.keras", "exported"):
        space = load_any(tmp_path / name).space
        read = {"source_space": space, "side_info_space": None}
        save_transformation(tmp_path / "map", mlp, **read)
        served = chain.build(tmp_path / "map", tmp_path / name)
        version = publish.publish(served, tmp_path / f"chain_{name}", batch_sizes=[2])
        found = tf.saved_model.load(version).signatures["serving_default"](
            image=tf.constant(images)
        )
        expected = mlp({"source_embedding": own(images.astype(np.float32))})["embedding"]
        np.testing.assert_allclose(found["embedding"], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "name either --model or"),
        (["--model=fct", "--gallery=gallery.lance"], "name either --model or"),
        (["--gallery=gallery.lance"], "--gallery and --column belong together"),
        (["--gallery=gallery.lance", "--column=none"], "none"),
        (["--gallery=gallery.lance", "--column=new", "--dtype=bfloat16"], "are for --model"),
        (["--model=fct", "--encoder=old"], "also reads side-information.*--side_info_encoder"),
        (["--model=fct", "--side_info_encoder=side"], "name --encoder too"),
        (["--model=back", "--encoder=old", "--side_info_encoder=side"], "--encoder=.*of space"),
        (["--model=fct", "--encoder=side", "--side_info_encoder=side"], "--encoder=.*reads source"),
        (["--model=fct", "--encoder=fct", "--side_info_encoder=side"], "name a model of images"),
        (["--model=old", "--encoder=old"], "--encoder is for transformations"),
        (["--model=fct", "--batch_sizes=1,0"], "--batch_sizes=1,0: whole numbers"),
        (["--model=fct", "--batch_sizes=x"], "--batch_sizes=x: whole numbers"),
        (["--model=fct", "--warmup_images=old"], "a transformation takes no images"),
        (["--model=old", "--warmup_images=old"], "no JPEG or PNG"),
        (["--model=old", "--warmup_images=old/model.json"], "no JPEG or PNG"),
        (["--model=back", "--warmup_rows=other.lance"], "no gallery"),
    ],
)
def test_bad_input(place, tmp_path, run_door, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(place)
    assert run_door(export_serving, *flags, f"--output={tmp_path / 'out' / 'm'}") == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(message, line), line
    assert not (tmp_path / "out" / "m").exists() or names(tmp_path / "out" / "m") == []


def search_gallery(path, distance, kind):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 7)).astype(np.float32)
    if kind == "ties":  # Rows that are there several times, also at other lengths, and zeros.
        if distance == "l2":
            vectors = rng.integers(-1, 2, (200, 7)).astype(np.float32)
        vectors[50:90] = vectors[10]
        vectors[120:140] = 2 * vectors[10]
        vectors[150] = 0
    if kind == "far":
        vectors += 1000
    ids = np.array([f"é{number}" for number in range(len(vectors))], object)
    column = Column("e", 7, "d" * 64, distance=distance, created_by={"settings": {}})
    table.create(str(path), [Rows(ids, None, {"e": vectors})], [column])
    return vectors


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ["normal", "ties", "far"])
def test_search_in_the_model_is_exact_search(tmp_path, distance, kind):
    vectors = search_gallery(tmp_path / "g.lance", distance, kind)
    served = top_k.build(str(tmp_path / "g.lance"), "e")
    version = publish.publish(served, tmp_path / "search", batch_sizes=[1, 8])
    servable = Servable("search", 1, version)
    rng = np.random.default_rng(1)
    query = np.concatenate([vectors[::9], rng.normal(size=(5, 7)).astype(np.float32)])
    for k in (1, 30, 500):
        found = servable.run("", {"embedding": query, "k": np.array(k, np.int32)})
        rows, distances = exact.search(query, vectors, min(k, 200), distance)
        np.testing.assert_array_equal(found["rows"], rows)
        np.testing.assert_allclose(found["distances"], distances, rtol=1e-6, atol=1e-12)
        assert found["ids"][3, 0].decode() == f"é{rows[3, 0]}"
    assert servable.run("", {"embedding": query[:0], "k": np.array(2, np.int32)})["rows"].size == 0
    operations = {node.op for node in servable.meta_graph.graph_def.node}
    servable.close()
    ids = json.loads((tmp_path / "search" / "1" / "assets.extra" / "ids.json").read_text())
    assert ids[7] == "é7" and len(ids) == 200
    assert operations <= set(dir(tf.raw_ops))
    assert not (tmp_path / "search" / "1" / "batching_params.pbtxt").exists()


def test_search_is_for_small_galleries(tmp_path, monkeypatch):
    search_gallery(tmp_path / "g.lance", "l2", "normal")
    monkeypatch.setattr(top_k, "MOST_BYTES", 199 * 7 * 8)
    with pytest.raises(InputError, match="200 rows of 7.*takes 1 to 199 of them, build an index"):
        top_k.build(str(tmp_path / "g.lance"), "e")


@pytest.mark.slow
def test_rollout_on_a_server_with_the_files_that_are_made(place, tmp_path, run_door):
    """All flags and files of the deployment, on the local server: load, canary, promote, back."""
    models, output = tmp_path / "models", tmp_path / "serving"
    fct = export.build(place / "fct")
    publish.publish(fct, models / "fct", batch_sizes=[1, 4])
    step = functools.partial(run_door, serving_config, f"--models={models}", f"--output={output}")
    assert step(f"--base_path={models}") == 0
    settings = {
        name: value.replace("/config", str(output)) for name, value in configuration.FLAGS.items()
    }
    values = absl_flags.FlagValues()
    model_server.define_flags(values)
    settings |= {"port": "0", "rest_api_port": "0", "model_config_file_poll_wait_seconds": "1"}
    values(["model_server", *(f"--{name}={value}" for name, value in settings.items())])
    running = server.start(values)
    client = model_servers.Client(running.grpc.port)
    rows = {"source_embedding": np.ones((3, 5), np.float32), "side_info": np.ones((3, 5), "f")}

    def answers(label):
        response = client.predict(model_servers.request("fct", rows, label=label))
        expected = fct.expected("serving_default", rows)["embedding"]
        found = tf.make_ndarray(response.outputs["embedding"])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        return response.model_spec.version.value

    def settles(**wanted):
        for _ in range(200):
            if {label: answers(label) for label in wanted} == wanted:
                return
            time.sleep(0.05)
        raise AssertionError(f"not {wanted}")

    try:
        settles(stable=1, canary=1)
        publish.publish(fct, models / "fct", batch_sizes=[1, 4])
        assert step("--load=fct:2") == 0
        client.wait("fct", v1="AVAILABLE", v2="AVAILABLE")
        settles(stable=1, canary=1)
        for command, labels in (
            ("--canary=fct:2", {"stable": 1, "canary": 2}),
            ("--stable=fct:2", {"stable": 2, "canary": 2}),
            ("--stable=fct:1", {"stable": 1, "canary": 2}),
            ("--stable=fct:2", {"stable": 2, "canary": 2}),
        ):
            assert step(command) == 0
            settles(**labels)
        assert step("--unload=fct:1") == 0
        client.wait("fct", v1="END", v2="AVAILABLE")
        settles(stable=2, canary=2)
    finally:
        client.channel.close()
        running.stop(1)
