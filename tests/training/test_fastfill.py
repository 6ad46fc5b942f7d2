"""FastFill: its losses in NumPy, one step of training worked out again, and from end to end."""

import keras
import lance
import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf import train_transformation
from fct_tf.backfill import calibration
from fct_tf.common.errors import InputError
from fct_tf.experiments import study as study_run
from fct_tf.experiments.validate import validate
from fct_tf.gallery import table
from fct_tf.models import artifact, fold, kernel, layers, preprocess, saved_model, transformation
from fct_tf.training import frozen_classifier, losses, margins, rows, task
from fct_tf.training import transformation as transformation_training
from fct_tf.upgrade import upgrade
from tests import tiny
from tests.builders import write_gallery

COUNT, CLASSES = 53, 5  # rows, a prime; classes that the classifier knows
NAMES = tuple(f"class {number}" for number in range(CLASSES))
OLD, SIDE, NEW = "old" * 8, "side" * 8, "new" * 8
FASTFILL = {"discriminative_weight": 1.0, "uncertainty": "heteroscedastic"}


# Losses --------------------------------------------------------------------------------------


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.fixture
def given():
    """Embeddings of 7 values, the classes of most of them, and a classifier."""
    rng = np.random.default_rng(0)
    return {
        "h": rng.normal(size=(11, 7)).astype(np.float32),
        "labels": np.array([0, 4, -1, 2, 1, -1, 3, 0, 0, 2, 4]),
        "classifier": rng.normal(size=(7, CLASSES)).astype(np.float32),
    }


