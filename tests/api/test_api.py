"""The Python API: what the commands do, from a notebook."""

import inspect
import json

import numpy as np
import pytest

import fct_tf
from fct_tf import api, inspect_gallery, train_transformation, upgrade_gallery, verdict
from fct_tf import evaluate as evaluate_command
from fct_tf.gallery import table

ROWS, CLASSES = 240, 12


def vectors(seed=0, count=ROWS):
    """Labels, and the embeddings of two models: the old one stretches what tells least apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    means = np.random.default_rng(7).normal(size=(CLASSES, 8)) * [1, 1, 1, 1, 0, 0, 0, 0]
    new = means[labels] + 0.3 * rng.normal(size=(count, 8))
    old = new * [1, 1, 1, 1, 4, 4, 4, 4] + 0.05 * rng.normal(size=(count, 8))
    return [f"class {label}" for label in labels], old, new


def make(path, seed=0, prefix="row", **settings):
    labels, old, new = vectors(seed)
    ids = [f"{prefix}{i}" for i in range(ROWS)]
    both = {"embedding_old": old, "embedding_new": new}
    models = {"embedding_old": "old-net", "embedding_new": "new-net"}
    return fct_tf.Gallery.create(path, ids, both, labels, **{"model": models, **settings})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """An affine transformation, fitted once in a temporary directory of its own."""
    train = make(tmp_path_factory.mktemp("api") / "train.lance", seed=1, prefix="train")
    return fct_tf.Transformation.fit(train, "embedding_old", "embedding_new", method="affine")


@pytest.fixture
def gallery(tmp_path):
    return make(tmp_path / "photos.lance")


def test_twelve_lines(tmp_path, monkeypatch):
    """Open, fit, upgrade, judge and tag, on vectors made in memory and no file but its own."""
    monkeypatch.chdir(tmp_path)
    make("train.lance", seed=1, prefix="train"), make("photos.lance")

    gallery = fct_tf.Gallery.open("photos.lance")
    transformation = fct_tf.Transformation.fit(
        "train.lance", "embedding_old", "embedding_new", method="affine"
    )
    print(gallery.upgrade(transformation, "embedding_fct", dry_run=True))
    gallery.upgrade(transformation, "embedding_fct")
    verdict = gallery.judge("embedding_old", "embedding_fct", "embedding_new")
    if verdict.compatible:
        gallery.tag("live")
    print(verdict)

    assert verdict.verdict == "compatible" and verdict.sentence == str(verdict)
    live = fct_tf.Gallery.open("photos.lance@live")
    assert live.version == gallery.version == 2 and list(live.columns)[-1] == "embedding_fct"
    assert gallery.tags == {"live": 2}


def test_what_is_in_a_gallery(gallery, capsys, run_door):
    assert (gallery.num_rows, len(gallery), gallery.version) == (ROWS, ROWS, 1)
    assert {name: column.model for name, column in gallery.columns.items()} == {
        "embedding_old": "old-net",
        "embedding_new": "new-net",
    }
    assert gallery.columns["embedding_new"].space == table.imported_space("new-net")
    assert run_door(inspect_gallery, f"--gallery={gallery.path}", "--json") == 0
    assert json.loads(capsys.readouterr().out) == gallery.describe()
    assert run_door(inspect_gallery, f"--gallery={gallery.path}") == 0
    assert capsys.readouterr().out == f"{gallery}\n"
    assert "embedding_old [8]" in repr(gallery) and f"{ROWS} rows" in repr(gallery)
    html = gallery._repr_html_()
    assert html.count("<tr>") == 3 and "<td>new-net</td>" in html
    assert gallery.verify() == []


def test_html_escapes_names(tmp_path):
    made = fct_tf.Gallery.create(tmp_path / "a.lance", ["a"], [[1.0]], model="<b>net</b>")
    assert "<b>" not in made._repr_html_() and "&lt;b&gt;net" in made._repr_html_()


def test_rows_come_by_id(gallery):
    labels, old, _ = vectors()
    rows = gallery.read("embedding_old", ["row7", "row3"])
    np.testing.assert_allclose(rows.vectors["embedding_old"], old[[7, 3]], rtol=1e-6)
    assert list(rows.labels) == [labels[7], labels[3]] and list(rows.ids) == ["row7", "row3"]
    whole = gallery.read(["embedding_old", "embedding_new"])
    assert whole.vectors["embedding_new"].shape == (ROWS, 8) and list(whole.labels) == labels
    assert list(gallery.take(["row1"]).vectors) == ["embedding_old", "embedding_new"]
    assert sum(len(batch) for batch in gallery.batches("embedding_old", 100)) == ROWS
    with pytest.raises(fct_tf.InputError, match="no row with id 'row999'"):
        gallery.take(["row999"])


@pytest.mark.parametrize("ids, labels, expected_ids, expected_labels", [
    (["a", "b"], None, ["a", "b"], [None, None]),
    ([1, 2], [5, 6], ["1", "2"], ["5", "6"]),
    (np.array(["a", "b"]), ["x", None], ["a", "b"], ["x", None]),
    (np.array([b"a", b"b"]), np.array(["x", "x"]), ["a", "b"], ["x", "x"]),
])  # fmt: skip
@pytest.mark.parametrize("dtype, stored", [("f8", "float32"), ("f2", "float16"), ("i4", "float32")])
def test_vectors_in_memory(tmp_path, ids, labels, expected_ids, expected_labels, dtype, stored):
    made = fct_tf.Gallery.create(
        tmp_path / "a.lance", ids, np.array([[1, 2], [3, 4]], dtype), labels, model="net"
    )
    column = made.columns["embedding"]
    assert (column.dtype, column.dim, column.distance) == (stored, 2, "l2")
    rows = made.read("embedding")
    assert (list(rows.ids), list(rows.labels)) == (expected_ids, expected_labels)
    np.testing.assert_array_equal(rows.vectors["embedding"], [[1, 2], [3, 4]])


GOOD = {"ids": ["a", "b"], "vectors": [[1.0, 2.0], [3.0, 4.0]], "model": "net"}


@pytest.mark.parametrize("given, message", [
    ({"ids": ["a", "a"]}, "ids: .*'a'"),
    ({"ids": ["a", None]}, "ids: row 1 has no id"),
    ({"ids": ["a"]}, "ids: 1 entries for 2 rows"),
    ({"ids": [0.5, 1.5]}, "ids: texts, whole numbers or UUIDs"),
    ({"labels": ["x"]}, "labels: 1 entries for 2 rows"),
    ({"vectors": [[1.0, np.nan], [3.0, 4.0]]}, "row 'a' with NaN"),
    ({"vectors": [1.0, 2.0]}, "two dimensions"),
    ({"vectors": [["x"], ["y"]]}, "no numbers"),
    ({"vectors": {}}, "holds no column"),
    ({"vectors": {"one": [[1.0], [2.0]], "two": [[1.0]]}}, "'two'.*: 1 rows for 2 ids"),
    ({"vectors": {"label": [[1.0], [2.0]]}}, "not a possible column name"),
    ({"vectors": [[0.0], [1.0]], "distance": "cosine"}, "'a'.*zero_vectors"),
    ({"distance": "dot"}, "distance 'dot'"),
    ({"model": ""}, "model is empty"),
    ({"model": {"other": "net"}}, "model: says nothing of the column 'embedding'"),
])  # fmt: skip
def test_bad_vectors_make_no_gallery(tmp_path, given, message):
    with pytest.raises(fct_tf.InputError, match=message):
        fct_tf.Gallery.create(tmp_path / "a.lance", **{**GOOD, **given})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_gallery_is_kept_unless_told(tmp_path):
    fct_tf.Gallery.create(tmp_path / "a.lance", **GOOD)
    with pytest.raises(fct_tf.InputError, match="exists already"):
        fct_tf.Gallery.create(tmp_path / "a.lance", **GOOD)
    made = fct_tf.Gallery.create(tmp_path / "a.lance", **GOOD, overwrite=True)
    assert made.version == 2
    with pytest.raises(fct_tf.InputError, match="not to 1"):
        fct_tf.Gallery.open(f"{made.path}@1").add_column("half", lambda rows: rows.vectors)


def test_columns_are_computed(gallery):
    made = gallery.add_column(
        "doubled", lambda rows: 2 * rows.vectors["embedding_old"], "embedding_old", batch_size=64
    )
    assert made is gallery and gallery.version == 2
    rows = gallery.read(["embedding_old", "doubled"])
    np.testing.assert_array_equal(rows.vectors["doubled"], 2 * rows.vectors["embedding_old"])
    space = gallery.columns["doubled"].space
    assert space not in {gallery.columns[name].space for name in ("embedding_old", "embedding_new")}
    for compute, message in (
        (lambda rows: np.ones(len(rows)), "compute returned float64"),
        (lambda rows: np.full((len(rows), 2), np.nan), "NaN"),
        (lambda rows: [["x"]] * len(rows), "compute returned"),
    ):
        with pytest.raises(fct_tf.InputError, match=message):
            gallery.add_column("bad", compute)
    with pytest.raises(fct_tf.InputError, match="exists already"):
        gallery.add_column("doubled", lambda rows: rows.vectors["embedding_old"], "embedding_old")
    assert gallery.version == fct_tf.Gallery.open(gallery.path).version == 2


def test_a_function_that_fails_halfway_leaves_nothing_to_go_on_from(gallery):
    """The next function may be another one under the same name."""

    def fail(rows):
        if rows.ids[0] != "row0":
            raise RuntimeError("mine")
        return rows.vectors["embedding_old"]

    with pytest.raises(RuntimeError, match="mine"):
        gallery.add_column("mine", fail, "embedding_old", batch_size=64)
    gallery.add_column("mine", lambda rows: -rows.vectors["embedding_old"], "embedding_old")
    rows = gallery.read(["embedding_old", "mine"])
    np.testing.assert_array_equal(rows.vectors["mine"], -rows.vectors["embedding_old"])


@pytest.mark.parametrize("way", ["array", "file"])
def test_embeddings_are_imported_by_id(gallery, tmp_path, way):
    values = np.arange(2.0 * ROWS).reshape(ROWS, 2)
    ids = [f"row{i}" for i in reversed(range(ROWS))]
    if way == "file":
        np.savez(tmp_path / "other.npz", embeddings=values, ids=np.array(ids))
        gallery.import_embeddings(tmp_path / "other.npz", "other", "other-net")
    else:
        gallery.import_embeddings(values, "other", "other-net", ids=ids)
    np.testing.assert_array_equal(gallery.read("other").vectors["other"], values[::-1])
    assert gallery.columns["other"].space == table.imported_space("other-net")
    with pytest.raises(fct_tf.InputError, match="no embedding for row 'row0'"):
        gallery.import_embeddings(values[:9], "more", "other-net", ids=ids[:9])


def test_search_finds_the_nearest(gallery):
    old = gallery.read("embedding_old").vectors["embedding_old"]
    found = gallery.search(old[[5, 9]], "embedding_old", k=3)
    assert found.ids.shape == found.distances.shape == (2, 3)
    assert list(found.ids[:, 0]) == ["row5", "row9"]
    squared = np.sum((old - old[5]) ** 2, axis=1)
    np.testing.assert_allclose(found.distances[0], np.sort(squared)[:3], rtol=1e-4, atol=1e-5)
    all_of_them = gallery.search(old[5], "embedding_old", k=ROWS + 2)
    assert list(all_of_them.ids[0, -2:]) == [None, None] and np.isinf(all_of_them.distances[0, -1])
    for bad, message in (
        ({"vectors": old[:, :3]}, "has 8 values per row"),
        ({"vectors": np.full((1, 8), np.nan)}, "NaN"),
        ({"k": 0}, "k=0"),
        ({"method": "other"}, "'exact' or 'scann'"),
        ({"method": "scann"}, "index=PATH"),
        ({"column": "none"}, "no embedding column 'none'"),
    ):
        with pytest.raises(fct_tf.InputError, match=message):
            gallery.search(**{"vectors": old, "column": "embedding_old", **bad})


def test_an_index_finds_what_exact_search_finds(gallery, tmp_path):
    old = gallery.read("embedding_old").vectors["embedding_old"]
    index = tmp_path / "i"
    gallery.build_index("embedding_old", index)
    found = gallery.search(old[:7], "embedding_old", k=3, method="scann", index=index)
    exact = gallery.search(old[:7], "embedding_old", k=3)
    assert found.ids.tolist() == exact.ids.tolist()
    by_index = gallery.evaluate("embedding_old", search="scann", index=index)
    assert by_index.cmc == gallery.evaluate("embedding_old").cmc and by_index.map is None
    with pytest.raises(fct_tf.InputError, match="overwrite=True"):
        gallery.build_index("embedding_old", index)
    with pytest.raises(fct_tf.InputError, match="goes with `search=scann`"):
        gallery.evaluate("embedding_old", index=index)


def test_evaluation_is_that_of_the_command(gallery, tmp_path, run_door):
    found = gallery.evaluate("embedding_old")
    flags = ["--gallery_column=embedding_old", "--query_column=embedding_old"]
    output = tmp_path / "results.json"
    paths = [f"--gallery={gallery.path}", f"--output={output}"]
    assert run_door(evaluate_command, *paths, *flags) == 0
    assert json.loads(output.read_text()) == json.loads(json.dumps(found.record))
    assert found.cmc[1] == found.record["cmc"][list(found.record["cmc"])[0]]
    assert found.map == found.record["map"] and len(found.per_query.rank) == ROWS
    assert np.mean(found.per_query.rank == 1) == found.cmc[1]
    assert str(found).startswith("embedding_old/embedding_old: CMC@1 ")
    assert len(found.by_class()) == CLASSES
    with pytest.raises(fct_tf.InputError, match="different spaces"):
        gallery.evaluate("embedding_old", query_column="embedding_new")


def test_upgrade_and_verdict_are_those_of_the_commands(fitted, tmp_path, run_door, capsys):
    by_hand, by_flag = (make(tmp_path / f"{name}.lance") for name in ("hand", "flag"))
    by_hand.upgrade(fitted, "embedding_fct", tag="live")
    flags = [f"--gallery={by_flag.path}", f"--transformation={fitted.path}"]
    assert run_door(upgrade_gallery, *flags, "--column=embedding_fct") == 0
    by_flag = fct_tf.Gallery.open(by_flag.path)
    assert by_hand.columns["embedding_fct"].space == by_flag.columns["embedding_fct"].space
    a, b = (g.read("embedding_fct").vectors["embedding_fct"] for g in (by_hand, by_flag))
    np.testing.assert_array_equal(a, b)
    capsys.readouterr()
    names = ("embedding_old", "embedding_fct", "embedding_new")
    flags = [f"--{key}={name}" for key, name in zip(("old", "upgraded", "new"), names, strict=True)]
    assert run_door(verdict, f"--gallery={by_hand.path}", *flags) == 0
    made = by_hand.judge(*names)
    assert capsys.readouterr().out == f"{made.sentence}\n" == f"{made}\n"
    assert made.record["labels"]["difference"] and "top-1" in made.details()
    with pytest.raises(fct_tf.InputError, match="ks"):
        by_hand.judge(*names, ks=())
    more = by_hand.judge(*names, groups="label", thresholds=[20.0], against="embedding_fct")
    assert more.record["slices"]["column"] == "label" and isinstance(more.losing_slices, list)
    assert more.record["thresholds"][0]["old"] == 20
    assert more.record["against"]["difference"]["map"]["mean"] == 0
    for bad, message in (
        ({"groups": "gone"}, "[.]lance: `groups=gone`: no column"),
        ({"thresholds": [1e9]}, "^`threshold=1e[+]09`: all of"),
    ):
        with pytest.raises(fct_tf.InputError, match=message):
            by_hand.judge(*names, **bad)
    with pytest.raises(fct_tf.InputError, match="exists already"):
        by_hand.upgrade(fitted, "embedding_fct")
    # What is there of it is what the transformation makes of arrays.
    old = by_hand.read("embedding_old").vectors["embedding_old"]
    np.testing.assert_allclose(fitted(old), a, rtol=1e-5, atol=1e-6)
    other = by_hand.upgrade(fitted, "embedding_fct", output=tmp_path / "own.lance")
    assert (other.path, list(other.columns)) == (str(tmp_path / "own.lance"), ["embedding_fct"])
    again = other.judge(*names, sample=by_hand, sources=by_hand)
    assert again.record["labels"] == made.record["labels"]


def test_a_plan_changes_nothing(fitted, gallery):
    plan = gallery.upgrade(fitted, "embedding_fct", dry_run=True)
    assert (plan.num_rows, plan.writes.name) == (ROWS, "embedding_fct")
    assert "rows:            240" in str(plan)
    assert gallery.version == fct_tf.Gallery.open(gallery.path).version == 1


def test_missing_rows_only(fitted, gallery):
    gallery.upgrade(fitted, "embedding_fct")
    same = gallery.upgrade(fitted, "embedding_fct", missing=True)
    assert same.num_rows == ROWS
    with pytest.raises(fct_tf.InputError, match="overwrite.*does not go with"):
        gallery.upgrade(fitted, "embedding_fct", missing=True, overwrite=True)


def test_pairs_correct_and_are_taken(fitted, gallery, tmp_path):
    pairs = gallery.sample(tmp_path / "pairs.lance", share=0.25)
    assert pairs.num_rows == ROWS // 4
    corrected = fct_tf.Transformation.fit(
        f"{pairs.path}", "embedding_old", "embedding_new", pairs=pairs, base=fitted
    )
    assert corrected.info["source_space"] == fitted.info["source_space"]
    gallery.upgrade(corrected, "embedding_fct", pairs=pairs)
    rows = gallery.read(["embedding_fct", "embedding_new"], fields=["embedding_fct_origin"])
    known = rows.fields["embedding_fct_origin"] == "backfilled"
    assert known.sum() == pairs.num_rows
    fct, new = rows.vectors["embedding_fct"], rows.vectors["embedding_new"]
    np.testing.assert_array_equal(fct[known], new[known])


def test_a_transformation_is_kept_and_published(fitted, gallery, tmp_path):
    old = gallery.read("embedding_old").vectors["embedding_old"]
    saved = fitted.save(tmp_path / "kept")
    loaded = fct_tf.Transformation.load(saved)
    np.testing.assert_array_equal(loaded(old), fitted(old))
    assert "old-net -> new-net" in repr(loaded) and loaded.dims == fitted.dims
    with pytest.raises(fct_tf.InputError, match="exists already"):
        fitted.save(saved)
    version = loaded.export(tmp_path / "models", batch_sizes=(1,), warmup_rows=gallery)
    np.testing.assert_allclose(fct_tf.Transformation.load(version)(old), fitted(old), atol=1e-5)
    with pytest.raises(fct_tf.InputError, match="a SavedModel alone"):
        fct_tf.Transformation.load(version).export(tmp_path / "more")


def test_rows_that_a_transformation_does_not_take(fitted):
    for given, message in (
        ((np.zeros((3, 5)),), r"reads \[n, 8\]"),
        ((np.zeros(8),), r"reads \[n, 8\]"),
        ((np.zeros((3, 8)), np.zeros((3, 2))), "trained without it; leave it out"),
    ):
        with pytest.raises(fct_tf.InputError, match=message):
            fitted(*given)
    with pytest.raises(fct_tf.InputError, match="no log-variance"):
        fitted(np.zeros((3, 8)), log_variance=True)
    assert fitted(np.zeros((0, 8))).shape == (0, 8)


def test_the_temporary_directory_lives_as_long_as_the_transformation(gallery):
    made = fct_tf.Transformation.fit(
        gallery, "embedding_old", "embedding_new", method="procrustes", name="turned"
    )
    path = made.path
    assert made.name == "turned" and path.is_dir()
    del made
    assert not path.exists()


def test_every_flag_of_the_commands_can_be_given():
    """A flag that a command gets later is not forgotten here."""
    from absl import flags

    from fct_tf import backfill_gallery, backfilling_curve, embed_gallery, sample_gallery

    # The gallery is the object; what is printed or written is returned.
    everywhere = {"gallery", "config", "config_dir", "storage_options"}  # Of `Gallery.open`.
    own_model = {"model_name", "image_size", "signature", "output_name", "preprocessing"}
    own_model |= {"resize", "distance", "orientation"}
    for method, command, others in (
        (api.Gallery.upgrade, upgrade_gallery, {"server", "server_timeout_s"}
         | {"server_batch_size"}),
        (api.Gallery.judge, verdict, {"output", "table", "require_compatible", "overwrite"}
         | {"require_compatible_slices", "threshold"}),  # `thresholds`: all at once.
        (api.Gallery.embed, embed_gallery, own_model),
        (api.Gallery.sample, sample_gallery, own_model),
        (api.Gallery.backfill, backfill_gallery, own_model),
        (api.Gallery.backfilling_curve, backfilling_curve, {"query", "output", "plot"}
         | {"overwrite", "max_centres"}),
        (api.Gallery.evaluate, evaluate_command, {"gallery_column", "query", "output"}
         | {"per_class_output", "overwrite", "transformation"}),  # `rerank` is it.
        (api.Transformation.fit, train_transformation, {"config"}),
    ):  # fmt: skip
        values = flags.FlagValues()
        command.define_flags(values)
        known = set(inspect.signature(method).parameters)
        assert set(values) - everywhere - others - known <= {"help"}, method


def test_no_message_of_the_api_names_a_flag(gallery, fitted, tmp_path):
    gallery.upgrade(fitted, "embedding_fct")
    fit, names = fct_tf.Transformation.fit, (gallery, "embedding_old", "embedding_new")
    for call, message in (
        (lambda: gallery.upgrade(fitted, "embedding_fct"), "pass `overwrite=True`"),
        (lambda: gallery.upgrade(fitted, "x", missing=True), "leave `missing=True` out"),
        (lambda: gallery.sample(tmp_path / "a.lance", share=2.0), "`share=2.0`: must be"),
        (lambda: gallery.sample(tmp_path / "a.lance"), "as `share` or as `rows`"),
        (lambda: gallery.evaluate("embedding_old", query_column="embedding_new"),
         "pass `allow_space_mismatch=True`"),
        (lambda: fit(*names, "embedding_fct", method="procrustes"), "`side_info`: procrustes ro"),
        (lambda: fit(*names, method="fct2"), "`method=fct2`"),
        (lambda: fit(*names, widht=3), "widht: unknown setting"),
        (lambda: fitted.save(gallery.path), "pass `overwrite=True`"),
    ):  # fmt: skip
        with pytest.raises(fct_tf.InputError, match=message) as caught:
            call()
        assert "--" not in str(caught.value)


@pytest.fixture(scope="module")
def with_images(tmp_path_factory):
    """A model of images, their source, and a gallery of theirs with the model's column."""
    import keras

    from tests import tiny

    directory = tmp_path_factory.mktemp("images")
    images = tiny.image_folder(directory / "photos", classes=3, per_class=8)
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    network.save(directory / "new.keras")
    files = sorted((images / "val").rglob("*.png"))
    ids = [str(file.relative_to(images)) for file in files]
    old = np.random.default_rng(0).normal(size=(len(ids), 4))
    gallery = fct_tf.Gallery.create(
        directory / "photos.lance", ids, old, [file.parent.name for file in files], model="old"
    )
    gallery.embed(f"folder:{images}:val", directory / "new.keras", "embedding_new")
    return directory / "new.keras", f"folder:{images}:val", files, gallery


