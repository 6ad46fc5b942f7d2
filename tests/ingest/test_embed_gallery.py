"""Embedding: every image once, matched by id, the same after any interruption."""

import functools
import os
import pickle
import shutil
from types import SimpleNamespace

import cloudpickle
import lance
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from fct_tf import embed_gallery
from fct_tf.common.errors import InputError
from fct_tf.data import datasets
from fct_tf.engines.engine import local
from fct_tf.gallery import job, table
from fct_tf.ingest import embed, embed_images
from fct_tf.models import artifact, backbone, preprocess
from fct_tf.upgrade import reembed_sample
from tests import killing, tiny
from tests.scattered import Stopped, scattered, stopping


@pytest.fixture(scope="module")
def models(tmp_path_factory, images):
    """Two embedding models with random weights."""
    directory = tmp_path_factory.mktemp("models")
    paths = []
    for seed in (1, 2):
        section = tiny.experiment(images).models.new.backbone
        paths.append(directory / f"model{seed}")
        artifact.save(
            paths[-1],
            backbone.build(section, 16, seed),
            "backbone",
            {
                "name": f"model{seed}",
                "distance": "l2",
                "preprocessing": preprocess.preprocessing("symmetric", 16),
            },
        )
    return paths


def door(run_door, gallery, images, model, column, *more):
    return run_door(
        embed_gallery,
        f"--gallery={gallery}",
        f"--images=folder:{images}:val",
        f"--model={model}",
        f"--column={column}",
        "--batch_size=5",
        *more,
    )


def test_every_image_is_embedded_once(images, models, tmp_path, run_door):
    path = tmp_path / "g.lance"
    assert door(run_door, path, images, models[0], "embedding_old") == 0
    gallery = table.open_gallery(str(path))
    rows = gallery.read(["embedding_old"], with_labels=True)
    loaded = artifact.load(models[0])
    assert gallery.column("embedding_old").space == loaded.space
    assert gallery.column("embedding_old").model == "model1"
    # The same, image by image and without the pipeline.
    files = sorted((images / "val").rglob("*.png"))
    assert sorted(rows.ids) == sorted(f"val/{f.parent.name}/{f.name}" for f in files)
    others: list[np.ndarray] = []
    for file in files:
        pixels = tf.io.decode_png(file.read_bytes(), channels=3)[None]
        pixels = tf.image.resize(tf.cast(pixels, tf.float32), [16, 16], antialias=True)
        pixels = np.clip(np.round(pixels), 0, 255) / 127.5 - 1
        expected = loaded.model(pixels, training=False).numpy()[0]
        others.append(expected)
        row = list(rows.ids).index(f"val/{file.parent.name}/{file.name}")
        assert rows.labels[row] == file.parent.name
        np.testing.assert_allclose(rows.vectors["embedding_old"][row], expected, atol=1e-6)
    spread = np.std(others, axis=0)
    assert spread.max() > 1e-4, "the images must differ for this test to mean anything"


def test_second_column_is_matched_by_id(images, models, tmp_path, run_door):
    path, alone = tmp_path / "g.lance", tmp_path / "alone.lance"
    assert door(run_door, alone, images, models[1], "embedding_new") == 0
    expected = table.open_gallery(str(alone)).read(["embedding_new"])
    # A gallery in another order.
    order = np.random.default_rng(0).permutation(len(expected.ids))
    column = table.Column(name="other", dim=2, space="x")
    rows = table.Rows(expected.ids[order], None, {"other": np.zeros([len(order), 2], np.float32)})
    table.create(str(path), [rows], [column])
    assert door(run_door, path, images, models[1], "embedding_new") == 0
    found = table.open_gallery(str(path)).take(expected.ids, ["embedding_new"])
    np.testing.assert_array_equal(found.vectors["embedding_new"], expected.vectors["embedding_new"])
    assert not (tmp_path / "g.lance.jobs").exists()


def test_existing_column_is_refused_or_replaced(images, models, tmp_path, run_door, capsys):
    path = tmp_path / "g.lance"
    assert door(run_door, path, images, models[0], "embedding") == 0
    assert door(run_door, path, images, models[1], "embedding") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert door(run_door, path, images, models[1], "embedding", "--overwrite") == 0
    space = table.open_gallery(str(path)).column("embedding").space
    assert space == artifact.load(models[1]).space


