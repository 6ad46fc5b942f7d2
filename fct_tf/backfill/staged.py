"""What a backfilling has embedded before its commit: chunks that its job records.

A chunk holds vectors (fused rows, where the column is of a fused search), the ids of the rows that
they are of (`good`), those of images that could not be read (`bad`), and the seconds that it took.
"""

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from fct_tf.backfill.budget import Budget
from fct_tf.backfill.plan import Model
from fct_tf.data import by_id, datasets
from fct_tf.gallery.columns import check_finite
from fct_tf.gallery.job import Job
from fct_tf.ingest import embed

MISSING = "there is no image of this id"
UNREADABLE = "the image cannot be read or decoded"
# What a job records beside its chunks: which rows, and that the commit has begun.
CHOSEN, COMMITTING = "chosen", "committing"


def embed_rows(
    job: Job,
    images: by_id.Images,
    model: Model,
    batch_size: int,
    budget: Budget,
    fuses: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> None:
    """Embeds the chosen rows that are not recorded yet, chunk after chunk, until the time is up.

    Args:
      job: with the record `CHOSEN`.
      images, model, batch_size: as `fct_tf.backfill.backfill.Backfill`.
      budget: only a budget of time ends this early; seconds of earlier processes count.
      fuses: makes rows of the column of ids and embeddings, where these are not yet rows.

    Raises:
      InputError: an embedding with NaN or infinity, or a damaged data set.
    """
    ids = np.array(job.read(CHOSEN)["ids"], object)
    done: set[str] = set()
    used, number = 0.0, 0
    for chunk in job.records("chunk"):
        done.update(embed.as_texts(chunk["good"]), embed.as_texts(chunk["bad"]))
        used += float(chunk["seconds"])
        number += 1
    if done:
        logging.info("%s: resumed after %d images", job.directory, len(done))
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
        start = 0
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
            # Not recorded: the same job must be able to succeed with a mended model.
            check_finite(embedded, names[good], "embedding")
            if fuses:
                embedded = fuses(names[good], embedded)
            chunk = {
                "vectors": embedded,
                "good": embed.as_bytes(names[good]),
                "bad": embed.as_bytes(names[~good]),
                "seconds": np.float64(time.perf_counter() - began),
            }
            job.record(f"chunk-{number:012d}", chunk)
            number += 1
            if budget.seconds is not None and used >= budget.seconds:
                break


def tried(job: Job) -> tuple[list[str], list[tuple[str, str]]]:
    """The ids embedded, and the skipped ones with the reason, in the order of the choice.

    Where a budget of time was used up, rows behind the last one that it reached count for nothing.
    """
    good: list[str] = []
    bad: set[str] = set()
    used = 0.0
    for chunk in job.records("chunk"):
        good += embed.as_texts(chunk["good"])
        bad.update(embed.as_texts(chunk["bad"]))
        used += float(chunk["seconds"])
    chosen = job.read(CHOSEN)
    tried_ids, ids = {*good, *bad}, chosen["ids"]
    if chosen["seconds"] is not None and used >= chosen["seconds"]:
        ids = ids[: 1 + max(row for row, name in enumerate(ids) if name in tried_ids)]
    return good, [
        (name, UNREADABLE if name in bad else MISSING)
        for name in ids
        if name in bad or name not in tried_ids
    ]
