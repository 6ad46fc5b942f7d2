"""What a study evaluates: each case once, under the name and method that it deserves."""

from fct_tf import config as schema
from fct_tf.cases import cases, sample_name


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


def test_other_sizes_are_compared_only_when_transformed():
    config = experiment(fct={"source": "small", "target": "new"})
    config.models.small.compatibility.update(method="bct", old="old")
    found = names(config)
    assert "new/T(small) fct: fct" in found
    assert not any(name.startswith(("new/small", "small/old")) for name in found)


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
    def pairs(share, draw, source="old"):
        return {"source": source, "target": "new", "pairs": {"share": share, "draw": draw}}

    config = experiment(
        a=pairs(0.2, "random"),
        b=pairs(0.2, "spread"),
        c=pairs(0.2, "spread", "mid"),
        d=pairs(0.2, "random", "mid"),
        e=pairs(0.05, "random"),
    )
    samples = {name: sample_name(section) for name, section in config.transformations.items()}
    assert samples["a"] == samples["d"] and len(set(samples.values())) == 4
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