def test_row_without_image_is_named(images, models, tmp_path, run_door, capsys):
    path = tmp_path / "g.lance"
    column = table.Column(name="other", dim=2, space="x")
    ids = np.array(["val/class0/gone.png"], dtype=object)
    rows = table.Rows(ids, None, {"other": np.zeros([1, 2], np.float32)})
    table.create(str(path), [rows], [column])
    assert door(run_door, path, images, models[0], "embedding") == 2
    assert "val/class0/gone.png" in capsys.readouterr().err
    assert list(table.open_gallery(str(path)).columns) == ["other"]


def test_embeddings_without_direction(images, tmp_path, run_door, capsys):
    """Of a model that knows nothing about dark images, and compares by cosine."""
    pixels = tf.keras.Input((16, 16, 3))
    layers = tf.keras.layers
    mean = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255, -0.5)(pixels))
    tf.keras.Model(pixels, layers.ReLU()(mean - 0.5)).save(tmp_path / "dark.keras")
    more = ["--model_name=dark", "--distance=cosine"]
    path = tmp_path / "g.lance"
    assert door(run_door, path, images, tmp_path / "dark.keras", "e", *more) == 2
    assert "rows with no direction" in capsys.readouterr().err and not path.exists()
    more.append("--zero_vectors=keep")
    assert door(run_door, path, images, tmp_path / "dark.keras", "e", *more) == 0
    assert not table.open_gallery(str(path)).read(["e"]).vectors["e"].any()
    assert table.verify(table.open_gallery(str(path))) == []


def test_own_keras_model(images, tmp_path, run_door):
    import keras

    inputs = keras.Input((16, 16, 3))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "own.keras")
    path = tmp_path / "g.lance"
    assert door(run_door, path, images, tmp_path / "own.keras", "own", "--model_name=mine") == 0
    column = table.open_gallery(str(path)).column("own")
    assert column.dim == 3 and column.model == "mine"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--images=folder:/nowhere"], "/nowhere"),
        (["--model=/nowhere"], "/nowhere"),
        (["--kind=secret"], "secret"),
    ],
)
def test_bad_input(images, models, tmp_path, run_door, capsys, arguments, message):
    status = door(run_door, tmp_path / "g.lance", images, models[0], "x", *arguments)
    assert status == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "g.lance").exists()


def test_a_path_that_is_no_gallery_is_seen_before_an_image_is(
    images, models, tmp_path, run_door, capsys
):
    (tmp_path / "g.lance").mkdir()
    assert door(run_door, tmp_path / "g.lance", images, models[0], "x") == 2
    assert "g.lance: no gallery (Lance dataset) here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.lance"]


