"""Held-out classes, the best epoch among them, and a killed run that ends as an undisturbed one."""

import hashlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import artifact
from fct_tf.training import loop, selection, transformation
from tests import killing, tiny


def make_table(path, ids, labels, seed=0, **vectors):
    """A table with random columns `old`, `side` and `new` of 8 values, or the given ones."""
    rng = np.random.default_rng(seed)
    columns = [table.Column(name, dim=8, space=name * 8) for name in ("old", "side", "new")]
    values = {c.name: rng.normal(size=(len(ids), 8)).astype(np.float32) for c in columns} | vectors
    labels = None if labels is None else np.array(labels, object)
    rows = table.Rows(np.array(ids, object), labels, values)
    return table.create(path, [rows], columns)


def fraction(text):
    """Where in 0..1 the hash of a name lies, worked out again."""
    return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) / 2**64


def test_whole_classes_are_held_out_the_same_in_every_table(tmp_path):
    rng = np.random.default_rng(0)
    labels = [f"class {number}" for number in rng.integers(0, 200, 999)]
    ids = [f"row {number}" for number in range(999)]
    mask = selection.held_out(make_table(tmp_path / "a.lance", ids, labels), 0.25)
    np.testing.assert_array_equal(mask, [fraction(f"label {label}") < 0.25 for label in labels])
    classes = {label for label, out in zip(labels, mask, strict=True) if out}
    assert 0.15 < len(classes) / 200 < 0.35
    # Other rows of these classes, in another order; a larger share holds out more classes.
    order = rng.permutation(999)[:500]
    other = make_table(
        tmp_path / "b.lance", [f"x{i}" for i in range(500)], [labels[i] for i in order]
    )
    np.testing.assert_array_equal(selection.held_out(other, 0.25), mask[order])
    assert np.all(selection.held_out(other, 0.5) >= mask[order])


@pytest.mark.parametrize("labelled", [False, True])
def test_without_label_the_views_of_an_image_stay_together(tmp_path, labelled):
    images = [f"train/{number}" for number in range(40)] + [f"a#b/{number}" for number in range(40)]
    ids = [f"{image}#{view}" for view in range(3) for image in images]
    labels = [None] * 239 + ["x"] if labelled else None
    mask = selection.held_out(make_table(tmp_path / "g.lance", ids, labels), 0.3)
    expected = np.array([fraction(f"id {image}") < 0.3 for image in images * 3])
    np.testing.assert_array_equal(mask[:239], expected[:239])
    # What stands before the number of the view only looks like one.
    assert 0 < mask[40:80].sum() < 40


def test_few_classes(tmp_path):
    for count in (2, 3):
        names = [f"class {number}" for number in range(count)]
        ids = [f"row {number}" for number in range(4 * count)]
        gallery = make_table(tmp_path / f"{count}.lance", ids, names * 4)
        for share in (1e-9, 0.1, 0.999999):
            mask = selection.held_out(gallery, share)
            assert mask.any() and not mask.all()
    one = make_table(tmp_path / "1.lance", ["a", "b"], ["x", "x"])
    with pytest.raises(InputError, match="1.lance.*one class.*validation.share"):
        selection.held_out(one, 0.5)


def test_a_sample_of_the_held_out_rows(tmp_path):
    ids = [f"row {number}" for number in range(300)]
    labels = [f"class {number // 50}" for number in range(300)]
    gallery = make_table(tmp_path / "g.lance", ids, labels)
    columns = {"source_embedding": gallery.column("old"), "target": gallery.column("new")}
    mask = np.arange(300) >= 100
    rows = selection.read_rows(gallery, columns, mask, limit=40)
    assert len(rows.ids) == len(set(rows.ids)) == 40
    # From all classes that are held out, not from those that come first.
    assert set(rows.labels) == {f"class {number}" for number in range(2, 6)}
    every = gallery.read(["old", "new"])
    place = [ids.index(name) for name in rows.ids]
    for name in ("old", "new"):
        np.testing.assert_array_equal(rows.vectors[name], every.vectors[name][place])
    whole = selection.read_rows(gallery, columns, mask, limit=1000)
    np.testing.assert_array_equal(whole.ids, ids[100:])


def linear_model():
    inputs = keras.Input((8,), name="source_embedding")
    dense = keras.layers.Dense(8, use_bias=False)
    return keras.Model({"source_embedding": inputs}, {"embedding": dense(inputs)}), dense


