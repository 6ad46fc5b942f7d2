"""Which rows to backfill next, learnt from those that are backfilled already.

A transformation's own log-variance says little of rows unlike those it was trained on. Rows that
the new model has embedded since say more: there its error is known. Three estimates give an order:

1. *Where would the new model put a row?* Kernel ridge regression carries the known errors over to
   the other rows (`fct_tf.models.kernel`): predicted = transformed + correction; a row that is
   backfilled is where it is.
2. *What does that row cost while it is not backfilled?* Distance alone is a poor answer: a row
   that moved far in an empty region harms no ranking. Predicted rows stand for the queries to
   come, as queries come from the same images. For a query q, a row r has rank `n` among the
   predicted rows, and `t` if it stays where the transformation put it. Then q loses

       loss(q, r) = max(0, 1 / (k + n) - 1 / (k + t))

   of reciprocal rank, as average precision would: a row that should come second and comes
   twentieth weighs much, one that falls from rank 200 to 400 almost nothing. Rows that come too
   near (t < n) do not count: backfilling them helped less when this was measured.
3. *Who is served already?* A query that finds one right row has its top-1; what the next one adds
   is less. So rows are chosen one after the other, each the one with the largest

       priority(r) = sum over queries q of loss(q, r) / (1 + s(q)),

   s(q) being how many of the `NEAREST` predicted rows of q are backfilled or chosen already.
   Without it whole regions are filled in before others get their first row, and top-1 is lower
   than in a random order.

No label is read, and no new embedding of a row that is not backfilled.
"""

from collections.abc import Iterator

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.models import kernel
from fct_tf.retrieval import distances
from fct_tf.upgrade import sample

OFFSET = 3  # k above
NEAREST = 10
DEPTH = 100  # Ranks beyond this one are not looked at.
MAX_QUERIES = 4096
MAX_CENTRES = 2048
Known = tuple[np.ndarray, np.ndarray]


def order(
    ids: np.ndarray,
    source: np.ndarray,
    transformed: np.ndarray,
    *,
    side_info: np.ndarray | None = None,
    known: Known | None = None,
    count: int | None = None,
    offset: float = OFFSET,
    max_queries: int = MAX_QUERIES,
    max_centres: int = MAX_CENTRES,
    seed: int = 0,
) -> np.ndarray:
    """Rows that are not known, those to backfill first at the front: int64 [n - m].

    A function of the seed and the rows, never of how they are stored. Work grows with n:
    n * max_centres * (d_source + 2 d_target) + n * max_queries * d_target multiplications.

    Args:
      ids: object [n] of str.
      source: float [n, d_source], the old embeddings.
      transformed: float [n, d_target], what the transformation makes of them, for known rows too.
      side_info: float [n, d_side], where there is some.
      known: (int [m] rows, float [m, d_target] their new embeddings). With none, or fewer than
        `kernel.FOLDS`, the order is random: the first rows to backfill are a sample to learn from.
      count: so many rows are chosen by the formula, None: all; the others come by the length of
        their correction. Choosing is work too: a budget's rows are enough.
      offset: k of the formula, at least 0.
      max_queries: so many predicted rows, drawn at random, stand for the queries.
      max_centres: see `kernel.fit`.

    Raises:
      InputError: arrays of different lengths, or known rows that are not among them
        or repeated.
    """
    rows, new = known if known is not None else (np.empty(0, np.int64), transformed[:0])
    _check(len(ids), source, transformed, side_info, rows, new)
    # Everything below sees the rows in this order.
    drawn = sample.order(ids, seed)
    place = np.empty(len(drawn), np.int64)
    place[drawn] = np.arange(len(drawn))
    is_known = np.zeros(len(drawn), bool)
    is_known[place[rows]] = True
    count = len(ids) - len(rows) if count is None else min(count, len(ids) - len(rows))
    if len(rows) < kernel.FOLDS:
        return drawn[~is_known]
    by_place = np.argsort(place[rows])
    blocks = {"source_embedding": source[drawn], "embedding": transformed[drawn]}
    if side_info is not None:
        blocks["side_info"] = side_info[drawn]
    new_vectors = np.asarray(new, np.float32)[by_place]
    predicted = predict(blocks, is_known, new_vectors, max_centres=max_centres, seed=seed)
    stays = blocks["embedding"]
    # Others in every round: each favours the rows near it.
    generator = np.random.default_rng([seed, len(rows)])
    queries = generator.permutation(len(drawn))[:max_queries]
    chosen = choose(*losses(predicted, stays, queries, offset=offset), is_known, count)
    moved = np.einsum("ij,ij->i", predicted - stays, predicted - stays)
    left = ~is_known
    left[chosen] = False
    # Of rows that no query misses, those that moved most come first.
    others = np.flatnonzero(left)
    others = others[np.argsort(-moved[others], kind="stable")]
    return drawn[np.concatenate([chosen, others])]


