"""Batches of stored rows for training, from memory or from the tables."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.reader import to_rows

Read = Callable[[tf.data.Dataset], tf.data.Dataset]


def ids_sha256(gallery: table.Gallery) -> str:
    """What the rows of a gallery are recognised by, their order included."""
    digest = hashlib.sha256()
    for rows in gallery.batches([], 65536):
        digest.update("\n".join([*rows.ids, ""]).encode("utf-8"))
    return digest.hexdigest()


def with_pairs(batches: np.ndarray, pairs: np.ndarray, share: float, seed: int, epoch: int):
    """Replaces the last rows of each batch by rows of a second set, drawn with repetition.

    Args:
      batches: int64 [steps, batch].
      pairs: int64 [p], p >= 1.
      share: of each batch.

    Returns:
      int64 [steps, batch].
    """
    count = round(share * batches.shape[1])
    drawn = np.random.default_rng([seed, epoch, 1]).integers(0, len(pairs), (len(batches), count))
    return np.concatenate([batches[:, : batches.shape[1] - count], pairs[drawn]], axis=1)


def reader(
    galleries: Sequence[table.Gallery],
    columns: dict[str, table.Column],
    memory_gb: float,
    failures: list[InputError],
) -> Read:
    """Maps a dataset of row numbers `[batch]` to batches of vectors, {role: float32 [batch, d]}.

    Args:
      galleries: their rows are numbered through, one gallery after the other.
      columns: role -> column, the same in all galleries.
      memory_gb: rows are held in memory up to this size and taken from the tables beyond it.
      failures: what is wrong with a row is added here too: TensorFlow gives only text back.
    """
    names = {role: column.name for role, column in columns.items()}
    read_names = list(dict.fromkeys(names.values()))  # A column may have two roles.
    counts = [gallery.num_rows for gallery in galleries]
    size_gb = sum(counts) * sum(4 * column.dim for column in columns.values()) / 1e9
    if size_gb <= memory_gb:
        parts = [gallery.read(read_names, with_ids=False).vectors for gallery in galleries]
        with tf.device("CPU:0"):
            tensors = {
                role: tf.constant(np.concatenate([part[name] for part in parts]))
                for role, name in names.items()
            }
        return lambda batches: batches.map(
            lambda rows: {role: tf.gather(tensor, rows) for role, tensor in tensors.items()}
        )
    logging.info("%.1f GB of rows: streamed from %s", size_gb, galleries[0].path)
    starts = np.concatenate([[0], np.cumsum(counts)])

    def read(rows: np.ndarray) -> list[np.ndarray]:
        vectors_by_column: dict[str, list[np.ndarray]] = {name: [] for name in read_names}
        # Lance reads rows in ascending order fastest; their order is restored below.
        order = np.argsort(rows, kind="stable")
        for number, gallery in enumerate(galleries):
            own = rows[order]
            own = own[(starts[number] <= own) & (own < starts[number + 1])] - starts[number]
            if not len(own):
                continue
            taken = gallery.dataset.take(own.tolist(), columns=["id", *read_names])
            batch = taken.combine_chunks().to_batches()[0]
            try:
                vectors = to_rows(batch, read_names, where=gallery.path).vectors
            except InputError as error:
                failures.append(error)
                raise
            for name in read_names:
                vectors_by_column[name].append(vectors[name])
        place = np.argsort(order)
        return [np.concatenate(vectors_by_column[name])[place] for name in names.values()]

    def map_batch(rows):
        arrays = tf.numpy_function(read, [rows], [tf.float32] * len(names))
        for array, column in zip(arrays, columns.values(), strict=True):
            array.set_shape([rows.shape[0], column.dim])
        return dict(zip(names, arrays, strict=True))

    return lambda batches: batches.map(map_batch, num_parallel_calls=2)


def with_labels(read: Read, labels: np.ndarray) -> Read:
    """`read`, with "label" in each batch, int32 [batch]; `labels` are those of all rows."""
    with tf.device("CPU:0"):
        label_tensor = tf.constant(labels)

    def read_both(batches: tf.data.Dataset) -> tf.data.Dataset:
        return tf.data.Dataset.zip((read(batches), batches)).map(
            lambda batch, rows: {**batch, "label": tf.gather(label_tensor, rows)}
        )

    return read_both


def epoch_batches(
    read: Read,
    section: ConfigDict,
    num_rows: int,
    pairs: np.ndarray | None,
    steps: int,
    seed: int,
) -> Callable[[int, int], tf.data.Dataset]:
    """The batches of an epoch from batch `skip` on, as `loop.run` asks for them.

    Args:
      read: see `reader`.
      section: of the transformation.
      num_rows: an epoch goes through so many rows, the first of all.
      pairs: int64 [p], rows that every batch gets its share of; None: no such rows.
      steps: batches of an epoch.
      seed: of the order of rows.
    """

    def batches_of(epoch: int, skip: int) -> tf.data.Dataset:
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
        batches = order[: steps * section.batch_size].reshape(steps, section.batch_size)
        if pairs is not None:
            batches = with_pairs(batches, pairs, section.pairs.batch_share, seed, epoch)
        return read(tf.data.Dataset.from_tensor_slices(batches[skip:])).prefetch(2)

    return batches_of
