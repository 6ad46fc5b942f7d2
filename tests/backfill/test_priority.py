"""Backfilling in the order of what queries are predicted to lose."""

import numpy as np
import pytest

from fct_tf.backfill import priority
from fct_tf.common.errors import InputError
from fct_tf.upgrade import sample


def rows(count=60, seed=0):
    """Rows in groups; the transformation puts whole groups in wrong places, some further."""
    rng = np.random.default_rng(seed)
    group = np.arange(count) % 6
    new = 4 * rng.normal(size=(6, 5))[group] + 0.3 * rng.normal(size=(count, 5))
    moved = rng.normal(size=(6, 5))[group] * (group % 3)[:, None]
    source = np.concatenate([new @ rng.normal(size=(5, 4)), rng.normal(size=(count, 1))], 1)
    ids = np.array([f"row {i}" for i in range(count)], object)
    made = [values.astype(np.float32) for values in (source, new + moved, new)]
    return ids, *made


def brute_force(predicted, transformed, queries, offset, depth):
    """The module's formula, pair by pair."""
    lost = np.zeros(len(predicted))
    for q in queries:
        others = [r for r in range(len(predicted)) if r != q]
        near = {r: np.sum((predicted[r] - predicted[q]) ** 2) for r in others}
        for r in others:
            rank = 1 + sum(near[other] < near[r] for other in others)
            stays = np.sum((transformed[r] - predicted[q]) ** 2)
            closer = sum(near[o] < stays for o in others if o != r)
            other_rank = 1 + min(closer, depth - (stays > near[r]))
            if rank <= depth:
                lost[r] += max(0.0, 1 / (offset + rank) - 1 / (offset + other_rank))
    return lost


@pytest.mark.parametrize(("offset", "depth"), [(0, 59), (5, 59), (5, 7), (2, 400)])
def test_priorities_are_the_reciprocal_ranks_lost(offset, depth, monkeypatch):
    monkeypatch.setattr("fct_tf.retrieval.distances.BLOCK_BYTES", 1)  # Several blocks.
    _, _, transformed, new = (v for v in rows())
    new, transformed = new + 1000, transformed + 1000  # Far from the origin.
    queries = np.arange(3, 40)
    near, lost = priority.losses(new, transformed, queries, offset=offset, depth=depth)
    found = np.bincount(near.ravel(), lost.ravel(), 60)
    exact = [v.astype(np.float64) for v in (new, transformed)]
    expected = brute_force(*exact, queries, offset, min(depth, 59))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.max() > 0.1


def test_a_row_that_moves_where_no_query_looks_comes_after_one_that_a_query_misses():
    new = np.array([[0, 0], [1, 0], [0, 2], [100, 0]], np.float32)
    transformed = new.copy()
    transformed[1] = [0, 3]  # Second to the query at 0 in truth, behind row 2 if it stays.
    transformed[3] = [200, 0]  # Moves furthest and is last of all before and after.
    near, lost = priority.losses(new, transformed, np.array([0]), offset=0)
    assert near.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(lost, [[1 - 1 / 2, 0, 0]])


def test_rows_are_chosen_one_after_the_other_by_what_is_lost_to_queries_not_yet_served():
    rng = np.random.default_rng(3)
    count, depth = 50, 15
    near = np.stack([rng.permutation(count)[:depth] for _ in range(40)]).astype(np.int32)
    lost = rng.random((40, depth)).astype(np.float32) * (rng.random((40, depth)) < 0.5)
    known = np.arange(count) < 9
    done, expected = set(range(9)), []
    while len(expected) < 30:
        best = {r: 0.0 for r in range(count) if r not in done}
        for rows_of, loss_of in zip(near.tolist(), lost.tolist(), strict=True):
            served = sum(r in done for r in rows_of[: priority.NEAREST])
            for row, loss in zip(rows_of, loss_of, strict=True):
                if row in best:
                    best[row] += loss / (1 + served)
        expected.append(max(best, key=best.get))
        done.add(expected[-1])
    assert priority.choose(near, lost, known, 30).tolist() == expected
    # Rows that no query misses are not chosen.
    assert priority.choose(near, 0 * lost, known, 30).tolist() == []


def test_rows_that_are_known_teach_which_of_the_others_are_wrong():
    ids, source, transformed, new = rows(300)
    known = np.arange(60)
    found = priority.order(ids, source, transformed, known=(known, new[known]))
    assert sorted(found) == list(range(60, 300))
    error = np.sum((transformed - new) ** 2, axis=1)
    # Groups 0 and 3, a third, are where they belong: they come last.
    assert (error[found[-80:]] == 0).mean() > 0.9
    assert (error[found[:80]] > 0).all()


def test_the_order_is_a_function_of_the_rows_and_the_seed_not_of_how_they_are_stored():
    ids, source, transformed, new = rows(120)
    known = np.arange(5, 45)
    mixed = np.random.default_rng(1).permutation(120)
    place = np.argsort(mixed)
    settings = {"side_info": source[:, :2], "max_queries": 50}
    a = priority.order(ids, source, transformed, known=(known, new[known]), **settings)
    again = priority.order(
        ids[mixed],
        source[mixed],
        transformed[mixed],
        known=(place[known][::-1], new[known][::-1]),
        **{**settings, "side_info": settings["side_info"][mixed]},
    )
    assert ids[a].tolist() == ids[mixed][again].tolist()


def test_a_budget_is_chosen_as_the_front_of_the_order():
    ids, source, transformed, new = rows(100)
    settings = {"known": (np.arange(30), new[:30])}
    whole = priority.order(ids, source, transformed, **settings)
    assert len(whole) == 70
    some = priority.order(ids, source, transformed, count=12, **settings)
    assert sorted(some) == sorted(whole) and some[:12].tolist() == whole[:12].tolist()


def test_each_round_learns_from_those_before_it():
    ids, source, transformed, new = rows(100)
    cuts = np.array([0, 20, 45, 100])
    rounds = list(priority.in_rounds(ids, source, transformed, new, cuts, seed=4))
    assert [len(done) for done in rounds] == [20, 45, 100]
    assert rounds[0].tolist() == sample.order(ids, 4)[:20].tolist()
    for done, following in zip(rounds, rounds[1:], strict=False):
        expected = priority.order(ids, source, transformed, known=(done, new[done]), seed=4)
        assert following[: len(done)].tolist() == done.tolist()
        assert following[len(done) :].tolist() == expected[: len(following) - len(done)].tolist()
    (last,) = priority.in_rounds(ids, source, transformed, new, cuts, seed=4, start=rounds[1])
    assert last.tolist() == rounds[2].tolist()


def test_new_embeddings_of_other_rows_cannot_be_read_and_the_first_rows_are_random():
    ids, source, transformed, _ = rows()
    np.testing.assert_array_equal(
        priority.order(ids, source, transformed, seed=3), sample.order(ids, 3)
    )


def test_rows_that_do_not_fit_are_refused():
    ids, source, transformed, new = rows()
    for arguments, told in (
        ({"known": (np.array([1, 1]), new[:2])}, "twice"),
        ({"known": (np.array([1, 60]), new[:2])}, "0 to 59"),
        ({"known": (np.arange(3), new[:2])}, "3 known rows"),
        ({"side_info": source[:5]}, "5 rows of side_info"),
    ):
        with pytest.raises(InputError, match=told):
            priority.order(ids, source, transformed, **arguments)
