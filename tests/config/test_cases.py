"""What a study evaluates: each case once, under the name and method that it deserves."""

from configs import quickstart
from fct_tf import config as schema
from fct_tf.experiments.cases import cases, chain_cases, sample_name
from fct_tf.report import table


def experiment(**transformations):
    """Models old, mid, new, bct (made compatible with old) and small (of another size)."""
    config = schema.experiment("cases")
    for name in ("old", "mid", "new", "bct"):
        config.models[name] = schema.model(1, 0, 8, embedding_dim=8)
    config.models.small = schema.model(1, 0, 8, embedding_dim=4)
    config.models.bct.compatibility.update(method="bct", old="old")
    for name, settings in transformations.items():
        section = schema.transformation(side_info=False)
        section.update(settings)
        config.transformations[name] = section
    return config


def names(config):
    found = [(case.name, case.method) for case in cases(config)]
    assert len({name for name, _ in found}) == len(found)
    return [f"{name}: {method}" for name, method in found]


def test_a_compatible_model_beside_a_transformation():
    found = names(experiment(fct={"source": "old", "target": "new"}))
    assert sorted(found) == [
        "bct/bct: bct",
        "bct/old: bct",
        "mid/mid: independent",
        "new/T(old) fct: fct",
        "new/new: independent",
        "new/old: independent",
        "old/old: independent",
        "small/small: independent",
    ]
    assert found[0] == "old/old: independent"


def test_a_compatible_model_is_not_called_independent_where_it_is_a_target_or_a_source():
    found = names(experiment(fct={"source": "old", "target": "bct"}))
    assert "bct/old: bct" in found and "bct/T(old) fct: fct" in found
    found = names(experiment(fct={"source": "bct", "target": "new"}))
    assert "bct/old: bct" in found and "new/bct: independent" in found
    # Compatible with another model than the one that it is mapped to.
    assert "bct/mid: independent" in names(experiment(fct={"source": "mid", "target": "bct"}))


def test_other_sizes_are_compared_only_when_transformed_or_trained_to_fit():
    config = experiment(fct={"source": "small", "target": "new"})
    found = names(config)
    assert "new/T(small) fct: fct" in found
    assert not any(name.startswith(("new/small", "small/old")) for name in found)
    config.models.small.compatibility.update(method="bct", old="old")
    (case,) = (case for case in cases(config) if case.name == "small/old")
    assert (case.method, case.query) == ("bct", "embedding_small_as_old")
    assert (case.matched, case.gallery) == ("embedding_small", "embedding_old")
    changed = {"small/old: bct", "small/small: bct"}
    assert set(names(config)) == {*found, *changed} - {"small/small: independent"}
    assert all(not case.matched for case in cases(config) if case.name != "small/old")


def test_a_map_of_queries_stands_beside_those_of_the_gallery():
    """The same two versions: nothing else is evaluated for it."""
    one = names(experiment(fct={"source": "old", "target": "new"}))
    config = experiment(
        fct={"source": "old", "target": "new"},
        back={"source": "new", "target": "old", "side": "query"},
    )
    assert sorted(names(config)) == sorted([*one, "T(new)/old back: back"])
    (case,) = (case for case in cases(config) if case.method == "back")
    assert (case.query, case.gallery) == ("embedding_back", "embedding_old")
    # Alone it is framed by the same cases.
    alone = names(experiment(back={"source": "new", "target": "old", "side": "query"}))
    assert sorted(alone) == sorted({*names(config)} - {"new/T(old) fct: fct"})


def test_a_record_says_which_models_and_which_side():
    config = experiment()
    config.transformations = schema.transformations(pairs_share=0.2)
    config.models.small.compatibility.update(method="bct", old="old")
    found = {case.name: case for case in cases(config)}
    for name, expected in {
        "old/old": ("old", "old", None, False),
        "new/old": ("new", "old", None, False),
        "bct/old": ("bct", "old", None, True),
        "small/old": ("small", "old", None, True),
        "new/T(old) fct": ("new", "old", "gallery", True),
        "T(new)/old affine_query": ("new", "old", "query", True),
        "new/T(old) fct_pairs (remaining 80 %)": ("new", "old", "gallery", True),
        "old/old (remaining 80 %)": ("old", "old", None, False),
    }.items():
        keys = found[name].keys
        told = (
            *(keys[key] for key in ("query_model", "gallery_model", "side")),
            found[name].is_upgrade,
        )
        assert told == expected, name
    for case in found.values():  # As the name has always been read.
        assert table.sides_of(case.keys) == table.sides(case.name)
        row = {"sides": table.sides(case.name), "method": case.method}
        assert case.is_upgrade == table.is_upgrade(row)


