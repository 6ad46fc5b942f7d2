"""The new model's classifier as FastFill's training takes it: read, checked, matched to labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from absl import logging

from fct_tf.common import copies
from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line, read_lines
from fct_tf.gallery import table, text_columns
from fct_tf.models import artifact


@dataclass(frozen=True)
class FrozenClassifier:
    """A classifier that is not trained any more.

    Attributes:
      path: where it was read.
      weights: float32 [d, classes].
      label_names: of the classes, each another one.
      scale: of a classifier over angles, the scale of its cosines; None: linear logits.
    """

    path: str
    weights: np.ndarray
    label_names: tuple[str, ...]
    scale: float | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a training with it depends on, whatever file it lies in."""
        settings = {"label_names": list(self.label_names), "scale": self.scale}
        return artifact.tensors_sha256([self.weights], settings)

    def numbers(self, galleries: Sequence[table.Gallery]) -> np.ndarray:
        """The class of every row, one gallery after the other: int32 [rows].

        -1 where a row has no label, or one that the classifier does not know.

        Raises:
          InputError: no row of the first gallery has a class.
        """
        position = {name: number for number, name in enumerate(self.label_names)}
        classes = []
        for gallery in galleries:
            parts, example = [np.zeros(0, np.int32)], None
            for rows in gallery.batches([], 65536, with_labels=True):
                labels = [] if rows.labels is None else rows.labels.tolist()
                parts.append(np.array([position.get(label, -1) for label in labels], np.int32))
                example = next((label for label in labels if label is not None), example)
            classes.append(np.concatenate(parts))
            num_known = int((classes[-1] >= 0).sum())
            if not num_known and gallery is galleries[0]:
                has = "no label" if example is None else f"labels such as {example!r}"
                raise InputError(
                    f"{gallery.path}: its rows have {has}, the classifier {self.path} knows "
                    f"{self.label_names[0]!r} and others; give the rows labels of the same spelling"
                )
            if num_known < len(classes[-1]):
                logging.info(
                    "%s: %d of %d rows are of classes that %s knows; the others go without the "
                    "discriminative term",
                    *(gallery.path, num_known, len(classes[-1]), self.path),
                )
        return np.concatenate(classes)


def open_classifier(
    path: str | Path, target: table.Column, labels: str | Path = ""
) -> FrozenClassifier:
    """Reads the classifier of the model that made the column `target`.

    Args:
      path: the model's artifact; an `.npz` file like the artifact's `classifier.npz` (`weights`
        [d, classes], `label_names`, perhaps `scale`, that of cosine logits); or a `.npy` file,
        float [classes, d].
      target: the column that a transformation shall reach.
      labels: text file of the label names, one a line: of a `.npy` file, and of no other.

    Raises:
      InputError: nothing readable there; names that do not fit; another space or size than the
        column's.
    """
    path = copies.local(path)
    if not path.exists():
        raise InputError(f"``classifier={path}``: no such artifact or file")
    if bool(labels) != (path.suffix == ".npy"):
        remedy = (
            "leave it out; label names are read from a text file for .npy files only"
            if labels
            else "name a text file with one label a line, in the order of the rows of that file"
        )
        raise InputError(f"``classifier_labels``: of ``classifier={path}``: {remedy}")
    if path.name == "classifier.npz" and (path.parent / "model.json").exists():
        path = path.parent  # The artifact also knows its space and its scale.
    if path.is_dir():
        classifier = _of_artifact(path, target)
    elif path.suffix == ".npz":
        classifier = _of_npz(path)
    elif path.suffix == ".npy":
        names = tuple(read_lines(labels, f"``classifier_labels={labels}``"))
        classifier = FrozenClassifier(str(path), _array(path).T, names)
    else:
        raise InputError(f"``classifier={path}``: not an artifact directory, .npz or .npy file")
    _check(classifier, target)
    return replace(classifier, weights=np.ascontiguousarray(classifier.weights, np.float32))


def _of_artifact(path: Path, target: table.Column) -> FrozenClassifier:
    model = artifact.load(path)
    if model.classifier is None:
        raise InputError(f"{path}: has no classifier; name the artifact of a model that has one")
    if model.space != target.space:
        raise InputError(
            f"{path}: its embeddings are of the space {model.space} (model {model.name}), the "
            f"column {target.name!r} of {target.space} (model {target.model}); name the model "
            "that made the column"
        )
    return FrozenClassifier(str(path), *model.classifier, model.classifier_scale)


def _of_npz(path: Path) -> FrozenClassifier:
    arrays = _load(path)
    missing = [name for name in ("weights", "label_names") if name not in arrays]
    if missing:
        raise InputError(f"{path}: has no array {missing[0]!r}; write weights and label_names")
    names = text_columns.of_numpy(np.ravel(arrays["label_names"]), f"{path}: 'label_names'")
    if None in names:
        raise InputError(f"{path}: 'label_names' has an empty name; name every class")
    scale = float(arrays["scale"]) if "scale" in arrays else None
    return FrozenClassifier(str(path), arrays["weights"], tuple(names), scale)


def _array(path: Path) -> np.ndarray:
    array = _load(path)
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise InputError(f"{path}: not an array of float32 [classes, d]")
    return array


def _load(path: Path):
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except Exception as error:  # Whatever NumPy makes of a broken file.
        raise InputError(f"{path}: cannot be read ({one_line(error)[:200]})") from None


def _check(made: FrozenClassifier, target: table.Column) -> None:
    weights, names = made.weights, made.label_names
    if weights.ndim != 2 or not np.issubdtype(weights.dtype, np.floating):
        raise InputError(f"{made.path}: weights are {weights.dtype} {list(weights.shape)}, not 2-d")
    if weights.shape[0] != target.dim:
        raise InputError(
            f"{made.path}: weighs embeddings of {weights.shape[0]} values, the column "
            f"{target.name!r} has {target.dim}; name the classifier of the column's model"
        )
    if weights.shape[1] != len(names) or not names:
        raise InputError(
            f"{made.path}: has weights of {weights.shape[1]} classes and {len(names)} label names; "
            "give each class its one"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{made.path}: the label {repeated[0]!r} names two classes; rename one")
    bad = np.flatnonzero(~np.isfinite(weights).all(axis=0))
    if len(bad):
        raise InputError(f"{made.path}: NaN or infinity in the weights of {names[bad[0]]!r}")
    if made.scale is not None and not made.scale > 0:
        raise InputError(f"{made.path}: scale {made.scale} is not above 0")
