"""Embedding networks against a second implementation in NumPy, and their settings."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.models import backbone, layers, preprocess
from tests import replicas


def settings(**changes):
    defaults = {"name": "resnet18", "embedding_dim": 7, "width": 0.125}
    if changes.get("name", "").startswith("keras_cv:"):
        defaults["width"] = 1.0  # These have only their own.
    return SimpleNamespace(**{**defaults, **changes})


def randomize(model, seed=0):
    """Weights away from their initial zeros and ones, BatchNorm's statistics too."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith("variance"):
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
        elif not weight.path.endswith("kernel"):
            weight.assign(rng.normal(1.0, 0.3, weight.shape))


def trainable_count(*parts):
    return sum(int(np.prod(v.shape)) for part in parts for v in part.trainable_variables)


# --- a second implementation: PyTorch's padding, written with sliding windows ----------------


def np_windows(x, size, stride):
    before = size // 2
    x = np.pad(x, ((0, 0), (before, before), (before, before), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return windows[:, ::stride, ::stride]  # [n, h, w, channels, size, size]


class NumPyResNet:
    def __init__(self, model, epsilon=1e-5):
        self.layers = {layer.name: layer for layer in model.layers}
        self.epsilon = epsilon

    def conv(self, x, name, stride=1, relu=False):
        kernel = self.layers[name].kernel.numpy()
        x = np.einsum("nhwcij,ijco->nhwo", np_windows(x, kernel.shape[0], stride), kernel)
        bn = self.layers[f"{name}_bn"]
        gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in bn.weights)
        x = (x - mean) / np.sqrt(variance + self.epsilon) * gamma + beta
        return np.maximum(x, 0) if relu else x

    def __call__(self, x, counts, convolutions):
        x = self.conv(np.asarray(x, np.float64), "stem", 2, relu=True)
        x = np_windows(x, 3, 2).max(axis=(-2, -1))
        strided = 1 if convolutions == 2 else 2  # the 3x3 convolution
        for stage, count in enumerate(counts, 1):
            for block in range(1, count + 1):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and block == 1 else 1
                y = x
                for i in range(1, convolutions + 1):
                    step = stride if i == strided else 1
                    y = self.conv(y, f"{name}_conv{i}", step, relu=i < convolutions)
                if f"{name}_shortcut" in self.layers:
                    x = self.conv(x, f"{name}_shortcut", stride)
                x = np.maximum(x + y, 0)
        return x.mean(axis=(1, 2))


@pytest.mark.parametrize("size", [32, 37, 43])
@pytest.mark.parametrize(
    "name, counts, convolutions", [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)]
)
def test_forward_pass_equals_numpy(name, counts, convolutions, size):
    model = backbone.build(settings(name=name), size)
    randomize(model)
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
    embeddings = model(images, training=False).numpy()
    assert embeddings.dtype == np.float32 and embeddings.shape == (3, 7)
    expected = NumPyResNet(model)(images, counts, convolutions)
    np.testing.assert_allclose(embeddings, expected, rtol=2e-4, atol=2e-4 * expected.std())


def test_parameters_of_resnet18():
    """7.38 M with the 964-way classifier of the reference run, counted by hand."""
    bn = 2  # scale and offset, per channel
    count = 7 * 7 * 3 * 64 + bn * 64
    previous = 64
    for width in (64, 128, 256, 512):
        for block in (1, 2):
            out = 128 if (width, block) == (512, 2) else width
            count += 9 * previous * out + 9 * out * out + 2 * bn * out
            if previous != out:
                count += previous * out + bn * out
            previous = out
    count += 128 * 964
    assert count == 7_382_848
    model = backbone.build(settings(embedding_dim=128, width=1.0), 32)
    assert trainable_count(model, backbone.classifier(964, 128)) == count


