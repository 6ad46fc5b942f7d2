"""Fused search: both sides through the SavedModels against the formulas in NumPy."""

import dataclasses
import re

import numpy as np
import pytest

from fct_tf import train_transformation
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import local
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.models import artifact, fusion, kernel, saved_model
from fct_tf.retrieval import two_columns
from fct_tf.training import fused, loop, transformation
from fct_tf.training.by_method import train_by_method
from fct_tf.upgrade import judged_rows
from fct_tf.upgrade.upgrade import Upgrade
from tests.scattered import scattered

ROWS, CLASSES, OLD, NEW, SIDE = 240, 24, 6, 8, 3


def make_vectors(seed=0):
    models, rng = np.random.default_rng(99), np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    hidden = rng.normal(size=(CLASSES, 10))[labels] + 0.3 * rng.normal(size=(ROWS, 10))
    return {
        "old": 3 + hidden @ models.normal(size=(10, OLD)),
        "new": hidden @ models.normal(size=(10, NEW)) + 0.05 * rng.normal(size=(ROWS, NEW)),
        "side": hidden @ models.normal(size=(10, SIDE)),
    }, [f"class {label}" for label in labels]


def make_gallery(path, distances=("l2", "l2"), seed=0):
    vectors, labels = make_vectors(seed)
    columns = [
        Column("old", OLD, "0" * 64, distance=distances[0], created_by={"model": "old"}),
        Column("new", NEW, "1" * 64, distance=distances[1], created_by={"model": "new"}),
        Column("side", SIDE, "2" * 64, kind="side_info", created_by={"model": "side"}),
    ]
    ids = np.array([f"row {row}" for row in range(ROWS)], object)
    vectors = {name: values.astype(np.float32) for name, values in vectors.items()}
    table.create(path, [Rows(ids, np.array(labels, object), vectors)], columns)
    return table.open_gallery(path)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fused_rows(rows, source, target, distances, weight):
    """The module's formula, in float64 of the stored rows."""
    parts = []
    for name, vectors, by, share in (
        ("old", source, distances[0], weight),
        ("new", target, distances[1], 1 - weight),
    ):
        stored, vectors = rows[name].astype(np.float64), vectors.astype(np.float64)
        if by == "cosine":
            stored, vectors = unit(stored), unit(vectors)
        pairs = stored[:, None] - stored[None]
        spread = np.mean(np.sum(pairs**2, axis=2))  # Of all pairs, the row itself included.
        parts.append(np.sqrt(share / spread) * vectors)
    both = np.concatenate(parts, axis=1)
    return unit(both) if distances == ("cosine", "cosine") else both


