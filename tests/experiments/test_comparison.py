"""What upgrades gain, break and lose, against plain NumPy; what they cost."""

import json

import numpy as np
import pytest

from fct_tf import config as schema
from fct_tf.common.files import read_json
from fct_tf.experiments import comparison, costs
from fct_tf.experiments.cases import Case
from fct_tf.retrieval.exact import PerQuery

KS = (1, 5)


def experiment(bootstrap=300):
    """Old and new models, and two that are compatible with the old one."""
    config = schema.experiment("comparison")
    for name in ("old", "new", "bct", "small"):
        config.models[name] = schema.model(1, 0, 8, embedding_dim=4 if name == "small" else 8)
    config.models.old.classes.first = 2
    for name in ("bct", "small"):
        config.models[name].compatibility.method = "bct"
    config.transformations.fct = schema.transformation()
    config.evaluation.ks, config.evaluation.bootstrap = KS, bootstrap
    return config


def evaluated(name, query, gallery, seed, method="independent", best=9, **more):
    """A case whose queries find their match at random ranks up to `best`, 0: no match."""
    rank = np.random.default_rng(seed).integers(1, best + 1, 200)
    rank[::50] = 0
    found = PerQuery(
        np.arange(200), rank, np.where(rank > 0, 1 / np.maximum(rank, 1), np.nan), rank > 0
    )
    side = {query: "query", gallery: "gallery"}.get("fct", "")
    models = "new" if side == "query" else query, "old" if side == "gallery" else gallery
    columns = f"embedding_{query}", f"embedding_{gallery}"
    case = Case(name, method, *columns, *models, side, **more)
    return comparison.Evaluated(case, dict(case.keys), found)


def study():
    remaining = {"pairs": 0.2, "sample": "s", "scoring": "remaining"}
    return [
        evaluated("old/old", "old", "old", 0),
        evaluated("new/old", "new", "old", 1),
        evaluated("new/T(old) fct", "new", "fct", 2, "fct", best=6),
        evaluated("T(new)/old fct", "fct", "old", 2, "fct", best=6),
        evaluated("bct/old", "bct", "old", 3, "bct", best=7),
        evaluated("small/old", "small", "old", 3, "bct", best=7),
        evaluated("new/new", "new", "new", 4, best=3),
        evaluated("bct/bct", "bct", "bct", 5, "bct", best=4),
        evaluated("old/old (remaining 80 %)", "old", "old", 6, **remaining),
        evaluated("new/T(old) fct (remaining 80 %)", "new", "fct", 7, "fct", 6, **remaining),
        evaluated("new/new (remaining 80 %)", "new", "new", 8, best=3, **remaining),
    ]


def by_case(config=None, cases=None):
    made = comparison.compare(config or experiment(), cases or study(), seed=3)
    return {record["case"]: record for record in made}


def metric(one, name):
    """float [queries], NaN without a match."""
    rank = one.found.rank
    value = 1 / np.maximum(rank, 1) if name == "map" else rank <= int(name.partition("@")[2])
    return np.where(rank > 0, value, np.nan)


@pytest.mark.parametrize(
    "upgraded, best, note",
    [
        ("new/T(old) fct", "new/new", ""),
        ("T(new)/old fct", "new/new", ""),
        ("bct/old", "new/new", ""),
        ("new/T(old) fct", "new/new", " (remaining 80 %)"),
    ],
)
@pytest.mark.parametrize("name", ["cmc@1", "cmc@5", "map"])
def test_of_an_upgrade_by_numpy(upgraded, best, note, name):
    cases = {one.case.name: one for one in study()}
    old, after, top = (metric(cases[case + note], name) for case in ("old/old", upgraded, best))
    record = by_case()[upgraded + note]
    assert record["free_model"] == "new"
    gain = np.nanmean(after) - np.nanmean(old)
    criterion = record["criterion"][name]
    assert criterion["mean"] == pytest.approx(gain)
    assert criterion["low"] < gain < criterion["high"]
    assert criterion["holds"] == (criterion["low"] > 0)
    share = record["update_gain"][name]
    assert share["mean"] == pytest.approx(gain / (np.nanmean(top) - np.nanmean(old)))
    # The interval again, resample by resample.
    kept = ~np.isnan(old)
    sides = [values[kept] for values in (old, after, top)]
    generator, ratios = np.random.default_rng(3), []
    for _ in range(300):
        drawn = generator.integers(0, kept.sum(), kept.sum(), dtype=np.int32)
        a, b, c = (side[drawn].mean() for side in sides)
        ratios.append((b - a) / (c - a))
    assert [share["low"], share["high"]] == pytest.approx(np.percentile(ratios, [2.5, 97.5]))
    if name == "cmc@1":
        assert record["negative_flips"]["mean"] == pytest.approx(np.mean(sides[0] > sides[1]))
        assert record["positive_flips"]["mean"] == pytest.approx(np.mean(sides[0] < sides[1]))


