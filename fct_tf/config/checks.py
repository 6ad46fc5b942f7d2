"""Checks of the sections of an experiment file, each by itself."""

import math
from typing import Any

from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common.cli import nearest_key
from fct_tf.common.errors import InputError


def check_model(section: ConfigDict, key: str) -> None:
    """Checks a section of `models`; `InputError` names the key, of which `key` is the beginning."""
    head, compatibility = section.head, section.compatibility
    check_choice(head.name, tuple(schema.HEADS), f"{key}.head.name")
    methods = ("none", "bct", "l2", "triplet", "contrastive")
    check_choice(compatibility.method, methods, f"{key}.compatibility.method")
    unseen = ("synthesized", "centred", "leave_out", "distil")
    check_choice(compatibility.unseen, unseen, f"{key}.compatibility.unseen")
    for name, value in {
        "head.scale": head.scale,
        "compatibility.scale": compatibility.scale,
        "compatibility.weight": compatibility.weight,
        "compatibility.distil_temperature": compatibility.distil_temperature,
        "compatibility.margin": compatibility.margin,
    }.items():
        if value is not None and not value > 0:
            raise InputError(f"{key}.{name}: {value} is not above 0")
    if head.margin is not None and not 0 <= head.margin < math.pi / 2:
        raise InputError(f"{key}.head.margin: {head.margin} is not in 0 to below pi/2")
    if head.name in ("linear", "normface") and head.margin:
        raise InputError(f"{key}.head.margin: {head.name} has none; set cosface or arcface")
    if head.name == "linear" and head.scale is not None:
        raise InputError(f"{key}.head.scale: linear has none; set normface, cosface or arcface")
    if compatibility.method == "none" and not compatibility.classification:
        raise InputError(
            f"{key}.compatibility.classification: with method none nothing is left to train"
        )


def check_transformation(config: ConfigDict, name: str) -> None:
    """Checks one of the `transformations` and what it names; `InputError` names the key."""
    section, key = config.transformations[name], f"transformations.{name}"
    check_choice(section.map, ("mlp", "affine", "procrustes"), f"{key}.map")
    check_choice(section.pairs.method, ("kernel", "rows"), f"{key}.pairs.method")
    check_choice(section.uncertainty, ("none", "heteroscedastic"), f"{key}.uncertainty")
    if not section.discriminative_weight >= 0:
        value = section.discriminative_weight
        raise InputError(f"{key}.discriminative_weight: {value} is below 0")
    shares = {
        "pairs.share": section.pairs.share,
        "pairs.batch_share": section.pairs.batch_share,
        "label_smoothing": section.label_smoothing,
    }
    for part, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"{key}.{part}: {value} is not in 0..1, 1 excluded")
    trained = {part: section[part] for part in ("affine_init", "discriminative_weight")}
    trained |= {"uncertainty": section.uncertainty != "none"}
    if section.base or section.map != "mlp":
        given = f"base {section.base}" if section.base else f"map {section.map}"
        for part, value in trained.items():
            if value:
                raise InputError(f"{key}.{part}: with {given} no network is trained; leave it out")
    if section.map == "procrustes" and section.side_info:
        raise InputError(f"{key}.side_info: procrustes rotates one space; set it to False")
    check_choice(section.side, ("gallery", "query"), f"{key}.side")
    if section.side == "query" and section.side_info:
        raise InputError(
            f"{key}.side_info: nothing is stored beside a query, the side-information model would "
            "have to embed every one; set it to False"
        )
    if section.side == "query" and section.pairs.share:
        raise InputError(
            f"{key}.pairs.share: the queries are mapped and the gallery stays as it is, no row of "
            "it is re-embedded; set it to 0"
        )
    if section.compose:
        _check_composed(config, name)
    _check_fusion(section, key)
    if section.base:
        others = [other for other in config.transformations if other != name]
        if section.base not in others:
            raise InputError(f"{key}.base: {section.base!r} is not one of {', '.join(others)}")
        base = config.transformations[section.base]
        for part in ("source", "target", "side_info"):
            if section[part] != base[part]:
                raise InputError(f"{key}.{part}: differs from that of its base {section.base}")
        if schema.is_fused(base):
            raise InputError(
                f"{key}.base: {section.base} is a fused search itself; name a transformation "
                "without fusion"
            )
        if base.base:
            raise InputError(f"{key}.base: {section.base} has a base itself; name {base.base}")
        if base.pairs.share and base.pairs.method == "kernel":
            raise InputError(f"{key}.base: {section.base} has pairs itself; name another")
        corrects = section.pairs.share and section.pairs.method == "kernel"
        if not corrects and (section.pairs.share or not schema.is_fused(section)):
            raise InputError(
                f"{key}.base: only pairs with the method kernel, or a fusion, go onto a trained "
                "map; set pairs.share and pairs.method, or fusion.weight"
            )