def test_chunks_survive_an_exception(images, models, tmp_path, monkeypatch):
    """Embedding goes on after the last whole chunk, and embeds nothing twice."""
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    loaded = artifact.load(models[0])
    image_set = datasets.load(f"folder:{images}:val", image_size=16)
    column = table.Column(name="e", dim=8, space=loaded.space)
    seen = []

    def failing(batch):
        seen.append(len(batch))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return loaded.embed(batch)

    path = tmp_path / "g.lance"
    with pytest.raises(KeyboardInterrupt):
        embed.add_embeddings(path, image_set, failing, column, batch_size=5)
    assert not path.exists()
    embed.add_embeddings(path, image_set, failing, column, batch_size=5)
    assert seen == [5, 5, 5, 5, 5, 4]
    expected = loaded.embed(tf.stack([element["image"] for element in image_set.dataset]))
    found = table.open_gallery(str(path)).read(["e"]).vectors["e"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_staged_chunks_of_another_model_are_not_used(images, models, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    image_set = datasets.load(f"folder:{images}:val", image_size=16)
    path = tmp_path / "g.lance"
    first, second = (artifact.load(model) for model in models)
    stopped = SimpleNamespace(embed=first.embed)
    columns = [table.Column(name="e", dim=8, space=m.space) for m in (first, second)]
    with killing.interrupted(stopped, "embed", 2):
        embed.add_embeddings(path, image_set, stopped.embed, columns[0], batch_size=5)
    embed.add_embeddings(path, image_set, second.embed, columns[1], batch_size=5)
    expected = second.embed(tf.stack([element["image"] for element in image_set.dataset]))
    found = table.open_gallery(str(path)).read(["e"]).vectors["e"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_killed_between_commit_and_end(images, models, tmp_path, monkeypatch):
    """The column is there and so is its job: the repeated command finds that all is done."""
    loaded = artifact.load(models[0])
    image_set = datasets.load(f"folder:{images}:val", image_size=16)
    column = table.Column(name="e", dim=8, space=loaded.space)
    path = tmp_path / "g.lance"
    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "remove", lambda self: None)
        embed.add_embeddings(path, image_set, loaded.embed, column, batch_size=5)
    version = table.open_gallery(str(path)).version
    embed.add_embeddings(path, image_set, loaded.embed, column, batch_size=5)
    assert table.open_gallery(str(path)).version == version
    assert not (tmp_path / "g.lance.jobs").exists()
    with pytest.raises(InputError, match="`overwrite=True`"):
        embed.add_embeddings(path, image_set, loaded.embed, column, batch_size=5)


def _kill_and_compare(images, models, tmp_path, moments, seed):
    arguments = ["fct_tf.embed_gallery", f"--images=folder:{images}:val", "--batch_size=1"]
    rows = {}
    embed_images.embed_gallery(
        f"{tmp_path}/undisturbed.lance", f"folder:{images}:val", str(models[0]), "old"
    )
    table.tag(f"{tmp_path}/undisturbed.lance", "live")
    shutil.copytree(tmp_path / "undisturbed.lance", tmp_path / "killed.lance")
    command = [*arguments, f"--model={models[1]}", "--column=new"]
    killing.run([*command, f"--gallery={tmp_path}/undisturbed.lance"])
    rng = np.random.default_rng(seed)
    staging = tmp_path / "killed.lance.jobs"
    killed = 0
    for _ in range(moments):
        have = len(list(staging.rglob("*.npz")))
        target = have + int(rng.integers(0, 2))
        killed += killing.kill_when(
            [*command, f"--gallery={tmp_path}/killed.lance"],
            lambda target=target: staging.exists() and len(list(staging.rglob("*.npz"))) >= target,
            float(rng.uniform(0, 0.2)),
        )
        live = table.open_gallery(f"{tmp_path}/killed.lance@live")
        assert list(live.columns) == ["old"]
        if "new" in table.open_gallery(f"{tmp_path}/killed.lance").columns:
            break
    assert killed
    if "new" not in table.open_gallery(f"{tmp_path}/killed.lance").columns:
        killing.run([*command, f"--gallery={tmp_path}/killed.lance"])
    for name in ("undisturbed", "killed"):
        rows[name] = table.open_gallery(f"{tmp_path}/{name}.lance").read(["old", "new"])
    np.testing.assert_array_equal(rows["undisturbed"].ids, rows["killed"].ids)
    for column in ("old", "new"):
        np.testing.assert_array_equal(
            rows["undisturbed"].vectors[column], rows["killed"].vectors[column]
        )


# A quick one, stopped between chunks: test_chunks_survive_an_exception.
@pytest.mark.slow
def test_killed_embedding_continues_bitwise_ten_times(images, models, tmp_path):
    _kill_and_compare(images, models, tmp_path, moments=10, seed=1)


def _grow(path, images, model, tmp_path):
    """A gallery of 19 of the 24 images with the column, then all 24 rows, five without it."""
    alone = tmp_path / "alone.lance"
    loaded = artifact.load(model)
    image_set = datasets.load(f"folder:{images}:val", image_size=16)
    column = table.Column(name="e", dim=8, space=loaded.space, created_by={"model": "model1"})
    embed.add_embeddings(alone, image_set, loaded.embed, column, batch_size=5)
    rows = table.open(str(alone)).read(["e"], with_labels=True)
    kept = table.Rows(rows.ids[:19], rows.labels[:19], {"e": rows.vectors["e"][:19] + 100})
    table.create(str(path), [kept], [column])
    own = [lance.dataset(str(path)).schema.field(name) for name in ("id", "label")]
    late = [pa.array(list(rows.ids[19:])), pa.array(list(rows.labels[19:]))]
    lance.write_dataset(pa.Table.from_arrays(late, schema=pa.schema(own)), str(path), mode="append")
    return rows


def test_only_rows_that_came_later_are_embedded(images, models, tmp_path, run_door, caplog):
    path = tmp_path / "g.lance"
    rows = _grow(path, images, models[0], tmp_path)
    version = table.open(str(path)).version
    with caplog.at_level("INFO", logger="absl"):
        assert door(run_door, path, images, models[0], "e", "--missing") == 0
    assert "5 rows lack column 'e'" in caplog.text
    found = table.open(str(path)).take(list(rows.ids), ["e"])
    # Those that were there keep what they had, though the model gives something else by now.
    np.testing.assert_array_equal(found.vectors["e"][:19], rows.vectors["e"][:19] + 100)
    np.testing.assert_allclose(found.vectors["e"][19:], rows.vectors["e"][19:], atol=1e-5)
    assert list(found.labels) == list(rows.labels)
    assert table.open(str(path)).version == version + 1
    assert not (tmp_path / "g.lance.jobs").exists()
    with caplog.at_level("INFO", logger="absl"):
        assert door(run_door, path, images, models[0], "e", "--missing") == 0
    assert "column 'e' is complete" in caplog.text
    assert table.open(str(path)).version == version + 1


def test_missing_rows_refused(images, models, tmp_path, run_door, capsys):
    path = tmp_path / "g.lance"
    _grow(path, images, models[0], tmp_path)
    version = table.open(str(path)).version

    def refused(message, *arguments):
        assert door(run_door, path, images, *arguments, "--missing") == 2
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1]
        assert table.open(str(path)).version == version
        assert not (tmp_path / "g.lance.jobs").exists()

    refused("name the model that the column was made with", models[1], "e")
    refused("leave --missing out", models[0], "f")
    refused("does not go with --missing", models[0], "e", "--overwrite")
    own = [lance.dataset(str(path)).schema.field(name) for name in ("id", "label")]
    stranger = [pa.array(["val/class0/gone.png"]), pa.array(["class0"])]
    lance.write_dataset(
        pa.Table.from_arrays(stranger, schema=pa.schema(own)), str(path), mode="append"
    )
    version += 1
    refused("has no image 'val/class0/gone.png'", models[0], "e")


def test_missing_rows_of_a_stopped_job(images, models, tmp_path, monkeypatch):
    """What is staged is not embedded again, and a job killed after its commit is ended."""
    path = tmp_path / "g.lance"
    rows = _grow(path, images, models[0], tmp_path)
    record, calls = job.Job.record, []

    def failing(self, unit, made):
        if "ids" in made:
            calls.append(len(made["ids"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        record(self, unit, made)

    def run(**more):
        return embed_images.embed_gallery(
            str(path), f"folder:{images}:val", str(models[0]), "e", batch_size=1, missing=True,
            **more,
        )  # fmt: skip

    monkeypatch.setattr(embed, "CHUNK_BATCHES", 3)
    monkeypatch.setattr(job.Job, "record", failing)
    with pytest.raises(KeyboardInterrupt):
        run()
    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "remove", lambda self: None)
        run()
    assert calls == [3, 2, 2]
    version = table.open(str(path)).version
    assert (tmp_path / "g.lance.jobs").exists()
    run()
    assert not (tmp_path / "g.lance.jobs").exists()
    assert table.open(str(path)).version == version
    found = table.open(str(path)).take(list(rows.ids), ["e"]).vectors["e"]
    np.testing.assert_allclose(found[19:], rows.vectors["e"][19:], atol=1e-5)


def test_unreadable_images_stay_missing_where_they_are_skipped(
    images, models, tmp_path, run_door, capsys
):
    path, copy = tmp_path / "g.lance", tmp_path / "images"
    rows = _grow(path, images, models[0], tmp_path)
    shutil.copytree(images, copy)
    (copy / str(rows.ids[23])).write_bytes(b"no image")
    assert door(run_door, path, copy, models[0], "e", "--missing") == 2
    assert str(rows.ids[23]) in capsys.readouterr().err
    assert door(run_door, path, copy, models[0], "e", "--missing", "--on_bad_image=skip") == 0
    dataset = lance.dataset(str(path))
    left = dataset.to_table(columns=["id"], filter="e IS NULL")["id"].to_pylist()
    assert left == [rows.ids[23]]


def test_a_gallery_without_rows_is_refused(images, models, tmp_path, run_door, capsys):
    """Rows are matched by id: all images would be embedded for nothing."""
    path = tmp_path / "g.lance"
    table.create(str(path), [], [table.Column("other", 2, "x")])
    assert door(run_door, path, images, models[0], "e") == 2
    assert "g.lance: has no rows" in capsys.readouterr().err
    assert not (tmp_path / "g.lance.jobs").exists()


def test_an_index_is_seen_before_an_image_is(images, models, tmp_path, run_door, capsys):
    path = tmp_path / "g.lance"
    _grow(path, images, models[0], tmp_path)
    lance.dataset(str(path)).create_index("e", "IVF_FLAT", name="e_idx", num_partitions=1)
    assert door(run_door, path, images, models[1], "e", "--overwrite") == 2
    assert "'e_idx' on e (IVF_FLAT" in capsys.readouterr().err
    assert not (tmp_path / "g.lance.jobs").exists()
    assert door(run_door, path, images, models[1], "e", "--overwrite", "--drop_indices") == 0
    assert lance.dataset(str(path)).list_indices() == []


KINDS = ["artifact", "keras file", "truncated", "sample"]


def embedded(kind, path, images, models, engine=local, batch_size=5):
    """A gallery of the images with a column of the first model, made by an engine."""
    source, model, more = f"folder:{images}:val", str(models[0]), {}
    if kind == "sample":
        if not table.exists(path):
            embed_images.embed_gallery(path, source, str(models[1]), "embedding_old")
        output = path.replace(".lance", "_pairs.lance")
        more = {"rows": 13, "images": source, "model": model, "engine": engine}
        return reembed_sample.sample_gallery(path, output, **more)
    if kind == "keras file":
        model = f"{images}.keras"
        if not os.path.exists(model):
            artifact.load(models[0]).model.save(model)
        more["preprocessing"] = "symmetric"
    if kind == "truncated":
        more["match_dims"] = 5
    more |= {"batch_size": batch_size, "engine": engine}
    return embed_images.embed_gallery(path, source, model, "embedding_new", **more)


def content(gallery):
    """Ids, labels and the bits of what `embedded` made."""
    rows = gallery.read(["embedding_new"], with_labels=True)
    return list(rows.ids), list(rows.labels), rows.vectors["embedding_new"].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_any_engine_embeds_the_same(images, models, tmp_path, monkeypatch, kind):
    """By workers that know paths and settings only; one of which has begun, and another goes on."""
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    make = functools.partial(embedded, kind, images=images, models=models)
    expected = make(str(tmp_path / "a.lance"))
    found = make(str(tmp_path / "b.lance"), engine=scattered)
    assert content(found) == content(expected)
    assert found.column("embedding_new") == expected.column("embedding_new")
    with pytest.raises(Stopped):
        make(str(tmp_path / "c.lance"), engine=stopping(scattered, 0 if kind == "sample" else 1))
    assert content(make(str(tmp_path / "c.lance"))) == content(expected)
    assert not list(tmp_path.glob("*.jobs"))


def test_images_and_models_that_changed_are_not_taken_for_themselves(images, models, tmp_path):
    own = tmp_path / "images"
    shutil.copytree(images, own)
    loaded = datasets.load(f"folder:{own}:val", image_size=16, cache="none")
    pickled = cloudpickle.dumps(loaded)
    assert pickle.loads(pickled).fingerprint == loaded.fingerprint
    next((own / "val").rglob("*.png")).unlink()
    with pytest.raises(InputError, match="images have changed"):
        pickle.loads(pickled)
    work = tmp_path / "model"
    shutil.copytree(models[0], work)
    pickled = cloudpickle.dumps(artifact.load(work))
    shutil.rmtree(work)
    shutil.copytree(models[1], work)
    with pytest.raises(InputError, match="is now the model"):
        pickle.loads(pickled)