def squared_distances(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(2)


@pytest.fixture(scope="module", params=[("l2", "l2"), ("cosine", "cosine"), ("l2", "cosine")])
def trained(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fusion")
    gallery = make_gallery(str(directory / "train.lance"), request.param)
    work = train_by_method(
        "affine",
        gallery.path,
        "old",
        "new",
        directory / "fused",
        side_info="side",
        settings={"fusion": {"weight": 0.3}},
    )
    alone = train_by_method(
        "affine", gallery.path, "old", "new", directory / "alone", side_info="side"
    )
    return gallery, work, alone, request.param


def test_both_sides_equal_the_formulas(trained):
    gallery, work, alone, distances = trained
    rows = gallery.read(["old", "new", "side"]).vectors
    mapped = saved_model.load_transformation(alone)(rows["old"], rows["side"])["embedding"]
    model, queries = (saved_model.load_transformation(work, side) for side in ("gallery", "query"))
    stored = model(rows["old"], rows["side"])["embedding"]
    asked = queries(rows["old"], rows["new"])["embedding"]
    np.testing.assert_allclose(
        stored, fused_rows(rows, rows["old"], mapped, distances, 0.3), atol=1e-4
    )
    expected = fused_rows(rows, rows["old"], rows["new"], distances, 0.3)
    np.testing.assert_allclose(asked, expected, atol=1e-4)
    np.testing.assert_allclose(model.fuse(rows["old"], rows["new"]), expected, atol=1e-4)
    assert stored.shape == asked.shape == (ROWS, OLD + NEW)
    assert model.info["kind"] == "fused"
    assert model.info["distance"] == ("cosine" if set(distances) == {"cosine"} else "l2")


def test_the_distance_is_the_weighted_sum_of_both():
    rows, _ = make_vectors()
    weight, scales = 0.3, []
    for name, share in (("old", weight), ("new", 1 - weight)):
        scales.append(fused.scale(rows[name], "l2", share))
    network = fusion.build(("l2", "l2"), tuple(scales), (OLD, NEW))
    inputs = {"source_embedding": rows["old"], "target_embedding": rows["new"]}
    both = network.predict(inputs, verbose=0)["embedding"]
    d_old, d_new = (squared_distances(rows[name], rows[name]) for name in ("old", "new"))
    wanted = weight * d_old / d_old.mean() + (1 - weight) * d_new / d_new.mean()
    np.testing.assert_allclose(squared_distances(both, both), wanted, rtol=1e-3, atol=1e-4)


def test_upgrade_puts_both_sides_in_one_space(trained, tmp_path):
    source, work, _, distances = trained
    gallery = make_gallery(str(tmp_path / "photos.lance"), distances, seed=1)
    model = saved_model.load_transformation(work)
    made = Upgrade(gallery.path, work, "fused").run().gallery
    made = Upgrade(gallery.path, work, "asked", side="query").run().gallery
    rows = made.read(["old", "new", "side", "fused", "asked"]).vectors
    np.testing.assert_allclose(
        rows["fused"], model(rows["old"], rows["side"])["embedding"], atol=1e-6
    )
    np.testing.assert_allclose(rows["asked"], model.fuse(rows["old"], rows["new"]), atol=1e-6)
    columns = made.columns
    assert columns["fused"].space == columns["asked"].space == model.info["fused_space"]
    assert columns["fused"].kind == columns["asked"].kind == "fused"
    assert "fused_origin" in made.dataset.schema.names
    assert "asked_origin" not in made.dataset.schema.names
    record = two_columns.evaluate(made, "asked", made, "fused")
    assert record["cmc"]["1"] > 0.5
    with pytest.raises(InputError, match="different spaces.*upgrade_gallery --side=query"):
        two_columns.evaluate(made, "new", made, "fused")


def test_queries_of_another_table_are_known_by_their_ids(trained, tmp_path, caplog):
    """A row's two sides differ, which is no doubt about its id."""
    _, work, _, distances = trained
    paths = [str(tmp_path / f"{name}.lance") for name in ("photos", "queries")]
    for path, side in zip(paths, ("gallery", "query"), strict=True):
        make_gallery(path, distances, seed=1)
        Upgrade(path, work, "fused", side=side).run()
    photos, queries = map(table.open_gallery, paths)
    record = two_columns.evaluate(queries, "fused", photos, "fused")
    assert record["num_self_removed"] == ROWS
    assert "another vector" not in caplog.text


def test_a_backfilled_column_is_still_searched_by_its_queries(trained, tmp_path):
    _, work, _, distances = trained
    path = str(tmp_path / "photos.lance")
    made = make_gallery(path, distances, seed=1)
    made = Upgrade(path, work, "fused").run().gallery
    made = Upgrade(path, work, "asked", side="query").run().gallery
    # Rows with other pairs lie in the same space; they are no queries.
    made = Upgrade(path, work, "again").run().gallery
    column = made.column("fused")
    # As backfill_gallery describes it.
    filled = dataclasses.replace(column, space="f" * 64, compatible_with=(column.space,))
    for one in (column, filled):
        assert judged_rows.query_column(made, made, one, "new", "").name == "asked"


def test_pairs_become_rows_of_both_models(trained, tmp_path):
    gallery, work, _, distances = trained
    path = str(tmp_path / "photos.lance")
    made = make_gallery(path, distances, seed=1)
    rows = made.read(["old", "new", "side"])
    some = np.arange(0, ROWS, 7)
    pairs = str(tmp_path / "pairs.lance")
    kept = {"new": rows.vectors["new"][some]}
    table.create(pairs, [Rows(rows.ids[some], None, kept)], [made.column("new")])
    plain = Upgrade(path, work, "plain").run().gallery.column("plain")
    made = Upgrade(path, work, "fused", pairs=pairs).run().gallery
    model = saved_model.load_transformation(work)
    found = made.read(["fused", "plain"], fields=["fused_origin"])
    expected = found.vectors["plain"].copy()
    expected[some] = model.fuse(rows.vectors["old"][some], rows.vectors["new"][some])
    np.testing.assert_allclose(found.vectors["fused"], expected, atol=1e-6)
    origin = np.full(ROWS, "transformed", object)
    origin[some] = "backfilled"
    assert list(found.fields["fused_origin"]) == list(origin)
    assert made.column("fused").space == plain.space
    # A cluster makes the same rows, and the same queries.
    Upgrade(path, work, "spread", pairs=pairs, engine=scattered).run()
    for engine in (local, scattered):
        Upgrade(path, work, f"asked_{engine.__name__}", side="query", engine=engine).run()
    made = table.open_gallery(path)
    spread = made.read(["spread", "asked_local", "asked_scattered"]).vectors
    np.testing.assert_array_equal(spread["spread"], found.vectors["fused"])
    np.testing.assert_array_equal(spread["asked_scattered"], spread["asked_local"])
    # Made again it is left alone; without the pairs, or with others, it is made anew.
    version = made.version
    assert (
        Upgrade(path, work, "fused", pairs=pairs, existing="skip").run().gallery.version == version
    )
    assert Upgrade(path, work, "fused", existing="skip").run().gallery.version > version


def test_missing_rows_of_both_sides(trained, tmp_path):
    _, work, _, distances = trained
    path = str(tmp_path / "photos.lance")
    make_gallery(path, distances, seed=1)
    Upgrade(path, work, "fused").run()
    Upgrade(path, work, "asked", side="query").run()
    more = make_gallery(str(tmp_path / "more.lance"), distances, seed=2).dataset.to_table()
    ids = [f"more {row}" for row in range(ROWS)]
    position = more.schema.get_field_index("id")
    more = more.set_column(position, more.schema.field("id"), [ids])
    table.open_gallery(path).dataset.insert(more)
    for side, told in (("query", "holds rows of a gallery"), ("both", "`side=both`")):
        with pytest.raises(InputError, match=told):
            Upgrade(path, work, "fused", side=side, missing=True).run()
    for column in ("fused", "asked"):
        done, missing, _ = Upgrade(path, work, column, missing=True).run()
        assert missing.count == ROWS
    rows = done.read(["old", "new", "side", "fused", "asked"]).vectors
    model = saved_model.load_transformation(work)
    stored = model(rows["old"], rows["side"])["embedding"]
    np.testing.assert_allclose(rows["fused"], stored, atol=1e-5)
    np.testing.assert_allclose(rows["asked"], model.fuse(rows["old"], rows["new"]), atol=1e-5)


def brute_whitening(queries, rows, labels, ridge):
    differences = [
        queries[i] - rows[j]
        for i in range(len(rows))
        for j in range(len(rows))
        if i != j and labels[i] == labels[j]
    ]
    c = np.mean([np.outer(d, d) for d in differences], axis=0)
    values, vectors = np.linalg.eigh(c + ridge * np.mean(np.diag(c)) * np.eye(len(c)))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def test_whitening_against_pair_by_pair():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 50)
    queries, rows = rng.normal(size=(2, 50, 5)) + 2.0
    found = fused.whitening(queries, rows, labels, 0.5)
    np.testing.assert_allclose(found, brute_whitening(queries, rows, labels, 0.5), rtol=1e-9)
    # Classes far from one another, and from zero, do not drown what differs within them.
    far = 1e6 * rng.normal(size=(9, 5))[labels]
    found = fused.whitening(queries + far, rows + far, labels, 0.5)
    np.testing.assert_allclose(found, brute_whitening(queries, rows, labels, 0.5), rtol=1e-6)
    with pytest.raises(InputError, match="no label has two rows"):
        fused.whitening(queries, rows, np.arange(50))
    copies = rng.normal(size=(9, 5))[labels]
    rounded = copies.astype(np.float32)
    with pytest.raises(InputError, match="rows of one label are all the same"):
        fused.whitening(copies, rounded, labels)


def projected(tmp_path, whiten, dims, weight=0.5):
    """A gallery, and the workdir of a fused search trained on it."""
    gallery = make_gallery(str(tmp_path / "train.lance"))
    settings = {"fusion": {"weight": weight, "whiten": whiten, "dims": dims}}
    work = train_by_method(
        "affine", gallery.path, "old", "new", tmp_path / "fused", settings=settings
    )
    return gallery, work


@pytest.mark.parametrize(("whiten", "dims"), [(True, 0), (False, 5), (True, 9)])
def test_projection_against_numpy(tmp_path, whiten, dims):
    """Of training rows mapped out of fold over classes: pair by pair, then by their covariance."""
    gallery, work = projected(tmp_path, whiten, dims, weight=0.3)
    model, lam = saved_model.load_transformation(work), artifact.load(work).info["chosen"]["ridge"]
    read = gallery.read(["old", "new"], with_labels=True)
    rows = {name: values.astype(np.float64) for name, values in read.vectors.items()}
    classes = np.unique(read.labels.astype(str), return_inverse=True)[1]
    seed = loop.stage_seed(0, "transformations.affine")
    fold = np.random.default_rng(seed).permutation(CLASSES)[classes] % 5
    held_out = np.empty_like(rows["new"])
    for held in (fold == number for number in range(5)):
        others = np.ones(np.sum(~held))
        fitted = weighted_ridge(rows["old"][~held], rows["new"][~held], lam, others)
        held_out[held] = fitted(rows["old"][held])
    whole = weighted_ridge(rows["old"], rows["new"], lam, np.ones(ROWS))(rows["old"])
    queries, unseen, stored = (
        fused_rows(rows, rows["old"], new, ("l2", "l2"), 0.3)
        for new in (rows["new"], held_out, whole)
    )
    matrix = np.eye(OLD + NEW)
    if whiten:
        matrix = brute_whitening(queries, unseen, classes, 1.0)
    if dims:
        matrix = matrix @ np.linalg.svd((unseen - unseen.mean(0)) @ matrix)[2][:dims].T
    asked = model.fuse(read.vectors["old"], read.vectors["new"])
    made = model(read.vectors["old"])["embedding"]
    # Directions have no sign; distances tell them all.
    expected = squared_distances(queries @ matrix, stored @ matrix)
    np.testing.assert_allclose(squared_distances(asked, made), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("whiten", "dims"), [(True, 0), (False, 5), (True, 9)])
def test_projection_is_the_same_on_both_sides(tmp_path, whiten, dims):
    gallery, work = projected(tmp_path, whiten, dims)
    plain = train_by_method(
        "affine",
        gallery.path,
        "old",
        "new",
        tmp_path / "plain",
        settings={"fusion": {"weight": 0.5}},
    )
    rows = gallery.read(["old", "new"]).vectors
    made, base = (saved_model.load_transformation(path) for path in (work, plain))
    stored, before = (model(rows["old"])["embedding"] for model in (made, base))
    asked, asked_before = (model.fuse(rows["old"], rows["new"]) for model in (made, base))
    assert stored.shape[1] == (dims or OLD + NEW)
    # One matrix takes both sides there.
    both = np.concatenate([before, asked_before]).astype(np.float64)
    matrix, *_ = np.linalg.lstsq(both, np.concatenate([stored, asked]), rcond=None)
    np.testing.assert_allclose(before @ matrix, stored, atol=1e-4)
    np.testing.assert_allclose(asked_before @ matrix, asked, atol=1e-4)
    if not whiten:  # Orthonormal directions, of the greatest variance.
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(dims), atol=1e-3)
    assert artifact.load(work).info["fused_space"] != artifact.load(plain).info["fused_space"]