def test_widths_of_the_last_block():
    model = backbone.build(settings(name="resnet50", embedding_dim=24, width=1.0), 32)
    filters = {layer.name: getattr(layer, "filters", None) for layer in model.layers}
    assert [filters[f"stage4_block3_conv{i}"] for i in (1, 2, 3)] == [512, 512, 24]
    assert filters["stage4_block3_shortcut"] == 24 and filters["stage4_block2_conv3"] == 2048
    assert filters["stage1_block1_shortcut"] == 256  # no stride there, but 64 channels become 256
    model = backbone.build(settings(embedding_dim=24), 32)
    filters = {layer.name: getattr(layer, "filters", None) for layer in model.layers}
    assert [filters[f"stage4_block2_conv{i}"] for i in (1, 2)] == [24, 24]
    same = backbone.build(settings(embedding_dim=64), 32)  # as wide as its input: no projection
    assert "stage4_block2_shortcut" not in {layer.name for layer in same.layers}
    assert "stage1_block1_shortcut" not in {layer.name for layer in same.layers}


def test_stem_3x3_keeps_the_resolution():
    model = backbone.build(settings(stem="3x3"), 32)
    assert model.get_layer("stage1_block1_add").output.shape[1:3] == (32, 32)
    model = backbone.build(settings(), 32)
    assert model.get_layer("stage1_block1_add").output.shape[1:3] == (8, 8)


def test_seed_decides_the_weights():
    first, second, other = (backbone.build(settings(), 32, seed=s) for s in (3, 3, 4))
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    kernels = [w.numpy() for w in first.weights if w.path.endswith("kernel")]
    others = [w.numpy() for w in other.weights if w.path.endswith("kernel")]
    assert not any(np.array_equal(a, b) for a, b in zip(kernels, others, strict=True))
    starts = {k.ravel()[:4].tobytes() for k in kernels}
    assert len(starts) == len(kernels)  # no two layers draw the same numbers


def test_initial_weights_are_those_of_pytorch():
    """Uniform in +-1/sqrt(fan_in)."""
    kernel = backbone.classifier(1001, 400, seed=1).kernel.numpy()
    assert kernel.shape == (400, 1001)
    assert kernel.std() == pytest.approx(np.sqrt(1 / (3 * 400)), rel=0.01)
    assert 0.99 / 20 < np.abs(kernel).max() <= 1 / 20


def test_classifier_has_no_bias():
    classifier = backbone.classifier(5, 3)
    np.testing.assert_array_equal(classifier(tf.zeros([2, 3])).numpy(), np.zeros((2, 5)))
    assert len(classifier.weights) == 1


def test_normalize():
    model = backbone.build(settings(normalize=True), 32)
    embeddings = model(tf.random.stateless_normal([5, 32, 32, 3], [0, 1])).numpy()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


