"""Checks of an experiment against its schema, before hours of work are built on it."""

from typing import Any

from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.cli import nearest
from fct_tf.errors import InputError


def validate(config: ConfigDict) -> None:
    """Checks an experiment against the schema; `InputError` names the key."""
    known = schema.experiment("")
    _check_keys(config, known, "")
    for key in ("train", "gallery"):
        if not config.dataset[key]:
            raise InputError(f"dataset.{key}: is empty; name the images")
    if not config.seeds:
        raise InputError("seeds: is empty; give at least one")
    taken = {"side_info", "rows", "evaluation"} | set(config.transformations)
    for name in config.models:
        if name in taken:
            raise InputError(f"models.{name}: this name is taken; give the model another one")
    for name in {"side_info", "rows", "evaluation"} & set(config.transformations):
        raise InputError(f"transformations.{name}: this name is taken; choose another one")
    _check_numbers(config, "")
    for name, section in config.models.items():
        _check_keys(section, schema.model(), f"models.{name}.")
        schema.duration_steps(section, "train", 1, f"models.{name}")
    for name, section in config.transformations.items():
        _check_keys(section, schema.transformation(), f"transformations.{name}.")
        schema.duration_steps(section, "train", 1, f"transformations.{name}")
        for role in ("source", "target"):
            if section[role] not in config.models:
                raise InputError(
                    f"transformations.{name}.{role}: no model {section[role]!r} in models "
                    f"({', '.join(config.models)})"
                )
        if section.side_info and config.side_info.method == "none":
            raise InputError(
                f"transformations.{name}.side_info: side_info.method is none; "
                "set it to simclr or autoencoder"
            )
    _check_choice(config.side_info.method, ("simclr", "autoencoder", "none"), "side_info.method")
    _check_choice(
        config.training.strategy, ("one_device", "mirrored", "multi_worker"), "training.strategy"
    )
    _check_choice(config.evaluation.distance, ("l2", "cosine"), "evaluation.distance")
    _check_choice(config.dataset.preprocess, ("symmetric", "imagenet"), "dataset.preprocess")


# Numbers that must be above zero, wherever they stand.
_POSITIVE = ("steps_per_call", "batch_size", "embedding_dim", "embed_batch_size", "image_size")


def _check_numbers(config: ConfigDict, prefix: str) -> None:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _check_numbers(value, f"{prefix}{key}.")
        elif key in (*_POSITIVE, "hidden", "width", "temperature") and not value > 0:
            raise InputError(f"{prefix}{key}: {value} is not above 0")
    if prefix == "" and not all(0 <= seed < 2**31 for seed in config.seeds):
        raise InputError(f"seeds: {tuple(config.seeds)} are not all in 0..2147483647")


def _check_choice(value: str, choices: tuple[str, ...], key: str) -> None:
    if value not in choices:
        raise InputError(f"{key}: {value!r} is not one of {', '.join(choices)}")


def _check_keys(config: Any, known: ConfigDict, prefix: str) -> None:
    for key in config:
        if key not in known:
            raise InputError(f"{prefix}{key}: unknown key{nearest(key, list(known))}")
        free = key in ("models", "transformations") or key.endswith("augment")
        if isinstance(known[key], ConfigDict) and not free:
            if not isinstance(config[key], ConfigDict):
                raise InputError(f"{prefix}{key}: expected a section, received {config[key]!r}")
            _check_keys(config[key], known[key], f"{prefix}{key}.")
    for key in known:
        if key not in config:
            raise InputError(f"{prefix}{key}: missing; start from fct_tf.config's functions")
