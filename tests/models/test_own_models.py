"""A user's own models in the commands: sizes, signatures, outputs, names, preprocessing."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import backfill_gallery, embed_gallery, sample_gallery
from fct_tf.common import flag_groups
from fct_tf.common.errors import InputError
from fct_tf.gallery import columns, table
from fct_tf.ingest import embed_images
from fct_tf.models import artifact, export, preprocess, saved_model
from fct_tf.models.load import load_any
from fct_tf.serving import publish
from tests import tiny
from tests.backfill import photos as backfill_photos

HEIGHT, WIDTH = 18, 10  # Of images of 20 x 20.
DIM = 3


def two_sided(height=HEIGHT, width=WIDTH):
    """A model that sees where things are; weights by a seed."""
    keras.utils.set_random_seed(3)
    images = keras.Input((height, width, 3))
    if height is None:
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    else:
        x = keras.layers.Flatten()(images)
    return keras.Model(images, keras.layers.Dense(DIM)(x))


def several(path, dtype=tf.float32):
    """A SavedModel of two signatures; one has two outputs and neither is called embedding."""
    model = two_sided()
    spec = tf.TensorSpec([None, HEIGHT, WIDTH, 3], dtype, "image")
    archive = keras.export.ExportArchive()
    archive.track(model)

    def two(image):
        vector = model(tf.cast(image, tf.float32))
        return {"vector": vector, "logits": 2 * vector}

    archive.add_endpoint("serving_default", two, input_signature=[spec])
    archive.add_endpoint(
        "one", lambda image: {"v": model(tf.cast(image, tf.float32))}, input_signature=[spec]
    )
    archive.add_endpoint(
        "files",
        lambda names: {"v": tf.zeros([tf.shape(names)[0], DIM])},
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    archive.write_out(str(path), verbose=False)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """images/val; model.keras and any.keras; served/1 and served/2, SavedModels; two.keras."""
    directory = tmp_path_factory.mktemp("own")
    tiny.image_folder(directory / "images")
    model = two_sided()
    model.save(directory / "model.keras")
    two_sided(None, None).save(directory / "any.keras")
    several(directory / "served" / "2")
    two_sided(16, 16).export(directory / "served" / "1", verbose=False)
    first, second = model.output, keras.layers.Rescaling(2.0)(model.output)
    keras.Model(model.input, [first, second]).save(directory / "two.keras")
    keras.Model(model.input, {"v": first}).save(directory / "named.keras")
    for version in ("3", "12"):
        (directory / "unfinished" / version).mkdir(parents=True)
    return directory


def pixels(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "name, settings, factor",
    [
        ("model.keras", {}, 1),
        ("model.keras", {"output_name": "dense"}, 1),
        ("named.keras", {}, 1),
        ("named.keras", {"output_name": "v"}, 1),
        ("two.keras", {"output_name": "rescaling"}, 2),
        ("served", {"output_name": "vector"}, 1),
        ("served/2", {"output_name": "logits"}, 2),
        ("served/2", {"signature": "one"}, 1),
        ("served", {"signature": "one", "image_size": [HEIGHT, WIDTH]}, 1),
    ],
)
def test_signatures_and_outputs(place, name, settings, factor):
    model = keras.saving.load_model(place / "model.keras")
    if "output_name" in settings and name.endswith(("two.keras", "model.keras")):
        names = keras.saving.load_model(place / name).output_names
        settings = {"output_name": names[-1]}  # They are numbered within a process.
    loaded = load_any(place / name, **settings)
    np.testing.assert_allclose(
        loaded.embed(pixels()), factor * model(pixels()), rtol=1e-4, atol=1e-3
    )
    assert loaded.preprocessing["size"] == [HEIGHT, WIDTH] and loaded.dim == DIM
    same = artifact.fingerprint(model, preprocess.preprocessing("raw", [HEIGHT, WIDTH]))
    assert (loaded.space == same) == (factor == 1)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("served", {}, "`output_name`: logits, vector"),
        (
            "served",
            {"output_name": "x"},
            "no output 'x'; choose with `output_name`: logits, vector",
        ),
        (
            "served",
            {"signature": "x"},
            "no signature x; choose one with `signature`: files, one, se",
        ),
        ("served", {"signature": "files"}, "takes files and not pixels; choose another one"),
        ("served/2", {"signature": "one", "image_size": 18}, "images of 18 x 10 pixels, not 18"),
        ("two.keras", {}, "which output is the embedding.*`output_name`: dense.*, rescaling"),
        ("two.keras", {"output_name": "x"}, "no output 'x'; choose with `output_name`: dense"),
        ("named.keras", {"output_name": "x"}, "no output 'x'; choose with `output_name`: v"),
        ("model.keras", {"signature": "one"}, "`signature=one` is for SavedModels"),
        ("any.keras", {}, "images of any size; say which with `image_size`"),
        ("any.keras", {"image_size": [0, 4]}, "image_size: must be at least 1 pixel"),
        ("any.keras", {"image_size": 2}, r"an image of 2 pixels \((?!.*(\{\{|\x1b))"),
        ("unfinished", {}, "unfinished/12: the highest version is no SavedModel"),
    ],
)
def test_what_there_is_is_listed(place, name, settings, message):
    with pytest.raises(InputError, match=message):
        load_any(place / name, **settings)


@pytest.mark.parametrize("given", ["0", "18x", "x10", "18x10x3", "big", "-1", "1.5"])
def test_sizes_that_are_none(place, given, run_door, capsys):
    assert embed(run_door, place, "x.lance", "any.keras", f"--image_size={given}") == 2
    assert f"--image_size={given}: give pixels" in capsys.readouterr().err


def test_names_of_versions(place):
    names = {
        name: load_any(place / name, **settings).name
        for name, settings in {
            "served": {"signature": "one"}, "served/1": {}, "model.keras": {},
        }.items()
    }  # fmt: skip
    assert names == {"served": "served", "served/1": "served", "model.keras": "model"}


def test_fixed_batches_are_refused(tmp_path):
    images = keras.Input((4, 4, 3), batch_size=2)
    model = keras.Model(images, keras.layers.Flatten()(images))
    model.save(tmp_path / "m.keras")
    with pytest.raises(InputError, match="takes batches of 2 only"):
        load_any(tmp_path / "m.keras")


def embed(run_door, place, gallery, model, *more, column="e"):
    return run_door(
        embed_gallery, f"--gallery={place / gallery}", f"--images=folder:{place}/images:val",
        f"--model={place / model}", f"--column={column}", *more,
    )  # fmt: skip


def by_hand(place, ids, model, height, width, scale=lambda x: x):
    """Embeddings worked out without the pipeline."""
    images = []
    for name in ids:
        image = tf.io.decode_png((place / "images" / name).read_bytes(), channels=3)
        image = tf.image.resize(tf.cast(image, tf.float32), [height, width], antialias=True)
        images.append(np.clip(np.round(image), 0, 255))
    return model(scale(np.array(images, np.float32))).numpy()


def test_pipeline_of_images_that_are_not_square(place, tmp_path, run_door):
    """Embedded, sampled and exported: height and width stay what they are."""
    assert embed(run_door, place, tmp_path / "g.lance", "any.keras", "--image_size=18x10") == 0
    gallery = table.open_gallery(tmp_path / "g.lance")
    rows, model = gallery.read(["e"]), two_sided(None, None)
    expected = by_hand(place, rows.ids, model, HEIGHT, WIDTH)
    np.testing.assert_allclose(rows.vectors["e"], expected, rtol=1e-4, atol=1e-3)
    recorded = columns.recorded_preprocessing(gallery.column("e"))
    assert recorded == preprocess.preprocessing("raw", [HEIGHT, WIDTH])
    settings = [f"--gallery={gallery.path}", f"--images=folder:{place}/images:val", "--share=0.5"]
    settings += [f"--output={tmp_path / 's.lance'}", f"--model={place / 'any.keras'}"]
    # The size is that of the same model's embeddings in the gallery.
    assert run_door(sample_gallery, *settings) == 0
    sampled = table.open_gallery(tmp_path / "s.lance").read(["e", "embedding_new"])
    np.testing.assert_allclose(
        sampled.vectors["embedding_new"], sampled.vectors["e"], rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("how", ["bilinear_antialias", "center_crop"])
def test_query_encoder_of_images_that_are_not_square(how, place, tmp_path):
    settings = preprocess.preprocessing("symmetric", [HEIGHT, WIDTH], how)
    info = {"name": "tall", "distance": "l2", "preprocessing": settings}
    path = artifact.save(tmp_path / "a", two_sided(), "backbone", info)
    loaded = artifact.load(path)
    served = publish.publish(export.build(path), tmp_path / "served") and load_any(
        tmp_path / "served"
    )
    assert (served.space, served.name) == (loaded.space, "tall")
    assert served.preprocessing == preprocess.preprocessing("raw", [HEIGHT, WIDTH], how)
    np.testing.assert_allclose(served.embed(pixels()), loaded.embed(pixels()), atol=1e-4)
    # Through the pipeline of folders and through the served model: images of another size.
    gallery = embed_images.embed_gallery(
        tmp_path / "g.lance", f"folder:{place}/images:val", str(path), "e"
    )
    rows = gallery.read(["e"])
    encoder = tf.saved_model.load(tmp_path / "served" / "1").signatures["encoded"]
    files = [(place / "images" / name).read_bytes() for name in rows.ids]
    vectors = encoder(image_bytes=tf.constant(files))["embedding"]
    np.testing.assert_allclose(rows.vectors["e"], vectors, atol=1e-4)
    with pytest.raises(InputError, match="knows its own preprocessing, signature"):
        load_any(tmp_path / "served", preprocessing="raw", signature="encoded")


@pytest.mark.parametrize("how", ["bilinear_antialias", "center_crop"])
def test_query_encoders_of_earlier_versions(how, tmp_path, monkeypatch):
    """They take images of any size alone: one that crops would crop again."""
    settings = preprocess.preprocessing("symmetric", [HEIGHT, WIDTH], how)
    info = {"name": "tall", "distance": "cosine", "preprocessing": settings}
    info["compatible_with"] = ["c" * 64]
    loaded = artifact.load(artifact.save(tmp_path / "a", two_sided(), "backbone", info))
    with monkeypatch.context() as patch:
        patch.setattr(saved_model, "RESIZED", "unknown")
        export.export_query_encoder(loaded, tmp_path / "served")
    if how == "center_crop":
        with pytest.raises(InputError, match="no signature resized.*export the artifact again"):
            load_any(tmp_path / "served")
        return
    served = load_any(tmp_path / "served")
    assert (served.distance, served.compatible_with) == ("cosine", ["c" * 64])
    vectors = loaded.embed(pixels()).numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(served.embed(pixels()), unit, atol=1e-5)


def test_center_crop_covers_both_sides():
    """Against a computation by hand: 40 x 20 pixels to 8 x 16, then 20 x 40."""
    for height, width, scaled in ((40, 20, (36, 18)), (20, 40, (9, 18)), (9, 18, (9, 18))):
        image = np.random.default_rng(0).uniform(0, 255, (1, height, width, 3)).astype(np.float32)
        whole = tf.image.resize(image, scaled, antialias=True)[0]
        top, left = (scaled[0] - 8) // 2, (scaled[1] - 16) // 2
        expected = np.clip(np.round(whole[top : top + 8, left : left + 16]), 0, 255)
        np.testing.assert_array_equal(export.resize(image, [8, 16], "center_crop")[0], expected)


DOORS = (embed_gallery, sample_gallery, backfill_gallery)


def test_every_command_describes_a_model_in_the_same_words(run_door, capsys):
    texts = []
    for door in DOORS:
        assert run_door(door, "--help") == 0
        _, _, below = capsys.readouterr().out.partition(f"\n\n{flag_groups.OWN_MODEL}\n")
        texts.append(below.partition("\n\n")[0])
    assert texts[0] == texts[1] == texts[2]
    named = set(re.findall(r"^  --(\w+):", texts[0], re.M))
    assert named == {
        *("preprocessing", "model_name", "distance", "image_size"),
        *("signature", "output_name", "resize", "orientation"),
    }


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory):
    """images/, new.keras, and a gallery upgraded to its embeddings with ImageNet's scale."""
    directory = tmp_path_factory.mktemp("upgraded")
    tiny.image_folder(directory / "images")
    two_sided(16, 16).save(directory / "new.keras")
    embed_images.embed_gallery(
        str(directory / "all.lance"), f"folder:{directory}/images:val",
        str(directory / "new.keras"), "new", preprocessing="imagenet", name="mine",
    )  # fmt: skip
    backfill_photos.make_gallery(directory, directory / "g.lance")
    return directory