def test_a_model_embeds_as_a_gallery_does(with_images):
    path, _, files, gallery = with_images
    model = fct_tf.Model.load(path)
    stored = gallery.read("embedding_new").vectors["embedding_new"]
    assert gallery.columns["embedding_new"].space == model.space and model.dim == 4
    np.testing.assert_allclose(model.embed(files, batch_size=4), stored, rtol=1e-4, atol=1e-3)
    # Pixels of any size, one or many.
    import tensorflow as tf

    pixels = [tf.io.decode_png(file.read_bytes(), 3).numpy() for file in files[:3]]
    for given in (pixels, np.stack(pixels)):
        np.testing.assert_allclose(model.embed(given), stored[:3], rtol=1e-4, atol=1e-3)
    assert model.embed([]).shape == (0, 4)
    for given, message in (
        (str(files[0]), "give a list of files"),
        ([files[0].with_name("none.png")], "none.png: cannot be read"),
        ([path], "cannot be decoded"),
        (np.zeros((2, 16, 16, 3)), "uint8"),
        ([np.zeros((16, 16), np.uint8)], r"images\[0\]"),
    ):
        with pytest.raises(fct_tf.InputError, match=message):
            model.embed(given)


def test_images_of_samples_and_backfilled_rows(with_images, tmp_path):
    path, images, files, gallery = with_images
    count = len(files)
    fct = fct_tf.Transformation.fit(gallery, "embedding", "embedding_new", method="procrustes")
    own = gallery.upgrade(fct, "embedding_fct", output=tmp_path / "own.lance")
    plan = own.backfill("embedding_fct", path, images, "5", policy="random", dry_run=True)
    assert plan.rows == 5 and "5 of" in str(plan) and own.version == 1
    done = own.backfill("embedding_fct", fct_tf.Model.load(path), images, "5", policy="random")
    assert (done.embedded, done.skipped, done.gallery) == (5, [], own) and own.version == 2
    column = {entry["name"]: entry for entry in own.describe()["columns"]}["embedding_fct"]
    assert column["num_backfilled"] == 5

    gallery = fct_tf.Gallery.open(gallery.path).upgrade(fct, "embedding_fct")
    curves = gallery.backfilling_curve("embedding_fct", "embedding_new", ["random", "distance"])
    assert set(curves.auc) == {"random", "distance"} and len(curves.records) == 6
    assert "distance" in str(curves)
    with pytest.raises(fct_tf.InputError, match="policies: is empty"):
        gallery.backfilling_curve("embedding_fct", "embedding_new", [])

    bare = fct_tf.Gallery.create(
        tmp_path / "bare.lance", gallery.read("embedding").ids, np.ones((count, 4)), model="old"
    )
    sample = bare.sample(tmp_path / "sample.lance", rows=4, images=images, model=path)
    assert list(sample.columns) == ["embedding", "embedding_new"] and sample.num_rows == 4


