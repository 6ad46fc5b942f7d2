"""Re-ranking an old column's first rows by a fused search, and its form with one float a row."""

import dataclasses
import json
import re

import numpy as np
import pytest

import fct_tf
from fct_tf import evaluate
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Rows
from fct_tf.models import artifact, fusion, kernel, saved_model, transformation
from fct_tf.retrieval import exact
from fct_tf.training.by_method import train_by_method
from fct_tf.upgrade import rerank
from tests.models.test_fusion import NEW, OLD, ROWS, SIDE, make_gallery, squared_distances, unit

FIRST = 30


@pytest.fixture(scope="module", params=["l2", "cosine"])
def place(request, tmp_path_factory):
    """A gallery of test rows, and a fused search: its SavedModel, its distance."""
    directory = tmp_path_factory.mktemp("rerank")
    distances = (request.param, request.param)
    train = make_gallery(str(directory / "train.lance"), distances)
    work = train_by_method(
        *("affine", train.path, "old", "new", directory / "fused"),
        side_info="side",
        settings={"fusion": {"weight": 0.3}},
    )
    gallery = make_gallery(str(directory / "test.lance"), distances, seed=1)
    return gallery, work, request.param


def expected_order(gallery, work, distance, first):
    """Of each query the first rows by the old model, in the order of the fused distance."""
    rows = gallery.read(["old", "new", "side"])
    vectors = {name: values.astype(np.float64) for name, values in rows.vectors.items()}
    old = unit(vectors["old"]) if distance == "cosine" else vectors["old"]
    model = saved_model.load_transformation(work)
    stored = model(rows.vectors["old"], rows.vectors["side"])["embedding"].astype(np.float64)
    asked = model.fuse(rows.vectors["old"], rows.vectors["new"]).astype(np.float64)
    near = squared_distances(old, old)
    np.fill_diagonal(near, np.inf)
    candidates = np.argsort(near, axis=1, kind="stable")[:, :first]
    fused = squared_distances(asked, stored)
    found = np.take_along_axis(fused, candidates, 1)
    order = np.argsort(found, axis=1, kind="stable")
    values = np.take_along_axis(found, order, 1)
    return np.take_along_axis(candidates, order, 1), values / (2 if distance == "cosine" else 1)


def test_evaluate_orders_the_first_rows(place, tmp_path, run_door, capsys):
    gallery, work, distance = place
    flags = [f"--gallery={gallery.path}", "--gallery_column=old", "--query_column=old"]
    flags += [f"--transformation={work}", "--ks=1,5,20", "--bootstrap=20"]
    output = tmp_path / "results.json"
    assert run_door(evaluate, *flags, f"--rerank={FIRST}", f"--output={output}") == 0
    assert f"the first {FIRST} rows re-ranked" in capsys.readouterr().out
    record = json.loads(output.read_text())
    order, _ = expected_order(gallery, work, distance, FIRST)
    labels = gallery.read(["old"], with_labels=True).labels
    match = labels[order] == labels[:, None]
    assert 0 < match[:, 0].mean() < 1 and match[:, 0].mean() != match.any(axis=1).mean()
    for k in (1, 5, 20):
        assert record["cmc"][str(k)] == pytest.approx(match[:, :k].any(axis=1).mean())
    assert record["search"]["rerank"] == FIRST and record["map"] is None
    assert record["search"]["target_column"] == "new"
    assert record["search"]["reached"] == pytest.approx(match.any(axis=1).mean())
    assert record["num_self_removed"] == ROWS and record["distance"] == distance


def test_the_first_rows_of_the_old_index(place, tmp_path, run_door, capsys):
    """Those that it finds, as what is left when a query's own row is taken out of the list."""
    gallery, work, distance = place
    path = make_gallery(str(tmp_path / "own.lance"), (distance, distance), seed=1).path
    opened = fct_tf.Gallery.open(path)
    opened.build_index("old", tmp_path / "old", num_leaves=1, num_leaves_to_search=1)
    flags = [f"--gallery={path}", "--gallery_column=old", "--query_column=old", "--bootstrap=0"]
    flags += [f"--rerank={FIRST}", f"--transformation={work}", "--search=scann"]
    output = tmp_path / "results.json"
    assert run_door(evaluate, *flags, f"--index={tmp_path}/old", f"--output={output}") == 0
    record = json.loads(output.read_text())
    order, _ = expected_order(gallery, work, distance, FIRST)
    labels = gallery.read(["old"], with_labels=True).labels
    match = labels[order] == labels[:, None]
    for k in (1, 5):  # An index may take another of rows that are equally far, at the end.
        wanted = match[:, :k].any(axis=1).mean()
        assert record["cmc"][str(k)] == pytest.approx(wanted, abs=2 / ROWS)
    assert record["search"]["index"]["path"] == f"{tmp_path}/old"
    assert record["num_self_removed"] == ROWS
    again = opened.evaluate(
        "old", rerank=work, candidates=FIRST, search="scann", index=tmp_path / "old"
    )
    assert {str(k): value for k, value in again.cmc.items()} == record["cmc"]
    # An index of another column, and one of rows that have changed.
    opened.build_index("new", tmp_path / "new", num_leaves=1, num_leaves_to_search=1)
    flags.append(f"--output={output}.2")
    assert run_door(evaluate, *flags, f"--index={tmp_path}/new") == 2
    assert "is of column 'new'" in capsys.readouterr().err
    table.open_gallery(path).dataset.delete("id = 'row 3'")
    assert run_door(evaluate, *flags, f"--index={tmp_path}/old") == 2
    assert "build_index --update" in capsys.readouterr().err


