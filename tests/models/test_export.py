"""Exported SavedModels: signatures, equality with the Keras model, folding, versions."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import export_serving
from fct_tf.common.errors import InputError
from fct_tf.models import artifact, export, fold, preprocess, saved_model, transformation

D_SOURCE, D_SIDE, D_TARGET = 13, 7, 11


def randomize_batch_norm(model: keras.Model, seed: int = 0) -> None:
    """Statistics and scales as after a training: a fresh BatchNorm is close to the identity."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))


def save_transformation(path, model, **info):
    known = {
        "name": "fct",
        "distance": "l2",
        "source_space": "a" * 64,
        "side_info_space": "b" * 64,
        "target_space": "c" * 64,
        "source_model": "old",
        "target_model": "new",
    }
    return artifact.save(path, model, "transformation", {**known, **info}, overwrite=True)


@pytest.fixture(scope="module")
def transformation_artifact(tmp_path_factory):
    model = transformation.build(D_SOURCE, D_TARGET, D_SIDE, hidden=31)
    randomize_batch_norm(model)
    return save_transformation(tmp_path_factory.mktemp("fct") / "artifact", model)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(17, D_SOURCE)).astype(np.float32)
    side = rng.normal(size=(17, D_SIDE)).astype(np.float32)
    return source, side


def signature_of(path, name="serving_default"):
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures[name]
    signature.loaded = loaded
    return signature


def described(specs):
    return {name: (spec.dtype, spec.shape.as_list()) for name, spec in specs.items()}


def keras_embedding(path, source, side=None):
    inputs = {"source_embedding": source} | ({} if side is None else {"side_info": side})
    return artifact.load(path).model(inputs, training=False)["embedding"].numpy()