def test_default_transformations_evaluate_what_they_did_and_maps_of_queries():
    config = experiment()
    config.transformations = schema.transformations(pairs_share=0.2)
    found = names(config)
    assert [name for name in found if "_query" not in name][:9] == [
        "old/old: independent",
        "new/old: independent",
        "new/T(old) affine: affine",
        "new/T(old) affine_side_info: affine_side_info",
        "new/T(old) fct: fct",
        "new/T(old) fct_no_side_info: fct_no_side_info",
        "new/T(old) fct_pairs: fct_pairs",
        "new/T(old) fct_pairs_no_side_info: fct_pairs_no_side_info",
        "new/T(old) procrustes: procrustes",
    ]
    assert [name for name in found if "_query" in name] == [
        "T(new)/old affine_query: affine_query",
        "T(new)/old procrustes_query: procrustes_query",
    ]


def test_a_chain_adds_only_the_pairs_that_there_are_not():
    maps = {
        "h12": {"source": "old", "target": "mid"},
        "h23": {"source": "mid", "target": "new"},
        "h13": {"source": "old", "target": "new"},
        "composed": {"source": "old", "target": "new", "compose": ("h12", "h23")},
    }
    config = experiment(**maps)
    config.models.last = schema.model(1, 0, 8, embedding_dim=4)
    config.models.last.compatibility.update(method="l2", old="bct")
    before = names(config)
    config.chains.independent = schema.chain("old", "mid", "new")
    through = ("h12", "h23", "composed")
    config.chains.composed = schema.chain("old", "mid", "new", transformations=through)
    assert names(config) == before
    config.chains.bct = schema.chain("old", "bct", "last")
    # Compatible with the first version over the second: it is what the chain shall measure.
    assert sorted(names(config)) == sorted([*before, "last/old: l2"])
    config.chains.also = schema.chain("old", "mid", "bct")
    assert sorted(names(config)) == sorted([*before, "last/old: l2", "bct/mid: independent"])
    known = list(cases(config))
    for name in config.chains:
        rows = chain_cases(config, name)
        assert [len(row) for row in rows] == [1, 2, 3]
        assert all(case in known for row in rows for case in row)


def test_two_new_models_with_pairs_of_one_old():
    """The remaining rows' old/old is one case, not one for each new model."""
    both = {"side_info": False, "pairs": {"share": 0.2}}
    found = names(
        experiment(
            first={"source": "old", "target": "new", **both},
            second={"source": "old", "target": "mid", **both},
            third={"source": "mid", "target": "new", **both},
        )
    )
    remaining = [name.partition(" (remaining 80 %)")[0] for name in found if "remaining" in name]
    assert sorted(remaining) == sorted(
        ["old/old", "mid/mid", "new/new"]
        + ["new/T(old) first", "mid/T(old) second", "new/T(mid) third"]
    )


def test_samples_that_differ_are_told_apart():
    def pairs(share, source="old"):
        return {"source": source, "target": "new", "pairs": {"share": share}}

    config = experiment(a=pairs(0.2), b=pairs(0.2, "mid"), c=pairs(0.05))
    samples = {name: sample_name(section) for name, section in config.transformations.items()}
    assert samples["a"] == samples["b"] != samples["c"]
    found = [case for case in cases(config) if case.scoring]
    assert len({case.name for case in found}) == len(found)
    # Each transformation is framed by old/old and new/new over the same rows.
    for name, sample in samples.items():
        remaining = [case for case in found if case.scoring == "remaining"]
        alike = [case.name for case in remaining if case.sample == sample]
        source = config.transformations[name].source
        assert any(case.startswith(f"new/T({source}) {name} (") for case in alike)
        assert any(case.startswith(f"{source}/{source} (") for case in alike)
        assert any(case.startswith("new/new (") for case in alike)
    for case in found:
        assert ("sample" in case.keys) == (case.scoring == "remaining")


def test_the_cases_that_are_no_change_of_models_can_be_left_out():
    config = experiment(fct={"source": "old", "target": "new", "side_info": True})
    config.side_info = schema.side_info()
    everything = names(config)
    config.evaluation.more_cases = False
    assert set(everything) - set(names(config)) == {"side_info/side_info: side_info"}


def test_the_quickstart_has_five_rows_at_most():
    found = [case.name for case in cases(quickstart.get_config())]
    fused = "old+new/old+T(old) fct_fused"
    assert found == ["old/old", "new/old", "new/T(old) fct", fused, "new/new"]