def test_queries_of_another_gallery(place, tmp_path):
    """Rows are matched by id, whatever their order; one has no label, one no row of its label."""
    gallery, work, _ = place
    rows = gallery.read(["old", "new"], with_labels=True)
    picked = np.random.default_rng(0).permutation(ROWS)[:31]
    labels = rows.labels[picked].copy()
    labels[3], labels[5] = None, "of no row"
    vectors = {name: rows.vectors[name][picked] for name in ("old", "new")}
    columns = [gallery.column(name) for name in ("old", "new")]
    asked = str(tmp_path / "asked.lance")
    table.create(asked, [Rows(rows.ids[picked], labels, vectors)], columns)
    opened = fct_tf.Gallery.open(gallery.path)
    found = opened.evaluate("old", asked, "old", rerank=work, candidates=FIRST).per_query
    every = opened.evaluate("old", rerank=work, candidates=FIRST).per_query
    expected = every.rank[picked]
    expected[5] = 0
    kept = np.delete(np.arange(31), 3)
    assert list(found.position) == list(kept)
    assert list(found.rank) == list(expected[kept])


def test_all_rows_are_the_fused_search_itself(place, tmp_path):
    gallery, work, _ = place
    whole = fct_tf.Gallery.open(gallery.path).evaluate("old", rerank=work, candidates=ROWS)
    copy = make_gallery(str(tmp_path / "copy.lance"), (place[2], place[2]), seed=1).path
    opened = fct_tf.Gallery.open(copy)
    opened.upgrade(work, "fused")
    opened.upgrade(work, "asked", side="query")
    direct = opened.evaluate("fused", query_column="asked")
    assert whole.cmc == direct.cmc and list(whole.per_query.rank) == list(direct.per_query.rank)


@pytest.mark.parametrize("method", ["exact", "scann"])
def test_search_of_the_old_column_or_its_index(place, tmp_path, method):
    gallery, work, distance = place
    opened = fct_tf.Gallery.open(gallery.path)
    rows = gallery.read(["old", "new"])
    index = None
    if method == "scann":
        index = tmp_path / "index"
        opened.build_index("old", index, num_leaves=1, num_leaves_to_search=1)
    fused = fct_tf.Transformation.load(work)
    found = opened.search(
        *(rows.vectors["old"], "old", 4, method),
        index=index,
        rerank=fused,
        target_vectors=rows.vectors["new"],
        candidates=ROWS,
    )
    stored = fused(rows.vectors["old"], gallery.read(["side"]).vectors["side"])
    asked = fused.queries(rows.vectors["old"], rows.vectors["new"])
    numbers, values = exact.search(asked, stored, 4, distance)
    np.testing.assert_allclose(found.distances, values, rtol=1e-4, atol=1e-6)
    assert np.mean(found.ids == rows.ids[numbers]) > 0.99
    # One query, fewer candidates than the gallery has rows: the best of the old model's first.
    order, _ = expected_order(gallery, work, distance, FIRST)
    one = opened.search(
        rows.vectors["old"][7], "old", 3, rerank=fused, target_vectors=rows.vectors["new"][7],
        candidates=FIRST + 1,
    )  # fmt: skip
    assert list(one.ids[0][:1]) == [rows.ids[7]] or rows.ids[7] in one.ids[0]
    others = [name for name in one.ids[0] if name != rows.ids[7]]
    assert others[:2] == list(rows.ids[order[7]][:2])