def test_transformation_signature(transformation_artifact, rows, tmp_path):
    path = export.export_transformation(transformation_artifact, tmp_path / "saved_model")
    signature = signature_of(path)
    assert described(signature.structured_input_signature[1]) == {
        "source_embedding": (tf.float32, [None, D_SOURCE]),
        "side_info": (tf.float32, [None, D_SIDE]),
    }
    assert described(signature.structured_outputs) == {"embedding": (tf.float32, [None, D_TARGET])}
    got = signature(source_embedding=tf.constant(rows[0]), side_info=tf.constant(rows[1]))
    expected = keras_embedding(transformation_artifact, *rows)
    np.testing.assert_allclose(got["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize("where", [0, 1])
def test_a_broken_row_comes_out_broken_and_alone(transformation_artifact, rows, tmp_path, where):
    """ReLU would make a plausible embedding of NaN; behind a server nobody would notice."""
    path = export.export_transformation(transformation_artifact, tmp_path / "saved_model")
    given = [np.array(part) for part in rows]
    given[where][1, 2], given[where][3, 0] = np.nan, np.inf
    got = signature_of(path)(
        source_embedding=tf.constant(given[0]), side_info=tf.constant(given[1])
    )["embedding"].numpy()
    expected = keras_embedding(transformation_artifact, *rows)
    broken = np.isin(np.arange(len(got)), [1, 3])
    assert np.isnan(got[broken]).all()
    np.testing.assert_allclose(got[~broken], expected[~broken], atol=1e-5)


def test_signature_definition_in_the_proto(transformation_artifact, tmp_path):
    """What TF Serving shows, not only Python's view of it."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = export.export_transformation(transformation_artifact, tmp_path / "saved_model")
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (graph,) = proto.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    definition = graph.signature_def["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert sorted(definition.inputs) == ["side_info", "source_embedding"]
    assert sorted(definition.outputs) == ["embedding"]


@pytest.mark.parametrize(
    "settings",
    [{"fold_batch_norm": False}, {"dtype": "bfloat16"}],
    ids=["batch_norm_kept", "bfloat16"],
)
def test_other_settings(transformation_artifact, rows, tmp_path, settings):
    path = export.export_transformation(transformation_artifact, tmp_path / "s", **settings)
    got = saved_model.load_transformation(path)(*rows)["embedding"]
    assert got.dtype == np.float32
    # bfloat16 keeps 8 bits of a number.
    tolerance = 0.05 if "dtype" in settings else 1e-5
    expected = keras_embedding(transformation_artifact, *rows)
    np.testing.assert_allclose(got, expected, atol=tolerance)
    assert ("dtype" in settings) == (np.abs(got - expected).max() > 1e-5)


def test_without_side_information(rows, tmp_path):
    model = transformation.build(D_SOURCE, D_TARGET, hidden=31)
    randomize_batch_norm(model)
    made = save_transformation(tmp_path / "artifact", model, side_info_space=None)
    path = export.export_transformation(made, tmp_path / "saved_model")
    assert list(signature_of(path).structured_input_signature[1]) == ["source_embedding"]
    loaded = saved_model.load_transformation(path)
    assert loaded.dims == {"source_embedding": D_SOURCE, "embedding": D_TARGET}
    got = loaded(rows[0])["embedding"]
    np.testing.assert_allclose(got, keras_embedding(made, rows[0]), atol=1e-5)


def test_log_variance_is_one_number_per_row(rows, tmp_path):
    base = transformation.build(D_SOURCE, D_TARGET, D_SIDE, hidden=31)
    randomize_batch_norm(base)
    embedding = base.output["embedding"]
    log_variance = keras.layers.Dense(1, name="log_variance")(embedding)
    model = keras.Model(base.input, {"embedding": embedding, "log_variance": log_variance})
    made = save_transformation(tmp_path / "artifact", model)
    path = export.export_transformation(made, tmp_path / "saved_model")
    assert described(signature_of(path).structured_outputs) == {
        "embedding": (tf.float32, [None, D_TARGET]),
        "log_variance": (tf.float32, [None]),
    }
    loaded = saved_model.load_transformation(path)
    assert loaded.has_log_variance
    got = loaded(*rows)
    kernel, bias = (weight.numpy() for weight in model.get_layer("log_variance").weights)
    expected = (got["embedding"] @ kernel + bias)[:, 0]
    np.testing.assert_allclose(got["log_variance"], expected, atol=1e-5)


def test_cosine_target_space_is_normalised(rows, tmp_path):
    model = transformation.build(D_SOURCE, D_TARGET, D_SIDE, hidden=31)
    made = save_transformation(tmp_path / "artifact", model, distance="cosine")
    path = export.export_transformation(made, tmp_path / "saved_model")
    got = saved_model.load_transformation(path)(*rows)["embedding"]
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    raw = keras_embedding(made, *rows)
    np.testing.assert_allclose(got * np.linalg.norm(raw, axis=1, keepdims=True), raw, atol=1e-5)


def test_description(transformation_artifact, tmp_path):
    path = export.export_transformation(transformation_artifact, tmp_path / "saved_model")
    info = json.loads((path / "assets.extra" / "fct_tf.json").read_text())
    assert info["kind"] == "transformation"
    assert info["space"] == artifact.load(transformation_artifact).space
    assert [info[f"{role}_space"][0] for role in ("source", "side_info", "target")] == list("abc")
    assert (info["source_model"], info["target_model"]) == ("old", "new")
    assert info["dims"] == {"source_embedding": 13, "side_info": 7, "embedding": 11}
    assert info["distance"] == "l2"


def test_each_weight_is_written_once(transformation_artifact, tmp_path):
    path = export.export_transformation(transformation_artifact, tmp_path / "saved_model")
    shapes = [
        tuple(shape)
        for name, shape in tf.train.list_variables(str(path / "variables" / "variables"))
        if "VARIABLE_VALUE" in name
    ]
    # Seven dense layers, each a kernel and a bias; no BatchNorm is left.
    assert len(shapes) == 14
    assert sum(shape == (D_SOURCE, 2 * D_SOURCE) for shape in shapes) == 1


def numpy_forward(layers, x):
    for layer in layers:
        if isinstance(layer, keras.layers.Dense):
            x = x @ layer.kernel.numpy() + (layer.bias.numpy() if layer.use_bias else 0)
        elif isinstance(layer, keras.layers.BatchNormalization):
            scale = layer.gamma.numpy() if layer.scale else 1
            offset = layer.beta.numpy() if layer.center else 0
            deviation = np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
            x = scale * (x - layer.moving_mean.numpy()) / deviation + offset
        else:
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folding_against_numpy(use_bias, affine):
    stack = [
        keras.layers.Dense(9, use_bias=use_bias, bias_initializer="normal"),
        keras.layers.BatchNormalization(scale=affine, center=affine),
        keras.layers.ReLU(),
        keras.layers.Dense(3),
    ]
    inputs = keras.Input((5,))
    outputs = inputs
    for layer in stack:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    randomize_batch_norm(model)
    x = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    folded = fold.fold_batch_norm(model)
    assert not any(isinstance(la, keras.layers.BatchNormalization) for la in folded.layers)
    np.testing.assert_allclose(folded(x), numpy_forward(stack, x), atol=1e-5)
    np.testing.assert_allclose(model(x, training=False), numpy_forward(stack, x), atol=1e-5)


def test_what_cannot_be_folded_is_left(rows):
    inputs = keras.Input((D_SOURCE,))
    read_twice = keras.layers.Dense(6)(inputs)
    activated = keras.layers.Dense(6, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(read_twice)
    x = keras.layers.Add()([x, read_twice, keras.layers.BatchNormalization()(activated)])
    inner_inputs = keras.Input((6,))
    inner_x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inner_inputs))
    inner = keras.Model(inner_inputs, inner_x)
    randomize_batch_norm(inner, seed=2)
    model = keras.Model(inputs, inner(x))
    randomize_batch_norm(model)
    folded = fold.fold_batch_norm(model)
    left = [la for la in folded.layers if isinstance(la, keras.layers.BatchNormalization)]
    assert len(left) == 2  # of the outer model; the nested one's is folded
    nested = folded.get_layer(inner.name)
    assert not any(isinstance(la, keras.layers.BatchNormalization) for la in nested.layers)
    np.testing.assert_allclose(folded(rows[0]), model(rows[0], training=False), atol=1e-5)


def save_encoder(path, how):
    """A small convolutional network for images of 29 pixels."""
    inputs = keras.Input((29, 29, 3))
    x = keras.layers.Conv2D(4, 3, 2, use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(5, 3, 2)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    randomize_batch_norm(model)
    settings = preprocess.preprocessing("imagenet", 29, how)
    info = {"name": "new", "distance": "l2", "preprocessing": settings}
    return artifact.save(path, model, "backbone", info)


@pytest.fixture(scope="module")
def encoder_artifact(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("new") / "artifact", "bilinear_antialias")


@pytest.mark.parametrize("how", ["bilinear_antialias", "center_crop"])
def test_encoder_signatures_and_pipeline(how, tmp_path):
    """Images of several sizes give what the data pipeline and the Keras model give."""
    from fct_tf.data import datasets

    rng = np.random.default_rng(0)
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    files = {
        "a.png": tf.io.encode_png(rng.integers(0, 256, (29, 29, 3), np.uint8)),
        "b.jpg": tf.io.encode_jpeg(rng.integers(0, 256, (47, 31, 3), np.uint8)),
        "c.png": tf.io.encode_png(rng.integers(0, 256, (37, 61, 1), np.uint8)),
        "d.jpg": tf.io.encode_jpeg(rng.integers(0, 256, (19, 23, 1), np.uint8)),
    }
    for name, encoded in files.items():
        tf.io.write_file(str(folder / name), encoded)
    loaded = artifact.load(save_encoder(tmp_path / "artifact", how))
    images = datasets.load(f"folder:{tmp_path / 'images'}", image_size=29, resize=how)
    (batch,) = datasets.eval_batches(images, 16)
    expected = loaded.embed(batch["image"]).numpy()

    path = export.export_query_encoder(loaded, tmp_path / "saved_model")
    encoded = signature_of(path, "encoded")
    assert described(encoded.structured_input_signature[1]) == {"image_bytes": (tf.string, [None])}
    assert described(encoded.structured_outputs) == {"embedding": (tf.float32, [None, 5])}
    got = encoded(image_bytes=tf.stack(list(files.values())))["embedding"]
    np.testing.assert_allclose(got, expected, atol=1e-5)

    pixels = signature_of(path)
    assert described(pixels.structured_input_signature[1]) == {
        "image": (tf.uint8, [None, None, None, 3])
    }
    for row, content in enumerate(files.values()):
        image = tf.io.decode_image(content, channels=3)[None]
        got = pixels(image=tf.repeat(image, 2, axis=0))["embedding"]
        np.testing.assert_allclose(got, expected[[row, row]], atol=1e-5)
    info = saved_model.read_info(path)
    assert (info["kind"], info["target_space"]) == ("query_encoder", loaded.space)


def test_door_numbers_versions(transformation_artifact, run_door, tmp_path, capsys):
    output = tmp_path / "models" / "fct"
    arguments = [f"--model={transformation_artifact}", f"--output={output}"]
    assert run_door(export_serving, *arguments) == 0
    assert run_door(export_serving, *arguments) == 0
    assert capsys.readouterr().out.split() == [str(output / "1"), str(output / "2")]
    assert run_door(export_serving, *arguments, "--version=7") == 0
    assert saved_model.versions_in(output) == [1, 2, 7]
    assert saved_model.locate(output) == output / "7"
    capsys.readouterr()
    assert run_door(export_serving, *arguments, "--version=7") == 2
    assert "7: exists already" in capsys.readouterr().err
    before = (output / "7" / "saved_model.pb").stat().st_mtime_ns
    assert run_door(export_serving, *arguments, "--version=7", "--overwrite") == 0
    assert (output / "7" / "saved_model.pb").stat().st_mtime_ns > before
    assert run_door(export_serving, *arguments, "--version=-1") == 2
    # Nothing but versions: TF Serving looks at every name in here, and takes numbers.
    names = sorted(entry.name for entry in output.iterdir())
    assert [name for name in names if name != ".highest_version"] == ["1", "2", "7"]


def test_bad_input(transformation_artifact, encoder_artifact, run_door, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    assert run_door(export_serving, f"--model={tmp_path / 'none'}", output) == 2
    assert "none: not a model artifact" in capsys.readouterr().err
    arguments = [f"--model={encoder_artifact}", output, "--dtype=bfloat16"]
    assert run_door(export_serving, *arguments) == 2
    assert "for transformations only" in capsys.readouterr().err
    with pytest.raises(InputError, match="backbone artifact, expected transformation"):
        export.export_transformation(encoder_artifact, tmp_path / "out")
    with pytest.raises(InputError, match="transformation artifact, expected backbone"):
        export.export_query_encoder(transformation_artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_locate_and_load_refuse_what_is_no_transformation(
    transformation_artifact, encoder_artifact, tmp_path
):
    with pytest.raises(InputError, match="no such directory"):
        saved_model.locate(tmp_path / "none")
    with pytest.raises(InputError, match="no SavedModel here"):
        saved_model.locate(tmp_path)
    with pytest.raises(InputError, match="artifact without a SavedModel.*export_serving"):
        saved_model.locate(transformation_artifact)
    good = export.export_transformation(transformation_artifact, tmp_path / "run" / "saved_model")
    assert saved_model.locate(tmp_path / "run") == good
    encoder = export.export_query_encoder(encoder_artifact, tmp_path / "encoder")
    with pytest.raises(InputError, match="'query_encoder', a transformation is needed"):
        saved_model.load_transformation(encoder)

    broken = tmp_path / "broken"
    shutil.copytree(good, broken)
    (broken / "saved_model.pb").write_bytes(b"no proto")
    with pytest.raises(InputError, match="broken: cannot be loaded"):
        saved_model.load_transformation(broken)
    shutil.rmtree(broken)
    shutil.copytree(good, broken)
    shutil.rmtree(broken / "variables")
    with pytest.raises(InputError, match="broken: cannot be loaded"):
        saved_model.load_transformation(broken)
    info = saved_model.read_info(good)
    (good / saved_model.INFO).write_text(json.dumps({**info, "format": 2}))
    with pytest.raises(InputError, match="newer fct_tf"):
        saved_model.load_transformation(good)
    (good / saved_model.INFO).write_text('{"format": 1}')
    with pytest.raises(InputError, match="not a description"):
        saved_model.load_transformation(good)
    (good / saved_model.INFO).unlink()
    with pytest.raises(InputError, match="spaces are unknown"):
        saved_model.load_transformation(good)
