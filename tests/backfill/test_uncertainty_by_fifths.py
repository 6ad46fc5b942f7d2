"""The benchmark of uncertainty by fifths: its numbers against slow ones, its rows, its refusals."""

import json
import sys

import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fct_tf.gallery import table
from fct_tf.models import artifact, export, preprocess, transformation

OLD = "a" * 64
DIM, CLASSES = 6, 3


@pytest.fixture
def benchmark(script):
    return script("uncertainty_by_fifths")


@pytest.fixture
def rows(benchmark):
    """Made rows, their new embeddings in clusters."""
    rng, count = np.random.default_rng(0), 47
    classes = rng.integers(0, CLASSES, count)
    new = (rng.normal(size=(CLASSES, DIM))[classes] + rng.normal(size=(count, DIM))).astype("f4")
    transformed = (new + rng.normal(size=new.shape)).astype(np.float32)
    return benchmark.Rows(
        ids=np.array([f"row{i}" for i in range(count)], object),
        labels=np.array([f"class{i}" for i in classes], object),
        new=new,
        transformed=transformed,
        log_variance=rng.normal(size=count),
        squared_error=((new - transformed) ** 2).mean(axis=1).astype(np.float64),
        cross_entropy=rng.random(count),
        cross_entropy_new=rng.random(count),
        right=rng.random(count) < 0.6,
    )


def slow(rows, gallery):
    """top-1, top-5, average precision of each query, and its nearest row, row by row."""
    achieved, nearest = [], []
    for row, query in enumerate(rows.new.astype(np.float64)):
        others = np.delete(np.arange(len(rows.new)), row)
        distance = ((gallery[others] - query) ** 2).sum(axis=1)
        match = rows.labels[others] == rows.labels[row]
        rank = 1 + (distance[~match] <= distance[match].min()).sum()
        precision = average_precision_score(match, -distance)
        achieved.append([rank == 1, rank <= 5, precision])
        nearest.append(others[distance.argmin()])
    return np.array(achieved, float), np.array(nearest)


def test_areas_are_those_of_22_galleries(benchmark, rows):
    found = benchmark.areas(rows)
    loss = rows.squared_error + rows.cross_entropy
    by = {"uncertainty": rows.log_variance, "loss": loss}
    by["removable"] = loss - rows.cross_entropy_new
    for name, values in by.items():
        points, mixed = [], rows.transformed.astype(np.float64)
        for number in range(22):
            first = np.argsort(-values)[: number * len(values) // 21]
            mixed[first] = rows.new[first]
            points.append(slow(rows, mixed)[0].mean(axis=0))
        area = np.mean(points, axis=0)
        np.testing.assert_allclose(list(found["auc"][name].values()), area, atol=1e-6)
        gain = found["over_random"][name]
        random = list(found["auc"]["random"].values())
        np.testing.assert_allclose(list(gain["mean"].values()), area - random, atol=1e-6)
        assert all(
            gain["low"][key] <= gain["mean"][key] <= gain["high"][key] for key in gain["mean"]
        )
    np.testing.assert_allclose(list(found["start"].values()), points[0], atol=1e-6)
    np.testing.assert_allclose(list(found["end"].values()), points[-1], atol=1e-6)


def test_a_part_alone(benchmark, rows):
    part = np.array([3, 5, 8, 13, 21, 34])
    found = benchmark.alone(rows, part)
    mixed = rows.transformed.astype(np.float64)
    before, _ = slow(rows, mixed)
    mixed[part] = rows.new[part]
    after, nearest = slow(rows, mixed)
    gain = (after - before).mean(axis=0)
    np.testing.assert_allclose(list(found["gain"].values()), gain, atol=1e-6)
    theirs, right = np.isin(nearest, part), rows.labels[nearest] == rows.labels
    assert found["first_places"] == pytest.approx(theirs.mean())
    assert found["first_places_right"] == pytest.approx(right[theirs].mean())
    assert found["others_right"] == pytest.approx(right[~theirs].mean())
    assert found["classifier_accuracy"] == pytest.approx(rows.right[part].mean())


def test_shares_of_rows(benchmark, rows):
    found = benchmark.measure(rows)
    right = int(rows.right.sum())
    assert found["rows_classified_right"]["num_rows"] == right
    assert found["as_many_random_rows"]["num_rows"] == right
    accuracy = [each["classifier_accuracy"] for each in found["with_wrong_rows"]]
    assert 1 > accuracy[0] > accuracy[1] > accuracy[2] > found["classifier_accuracy"]
    assert len(found["fifths_by_uncertainty"]) == 5
    json.dumps(found, allow_nan=False)


@pytest.fixture
def workdir(tmp_path):
    """A study's directory: tables, a FastFill transformation and a new model of random weights."""
    seed = tmp_path / "run" / "seed_0"
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, keras.layers.Dense(DIM)(keras.layers.Flatten()(image)))
    preprocessing = preprocess.preprocessing("symmetric", 8, "bilinear_antialias")
    info = {"name": "new", "distance": "l2", "preprocessing": preprocessing}
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(DIM, CLASSES)).astype(np.float32)
    classifier = (weights, [f"class{i}" for i in range(CLASSES)])
    artifact.save(seed / "new" / "artifact", network, "backbone", info, classifier)
    new = artifact.load(seed / "new" / "artifact").space
    model = transformation.build(DIM, DIM, hidden=8, log_variance=True)
    info = {"name": "fastfill", "distance": "l2", "source_space": OLD, "target_space": new}
    info["side_info_space"] = None
    artifact.save(seed / "fastfill" / "artifact", model, "transformation", info)
    export.export_transformation(seed / "fastfill" / "artifact", seed / "fastfill" / "saved_model")
    columns = [table.Column("embedding_old", DIM, OLD), table.Column("embedding_new", DIM, new)]
    for name, count in (("gallery", 24), ("train", 60)):
        ids = np.array([f"{name}{i}" for i in range(count)], object)
        # Of the last class the gallery has more rows than of the others.
        labels = np.array([f"class{min(i % 4, CLASSES - 1)}" for i in range(count)], object)
        vectors = {c.name: rng.normal(size=(count, DIM)).astype(np.float32) for c in columns}
        path = seed / "rows" / name / "gallery.lance"
        table.create(str(path), [table.Rows(ids, labels, vectors)], columns)
    return tmp_path / "run"