def test_bfloat16_keeps_float32_variables_and_embeddings():
    full = backbone.build(settings(), 32)
    half = backbone.build(settings(dtype="bfloat16"), 32)
    assert {w.dtype for w in half.weights} == {"float32"}
    images = tf.random.stateless_normal([5, 32, 32, 3], [0, 1])
    expected, embeddings = full(images).numpy(), half(images)
    assert embeddings.dtype == tf.float32
    error = np.abs(embeddings.numpy() - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "resnet19"}, "backbone.name: unknown network 'resnet19'"),
        ({"name": "keras_cv:resnet19"}, "backbone.name: unknown network 'keras_cv:resnet19'"),
        ({"stem": "5x5"}, "backbone.stem: '5x5' is not one of 7x7, 3x3"),
        ({"dtype": "float16"}, "dtype: 'float16' is not one of"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        backbone.build(settings(**changes), 32)


# --- Convolutions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, kernel, stride, padding, dense",
    [
        ((1, 1), 3, 1, "same", True),
        ((1, 1), 1, 1, "same", True),
        ((2, 2), 3, 1, "same", True),
        ((2, 2), 5, 1, "same", True),
        ((2, 2), 3, 2, "same", True),
        ((1, 2), 3, 1, "same", True),
        ((3, 3), 3, 2, "valid", True),  # What a padded image of 2x2 is.
        ((7, 7), 7, 1, "valid", True),
        ((1, 4), 3, 1, "same", False),  # Some of the dense matrix would be zero.
        ((2, 2), 1, 2, "valid", False),
        ((3, 3), 3, 1, "same", False),
        ((8, 8), 3, 1, "same", False),
    ],
)
@pytest.mark.parametrize("use_bias", [False, True])
def test_convolutions_of_small_images_equal_keras(size, kernel, stride, padding, dense, use_bias):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(5, *size, 3)))
    results, settings = [], {"strides": stride, "padding": padding, "use_bias": use_bias}
    layer = layers.SmallImageConv2D(4, kernel, **settings, activation="relu", dtype="float64")
    plain = keras.layers.Conv2D.from_config(layer.get_config())
    for each in (layer, plain):
        each.build(images.shape)
    for variable, same in zip(layer.weights, plain.weights, strict=True):
        variable.assign(rng.normal(size=variable.shape))
        same.assign(variable)
    for each in (layer, plain):

        @tf.function
        def run(each=each):
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = each(images)
                loss = tf.reduce_sum(outputs * tf.sin(outputs))
            weights = [w.value for w in each.trainable_variables]
            return [outputs, *tape.gradient(loss, [images, *weights])]

        results.append(run())
        kinds = {operation.type for operation in run.get_concrete_function().graph.get_operations()}
        assert ("Conv2D" in kinds) == (each is plain or not dense)
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_convolutions_of_small_images_keep_the_dtype(dtype):
    layer = layers.SmallImageConv2D(4, 3, padding="same", dtype=dtype)
    images = tf.random.stateless_normal([5, 1, 1, 3], [0, 1])
    plain = keras.layers.Conv2D(4, 3, padding="same", dtype=dtype)
    plain.build(images.shape)
    found = layer(images)
    plain.set_weights(layer.get_weights())
    assert found.dtype == plain.compute_dtype
    expected = tf.cast(plain(images), tf.float32)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, rtol=tolerance, atol=tolerance)


# --- BatchNorm --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 5, 3, 4), (31, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_fused_batch_norm_equals_keras(shape, training):
    x = tf.random.stateless_normal(shape, [1, 2], mean=2.0, stddev=3.0)
    weights = tf.random.stateless_normal(shape, [3, 4])
    pair = [
        kind(momentum=0.9, epsilon=1e-5)
        for kind in (layers.FusedBatchNormalization, keras.layers.BatchNormalization)
    ]
    results = []
    for layer in pair:
        layer.build(shape)
        randomize(layer)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(weights * y**2)
        gradients = tape.gradient(loss, [x, *layer.trainable_variables])
        results.append((y, *gradients, *(w.numpy() for w in layer.non_trainable_weights)))
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=2e-4, atol=2e-4)


def test_fused_batch_norm_in_the_plain_copy():
    model = backbone.build(settings(), 32)
    randomize(model)
    copy = layers.plain(model)
    kinds = {type(layer) for layer in copy.layers}
    ours = {layers.FusedBatchNormalization, layers.SmallImageConv2D}
    assert not ours & kinds
    assert ours <= {type(layer) for layer in model.layers}
    images = tf.random.stateless_normal([3, 32, 32, 3], [0, 1])
    np.testing.assert_allclose(copy(images), model(images), rtol=1e-5, atol=1e-5)


