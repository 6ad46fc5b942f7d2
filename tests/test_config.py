"""Experiment files: every one is valid, and mistakes in them are named."""

import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.errors import InputError
from fct_tf.validation import validate
from tests import tiny

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load(name: str) -> ConfigDict:
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_files_are_valid_and_have_a_header(name):
    config = load(name)
    validate(config)
    assert schema.to_dict(config)["name"] == name
    header = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    assert "Command" in header and "Hardware" in header
    assert "shared/" not in (CONFIGS / f"{name}.py").read_text()


def test_unknown_key_names_the_nearest():
    config = load("glyphs")
    with config.models.new.unlocked():
        config.models.new.train_epoch = 3
    with pytest.raises(InputError, match=r"models.new.train_epoch: .*train_epochs"):
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
        ({"pairs.draw": "first"}, "pairs.draw: 'first'"),
        ({"pairs.method": "knn"}, "pairs.method: 'knn'"),
        ({"dropout": 1.0}, "dropout: 1.0 is not in 0..1"),
        ({"pairs.share": -0.1}, "pairs.share: -0.1 is not in 0..1"),
        ({"validation.share": 1.0}, "validation.share: 1.0 is not in 0..1"),
        ({"validation.l2": (0.1,)}, "validation.l2: needs validation.share"),
        ({"validation.max_rows": 0}, "validation.max_rows: 0 is not above 0"),
        ({"pairs.max_centres": 0}, "pairs.max_centres: 0 is not above 0"),
        ({"ranking_temperature": 0.0}, "ranking_temperature: 0.0 is not above 0"),
        ({"map": "affine", "dropout": 0.1}, "dropout: with map affine no network is trained"),
        ({"map": "affine", "affine_init": True}, "affine_init: with map affine"),
        ({"map": "procrustes"}, "side_info: procrustes"),
        ({"base": "fct"}, "base: 'fct' is not one of"),
        ({"base": "nothing"}, "base: 'nothing' is not one of"),
        ({"base": "fct_no_side_info"}, "side_info: differs from that of its base"),
        ({"base": "twin"}, "base: only pairs with the method kernel"),
        ({"base": "twin", "mixing": 0.1}, "mixing: with base twin no network is trained"),
        ({"base": "twin", "validation.share": 0.1}, "validation.share: with base twin"),
        ({"base": "corrected"}, "base: corrected has pairs itself"),
        ({"base": "third"}, "base: third has a base itself; name twin"),
    ],
)
def test_transformations_that_contradict_themselves(changes, message):
    config = tiny.experiment(Path("images"))
    for name in ("twin", "corrected", "third"):
        config.transformations[name] = schema.transformation()
    config.transformations.corrected.pairs.share = 0.2
    config.transformations.third.update(base="twin", pairs={"share": 0.2})
    validate(config)
    config.transformations.fct.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=f"^transformations.fct.{message}"):
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
