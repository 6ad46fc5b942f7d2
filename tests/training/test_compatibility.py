"""Compatibility terms: each against NumPy written another way, and trained in a small network."""

import json

import numpy as np
import pytest
import tensorflow as tf

from fct_tf import config as schema
from fct_tf import train_backbone
from fct_tf.common.errors import InputError
from fct_tf.data import datasets
from fct_tf.experiments.validate import training_order, validate
from fct_tf.gallery import table
from fct_tf.ingest import embed_images
from fct_tf.models import artifact, backbone, preprocess
from fct_tf.training import backbone as backbone_training
from fct_tf.training import compatibility, old_model
from tests import killing, replicas, tiny

N, D, OLD = 11, 6, 4  # examples, old dimensions, old classes


@pytest.fixture
def given():
    """New and old embeddings, an old classifier, labels of 6 classes; of these 4 are old."""
    rng = np.random.default_rng(0)
    return {
        "new": rng.normal(size=(N, D)).astype(np.float32),
        "old": rng.normal(size=(N, D)).astype(np.float32),
        "classifier": rng.normal(size=(D, OLD)).astype(np.float32),
        "labels": np.arange(N) % 6,
        "old_labels": np.array([2, -1, 0, 3, -1, 1])[np.arange(N) % 6],
    }


def log_probabilities(vector, classifier, scale=None, temperature=1.0):
    """log softmax of one embedding under a classifier, float64, class by class."""
    logits = []
    for weights in classifier.astype(np.float64).T:
        logit = float(np.dot(vector.astype(np.float64), weights))
        if scale is not None:
            logit *= scale / (np.linalg.norm(vector) * np.linalg.norm(weights))
        logits.append(logit / temperature)
    return np.array(logits) - np.logaddexp.reduce(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [None, 16.0])
def test_influence_averages_over_the_samples_that_it_applies_to(given, smoothing, scale):
    expected = {}
    for i, label in enumerate(given["old_labels"]):
        if label >= 0:
            log_p = log_probabilities(given["new"][i], given["classifier"], scale)
            expected[i] = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
    found = compatibility.bct(
        given["new"], given["old_labels"], given["classifier"], smoothing=smoothing, scale=scale
    )
    assert found.dtype == tf.float32
    assert {i for i in range(N) if found[i] != 0} == set(expected)
    np.testing.assert_allclose(np.sum(found) / N, np.mean([*expected.values()]), rtol=1e-5)
    none = compatibility.bct(given["new"], np.full(N, -1), given["classifier"])
    np.testing.assert_array_equal(none, np.zeros(N))


@pytest.mark.parametrize("scale", [None, 16.0])
def test_distillation_is_for_unseen_classes_alone(given, scale):
    found = compatibility.bct(
        given["new"], given["old_labels"], given["classifier"], given["old"], scale=scale
    )
    for i, label in enumerate(given["old_labels"]):
        if label >= 0:
            expected = -log_probabilities(given["new"][i], given["classifier"], scale)[label]
        else:
            teacher = np.exp(log_probabilities(given["old"][i], given["classifier"], scale, 2.0))
            student = log_probabilities(given["new"][i], given["classifier"], scale, 2.0)
            expected = -np.dot(teacher, student)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)


def test_distillation_is_least_at_the_old_embedding(given):
    old = tf.constant(given["old"])
    with tf.GradientTape() as tape:
        tape.watch(old)
        same = compatibility.distillation(old, tf.identity(given["old"]), given["classifier"])
    np.testing.assert_allclose(tape.gradient(same, old), np.zeros((N, D)), atol=1e-6)


def test_triplet(given):
    found = compatibility.triplet(given["new"], given["old"], given["labels"], 1.0)
    for i in range(N):
        others = np.flatnonzero(given["labels"] != given["labels"][i])
        nearest = min(np.linalg.norm(given["new"][i] - given["old"][j]) for j in others)
        positive = np.linalg.norm(given["new"][i] - given["old"][i])
        np.testing.assert_allclose(found[i], max(0, positive - nearest + 1), rtol=1e-4, atol=1e-5)
    assert np.any(found.numpy() > 0)


