"""Open-set search (1:N): TPIR at FPIR, where not every query has its identity in the gallery.

A label is an identity. Rows of some identities are enrolled: they are the gallery that is
searched. Queries of these identities are *mated*, those of all others *non-mated*; rows without
label are left out.

* Threshold at false alarm rate f: of M non-mated queries, `floor(f M)` may raise an alarm; it is
  the (`floor(f M)` + 1)-th smallest distance between such a query and its nearest enrolled row.
  A query raises an alarm where its nearest row is *strictly* below the threshold.
* TPIR@FPIR is the share of mated queries whose nearest row is a mate, strictly nearer than every
  row of another identity, and strictly below the threshold. Ties so count against the model, and
  one that maps everything to one point finds nobody.

`enrolled_rows` divides a table into gallery and queries. As in BCT (arXiv 2003.11942) on IJB-C,
whose galleries also hold about half of the identities, but over single images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.retrieval import distances, exact, verification
from fct_tf.retrieval.verification import Labels, Side


@dataclass(frozen=True)
class OpenSet:
    """What each of s searching queries finds first.

    position: int64 [s], their rows among all queries. mated: bool [s], whether their identity is
    enrolled. first: bool [s], whether a mate is nearer than every other row. nearest: float64
    [s], distance (squared L2, or 1 - cosine) of the nearest row. num_enrolled: rows searched.
    """

    position: np.ndarray
    mated: np.ndarray
    first: np.ndarray
    nearest: np.ndarray
    num_enrolled: int

    def threshold(self, fpir: float) -> float:
        """The distance that a mate must be below, strictly."""
        alarms = np.sort(self.nearest[~self.mated])
        return float(alarms[verification.allowed(fpir, len(alarms))])

    def found(self, fpir: float) -> np.ndarray:
        """bool [mated queries], whether each one's mate is found; their mean is TPIR@FPIR."""
        return (self.first & (self.nearest < self.threshold(fpir)))[self.mated]


def enrolled_rows(
    ids: Sequence[str] | np.ndarray,
    labels: Labels,
    query_ids: Sequence[str] | np.ndarray,
    absent_share: float = 0.5,
    enrolled_share: float = 0.5,
    seed: int = 0,
) -> np.ndarray:
    """Which rows of a table are enrolled, drawn with a seed.

    1. Of the labels, the share `absent_share` is drawn; none of their rows is enrolled. Their
       queries are non-mated, as are those of labels that the table does not have at all.
    2. Of the other labels every row is enrolled that is no query. Of the rows that are queries
       too (same id), the share `enrolled_share` of each label is drawn and enrolled: at least one
       row of a label, and all but one at most where it has several.

    Queries whose id is enrolled do not search, see `search`. With one table as both sides each
    labelled row so either is enrolled or searches. The draw depends on ids and labels, not on the
    order of rows nor on vectors: all columns of a table are searched by the same queries.

    Args:
      ids, labels: of the table's rows, n each.
      query_ids: ids of all queries.
      absent_share: of the labels, those that are not enrolled, in [0, 1).
      enrolled_share: of a label's rows that are queries too, those enrolled, in (0, 1).
      seed: of the draws.

    Returns:
      bool [n].

    Raises:
      InputError: a share out of bounds.
    """
    if not 0 <= absent_share < 1:
        raise InputError(f"absent_share {absent_share}: a share from 0 to below 1, e.g. 0.5")
    if not 0 < enrolled_share < 1:
        raise InputError(f"enrolled_share {enrolled_share}: a share between 0 and 1, e.g. 0.5")
    generator = np.random.default_rng(seed)
    ids, labels = np.asarray(ids, object), np.asarray(labels, object)
    names = sorted({label for label in labels if label is not None})
    # At least one of each kind, where there are two labels and some are to be absent.
    count = max(round(absent_share * len(names)), int(absent_share > 0))
    count = min(count, max(len(names) - 1, 0))
    gone = {names[at] for at in generator.permutation(len(names))[:count]}
    enrolled = np.array([label is not None and label not in gone for label in labels], bool)
    both = enrolled & (exact.row_numbers(ids, query_ids) >= 0)
    members: dict[str, list[int]] = {}
    for row in np.flatnonzero(both).tolist():
        members.setdefault(labels[row], []).append(row)
    with_others = set(labels[enrolled & ~both])
    for label in sorted(members):
        rows = sorted(members[label], key=ids.__getitem__)
        least = 0 if label in with_others else 1
        kept = min(max(round(enrolled_share * len(rows)), least), max(len(rows) - 1, least))
        enrolled[[rows[at] for at in generator.permutation(len(rows))[kept:]]] = False
    return enrolled


