"""Experiment files: every one is valid, and mistakes in them are named."""

import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common.errors import InputError
from fct_tf.config.checks import check_keys, check_transformation
from fct_tf.config.methods import METHODS, experiment_for_rows
from fct_tf.experiments.validate import validate
from tests import tiny
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load(name: str, *chosen: str) -> ConfigDict:
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*chosen)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_files_are_valid_and_have_a_header(name):
    config = load(name)
    validate(config)
    assert schema.to_dict(config)["name"] == name
    header = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    assert "Command" in header and "Hardware" in header
    assert "shared/" not in (CONFIGS / f"{name}.py").read_text()


@pytest.mark.parametrize("name", ["omniglot", "tiny_imagenet100"])
def test_experiments_without_their_compatible_models(name):
    every, some = load(name), load(name, "transformations")
    validate(some)
    assert {*some.models} == {"old", "new"} and len(every.models) > 2
    for key in {*every} - {"models", "transformations", "evaluation"}:
        assert every[key] == some[key], key
    assert {*every.transformations} <= {*some.transformations}
    with pytest.raises(ValueError, match="'other' after the colon; write all, transformations or"):
        load(name, "other")


@pytest.mark.parametrize("name", ["omniglot", "tiny_imagenet100"])
def test_maps_alone_and_in_fused_searches(name):
    config = load(name, "fused")
    validate(config)
    assert {*config.models} == {"old", "new"}
    for base in ("fct", "fct_no_side_info"):
        for suffix, share in (("", 0), ("_pairs", 0.2)):
            for kind in ("", "_fused", "_whitened"):
                section = config.transformations[base + suffix + kind]
                assert section.side_info == (base == "fct")
                assert section.base == (base if suffix or kind else "")
                assert section.pairs.share == share
                assert schema.is_fused(section) == (kind != "")
                assert section.fusion.whiten == (kind == "_whitened")
    assert len(config.transformations) == 12


@pytest.mark.parametrize(
    "what, count", [("maps", 7), ("pairs", 21), ("fastfill", 7), ("ranks", 3), ("fused", 42)]
)
def test_experiments_on_the_reference_rows(what, count):
    config = load("reference_rows", what)
    validate(config)
    assert len(config.transformations) == count
    for name, section in config.transformations.items():
        assert (section.pairs.share > 0) == any(part in name for part in ("pairs", "rows")), name
    with pytest.raises(ValueError, match="'other' after the colon; write one of maps, pairs"):
        load("reference_rows", "other")


def test_unknown_key_names_the_nearest():
    config = load("glyphs")
    with config.models.new.unlocked():
        config.models.new.train_epoch = 3
    with pytest.raises(InputError, match=r"models.new.train_epoch: .*train_epochs"):
        validate(config)


def test_a_key_that_is_gone_says_what_to_do():
    config = load("glyphs")
    with config.transformations.fct.unlocked():
        config.transformations.fct.pairs.draw = "spread"
    with pytest.raises(InputError, match=r"fct.pairs.draw: unknown key; .* at random, leave it"):
        validate(config)


def test_misspelt_key_in_an_experiment_file_is_refused():
    with pytest.raises(AttributeError, match="label_smoothing"):
        schema.model().label_smothing = 0.2


def test_transformation_of_unknown_model():
    config = load("glyphs")
    config.transformations.fct.target = "newer"
    with pytest.raises(InputError, match=r"transformations.fct.target: .*'newer'"):
        validate(config)


def test_side_info_must_exist():
    config = load("glyphs")
    config.side_info.method = "none"
    with pytest.raises(InputError, match=r"transformations.\w+.side_info"):
        validate(config)


@pytest.mark.parametrize("key", ["training.steps_per_call", "models.old.batch_size"])
def test_numbers_above_zero(key):
    config = load("glyphs")
    config.update_from_flattened_dict({key: 0})
    with pytest.raises(InputError, match=f"{key}: 0 is not above 0"):
        validate(config)