@pytest.mark.slow
def test_fastfill_tells_its_log_variance(tmp_path):
    train = make(tmp_path / "train.lance", seed=1, prefix="train")
    made = fct_tf.Transformation.fit(
        train, "embedding_old", "embedding_new", method="fastfill", train_steps=40, hidden=32
    )
    _, old, new = vectors()
    embedding, log_variance = made(old, log_variance=True)
    assert embedding.shape == new.shape and log_variance.shape == (ROWS,)
    np.testing.assert_array_equal(embedding, made(old))
    photos = make(tmp_path / "photos.lance").upgrade(made, "embedding_fct")
    stored = photos.read("embedding_fct", fields=["embedding_fct_log_variance"]).fields
    np.testing.assert_allclose(stored["embedding_fct_log_variance"], log_variance, atol=1e-4)


def test_arguments_of_other_types(gallery, fitted, tmp_path):
    """One line names the argument and what it may be, whatever method it is of."""
    old, row = gallery.read("embedding_old").vectors["embedding_old"][:3], ("row1",)
    made, out = gallery.build_index("embedding_old", tmp_path / "i"), tmp_path / "new"
    number, text = "must be a whole number", "must be a text"

    def search(vectors=old, k=5, **more):
        return gallery.search(vectors, "embedding_old", k, **more)

    for call, told in (
        (lambda: fct_tf.Gallery.open(5), "`uri=5`: must be a text or a path"),
        (lambda: fct_tf.Gallery.create(5, row, old[:1], model="m"), f"`path=5`: {text}"),
        (lambda: fct_tf.Gallery.create(out, row, old[:1], model=5), f"`model=5`: {text} or a dict"),
        (lambda: fct_tf.Gallery.create(out, row, [[1, 2], [3]], model="m"), "different lengths"),
        (lambda: search(k=2.5), f"`k=2.5`: {number}"),
        (lambda: search(k=True), f"`k=True`: {number}"),
        (lambda: search("abc"), "`vectors='abc'`: must be an array of numbers"),
        (lambda: search([[1, 2], [3]]), "must be an array of numbers"),
        (lambda: search(rerank=5), "`rerank=5`: must be a transformation or a text or a path"),
        (lambda: gallery.search(old, 5), f"`column=5`: {text}"),
        (lambda: gallery.build_index(5, out), f"`column=5`: {text}"),
        (
            lambda: gallery.build_index("embedding_old", out, recall="x"),
            "`recall='x'`: must be a n",
        ),
        (
            lambda: gallery.build_index("embedding_old", out, threads="x"),
            f"`threads='x'`: {number}",
        ),
        (lambda: gallery.build_index("embedding_old", out, num_leaves="5"), "num_leaves='5'"),
        (lambda: gallery.evaluate("embedding_old", ks=5), "must be a list of whole numbers"),
        (lambda: gallery.evaluate("embedding_old", ks=[1, 2.5]), "`ks=[1, 2.5]`: must be a list"),
        (lambda: gallery.evaluate("embedding_old", queries=5), "must be an opened gallery or a te"),
        (lambda: gallery.read(5), f"`columns=5`: {text} or a list of texts"),
        (lambda: gallery.take("row1"), "`ids='row1'`: must be a list of texts"),
        (lambda: next(gallery.batches("embedding_old", -1)), "`batch_size=-1`: must be 1 or more"),
        (lambda: gallery.tag(5), f"`name=5`: {text}"),
        (lambda: gallery.sample(out, share="a"), "`share='a'`: must be a number or None"),
        (lambda: gallery.upgrade(5, "b"), "`transformation=5`: must be a transformation or"),
        (lambda: gallery.add_column("b", 5), "`compute=5`: must be a callable"),
        (lambda: gallery.judge("embedding_old", None, "b"), f"`upgraded=None`: {text}"),
        (lambda: fitted([["a"] * 8]), "must be an array of numbers"),
        (lambda: fct_tf.Transformation.load(5), "`path=5`: must be a text or a path"),
        (lambda: fct_tf.Transformation.fit(gallery, "a", "b", method=5), "must be 'fct' or"),
        (lambda: fct_tf.Model.load(5), "`path=5`: must be a text or a path"),
        (lambda: made.search(old, 2.5, space=made.column), f"`k=2.5`: {number}"),
        (lambda: made.search(old, 2, space=5), "`space=5`: must be a text or a column or None"),
        (lambda: made.search(old, 2, space=made.column, exclude="ab"), "`exclude='ab'`: must be"),
        (lambda: made.upsert(["1"], [["a"] * 8]), "must be an array of numbers"),
        (lambda: made.delete("row1"), "`ids='row1'`: must be"),
    ):
        with pytest.raises(fct_tf.InputError) as caught:
            call()
        assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