def some_rows(labels):
    """Column `b` is a rotation of `a`, where rows of a class lie together, with noise."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(5, 8))[np.arange(len(labels)) % 5]
    a = centres + 0.5 * rng.normal(size=(len(labels), 8))
    b = a @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + 0.3 * rng.normal(size=(len(labels), 8))
    vectors = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    return table.Rows(
        np.array([str(row) for row in range(len(labels))], object),
        np.array(labels, object),
        vectors,
    )


def mean_average_precision(query, gallery, labels):
    """New queries against transformed rows, each query's own row left out."""
    found = []
    for row, label in enumerate(labels):
        others = np.arange(len(labels)) != row
        match = np.array([other == label for other in labels])[others]
        if label is not None and match.any():
            distance = np.square(gallery[others] - query[row]).sum(axis=1)
            found.append(average_precision_score(match, -distance))
    return np.mean(found)


def test_the_best_epoch_is_kept(tmp_path):
    labels = [None if row % 7 == 0 else f"class {row % 5}" for row in range(41)]
    rows, roles = some_rows(labels), {"source_embedding": "a", "target": "b"}
    model, dense = linear_model()
    select = selection.Selection(model, rows, roles, tmp_path)
    exact = np.linalg.lstsq(rows.vectors["a"], rows.vectors["b"], rcond=None)[0]
    kernels = [np.eye(8) * 0.1, exact, -exact, np.zeros((8, 8))]
    for epoch, weights in enumerate(kernels):
        dense.set_weights([weights.astype(np.float32)])
        select.after_epoch(10 * (epoch + 1))
    scores = [json.loads(line) for line in (tmp_path / selection.SCORES).read_text().splitlines()]
    assert scores == select.scores() and [score["step"] for score in scores] == [10, 20, 30, 40]
    for score, weights in zip(scores, kernels, strict=True):
        output = (rows.vectors["a"] @ weights.astype(np.float32)).astype(np.float32)
        expected = mean_average_precision(rows.vectors["b"], output, labels)
        assert score["map"] == pytest.approx(expected, rel=1e-5)
        assert score["mse"] == pytest.approx(np.mean((output - rows.vectors["b"]) ** 2), rel=1e-5)
    assert scores[1]["map"] == max(score["map"] for score in scores)
    best = scores[1]
    assert select.take_best() == best
    np.testing.assert_array_equal(dense.get_weights()[0], kernels[1].astype(np.float32))
    # A run that continues knows of it; a process that writes nothing keeps it as well.
    again = selection.Selection(model, rows, roles, tmp_path, write=False)
    dense.set_weights([np.zeros((8, 8), np.float32)])
    again.after_epoch(50)
    assert again.take_best() == best and len(again.scores()) == 4
    np.testing.assert_array_equal(dense.get_weights()[0], kernels[1].astype(np.float32))


@pytest.mark.parametrize("labels", [[None] * 9, [f"class {row}" for row in range(9)]])
def test_without_two_rows_of_a_class_the_error_decides(tmp_path, labels):
    rows = some_rows(labels)
    model, dense = linear_model()
    roles = {"source_embedding": "a", "target": "b"}
    select = selection.Selection(model, rows, roles, tmp_path)
    exact = np.linalg.lstsq(rows.vectors["a"], rows.vectors["b"], rcond=None)[0]
    for step, kernel in enumerate((np.zeros((8, 8)), exact, np.eye(8))):
        dense.set_weights([kernel.astype(np.float32)])
        select.after_epoch(step)
    best = select.take_best()
    assert best["step"] == 1 and "map" not in best


