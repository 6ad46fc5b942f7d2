"""Checks of an experiment against its schema, before hours of work are built on it."""

from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.ann import across
from fct_tf.backfill.curve_order import check_policies
from fct_tf.backfill.policies import NAMES
from fct_tf.common.errors import InputError
from fct_tf.config.checks import (
    check_choice,
    check_keys,
    check_model,
    check_numbers,
    check_transformation,
)
from fct_tf.experiments import stored
from fct_tf.experiments.cases import untransformed, versions


def validate(config: ConfigDict) -> None:
    """Checks an experiment against the schema; `InputError` names the key."""
    allowed = schema.experiment("")
    if "column" in config.get("side_info", {}):
        allowed.side_info = schema.stored_side_info()
    check_keys(config, allowed, "")
    for key in ("train", "gallery"):
        if not config.dataset[key]:
            raise InputError(f"dataset.{key}: is empty; name the images, or rows:GALLERY")
    stored.check_start(config)
    if not config.seeds:
        raise InputError("seeds: is empty; give at least one")
    taken = {"side_info", "rows", "evaluation"} | set(config.transformations)
    for name in config.models:
        if name in taken:
            raise InputError(f"models.{name}: this name is taken; give the model another one")
    for name in {"side_info", "rows", "evaluation"} & set(config.transformations):
        raise InputError(f"transformations.{name}: this name is taken; choose another one")
    check_numbers(config, "")
    for name, section in config.models.items():
        if "column" in section:
            check_keys(section, schema.stored(""), f"models.{name}.")
            continue
        check_keys(section, schema.model(), f"models.{name}.")
        schema.duration_steps(section, "train", 1, f"models.{name}")
        check_model(section, f"models.{name}")
    training_order(config)
    for name, section in config.transformations.items():
        check_keys(section, schema.transformation(), f"transformations.{name}.")
        schema.duration_steps(section, "train", 1, f"transformations.{name}")
        for role in ("source", "target"):
            if section[role] not in config.models:
                raise InputError(
                    f"transformations.{name}.{role}: no model {section[role]!r} in models "
                    f"({', '.join(config.models)})"
                )
        check_transformation(config, name)
        if section.side_info and config.side_info.method == "none":
            some = "stored" if schema.starts_from_rows(config) else "simclr"
            raise InputError(
                f"transformations.{name}.side_info: side_info.method is none; set it to {some}"
            )
    for name, section in config.chains.items():
        check_keys(section, schema.chain(), f"chains.{name}.")
        _check_chain(config, section, f"chains.{name}")
    kinds = ("simclr", "stored", "none")
    check_choice(config.side_info.method, kinds, "side_info.method")
    check_choice(
        config.training.strategy, ("one_device", "mirrored", "multi_worker"), "training.strategy"
    )
    check_choice(config.evaluation.distance, ("l2", "cosine"), "evaluation.distance")
    backfilling = config.evaluation.backfilling
    for policy in backfilling.policies:
        check_choice(policy, NAMES, "evaluation.backfilling.policies")
    check_policies(
        backfilling.policies,
        backfilling.random_orders,
        backfilling.corrected,
        "evaluation.backfilling.policies",
    )
    for name in backfilling.transformations:
        key = "evaluation.backfilling.transformations"
        check_choice(name, tuple(config.transformations), key)
    scann = config.evaluation.scann
    for name in scann.transformations:
        check_choice(name, tuple(config.transformations), "evaluation.scann.transformations")
    across.check_shares(scann.backfilled, "evaluation.scann.backfilled")
    if scann.num_queries < 0:
        raise InputError(f"evaluation.scann.num_queries: {scann.num_queries}; 0 for all, or more")
    check_choice(config.dataset.preprocess, ("symmetric", "imagenet"), "dataset.preprocess")
    _check_identities(config.evaluation.identities)


def training_order(config: ConfigDict) -> list[str]:
    """The models' names, each after the one that it is made compatible with, old before new.

    Raises:
      InputError: a model is to be compatible with one that there is not, or, over others
        perhaps, with itself.
    """
    order: list[str] = []
    replaced = {versions(section)[0] for section in config.transformations.values()}
    for name in sorted(config.models, key=lambda name: name not in replaced):
        chain: list[str] = []  # The model, the one it needs, the one that that one needs, ..
        older: str | None = name
        while older is not None and older not in order:
            chain.append(older)
            key, section = f"models.{older}.compatibility.old", config.models[older]
            fits = schema.compatibility_method(section) != "none"
            older = section.compatibility.old if fits else None
            if older is not None and older not in config.models:
                raise InputError(
                    f"{key}: no model {older!r} in models ({', '.join(config.models)})"
                )
            if older in chain:
                circle = " -> ".join([*chain[chain.index(older) :], older])
                raise InputError(f"{key}: a model cannot wait for itself ({circle}); name another")
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


def _check_chain(config: ConfigDict, section: ConfigDict, key: str) -> None:
    for name in section.versions:
        if name not in config.models:
            models = ", ".join(config.models)
            raise InputError(f"{key}.versions: no model {name!r} in models ({models})")
    if len(section.versions) < 2 or len(set(section.versions)) < len(section.versions):
        raise InputError(f"{key}.versions: {section.versions} are not two or more, each once")
    through: dict[tuple[str, str], str] = {}
    for name in section.transformations:
        if name not in config.transformations:
            others = ", ".join(config.transformations)
            raise InputError(f"{key}.transformations: {name!r} is not one of {others}")
        old, new = versions(config.transformations[name])
        if (old, new) in through:
            raise InputError(
                f"{key}.transformations: {through[old, new]} and {name} are both between {old} "
                f"and {new}; name one of them"
            )
        through[old, new] = name
    version_pairs = [
        (old, new) for at, new in enumerate(section.versions) for old in section.versions[:at]
    ]
    for old, new in through:
        if (old, new) not in version_pairs:
            raise InputError(
                f"{key}.transformations: {through[old, new]} is between {old} and {new}, which are "
                "no earlier and later version of this chain; leave it out"
            )
    for old, new in version_pairs:
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