def test_names_are_not_taken_twice():
    config = load("glyphs")
    config.transformations.new = schema.transformation()
    with pytest.raises(InputError, match=r"models\.new: this name is taken"):
        validate(config)


@pytest.mark.parametrize("key", ["dataset.gallery", "dataset.train"])
def test_images_must_be_named(key):
    config = load("glyphs")
    config.update_from_flattened_dict({key: ""})
    with pytest.raises(InputError, match=f"{key}: is empty"):
        validate(config)


@pytest.mark.parametrize(
    "key, value", [("side_info.method", "simsiam"), ("training.strategy", "tpu")]
)
def test_choices(key, value):
    config = load("glyphs")
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=f"{key}.*{value}"):
        validate(config)


def test_durations_carry_exactly_one_unit():
    section = schema.model(train_epochs=3, warmup_epochs=1)
    assert schema.duration_steps(section, "train", 7, "models.x") == 21
    assert schema.duration_steps(section, "warmup", 7, "models.x") == 7
    section.train_steps = 5
    with pytest.raises(InputError, match=r"models.x.train_steps"):
        schema.duration_steps(section, "train", 7, "models.x")
    section.train_epochs = 0  # As None can be written on a command line.
    assert schema.duration_steps(section, "train", 7, "models.x") == 5
    section.train_steps = None
    with pytest.raises(InputError, match=r"models.x: give train_epochs or train_steps"):
        schema.duration_steps(section, "train", 7, "models.x")
    section.warmup_epochs = None
    assert schema.duration_steps(section, "warmup", 7, "models.x") == 0


def test_class_subset_takes_one():
    classes = schema.classes()
    assert schema.class_subset(classes, "classes") is None
    classes.first = 5
    assert schema.class_subset(classes, "classes") == {"first": 5}
    classes.fraction = 0.5
    with pytest.raises(InputError, match="give one of"):
        schema.class_subset(classes, "classes")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"map": "mlps"}, "map: 'mlps' is not one of mlp, affine, procrustes"),
        ({"pairs.method": "knn"}, "pairs.method: 'knn'"),
        ({"label_smoothing": 1.0}, "label_smoothing: 1.0 is not in 0..1"),
        ({"pairs.share": -0.1}, "pairs.share: -0.1 is not in 0..1"),
        ({"pairs.max_centres": 0}, "pairs.max_centres: 0 is not above 0"),
        ({"map": "affine", "affine_init": True}, "affine_init: with map affine"),
        ({"map": "procrustes"}, "side_info: procrustes"),
        ({"base": "fct"}, "base: 'fct' is not one of"),
        ({"base": "nothing"}, "base: 'nothing' is not one of"),
        ({"base": "fct_no_side_info"}, "side_info: differs from that of its base"),
        ({"base": "twin"}, "base: only pairs with the method kernel"),
        ({"base": "twin", "affine_init": True}, "affine_init: with base twin no network is train"),
        ({"base": "corrected"}, "base: corrected has pairs itself"),
        ({"base": "third"}, "base: third has a base itself; name twin"),
        ({"side": "both"}, "side: 'both' is not one of gallery, query"),
        ({"side": "query"}, "side_info: nothing is stored beside a query"),
        ({"side": "query", "side_info": False, "pairs.share": 0.2}, "pairs.share: the queries"),
        ({"compose": ("twin",)}, "compose: .'twin',. is one transformation; name two"),
        ({"compose": ("twin", "fct")}, "compose: 'fct' is not one of"),
        ({"compose": ("twin", "nothing")}, "compose: 'nothing' is not one of"),
        ({"compose": ("corrected", "twin")}, "compose: corrected has pairs"),
        ({"compose": ("twin", "twin")}, "compose: twin maps from old, not from new"),
        ({"compose": ("twin", "back")}, "compose: back is of the query side"),
        ({"compose": ("twin", "round")}, "compose: round is composed itself; name its parts"),
        ({"compose": ("twin", "return")}, "compose: ends at old, not at the target new"),
        (
            {"compose": ("plain", "return"), "target": "old"},
            "side_info: none of plain, return reads",
        ),
        (
            {"compose": ("twin", "return"), "target": "old", "affine_init": True},
            "affine_init: what is composed fits nothing",
        ),
        ({"compose": ("twin", "return"), "target": "old", "map": "affine"}, "map: what is compos"),
    ],
)
def test_transformations_that_contradict_themselves(changes, message):
    config = tiny.experiment(Path("images"))
    for name in ("twin", "corrected", "third"):
        config.transformations[name] = schema.transformation()
    config.transformations.corrected.pairs.share = 0.2
    config.transformations.third.update(base="twin", pairs={"share": 0.2})
    for name, settings in {
        "plain": {"side_info": False},
        "return": {"source": "new", "target": "old", "side_info": False},
        "back": {"source": "new", "target": "old", "side_info": False, "side": "query"},
        "round": {"source": "new", "target": "new", "compose": ("return", "twin")},
    }.items():
        config.transformations[name] = schema.transformation()
        config.transformations[name].update(settings)
    validate(config)
    config.transformations.fct.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=f"^transformations.fct.{message}"):
        validate(config)


