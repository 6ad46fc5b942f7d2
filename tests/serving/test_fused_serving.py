"""A fused search served: its signatures, behind a server, and as a query encoder of both models."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import fct_tf
from fct_tf import check_parity, embed_gallery, export_serving, upgrade_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.models import artifact, preprocess, saved_model
from fct_tf.serving import configuration
from fct_tf.serving.client import connect
from fct_tf.training.by_method import train_by_method
from fct_tf.upgrade.upgrade import Upgrade
from tests import served
from tests.serving.test_publish import logged

IMAGES, CLASSES = 48, 6


def encoder(path, name, size, dim, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(12, 3, 2, activation="relu")(inputs)
    x = keras.layers.Dense(dim)(keras.layers.GlobalAveragePooling2D()(x))
    settings = preprocess.preprocessing("imagenet", size, "bilinear_antialias")
    info = {"name": name, "distance": "l2", "preprocessing": settings}
    return artifact.load(artifact.save(path / name, keras.Model(inputs, x), "backbone", info))


class Place:
    """Images in a folder, encoders old, new, side and large, a fused search, their gallery."""

    def __init__(self, root):
        self.root = root
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
        self.ids, labels = [], []
        for number, image in enumerate(self.images):
            folder = root / "images" / "test" / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
            self.ids.append(f"test/class{number % CLASSES}/{number}.png")
            labels.append(f"class{number % CLASSES}")
        self.encoders = {
            name: encoder(root, name, size, dim, seed)
            for seed, (name, size, dim) in enumerate(
                [("old", 16, 5), ("new", 16, 7), ("side", 16, 3), ("large", 24, 7)]
            )
        }
        self.rows = {
            name: np.asarray(model.embed(self.images))
            for name, model in self.encoders.items()
            if name != "large"
        }
        columns = [
            Column(name, model.dim, model.space, created_by={"model": name})
            for name, model in self.encoders.items()
            if name != "large"
        ]
        self.gallery = str(root / "photos.lance")
        rows = Rows(np.array(self.ids, object), np.array(labels, object), self.rows)
        table.create(self.gallery, [rows], columns)
        self.fused = self.train("fused", self.gallery)
        self.model = saved_model.load_transformation(self.fused)
        self.asked = self.model.fuse(self.rows["old"], self.rows["new"])
        self.stored = self.model(self.rows["old"], self.rows["side"])["embedding"]

    def train(self, name, gallery, target="new", side_info="side"):
        return train_by_method(
            *("affine", gallery, "old", target, self.root / name),
            side_info=side_info,
            settings={"fusion": {"weight": 0.4}},
        )

    def without_new(self, path):
        """A gallery of the old model alone, before anything is re-embedded."""
        rows = table.open_gallery(self.gallery).read(["old", "side"], with_labels=True)
        columns = [table.open_gallery(self.gallery).column(name) for name in ("old", "side")]
        table.create(str(path), [rows], columns)
        return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("fused_serving"))


@pytest.fixture(scope="module")
def version(place):
    """The fused search as TF Serving's version 1, checked on rows of the gallery."""
    from fct_tf.serving.exports import export_model

    return export_model(
        place.fused,
        str(place.root / "models" / "fused"),
        batch_sizes=(1, 3),
        warmup_rows=place.gallery,
    )


@pytest.fixture(scope="module")
def query_encoder(place):
    from fct_tf.serving.exports import export_model

    return export_model(
        place.fused,
        str(place.root / "models" / "query"),
        encoder=str(place.root / "old"),
        target_encoder=str(place.root / "new"),
        batch_sizes=(1, 2),
    )