@pytest.mark.parametrize("scale", [None, 16.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_discriminative_term(given, scale, smoothing):
    h, weights, labels = given["h"].astype(np.float64), given["classifier"], given["labels"]
    logits = h @ weights
    if scale:
        lengths = np.linalg.norm(h, axis=1)[:, None] * np.linalg.norm(weights, axis=0)
        logits = scale * logits / lengths
    wanted = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    expected = np.where(labels < 0, 0, -(wanted * log_softmax(logits)).sum(axis=1))
    frozen = tf.constant(weights)
    with tf.GradientTape() as tape:
        tape.watch(h := tf.constant(given["h"]))
        tape.watch(frozen)
        made = margins.frozen_logits(h, frozen, scale)
        found = losses.discriminative(made, labels, smoothing)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    moved, none = tape.gradient(found, [h, frozen])
    assert none is None  # The classifier is frozen.
    assert [i for i, row in enumerate(moved.numpy()) if not row.any()] == [2, 5]
    np.testing.assert_array_equal(losses.discriminative(made, np.full(11, -1)), np.zeros(11))


def test_heteroscedastic():
    loss = np.array([0.5, 2.0, 3.0, 0.0], np.float32)
    s = np.array([0.0, np.log(2), -1.0, 2.0], np.float32)
    with tf.GradientTape() as tape:
        tape.watch(l_tensor := tf.constant(loss))
        tape.watch(s_tensor := tf.constant(s))
        found = losses.heteroscedastic(l_tensor, s_tensor)
    np.testing.assert_allclose(found, 0.5 * np.exp(-s) * loss + 0.5 * s, rtol=1e-6)
    by_loss, by_s = tape.gradient(found, [l_tensor, s_tensor])
    np.testing.assert_allclose(by_loss, 0.5 * np.exp(-s), rtol=1e-6)
    np.testing.assert_allclose(by_s, 0.5 - 0.5 * np.exp(-s) * loss, rtol=1e-5, atol=1e-7)
    assert float(by_s[1]) == pytest.approx(0, abs=1e-7)  # Least where s is the log of the loss.
    half = losses.heteroscedastic(tf.constant(loss, tf.bfloat16), tf.constant(s, tf.bfloat16))
    assert half.dtype == tf.float32


# The network ---------------------------------------------------------------------------------


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_parameters_of_the_paper():
    assert count(transformation.build(128, 128, 128, log_variance=True)) == 5_712_129
    assert count(transformation.build(128, 128, log_variance=True)) == 5_712_129


NETWORKS = {
    "side_info": {"d_side": 3},
    "alone": {},
    "affine": {"affine": (np.eye(6, 4), np.ones(4))},
    "unit length": {"d_side": 3, "normalize": True},
    "bfloat16": {"d_side": 3, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_head_is_linear_in_the_embedding_also_in_bfloat16(network, tmp_path):
    """Trained, folded, exported to bfloat16, read again and corrected: one number a row."""
    settings = NETWORKS[network]
    model = transformation.build(6, 4, hidden=11, seed=2, log_variance=True, **settings)
    plain = transformation.build(6, 4, hidden=11, seed=2, **settings)
    for a, b in zip(plain.weights, model.weights, strict=False):
        np.testing.assert_array_equal(a, b)  # The head comes last and changes no other start.
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.path.endswith(("variance", "gamma")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    inputs = {"source_embedding": rng.normal(size=(13, 6)).astype(np.float32)}
    if "d_side" in settings:
        inputs["side_info"] = rng.normal(size=(13, 3)).astype(np.float32)
    weights, bias = model.get_layer("log_variance").get_weights()

    def check(outputs, embedding):
        assert list(outputs) == ["embedding", "log_variance"]
        assert outputs["log_variance"].shape == (13,)
        assert outputs["log_variance"].dtype == tf.float32
        expected = embedding.numpy().astype(np.float64) @ weights[:, 0] + bias
        np.testing.assert_allclose(outputs["log_variance"], expected, atol=1e-5)

    for training in (True, False):
        outputs = model(inputs, training=training)
        check(outputs, outputs["embedding"])
    exact = model(inputs, training=False)
    layers.plain(model).save(tmp_path / "model.keras")
    for made in (
        keras.saving.load_model(tmp_path / "model.keras"),
        *(fold.fold_batch_norm(layers.plain(model), dtype) for dtype in fold.DTYPES),
    ):
        outputs = made(inputs, training=False)
        check(outputs, outputs["embedding"])
    # A correction on top leaves it as it is: the log-variance of the map before.
    fitted = kernel.fit({**inputs, "embedding": exact["embedding"].numpy()}, np.ones((13, 4)))
    corrected = transformation.corrected(model, fitted, normalize=bool(settings.get("normalize")))(
        inputs, training=False
    )
    check(corrected, exact["embedding"])
    assert np.abs(corrected["embedding"] - exact["embedding"]).max() > 0.01


# Training ------------------------------------------------------------------------------------


def make_rows(path, count=COUNT, prefix="row", labels=None, shift=0.0, distance="l2"):
    """A gallery whose new embedding is a rotation of the old one, plus noise by its first value."""
    rng = np.random.default_rng(len(prefix))
    old, side = (rng.normal(size=(count, 8)).astype(np.float32) for _ in range(2))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    noise = rng.normal(size=(count, 8)) * np.exp(old[:, :1])
    new = (old @ rotation + 0.1 * side + 0.3 * noise + shift).astype(np.float32)
    if labels is None:
        labels = [(*NAMES, None, "unknown")[number % (CLASSES + 2)] for number in range(count)]
    vectors, spaces = {"old": old, "side": side, "new": new}, {"old": OLD, "side": SIDE, "new": NEW}
    write_gallery(path, vectors, labels, ids=prefix, spaces=spaces, distance=distance)
    return str(path)


@pytest.fixture
def trained_on(tmp_path):
    return make_rows(tmp_path / "rows.lance")


@pytest.fixture
def weights():
    return np.random.default_rng(3).normal(size=(8, CLASSES)).astype(np.float32)


@pytest.fixture
def classifier(tmp_path, weights):
    """As .npz: weights float32 [d, classes]."""
    np.savez(tmp_path / "classifier.npz", weights=weights, label_names=np.array(NAMES))
    return tmp_path / "classifier.npz"


def experiment(workdir, epochs=2, name="fct", **settings):
    config = tiny.experiment(workdir, epochs=epochs)
    config.transformations[name].update(settings)
    return config


def train(gallery, workdir, *, name="fct", epochs=2, use=None, **settings):
    """`use`: further arguments of the door."""
    config = experiment(workdir, epochs, name, **settings)
    side_info = "side" if config.transformations[name].side_info else ""
    arguments = (config, name, gallery, "old", "new", workdir)
    transformation_training.train(*arguments, side_info=side_info, **(use or {}))
    return artifact.load(workdir / "artifact")


def expected_gradients(model, batch, weights, mode, discriminative, scale):
    """The formulas again; one batch, BatchNorm in inference."""
    inputs = {"source_embedding": batch["old"], "side_info": batch["side"]}
    kernel_, bias = model.get_layer("log_variance").weights if mode != "none" else (None, None)
    with tf.GradientTape() as tape:
        h = model(inputs, training=False)["embedding"]
        value = tf.reduce_mean((h - batch["new"]) ** 2, axis=1)
        if discriminative:
            logits = h @ weights
            if scale:
                lengths = tf.norm(h, axis=1)[:, None] * np.linalg.norm(weights, axis=0)
                logits = scale * logits / lengths
            log_p = logits - tf.reduce_logsumexp(logits, axis=1, keepdims=True)
            wanted = np.eye(CLASSES, dtype=np.float32)[batch["labels"]] * 0.9 + 0.1 / CLASSES
            known = (batch["labels"] >= 0).astype(np.float32)
            value -= discriminative * known * tf.reduce_sum(wanted * log_p, axis=1)
        total = value
        if mode == "heteroscedastic":
            s = (h @ kernel_)[:, 0] + bias
            total = 0.5 * value / tf.exp(s) + 0.5 * s
        elif mode == "weighted":  # By exp(-s), which itself learns from the loss alone.
            s = tf.constant(((h @ kernel_)[:, 0] + bias).numpy())
            total = 0.5 * value / tf.exp(s)
        total = tf.reduce_mean(total)
    return tape.gradient(total, model.trainable_variables)


@pytest.mark.parametrize(
    "mode, discriminative, scale",
    [
        ("none", 0.7, None),
        ("none", 0.7, 16.0),
        ("heteroscedastic", 0.0, None),
        ("heteroscedastic", 0.7, None),
        ("heteroscedastic", 0.7, 16.0),
    ],
)
def test_one_step_of_training(tmp_path, weights, mode, discriminative, scale):
    """A step of plain gradient descent at rate 1 moves the weights by the gradient."""
    gallery = make_rows(tmp_path / "rows.lance", count=8)
    extra = {"scale": scale} if scale else {}
    names = np.array(NAMES)
    np.savez(tmp_path / "classifier.npz", weights=weights, label_names=names, **extra)
    sgd = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "l2": 0.0}
    settings = {"uncertainty": mode, "discriminative_weight": discriminative, "optimizer": sgd}
    settings |= {"train_epochs": 1, "warmup_epochs": 0, "freeze_bn_after": 0.0}
    use = {"classifier": tmp_path / "classifier.npz"} if discriminative else {}
    made = train(gallery, tmp_path / "run", use=use, **settings).model
    seed = task.loop.stage_seed(0, "transformations.fct")
    start = transformation.build(8, 8, 8, hidden=16, seed=seed, log_variance=mode != "none")
    read = table.open_gallery(gallery).read(["old", "side", "new"], with_labels=True)
    labels = np.array([NAMES.index(x) if x in NAMES else -1 for x in read.labels])
    assert sorted(set(labels)) == [-1, 0, 1, 2, 3, 4]
    batch = {**read.vectors, "labels": labels}
    wanted = expected_gradients(start, batch, weights, mode, discriminative, scale)
    for before, after, gradient in zip(
        start.trainable_variables, made.trainable_variables, wanted, strict=True
    ):
        np.testing.assert_allclose(before - after, gradient, rtol=1e-3, atol=1e-5)
    if mode == "heteroscedastic":
        # Not the plain loss weighed by exp(-s) alone: s itself pulls at the embedding.
        assert np.abs(wanted[0]).max() > 1e-3
        other = expected_gradients(start, batch, weights, "weighted", discriminative, scale)
        assert np.abs(other[0] - wanted[0]).max() > 1e-3


@pytest.mark.slow
def test_streamed_rows_give_what_rows_in_memory_give(trained_on, classifier, tmp_path):
    use = {"classifier": classifier}
    memory = train(trained_on, tmp_path / "memory", use=use, **FASTFILL).model.get_weights()
    again = train(trained_on, tmp_path / "streamed", memory_gb=0.0, use=use, **FASTFILL).model
    for a, b in zip(memory, again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_every_row_comes_with_its_own_class(trained_on, classifier, tmp_path, memory_gb):
    """With pairs of a second table, whose classes follow the first's."""
    pairs = make_rows(tmp_path / "pairs.lance", 23, "pair", ["class 3"] * 20 + [None] * 3)
    galleries = [table.open_gallery(path) for path in (trained_on, pairs)]
    columns = {"source_embedding": galleries[0].column("old"), "target": galleries[0].column("new")}
    frozen = frozen_classifier.open_classifier(classifier, columns["target"])
    numbers = frozen.numbers(galleries)
    assert numbers.dtype == np.int32 and len(numbers) == COUNT + 23
    everything = [gallery.read(["old"], with_labels=True) for gallery in galleries]
    labels = np.concatenate([part.labels for part in everything])
    vectors = np.concatenate([part.vectors["old"] for part in everything])
    section = schema.transformation(batch_size=10)
    section.update(pairs={"share": 0.2, "method": "rows", "batch_share": 0.3})
    read = rows.with_labels(rows.reader(galleries, columns, memory_gb, []), numbers)
    pair_rows = np.arange(COUNT, COUNT + 23)
    batches_of = rows.epoch_batches(read, section, COUNT, pair_rows, 2, seed=0)
    whole = list(batches_of(1, 0))
    assert len(whole) == 2
    for batch in whole:
        own = (vectors[None] == batch["source_embedding"].numpy()[:, None]).all(axis=2)
        row = own.argmax(axis=1)
        assert all(r >= COUNT for r in row[7:]) and max(row[:7]) < COUNT
        expected = [NAMES.index(labels[r]) if labels[r] in NAMES else -1 for r in row]
        np.testing.assert_array_equal(batch["label"], expected)
    for name, values in next(iter(batches_of(1, 1))).items():
        np.testing.assert_array_equal(values, whole[1][name])


@pytest.mark.slow
def test_two_devices_train_as_one(trained_on, classifier, two_devices, tmp_path):
    made = []
    for strategy, devices in (("one_device", 0), ("mirrored", 2)):
        config = experiment(tmp_path, dtype="float64", **FASTFILL)
        config.training.strategy, config.training.devices = strategy, devices
        config.training.deterministic = False
        arguments = (config, "fct", trained_on, "old", "new", tmp_path / strategy)
        transformation_training.train(*arguments, side_info="side", classifier=classifier)
        made.append(artifact.load(tmp_path / strategy / "artifact").model.get_weights())
    for one, two in zip(*made, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_all_together_in_bfloat16(classifier, tmp_path):
    """Unit length, bfloat16, an affine start, pairs as rows."""
    gallery = make_rows(tmp_path / "rows.lance", distance="cosine")
    pairs = make_rows(tmp_path / "pairs.lance", 23, "pair", [None] * 23, distance="cosine")
    settings = {**FASTFILL, "affine_init": True, "dtype": "bfloat16", "epochs": 6}
    settings |= {"pairs": {"share": 0.2, "method": "rows"}}
    use = {"classifier": classifier, "pairs": pairs}
    train(gallery, tmp_path / "run", use=use, **settings)
    vectors = table.open_gallery(gallery).read(["old", "side"]).vectors
    served = saved_model.load_transformation(tmp_path / "run")(vectors["old"], vectors["side"])
    assert served["log_variance"].shape == (COUNT,) and np.isfinite(served["log_variance"]).all()


def test_from_training_to_the_gallery(trained_on, weights, tmp_path):
    """The artifact's classifier, a correction on top, the SavedModel, the upgraded columns."""
    new = save_new_model(tmp_path / "new", weights)
    pairs = make_rows(tmp_path / "pairs.lance", 11, shift=1.0)  # Some of the gallery's rows.
    config = experiment(tmp_path, epochs=12, **FASTFILL)
    config.transformations.fct.optimizer.learning_rate = 1e-2
    config.training.steps_per_call = 6
    corrected = schema.transformation(batch_size=8)
    corrected.update(base="fct", pairs={"share": 0.2})
    config.transformations.corrected = corrected
    columns = (trained_on, "old", "new")
    arguments = {"side_info": "side"}
    base = tmp_path / "fastfill"
    transformation_training.train(config, "fct", *columns, base, classifier=new, **arguments)
    arguments |= {"pairs": pairs, "base": base}
    transformation_training.train(
        config, "corrected", *columns, tmp_path / "corrected", **arguments
    )
    vectors = table.open_gallery(trained_on).read(["old", "side"]).vectors
    model = saved_model.load_transformation(tmp_path / "corrected")
    before, after = (
        saved_model.load_transformation(tmp_path / name)(vectors["old"], vectors["side"])
        for name in ("fastfill", "corrected")
    )
    assert model.has_log_variance and before["log_variance"].shape == (COUNT,)
    np.testing.assert_allclose(after["log_variance"], before["log_variance"], atol=1e-4)
    assert np.abs(after["embedding"] - before["embedding"]).max() > 0.1
    upgraded = upgrade.Upgrade(trained_on, base, "x", pairs=pairs).run().gallery
    read = upgraded.read(["x", "new"], fields=["x_origin", "x_log_variance"])
    filled = read.fields["x_origin"] == "backfilled"
    assert filled.sum() == 11
    np.testing.assert_array_equal(np.isnan(read.fields["x_log_variance"]), filled)
    stored = lance.dataset(trained_on).to_table(columns=["x_log_variance"])[0]
    assert stored.null_count == 11
    np.testing.assert_allclose(
        read.fields["x_log_variance"][~filled], before["log_variance"][~filled], atol=1e-4
    )
    measured = calibration.of_rows(read, "x", "new", bins=3)
    assert measured is not None
    assert measured["num_rows"] == COUNT - 11
    assert measured["spearman"] > 0.3  # The first old value tells how noisy the new one is.


def save_new_model(path, weights, names=NAMES, scale=None, space=True):
    """An artifact whose space the column `new` is in (`space`), or is not."""
    image = keras.Input((4, 4, 3))
    network = keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(image))
    info = {
        "name": "new",
        "distance": "l2",
        "preprocessing": preprocess.preprocessing("raw", 4),
        "classifier_scale": scale,
    }
    classifier = None if weights is None else (weights, names)
    artifact.save(path, keras.Model(image, network), "backbone", info, classifier)
    if space:
        record = artifact.read_json(path / "model.json")
        artifact.write_json(path / "model.json", {**record, "space": NEW})
    return path


# Classifiers ---------------------------------------------------------------------------------


def test_a_classifier_is_the_same_from_every_file(trained_on, weights, tmp_path):
    target = table.open_gallery(trained_on).column("new")
    np.save(tmp_path / "new.npy", weights.T)
    (tmp_path / "labels.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8-sig")
    np.savez(tmp_path / "new.npz", weights=weights, label_names=np.array(NAMES))
    as_bytes = np.array([name.encode() for name in NAMES])
    np.savez(tmp_path / "bytes.npz", weights=weights, label_names=as_bytes)
    new = save_new_model(tmp_path / "new", weights)
    labels = str(tmp_path / "labels.txt")
    made = [
        frozen_classifier.open_classifier(tmp_path / "new.npy", target, labels),
        *(
            frozen_classifier.open_classifier(path, target)
            for path in (tmp_path / "new.npz", tmp_path / "bytes.npz", new, new / "classifier.npz")
        ),
    ]
    for one in made:
        np.testing.assert_array_equal(one.weights, weights)
        assert one.label_names == NAMES and one.scale is None
    assert len({one.fingerprint for one in made}) == 1
    angles = save_new_model(tmp_path / "angles", weights, scale=30.0)
    for path in (angles, angles / "classifier.npz"):
        other = frozen_classifier.open_classifier(path, target)
        assert other.scale == 30.0 and other.fingerprint != made[0].fingerprint


BROKEN = {
    "nothing": ({}, "nothing`: no such artifact or file"),
    "folder": ({}, "not a model artifact"),
    "text.txt": ({}, "not an artifact directory, .npz or .npy file"),
    "torn.npz": ({}, "torn.npz: cannot be read"),
    "empty.npz": ({"label_names": NAMES}, "has no array 'weights'"),
    "wide.npz": ({"weights": np.ones((9, 5)), "label_names": NAMES}, "of 9 values.*'new' has 8"),
    "few.npz": ({"weights": np.ones((8, 4)), "label_names": NAMES}, "4 classes and 5 label names"),
    "twice.npz": ({"weights": np.ones((8, 2)), "label_names": ["a", "a"]}, "'a' names two classes"),
    "nan.npz": ({"weights": np.full((8, 1), np.nan), "label_names": ["a"]}, "NaN.*'a'"),
    "whole.npz": ({"weights": np.ones((8, 1), int), "label_names": ["a"]}, "int64"),
    "scale.npz": ({"weights": np.ones((8, 1)), "label_names": ["a"], "scale": -1.0}, "scale -1.0"),
    "other.npz": ({"weights": np.ones((8, 1)), "label_names": ["A"]}, "such as 'class 0'.*'A'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_classifier_that_does_not_fit_is_named(trained_on, tmp_path, name):
    arrays, message = BROKEN[name]
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    if arrays:
        np.savez(tmp_path / name, **{key: np.array(value) for key, value in arrays.items()})
    with pytest.raises(InputError, match=message):
        train(trained_on, tmp_path / "run", use={"classifier": tmp_path / name}, **FASTFILL)
    assert not (tmp_path / "run").exists()


def test_artifacts_that_do_not_fit_are_named(trained_on, weights, tmp_path):
    target = table.open_gallery(trained_on).column("new")
    other = save_new_model(tmp_path / "other", weights, space=False)
    with pytest.raises(InputError, match=f"space [0-9a-f]+ .*'new' of {NEW}"):
        frozen_classifier.open_classifier(other, target)
    bare = save_new_model(tmp_path / "bare", None)
    with pytest.raises(InputError, match="has no classifier"):
        frozen_classifier.open_classifier(bare, target)


def test_label_files(trained_on, weights, tmp_path):
    target = table.open_gallery(trained_on).column("new")
    np.save(tmp_path / "c.npy", weights.T)
    np.save(tmp_path / "flat.npy", weights[0])
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    for path, labels, message in (
        ("c.npy", "", "`classifier_labels`: .*name a text file"),
        ("c.npy", tmp_path / "four.txt", "5 classes and 4 label names"),
        ("c.npy", tmp_path / "none.txt", "none.txt`: no such file"),
        ("flat.npy", tmp_path / "four.txt", r"not an array of float32 \[classes, d\]"),
    ):
        with pytest.raises(InputError, match=message):
            frozen_classifier.open_classifier(tmp_path / path, target, labels)
    np.savez(tmp_path / "c.npz", weights=weights, label_names=np.array(NAMES))
    with pytest.raises(InputError, match="`classifier_labels`: .*leave it out"):
        frozen_classifier.open_classifier(tmp_path / "c.npz", target, tmp_path / "four.txt")


def test_rows_without_any_label(weights, classifier, tmp_path):
    gallery = make_rows(tmp_path / "rows.lance", labels=[None] * COUNT)
    with pytest.raises(InputError, match="its rows have no label, the classifier"):
        train(gallery, tmp_path / "run", use={"classifier": classifier}, **FASTFILL)


def test_door(trained_on, weights, tmp_path, run_door, capsys):
    """The classifier as a user with vectors from elsewhere has it; flags that contradict."""
    np.save(tmp_path / "new.npy", weights.T)
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    arguments = [
        f"--config={tiny.experiment_file(tmp_path / 'e.py', tmp_path, epochs=1)}",
        *("--name=fct", f"--gallery={trained_on}", "--source=old", "--side_info=side"),
        *("--target=new", f"--workdir={tmp_path}/run"),
    ]
    flags = [f"--classifier={tmp_path}/new.npy", f"--classifier_labels={tmp_path}/labels.txt"]
    weight = ["--config.transformations.fct.discriminative_weight=1.0"]
    for given, message in (
        (weight, "discriminative_weight is 1.0: name it with --classifier"),
        (flags, "discriminative_weight is 0.0: leave --classifier out"),
        (flags[1:], "--classifier_labels: is of a --classifier, and none is named"),
    ):
        assert run_door(train_transformation, *arguments, *given) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("error: ") and message in told
    assert not (tmp_path / "run").exists()
    assert run_door(train_transformation, *arguments, *weight, *flags) == 0
    assert "log_variance" not in artifact.load(tmp_path / "run" / "artifact").model.output


# Settings ------------------------------------------------------------------------------------


def test_a_run_is_recognised_by_its_classifier_and_labels_too(trained_on, classifier, tmp_path):
    config = experiment(tmp_path)
    arguments = (config, "fct", trained_on, "old", "new")
    opened = task.open_task(*arguments, side_info="side")
    recorded = opened.settings()
    assert set(recorded) == {"transformation", "spaces", "rows", "seed"}
    config.transformations.fct.update(FASTFILL)
    recorded = task.open_task(*arguments, side_info="side", classifier=classifier).settings()
    assert set(recorded) == {"transformation", "spaces", "rows", "seed", "classifier", "labels"}
    assert {key: recorded["transformation"][key] for key in FASTFILL} == FASTFILL
    # Other labels are another training.
    other = make_rows(tmp_path / "other.lance", labels=["class 1"] * COUNT)
    again = task.open_task(
        config, "fct", other, *arguments[3:], side_info="side", classifier=classifier
    )
    assert {k for k, v in again.settings().items() if v != recorded[k]} == {"labels"}


def test_sections_of_an_experiment(tmp_path):
    config = tiny.experiment(tmp_path)
    config.transformations = schema.transformations(fastfill=True, pairs_share=0.2, batch_size=8)
    validate(config)
    for name in ("fastfill", "fastfill_no_side_info"):
        section = config.transformations[name]
        assert section.side_info == (name == "fastfill") and section.batch_size == 8
        assert {key: section[key] for key in FASTFILL} == FASTFILL
    assert config.transformations.fct.uncertainty == "none"
    assert "fastfill" not in schema.transformations()
    # A correction of FastFill's map has nothing of its own to train.
    section = schema.transformation()
    section.update(base="fastfill", pairs={"share": 0.2})
    config.transformations.fastfill_pairs = section
    validate(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"uncertainty": "both"}, "uncertainty: 'both' is not one of none, heteroscedastic"),
        ({"discriminative_weight": -1.0}, "discriminative_weight: -1.0 is below 0"),
        ({"label_smoothing": 1.5}, "label_smoothing: 1.5 is not in 0..1"),
        ({"map": "affine", "uncertainty": "heteroscedastic"}, "uncertainty: with map affine no"),
        ({"map": "affine", "discriminative_weight": 1.0}, "discriminative_weight: with map affine"),
        (
            {"base": "fct_no_side_info", "uncertainty": "heteroscedastic"},
            "uncertainty: with base fct_no_side_info",
        ),
    ],
)
def test_settings_that_contradict_themselves(tmp_path, changes, message):
    config = experiment(tmp_path)
    config.transformations.fct.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=f"^transformations.fct.{message}"):
        validate(config)


@pytest.mark.slow
def test_a_study_takes_the_classifier_of_the_new_model(images, tmp_path):
    config = tiny.experiment(images, epochs=1)
    for name in ("fct", "fct_no_side_info"):
        del config.transformations[name]
    config.transformations.fastfill = schema.fastfill_transformation(
        train_epochs=1, warmup_epochs=1, batch_size=8
    )
    config.transformations.fastfill.hidden = 16
    records = study_run.study(config, tmp_path / "run")
    assert "new/T(old) fastfill" in [record["case"] for record in records]
    rows_ = tmp_path / "run" / "seed_0" / "rows" / "gallery" / "gallery.lance"
    gallery = table.open_gallery(str(rows_))
    found = gallery.read([], fields=["embedding_fastfill_log_variance"]).fields
    assert np.isfinite(found["embedding_fastfill_log_variance"]).all()
    assert study_run.study(config, tmp_path / "run") == records
