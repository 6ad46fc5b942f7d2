"""The space of a model: one function, one fingerprint; another function, another one."""

import hashlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.models import artifact, export, preprocess, space, transformation
from fct_tf.models.load import load_any

SIZE = 12
RAW = preprocess.preprocessing("raw", SIZE)
SPEC = tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)


def network(
    *, scale=1 / 255, offset=0.0, normalize=False, activation="relu", strides=1, padding="valid",
    epsilon=1e-3, pool="Average", norm_last=False, skip=False, dropout=0.0,
    augment=None, flip=False,
):  # fmt: skip
    """Models whose weights have the same shapes, whatever the settings are."""
    images = keras.Input((SIZE, SIZE, 3))
    x = augment(images) if augment else images
    x = keras.ops.flip(x, axis=2) if flip else x
    x = keras.layers.Rescaling(scale, offset)(x)
    x = keras.layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    x = keras.layers.Conv2D(6, 3, strides=strides, padding=padding)(x)
    layers = [
        keras.layers.BatchNormalization(epsilon=epsilon),
        keras.layers.Activation(activation),
    ]
    for layer in reversed(layers) if norm_last else layers:
        x = layer(x)
    y = keras.layers.Conv2D(6, 3, padding="same")(x)
    x = x + y if skip else y
    x = getattr(keras.layers, f"Global{pool}Pooling2D")()(x)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.Dense(4)(x)
    x = keras.layers.UnitNormalization()(x) if normalize else x
    return keras.Model(images, x)


def with_weights(model, seed=0):
    """The same random numbers for all models of the same shapes, those of BatchNorm included."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False):
        for weight in layer._trainable_variables + layer._non_trainable_variables:
            if weight.dtype == "float32" and not isinstance(layer, keras.layers.Normalization):
                weight.assign(rng.uniform(0.1, 0.9, weight.shape) - 0.3 * (weight.ndim > 1))
    return model


@pytest.fixture(scope="module")
def model():
    return with_weights(network(dropout=0.3))


@pytest.fixture(scope="module")
def known(model):
    return artifact.fingerprint(model, RAW)


def as_keras(model, path):
    model.save(path / "m.keras")
    return path / "m.keras"


def as_h5(model, path):
    model.save(path / "m.h5")
    return path / "m.h5"


def as_trained(model, path):
    """With the state of an optimizer."""
    model = with_weights(keras.models.clone_model(model))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return as_keras(model, path)


def as_export(model, path):
    model.export(path / "m", verbose=False)
    return path / "m"


def as_second_export(model, path):
    model.export(path / "first", verbose=False)
    keras.models.clone_model(model)  # Layers' names are numbered on.
    return as_export(keras.saving.load_model(as_keras(model, path)), path)


def as_archive(model, path):
    """A dictionary of one output under another name."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", lambda x: {"v": model(x)}, input_signature=[SPEC])
    archive.write_out(path / "m", verbose=False)
    return path / "m"


def as_bytes(model, path):
    """tf.saved_model.save of a function of uint8."""
    module = tf.Module()
    module.model = model

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.uint8)])
    def encode(image):
        return {"embedding": model(tf.cast(image, tf.float32), training=False)}

    tf.saved_model.save(module, path / "m", signatures={"serving_default": encode})
    return path / "m"


