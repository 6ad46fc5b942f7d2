"""Chains of three versions and query-side maps: a whole study, its numbers worked out again."""

import json
import shutil

import numpy as np
import pytest

from fct_tf import config as schema
from fct_tf import study, upgrade_gallery
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.experiments import study as study_run
from fct_tf.experiments.cases import chain_cases
from fct_tf.experiments.chains import matrices, upgrade_in_turn
from fct_tf.experiments.validate import validate
from fct_tf.gallery import table
from fct_tf.ingest import match_dims
from fct_tf.models import backbone, export, linear, saved_model
from fct_tf.report import chain_tables, page
from fct_tf.retrieval import compatibility, exact, two_columns
from fct_tf.serving import publish
from fct_tf.training import transformation
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # A whole study; test_study.py has one that is fast.


def experiment(images):
    """v1, v2, v3 of one size, a compatible chain of three sizes, maps in both directions."""
    config = tiny.experiment(images, epochs=1)
    config.dataset.query = f"folder:{images}:train"
    config.training.deterministic = False
    model = config.models.new
    for name, classes in {"v1": 2, "v2": 3, "v3": 4, "v2_bct": 3, "v3_bct": 4}.items():
        config.models[name] = model.copy_and_resolve_references()
        config.models[name].classes.first = classes
        config.models[name].backbone.embedding_dim = {"v2_bct": 8, "v3_bct": 4}.get(name, 5)
    config.models.v2_bct.compatibility.update(method="bct", old="v1")
    config.models.v3_bct.compatibility.update(method="bct", old="v2_bct")
    del config.models.old, config.models.new, config.transformations.fct
    config.side_info.backbone.embedding_dim = 3
    recipe = config.transformations.fct_no_side_info
    del config.transformations.fct_no_side_info
    for name, settings in {
        "h12": {"source": "v1", "target": "v2", "map": "affine", "side_info": True},
        "h23": {"source": "v2", "target": "v3", "map": "affine", "side_info": True},
        "h13": {"source": "v1", "target": "v3", "map": "affine"},
        "composed": {
            "source": "v1",
            "target": "v3",
            "side_info": True,
            "compose": ("h12", "h23"),
        },
        "back": {"source": "v2", "target": "v1", "map": "affine", "side": "query"},
        "back_mlp": {"source": "v3", "target": "v1", "side": "query"},
    }.items():
        config.transformations[name] = recipe.copy_and_resolve_references()
        config.transformations[name].update(settings)
    config.chains.independent = schema.chain("v1", "v2", "v3")
    config.chains.bct = schema.chain("v1", "v2_bct", "v3_bct")
    config.chains.fct = schema.chain("v1", "v2", "v3", transformations=("h12", "h23", "h13"))
    through = ("h12", "h23", "composed")
    config.chains.fct_composed = schema.chain("v1", "v2", "v3", transformations=through)
    config.chains.query = schema.chain("v1", "v2", transformations=("back",))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run once: its experiment, working directory and records."""
    directory = tmp_path_factory.mktemp("chains")
    config = experiment(tiny.image_folder(directory / "images"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "build", tiny.one_layer)
        patch.setattr(page, "write", lambda *_, **__: None)  # See test_page.py.
        records = study_run.study(config, directory / "run")
    return config, directory / "run", records


def rows(workdir, role, *columns):
    gallery = table.open_gallery(str(workdir / "seed_0" / "rows" / role / "gallery.lance"))
    return gallery, gallery.read(list(columns), with_labels=True)


def test_every_pair_is_evaluated_once(finished):
    config, _, records = finished
    names = [record["case"] for record in records]
    assert len(set(names)) == len(names)
    assert {name: chain_names(config, name) for name in config.chains} == {
        "independent": [["v1/v1"], ["v2/v1", "v2/v2"], ["v3/v1", "v3/v2", "v3/v3"]],
        "bct": [
            ["v1/v1"],
            ["v2_bct/v1", "v2_bct/v2_bct"],
            ["v3_bct/v1", "v3_bct/v2_bct", "v3_bct/v3_bct"],
        ],
        "fct": [
            ["v1/v1"],
            ["v2/T(v1) h12", "v2/v2"],
            ["v3/T(v1) h13", "v3/T(v2) h23", "v3/v3"],
        ],
        "fct_composed": [
            ["v1/v1"],
            ["v2/T(v1) h12", "v2/v2"],
            ["v3/T(v1) composed", "v3/T(v2) h23", "v3/v3"],
        ],
        "query": [["v1/v1"], ["T(v2)/v1 back", "v2/v2"]],
    }
    pairs = ["v1/v1", "v2/v1", "v2/v2", "v3/v1", "v3/v2", "v3/v3", "side_info/side_info"]
    assert sorted(name for name in names if "T(" not in name and "bct" not in name) == sorted(pairs)
    methods = {record["case"]: record["method"] for record in records}
    assert methods["v3_bct/v1"] == "bct" and methods["v3/v1"] == "independent"
    assert methods["v3/T(v1) composed"] == "composed" and methods["T(v2)/v1 back"] == "back"


def chain_names(config, name):
    return [[case.name for case in row] for row in chain_cases(config, name)]


def test_matrices_against_the_rows_themselves(finished):
    """Every value anew, from the models' own embeddings."""
    config, workdir, _ = finished
    own = [f"embedding_{name}" for name in config.models]
    _, query = rows(workdir, "query", *own)
    _, gallery = rows(workdir, "gallery", *own, "side_info")
    side_info = gallery.vectors["side_info"]
    run = {
        name: saved_model.load_transformation(workdir / "seed_0" / name / "saved_model")
        for name in ("h12", "h23", "h13", "back")
    }

    def of(read, version):
        return read.vectors[f"embedding_{version}"]

    upgraded = {
        "h12": run["h12"](of(gallery, "v1"), side_info)["embedding"],
        "h23": run["h23"](of(gallery, "v2"), side_info)["embedding"],
        "h13": run["h13"](of(gallery, "v1"))["embedding"],
    }
    upgraded["composed"] = run["h23"](upgraded["h12"], side_info)["embedding"]

    def sides(chain, new, old):
        q, g = of(query, new), of(gallery, old)
        if chain == "bct":  # 5, 8 and 4 values.
            wide = np.zeros((len(q), 8), np.float32)
            wide[:, : q.shape[1]] = q
            q = wide[:, : g.shape[1]]
        elif chain == "query":
            q = q if new == old else run["back"](q)["embedding"]
        elif chain != "independent" and new != old:
            third = "h13" if chain == "fct" else "composed"
            g = upgraded[{("v2", "v1"): "h12", ("v3", "v2"): "h23"}.get((new, old), third)]
        return q, g

    chains = read_json(workdir / "chains.json")
    assert list(chains) == list(config.chains)
    for name, chain in chains.items():
        assert list(chain["metrics"]) == ["cmc@1", "cmc@5", "map"]
        found = {metric: {} for metric in chain["metrics"]}
        for i, new in enumerate(chain["versions"]):
            for j, old in enumerate(chain["versions"][: i + 1]):
                q, g = sides(name, new, old)
                case = exact.per_query(q, query.ids, query.labels, g, gallery.ids, gallery.labels)
                found["cmc@1"][i, j] = np.mean(case.rank == 1)
                found["cmc@5"][i, j] = np.mean(case.rank <= 5)
                found["map"][i, j] = np.mean(case.average_precision)
        for metric, values in chain["metrics"].items():
            expected = found[metric]
            told = {(i, j): v for i, row in enumerate(values["matrix"]) for j, v in enumerate(row)}
            assert told.keys() == expected.keys()
            for pair, value in expected.items():
                assert told[pair] == pytest.approx(value, abs=1e-6), (name, metric, pair)
            pairs = [pair for pair in expected if pair[0] > pair[1]]
            better = [expected[pair] > expected[pair[1], pair[1]] for pair in pairs]
            assert values["ac"] == pytest.approx(sum(better) / len(better))
            assert values["am"] == pytest.approx(sum(expected.values()) / len(expected))
            assert values["seeds"]["0"]["matrix"] == values["matrix"]