def test_frozen_batch_norm_still_trains_its_affine_part():
    layer = layers.FusedBatchNormalization()
    layer.build((None, 3))
    before = [w.numpy() for w in layer.non_trainable_weights]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.random.stateless_normal([9, 3], [0, 1]), training=False) ** 2)
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert all(np.abs(g.numpy()).min() > 0 for g in gradients)
    for a, b in zip(before, layer.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.slow
def test_sync_batch_norm_over_two_replicas(two_devices):
    """Statistics over both halves of a batch are those of the whole."""
    strategy = replicas.strategy()
    images = tf.random.stateless_normal([10, 32, 32, 3], [0, 1])
    with strategy.scope():
        synced = backbone.build(settings(sync_batch_norm=True), 32, seed=1)
        local = backbone.build(settings(), 32, seed=1)
    kinds = {type(layer) for layer in synced.layers}
    assert layers.FusedBatchNormalization not in kinds
    halves = replicas.split(images)

    def embed(model):
        @tf.function
        def run(x):
            return strategy.run(lambda x: model(x, training=True), args=(x,))

        return np.concatenate(strategy.experimental_local_results(run(halves)))

    whole = backbone.build(settings(), 32, seed=1)
    expected = whole(images, training=True).numpy()
    np.testing.assert_allclose(embed(synced), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(embed(local) - expected).max() > 1e-2
    for a, b in zip(synced.weights, whole.weights, strict=True):
        if a.path.endswith("moving_mean"):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-5)


# --- keras-cv ---------------------------------------------------------------------------------

KERAS_CV = {
    # Parameters of the network alone, as keras-cv documents them; of the MobileNets, whose
    # documentation is behind, as keras.applications has them.
    "resnet18": 11_186_112,
    "resnet50_v2": 23_564_800,
    "efficientnetv2_b3": 12_930_622,
    "mobilenet_v3_large": 2_996_352,
}


def check_keras_cv(name, parameters):
    config = settings(name=f"keras_cv:{name}", embedding_dim=11)
    model = backbone.build(config, 64, seed=2)
    dense = model.get_layer("dense")
    assert model.count_params() - dense.count_params() == parameters
    images = tf.random.stateless_normal([2, 64, 64, 3], [0, 1])
    embeddings = model(images, training=False)
    assert embeddings.shape == (2, 11) and embeddings.dtype == tf.float32
    again = backbone.build(config, 64, seed=2)
    np.testing.assert_allclose(again(images, training=False), embeddings, rtol=1e-5, atol=1e-6)


def test_keras_cv_networks_have_their_own_width_and_stem():
    for own in ({"width": 0.5}, {"stem": "3x3"}):
        with pytest.raises(InputError, match="has only its own"):
            backbone.build(settings(name="keras_cv:resnet18_v2", **own), 32)


def test_keras_cv_network():
    check_keras_cv("mobilenet_v3_small", 939_120)


def test_keras_cv_network_takes_the_settings_and_bfloat16():
    config = settings(
        name="keras_cv:resnet18_v2", bn_momentum=0.7, dtype="bfloat16", normalize=True
    )
    model = backbone.build(config, 32)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms and {(x.momentum, x.epsilon) for x in norms} == {(0.7, 1e-5)}
    assert {w.dtype for w in model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    embeddings = model(tf.zeros([2, 32, 32, 3])).numpy()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    kernel = model.get_layer("conv1_conv").kernel.numpy()
    assert 0.9 < np.abs(kernel).max() * np.sqrt(7 * 7 * 3) <= 1  # PyTorch's bound


@pytest.mark.slow
@pytest.mark.parametrize("name, parameters", KERAS_CV.items())
def test_other_keras_cv_networks(name, parameters):
    check_keras_cv(name, parameters)


# --- preprocessing ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_preprocessing(dtype):
    values = np.array([0, 51, 127, 204, 255], np.float64)
    images = np.broadcast_to(values[:, None, None, None], (5, 2, 2, 3)).astype(dtype)
    for name, mean, std in (
        ("symmetric", 0.5, 0.5),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ):
        given = preprocess.preprocessing(name, 2)
        expected = (values[:, None] / 255 - mean) / std
        pixels = preprocess.apply(images, given).numpy()
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels[:, 0, 0], expected * np.ones(3), rtol=1e-5, atol=1e-6)
    raw = preprocess.apply(images, preprocess.preprocessing("raw", 2)).numpy()
    np.testing.assert_array_equal(raw[:, 0, 0, 0], values)
    with pytest.raises(InputError, match="preprocess: 'imagnet' is not one of"):
        preprocess.preprocessing("imagnet", 2)