def _check_fusion(section: ConfigDict, key: str) -> None:
    """Checks what a transformation says of fused search."""
    fusion = section.fusion
    if not 0 <= fusion.weight < 1:
        raise InputError(f"{key}.fusion.weight: {fusion.weight} is not in 0..1, 1 excluded")
    if fusion.dims < 0:
        raise InputError(f"{key}.fusion.dims: {fusion.dims} is below 0")
    if not schema.is_fused(section):
        for part in ("whiten", "dims"):
            if fusion[part]:
                raise InputError(
                    f"{key}.fusion.{part}: is of a fused search; set fusion.weight, such as 0.5"
                )
        return
    if section.side == "query" or section.compose:
        given = "side query" if section.side == "query" else "compose"
        raise InputError(f"{key}.fusion: goes with stored rows and one map, not with {given}")
    if fusion.choose_weight and not section.pairs.share:
        raise InputError(
            f"{key}.fusion.choose_weight: a weight is chosen by pairs; set pairs.share, or "
            "fusion.weight to 0.5"
        )


def _check_composed(config: ConfigDict, name: str) -> None:
    section, key = config.transformations[name], f"transformations.{name}"
    compose_key = f"{key}.compose"
    if len(section.compose) < 2:
        raise InputError(
            f"{compose_key}: {section.compose} is one transformation; name two or more"
        )
    at = section.source
    for part in section.compose:
        if part == name or part not in config.transformations:
            others = ", ".join(other for other in config.transformations if other != name)
            raise InputError(f"{compose_key}: {part!r} is not one of {others}")
        step = config.transformations[part]
        for what, bad in {
            "is composed itself; name its parts": step.compose,
            "is of the query side; name transformations of the gallery": step.side == "query",
            "is a fused search, whose rows no transformation reads": schema.is_fused(step),
            "has pairs, rows that are not its own; name one without": step.pairs.share,
            f"maps from {step.source}, not from {at}; name one that does": step.source != at,
        }.items():
            if bad:
                raise InputError(f"{compose_key}: {part} {what}")
        at = step.target
    if at != section.target:
        raise InputError(
            f"{compose_key}: ends at {at}, not at the target {section.target}; change one"
        )
    reads = any(config.transformations[part].side_info for part in section.compose)
    if reads != section.side_info:
        raise InputError(
            f"{key}.side_info: {'one' if reads else 'none'} of {', '.join(section.compose)} reads "
            f"side-information; set it to {reads}"
        )
    trained = {part: section[part] for part in ("affine_init", "base")}
    trained |= {"pairs.share": section.pairs.share}
    trained |= {"side": section.side != "gallery", "map": section.map != "mlp"}
    for part, value in trained.items():
        if value:
            raise InputError(
                f"{key}.{part}: what is composed fits nothing of its own; leave it out"
            )


# Numbers that must be above zero, wherever they stand.
_POSITIVE = (
    *("steps_per_call", "batch_size", "embedding_dim", "embed_batch_size", "image_size"),
    *("hidden", "width", "temperature", "max_centres"),
)


def check_numbers(config: ConfigDict, prefix: str) -> None:
    """Checks that what has to be above zero is, in all sections below `prefix`."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            check_numbers(value, f"{prefix}{key}.")
        elif key in _POSITIVE and not value > 0:
            raise InputError(f"{prefix}{key}: {value} is not above 0")
    if prefix == "" and not all(0 <= seed < 2**31 for seed in config.seeds):
        raise InputError(f"seeds: {tuple(config.seeds)} are not all in 0..2147483647")


def check_choice(value: str, choices: tuple[str, ...], key: str) -> None:
    """Checks that a value is one of those known; `InputError` names the key."""
    if value not in choices:
        raise InputError(f"{key}: {value!r} is not one of {', '.join(choices)}")


def check_keys(config: Any, known: ConfigDict, prefix: str) -> None:
    """Checks that `config` has the keys of `known` and no others, section by section."""
    for key in config:
        if key not in known:
            raise InputError(f"{prefix}{key}: unknown key{nearest_key(key, list(known))}")
        free = key in ("models", "transformations", "chains") or key.endswith("augment")
        if isinstance(known[key], ConfigDict) and not free:
            if not isinstance(config[key], ConfigDict):
                raise InputError(f"{prefix}{key}: expected a section, received {config[key]!r}")
            check_keys(config[key], known[key], f"{prefix}{key}.")
    for key in known:
        if key not in config:
            raise InputError(f"{prefix}{key}: missing; start from fct_tf.config's functions")