def test_a_query_side_map_runs_over_queries_and_leaves_the_gallery_alone(finished):
    _, workdir, records = finished
    _, train = rows(workdir, "train", "embedding_v1", "embedding_v2")
    queries, read = rows(workdir, "query", "embedding_v2", "embedding_back")
    gallery, _ = rows(workdir, "gallery", "embedding_v1")
    info = read_json(workdir / "seed_0" / "back" / "artifact" / "model.json")
    assert info["source_space"] == queries.column("embedding_v2").space
    assert info["target_space"] == gallery.column("embedding_v1").space
    x, y = train.vectors["embedding_v2"], train.vectors["embedding_v1"]
    fitted = linear.ridge_affine(x.astype(float), y.astype(float), info["chosen"]["ridge"])
    expected = read.vectors["embedding_v2"] @ fitted[0] + fitted[1]
    np.testing.assert_allclose(read.vectors["embedding_back"], expected, rtol=1e-4, atol=1e-5)
    assert {"embedding_back", "embedding_back_mlp"} <= set(queries.columns)
    assert not {"embedding_back", "embedding_back_mlp"} & set(gallery.columns)
    # No case needs the permission to compare spaces that do not fit.
    columns = (queries.column("embedding_back"), gallery.column("embedding_v1"))
    table.check_spaces(*columns)
    record = {record["case"]: record for record in records}["T(v2)/v1 back"]
    assert record["query"]["column"] == "embedding_back"
    assert record["gallery"]["column"] == "embedding_v1"