def test_over_a_trained_base_and_its_correction(tmp_path):
    gallery = make_gallery(str(tmp_path / "train.lance"))
    pairs = make_gallery(str(tmp_path / "pairs.lance"), seed=3)
    base = train_by_method("affine", gallery.path, "old", "new", tmp_path / "base")
    rows = pairs.read(["old", "new"]).vectors
    for name, given in (("alone", {}), ("corrected", {"pairs": pairs.path})):
        plain = base
        if given:
            plain = train_by_method(
                *("affine", gallery.path, "old", "new", tmp_path / f"{name}_plain"),
                base=base,
                **given,
            )
        work = train_by_method(
            *("affine", gallery.path, "old", "new", tmp_path / name),
            base=base,
            settings={"fusion": {"weight": 0.5}},
            **given,
        )
        mapped = saved_model.load_transformation(plain)(rows["old"])["embedding"]
        model = saved_model.load_transformation(work)
        np.testing.assert_allclose(
            model(rows["old"])["embedding"], model.fuse(rows["old"], mapped), atol=1e-4
        )
    # Whatever the rows went through, the queries stay the same.
    spaces = {artifact.load(tmp_path / name).info["fused_space"] for name in ("alone", "corrected")}
    assert len(spaces) == 1


def weighted_ridge(x, y, lam, weights):
    """Of rows with weights: the map, written out."""
    weights = weights / weights.sum()
    x_mean, y_mean = weights @ x, weights @ y
    xc, yc = x - x_mean, y - y_mean
    moments = xc.T @ (weights[:, None] * xc)
    moments += lam * np.mean(np.diag(moments)) * np.eye(len(moments))
    matrix = np.linalg.solve(moments, xc.T @ (weights[:, None] * yc))
    return lambda rows: rows @ matrix + y_mean - x_mean @ matrix


