"""A study that starts from rows: two tables of stored embeddings, no image, no model."""

import dataclasses
import json

import numpy as np
import pytest

from fct_tf import config as schema
from fct_tf import study as study_command
from fct_tf import train_backbone, train_side_info
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.experiments import across, stored
from fct_tf.experiments import study as study_run
from fct_tf.experiments.validate import validate
from fct_tf.gallery import table
from fct_tf.models import linear
from fct_tf.retrieval import exact
from tests.config.test_config import load

DIMS = {"v1": 6, "v2": 5, "beside": 3}
LABELS = [f"class {number}" for number in range(5)]


def column(name, *, space="", distance="l2", dim=0):
    kind = "side_info" if name == "beside" else "imported"
    return table.Column(
        name,
        dim or DIMS[name],
        space or table.imported_space(name),
        kind=kind,
        distance=distance,
        created_by={"model": name},
    )


def write(path, count, *, seed, columns=None, labels=LABELS, overwrite=False):
    """A gallery of classes in a plane, seen by each model through a map of its own."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % len(LABELS)
    hidden = np.random.default_rng(0).normal(size=(len(LABELS), 4))[classes]
    hidden = hidden + 0.5 * rng.normal(size=hidden.shape)
    columns = columns or [column(name) for name in DIMS]
    vectors = {}
    for made in columns:
        seen = np.random.default_rng(len(made.name)).normal(size=(4, made.dim))
        noise = 0.1 * rng.normal(size=(count, made.dim))
        vectors[made.name] = (hidden @ seen + noise).astype(np.float32)
    ids = np.array([f"{path.stem}/{row}" for row in range(count)], object)
    named = np.array([labels[k] for k in classes], object) if labels else None
    rows = table.Rows(ids, named, vectors)
    return table.create(path, [rows], columns, overwrite=overwrite, rows_per_file=16)


def experiment(directory):
    config = schema.experiment("rows")
    config.dataset.train = f"rows:{directory / 'train.lance'}"
    config.dataset.gallery = f"rows:{directory / 'test.lance'}"
    config.models.old = schema.stored("v1")
    config.models.new = schema.stored("v2")
    config.side_info = schema.stored_side_info("beside")
    config.evaluation.ks, config.evaluation.bootstrap = (1, 5), 20
    for name in ("affine", "affine_pairs", "affine_side_info"):
        section = schema.transformation(side_info=name == "affine_side_info")
        section.map = "affine"
        config.transformations[name] = section
    config.transformations.affine_pairs.pairs.share = 0.25
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The experiment, the directory of its tables and of its run, the records."""
    directory = tmp_path_factory.mktemp("rows")
    write(directory / "train.lance", 60, seed=1)
    write(directory / "test.lance", 40, seed=2)
    config = experiment(directory)
    return config, directory, study_run.study(config, directory / "run")


def test_records_are_those_of_the_tables(finished):
    config, directory, records = finished
    found = {record["case"]: record for record in records}
    assert [*found] == [
        "old/old",
        # No new/old: the sizes differ.
        "new/T(old) affine",
        "new/T(old) affine_pairs",
        "new/T(old) affine_side_info",
        "new/new",
        "side_info/side_info",
        "old/old (remaining 75 %)",
        "new/T(old) affine_pairs (remaining 75 %)",
        "new/new (remaining 75 %)",
    ]
    test = table.open_gallery(str(directory / "test.lance")).read([*DIMS], with_labels=True)
    train = table.open_gallery(str(directory / "train.lance")).read([*DIMS])
    info = read_json(directory / "run" / "seed_0" / "affine" / "artifact" / "model.json")
    matrix, offset = linear.ridge_affine(
        train.vectors["v1"], train.vectors["v2"], info["chosen"]["ridge"]
    )
    mapped = (test.vectors["v1"] @ matrix + offset).astype(np.float32)
    for case, query, gallery in (
        ("old/old", test.vectors["v1"], test.vectors["v1"]),
        ("new/new", test.vectors["v2"], test.vectors["v2"]),
        ("side_info/side_info", test.vectors["beside"], test.vectors["beside"]),
        ("new/T(old) affine", test.vectors["v2"], mapped),
    ):
        sides = (test.ids, test.labels)
        measured = exact.per_query(query, *sides, gallery, *sides)
        assert found[case]["map"] == pytest.approx(np.mean(measured.average_precision), abs=1e-3)
        assert found[case]["num_queries"] == 40
    assert found["old/old"]["query"]["model"] == "v1"
    assert found["new/T(old) affine"]["criterion"]["map"]["mean"] == pytest.approx(
        found["new/T(old) affine"]["map"] - found["old/old"]["map"]
    )
    assert read_json(directory / "run" / "run.json")["config"]["models"]["new"]["dim"] == 5