def test_what_a_compatible_model_lost():
    cases, records = {one.case.name: one for one in study()}, by_case()
    for name, value in records["bct/bct"]["new_lost"].items():
        free, own = (np.nanmean(metric(cases[case], name)) for case in ("new/new", "bct/bct"))
        assert value["mean"] == pytest.approx(free - own) and value["low"] <= value["mean"]
    assert set(records["bct/bct"]["new_lost"]) == {"cmc@1", "cmc@5", "map"}
    assert records["bct/bct"]["free_model"] == "new"


def test_only_upgrades_and_compatible_models_are_compared():
    compared = {case for case, record in by_case().items() if "free_model" in record}
    assert compared == {
        *("new/T(old) fct", "T(new)/old fct", "bct/old", "small/old", "bct/bct"),
        "new/T(old) fct (remaining 80 %)",
    }


def test_the_free_model():
    config = experiment()
    assert comparison.free_model(config, "new") == comparison.free_model(config, "bct") == "new"
    # Of another architecture, and nothing else like it.
    assert comparison.free_model(config, "small") is None
    record = by_case()["small/old"]
    assert record["free_model"] is None and record["update_gain"] is None
    assert record["criterion"]["map"]["mean"] == by_case()["bct/old"]["criterion"]["map"]["mean"]
    # The old model is not what the new one could have been.
    config.models.old.classes.first = None
    assert comparison.free_model(config, "bct") == "new"
    config.models.new.classes.first = 1
    assert comparison.free_model(config, "bct") is None
    # What is mapped to comes before what stands first.
    config = experiment()
    config.models.newer = config.models.new.copy_and_resolve_references()
    assert comparison.free_model(config, "bct") == "new"
    config.transformations.fct.target = "newer"
    assert comparison.free_model(config, "bct") == "newer"


def test_no_gain_over_an_old_model_that_is_as_good():
    cases = [one for one in study() if one.case.name != "new/new"]
    cases.append(evaluated("new/new", "new", "new", 0))
    assert by_case(cases=cases)["bct/old"]["update_gain"] == dict.fromkeys(
        ("cmc@1", "cmc@5", "map")
    )


def test_without_resamples_there_are_no_intervals():
    record = by_case(experiment(bootstrap=0))["bct/old"]
    assert record["negative_flips"]["low"] is record["criterion"]["map"]["high"] is None
    assert record["negative_flips"]["mean"] > 0 and not record["criterion"]["map"]["holds"]
    assert record["update_gain"]["map"]["mean"] > 0


def test_nothing_to_compare_is_no_error():
    cases = study()
    for one in cases:
        one.found.rank[:] = 0
    assert not any("criterion" in record for record in by_case(cases=cases).values())


def test_results_by_query_are_kept(tmp_path):
    found, path = study()[2].found, tmp_path / "per_query.npz"
    comparison.save_per_query(path, found, "order")
    read = comparison.load_per_query(path, "order")
    for name, values in vars(found).items():
        np.testing.assert_array_equal(getattr(read, name), values)
        assert getattr(read, name).dtype == values.dtype
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    # Of rows in another order, cut short, or none: to be evaluated again.
    assert comparison.load_per_query(path, "another") is None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert comparison.load_per_query(path, "order") is None
    path.write_bytes(b"")
    assert comparison.load_per_query(path, "order") is None
    path.unlink()
    assert comparison.load_per_query(path, "order") is None


def test_a_measurement_is_taken_once_for_a_model(tmp_path):
    (tmp_path / "artifact").mkdir()
    info = tmp_path / "artifact" / "model.json"
    info.write_text(json.dumps({"space": "a"}))
    values = iter([1.5, 2.5, 3.5, 4.5])

    def once(key):
        return costs._once(tmp_path, key, lambda: next(values))

    assert [once("rows"), once("rows"), once("images")] == [1.5, 1.5, 2.5]
    assert read_json(tmp_path / "cost.json") == {"space": "a", "rows": 1.5, "images": 2.5}
    info.write_text(json.dumps({"space": "b"}))
    assert [once("rows"), once("rows")] == [3.5, 3.5]


def test_seconds_of_training(tmp_path):
    (tmp_path / "artifact").mkdir()
    info = tmp_path / "artifact" / "model.json"
    info.write_text(json.dumps({"space": "a"}))
    assert costs._trained_s(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"seconds": 1}\n{"seconds": 9.0}\n')
    assert costs._trained_s(tmp_path) == 9.0
    info.write_text(json.dumps({"space": "a", "facts": {"fit_s": 0.25}}))
    assert costs._trained_s(tmp_path) == 9.25
