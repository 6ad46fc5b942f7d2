"""What a section of an experiment file comes to: steps, classes, arguments, plain JSON."""

from typing import Any

from ml_collections import ConfigDict

from fct_tf.common.errors import InputError

ROWS = "rows:"  # what the name of a table begins with where images could be named too


def duration_steps(config: ConfigDict, name: str, steps_per_epoch: int, key: str) -> int:
    """`{name}_epochs` or `{name}_steps` of a section, in steps.

    Args:
      config: a section with both keys.
      name: `train` or `warmup`; of `train` exactly one must be given.
      steps_per_epoch: steps of one epoch.
      key: the section's full key, for the error message.

    Raises:
      InputError: both are given, or neither of `train`.
    """
    # 0 is None as it can be written on a command line.
    epochs, steps = config[f"{name}_epochs"] or 0, config[f"{name}_steps"] or 0
    if epochs and steps:
        raise InputError(
            f"{key}.{name}_steps: {key}.{name}_epochs is given too; set one of them to 0"
        )
    if name == "train" and max(epochs, steps) <= 0:
        raise InputError(f"{key}: give {name}_epochs or {name}_steps, above 0")
    return steps or epochs * steps_per_epoch


def class_subset(config: ConfigDict, key: str) -> dict[str, Any] | None:
    """A `classes` section as `fct_tf.data.datasets.load` takes it; None means all classes."""
    given = {name: value for name, value in config.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{key}: give one of {sorted(given)}, set the others to None")
    return given or None


def is_fused(section: ConfigDict) -> bool:
    """Whether a transformation's section asks for a fused search."""
    return bool(section.fusion.weight or section.fusion.choose_weight)


def load_arguments(dataset: ConfigDict) -> dict[str, Any]:
    """How a `dataset` section says to load images, for `fct_tf.data.datasets.load`."""
    keys = ("image_size", "resize", "data_dir", "on_bad_image", "cache")
    return {key: dataset[key] for key in keys}


def starts_from_rows(config: ConfigDict) -> bool:
    """Whether an experiment starts from tables of stored embeddings, not from images."""
    return config.dataset.train.startswith(ROWS)


def compatibility_method(model: ConfigDict) -> str:
    """How a model was trained to fit an older one; `none` also where its training is not ours."""
    return "none" if "column" in model else model.compatibility.method


def embedding_dim(model: ConfigDict) -> int:
    """Values of one embedding of a model."""
    return model.dim if "column" in model else model.backbone.embedding_dim


def to_dict(config: Any) -> Any:
    """A configuration as plain JSON: dictionaries and lists."""
    if isinstance(config, ConfigDict):
        return {key: to_dict(config[key]) for key in sorted(config)}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config
