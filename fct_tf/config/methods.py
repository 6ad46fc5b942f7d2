"""Transformations by the name of their method, with settings for the number of rows there are.

For whoever has vectors and no experiment file. The settings were measured on the embeddings of
two real models and samples of them, see docs/guides/upgrade_your_gallery.md.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fct_tf.common.errors import InputError, nearest
from fct_tf.config import sections

METHODS = ("fct", "fastfill", "affine", "procrustes")
# Fewer rows train no network; with fewer than the second number one is seldom worth it.
LEAST_ROWS, FEW_ROWS = 32, 5000
_DURATIONS = ("train_epochs", "train_steps", "warmup_epochs", "warmup_steps")


def experiment_for_rows(
    method: str,
    num_rows: int,
    *,
    name: str = "",
    side_info: bool = False,
    pairs: bool = False,
    base: bool = False,
    classifier: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """An experiment of one transformation, as `fct_tf.training.transformation.train` takes it.

    `fct` is the paper's network, started from the ridge-affine map; `fastfill` the same with a
    log-variance for each row and, where there is a classifier, its discriminative term; `affine`
    and `procrustes` are solved for.

    Args:
      method: one of `METHODS`.
      num_rows: of the training table.
      name: of the transformation; by default that of the method.
      side_info, pairs, base, classifier: whether the training has them.
      settings: keys of a transformation's section (`fct_tf.config.transformation`) -> values that
        replace what is chosen here, such as `train_steps`, `batch_size`, `hidden`, or a
        dictionary for a section in it, such as `optimizer`.

    Raises:
      InputError: an unknown method or setting, inputs that the method does not have, too few rows.
    """
    if method not in METHODS:
        raise InputError(
            f"``method={method}``: it must be one of {', '.join(METHODS)}{nearest(method, METHODS)}"
        )
    if method == "procrustes" and side_info:
        raise InputError(
            "``side_info``: procrustes rotates one space; leave it out, or take ``method=affine``"
        )
    if classifier and (method != "fastfill" or base):
        raise InputError(
            "``classifier``: goes with ``method=fastfill``, without ``base``; leave it out"
        )
    fused = (settings or {}).get("fusion", {})
    if base and not (pairs or fused):
        raise InputError(
            "``base``: is corrected by ``pairs`` or fused by ``fused=True``; add one of them"
        )
    weight = fused.get("weight", 0.5)
    if fused and not (isinstance(weight, int | float | np.floating) and 0 < weight < 1):
        # Of an experiment 0 means no fusion; here one was asked for.
        raise InputError(f"``weight``: {weight} is not in 0..1, both excluded")
    trains = method in ("fct", "fastfill") and not base
    if trains and num_rows < LEAST_ROWS:
        raise InputError(
            f"``method={method}``: {num_rows} rows are too few to train a network on, "
            f"{LEAST_ROWS} are needed; take ``method=affine`` or procrustes"
        )
    section = sections.transformation(side_info=side_info)
    if method in ("affine", "procrustes"):
        section.map = method
    if trains:
        section.update(_training(num_rows), affine_init=True)
    if method == "fastfill" and not base:
        section.update(uncertainty="heteroscedastic", discriminative_weight=float(classifier))
    config = sections.experiment(name or method)
    if base:  # Its section; the network itself is opened, not trained.
        config.transformations["base"] = section.copy_and_resolve_references()
        section.base = "base"
    if pairs:
        section.pairs.share = 0.5  # Any: they are named, not drawn.
    _apply(section, settings or {})
    config.transformations[name or method] = section
    return config


def _training(num_rows: int) -> dict[str, Any]:
    """Batch size and steps of a network for so many rows.

    Twelve passes, and not fewer than 300 steps. Of 500 rows of real models neither a smaller
    width, fewer steps, nor a lower learning rate made a network that retrieves better than the
    affine map it starts from; of 5,000 rows it did so with these settings.
    """
    batch_size = 256 if num_rows < 100_000 else 1024
    while batch_size > num_rows // 4:
        batch_size //= 2
    steps = max(300, 12 * num_rows // batch_size)
    return {
        "batch_size": batch_size,
        "train_epochs": 0,
        "train_steps": steps,
        "warmup_epochs": 0,
        "warmup_steps": steps // 8,
    }


def _apply(section: ConfigDict, settings: Mapping[str, Any]) -> None:
    """Puts a user's settings into the section."""
    for key in settings:
        if key not in section:
            raise InputError(f"{key}: unknown setting{nearest(key, list(section))}")
    durations = {key: settings[key] for key in _DURATIONS if settings.get(key)}
    if any(key.startswith("train_") for key in durations):
        section.update(dict.fromkeys(_DURATIONS, 0))
        unit = "epochs" if "train_epochs" in durations else "steps"
        if not any(key.startswith("warmup_") for key in durations):
            durations[f"warmup_{unit}"] = durations[f"train_{unit}"] // 8
    try:
        section.update({**settings, **durations})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"settings {dict(settings)}: {' '.join(str(error).split())}") from None