def imagenet(images):
    return (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@pytest.mark.parametrize("given", ["--preprocessing=imagenet", ""])
def test_documented_pipeline_with_a_model_of_ones_own(upgraded, given, run_door, tmp_path):
    """Sampled and backfilled with what the model expects, said or as its embeddings had it."""
    common = [
        f"--gallery={upgraded}/g.lance", f"--images=folder:{upgraded}/images:val",
        f"--model={upgraded}/new.keras", "--model_name=mine", *([given] if given else []),
    ]  # fmt: skip
    assert run_door(
        sample_gallery, *common, "--rows=9", "--distance=cosine", f"--output={tmp_path}/s.lance"
    ) == 0  # fmt: skip
    sampled = table.open_gallery(tmp_path / "s.lance")
    column, known = sampled.column("embedding_new"), table.open_gallery(upgraded / "all.lance")
    assert (column.model, column.distance) == ("mine", "cosine")
    assert column.space == known.column("new").space
    rows = sampled.read(["embedding_new"])
    expected = by_hand(upgraded, rows.ids, two_sided(16, 16), 16, 16, imagenet)
    np.testing.assert_allclose(rows.vectors["embedding_new"], expected, rtol=1e-3, atol=1e-3)
    plan = [*common, "--column=x", "--budget=5", "--policy=random", f"--job_dir={tmp_path}"]
    assert run_door(backfill_gallery, *plan, "--dry_run") == 0
    assert run_door(backfill_gallery, *plan) == 0
    gallery = table.open_gallery(upgraded / "g.lance")
    done = gallery.read(["x"], fields=["x_origin"])
    backfilled = done.fields["x_origin"] == "backfilled"
    expected = by_hand(upgraded, done.ids[backfilled], two_sided(16, 16), 16, 16, imagenet)
    np.testing.assert_allclose(done.vectors["x"][backfilled], expected, rtol=1e-3, atol=1e-3)


def test_flags_without_a_model(upgraded, run_door, capsys, tmp_path):
    flags = [f"--gallery={upgraded}/g.lance", "--rows=3", f"--output={tmp_path}/s.lance"]
    assert run_door(sample_gallery, *flags, "--preprocessing=imagenet") == 2
    assert "--preprocessing: is said of --model" in capsys.readouterr().err


def test_comparing_columns_of_earlier_versions(upgraded):
    """They are told apart, and the line says why and what to do."""
    known = load_any(upgraded / "new.keras", preprocessing="imagenet")
    before, now, raw = (
        columns.Column(name, DIM, space, created_by={"model": "mine", "settings": settings})
        for name, space, settings in (
            ("before", known.earlier_space, {}),
            ("now", known.space, {"preprocessing": known.preprocessing}),
            ("raw", "f" * 64, {"preprocessing": preprocess.preprocessing("raw", 16)}),
        )
    )
    for pair in itertools.permutations((before, now)):
        with pytest.raises(
            InputError, match="`allow_space_mismatch=True`.*'before' was embedded by an e"
        ):
            columns.check_spaces(*pair)
    with pytest.raises(InputError, match="embedded with different preprocessing: mean, std"):
        columns.check_spaces(raw, now)


@pytest.mark.parametrize("model", ["new.keras", "exported"])
def test_backfilling_a_column_of_an_earlier_version(model, upgraded, run_door, capsys, tmp_path):
    """Not as if it were the same space: another rescaling inside had the same one."""
    if model == "exported":
        two_sided(16, 16).export(upgraded / "exported", verbose=False)
    space = load_any(upgraded / model, preprocessing="imagenet").earlier_space
    rows = table.open_gallery(upgraded / "all.lance").read(["new"])
    table.create(tmp_path / "all.lance", [rows], [table.Column("new", DIM, space)])
    backfill_photos.make_gallery(tmp_path, tmp_path / "g.lance")
    flags = [
        f"--gallery={tmp_path}/g.lance", f"--images=folder:{upgraded}/images:val",
        f"--model={upgraded / model}", "--column=x", "--budget=2", "--policy=random",
    ]  # fmt: skip
    assert run_door(backfill_gallery, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "an earlier version of fct_tf" in error and "--allow_space_mismatch" in error
    assert run_door(backfill_gallery, *flags, "--allow_space_mismatch") == 0
    done = table.open_gallery(tmp_path / "g.lance").read(["x"], fields=["x_origin"])
    chosen = done.fields["x_origin"] == "backfilled"
    # With the preprocessing that the earlier fingerprint names.
    expected = by_hand(upgraded, done.ids[chosen], two_sided(16, 16), 16, 16, imagenet)
    np.testing.assert_allclose(done.vectors["x"][chosen], expected, rtol=1e-3, atol=1e-3)
