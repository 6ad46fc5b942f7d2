"""Curves with the rest corrected: each point against a transformation that was really retrained."""

import dataclasses

import numpy as np
import pytest

from fct_tf import backfilling_curve
from fct_tf.backfill import corrected, curves, evaluate
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from fct_tf.training import closed_form, transformation
from fct_tf.upgrade import sample, upgrade
from tests import tiny

ROWS, DIM = 90, 4


def draw(generator, count):
    """Old and new embeddings, the new ones no affine map of the old ones."""
    old = generator.normal(size=(count, 6)).astype(np.float32)
    new = np.tanh(2 * old[:, :DIM]) + old[:, 2:] ** 2 * 0.3
    return {"old": old, "new": new.astype(np.float32)}


@pytest.fixture(scope="module", params=["l2", "cosine"])
def upgraded(request, tmp_path_factory):
    """A gallery upgraded by an affine map that was fitted on other rows; map and experiment.

    In the new space distances are by l2, or by cosine at length one.
    """
    directory = tmp_path_factory.mktemp("corrected")
    generator = np.random.default_rng(0)
    columns = [table.Column("old", 6, "o" * 64), table.Column("new", DIM, "n" * 64)]
    columns[1] = dataclasses.replace(columns[1], distance=request.param)
    for name, count in (("train", 40), ("gallery", ROWS)):
        ids = np.array([f"{name}{i}" for i in range(count)], object)
        vectors = draw(generator, count)
        if request.param == "cosine":
            vectors["new"] /= np.linalg.norm(vectors["new"], axis=1, keepdims=True)
        labels = np.array(
            [f"c{int(v > 0)}{int(w > 0.3)}" for v, w in vectors["new"][:, :2]], object
        )
        rows = table.Rows(ids, labels, vectors)
        table.create(str(directory / f"{name}.lance"), [rows], columns)
    config = tiny.experiment(directory)
    section = config.transformations.fct_no_side_info
    section.map = "affine"
    transformation.train(
        config,
        "fct_no_side_info",
        f"{directory}/train.lance",
        "old",
        "new",
        directory / "base",
    )
    upgrade.Upgrade(directory / "gallery.lance", directory / "base", "x", source="old").run()
    section.pairs.share, section.pairs.method = 0.2, "kernel"
    section.base = "fct_no_side_info"
    return directory, section


@pytest.mark.parametrize("point", [1, 9, 20])
def test_a_point_is_the_gallery_after_retraining(upgraded, tmp_path, point):
    from fct_tf.models import artifact

    directory, section = upgraded
    gallery = table.open_gallery(directory / "gallery.lance")
    # By l2 also where the space is one of cosine: there it matters what length rows have.
    settings = {"corrected": ["distance"], "seed": 3, "distance": "l2"}
    plain, made = evaluate.evaluate(gallery, "new", gallery, "x", "new", ["distance"], **settings)
    assert (plain["corrected"], made["corrected"]) == (False, True)
    rows = gallery.read(["old", "new", "x"], with_labels=True)
    new, transformed = rows.vectors["new"], rows.vectors["x"]
    order = np.argsort(-np.linalg.norm(transformed - new, axis=1))
    count = made["curve"][point]["rows"]
    pairs = sample.copy_rows(gallery, rows.ids[order[:count]], str(tmp_path / "pairs.lance"))
    columns = {"source_embedding": gallery.column("old"), "target": gallery.column("new")}
    base = artifact.load(directory / "base/artifact").model
    # Here the pairs are in the gallery's order, and so are they there.
    model, _ = closed_form.correct(base, pairs, columns, section, seed=3)
    mixed = model.predict({"source_embedding": rows.vectors["old"]}, verbose=0)["embedding"]
    mixed[order[:count]] = new[order[:count]]
    found = exact.per_query(new, rows.ids, rows.labels, mixed, rows.ids, rows.labels)
    precision = float(np.nanmean(found.average_precision))
    assert made["curve"][point]["map"] == pytest.approx(precision, abs=1e-3)
    if (
        point == 9 and gallery.column("new").distance == "l2"
    ):  # The map is affine, the truth is not: rows of the gallery teach it.
        assert made["curve"][point]["map"] > plain["curve"][point]["map"] + 0.005
    for end in (0, 21):
        assert made["curve"][end] == plain["curve"][end]


def test_unit_length_side_info_and_pairs_that_teach_nothing():
    generator = np.random.default_rng(1)
    new = generator.normal(size=(60, DIM)).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    ids, labels = [f"r{i}" for i in range(60)], [f"c{a > 0}{b > 0}" for a, b in new[:, :2]]
    side = (new, ids, labels)
    inputs = {"source_embedding": new + 0, "side_info": generator.normal(size=(60, 2))}
    order = generator.permutation(60)
    # Nothing to correct: the curve stays where it is.
    same = corrected.per_query(
        side, {**inputs, "embedding": new}, side, order, "cosine", unit_length=True, max_centres=50
    )
    plain = curves.per_query(side, new, side, [order], "cosine")
    np.testing.assert_array_equal(same.rank, plain.rank)
    np.testing.assert_allclose(same.average_precision, plain.average_precision)
    # A turned copy of the new embeddings: what is corrected comes nearer, and at length one.
    off = new[:, ::-1].copy()
    turned = corrected.per_query(
        side, {**inputs, "embedding": off}, side, order, "cosine", unit_length=True, max_centres=50
    )
    before = curves.per_query(side, off, side, [order], "cosine")
    gain = np.nanmean(turned.average_precision, axis=2) - np.nanmean(
        before.average_precision, axis=2
    )
    assert gain[0, 12] > 0.05 and np.abs(gain[0, [0, 21]]).max() < 1e-12


def test_door_and_what_is_refused(upgraded, run_door, tmp_path, capsys):
    directory, _ = upgraded
    output = tmp_path / "c.json"

    def call(*more):
        return run_door(
            backfilling_curve,
            f"--gallery={directory}/gallery.lance",
            "--column=x",
            "--target_column=new",
            f"--output={output}",
            *more,
        )

    assert call("--policies=random,ranks", "--random_orders=2", "--corrected=random,ranks") == 0
    told = capsys.readouterr().out
    assert "random, rest corrected" in told and "ranks, rest corrected" in told
    keys = [(r["policy"], r["order"], r["corrected"]) for r in read_json(output)]
    assert keys == [
        *(("random", 0, False), ("random", 1, False), ("ranks", None, False)),
        *(("random", 0, True), ("ranks", None, True)),
    ]
    output.unlink()
    assert call("--policies=random", "--corrected=ranks") == 2
    assert "ranks shall be corrected but is no policy" in capsys.readouterr().err
    gallery = table.open_gallery(directory / "gallery.lance")
    arguments = (gallery, "new", gallery, "new", "new", ["random"])
    with pytest.raises(InputError, match="corrected curves: column 'new' does not say"):
        evaluate.evaluate(*arguments, corrected=["random"])