def test_all_signatures_are_published_and_warmed_up(place, version, tmp_path):
    path = place.root / "models" / "fused" / "1"
    described = json.loads((path / "model.json").read_text())
    assert described["kind"] == "fused" and (path / "batching_params.pbtxt").exists()
    assert {"serving_default", "query", "rows"} <= set(described["verified"]["signatures"])
    inputs = {
        "serving_default": {"source_embedding": "old", "side_info": "side"},
        **{
            name: {"source_embedding": "old", "target_embedding": "new"}
            for name in ("query", "rows")
        },
    }
    seen = set()
    for signature, request in logged(path):
        for name, values in request.items():
            if signature in inputs:
                seen.add((signature, len(values)))
                near = place.rows[inputs[signature][name]]
                assert all((row == near).all(axis=1).any() for row in values)
    assert seen == {(signature, size) for signature in inputs for size in (1, 3)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_gallery_without_the_new_model(place, tmp_path, run_door, dtype):
    """What it has is taken, the new model's embeddings are drawn, as many as there are rows."""
    gallery = place.without_new(tmp_path / "old.lance")
    flags = [f"--model={place.fused}", f"--warmup_rows={gallery}", f"--dtype={dtype}"]
    flags += ["--batch_sizes=2,100", f"--output={tmp_path / 'fused'}"]
    assert run_door(export_serving, *flags) == 0
    for signature, request in logged(tmp_path / "fused" / "1"):
        if "source_embedding" in request:
            source = request["source_embedding"]
            assert all((row == place.rows["old"]).all(axis=1).any() for row in source), signature
            assert {len(values) for values in request.values()} <= {2, 100}


def test_bfloat16_is_measured_by_the_fused_queries(place, tmp_path, run_door):
    flags = [f"--model={place.fused}", f"--warmup_rows={place.gallery}", "--dtype=bfloat16"]
    assert run_door(export_serving, *flags, f"--output={tmp_path / 'fused'}") == 0
    found = json.loads((tmp_path / "fused" / "1" / "model.json").read_text())["accuracy"]
    assert found["rows"] == IMAGES and 0 < found["largest_row_error"] < 0.05
    assert found["retrieval"]["query_column"] == "new"
    labels = np.arange(IMAGES) % CLASSES
    near = ((place.asked[:, None] - place.stored[None]) ** 2).sum(2)
    np.fill_diagonal(near, np.inf)
    right = np.mean(labels[near.argmin(axis=1)] == labels)
    assert found["retrieval"]["top_1"]["float32"] == pytest.approx(right, abs=1.01 / IMAGES)


def test_images_become_fused_queries(place, query_encoder):
    info = saved_model.read_info(query_encoder)
    own = place.model.info
    assert (info["kind"], info["side"], info["space"]) == ("chain", "query", own["fused_space"])
    assert info["compatible_with"] == [] and info["dims"] == {"embedding": 12}
    loaded = tf.saved_model.load(query_encoder)
    images = tf.constant(place.images[:5])
    files = tf.constant([tf.io.encode_png(image).numpy() for image in place.images[:5]])
    for signature, given in (
        ("serving_default", {"image": images}),
        ("resized", {"image": images}),
        ("encoded", {"image_bytes": files}),
    ):
        found = loaded.signatures[signature](**given)["embedding"]
        np.testing.assert_allclose(found, place.asked[:5], atol=1e-4)


def test_images_are_embedded_into_the_query_column(place, query_encoder, tmp_path, run_door):
    """By the encoder of both, the same column as of both models' columns."""
    path = str(tmp_path / "queries.lance")
    flags = [f"--gallery={path}", f"--images=folder:{place.root / 'images'}:test"]
    flags += [f"--model={query_encoder}", "--column=asked"]
    assert run_door(embed_gallery, *flags) == 0
    made = table.open_gallery(path)
    copy = shutil.copytree(place.gallery, tmp_path / "copy.lance")
    column = Upgrade(str(copy), place.fused, "asked", side="query").run().gallery.column("asked")
    found = made.column("asked")
    assert (found.space, found.kind, found.distance) == (column.space, "fused", column.distance)
    assert (found.dim, found.compatible_with) == (column.dim, ())
    np.testing.assert_allclose(
        made.take(place.ids, ["asked"]).vectors["asked"], place.asked, atol=1e-4
    )
    gallery = fct_tf.Gallery.open(str(copy))
    gallery.upgrade(place.fused, "fused")
    assert (
        gallery.evaluate("fused", path, "asked").cmc
        == gallery.evaluate("fused", query_column="asked").cmc
    )
    model = fct_tf.Model.load(query_encoder)
    assert (model.space, model.dim) == (column.space, 12)
    np.testing.assert_allclose(model.embed(place.images[:3]), place.asked[:3], atol=1e-4)


def test_the_gallery_side_behind_the_old_encoder(place, tmp_path, run_door, capsys):
    flags = [f"--model={place.fused}", f"--encoder={place.root / 'old'}", "--batch_sizes=2"]
    flags += [f"--side_info_encoder={place.root / 'side'}", f"--output={tmp_path / 'new_rows'}"]
    assert run_door(export_serving, *flags) == 0
    path = tmp_path / "new_rows" / "1"
    info = saved_model.read_info(path)
    assert info["space"] == place.model.info["fused_space"] and "side" not in info
    loaded = tf.saved_model.load(str(path)).signatures["serving_default"]
    found = loaded(image=tf.constant(place.images))["embedding"]
    np.testing.assert_allclose(found, place.stored, atol=1e-4)
    flags = [f"--gallery={tmp_path / 'g.lance'}", f"--images=folder:{place.root / 'images'}:test"]
    assert run_door(embed_gallery, *flags, f"--model={path}", "--column=x") == 2
    assert "upgrade_gallery --missing" in capsys.readouterr().err


def test_encoders_of_different_sizes(place, tmp_path):
    """They are served, each with its own resizing; into a gallery each goes by itself."""
    from fct_tf.serving.exports import export_model

    large = place.encoders["large"]
    rows = table.open_gallery(place.gallery).read(["old"], with_labels=True)
    new = fct_tf.Model.load(large.path).embed(place.images)
    train = str(tmp_path / "train.lance")
    columns = [table.open_gallery(place.gallery).column("old")]
    columns.append(Column("new", 7, large.space, created_by={"model": "large"}))
    vectors = {"old": rows.vectors["old"], "new": new}
    table.create(train, [Rows(rows.ids, rows.labels, vectors)], columns)
    work = train_by_method(
        *("affine", train, "old", "new", tmp_path / "fused"), settings={"fusion": {"weight": 0.5}}
    )
    made = export_model(
        work,
        str(tmp_path / "query"),
        encoder=str(place.root / "old"),
        target_encoder=str(large.path),
        batch_sizes=(1,),
    )
    loaded = tf.saved_model.load(made)
    assert "resized" not in loaded.signatures
    found = loaded.signatures["serving_default"](image=tf.constant(place.images))["embedding"]
    expected = saved_model.load_transformation(work).fuse(place.rows["old"], new)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(InputError, match="different sizes"):
        fct_tf.Model.load(made)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--target_encoder=new"], "--target_encoder: name --encoder too"),
        (["--encoder=old", "--target_encoder=side"], "--target_encoder=.*reads target"),
        (["--encoder=new", "--target_encoder=new"], "--encoder=.*reads source"),
        (["--encoder=old", "--target_encoder=new", "--side_info_encoder=side"], "leave out --side"),
        (["--encoder=old"], "--side_info_encoder"),
        (["--encoder=old", "--target_encoder=fused"], "name a model of images"),
    ],
)
def test_encoders_that_do_not_fit(place, tmp_path, run_door, capsys, monkeypatch, flags, told):
    monkeypatch.chdir(place.root)
    assert run_door(export_serving, "--model=fused", *flags, f"--output={tmp_path / 'm'}") == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(told, line), line


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_through_a_server_as_here(place, version, tmp_path, run_door, capsys, kind):
    paths = {}
    for name in ("here", "there"):
        paths[name] = str(tmp_path / f"{name}.lance")
        shutil.copytree(place.gallery, paths[name])
    pairs = str(tmp_path / "pairs.lance")
    opened = table.open_gallery(place.gallery)
    some = opened.take(place.ids[::5], ["new"])
    table.create(pairs, [Rows(some.ids, None, some.vectors)], [opened.column("new")])
    with served.serving(place.root / "models" / "fused") as running:
        server = [f"--server={served.address(running, kind)}"]
        for name, model in (("here", [f"--transformation={version}"]), ("there", server)):
            flags = [f"--gallery={paths[name]}", *model]
            assert run_door(upgrade_gallery, *flags, "--column=x", f"--pairs={pairs}") == 0
            assert run_door(upgrade_gallery, *flags, "--column=q", "--side=query") == 0
        # Rows that came later, of both sides.
        for path in paths.values():
            more = table.open_gallery(place.gallery).dataset.to_table()
            ids = [f"later {row}" for row in range(IMAGES)]
            more = more.set_column(
                more.schema.get_field_index("id"), more.schema.field("id"), [ids]
            )
            table.open_gallery(path).dataset.insert(more)
        for column in ("x", "q"):
            flags = [f"--gallery={paths['there']}", f"--column={column}", "--missing"]
            assert run_door(upgrade_gallery, *flags, *server) == 0
            flags[0] = f"--gallery={paths['here']}"
            assert run_door(upgrade_gallery, *flags, f"--transformation={version}") == 0
        found, local = (table.open_gallery(paths[name]) for name in ("there", "here"))
        for column in ("x", "q"):
            assert found.column(column) == local.column(column)
            rows, expected = (one.read([column]).vectors[column] for one in (found, local))
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
        with connect(served.address(running, kind)) as client:
            asked = client.fuse(place.rows["old"], place.rows["new"])
            np.testing.assert_allclose(asked, place.asked, atol=1e-5)
            stored = client.transform(place.rows["old"], place.rows["side"])["embedding"]
            np.testing.assert_allclose(stored, place.stored, atol=1e-5)
            broken = place.rows["new"].copy()
            broken[3, 0] = np.nan
            with pytest.raises(InputError, match="target_embedding: row 3"):
                client.fuse(place.rows["old"], broken)
        capsys.readouterr()
        flags = [*server, f"--model={version}", f"--gallery={place.gallery}", "--rows=20"]
        assert run_door(check_parity, *flags) == 0
        out = capsys.readouterr().out
        for signature in ("serving_default", "query", "rows"):
            assert re.search(rf"^{signature}: embedding: 20 rows.*row '(test/|first)", out, re.M), (
                out
            )


