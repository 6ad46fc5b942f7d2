"""Experiment files: the sections that one is made of, and what they come to.

An experiment file writes `from fct_tf import config as schema` and calls these functions.
"""

from fct_tf.config.sections import (
    AUGMENTATIONS,
    HEADS,
    PAPER_L2,
    adam,
    augment,
    backbone,
    chain,
    classes,
    compatibility,
    compatible_models,
    experiment,
    fastfill_transformation,
    head,
    identities,
    model,
    pairs,
    schedule,
    sgd,
    side_info,
    transformation,
    transformations,
    validation,
)
from fct_tf.config.values import class_subset, duration_steps, load_arguments, to_dict

__all__ = [
    "AUGMENTATIONS",
    "HEADS",
    "PAPER_L2",
    "adam",
    "augment",
    "backbone",
    "chain",
    "class_subset",
    "classes",
    "compatibility",
    "compatible_models",
    "duration_steps",
    "experiment",
    "fastfill_transformation",
    "head",
    "identities",
    "load_arguments",
    "model",
    "pairs",
    "schedule",
    "sgd",
    "side_info",
    "to_dict",
    "transformation",
    "transformations",
    "validation",
]