def as_constants(model, path):
    """A SavedModel without variables."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2 as freeze,
    )

    call = tf.function(lambda x: {"v": model(x, training=False)}, input_signature=[SPEC])
    frozen, module = freeze(call.get_concrete_function()), tf.Module()
    module.call = tf.function(lambda x: {"v": frozen(x)[0]}, input_signature=[SPEC])
    tf.saved_model.save(module, path / "m", signatures={"serving_default": module.call})
    return path / "m"


def as_fused(model, path):
    """Batch normalisation in one operation, as Keras 2 wrote it."""

    def fused(x):
        for layer in model.layers[1:]:
            if isinstance(layer, keras.layers.BatchNormalization):
                parts = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
                parts = [tf.convert_to_tensor(part.value) for part in parts]
                x = tf.raw_ops.FusedBatchNormV3(
                    x=x, scale=parts[0], offset=parts[1], mean=parts[2], variance=parts[3],
                    epsilon=layer.epsilon, is_training=False,
                )[0]  # fmt: skip
            else:
                x = (
                    layer(x, training=False)
                    if isinstance(layer, keras.layers.Dropout)
                    else layer(x)
                )
        return {"v": x}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", fused, input_signature=[SPEC])
    archive.write_out(path / "m", verbose=False)
    return path / "m"


def as_artifact(model, path):
    info = {"name": "m", "distance": "l2", "preprocessing": RAW}
    return artifact.save(path / "m", model, "backbone", info)


def as_query_encoder(model, path):
    return export.export_query_encoder(as_artifact(model, path), path / "served" / "1")


def as_one_of_two(model, path):
    """With a classifier beside the embedding, whose weights are no part of it."""
    logits = keras.layers.Dense(5)(model.output)
    beside = keras.Model(model.input, {"embedding": model.output, "logits": logits})
    return as_keras(beside, path)


def as_export_of_two(model, path):
    return as_export(keras.saving.load_model(as_one_of_two(model, path)), path)


FORMS = [
    as_keras, as_h5, as_trained, as_export, as_second_export, as_archive, as_bytes, as_constants,
    as_fused, as_artifact, as_query_encoder, as_one_of_two, as_export_of_two,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_one_function_has_one_space(form, model, known, tmp_path):
    loaded = load_any(form(model, tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    np.testing.assert_allclose(loaded.embed(images), model(images), rtol=1e-4, atol=1e-4)
    assert loaded.space == known


OTHERS = [
    {"scale": 1 / 127.5, "offset": -1.0}, {"scale": 1 / 256}, {"normalize": True},
    {"activation": "gelu"}, {"activation": "linear"}, {"strides": 2}, {"padding": "same"},
    {"epsilon": 1e-5}, {"pool": "Max"}, {"norm_last": True}, {"skip": True}, {"flip": True},
]  # fmt: skip


def test_another_function_of_the_same_weights_is_another_space(model, known):
    spaces = {"as it is": known}
    for settings in OTHERS:
        other = with_weights(network(**settings))
        for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        spaces[str(settings)] = artifact.fingerprint(other, RAW)
    assert len(set(spaces.values())) == 1 + len(OTHERS), spaces


def test_what_does_not_compute_does_not_count(known):
    """Layers that only training knows, nesting, and names."""
    for settings in ({"dropout": 0.9}, {"augment": keras.layers.RandomFlip()}):
        assert artifact.fingerprint(with_weights(network(**settings)), RAW) == known
    inner = with_weights(network())
    nested = keras.Sequential([keras.Input((SIZE, SIZE, 3)), inner])
    assert artifact.fingerprint(nested, RAW) == known


def test_exports_of_other_functions_differ(known, tmp_path):
    other = with_weights(network(normalize=True))
    one = load_any(as_export(other, tmp_path)).space
    assert one == artifact.fingerprint(other, RAW) != known


def test_another_preprocessing_is_another_space(model, known):
    others = [
        preprocess.preprocessing("imagenet", SIZE),
        preprocess.preprocessing("raw", SIZE, "center_crop"),
    ]
    assert len({known, *(artifact.fingerprint(model, other) for other in others)}) == 3


@pytest.mark.parametrize("layer, factor", [("RandomFlip", "horizontal"), ("RandomRotation", 0.2)])
def test_random_export_is_refused(layer, factor, tmp_path):
    """Keras exports a model with its augmentation on: the same image, other vectors.

    Float64 does not run the rotation.
    """
    path = as_export(with_weights(network(augment=getattr(keras.layers, layer)(factor))), tmp_path)
    with pytest.raises(InputError, match="other vectors each time.*training=False"):
        load_any(path)


def pointwise(norm, scale, path):
    """A function with a table, which float64 does not run: known by its graph."""

    class Module(tf.Module):
        def __init__(self):
            initial = tf.lookup.KeyValueTensorInitializer(["a"], [scale])
            self.table = tf.lookup.StaticHashTable(initial, 0.0)
            self.weight = tf.Variable(tf.ones([3, 2]))

        @tf.function(input_signature=[SPEC])
        def call(self, x):
            x = tf.reduce_mean(x, [1, 2]) @ self.weight * self.table.lookup(tf.constant("a"))
            return {"embedding": tf.nn.l2_normalize(x, -1) if norm else x, "other": x}

    module = Module()
    tf.saved_model.save(module, path, signatures={"serving_default": module.call})
    return path


def test_graph_that_float64_does_not_run(tmp_path):
    one, again, other = (
        pointwise(norm, 2.0, tmp_path / name)
        for name, norm in (("a", True), ("b", True), ("c", False))
    )
    first = load_any(one).space
    assert load_any(again).space == first
    assert load_any(other).space != first
    assert load_any(one, output_name="other").space != first


def test_transformations(known):
    """Vectors instead of images; the same layers with another activation differ."""
    model = transformation.build(5, 7, 3, hidden=11)
    first = artifact.fingerprint(model, {"source_space": "a"})
    assert artifact.fingerprint(model, {"source_space": "b"}) != first

    def changed(layer):
        settings = layer.get_config()
        if settings.get("activation") == "relu":
            settings["activation"] = "gelu"
        kind = keras.layers.Activation if isinstance(layer, keras.layers.ReLU) else type(layer)
        given = {"activation": "gelu"} if kind is keras.layers.Activation else settings
        return kind.from_config(given)

    other = keras.models.clone_model(model, clone_function=changed)
    other.set_weights(model.get_weights())
    assert artifact.fingerprint(other, {"source_space": "a"}) != first


@pytest.mark.parametrize("greatest", [1.0, 255.0, 1e-6, 3e7])
def test_rounding_errors_do_not_move_a_fingerprint(greatest):
    """Round numbers, and numbers a rounding error beside them, are the same step."""
    values = greatest * np.array([1, 0.5, 1 / 128, 1 / 1024, 1 / 3, -3e-6, -0.1, 0])
    steps, scale = space.rounded([values])
    for error in np.linspace(-1e-12, 1e-12, 11) * greatest:
        others, same = space.rounded([values + error])
        assert same == scale
        np.testing.assert_array_equal(others, steps)
    assert (space.rounded([values + 1e-5 * greatest])[0][0] != steps[0]).all()


def test_probes_are_the_same_everywhere():
    """They are part of every fingerprint: a change of one is a change of all."""
    digest = space.tensors_sha256(space.image_probes(5, 9), None)
    vectors = [row for probe in space.vector_probes({"a": 3, "b": 2}) for row in probe]
    assert digest[:16] == "66581d10e00bf0cc"
    assert space.tensors_sha256(vectors, None)[:16] == "476ff38227601497"


def test_fingerprint_by_its_definition():
    """Of a dense layer on the mean colour, worked out with NumPy."""
    images = keras.Input((2, 3, 3))
    model = keras.Model(
        images, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(images))
    )
    settings = preprocess.preprocessing("raw", [2, 3])
    assert settings["size"] == [2, 3]
    kernel, bias = model.get_weights()
    outputs = [p.mean(axis=(1, 2)) @ kernel.astype("f8") + bias for p in space.image_probes(2, 3)]
    scale = 2.0 ** round(np.log2(max(np.abs(o).max() for o in outputs)))
    steps = [np.floor(o / (2e-6 * scale) + 0.2718).astype(np.int64) for o in outputs]

    def sha256(tensors, told):
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(json.dumps([list(tensor.shape), str(tensor.dtype)]).encode())
            digest.update(tensor.tobytes())
        digest.update(json.dumps(told, sort_keys=True, separators=(",", ":")).encode())
        return digest.hexdigest()

    weights = sorted(sha256([weight], None) for weight in (kernel, bias))
    expected = sha256([], [sha256(steps, [weights, scale]), settings])
    assert artifact.fingerprint(model, settings) == expected


def test_earlier_rule_is_still_known(model, tmp_path):
    """Of a Keras file its weights, of a SavedModel its bytes: what earlier columns have."""
    loaded = load_any(as_keras(model, tmp_path))
    assert loaded.earlier_space == space.tensors_sha256(model.get_weights(), RAW) != loaded.space
    exported = as_export(model, tmp_path)
    first = load_any(exported).earlier_space
    assert load_any(exported).earlier_space == first != loaded.earlier_space
    assert load_any(exported, preprocessing="imagenet").earlier_space != first
