"""Checks of an experiment against its schema, before hours of work are built on it."""

import math
from typing import Any

from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.cases import untransformed, versions
from fct_tf.cli import nearest
from fct_tf.errors import InputError
from fct_tf.gallery.policies import NAMES
from fct_tf.retrieval.orders import check_policies


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
        _check_model(section, f"models.{name}")
    training_order(config)
    for name, section in config.transformations.items():
        _check_keys(section, schema.transformation(), f"transformations.{name}.")
        schema.duration_steps(section, "train", 1, f"transformations.{name}")
        for role in ("source", "target"):
            if section[role] not in config.models:
                raise InputError(
                    f"transformations.{name}.{role}: no model {section[role]!r} in models "
                    f"({', '.join(config.models)})"
                )
        _check_transformation(config, name)
        if section.side_info and config.side_info.method == "none":
            raise InputError(
                f"transformations.{name}.side_info: side_info.method is none; "
                "set it to simclr or autoencoder"
            )
    for name, section in config.chains.items():
        _check_keys(section, schema.chain(), f"chains.{name}.")
        _check_chain(config, section, f"chains.{name}")
    _check_choice(config.side_info.method, ("simclr", "autoencoder", "none"), "side_info.method")
    _check_choice(
        config.training.strategy, ("one_device", "mirrored", "multi_worker"), "training.strategy"
    )
    _check_choice(config.evaluation.distance, ("l2", "cosine"), "evaluation.distance")
    backfilling = config.evaluation.backfilling
    for policy in backfilling.policies:
        _check_choice(policy, NAMES, "evaluation.backfilling.policies")
    check_policies(
        backfilling.policies,
        backfilling.random_orders,
        backfilling.corrected,
        "evaluation.backfilling.policies",
    )
    for name in backfilling.transformations:
        key = "evaluation.backfilling.transformations"
        _check_choice(name, tuple(config.transformations), key)
    _check_choice(config.dataset.preprocess, ("symmetric", "imagenet"), "dataset.preprocess")
    _check_identities(config.evaluation.identities)


def training_order(config: ConfigDict) -> list[str]:
    """The models' names, each after the one that it is made compatible with.

    Raises:
      InputError: a model is to be compatible with one that there is not, or, over others
        perhaps, with itself.
    """
    order: list[str] = []
    for name in config.models:
        chain: list[str] = []  # The model, the one it needs, the one that that one needs, ..
        older: str | None = name
        while older is not None and older not in order:
            chain.append(older)
            section = config.models[older].compatibility
            key = f"models.{older}.compatibility.old"
            older = None if section.method == "none" else section.old
            if older is not None and older not in config.models:
                raise InputError(
                    f"{key}: no model {older!r} in models ({', '.join(config.models)})"
                )
            if older in chain:
                told = " -> ".join([*chain[chain.index(older) :], older])
                raise InputError(f"{key}: a model cannot wait for itself ({told}); name another")
        order += reversed(chain)
    return order


def _check_identities(section: ConfigDict) -> None:
    key = "evaluation.identities"
    for name in ("fars", "fpirs"):
        if not all(0 < rate < 1 for rate in section[name]):
            raise InputError(f"{key}.{name}: {tuple(section[name])} are not all between 0 and 1")
    if not 0 <= section.absent_share < 1:
        raise InputError(f"{key}.absent_share: {section.absent_share} is not in 0..1, 1 excluded")
    if not 0 < section.enrolled_share < 1:
        raise InputError(f"{key}.enrolled_share: {section.enrolled_share} is not between 0 and 1")


def _check_model(section: ConfigDict, key: str) -> None:
    head, compatibility = section.head, section.compatibility
    _check_choice(head.name, tuple(schema.HEADS), f"{key}.head.name")
    methods = ("none", "bct", "l2", "triplet", "contrastive")
    _check_choice(compatibility.method, methods, f"{key}.compatibility.method")
    unseen = ("synthesized", "centred", "leave_out", "distil")
    _check_choice(compatibility.unseen, unseen, f"{key}.compatibility.unseen")
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


def _check_transformation(config: ConfigDict, name: str) -> None:
    section, key = config.transformations[name], f"transformations.{name}"
    _check_choice(section.map, ("mlp", "affine", "procrustes"), f"{key}.map")
    _check_choice(section.pairs.draw, ("random", "spread"), f"{key}.pairs.draw")
    _check_choice(section.pairs.method, ("kernel", "rows"), f"{key}.pairs.method")
    modes = ("none", "head", "heteroscedastic")
    _check_choice(section.uncertainty, modes, f"{key}.uncertainty")
    if not section.discriminative_weight >= 0:
        value = section.discriminative_weight
        raise InputError(f"{key}.discriminative_weight: {value} is below 0")
    if section.discriminative_weight and section.mixing:
        raise InputError(
            f"{key}.mixing: a mixture of two rows has no class for discriminative_weight; set one "
            "of them to 0"
        )
    shares = {
        "dropout": section.dropout,
        "mixing": section.mixing,
        "pairs.share": section.pairs.share,
        "pairs.batch_share": section.pairs.batch_share,
        "validation.share": section.validation.share,
        "label_smoothing": section.label_smoothing,
    }
    for part, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"{key}.{part}: {value} is not in 0..1, 1 excluded")
    trained = {part: section[part] for part in ("affine_init", "dropout", "mixing")}
    trained |= {"ranking_weight": section.ranking_weight, "validation.l2": section.validation.l2}
    trained |= {"discriminative_weight": section.discriminative_weight}
    trained |= {"uncertainty": section.uncertainty != "none"}
    if section.base or section.map == "procrustes":
        trained |= {"validation.share": section.validation.share}
    if section.base or section.map != "mlp":
        told = f"base {section.base}" if section.base else f"map {section.map}"
        for part, value in trained.items():
            if value:
                raise InputError(f"{key}.{part}: with {told} no network is trained; leave it out")
    if section.map == "procrustes" and section.side_info:
        raise InputError(f"{key}.side_info: procrustes rotates one space; set it to False")
    _check_choice(section.side, ("gallery", "query"), f"{key}.side")
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
    if section.validation.l2 and not section.validation.share:
        raise InputError(f"{key}.validation.l2: needs validation.share above 0 to choose by")
    if section.base:
        others = [other for other in config.transformations if other != name]
        if section.base not in others:
            raise InputError(f"{key}.base: {section.base!r} is not one of {', '.join(others)}")
        base = config.transformations[section.base]
        for part in ("source", "target", "side_info"):
            if section[part] != base[part]:
                raise InputError(f"{key}.{part}: differs from that of its base {section.base}")
        if base.base:
            raise InputError(f"{key}.base: {section.base} has a base itself; name {base.base}")
        if base.pairs.share and base.pairs.method == "kernel":
            raise InputError(f"{key}.base: {section.base} has pairs itself; name another")
        if not section.pairs.share or section.pairs.method != "kernel":
            raise InputError(
                f"{key}.base: only pairs with the method kernel are fitted to a trained map; set "
                "pairs.share and pairs.method"
            )


