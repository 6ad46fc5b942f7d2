"""Whether equal ids of two tables mean equal rows.

A query's own row is left out of the gallery that it searches, and is known by its id. Ids that
only count the rows of a file (`MODEL_NAME:ROW`) make rows of two files the same that have nothing
to do with each other; their labels and vectors tell.
"""

import numpy as np

from fct_tf.gallery.columns import Column, Rows

# Of the length of a vector. Half precision and another batch size stay far below.
TOLERANCE = 0.02
BLOCK_ROWS = 65536


def doubt(queries: Rows, query: Column, rows: Rows, gallery: Column, own: np.ndarray) -> str | None:
    """What speaks against rows of one id being the same, as a sentence; None if nothing does.

    The arguments are those of `count`.
    """
    return told(count(queries, query, rows, gallery, own))


def count(queries: Rows, query: Column, rows: Rows, gallery: Column, own: np.ndarray) -> np.ndarray:
    """Of queries that have a row of their id: how many, how many with another label, and how many
    with another vector in the same space: int64 [3]. Counts of parts of a gallery add up.

    Args:
      queries: rows with labels and the column `query`.
      query: column of the queries.
      rows: rows with labels and the column `gallery`.
      gallery: column that is searched.
      own: int [queries], the row with the query's id, -1 where there is none.
    """
    pairs = np.flatnonzero(own >= 0)
    labels = other_vectors = 0
    if queries.labels is not None and rows.labels is not None:
        labels = sum(
            a is not None and b is not None and a != b
            for a, b in zip(queries.labels[pairs], rows.labels[own[pairs]], strict=True)
        )
    # The query and the row of a fused search differ though they are one and lie in one space.
    if query.space == gallery.space and gallery.kind != "fused":
        for start in range(0, len(pairs), BLOCK_ROWS):
            block = pairs[start : start + BLOCK_ROWS]
            a, b = queries.vectors[query.name][block], rows.vectors[gallery.name][own[block]]
            far = np.linalg.norm(a - b, axis=1) > TOLERANCE * np.linalg.norm(a, axis=1)
            other_vectors += int(far.sum())
    return np.array([len(pairs), labels, other_vectors])


def told(counts: np.ndarray) -> str | None:
    """What `count` has found, as a sentence; None where it is nothing."""
    pairs, labels, other_vectors = (int(number) for number in counts)
    differences = [(labels, "another label"), (other_vectors, "another vector in the same space")]
    listed = " and ".join(f"{number} with {what}" for number, what in differences if number)
    if not listed:
        return None
    return (
        f"of {pairs} queries whose id the gallery has, {listed}; each is taken for the row of "
        "its id and does not find it. Import rows that are not the same with ``ids`` of their own"
    )
