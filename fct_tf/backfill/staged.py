"""What a backfilling has embedded before its commit: chunks in the job's directory.

A chunk is written whole or not at all, so a job that was killed loses one. It holds vectors, the
ids of the rows that they are of (`good`), those of images that could not be read (`bad`), and the
seconds that it took.
"""

import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from fct_tf.backfill.budget import Budget
from fct_tf.backfill.plan import Model
from fct_tf.common import files
from fct_tf.data import by_id, datasets
from fct_tf.gallery.columns import check_finite
from fct_tf.ingest import embed

MISSING = "there is no image of this id"
UNREADABLE = "the image cannot be read or decoded"
# In the directory of a job, beside settings.json.
CHOSEN, COMMITTING, CHUNKS, VECTORS = "chosen.json", "committing.json", "chunks", "vectors.npy"


def embed_rows(
    job: Path,
    ids: np.ndarray,
    images: by_id.Images,
    model: Model,
    batch_size: int,
    budget: Budget,
) -> None:
    """Embeds what is not staged in `job` yet, chunk after chunk, until the time is up.

    Args:
      job: the directory.
      ids: object [n] of str, the rows in the order of the policy.
      images, model, batch_size: as `fct_tf.backfill.backfill.backfill`.
      budget: only a budget of time ends this early; seconds of earlier processes count.

    Raises:
      InputError: an embedding with NaN or infinity, or a damaged data set.
    """
    folder = files.make_dir(job / CHUNKS)
    paths = sorted(folder.glob("*.npz"))
    done: set[str] = set()
    used = 0.0
    for path in paths:
        with np.load(path) as chunk:
            done.update(_ids(chunk["good"]), _ids(chunk["bad"]))
            used += float(chunk["seconds"])
    if paths:
        logging.info("%s: resumed after %d images", folder, len(done))
    places = images.find(ids)
    todo = [row for row in np.flatnonzero(places >= 0) if ids[row] not in done]
    if not images.any_order:
        todo.sort(key=lambda row: places[row])
    if not todo or (budget.seconds is not None and used >= budget.seconds):
        return
    batches = iter(images.batches(places[todo], batch_size))
    with tqdm(
        desc="backfill", total=len(done) + len(todo), initial=len(done), unit="image", disable=None
    ) as bar:
        start, number = 0, len(paths)
        while start < len(todo):
            began, first = time.perf_counter(), start
            vectors, ok = [], []
            for _ in range(embed.CHUNK_BATCHES):
                with datasets.naming_unreadable_images():
                    batch = next(batches, None)
                if batch is None:
                    break
                pixels = tf.cast(batch["image"], tf.float32)
                vectors.append(np.asarray(model.embed(pixels), np.float32))
                ok.append(batch["ok"].numpy())
                start += len(ok[-1])
                bar.update(len(ok[-1]))
                spent = used + time.perf_counter() - began
                if budget.seconds is not None and spent >= budget.seconds:
                    break
            used += time.perf_counter() - began
            good, names = np.concatenate(ok), ids[todo[first:start]]
            embedded = np.concatenate(vectors)[good]
            # Not staged: the same job must be able to succeed with a mended model.
            check_finite(embedded, names[good], "embedding")
            embed.write_chunk(
                folder / f"{number:012d}.npz",
                vectors=embedded,
                good=_bytes(names[good]),
                bad=_bytes(names[~good]),
                seconds=np.float64(time.perf_counter() - began),
            )
            number += 1
            if budget.seconds is not None and used >= budget.seconds:
                break


def _bytes(ids: np.ndarray) -> np.ndarray:
    """Ids as bytes, not objects: reading them back needs no pickle."""
    return np.array([name.encode() for name in ids], np.bytes_)


def _ids(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


def tried(job: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The ids embedded, and the skipped ones with the reason, in the order of the choice.

    Where a budget of time was used up, rows behind the last one that it reached count for nothing.
    """
    good: list[str] = []
    bad: set[str] = set()
    used = 0.0
    for path in sorted((job / CHUNKS).glob("*.npz")):
        with np.load(path) as chunk:
            good += _ids(chunk["good"])
            bad.update(_ids(chunk["bad"]))
            used += float(chunk["seconds"])
    chosen = files.read_json(job / CHOSEN)
    known, ids = {*good, *bad}, chosen["ids"]
    if chosen["seconds"] is not None and used >= chosen["seconds"]:
        ids = ids[: 1 + max(row for row, name in enumerate(ids) if name in known)]
    return good, [
        (name, UNREADABLE if name in bad else MISSING)
        for name in ids
        if name in bad or name not in known
    ]


def gathered(job: Path, count: int, dim: int) -> np.ndarray:
    """The vectors of all chunks, float32 [count, dim], in a file: they need not fit in memory."""
    vectors = np.lib.format.open_memmap(
        job / VECTORS, mode="w+", dtype=np.float32, shape=(count, dim)
    )
    start = 0
    for path in sorted((job / CHUNKS).glob("*.npz")):
        with np.load(path) as chunk:
            vectors[start : start + len(chunk["good"])] = chunk["vectors"]
            start += len(chunk["good"])
    return vectors
