"""Fused search in a study: its cases, what they are compared with, cost, curves and report."""

import numpy as np
import pytest

from fct_tf import config as schema
from fct_tf.ann import across
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.experiments import study as study_run
from fct_tf.experiments.across import approximate_search, change
from fct_tf.experiments.cases import cases
from fct_tf.experiments.validate import validate
from fct_tf.gallery import table
from fct_tf.models import saved_model
from fct_tf.report import backfilling, methods, verdict
from fct_tf.retrieval import exact
from tests.experiments import test_stored

FUSED = "old+new/old+T(old)"


def experiment(directory):
    config = test_stored.experiment(directory)
    del config.transformations.affine_side_info, config.transformations.affine_pairs

    def add(name, share=0.0, **fusion):
        section = schema.transformation(side_info=False)
        section.map, section.base, section.pairs.share = "affine", "affine", share
        section.fusion.update(fusion)
        config.transformations[name] = section

    add("fused", weight=0.5)
    add("fused_pairs", share=0.25, weight=0.5)
    add("whitened", weight=0.5, whiten=True, dims=4)
    config.chains.both = schema.chain("old", "new", transformations=("fused",))
    config.evaluation.backfilling.update(
        policies=("random", "distance"), random_orders=1, transformations=("fused",)
    )
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The experiment, its working directory, the records by case."""
    directory = tmp_path_factory.mktemp("fused")
    test_stored.write(directory / "train.lance", 60, seed=1)
    test_stored.write(directory / "test.lance", 40, seed=2)
    config = experiment(directory)
    records = study_run.study(config, directory / "run")
    return config, directory / "run", {record["case"]: record for record in records}


def rows(workdir, *columns):
    gallery = table.open_gallery(str(workdir / "seed_0/rows/gallery/gallery.lance"))
    return gallery, gallery.read([*columns], with_labels=True)


def test_cases_are_named_by_what_is_compared(finished):
    _, _, found = finished
    assert [*found] == [
        "old/old",
        "new/T(old) affine",
        f"{FUSED} fused",
        f"{FUSED} fused_pairs",
        f"{FUSED} whitened",
        "new/new",
        # Of those that fuse alike, once.
        "old+new/old+new fused",
        "old+new/old+new whitened",
        "side_info/side_info",
        "old/old (remaining 75 %)",
        f"{FUSED} fused_pairs (remaining 75 %)",
        "new/new (remaining 75 %)",
    ]
    told = ("method", "query_model", "gallery_model", "side", "fusion")
    assert [found[f"{FUSED} fused"][key] for key in told] == [
        *("fused", "new", "old", "gallery", "fused")
    ]
    assert found[f"{FUSED} whitened"]["fusion"] == "whitened"
    assert "fusion" not in found["new/T(old) affine"]


@pytest.mark.parametrize("name", ["fused", "fused_pairs", "whitened"])
def test_both_sides_are_those_of_the_saved_model(finished, name):
    _, workdir, found = finished
    stored, read = rows(workdir, "embedding_old", "embedding_new", f"embedding_{name}")
    model = saved_model.load_transformation(workdir / "seed_0" / name)
    old, new = read.vectors["embedding_old"], read.vectors["embedding_new"]
    queries, gallery = model.fuse(old, new), model(old)["embedding"].copy()
    if name == "fused_pairs":
        pairs = table.open_gallery(str(workdir / "seed_0/rows/pairs_0.25_random/pairs.lance"))
        known = np.isin(read.ids, pairs.read([]).ids)
        assert known.sum() == 10
        gallery[known] = queries[known]
    np.testing.assert_allclose(read.vectors[f"embedding_{name}"], gallery, rtol=1e-5, atol=1e-6)
    sides = (read.ids, read.labels)
    measured = exact.per_query(queries, *sides, gallery, *sides)
    record = found[f"{FUSED} {name}"]
    assert record["map"] == pytest.approx(np.mean(measured.average_precision), abs=1e-6)
    assert record["query"]["column"] == f"queries_{name}"
    assert stored.columns[f"queries_{name}"].kind == "fused"
    if name != "fused_pairs":
        whole = exact.per_query(queries, *sides, queries, *sides)
        record = found[f"old+new/old+new {name}"]
        assert record["map"] == pytest.approx(np.mean(whole.average_precision), abs=1e-6)


def test_it_is_compared_with_the_old_search(finished):
    _, _, found = finished
    record, base = found[f"{FUSED} fused"], found["old/old"]
    for key in ("map", "cmc@1"):
        value = [one["map"] if key == "map" else one["cmc"]["1"] for one in (record, base)]
        assert record["criterion"][key]["mean"] == pytest.approx(value[0] - value[1])
    assert record["negative_flips"]["low"] <= record["negative_flips"]["mean"]
    assert record["free_model"] == "new"
    assert "criterion" not in found["old+new/old+new fused"]
    # Of 6 + 5 values; once more beside those of the old model, while the gallery is upgraded.
    cost = record["cost"]
    assert (cost["bytes_per_row"], cost["bytes_per_row_upgrading"]) == (44, 68)
    assert found[f"{FUSED} whitened"]["cost"]["bytes_per_row"] == 16
    assert cost["query_encoders"] == 2 and cost["map_million_queries_s"] > 0
    assert "query_encoders" not in found["new/T(old) affine"]["cost"]


def test_report_and_verdicts_know_it(finished):
    _, workdir, found = finished
    html = (workdir / "report" / "index.html").read_text()
    assert f"{FUSED} fused" in html and "old+new/old+new fused" in html
    lines = verdict.text([*found.values()])
    for name in ("fused", "fused_pairs", "whitened", "fused_pairs (remaining 75 %)"):
        assert f": {FUSED} {name} reaches" in lines
    assert "each query is embedded by both models" in methods.text([*found.values()])
    made = [row["case"] for row in methods.rows([*found.values()])]
    assert f"{FUSED} fused" in made and "old+new/old+new fused" not in made


def test_curves_go_from_the_fused_gallery_to_both_columns(finished):
    _, workdir, found = finished
    records = read_json(workdir / "backfilling.json")
    assert [record["policy"] for record in records] == ["random", "distance"]
    for record in records:
        assert record["case"] == f"{FUSED} fused" and record["method"] == "fused"
        first, *_, last = record["curve"]
        assert first["map"] == pytest.approx(found[f"{FUSED} fused"]["map"], abs=1e-9)
        assert last["map"] == pytest.approx(found["old+new/old+new fused"]["map"], abs=1e-9)
    assert "both embeddings of every row" in backfilling.markdown(records)


def test_a_chain_takes_it(finished):
    """Its pair of versions is searched by queries of both."""
    _, workdir, found = finished
    chain = read_json(workdir / "chains.json")["both"]
    assert chain["cases"] == [["old/old"], [f"{FUSED} fused", "new/new"]]
    values = [[found[case]["map"] for case in row] for row in chain["cases"]]
    assert chain["metrics"]["map"]["matrix"] == values
    assert chain["metrics"]["map"]["ac"] == float(values[1][0] > values[0][0])
    html = (workdir / "report" / "index.html").read_text()
    assert "fused searches have queries of both versions" in html


def test_approximate_search_goes_there_too(finished):
    """Backfilled states lie between cases of the same queries, of rows of one size."""
    config, _, found = finished
    for name in ("fused", "whitened"):
        states = across.states(change(config, name), (0.5,))
        assert [state.name for state in states] == [
            *("old/old", f"{FUSED} {name}", f"{FUSED} {name}, 50 % backfilled"),
            f"old+new/old+new {name}",
        ]
        assert all(state.name in found for state in states if not state.target)
    names = [case.name for case in change(config, "affine")]
    assert names == ["old/old", "new/T(old) affine", "new/new"]


def test_the_old_index_is_measured_too(finished, monkeypatch):
    """So few rows are all re-ranked: as the fused column, where no pairs are in it."""
    config, workdir, found = finished
    config = config.copy_and_resolve_references()
    config.evaluation.scann.update(transformations=("whitened", "affine"), backfilled=())
    monkeypatch.setattr(across, "Measuring", test_stored.Measuring)
    records = approximate_search(config, workdir)
    (workdir / "across.json").unlink()
    told = [(one["case"], one["index"]) for one in records]
    assert told == [
        *(("old/old", "built"), (f"{FUSED} whitened", "built"), (f"{FUSED} whitened", "reranked")),
        *(("old+new/old+new whitened", name) for name in ("built", "kept")),
        *(("old/old", "built"), ("new/T(old) affine", "built")),
        *(("new/new", name) for name in ("built", "kept")),
    ]
    one = records[2]
    assert one["recall"] == {"1": 1, "10": 1}
    assert one["cmc"] == pytest.approx(found[one["case"]]["cmc"])
    assert (one["rerank"], one["bytes"]) == (100, records[0]["bytes"])


def test_a_second_run_makes_nothing(finished):
    config, workdir, found = finished
    version = rows(workdir, "embedding_old")[0].version
    again = study_run.study(config, workdir)
    assert {record["case"]: record for record in again} == found
    assert rows(workdir, "embedding_old")[0].version == version


def chained(config):
    config.models.third = schema.stored("beside")
    config.transformations.on = schema.transformation("new", "third", side_info=False)
    config.transformations.composed = schema.transformation("old", "third", side_info=False)
    config.transformations.composed.compose = ("fused", "on")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (chained, r"composed\.compose: fused is a fused search"),
        (
            lambda config: config.transformations.whitened.update(base="fused"),
            r"whitened\.base: fused is a fused search itself",
        ),
    ],
)
def test_it_is_no_step_of_another(finished, change, told):
    config = finished[0].copy_and_resolve_references()
    validate(config)
    change(config)
    with pytest.raises(InputError, match=told):
        validate(config)


def test_queries_of_their_own_and_of_unit_length(tmp_path):
    """Both tables get the columns; fused rows are compared as their own column says."""
    columns = [test_stored.column("v1", distance="cosine"), test_stored.column("v2")]
    for seed, name in enumerate(("train", "test", "asked")):
        test_stored.write(tmp_path / f"{name}.lance", 40, seed=seed, columns=columns)
    config = experiment(tmp_path)
    for name in ("fused_pairs", "whitened"):
        del config.transformations[name]
    config.side_info = schema.side_info(method="none")
    config.dataset.query = f"rows:{tmp_path / 'asked.lance'}"
    config.evaluation.distance = "cosine"
    found = {record["case"]: record for record in study_run.study(config, tmp_path / "run")}
    # One of the two spaces is compared by L2, so are the fused rows.
    assert found[f"{FUSED} fused"]["distance"] == "l2"
    assert found["old/old"]["distance"] == "cosine"
    record = found[f"{FUSED} fused"]
    assert record["query"]["column"] == "queries_fused"
    assert record["query"]["path"] != record["gallery"]["path"]
    first = read_json(tmp_path / "run" / "backfilling.json")[0]["curve"][0]
    assert first["map"] == pytest.approx(found[f"{FUSED} fused"]["map"], abs=1e-9)


def test_of_default_transformations_none_is_fused():
    config = schema.experiment("x")
    for name in ("old", "new"):
        config.models[name] = schema.model()
    config.transformations = schema.transformations(pairs_share=0.2)
    assert not any(case.fusion for case in cases(config))