def test_a_server_without_a_fused_search_has_no_queries(place, tmp_path, run_door, capsys):
    alone = train_by_method("affine", place.gallery, "old", "new", tmp_path / "alone")
    (tmp_path / "served").mkdir()
    served.publish(alone / "saved_model", tmp_path / "served", 1)
    with served.serving(tmp_path / "served") as running:
        flags = [f"--server={served.address(running, 'grpc')}", "--side=query", "--column=q"]
        copy = shutil.copytree(place.gallery, tmp_path / "copy.lance")
        assert run_door(upgrade_gallery, f"--gallery={copy}", *flags) == 2
    assert "no fused search" in capsys.readouterr().err


def info(kind, space, **more):
    return {"kind": kind, "space": space, "compatible_with": [], **more}


FUSED = info("fused", "T", source_space="a", target_space="b", fused_space="f")


@pytest.mark.parametrize(
    ("beside", "fits"),
    [
        ({}, True),
        ({"query": info("chain", "f", side="query")}, True),
        ({"old": info("query_encoder", "a"), "new": info("query_encoder", "b")}, True),
        ({"new": info("query_encoder", "b")}, False),
        ({"old": info("query_encoder", "a")}, False),
        ({"query": info("chain", "other", side="query")}, False),
        # A chain that makes gallery rows makes no queries.
        ({"rows": info("chain", "f"), "new": info("query_encoder", "b")}, False),
    ],
)
def test_a_label_of_a_fused_search_has_what_makes_its_queries(beside, fits):
    there = {name: {1: one} for name, one in {"fused": FUSED, **beside}.items()}
    if fits:
        configuration.change({}, there, configuration.Steps())
    else:
        with pytest.raises(InputError, match="fused space f"):
            configuration.change({}, there, configuration.Steps())
        configuration.change({}, there, configuration.Steps(), allow_space_mismatch=True)
    made = configuration.texts(
        configuration.change({}, there, configuration.Steps(), allow_space_mismatch=True),
        *(there,),
        base_path="/models",
        cores=1,
        memory_gib=2,
    )
    assert any("/v1/models/fused" in text for text in made.values())