def _check_composed(config: ConfigDict, name: str) -> None:
    section, key = config.transformations[name], f"transformations.{name}"
    told = f"{key}.compose"
    if len(section.compose) < 2:
        raise InputError(f"{told}: {section.compose} is one transformation; name two or more")
    at = section.source
    for part in section.compose:
        if part == name or part not in config.transformations:
            others = ", ".join(other for other in config.transformations if other != name)
            raise InputError(f"{told}: {part!r} is not one of {others}")
        step = config.transformations[part]
        for what, bad in {
            "is composed itself; name its parts": step.compose,
            "is of the query side; name transformations of the gallery": step.side == "query",
            "has pairs, rows that are not its own; name one without": step.pairs.share,
            f"maps from {step.source}, not from {at}; name one that does": step.source != at,
        }.items():
            if bad:
                raise InputError(f"{told}: {part} {what}")
        at = step.target
    if at != section.target:
        raise InputError(f"{told}: ends at {at}, not at the target {section.target}; change one")
    reads = any(config.transformations[part].side_info for part in section.compose)
    if reads != section.side_info:
        raise InputError(
            f"{key}.side_info: {'one' if reads else 'none'} of {', '.join(section.compose)} reads "
            f"side-information; set it to {reads}"
        )
    trained = {part: section[part] for part in ("affine_init", "dropout", "mixing", "base")}
    trained |= {"ranking_weight": section.ranking_weight, "pairs.share": section.pairs.share}
    trained |= {"validation.share": section.validation.share}
    trained |= {"side": section.side != "gallery", "map": section.map != "mlp"}
    for part, value in trained.items():
        if value:
            raise InputError(
                f"{key}.{part}: what is composed fits nothing of its own; leave it out"
            )


def _check_chain(config: ConfigDict, section: ConfigDict, key: str) -> None:
    for name in section.versions:
        if name not in config.models:
            known = ", ".join(config.models)
            raise InputError(f"{key}.versions: no model {name!r} in models ({known})")
    if len(section.versions) < 2 or len(set(section.versions)) < len(section.versions):
        raise InputError(f"{key}.versions: {section.versions} are not two or more, each once")
    through: dict[tuple[str, str], str] = {}
    for name in section.transformations:
        if name not in config.transformations:
            known = ", ".join(config.transformations)
            raise InputError(f"{key}.transformations: {name!r} is not one of {known}")
        old, new = versions(config.transformations[name])
        if (old, new) in through:
            raise InputError(
                f"{key}.transformations: {through[old, new]} and {name} are both between {old} "
                f"and {new}; name one of them"
            )
        through[old, new] = name
    wanted = [
        (old, new) for at, new in enumerate(section.versions) for old in section.versions[:at]
    ]
    for old, new in through:
        if (old, new) not in wanted:
            raise InputError(
                f"{key}.transformations: {through[old, new]} is between {old} and {new}, which are "
                "no earlier and later version of this chain; leave it out"
            )
    for old, new in wanted:
        if through and (old, new) not in through:
            raise InputError(
                f"{key}.transformations: none is between {old} and {new}; name one, which may be "
                "composed of others"
            )
        if not through and untransformed(config, new, old) is None:
            raise InputError(
                f"{key}.versions: embeddings of {old} and {new} differ in size, and neither "
                "training nor a transformation makes them fit; name transformations"
            )


# Numbers that must be above zero, wherever they stand.
_POSITIVE = (
    *("steps_per_call", "batch_size", "embedding_dim", "embed_batch_size", "image_size"),
    *("hidden", "width", "temperature", "ranking_temperature", "max_centres", "max_rows"),
)


def _check_numbers(config: ConfigDict, prefix: str) -> None:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _check_numbers(value, f"{prefix}{key}.")
        elif key in _POSITIVE and not value > 0:
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
        free = key in ("models", "transformations", "chains") or key.endswith("augment")
        if isinstance(known[key], ConfigDict) and not free:
            if not isinstance(config[key], ConfigDict):
                raise InputError(f"{prefix}{key}: expected a section, received {config[key]!r}")
            _check_keys(config[key], known[key], f"{prefix}{key}.")
    for key in known:
        if key not in config:
            raise InputError(f"{prefix}{key}: missing; start from fct_tf.config's functions")