def test_a_query_side_map_is_served_like_any_other(finished, tmp_path):
    _, workdir, _ = finished
    served = export.build(workdir / "seed_0" / "back_mlp" / "artifact")
    path = publish.publish(served, tmp_path / "back")
    served = saved_model.load_transformation(path)
    _, read = rows(workdir, "query", "embedding_v3", "embedding_back_mlp")
    found = served(read.vectors["embedding_v3"])["embedding"]
    np.testing.assert_allclose(found, read.vectors["embedding_back_mlp"], rtol=1e-5, atol=1e-6)
    assert served.dims == {"source_embedding": 5, "embedding": 5}


def test_a_model_of_another_size_is_compared_at_the_old_ones(finished):
    _, workdir, records = finished
    names = ["embedding_v2_bct", "embedding_v2_bct_as_v1", "embedding_v3_bct_as_v2_bct"]
    queries, read = rows(workdir, "query", *names, "embedding_v3_bct")
    gallery, _ = rows(workdir, "gallery", "embedding_v1")
    cut, filled = (queries.column(name) for name in names[1:])
    assert (cut.dim, filled.dim) == (5, 8)
    np.testing.assert_array_equal(read.vectors[names[1]], read.vectors[names[0]][:, :5])
    padded = np.zeros((len(read.ids), 8), np.float32)
    padded[:, :4] = read.vectors["embedding_v3_bct"]
    np.testing.assert_array_equal(read.vectors[names[2]], padded)
    table.check_spaces(cut, gallery.column("embedding_v1"))
    whole = queries.column("embedding_v2_bct")
    # The same space as that of embed_gallery --match_dims.
    assert cut.space == match_dims.space_of(whole.space, 5) != whole.space
    assert cut.created_by["settings"]["match_dims"] == 5 and cut.model == "v2_bct"
    found = {record["case"]: record["query"]["column"] for record in records}
    assert found["v2_bct/v1"] == names[1] and found["v2_bct/v2_bct"] == names[0]
    assert found["v3_bct/v2_bct"] == names[2] and found["v3_bct/v1"] == "embedding_v3_bct_as_v1"
    assert not any("_as_" in name for name in gallery.columns)


