"""The training of a transformation that is named by its method: no experiment file is needed."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.config.methods import FEW_ROWS, experiment_for_rows
from fct_tf.gallery import table
from fct_tf.training.transformation import train


def train_by_method(
    method: str,
    gallery: str,
    source: str,
    target: str,
    workdir: str | os.PathLike,
    *,
    name: str = "",
    settings: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Trains a transformation with settings for the number of rows and returns `workdir`.

    Args:
      method: `fct`, `fastfill`, `affine` or `procrustes`.
      gallery, source, target, workdir: as `fct_tf.training.transformation.train`.
      name: of the transformation; by default that of the method.
      settings: see `fct_tf.config.methods.experiment_for_rows`.
      **given: what else `train` takes, such as `side_info`, `pairs` and `existing`.

    Raises:
      InputError: as `train` and `experiment_for_rows`.
    """
    num_rows = table.open_gallery(gallery).num_rows
    config = experiment_for_rows(
        method,
        num_rows,
        name=name,
        settings=settings,
        **{key: bool(given.get(key)) for key in ("side_info", "pairs", "base", "classifier")},
    )
    if method in ("fct", "fastfill") and not given.get("base") and num_rows < FEW_ROWS:
        logging.warning(
            "%s: of %d rows a network learns too little; the method affine may well be better, "
            "judge both", gallery, num_rows,
        )  # fmt: skip
    rows = (gallery, source, target, Path(workdir))
    try:
        return train(config, name or method, *rows, **given)
    except InputError as error:
        raise InputError(_naming_arguments(error.marked, name or method)) from None


def _naming_arguments(message: str, name: str) -> str:
    """A message on keys of an experiment, which nobody has written here, as one on arguments."""
    key = rf"(?:transformations\.{re.escape(name)}\.)"
    message = re.sub(rf"{key}?(?:fusion\.(\w+)|(pairs)\.share)\b", r"``\1\2``", message)
    return re.sub(rf"{key}(\w+)", r"``\1``", message)