def test_triplet_without_negatives_or_at_distance_zero(given):
    old = tf.constant(given["old"])
    np.testing.assert_array_equal(compatibility.triplet(old, old, np.zeros(N, int)), np.zeros(N))
    with tf.GradientTape() as tape:
        tape.watch(old)
        loss = compatibility.triplet(old, given["old"], given["labels"], 10.0)
    assert np.isfinite(tape.gradient(loss, old).numpy()).all()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrastive(given, temperature):
    found = compatibility.contrastive(given["new"], given["old"], given["labels"], temperature)

    def cosine(i, j):
        new, old = given["new"][i].astype(np.float64), given["old"][j].astype(np.float64)
        return new @ old / np.sqrt((new @ new) * (old @ old)) / temperature

    for i in range(N):
        total = np.logaddexp.reduce([cosine(i, k) for k in range(N)])
        own = [total - cosine(i, p) for p in range(N) if given["labels"][p] == given["labels"][i]]
        np.testing.assert_allclose(found[i], np.mean(own), rtol=1e-4)


LOSSES = {
    "leave_out": lambda new, g: compatibility.bct(new, g["old_labels"], g["classifier"], scale=9.0),
    "distil": lambda new, g: compatibility.bct(new, g["old_labels"], g["classifier"], g["old"]),
    "triplet": lambda new, g: compatibility.triplet(new, g["old"], g["labels"]),
    "contrastive": lambda new, g: compatibility.contrastive(new, g["old"], g["labels"]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_flow_to_the_new_model_alone(given, name):
    given = {key: tf.constant(value) for key, value in given.items()}
    watched = [given["new"], given["old"], given["classifier"]]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        loss = tf.reduce_sum(LOSSES[name](given["new"], given))
    new, *old_side = tape.gradient(loss, watched)
    assert np.isfinite(new).all() and np.abs(new).max() > 0
    assert old_side == [None, None]


@pytest.mark.parametrize("name", LOSSES)
def test_two_replicas_equal_one(given, two_devices, name):
    """The known classes are spread unevenly: the mean is over both replicas' samples."""
    order = np.argsort(given["old_labels"], kind="stable")[:10]
    given = {k: v if k == "classifier" else v[order] for k, v in given.items()}

    def loss_and_gradient(batch):
        with tf.GradientTape() as tape:
            tape.watch(batch["new"])
            loss = LOSSES[name](batch["new"], {**batch, "classifier": given["classifier"]})
            total = tf.reduce_sum(loss) / 10
        return loss, tape.gradient(total, batch["new"])

    batch = {key: value for key, value in given.items() if key != "classifier"}
    run = tf.function(lambda *args: replicas.strategy().run(loss_and_gradient, args=args))
    found = run({key: replicas.split(value) for key, value in batch.items()})
    expected = loss_and_gradient({key: tf.constant(value) for key, value in batch.items()})
    for parts, whole in zip(found, expected, strict=True):
        joined = np.concatenate(replicas.strategy().experimental_local_results(parts))
        np.testing.assert_allclose(joined, whole, rtol=1e-4, atol=1e-6)


def test_match_dims(given):
    new = given["new"]
    np.testing.assert_array_equal(compatibility.match_dims(new, 4), new[:, :4])
    np.testing.assert_array_equal(compatibility.match_dims(new, D), new)
    padded = compatibility.match_dims(tf.constant(new), 9)
    np.testing.assert_array_equal(padded, np.hstack([new, np.zeros((N, 3))]))


@pytest.mark.parametrize("centred", [False, True])
def test_synthesized_classes(given, centred):
    names = ["c", "x", "a", "d", "y", "b"]
    old_labels = compatibility.match_classes(names, ["a", "b", "c", "d"])
    np.testing.assert_array_equal(old_labels, [2, -1, 0, 3, -1, 1])
    extended, found = compatibility.synthesize(
        given["classifier"], old_labels, given["old"], given["labels"], centred
    )
    np.testing.assert_array_equal(found, [2, 4, 0, 3, 5, 1])
    np.testing.assert_array_equal(extended[:, :OLD], given["classifier"])
    norms = np.sqrt(np.square(extended).sum(axis=0))
    np.testing.assert_allclose(norms[OLD:], norms[:OLD].mean(), rtol=1e-5)
    for label, column in ((1, 4), (4, 5)):
        mean = np.mean(
            [v for v, y in zip(given["old"], given["labels"], strict=True) if y == label], 0
        ) - centred * np.mean(given["old"], 0)
        cosine = mean @ extended[:, column] / np.linalg.norm(mean) / norms[column]
        np.testing.assert_allclose(cosine, 1, rtol=1e-5)


# Training, with a network of one layer: a run takes a second, and what matters is around it.


@pytest.fixture(scope="module")
def old(images, tmp_path_factory):
    """An old model of 5 dimensions that knows classes 0 and 1, and the table it has filled."""
    directory = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "build", tiny.one_layer)
        path = backbone_training.train(experiment(images), "old", directory)
    gallery = str(directory / "train.lance")
    embed_images.embed_gallery(gallery, f"folder:{images}:train", str(path), "embedding_old")
    return path, gallery


def experiment(images, term=None, head=None, epochs=8):
    """Four classes, embeddings of 5 (old) and 8 dimensions, fast learning, few checkpoints."""
    config = tiny.experiment(images, epochs=epochs)
    config.training.steps_per_call, config.training.checkpoint_minutes = 5, 10.0
    for model in config.models.values():
        model.optimizer = schema.adam(0.1)
        model.optimizer.l2 = 0.0
        model.augment = schema.augment("none")
    config.models.old.backbone.embedding_dim = 5
    config.models.new.compatibility = term or schema.compatibility()
    config.models.new.head = head or schema.head()
    return config


def image_set(images):
    return datasets.load(f"folder:{images}:train", image_size=16)


def embedded(path, images):
    """Embeddings of the training images, cut to the old size, and their labels."""
    batch = next(iter(datasets.eval_batches(image_set(images), 64)))
    embeddings = artifact.load(path).embed(batch["image"])
    return compatibility.match_dims(embeddings, 5).numpy(), batch["label"].numpy()


def history(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    "term",
    [
        schema.compatibility("bct", unseen="leave_out", scale=16.0),
        schema.compatibility("bct", unseen="distil"),
        schema.compatibility("triplet"),
        pytest.param(schema.compatibility("l2"), marks=pytest.mark.slow),
    ],
    ids=lambda term: f"{term.method}-{term.unseen}",
)
def test_every_method_trains(images, old, tmp_path, small_network, term):
    config = experiment(images, term, epochs=4)
    path = backbone_training.train(config, "new", tmp_path, old=old[0], gallery=old[1])
    loaded = artifact.load(path)
    assert loaded.compatible_with == [artifact.load(old[0]).space]
    assert loaded.classifier[1] == ("class0", "class1", "class2", "class3")
    losses = history(tmp_path)
    assert losses[-1] < losses[0]


def test_stopped_training_continues_bitwise(images, old, tmp_path, small_network):
    config = experiment(images, schema.compatibility("contrastive"), epochs=3)
    sides = {"old": old[0], "gallery": old[1]}
    whole = backbone_training.train(config, "new", tmp_path / "whole", **sides)
    with killing.interrupted(datasets, "train_batches", 3):  # At the start of the last epoch.
        backbone_training.train(config, "new", tmp_path / "stopped", **sides)
    resumed = backbone_training.train(config, "new", tmp_path / "stopped", **sides)
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert artifact.load(resumed).space == artifact.load(whole).space
    # A finished one is recognised; of an old model with other embeddings it is another one.
    assert (
        backbone_training.train(config, "new", tmp_path / "whole", existing="skip", **sides)
        == whole
    )
    config.models.new.compatibility.temperature = 0.1
    with pytest.raises(InputError, match="model.compatibility.temperature: 0.05 -> 0.1"):
        backbone_training.train(config, "new", tmp_path / "whole", **sides)


def test_regression_alone_reaches_the_old_space(images, old, tmp_path, small_network):
    config = experiment(images, schema.compatibility("l2", classification=False))
    path = backbone_training.train(config, "new", tmp_path, gallery=old[1])
    found, expected = embedded(path, images)[0], embedded(old[0], images)[0]
    assert np.mean((found - expected) ** 2) < 0.1 * np.var(expected)
    assert artifact.load(path).classifier is None


def test_bct_is_classified_right_by_the_old_classifier(images, old, tmp_path, small_network):
    term = schema.compatibility("bct")
    side = old_model.open_old(term, "", image_set(images), *old, "")
    side = old_model.read(side, term, image_set(images))
    assert side.classifier.shape == (5, 4) and side.labels.tolist() == [0, 1, 2, 3]

    def accuracy(name, term, **sides):
        path = backbone_training.train(experiment(images, term), "new", tmp_path / name, **sides)
        vectors, labels = embedded(path, images)
        return np.mean(np.argmax(vectors @ side.classifier, axis=1) == side.labels[labels])

    assert accuracy("bct", term, old=old[0], gallery=old[1]) > 0.9
    assert accuracy("independent", None) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bct", "triplet", "contrastive"])
def test_two_devices_train_as_one(images, old, two_devices, tmp_path, small_network, method):
    weights = []
    for strategy, devices in (("one_device", 0), ("mirrored", 2)):
        term = schema.compatibility(method, unseen="leave_out")
        config = experiment(images, term, epochs=2)
        config.training.strategy, config.training.devices = strategy, devices
        path = backbone_training.train(
            config, "new", tmp_path / strategy, old=old[0], gallery=old[1]
        )
        weights.append(artifact.load(path).model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_angles_and_a_smaller_embedding_in_a_residual_network(images, tmp_path):
    """Old: ArcFace, 8 dimensions. New: CosFace, 4, filled up; the old scale is the old head's."""
    config = tiny.experiment(images, epochs=3)
    config.models.old.head = schema.head("arcface", scale=20.0)
    config.models.new.head = schema.head("cosface", scale=20.0)
    config.models.new.backbone.embedding_dim = 4
    config.models.new.compatibility = schema.compatibility("bct")
    path = backbone_training.train(config, "old", tmp_path / "old")
    assert artifact.load(path).distance == "cosine"
    assert artifact.load(path).classifier_scale == 20.0
    gallery = str(tmp_path / "train.lance")
    embed_images.embed_gallery(gallery, f"folder:{images}:train", str(path), "embedding_old")
    new = backbone_training.train(config, "new", tmp_path / "new", old=path, gallery=gallery)
    recorded = artifact.load(new).info["training"]
    assert recorded["model"]["head"] == {"name": "cosface", "scale": 20.0, "margin": None}
    losses = history(tmp_path / "new")
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_column_of_the_old_size_can_be_compared_with_the_old_one(images, old, tmp_path):
    network = tiny.one_layer(schema.backbone(embedding_dim=8), 16)
    settings = preprocess.preprocessing("symmetric", 16, "bilinear_antialias")
    space = artifact.load(old[0]).space
    info = {"name": "n", "distance": "l2", "preprocessing": settings, "compatible_with": [space]}
    path = str(artifact.save(tmp_path / "model", network, "backbone", info))
    gallery, source = str(tmp_path / "g.lance"), f"folder:{images}:val"
    embed_images.embed_gallery(gallery, source, str(old[0]), "old")
    embed_images.embed_gallery(gallery, source, path, "whole")
    cut = embed_images.embed_gallery(gallery, source, path, "cut", match_dims=5)
    table.check_spaces(cut.column("cut"), cut.column("old"))
    assert cut.column("cut").space != cut.column("whole").space
    assert cut.column("cut").created_by["settings"]["match_dims"] == 5
    vectors = cut.read(["cut", "whole"]).vectors
    np.testing.assert_array_equal(vectors["cut"], vectors["whole"][:, :5])


def test_what_is_missing_is_named(images, old, tmp_path):
    def train(term, **sides):
        backbone_training.train(experiment(images, term), "new", tmp_path / "run", **sides)

    with pytest.raises(InputError, match="`old`"):
        train(schema.compatibility("bct"), gallery=old[1])
    with pytest.raises(InputError, match="`gallery`"):
        train(schema.compatibility("bct"), old=old[0])
    with pytest.raises(InputError, match="embedding_older.*embedding_old"):
        train(schema.compatibility("l2"), gallery=old[1], column="embedding_older")
    with pytest.raises(InputError, match="leave `old`"):
        train(schema.compatibility(), old=old[0])
    ids = np.array(["train/class0/0.png"], object)
    rows = table.Rows(ids, None, {"embedding_old": np.zeros((1, 5), np.float32)})
    other = str(tmp_path / "other.lance")
    table.create(other, [rows], [table.Column(name="embedding_old", dim=5, space="x" * 64)])
    with pytest.raises(InputError, match="embed the training images with that one"):
        train(schema.compatibility("bct"), old=old[0], gallery=other)
    with pytest.raises(InputError, match="no row with id 'train/class0/1.png'"):
        train(schema.compatibility("l2"), gallery=other)
    assert not (tmp_path / "run" / "artifact").exists()


def test_door_takes_the_old_side_from_flags(images, old, tmp_path, run_door, capsys):
    arguments = [
        f"--config={tiny.experiment_file(tmp_path / 'e.py', images)}",
        "--config.models.new.compatibility.method=bct",
        "--model=new",
        f"--workdir={tmp_path}/run",
        f"--old={old[0]}",
    ]
    assert run_door(train_backbone, *arguments) == 2
    assert "--gallery" in capsys.readouterr().err.splitlines()[-1]
    arguments += [f"--gallery={old[1]}", "--column=embedding"]
    assert run_door(train_backbone, *arguments) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "no embedding column 'embedding'; there are: embedding_old" in told
    assert not (tmp_path / "run").exists()


def test_models_are_trained_after_those_they_need(images):
    config = tiny.experiment(images)
    config.models.newer = schema.model()
    config.models.new.compatibility = schema.compatibility("bct", "old")
    config.models.newer.compatibility = schema.compatibility("l2", "new")
    validate(config)
    assert training_order(config) == ["old", "new", "newer"]
    # Nothing else given, the models that are replaced come first, as in life.
    config.transformations.fct.update(source="newer", target="old")
    config.transformations.fct_no_side_info.update(source="newer", target="old")
    config.models.newer.compatibility = schema.compatibility()
    assert training_order(config) == ["newer", "old", "new"]
    config.transformations.fct.update(source="old", target="newer")
    config.transformations.fct_no_side_info.update(source="old", target="newer")
    config.models.newer.compatibility = schema.compatibility("l2", "new")
    config.models.old.compatibility = schema.compatibility("l2", "newer")
    with pytest.raises(InputError, match="a model cannot wait for itself"):
        validate(config)
    config.models.old.compatibility.old = "oldest"
    with pytest.raises(InputError, match=r"models.old.compatibility.old: no model 'oldest'"):
        validate(config)


@pytest.mark.parametrize(
    "key, value",
    [
        ("compatibility.method", "bcd"),
        ("compatibility.unseen", "ignore"),
        ("compatibility.weight", -1.0),
        ("compatibility.classification", False),
        ("head.name", "sphereface"),
        ("head.scale", 0.0),
        ("head.margin", 3.0),
    ],
)
def test_wrong_settings_are_named(images, key, value):
    config = tiny.experiment(images)
    config.models.new.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=f"models.new.{key}"):
        validate(config)