def brute_map(queries, stored, labels):
    """Mean average precision, a row's own left out."""
    found = []
    for row, near in enumerate(squared_distances(queries, stored)):
        order = np.delete(np.argsort(near, kind="stable"), np.argsort(np.argsort(near))[row])
        match = labels[order] == labels[row]
        found.append(np.mean((np.cumsum(match) / (1 + np.arange(len(match))))[match]))
    return np.mean(found)


@pytest.mark.parametrize("method", ["kernel", "rows"])
def test_weight_is_the_best_of_the_pairs(tmp_path, method):
    """Of pairs that neither the map nor its correction has seen."""
    gallery = make_gallery(str(tmp_path / "train.lance"))
    pairs = make_gallery(str(tmp_path / "pairs.lance"), seed=3)
    work = train_by_method(
        *("affine", gallery.path, "old", "new", tmp_path / "fused"),
        pairs=pairs.path,
        settings={"fusion": {"choose_weight": True}, "pairs": {"method": method}},
    )
    chosen = artifact.load(work).info["chosen"]
    base, rows = (
        {
            name: values.astype(np.float64)
            for name, values in one.read(["old", "new"]).vectors.items()
        }
        for one in (gallery, pairs)
    )
    fold = np.random.default_rng(loop.stage_seed(0, "transformations.affine")).permutation(ROWS) % 5
    alone = weighted_ridge(base["old"], base["new"], chosen["ridge"], np.ones(ROWS))
    mapped = np.empty_like(rows["new"])
    for held in (fold == number for number in range(5)):
        if method == "rows":
            x, y = (np.concatenate([base[key], rows[key][~held]]) for key in ("old", "new"))
            weights = np.repeat([2 / 3 / ROWS, 1 / 3 / np.sum(~held)], [ROWS, np.sum(~held)])
            mapped[held] = weighted_ridge(x, y, chosen["ridge"], weights)(rows["old"][held])
            continue
        blocks = {"source_embedding": rows["old"], "embedding": alone(rows["old"])}
        blocks = {role: values.astype(np.float32) for role, values in blocks.items()}
        known = {role: values[~held] for role, values in blocks.items()}
        fitted = kernel.fit(known, (rows["new"] - blocks["embedding"])[~held], seed=0)
        assert fitted.helps
        unknown = {role: values[held] for role, values in blocks.items()}
        mapped[held] = unknown["embedding"] + fitted(unknown)
    labels = pairs.read([], with_labels=True).labels
    scores = {}
    for weight in np.arange(1, 10) / 10:
        sides = (
            fused_rows(base, rows["old"], new, ("l2", "l2"), weight)
            for new in (rows["new"], mapped)
        )
        scores[f"{weight:g}"] = brute_map(*sides, labels)
    assert chosen["fusion"]["map_by_weight"] == pytest.approx(scores, abs=2e-3)
    weight = chosen["fusion"]["weight"]
    tried = chosen["fusion"]["map_by_weight"]
    assert tried[f"{weight:g}"] == max(tried.values()) > min(tried.values())


