"""Model selection on classes that the training does not see.

Rows of the training classes say little about rows of other classes: frozen models embed what they
were trained on in tighter clusters. So whole classes are held out, and the epoch (and the
regularisation) that retrieves best among them is kept.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import atomic_write_text
from fct_tf.gallery import table
from fct_tf.retrieval import exact, metrics
from fct_tf.upgrade import sample

SCORES, BEST = "validation.jsonl", "best.npz"
_VIEW = re.compile(r"#\d+$")


def held_out(gallery: table.Gallery, share: float) -> np.ndarray:
    """Which rows are held out: bool [n], whole classes, rows without label by themselves.

    A class (a row without label) is held out if the hash of its name (its id, without the number
    of its view) falls into the first `share` of all hashes: the same in every run and table. Of
    few classes at least one is held out and at least one is not.

    Raises:
      InputError: there are no two classes.
    """
    hashes: dict[str, int] = {}
    found = []
    for rows in gallery.batches([], 65536, with_labels=True):
        labels = rows.labels if rows.labels is not None else [None] * len(rows)
        for name, label in zip(rows.ids, labels, strict=True):
            key = f"label {label}" if label is not None else f"id {_VIEW.sub('', name)}"
            if key not in hashes:
                digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
                hashes[key] = int.from_bytes(digest, "big")
            found.append(hashes[key])
    if len(hashes) < 2:
        raise InputError(
            f"{gallery.path}: all its rows are of one class, none can be held out; set "
            "validation.share to 0, or train on rows of more classes"
        )
    low, high = min(hashes.values()), max(hashes.values())
    limit = min(max(int(share * 2**64), low + 1), high)
    return np.array([value < limit for value in found], bool)


def read_rows(
    gallery: table.Gallery, columns: dict[str, table.Column], mask: np.ndarray, limit: int
) -> table.Rows:
    """The rows that `mask` names, with ids and labels; of more than `limit` a random sample."""
    names = list(dict.fromkeys(column.name for column in columns.values()))
    ids = gallery.read([]).ids[mask]
    drawn = sample.random(ids, min(limit, len(ids)), seed=0)
    return gallery.take(ids[np.sort(drawn)].tolist(), names)


class Selection:
    """Scores a transformation after each epoch and keeps the weights of the best one.

    Args:
      model: the transformation that is trained.
      rows: the held-out rows.
      roles: role of an input, or `target` -> column.
      workdir: gets `validation.jsonl`, and `best.npz` with the best weights and their score.
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
        # Of a run that was killed even what its last checkpoint does not know of is taken.
        self._best = self._read()

    def after_epoch(self, step: int) -> None:
        """Scores the weights after `step` steps; lines of later steps are another run's."""
        output = self._model.predict(self._inputs, batch_size=1024, verbose=0)["embedding"]
        score = {"step": step, "mse": float(np.mean((output - self._target) ** 2))}
        if self._labels is not None and any(label is not None for label in self._labels):
            found = exact.per_query(
                *(self._target, self._ids, self._labels), *(output, self._ids, self._labels)
            )
            mean = metrics.mean_average_precision(found.average_precision)
            if mean is not None:  # Where no row has another one of its class.
                score["map"] = mean
        if self._best is None or value(score) > value(self._best[0]):
            self._best = score, [weight.copy() for weight in self._model.get_weights()]
            self._keep()
        if self._write:
            before = [line for line in self.scores() if line["step"] < step]
            lines = "".join(json.dumps(line) + "\n" for line in [*before, score])
            atomic_write_text(self._workdir / SCORES, lines)

    def scores(self) -> list[dict]:
        """`step`, `mse` and, with labels, `map` of each epoch."""
        path = self._workdir / SCORES
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def take_best(self) -> dict:
        """Gives the model the weights of the best epoch; returns its score."""
        assert self._best is not None  # Once an epoch has ended.
        score, weights = self._best
        self._model.set_weights(weights)
        logging.info("%s: the best epoch: %s", self._workdir, score)
        return score

    def _keep(self) -> None:
        if not self._write or self._best is None:
            return
        score, weights = self._best
        temporary = self._workdir / f"{BEST}.tmp"
        with open(temporary, "wb") as file:
            arrays: dict[str, Any] = {f"{i:04d}": weight for i, weight in enumerate(weights)}
            np.savez(file, score=json.dumps(score), **arrays)
        os.replace(temporary, self._workdir / BEST)

    def _read(self) -> tuple[dict, list[np.ndarray]] | None:
        if not (self._workdir / BEST).exists():
            return None
        with np.load(self._workdir / BEST) as kept:
            score, *names = kept.files
            return json.loads(str(kept[score])), [kept[name] for name in names]


def value(score: dict) -> float:
    """What is maximised: mAP of new/T(old) where there are labels, else minus the error."""
    return score.get("map", -score["mse"])