def test_match_dims():
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert match_dims.truncate_or_pad(vectors, 2).tolist() == [[0, 1], [3, 4]]
    assert match_dims.truncate_or_pad(vectors, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert match_dims.truncate_or_pad(vectors, 3).dtype == np.float32


def test_a_second_run_does_nothing(finished, monkeypatch):
    config, workdir, records = finished
    patterns = ("*/saved_model/saved_model.pb", "*/artifact/model.json", "evaluation/*/*.json")
    made = [path for pattern in patterns for path in (workdir / "seed_0").glob(pattern)]
    before = {path: path.stat().st_mtime_ns for path in made}

    def versions():
        return {p: len(list(p.glob("_versions/*"))) for p in workdir.glob("seed_*/rows/*/*.lance")}

    tables = versions()
    monkeypatch.setattr(two_columns, "evaluate_queries", None)
    assert study_run.run_seed(config, workdir / "seed_0", 0) == records
    assert {path: path.stat().st_mtime_ns for path in made} == before and len(before) > 40
    assert versions() == tables and len(tables) == 3


def test_queries_that_are_the_gallery(finished, tmp_path):
    """The maps of the query side then add their columns to the one table there is."""
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    changed = config.copy_and_resolve_references()
    changed.dataset.query = ""
    section = schema.transformation("v1", "v2")
    section.pairs.share = 0.5
    path = tmp_path / "run" / "seed_0" / "rows" / "gallery" / "gallery.lance"
    pairs = study_run._pairs_table(section, tmp_path, path, 0)
    drawn = read_json(tmp_path / "rows" / "pairs_0.5_random" / "settings.json")
    records = {r["case"]: r for r in study_run.run_seed(changed, tmp_path / "run" / "seed_0", 0)}
    columns = ("embedding_back", "embedding_v1", "embedding_v2_bct")
    _, read = rows(tmp_path / "run", "gallery", *columns)
    names = (read.ids, read.labels)
    for case, query in (
        ("T(v2)/v1 back", read.vectors["embedding_back"]),
        ("v2_bct/v1", read.vectors["embedding_v2_bct"][:, :5]),
    ):
        found = exact.per_query(query, *names, read.vectors["embedding_v1"], *names)
        assert records[case]["map"] == pytest.approx(np.nanmean(found.average_precision))
        assert records[case]["num_self_removed"] == len(read.ids)
    # The columns that are made for the evaluation do not make another sample.
    assert "embedding_v2_bct_as_v1" in table.open_gallery(str(path)).columns
    assert study_run._pairs_table(section, tmp_path, path, 0) == pairs
    assert read_json(tmp_path / "rows" / "pairs_0.5_random" / "settings.json") == drawn


def test_a_study_without_chains_leaves_no_matrices(finished, tmp_path, monkeypatch):
    config, workdir, records = finished
    shown = []
    monkeypatch.setattr(study_run, "run_seed", lambda *_: records)
    monkeypatch.setattr(study_run, "example_queries", lambda *_: [])
    monkeypatch.setattr(page, "write", lambda *_, **keys: shown.append(keys["chains"]))
    study_run.study(config, tmp_path)
    assert shown.pop() == read_json(tmp_path / "chains.json")
    assert read_json(tmp_path / "chains.json") == read_json(workdir / "chains.json")
    changed = config.copy_and_resolve_references()
    for name in config.chains:
        del changed.chains[name]
    study_run.study(changed, tmp_path)
    assert not (tmp_path / "chains.json").exists() and shown == [{}]


def test_door_prints_the_matrices(finished, run_door, tmp_path, capsys, monkeypatch):
    config, workdir, records = finished
    monkeypatch.setattr(study, "study", lambda *_: records)
    path = tmp_path / "experiment.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from tests.experiments.test_chains import experiment\n"
        "def get_config():\n    return experiment(Path('images'))\n"
    )
    assert run_door(study, f"--config={path}", f"--workdir={workdir}") == 0
    shown = capsys.readouterr().out
    assert chain_tables.text(read_json(workdir / "chains.json")) in shown
    assert ": T(v2)/v1 back reaches" in shown


def test_what_brings_sides_together_stays_out_of_a_runs_settings(finished):
    """Where a map is used makes no difference to its training."""
    _, workdir, _ = finished
    settings = read_json(workdir / "seed_0" / "h12" / "settings.json")
    assert not {"side", "compose"} & settings["transformation"].keys()