def test_of_equal_weights_one_half(tmp_path):
    """Pairs of two labels far apart are found whatever the weight is."""
    gallery = make_gallery(str(tmp_path / "train.lance"))
    two = np.arange(ROWS) % 2
    vectors = {
        name: 100 * two[:, None] + gallery.read([name]).vectors[name] for name in ("old", "new")
    }
    vectors = {name: values.astype(np.float32) for name, values in vectors.items()}
    labels = np.array([f"label {number}" for number in two], object)
    ids = np.array([f"pair {row}" for row in range(ROWS)], object)
    pairs = str(tmp_path / "pairs.lance")
    columns = [gallery.column(name) for name in vectors]
    table.create(pairs, [Rows(ids, labels, vectors)], columns)
    work = train_by_method(
        *("affine", gallery.path, "old", "new", tmp_path / "fused"),
        pairs=pairs,
        settings={"fusion": {"choose_weight": True}},
    )
    chosen = artifact.load(work).info["chosen"]["fusion"]
    assert set(chosen["map_by_weight"].values()) == {1.0} and chosen["weight"] == 0.5


def same_direction(rows):
    return np.outer(1 + np.arange(len(rows)) % 7, np.linspace(0.1, 0.7, rows.shape[1]))


@pytest.mark.parametrize(
    ("column", "made", "distance", "told"),
    [
        ("old", np.ones_like, "l2", "column 'old': all rows are the same"),
        ("new", np.ones_like, "l2", "column 'new': all rows are the same"),
        ("new", lambda rows: np.full_like(rows, 0.1), "l2", "column 'new': all rows are the same"),
        ("old", same_direction, "cosine", "column 'old': all rows have one direction"),
        ("new", same_direction, "cosine", "column 'new': all rows have one direction"),
    ],
)
@pytest.mark.parametrize("whiten", [False, True])
def test_rows_that_do_not_differ(tmp_path, monkeypatch, column, made, distance, told, whiten):
    """Told before anything is trained; differences of rounding are none."""
    monkeypatch.setattr(transformation, "_fit", None)
    path = str(tmp_path / "train.lance")
    rows = make_gallery(str(tmp_path / "some.lance"), (distance, distance))
    read = rows.read(["old", "new"], with_labels=True)
    vectors = {**read.vectors, column: made(read.vectors[column]).astype(np.float32)}
    columns = [rows.column(name) for name in vectors]
    table.create(path, [Rows(read.ids, read.labels, vectors)], columns)
    with pytest.raises(InputError, match=f"train.lance: {told}"):
        train_by_method(
            *("affine", path, "old", "new", tmp_path / "fused"),
            settings={"fusion": {"weight": 0.5, "whiten": whiten}},
        )
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize(
    ("labels", "flags", "told"),
    [
        (None, ["--whiten"], "train.lance: no label has two rows.*set --whiten to False"),
        ("unique", ["--whiten"], "train.lance: no label has two rows.*set --whiten to False"),
        ("one", ["--whiten"], "train.lance: all its rows are of one class"),
        ("one", ["--dims=3"], "train.lance: all its rows are of one class"),
        (None, ["--choose_weight"], "pairs.lance: no label has two rows.*--choose_weight to False"),
        ("unique", ["--choose_weight"], "pairs.lance: no label has two rows"),
        ("one", ["--choose_weight"], "pairs.lance: all its labels are the same"),
    ],
)
def test_labels_that_do_not_serve(tmp_path, monkeypatch, run_door, capsys, labels, flags, told):
    """Told before anything is trained, as it may take hours."""
    monkeypatch.setattr(transformation, "_fit", None)
    given = {"unique": [f"u {row}" for row in range(ROWS)], "one": ["x"] * ROWS}.get(labels)
    good = make_gallery(str(tmp_path / "good.lance"))
    read = good.read(["old", "new"])
    name = "pairs" if "--choose_weight" in flags else "train"
    path = str(tmp_path / f"{name}.lance")
    values = None if given is None else np.array(given, object)
    columns = [good.column(name) for name in ("old", "new")]
    table.create(path, [Rows(read.ids, values, read.vectors)], columns)
    read_from = (
        [f"--gallery={good.path}", f"--pairs={path}"] if name == "pairs" else [f"--gallery={path}"]
    )
    named = ["--method=fct", "--fused", "--source=old", "--target=new", *read_from]
    assert run_door(train_transformation, *named, f"--workdir={tmp_path}/fused", *flags) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(told, line), line
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize(
    ("fusion_settings", "more", "told"),
    [
        ({"weight": 1.0}, {}, "`weight`: .* not in 0..1"),
        ({"weight": -0.5}, {}, "`weight`: .* not in 0..1"),
        ({"weight": 0}, {}, "`weight`: .* not in 0..1"),
        ({"weight": 0.5, "dims": OLD + NEW + 1}, {}, "`dims`: "),
        ({"whiten": True}, {}, "`whiten`: .*set `weight`"),
        ({"choose_weight": True}, {}, "`choose_weight`: .*set `pairs`"),
        ({"weight": 0.5}, {"side": "query"}, "`fusion`: "),
    ],
)
def test_settings_that_do_not_fit(tmp_path, fusion_settings, more, told):
    gallery = make_gallery(str(tmp_path / "train.lance"))
    with pytest.raises(InputError, match=told):
        train_by_method(
            *("affine", gallery.path, "old", "new", tmp_path / "fused"),
            settings={"fusion": fusion_settings, **more},
        )
    assert not (tmp_path / "fused" / "saved_model").exists()


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--weight=1.5", "--weight: 1.5 is not in 0..1"),
        ("--weight=0", "--weight: 0.0 is not in 0..1"),
        ("--choose_weight", "--choose_weight: a weight is chosen by pairs; set --pairs"),
        ("--choose_weight --weight=0.5", "--weight: --choose_weight takes it from --pairs"),
        (f"--dims={OLD + NEW + 1}", f"--dims: {OLD + NEW + 1}, but both spaces"),
    ],
)
def test_flags_of_fused_search_that_do_not_fit(run_door, capsys, tmp_path, flag, told):
    """They are named as flags, not by the keys of an experiment that nobody has written."""
    gallery = make_gallery(str(tmp_path / "train.lance"))
    named = [f"--gallery={gallery.path}", "--source=old", "--target=new", "--method=affine"]
    work = f"--workdir={tmp_path}/fused"
    assert run_door(train_transformation, *named, work, "--fused", *flag.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {told}")


def test_what_does_not_go_with_it_is_refused(trained, tmp_path):
    gallery, work, alone, distances = trained
    made = make_gallery(str(tmp_path / "photos.lance"), distances, seed=1)
    with pytest.raises(InputError, match="no fused search"):
        Upgrade(made.path, alone, "asked", side="query").run()
    with pytest.raises(InputError, match="`pairs`"):
        Upgrade(made.path, work, "asked", side="query", pairs=made.path).run()
    with pytest.raises(InputError, match="`target`"):
        Upgrade(made.path, work, "fused", target="new").run()
    with pytest.raises(InputError, match="fused search itself"):
        train_by_method(
            *("affine", gallery.path, "old", "new", tmp_path / "again"),
            side_info="side",
            base=work,
            settings={"fusion": {"weight": 0.5}},
        )
    assert set(table.open_gallery(made.path).columns) == {"old", "new", "side"}


def test_the_plan_of_both_sides(trained, tmp_path):
    _, work, _, distances = trained
    made = make_gallery(str(tmp_path / "photos.lance"), distances, seed=1)
    assert [c.name for c in Upgrade(made.path, work, "fused").plan().reads.values()] == [
        "old",
        "side",
    ]
    found = Upgrade(made.path, work, "asked", side="query").plan()
    assert [c.name for c in found.reads.values()] == ["old", "new"]


def test_bfloat16_keeps_the_fusion_exact(trained):
    from fct_tf.models import export

    gallery, work, _, _ = trained
    rows = gallery.read(["old", "new", "side"]).vectors
    served = export.transformation(artifact.load(work), dtype="bfloat16")
    function, _ = served.endpoints["query"]
    made = function(rows["old"], rows["new"])["embedding"].numpy()
    wanted = saved_model.load_transformation(work).fuse(rows["old"], rows["new"])
    np.testing.assert_allclose(made, wanted, atol=1e-6)