def test_in_python(place, tmp_path):
    """Fitted, upgraded on both sides, called on arrays: as the commands do."""
    fused = fct_tf.Transformation.fit(
        *(place.gallery, "old", "new", "side"), method="affine", fused=True, weight=0.4
    )
    rows = place.rows
    np.testing.assert_allclose(fused(rows["old"], rows["side"]), place.stored, atol=1e-4)
    np.testing.assert_allclose(fused.queries(rows["old"], rows["new"]), place.asked, atol=1e-4)
    copy = shutil.copytree(place.gallery, tmp_path / "copy.lance")
    gallery = fct_tf.Gallery.open(str(copy))
    planned = gallery.upgrade(fused, "asked", side="query", dry_run=True)
    assert [column.name for column in planned.reads.values()] == ["old", "new"]
    gallery.upgrade(fused, "fused").upgrade(fused, "asked", side="query", target="new")
    np.testing.assert_allclose(gallery.read("asked").vectors["asked"], place.asked, atol=1e-4)
    cut = fct_tf.Transformation.fit(
        *(place.gallery, "old", "new"), method="affine", fused=True, whiten=True, dims=4
    )
    assert cut.dims["embedding"] == 4 and cut.queries(rows["old"], rows["new"]).shape == (IMAGES, 4)
    alone = fct_tf.Transformation.fit(place.gallery, "old", "new", method="affine")
    for call, told in (
        (lambda: alone.queries(rows["old"], rows["new"]), "no fused search"),
        (lambda: fused.queries(rows["old"], rows["old"]), "target_embedding: shape"),
        (lambda: fused.queries(rows["old"][:3], rows["new"]), "different numbers of rows"),
        (lambda: fused.queries("text", rows["new"]), "`source_embedding=.*array of numbers"),
        (lambda: fused.queries(rows["old"], np.inf * rows["new"]), "target_embedding: row '0'"),
        (lambda: fused(rows["old"], np.nan * rows["side"]), "side_info: row '0'.* with NaN"),
        (lambda: fused([[1.0], [1.0, 2.0]], rows["side"]), "`source_embedding=.*array of numbers"),
        (
            lambda: fct_tf.Transformation.fit(
                *(place.gallery, "old", "new"), method="affine", fused=True, weight="half"
            ),
            "weight.*half",
        ),
        (
            lambda: fct_tf.Transformation.fit(
                *(place.gallery, "old", "new"),
                method="affine",
                fused=True,
                weight=0.3,
                choose_weight=True,
                pairs=place.gallery,
            ),
            "weight: choose_weight takes it from pairs",
        ),
        (lambda: gallery.upgrade(alone, "x", side="query"), "no fused search"),
        (lambda: gallery.upgrade(fused, "x", side="both"), "`side=both`"),
        (
            lambda: fct_tf.Transformation.fit(place.gallery, "old", "new", weight=0.3),
            "weight: is of a fused search",
        ),
    ):
        with pytest.raises(InputError, match=told):
            call()