def test_a_space_mismatch_is_allowed_on_demand(place, tmp_path, run_door):
    """The same vectors, of a space that the transformation does not know."""
    gallery, work, _ = place
    rows = gallery.read(["old", "new", "side"], with_labels=True)
    columns = [gallery.column(name) for name in rows.vectors]
    columns[0] = dataclasses.replace(columns[0], space="a" * 64)
    other = str(tmp_path / "other.lance")
    table.create(other, [rows], columns)
    flags = ["--gallery_column=old", "--query_column=old", f"--transformation={work}"]
    flags += [f"--rerank={FIRST}", "--bootstrap=0"]
    found = []
    for path, more in ((gallery.path, []), (other, ["--allow_space_mismatch"])):
        output = tmp_path / f"{len(found)}.json"
        door = [f"--gallery={path}", *flags, f"--output={output}"]
        assert run_door(evaluate, *door, *more) == 0
        found.append(json.loads(output.read_text())["cmc"])
    assert found[0] == found[1]
    assert run_door(evaluate, *door, "--overwrite") == 2
    opened = fct_tf.Gallery.open(other)
    again = opened.evaluate("old", rerank=work, candidates=FIRST, allow_space_mismatch=True)
    assert {str(k): value for k, value in again.cmc.items()} == found[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"k": 0}, "k=0: must be at least 1"),
        ({"k": -5}, "k=-5: must be at least 1"),
        ({"candidates": 3}, "candidates=3: must be at least k=4"),
        ({"vectors": [[1.0, 2.0], [3.0]]}, "`vectors=.*must be an array of numbers"),
        ({"target_vectors": "text"}, "`target_vectors=.*must be an array of numbers"),
        ({"target_vectors": np.full((2, NEW), np.nan)}, "target_vectors: row '0'.* with NaN"),
        (
            {"target_vectors": np.full((2, NEW), 1e300)},
            "target_vectors: row '0'.* with NaN or infinity",
        ),
        ({"column": "new", "vectors": np.ones((2, NEW))}, "vectors: shape|another column"),
        ({"column": "side"}, "vectors: shape"),
    ],
)
def test_searches_that_are_refused(place, changed, told):
    gallery, work, _ = place
    given = {
        "vectors": np.ones((2, OLD)),
        "column": "old",
        "k": 4,
        "target_vectors": np.ones((2, NEW)),
    }
    with pytest.raises(InputError, match=told):
        fct_tf.Gallery.open(gallery.path).search(**{**given, **changed}, rerank=work)


def test_candidates_that_are_missing_stay_last(place):
    gallery, work, _ = place
    rows = gallery.read(["old", "new", "side"]).vectors
    model = saved_model.load_transformation(work)
    candidates = np.array([[3, -1, 9], [-1, -1, -1]])
    found, distances = rerank.rerank(
        model, rows["old"][:2], rows["new"][:2], candidates, rows["old"], rows["side"]
    )
    assert sorted(found[0][:2]) == [3, 9] and list(found[0][2:]) == [-1]
    assert list(found[1]) == [-1] * 3 and np.isinf(distances[1]).all()
    assert distances[0][0] <= distances[0][1] < distances[0][2] == np.inf


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rerank=10"], "--transformation"),
        (["--rerank=10", "--transformation={alone}"], "no fused search.*--rerank"),
        (["--rerank=3", "--transformation={work}"], "CMC@5"),
        (["--rerank=10", "--transformation={work}", "--search=scann"], "--search.*--index"),
        (["--rerank=10", "--transformation={work}", "--index={work}"], "--search.*--index"),
        (
            ["--rerank=10", "--transformation={work}", "--query_column=new"],
            "name another column with --query_column, or pass --allow_space_mismatch",
        ),
        (
            ["--rerank=10", "--transformation={work}", "--gallery_column=new"],
            "name another column with --gallery_column, or pass --allow_space_mismatch",
        ),
        (["--rerank=10", "--transformation={work}", "--target=side"], "space"),
        (["--transformation={work}"], "goes with --rerank"),
        (["--target=new"], "goes with --rerank"),
    ],
)
def test_what_does_not_go_with_it(place, alone, tmp_path, run_door, capsys, flags, told):
    gallery, work, _ = place
    given = [f"--gallery={gallery.path}", "--gallery_column=old", "--query_column=old"]
    given += [flag.format(alone=alone, work=work) for flag in flags]
    output = tmp_path / "results.json"
    assert run_door(evaluate, *given, f"--output={output}") == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(told, line), line
    assert not output.exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    train = make_gallery(str(directory / "train.lance"))
    return train_by_method("affine", train.path, "old", "new", directory / "work")