def fit(workdir):
    """Four epochs of five steps of a linear map; its best score, its weights, all scores."""
    training = tiny.experiment(workdir).training  # A checkpoint after every second step.
    rows = some_rows([f"class {row % 5}" for row in range(41)])
    model, dense = linear_model()
    dense.set_weights([np.zeros((8, 8), np.float32)])
    optimizer = keras.optimizers.SGD(0.2, momentum=0.9)  # It overshoots.
    optimizer.build(model.trainable_variables)

    def train_step(batch, phase):
        with tf.GradientTape() as tape:
            output = model({"source_embedding": batch["a"]})["embedding"]
            loss = tf.reduce_mean((output - batch["b"]) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    def epoch_batches(epoch, skip):
        order = np.random.default_rng(epoch).permutation(40).reshape(5, 8)[skip:]
        return tf.data.Dataset.from_tensor_slices(
            {name: rows.vectors[name][order] for name in ("a", "b")}
        )

    select = selection.Selection(model, rows, {"source_embedding": "a", "target": "b"}, workdir)
    loop.run(
        train_step,
        epoch_batches,
        {"model": model.variables, "optimizer": optimizer.variables},
        strategy=loop.setup(training, seed=0),
        workdir=workdir,
        steps_per_epoch=5,
        total_steps=20,
        batch_size=8,
        training=training,
        learning_rate=lambda step: 0.2,
        after_epoch=select.after_epoch,
    )
    best = select.take_best()
    return best, dense.get_weights()[0].tobytes(), (workdir / selection.SCORES).read_text()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("before", ["write", "after_epoch", "_keep", "atomic_write_text"])
def test_a_killed_run_ends_as_an_undisturbed_one(fitted, tmp_path, monkeypatch, before):
    """Stopped within an epoch, before it is scored, before its weights are kept or it is told."""
    assert [json.loads(line)["step"] for line in fitted[2].splitlines()] == [5, 10, 15, 20]
    assert fitted[0]["step"] == 15  # There is something to choose.
    owners = {"write": loop._Metrics, "atomic_write_text": selection}
    owner = owners.get(before, selection.Selection)
    whole, calls = getattr(owner, before), []

    def dies(*arguments, **settings):
        calls.append(1)
        if len(calls) in (1, 3, 7):
            raise KeyboardInterrupt
        return whole(*arguments, **settings)

    monkeypatch.setattr(owner, before, dies)
    found, killed = None, 0
    while found is None:
        try:
            found = fit(tmp_path)
        except KeyboardInterrupt:
            killed += 1
    assert killed
    assert found == fitted


# The door ------------------------------------------------------------------------------------


def validated(images):
    """Two candidates of three epochs."""
    config = tiny.experiment(images, epochs=3)
    section = config.transformations.fct
    section.validation.share, section.validation.l2 = 0.3, (0.0, 0.3)
    section.dropout, section.freeze_bn_after = 0.2, 1.0
    return config


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    labels = [f"class {row % 16}" for row in range(61)]
    path = tmp_path_factory.mktemp("rows") / "rows.lance"
    make_table(path, [f"row {row}" for row in range(61)], labels)
    return str(path)


def test_the_artifact_is_the_best_epoch_of_the_best_candidate(rows, tmp_path):
    workdir = tmp_path / "run"
    config = validated(tmp_path)
    transformation.train(config, "fct", rows, "old", "new", workdir, side_info="side")
    made = artifact.load(workdir / "artifact")
    chosen = made.info["chosen"]
    assert set(chosen["tried"]) == {"0", "0.3"}
    candidates = {}
    for l2 in chosen["tried"]:
        lines = (workdir / "candidates" / l2 / selection.SCORES).read_text().splitlines()
        scores = [json.loads(line) for line in lines]
        assert len(scores) == 3
        candidates[l2] = max(scores, key=lambda score: score["map"])
        assert chosen["tried"][l2] == candidates[l2]
    best = max(candidates, key=lambda l2: candidates[l2]["map"])
    assert chosen["l2"] == float(best) and chosen["step"] == candidates[best]["step"]
    # The artifact itself scores what was told, on the classes that were held out.
    gallery = table.open_gallery(rows)
    mask = selection.held_out(gallery, 0.3)
    held = gallery.read(["old", "side", "new"], with_labels=True)
    inputs = {"source_embedding": held.vectors["old"], "side_info": held.vectors["side"]}
    output = made.model(inputs, training=False)["embedding"].numpy()
    expected = mean_average_precision(held.vectors["new"][mask], output[mask], held.labels[mask])
    assert chosen["map"] == pytest.approx(expected, rel=1e-4)


def result(workdir):
    """The space of the artifact, which is made of its weights, and all that was chosen by."""
    info = artifact.load(workdir / "artifact").info
    scores = {path.parent.name: path.read_text() for path in workdir.rglob(selection.SCORES)}
    return info["space"], info["chosen"], scores


@pytest.mark.slow
def test_a_door_killed_at_any_moment_ends_as_an_undisturbed_one(rows, tmp_path):
    config = tmp_path / "e.py"
    config.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(tiny.__file__).rsplit('/', 2)[0]!r})\n"
        "from pathlib import Path\n"
        "from tests import test_selection\n"
        "def get_config():\n"
        f"    return test_selection.validated(Path({str(tmp_path)!r}))\n"
    )
    arguments = ["fct_tf.train_transformation", f"--config={config}", "--name=fct"]
    arguments += [f"--gallery={rows}", "--source=old", "--side_info=side", "--target=new"]
    killing.run([*arguments, f"--workdir={tmp_path}/undisturbed"])
    rng = np.random.default_rng(0)
    workdir, killed = tmp_path / "killed", 0

    def lines():
        paths = [*workdir.rglob("metrics.jsonl"), *workdir.rglob(selection.SCORES)]
        return sum(len(path.read_text().splitlines()) for path in paths)

    for _ in range(8):
        target = lines() + int(rng.integers(1, 8))
        killed += killing.kill_when(
            [*arguments, f"--workdir={workdir}"],
            lambda target=target: lines() >= target,
            float(rng.uniform(0, 0.05)),
        )
        if (workdir / "saved_model").exists():
            break
    assert killed > 2
    if not (workdir / "saved_model").exists():
        killing.run([*arguments, f"--workdir={workdir}"])
    assert result(workdir) == result(tmp_path / "undisturbed")