def test_of_a_study(benchmark, workdir, tmp_path, run_door, monkeypatch, capsys):
    flags = [f"--workdir={workdir}", f"--output={tmp_path / 'out.json'}"]
    monkeypatch.setattr(sys, "argv", ["uncertainty_by_fifths.py", *flags])
    assert run_door(benchmark, *flags) == 0
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    found = json.loads((tmp_path / "out.json").read_text())["transformations"]["fastfill"]
    for part in ("gallery", "train"):
        assert found[part]["all_rows"]["num_rows"] == 24
    assert "fastfill, gallery, by uncertainty over random orders: top1" in capsys.readouterr().out

    seed = workdir / "seed_0"
    model, named = seed / "new" / "artifact", seed / "rows"
    gallery = benchmark.read(named / "gallery" / "gallery.lance", seed / "fastfill", model)
    train = benchmark.read(named / "train" / "gallery.lance", seed / "fastfill", model, gallery)
    assert sorted(train.labels) == sorted(gallery.labels)
    assert len(set(train.ids)) == 24 and all(name.startswith("train") for name in train.ids)
    # The loss by hand: smoothing 0.1, squared error as the mean over the dimensions.
    logits = train.transformed @ artifact.load(model).classifier[0]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = log_p[np.arange(24), [int(label[-1]) for label in train.labels]]
    np.testing.assert_allclose(
        train.cross_entropy, -0.9 * own - 0.1 * log_p.mean(axis=1), rtol=1e-4
    )
    error = ((train.transformed - train.new) ** 2).mean(axis=1)
    np.testing.assert_allclose(train.squared_error, error, rtol=1e-5)


def test_unknown_classes_are_refused(benchmark, workdir, tmp_path, run_door, capsys):
    path = workdir / "seed_0" / "rows" / "gallery" / "gallery.lance"
    stored = table.open_gallery(path)
    rows = stored.read(list(stored.columns), with_labels=True)
    rows.labels[3] = "another"
    table.create(str(path), [rows], list(stored.columns.values()), overwrite=True)
    flags = [f"--workdir={workdir}", f"--output={tmp_path / 'out.json'}"]
    assert run_door(benchmark, *flags) == 2
    assert "rows of classes that" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