@pytest.mark.parametrize(
    "versions, transformations, message",
    [
        (("v1",), (), r"versions: \('v1',\) are not two or more, each once"),
        (("v1", "v2", "v1"), (), "versions: .* are not two or more, each once"),
        (("v1", "v4"), (), "versions: no model 'v4' in models"),
        (("v1", "wide"), (), "versions: embeddings of v1 and wide differ in size"),
        (("v1", "v2"), ("h24",), "transformations: 'h24' is not one of"),
        (("v1", "v2"), ("h12", "h23"), "transformations: h23 is between v2 and v3, which are no"),
        (("v2", "v1"), ("h12",), "transformations: h12 is between v1 and v2, which are no"),
        (("v1", "v2", "v3"), ("h12", "h23"), "transformations: none is between v1 and v3; name"),
        (("v1", "v2"), ("h12", "back"), "transformations: h12 and back are both between v1 and v2"),
    ],
)
def test_chains_that_cannot_be_measured(versions, transformations, message):
    config = tiny.experiment(Path("images"))
    for name in ("v1", "v2", "v3", "wide", "fitting"):
        config.models[name] = schema.model(embedding_dim=16 if name in ("wide", "fitting") else 8)
    config.models.fitting.compatibility.update(method="bct", old="v2")
    for name, pair in {"h12": ("v1", "v2"), "h23": ("v2", "v3"), "h13": ("v1", "v3")}.items():
        config.transformations[name] = schema.transformation(*pair)
    config.transformations.back = schema.transformation("v2", "v1", side_info=False)
    config.transformations.back.side = "query"
    config.chains.good = schema.chain("v1", "v2", "v3", transformations=("h12", "h23", "h13"))
    config.chains.fits = schema.chain("v2", "fitting")
    validate(config)
    config.chains.bad = schema.chain(*versions, transformations=transformations)
    with pytest.raises(InputError, match=f"^chains.bad.{message}") as error:
        validate(config)
    assert "\n" not in str(error.value)


def test_unknown_key_of_a_chain():
    config = load("omniglot_chain")
    config.chains.bad = ConfigDict({"version": ("v1", "v2"), "transformations": ()})
    with pytest.raises(InputError, match=r"chains.bad.version: unknown key.*versions"):
        validate(config)