def search(
    query: Side,
    gallery: Side,
    enrolled: np.ndarray,
    distance: str = "l2",
    block: int | None = None,
    progress: str = "",
) -> OpenSet:
    """Searches the enrolled rows by every labelled query whose id is not enrolled.

    Args:
      query, gallery: (vectors float [n, d], n ids, n labels or None).
      enrolled: bool [gallery rows], see `enrolled_rows`.
      distance: `l2` or `cosine`.
      block: queries per block; by default as many as fit `distances.BLOCK_BYTES`.
      progress: label of the progress bar; none when empty.

    Raises:
      InputError: no mated or no non-mated query, unknown distance or different dimensions.
    """
    rows = np.flatnonzero(enrolled)
    stored = _rows(gallery, rows)
    free = np.flatnonzero(exact.row_numbers(query[1], stored[1]) < 0)
    pairs = verification.label_pairs(_rows(query, free), stored, distance)
    mated = pairs.last > pairs.first
    if mated.all() or not mated.any():
        kind = "non-mated" if mated.any() else "mated"
        raise InputError(
            f"no {kind} query; open-set search needs queries with and without rows of their label "
            "in the gallery: label more rows, or choose another absent_share"
        )
    mate, other = np.full(len(mated), np.inf), np.empty(len(mated))

    def nearest(part: slice) -> None:
        others = pairs.block(part)
        mates = replace(others, entries=np.full_like(others.entries, np.inf))
        for row, at in enumerate(range(part.start, part.stop)):
            own = slice(pairs.first[at], pairs.last[at])
            mates.entries[row, own] = others.entries[row, own]
            others.entries[row, own] = np.inf
        for closest, side in ((mate, mates), (other, others)):
            closest[part] = side.nearest(1)[1][:, 0]

    distances.run(nearest, distances.blocks(len(mated), pairs.num_gallery, block), progress)
    best = np.minimum(mate, other)
    return OpenSet(free[pairs.position], mated, mate < other, best, pairs.num_gallery)


def _rows(side: Side, rows: np.ndarray) -> Side:
    vectors, ids, labels = side
    return vectors[rows], np.asarray(ids, object)[rows], np.asarray(labels, object)[rows]


def intervals(
    found: OpenSet, labels: Labels, fpirs: Sequence[float], resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap intervals of TPIR@FPIR over identities.

    Mated and non-mated identities are drawn apart, as many as there are of each, and every
    resample finds its own threshold: it rests on few queries.

    Args:
      found: of `search`.
      labels: [queries], of all queries.
      fpirs: F false alarm rates.
      resamples: of the bootstrap, at least 1.
      seed: of the resamples.

    Returns:
      (low, high), float64 [F] each.
    """
    mated = np.flatnonzero(found.mated)
    alone = np.flatnonzero(~found.mated)
    alone = alone[np.argsort(found.nearest[alone])]
    distance = np.where(found.first, found.nearest, np.inf)[mated]
    draws = [
        verification.drawn_identities(labels, found.position[group], resamples, [seed, number])
        for number, group in enumerate((mated, alone))
    ]
    values = np.empty((resamples, len(fpirs)))
    for row, (weight, of_alone) in enumerate(zip(*draws, strict=True)):
        upto = np.cumsum(of_alone)
        for column, fpir in enumerate(fpirs):
            at = np.searchsorted(upto, verification.allowed(fpir, upto[-1]), side="right")
            hits = distance < found.nearest[alone[at]]
            values[row, column] = weight[hits].sum() / weight.sum()
    return verification.percentiles(values)