@dataclasses.dataclass(frozen=True)
class Measuring(across.across.Measuring):
    """Times that nobody reads need not be exact."""

    rounds: int = 1
    seconds: float = 0.001


@pytest.mark.slow
def test_approximate_search_through_the_change_is_a_stage(finished, monkeypatch):
    monkeypatch.setattr(across.across, "Measuring", Measuring)
    config, directory, records = finished
    workdir, section = directory / "run", config.evaluation.scann
    output = workdir / "across.json"
    assert not output.exists()
    settings = {path: path.read_text() for path in workdir.glob("seed_*/**/settings.json")}
    section.transformations, section.backfilled = ("affine", "affine_pairs"), (0.5,)
    try:
        assert study_run.study(config, workdir) == records
        assert all(path.read_text() == text for path, text in settings.items())
        found = read_json(output)
        path = workdir / "seed_0" / "evaluation" / "across_affine" / "across.json"
        made = path.stat().st_mtime_ns
        html = (workdir / "report" / "index.html").read_text()
        study_run.study(config, workdir)
        assert path.stat().st_mtime_ns == made and read_json(output) == found
        section.backfilled = (0.25, 0.5)
        study_run.study(config, workdir)
        assert len(read_json(output)) == len(found) + 4
        section.transformations = ("nothing",)
        with pytest.raises(InputError, match=r"evaluation\.scann\.transformations: 'nothing'"):
            study_run.study(config, workdir)
    finally:
        section.transformations, section.backfilled = (), (0.2, 0.5)
    assert "<h2>Approximate search through the change</h2>" in html
    names = ("old/old", "new/T(old) {}", "new/T(old) {}, 50 % backfilled", "new/new")
    expected = [name.format(method) for method in ("affine", "affine_pairs") for name in names]
    assert [*dict.fromkeys((one["method"], one["case"]) for one in found)] == [
        (("affine", "affine_pairs")[place // 4], name) for place, name in enumerate(expected)
    ]
    cmc = {record["case"]: record["cmc"] for record in records}
    for one in found:  # So few rows are searched exactly.
        assert one["recall"]["1"] == 1
        if one["case"] in cmc:
            assert one["cmc"] == pytest.approx(cmc[one["case"]])
    study_run.study(config, workdir)
    assert not output.exists()


def test_costs_that_nobody_knows_here_are_not_told(finished):
    _, directory, records = finished
    costs = {record["case"]: record["cost"] for record in records if "cost" in record}
    pairs = costs["new/T(old) affine_pairs"]
    assert pairs["model_s"] is pairs["reembed_million_rows_s"] is None
    assert pairs["transformation_s"] > 0 and pairs["bytes_per_row"] == 4 * 6
    assert costs["new/T(old) affine_side_info"]["bytes_per_row"] == 4 * (6 + 3)
    html = (directory / "run" / "report" / "index.html").read_text()
    assert "new/T(old) affine_pairs" in html and "n/a" in html


def test_pairs_keep_the_new_embedding(finished):
    _, directory, _ = finished
    rows = directory / "run" / "seed_0" / "rows"
    pairs = table.open_gallery(str(rows / "pairs_0.25_random" / "pairs.lance")).read([]).ids
    names, origin = ["embedding_new", "embedding_affine_pairs"], "embedding_affine_pairs_origin"
    stored = table.open_gallery(str(rows / "gallery" / "gallery.lance")).read(
        names, fields=[origin]
    )
    known = np.isin(stored.ids, pairs)
    assert known.sum() == 10
    np.testing.assert_array_equal(stored.fields[origin] == "backfilled", known)
    np.testing.assert_array_equal(*(stored.vectors[name][known] for name in names))


def test_the_users_tables_stay_and_a_second_run_makes_nothing(finished):
    config, directory, records = finished
    for name in ("train", "test"):
        gallery = table.open_gallery(str(directory / f"{name}.lance"))
        assert gallery.version == 1 and [*gallery.columns] == [*DIMS]
    made = [*directory.glob("run/seed_0/**/*")]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert study_run.study(config, directory / "run") == records
    assert {path: path.stat().st_mtime_ns for path in directory.glob("run/seed_0/**/*")} == before


def test_other_rows_at_the_same_path_are_measured_anew(tmp_path):
    write(tmp_path / "train.lance", 30, seed=1)
    write(tmp_path / "test.lance", 20, seed=2)
    config = experiment(tmp_path)

    def copied():
        path = stored.tables(stored.opened(config), tmp_path / "run").gallery
        return path.stat().st_ino, table.open_gallery(str(path)).read(["embedding_old"]).vectors

    first, vectors = copied()
    gallery = table.open_gallery(str(tmp_path / "test.lance"))
    # A column that the study does not read is no other table.
    table.add_column(gallery, column("v9", dim=2), lambda rows: rows.vectors["v1"][:, :2], ["v1"])
    assert copied()[0] == first
    gallery = write(tmp_path / "test.lance", 20, seed=3, overwrite=True)
    again = copied()[1]["embedding_old"]
    assert not np.array_equal(again, vectors["embedding_old"])
    np.testing.assert_array_equal(again, gallery.read(["v1"]).vectors["v1"])
    # Neither are rows that were replaced or taken away.
    gallery.dataset.delete("id = 'test/3'")
    assert len(copied()[1]["embedding_old"]) == 19


def test_queries_of_their_own_and_a_table_at_a_version(tmp_path):
    write(tmp_path / "train.lance", 30, seed=1)
    write(tmp_path / "test.lance", 20, seed=2)
    write(tmp_path / "asked.lance", 15, seed=3)
    config = experiment(tmp_path)
    config.dataset.query = f"rows:{tmp_path / 'asked.lance'}@1"
    for name in [*config.transformations]:
        del config.transformations[name]
    for record in study_run.study(config, tmp_path / "run"):
        counts = [record[f"num_{what}"] for what in ("queries", "gallery", "self_removed")]
        assert counts == [15, 20, 0]


@pytest.mark.slow
def test_fastfill_with_the_new_models_classifier_and_curves(finished, tmp_path):
    _, directory, _ = finished
    weights = np.random.default_rng(5).normal(size=(len(LABELS), DIMS["v2"])).astype(np.float32)
    np.save(tmp_path / "classifier.npy", weights)
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    config = experiment(directory)
    for name in [*config.transformations]:
        del config.transformations[name]
    section = schema.fastfill_transformation(train_epochs=1, warmup_epochs=1, batch_size=16)
    section.hidden = 8
    config.transformations.fastfill = section
    config.models.new.classifier = str(tmp_path / "classifier.npy")
    config.models.new.classifier_labels = str(tmp_path / "labels.txt")
    config.evaluation.backfilling.policies = ("uncertainty", "random")
    config.evaluation.backfilling.random_orders = 1
    study_run.study(config, tmp_path / "run")
    curves = read_json(tmp_path / "run" / "backfilling.json")
    assert [record["policy"] for record in curves] == ["uncertainty", "random"]
    config.models.new.classifier = str(tmp_path / "none.npy")
    with pytest.raises(InputError, match=r"models\.new\.classifier: .*none\.npy"):
        study_run.study(config, tmp_path / "other")


def changed(config, **settings):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in settings.items()})
    return config


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dataset__gallery": "folder:photos:val"}, r"dataset\.gallery: 'folder:photos:val', but"),
        ({"dataset__train": "glyphs:train"}, r"dataset\.gallery: 'rows:.*', but dataset\.train is"),
        ({"dataset__query": "glyphs:test"}, r"dataset\.query: 'glyphs:test', but"),
        ({"dataset__image_size": 224}, r"dataset\.image_size: is a setting of images"),
        ({"dataset__cache": "none"}, r"dataset\.cache: is a setting of images"),
        ({"dataset__gallery_classes__first": 3}, r"dataset\.gallery_classes: is a setting of im"),
        ({"training__embed_batch_size": 8}, r"training\.embed_batch_size: is a setting of images"),
        ({"side_info__method": "simclr"}, r"side_info\.method: simclr is trained on images"),
        ({"side_info__method": "none"}, r"side_info: side_info\.method is none; set it to stored"),
        ({"models__old__column": "v7"}, r"models\.old\.column: .*test|train.*'v7'; there are: v1"),
        ({"side_info__column": "v7"}, r"side_info\.column: .*no embedding column 'v7'"),
        ({"models__new__column": "v1"}, r"models\.old\.column: 'v1' lies in the space of models.n"),
        ({"models__new__dim": 7}, r"models\.new\.dim: 7, but 'v2' has 5; leave it out"),
        ({"evaluation__distance": "cosine"}, r"evaluation\.distance: cosine, but .* set it to l2"),
        ({"dataset__train": "rows:nowhere.lance"}, r"dataset\.train: nowhere\.lance: no gallery"),
        ({"dataset__gallery": "rows:"}, r"dataset\.gallery: "),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_named_before_anything_is_made(finished, tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as error:
        study_run.study(changed(finished[0], **settings), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_models_and_classifiers_of_the_other_kind(finished):
    config = finished[0].copy_and_resolve_references()
    config.models.newer = schema.model()
    with pytest.raises(InputError, match=r'models\.newer: is a model to train.*schema.stored\("C'):
        validate(config)
    images = load("glyphs")
    images.models.older = schema.stored("v1")
    with pytest.raises(InputError, match=r"models\.older: is a stored column.*schema.model\(\)"):
        validate(images)
    images = load("glyphs")
    images.side_info.method = "stored"
    with pytest.raises(InputError, match=r"side_info\.method: stored, .*schema.side_info\(\)"):
        validate(images)
    config = finished[0].copy_and_resolve_references()
    config.side_info = schema.side_info()
    config.side_info.method = "stored"
    with pytest.raises(InputError, match=r"side_info\.method: stored, .*stored_side_info"):
        validate(config)
    config = finished[0].copy_and_resolve_references()
    config.transformations.fastfill = schema.fastfill_transformation()
    with pytest.raises(InputError, match=r"fastfill\.discriminative_weight: .*models.new.classif"):
        validate(config)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"columns": [column("v1", space="f00d"), column("v2"), column("beside")]}, "of v1"),
        ({"columns": [column("v1", dim=4), column("v2"), column("beside")]}, "6 values"),
        ({"labels": None}, "no row has a label"),
        ({"count": 0}, r"dataset\.gallery: .*has no rows"),
    ],
    ids=["space", "dim", "labels", "rows"],
)
def test_tables_that_do_not_fit(finished, tmp_path, settings, message):
    write(tmp_path / "other.lance", settings.pop("count", 20), seed=2, **settings)
    config = changed(finished[0], dataset__gallery=f"rows:{tmp_path / 'other.lance'}")
    with pytest.raises(InputError, match=message):
        study_run.study(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_chain_of_columns_of_different_sizes_needs_transformations(finished, tmp_path):
    config = finished[0].copy_and_resolve_references()
    config.chains.versions = schema.chain("old", "new")
    with pytest.raises(InputError, match=r"chains\.versions\.versions: .*differ in size"):
        study_run.study(config, tmp_path / "run")


def test_commands_on_an_experiment_of_rows(finished, run_door, tmp_path, capsys):
    _, directory, records = finished
    path = tmp_path / "e.py"
    path.write_text(
        "from pathlib import Path\nfrom tests.experiments.test_stored import experiment\n"
        f"def get_config():\n    return experiment(Path({str(directory)!r}))\n"
    )
    config, workdir = f"--config={path}", f"--workdir={directory / 'run'}"
    assert run_door(study_command, config, workdir) == 0
    shown = capsys.readouterr().out
    assert "new/T(old) affine_side_info" in shown and "index.html" in shown
    assert json.loads((directory / "run" / "results.json").read_text()) == records
    other = f"--workdir={tmp_path / 'trained'}"
    assert run_door(train_backbone, config, "--model=new", other) == 2
    assert "models.new.column: 'v2' is stored" in capsys.readouterr().err
    assert run_door(train_side_info, config, other) == 2
    assert "side_info.method: 'stored'" in capsys.readouterr().err


@pytest.mark.slow
def test_published_text_models(shared_datasets, tmp_path):
    """Vectors of other people's models alone: the figures of the experiment's head."""
    config = load("text_rows")
    for role, name in (("train", "train"), ("gallery", "test")):
        config.dataset[role] = f"rows:{shared_datasets / 'text_rows' / name}.lance"
    config.evaluation.bootstrap = 0
    config.evaluation.backfilling.policies = ()
    config.evaluation.backfilling.transformations = ()
    for name in [*config.transformations]:
        if name not in ("affine", "affine_fused"):
            del config.transformations[name]
    records = study_run.study(config, tmp_path)
    found = {
        record["case"]: [
            round(100 * v, 2) for v in (*(record["cmc"][k] for k in "15"), record["map"])
        ]
        for record in records
    }
    assert found["old/old"] == [89.87, 96.81, 57.99]
    assert found["new/new"] == [92.47, 98.06, 67.30]
    assert found["new/T(old) affine"] == pytest.approx([82.29, 94.10, 49.41], abs=0.05)
    fused = found["old+new/old+T(old) affine_fused"]
    assert fused == pytest.approx([91.46, 97.58, 60.70], abs=0.05)