@pytest.mark.parametrize(
    "policies, orders, message",
    [
        (("random", "file:order.txt"), 5, "'file:order.txt' is not one of uncertainty"),
        (("random", "random"), 5, "named twice"),
        (("random",), 0, "at least one order"),
    ],
)
def test_backfilling_policies(policies, orders, message):
    config = load("glyphs")
    section = config.evaluation.backfilling
    section.policies, section.random_orders = policies, orders
    with pytest.raises(InputError, match=f"evaluation.backfilling.policies: .*{message}"):
        validate(config)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"transformations": ("fct", "none")}, "transformations: 'none' is not one of"),
        ({"backfilled": (0.5, 0.2)}, "backfilled=0.5,0.2: rising shares"),
        ({"backfilled": (1.5,)}, "backfilled=1.5: rising shares"),
        ({"num_queries": -1}, "num_queries: -1; 0 for all"),
    ],
)
def test_approximate_search(settings, message):
    config = load("glyphs")
    config.evaluation.scann.update(settings)
    with pytest.raises(InputError, match=f"evaluation.scann.{message}"):
        validate(config)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_rows", [32, 500, 20_000, 5_000_000])
@pytest.mark.parametrize("given", [
    {},
    {"side_info": True},
    {"pairs": True},
    {"pairs": True, "base": True},
    {"classifier": True},
])  # fmt: skip
def test_methods_by_name_are_valid_experiments(method, num_rows, given):
    if (method == "procrustes" and "side_info" in given) or (
        method != "fastfill" and "classifier" in given
    ):
        with pytest.raises(InputError, match="`side_info`|`classifier`"):
            experiment_for_rows(method, num_rows, **given)
        return
    config = experiment_for_rows(method, num_rows, name="mine", **given)
    section = config.transformations.mine
    check_transformation(config, "mine")
    check_keys(section, schema.transformation(), "")
    batches = num_rows // section.batch_size
    steps = schema.duration_steps(section, "train", batches, "")
    assert section.side_info == bool(given.get("side_info"))
    assert (section.map == "mlp") == (method in ("fct", "fastfill"))
    if section.map == "mlp" and not section.base:
        assert batches >= 4 and section.affine_init
        assert 0 < schema.duration_steps(section, "warmup", batches, "") < steps / 4


@pytest.mark.parametrize("num_rows, batch_size, steps", [
    (19_280, 256, 903),  # 12 passes
    (2_000_000, 1024, 23_437),
])  # fmt: skip
def test_settings_by_the_number_of_rows(num_rows, batch_size, steps):
    section = experiment_for_rows("fct", num_rows).transformations.fct
    assert (section.batch_size, section.train_steps) == (batch_size, steps)


def test_settings_of_a_users_own():
    given = {"train_epochs": 16, "hidden": 64, "optimizer": {"learning_rate": 1e-3}}
    section = experiment_for_rows("fct", 1000, settings=given).transformations.fct
    assert (section.hidden, section.optimizer.learning_rate) == (64, 1e-3)
    assert (section.train_epochs, section.train_steps, section.warmup_epochs) == (16, 0, 2)
    section = experiment_for_rows("fct", 1000, settings={"train_steps": 40}).transformations.fct
    assert (section.train_epochs, section.train_steps, section.warmup_steps) == (0, 40, 5)


@pytest.mark.parametrize("method, num_rows, given, message", [
    ("ftc", 1000, {}, "`method=ftc`: .*did you mean fct"),
    ("fct", 31, {}, "31 rows are too few .* take `method=affine`"),
    ("fct", 1000, {"settings": {"hiden": 3}}, "hiden: unknown setting; did you mean hidden"),
    ("fct", 1000, {"settings": {"hidden": "wide"}}, "settings .*hidden"),
    ("fct", 1000, {"settings": {"optimizer": {"rate": 1.0}}}, "settings .*rate"),
    ("fct", 1000, {"base": True}, "`base`: .*`pairs`"),
])  # fmt: skip
def test_methods_that_cannot_be(method, num_rows, given, message):
    with pytest.raises(InputError, match=message):
        experiment_for_rows(method, num_rows, **given)
