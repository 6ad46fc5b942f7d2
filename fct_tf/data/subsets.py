"""Subsets of a data set: the classes of an old model, say, or the images of some rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.data.sources import Source, some


def kept_labels(classes: Mapping[str, Any] | None, source: Source, name: str) -> np.ndarray:
    """The integer labels that `classes` keeps, int64, rising; each has images.

    Label order is the data set's own, whatever the order of a list or file. See
    `fct_tf.data.datasets.load` for `classes`; `name` is the data set's in messages.

    Raises:
      InputError: not exactly one key is given, or classes are unknown, without images or twice.
    """
    present = np.unique(source.labels[source.labels >= 0])
    given = {key: value for key, value in dict(classes or {}).items() if value is not None}
    if classes is not None and len(given) != 1:
        raise InputError(f"classes: give one of fraction, first, list, file; got {sorted(given)}")
    if not given:
        return present
    ((key, value),) = given.items()
    if key == "fraction":
        if not 0 < value <= 1:
            raise InputError(f"classes.fraction: must be above 0 and at most 1, got {value}")
        count = int(value * len(present) + 1e-9)
        if not count:
            raise InputError(f"classes.fraction: {value} leaves no class of {name}")
        return present[:count]
    if key == "first":
        if not 0 < value <= len(present):
            raise InputError(f"classes.first: {name} has {len(present)} classes, got {value}")
        return present[:value]
    if key == "list":
        return _labels_of(list(value), source, present, f"classes.list: {name}")
    if key == "file":
        lines = read_lines(value, f"classes.file: {value}")
        names = [line.split("\t")[0].strip() for line in lines]
        labels = [text for text in names if text and not text.startswith("#")]
        return _labels_of(labels, source, present, f"{value}: {name}")
    raise InputError(f"classes: unknown key {key!r}, give fraction, first, list or file")


def positions_of(ids: list[str], source: Source, positions: np.ndarray, name: str) -> np.ndarray:
    """Those of `positions` whose images have the ids: int64, rising.

    Args:
      ids: without repetition.
      positions: int64, rising; where the images must be.
      name: the data set's in messages.

    Raises:
      InputError: an id has no image at `positions`, or there is no id.
    """
    if not ids:
        raise InputError(f"{name}: no id is listed")
    places = source.find(ids)
    unknown = np.flatnonzero(~np.isin(places, positions))
    if len(unknown):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"{name}: has no image {ids[unknown[0]]!r}{more}; name the images and the split that "
            "these ids come from"
        )
    return np.sort(places)


def _labels_of(wanted: list[Any], source: Source, present: np.ndarray, where: str) -> np.ndarray:
    """Label names, or integer labels (as numbers or text), to rising integer labels."""
    label_of = {text: label for label, text in enumerate(source.label_names)}
    labels_present = set(present.tolist())
    labels: list[int] = []
    unknown: list[str] = []
    for item in wanted:
        text = str(item)
        label = label_of.get(text, int(text) if text.isdecimal() else -1)
        if label in labels_present:
            labels.append(label)
        else:
            unknown.append(text)
    if unknown:
        raise InputError(
            f"{where} has no images of {len(unknown)} of these classes: {some(unknown)}"
        )
    if len(set(labels)) < len(labels):
        twice = sorted({source.label_names[x] for x in labels if labels.count(x) > 1})[0]
        raise InputError(f"{where}: {twice} is listed more than once")
    if not labels:
        raise InputError(f"{where}: no class is listed")
    return np.sort(np.asarray(labels, np.int64))