def test_a_composed_transformation_is_not_trained(finished, tmp_path):
    config, workdir, _ = finished
    train = str(workdir / "seed_0" / "rows" / "train" / "gallery.lance")
    with pytest.raises(InputError, match=r"^transformations.composed.compose: .* train h12, h23"):
        transformation.train(
            config,
            "composed",
            train,
            "embedding_v1",
            "embedding_v3",
            tmp_path / "run",
            side_info="side_info",
        )
    assert not (tmp_path / "run").exists()


def test_the_upgrade_door_composes_too(finished, run_door, tmp_path):
    """As a README may tell: h23 over the column that h12 made."""
    config, workdir, _ = finished
    uri = workdir / "seed_0" / "rows" / "gallery" / "gallery.lance"
    flags = (f"--gallery={uri}", "--column=again", "--source=embedding_h12")
    model = f"--transformation={workdir / 'seed_0' / 'h23' / 'saved_model'}"
    assert run_door(upgrade_gallery, *flags, model, "--side_info=side_info") == 0
    _, read = rows(workdir, "gallery", "again", "embedding_composed")
    np.testing.assert_array_equal(*read.vectors.values())


def test_three_parts_are_applied_in_turn(finished, tmp_path):
    """Back and forth once more: what is on the way is named after what it went through."""
    config, workdir, _ = finished
    shutil.copytree(workdir / "seed_0", tmp_path / "seed")
    path = tmp_path / "seed" / "rows" / "gallery" / "gallery.lance"
    shutil.copytree(tmp_path / "seed" / "back", tmp_path / "seed" / "h21")
    changed = config.copy_and_resolve_references()
    for name, settings in {
        "h21": {"source": "v2", "target": "v1", "map": "affine"},
        "round": {"source": "v1", "target": "v2", "side_info": True},
    }.items():
        changed.transformations[name] = schema.transformation()
        changed.transformations[name].update({"side_info": False, **settings})
    changed.transformations.round.compose = ("h12", "h21", "h12")
    validate(changed)
    upgrade_in_turn(changed, "round", tmp_path / "seed", path)
    names = [
        "embedding_v1",
        "side_info",
        "embedding_h12",
        "embedding_h12_then_h21",
        "embedding_round",
    ]
    read = table.open_gallery(str(path)).read(names).vectors
    h12, h21 = (
        saved_model.load_transformation(tmp_path / "seed" / name / "saved_model")
        for name in ("h12", "h21")
    )
    once = h12(read["embedding_v1"], read["side_info"])["embedding"]
    back = h21(once)["embedding"]
    again = h12(back, read["side_info"])["embedding"]
    for column, expected in zip(names[2:], (once, back, again), strict=True):
        np.testing.assert_allclose(read[column], expected, rtol=1e-5, atol=1e-6)


def test_means_over_seeds():
    config = schema.experiment("two")
    for name in ("v1", "v2"):
        config.models[name] = schema.model(1, 0, 8)
    config.chains.c = schema.chain("v1", "v2")
    config.seeds = (3, 4)
    config.evaluation.ks = (2, 5, 10)

    def record(case, seed, value):
        cmc = {"2": value, "5": value / 2, "10": 1.0}
        return {"case": case, "seed": seed, "cmc": cmc, "map": value / 4}

    values = {3: (0.4, 0.5, 0.6), 4: (0.5, 0.3, 0.7)}
    records = [
        record(case, seed, value)
        for seed, three in values.items()
        for case, value in zip(("v1/v1", "v2/v1", "v2/v2"), three, strict=True)
    ]
    made = matrices(config, records)["c"]
    assert json.loads(json.dumps(made)) == made
    assert made["cases"] == [["v1/v1"], ["v2/v1", "v2/v2"]]
    # 5 alone of 1 and 5: the first two would be shown only if there were neither.
    assert list(made["metrics"]) == ["cmc@5", "map"]
    five = made["metrics"]["cmc@5"]
    np.testing.assert_allclose(np.concatenate(five["matrix"]), [0.225, 0.2, 0.325])
    assert five["ac"] == 0.5 and five["am"] == pytest.approx(0.25)
    assert [five["seeds"][seed]["ac"] for seed in ("3", "4")] == [1.0, 0.0]
    assert compatibility.chain([[0.2, np.nan], [0.25, 0.3]]).ac == 1.0