def full_distances(model, rows):
    """Squared distances of all queries and rows, in float64 of the stored weights."""
    layers = {layer.name: layer for layer in (*model.layers, *fusion.of(model).layers)}
    weights, offset = (x.astype(np.float64) for x in layers["affine"].get_weights())
    read = [name for name in ("old", "side") if name == "old" or "side_info" in model.input]
    mapped = np.concatenate([rows[name] for name in read], axis=1) @ weights + offset
    scales = [layers[f"fusion_{role}"].scale for role in ("source_embedding", "target_embedding")]
    sides = [
        np.concatenate([scales[0] * rows["old"], scales[1] * new], axis=1)
        for new in (rows["new"], mapped)
    ]
    if "fusion_projection" in layers:
        matrix = layers["fusion_projection"].get_weights()[0].astype(np.float64)
        sides = [side @ matrix for side in sides]
    return squared_distances(*sides)


@pytest.mark.parametrize("method", ["affine", "procrustes"])
@pytest.mark.parametrize(
    ("side", "settings"),
    [("", {}), ("side", {}), ("", {"whiten": True}), ("side", {"dims": 5})],
)
def test_the_affine_form_is_the_full_distance(tmp_path, method, side, settings):
    gallery = make_gallery(str(tmp_path / "train.lance"))
    if method == "procrustes":
        side = ""
    work = train_by_method(
        *(method, gallery.path, "old", "new", tmp_path / "fused"),
        side_info=side,
        settings={"fusion": {"weight": 0.3, **settings}},
    )
    model = artifact.load(work).model
    form = fusion.affine_form(model)
    rows = gallery.read(["old", "new", "side"]).vectors
    rows = {name: values.astype(np.float64) for name, values in rows.items()}
    u, const = form.of_queries(rows["old"], rows["new"])
    sides = (rows["old"], rows["side"]) if side else (rows["old"],)
    r = form.of_rows(*sides)
    stored = np.concatenate(sides, axis=1)
    assert u.shape == (ROWS, OLD + (SIDE if side else 0)) and r.shape == const.shape == (ROWS,)
    found = const[:, None] - 2 * u @ stored.T + r
    np.testing.assert_allclose(found, full_distances(model, rows), rtol=1e-6, atol=1e-9)
    # And that is what the SavedModel's rows and queries are apart, to float32.
    served = saved_model.load_transformation(work)
    single = [part.astype(np.float32) for part in sides]
    both = (
        served(*single)["embedding"],
        served.fuse(*(rows[x].astype(np.float32) for x in ("old", "new"))),
    )
    np.testing.assert_allclose(found, squared_distances(both[1], both[0]), rtol=1e-3, atol=1e-4)


def test_what_has_no_affine_form():
    rng = np.random.default_rng(0)
    affine = (rng.normal(size=(OLD, NEW)), rng.normal(size=NEW))
    plain = transformation.build_affine(OLD, None, affine)
    blocks = {
        "source_embedding": rng.normal(size=(20, OLD)),
        "embedding": rng.normal(size=(20, NEW)),
    }
    correction = kernel.fit(blocks, rng.normal(size=(20, NEW)))
    scales, dims = (0.5, 0.5), (OLD, NEW)
    rows = {by: fusion.build(("l2", by), scales, dims) for by in ("l2", "cosine")}
    for model, told in (
        (fusion.gallery_side(plain, rows["cosine"]), "compared by L2"),
        (fusion.gallery_side(transformation.corrected(plain, correction), rows["l2"]), "affine"),
        (fusion.gallery_side(transformation.build(OLD, NEW, hidden=8), rows["l2"]), "affine"),
        (plain, "no fused search"),
    ):
        with pytest.raises(InputError, match=told):
            fusion.affine_form(model)


def test_an_index_of_the_fused_column_takes_its_queries(place, tmp_path, run_door):
    """The new model's queries, of another space and size, are refused."""
    from fct_tf import build_index, search_index

    gallery, work, distance = place
    path = make_gallery(str(tmp_path / "photos.lance"), (distance, distance), seed=1).path
    opened = fct_tf.Gallery.open(path)
    opened.upgrade(work, "fused")
    opened.upgrade(work, "asked", side="query")
    index = tmp_path / "index"
    flags = [f"--gallery={path}", "--column=fused", f"--output={index}"]
    assert run_door(build_index, *flags, "--num_leaves=1", "--num_leaves_to_search=1") == 0
    flags = [f"--index={index}", f"--query={path}"]
    output = tmp_path / "found.parquet"
    assert run_door(search_index, *flags, "--query_column=asked", f"--output={output}") == 0
    assert run_door(search_index, *flags, "--query_column=new", f"--output={output}.2") == 2
    found = opened.evaluate("fused", query_column="asked", search="scann", index=index)
    assert found.cmc == pytest.approx(opened.evaluate("fused", query_column="asked").cmc)
    assert found.record["search"]["recall"] > 0.99
