"""Model selection on classes that the training does not see.

Rows of the training classes say little about rows of other classes: frozen models embed what they
were trained on in tighter clusters. So whole classes are held out, and the epoch (and the
regularisation) that retrieves best among them is kept.
"""

import hashlib
import json
import os
from pathlib import Path

import keras
import numpy as np
from absl import logging

from fct_tf.errors import InputError
from fct_tf.files import atomic_write_text
from fct_tf.gallery import table
from fct_tf.retrieval import exact, metrics

SCORES, BEST = "validation.jsonl", "best.npz"


def held_out(gallery: table.Gallery, share: float) -> np.ndarray:
    """Which rows are held out: bool [n], whole classes, rows without label by themselves.

    A class (a row without label) is held out if the hash of its name (its id, without the number
    of its view) falls into the first `share` of all hashes: the same in every run and table.

    Raises:
      InputError: all rows or none would be held out.
    """
    chosen: dict[str, bool] = {}
    found = []
    for rows in gallery.batches([], 65536, with_labels=True):
        labels = rows.labels if rows.labels is not None else [None] * len(rows)
        for name, label in zip(rows.ids, labels, strict=True):
            key = f"label {label}" if label is not None else f"id {name.partition('#')[0]}"
            if key not in chosen:
                digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
                chosen[key] = int.from_bytes(digest, "big") < share * 2**64
            found.append(chosen[key])
    mask = np.array(found, bool)
    if mask.all() or not mask.any():
        raise InputError(
            f"{gallery.path}: {share:.0%} of its {len(chosen)} classes hold "
            f"{'all' if mask.any() else 'no'} rows; change validation.share"
        )
    return mask


def read_rows(
    gallery: table.Gallery, columns: dict[str, table.Column], mask: np.ndarray, limit: int
) -> table.Rows:
    """The rows that `mask` names, with ids and labels, at most `limit`: the table's first ones."""
    names = list(dict.fromkeys(column.name for column in columns.values()))
    wanted = gallery.read([]).ids[np.flatnonzero(mask)[:limit]]
    return gallery.take(wanted.tolist(), names)


class Selection:
    """Scores a transformation after each epoch and keeps the weights of the best one.

    Args:
      model: the transformation that is trained.
      rows: the held-out rows.
      roles: role of an input, or `target` -> column.
      workdir: gets `validation.jsonl` and `best.npz`.
      write: False for processes that leave the files to another one.
    """

    def __init__(
        self,
        model: keras.Model,
        rows: table.Rows,
        roles: dict[str, str],
        workdir: Path,
        write: bool = True,
    ):
        self._model, self._workdir, self._write = model, workdir, write
        self._inputs = {role: rows.vectors[name] for role, name in roles.items()}
        self._target = self._inputs.pop("target")
        self._ids, self._labels = rows.ids, rows.labels

    def after_epoch(self, step: int) -> None:
        """Scores the weights after `step` steps; lines of later steps are another run's."""
        output = self._model.predict(self._inputs, batch_size=1024, verbose=0)["embedding"]
        score = {"step": step, "mse": float(np.mean((output - self._target) ** 2))}
        if self._labels is not None and any(label is not None for label in self._labels):
            found = exact.per_query(
                *(self._target, self._ids, self._labels), *(output, self._ids, self._labels)
            )
            score["map"] = metrics.mean_average_precision(found.average_precision) or 0.0
        before = [line for line in self.scores() if line["step"] < step]
        if all(value(score) > value(line) for line in before):
            self._keep()
        if self._write:
            lines = "".join(json.dumps(line) + "\n" for line in [*before, score])
            atomic_write_text(self._workdir / SCORES, lines)

    def scores(self) -> list[dict]:
        """`step`, `mse` and, with labels, `map` of each epoch."""
        path = self._workdir / SCORES
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def take_best(self) -> dict:
        """Gives the model the weights of the best epoch; returns its score."""
        best = max(self.scores(), key=value)
        with np.load(self._workdir / BEST) as weights:
            self._model.set_weights([weights[key] for key in weights.files])
        logging.info("%s: the best of %d epochs: %s", self._workdir, len(self.scores()), best)
        return best

    def _keep(self) -> None:
        if not self._write:
            return
        temporary = self._workdir / f"{BEST}.tmp"
        with open(temporary, "wb") as file:
            weights = self._model.get_weights()
            np.savez(file, **{f"{i:04d}": weight for i, weight in enumerate(weights)})
        os.replace(temporary, self._workdir / BEST)


def value(score: dict) -> float:
    """What is maximised: mAP of new/T(old) where there are labels, else minus the error."""
    return score.get("map", -score["mse"])