def in_rounds(
    ids: np.ndarray,
    source: np.ndarray,
    transformed: np.ndarray,
    new: np.ndarray,
    cuts: np.ndarray,
    *,
    side_info: np.ndarray | None = None,
    seed: int = 0,
    start: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The order of one backfilling after the other, each learning from those before it.

    Args:
      ids, source, transformed, side_info, seed: as `order`.
      new: float [n, d_target], the new embeddings; of each row only read when it is backfilled.
      cuts: int [rounds], ascending, how many rows are backfilled after each round; the last is n.
      start: the rows of rounds that are done already, None: none.

    Yields:
      int64 [cut] after each round that is not done, all rows so far.
    """
    done = np.empty(0, np.int64) if start is None else start
    for cut in cuts.tolist():
        if cut <= len(done):
            continue
        following = order(
            ids,
            source,
            transformed,
            side_info=side_info,
            known=(done, new[done]),
            count=cut - len(done),
            seed=seed,
        )
        done = np.concatenate([done, following[: cut - len(done)]])
        yield done


def predict(
    blocks: dict[str, np.ndarray],
    is_known: np.ndarray,
    new: np.ndarray,
    *,
    max_centres: int = MAX_CENTRES,
    seed: int = 0,
) -> np.ndarray:
    """Where the new model has put or would put the rows: float32 [n, d_target].

    Args:
      blocks: role -> float [n, d], what the correction reads; `embedding` is the transformed one.
      is_known: bool [n].
      new: float32 [m, d_target], of the known rows in their order.
    """
    of_known = {role: values[is_known] for role, values in blocks.items()}
    residual = new - of_known["embedding"]
    correction = kernel.fit(of_known, residual, max_centres=max_centres, seed=seed)
    predicted = np.array(blocks["embedding"], np.float32)
    for part in _parts(len(predicted), kernel.BLOCK_ROWS):
        predicted[part] += correction({role: values[part] for role, values in blocks.items()})
    predicted[is_known] = new
    return predicted


def losses(
    predicted: np.ndarray,
    transformed: np.ndarray,
    queries: np.ndarray,
    *,
    offset: float = OFFSET,
    depth: int = DEPTH,
) -> tuple[np.ndarray, np.ndarray]:
    """What each query loses by each of its nearest predicted rows: the module's loss(q, r).

    Args:
      predicted, transformed: float32 [n, d_target].
      queries: int [q], the predicted rows that are queries; none finds itself.
      offset: k of the formula.
      depth: rows of lower predicted rank than this do not count, and no rank is lower.

    Returns:
      rows int32 [q, depth], the nearest first (fewer where n is no larger), and what the query
      loses by each of them, float32 of the same shape.
    """
    depth = min(depth, len(predicted) - 1)
    steps = transformed - predicted
    sides = distances.Distances(predicted[queries], predicted)
    before = 1.0 / (offset + np.arange(1, depth + 1))
    nearest = np.empty((len(queries), depth), np.int32)
    lost = np.empty((len(queries), depth), np.float32)
    for part in distances.blocks(len(queries), len(predicted)):
        entries = sides.block(part, queries[part]).entries
        candidates = np.argpartition(entries, depth - 1, axis=1)[:, :depth]
        asked = predicted[queries[part]]
        for at, (row, near, query) in enumerate(zip(entries, candidates, asked, strict=True)):
            near = near[np.argsort(row[near], kind="stable")]
            # |t - q|^2 - |p - q|^2 as a product with t - p: exactly 0, whatever is rounded, where
            # a row stays in its place.
            sums = (predicted[near] - query) + (transformed[near] - query)
            moved = np.einsum("ij,ij->i", steps[near], sums) / sides.scale
            closer = np.searchsorted(row[near], row[near] + moved) - (moved > 0)  # Less itself.
            nearest[part.start + at] = near
            lost[part.start + at] = np.maximum(before - 1.0 / (offset + 1 + closer), 0.0)
    return nearest, lost


def choose(near: np.ndarray, lost: np.ndarray, is_known: np.ndarray, count: int) -> np.ndarray:
    """Rows one after the other, each the one with the largest priority by then: int64 [<= count].

    Args:
      near, lost: from `losses`.
      is_known: bool [n], rows that are backfilled.
      count: of rows; fewer are chosen where no query loses by any other.
    """
    served = is_known[near[:, :NEAREST]].sum(axis=1)
    weight = 1.0 / (1.0 + served)
    priority = np.bincount(near.ravel(), (lost * weight[:, None]).ravel(), len(is_known))
    priority[is_known] = -np.inf
    # Which queries each row serves.
    nearest = near[:, :NEAREST].ravel()
    by_row = np.argsort(nearest, kind="stable")
    starts = np.searchsorted(nearest[by_row], np.arange(len(is_known) + 1))
    chosen: list[int] = []
    while len(chosen) < count:
        row = int(np.argmax(priority))
        if not priority[row] > 0:
            break
        chosen.append(row)
        priority[row] = -np.inf
        of_row = by_row[starts[row] : starts[row + 1]] // min(NEAREST, near.shape[1])
        served[of_row] += 1
        less = 1.0 / (1.0 + served[of_row]) - weight[of_row]
        weight[of_row] += less
        np.add.at(priority, near[of_row].ravel(), (lost[of_row] * less[:, None]).ravel())
    return np.array(chosen, np.int64)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _check(count: int, source, transformed, side_info, rows, new) -> None:
    arrays = {"source": source, "transformed": transformed, "side_info": side_info}
    for name, values in arrays.items():
        if values is not None and len(values) != count:
            raise InputError(f"{count} ids, but {len(values)} rows of {name}")
    if np.shape(new) != (len(rows), transformed.shape[1]):
        raise InputError(
            f"{len(rows)} known rows, but new embeddings of shape {np.shape(new)}; expected "
            f"{(len(rows), transformed.shape[1])}"
        )
    if len(rows) and not (0 <= np.min(rows) and np.max(rows) < count):
        raise InputError(f"known rows must be numbers from 0 to {count - 1}")
    if len(np.unique(rows)) != len(rows):
        raise InputError("a known row is named twice")