def test_arguments_of_equal_types(gallery, tmp_path):
    """NumPy's numbers, arrays and tuples for lists, paths for texts, and None for an empty text."""
    column = "embedding_old"
    old = gallery.read((column,)).vectors[column]
    expected = gallery.search(old[:3], column, 5)
    for k, vectors in ((np.int64(5), old[:3]), (5, old[:3].tolist()), (np.uint8(5), old[:3])):
        np.testing.assert_array_equal(gallery.search(vectors, column, k).ids, expected.ids)
    plain = gallery.evaluate(column, ks=[1, 5], bootstrap=10).record
    for ks in ((1, 5), np.array([1, 5]), [np.int32(1), np.int64(5)]):
        evaluated = gallery.evaluate(
            column, ks=ks, bootstrap=np.int64(10), distance=None, query_column=None
        )
        assert json.dumps(evaluated.record) == json.dumps(plain)
    taken = gallery.take(np.array(["row2", "row1"], object), column)
    assert taken.ids.tolist() == ["row2", "row1"]
    assert gallery.sample(tmp_path / "s.lance", np.float32(0.5)).num_rows == ROWS // 2
    made = gallery.build_index(column, tmp_path / "i", num_leaves=np.int64(4), threads=np.int64(1))
    assert made.manifest["settings"]["num_leaves"] == 4
    with pytest.raises(TypeError, match="unexpected keyword argument 'kk'"):
        gallery.search(old, column, kk=5)
    assert "vectors: Any, column: str, k: int = 10" in str(inspect.signature(gallery.search))
