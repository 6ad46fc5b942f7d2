"""Which rows come first, against independent sorting, and what a budget allows."""

import hashlib

import numpy as np
import pytest

from fct_tf.backfill import budget, policies
from fct_tf.common.errors import InputError

IDS = np.array([f"photo-é{i}" for i in range(60)], object)


def hash_of(name, seed):
    return hashlib.blake2b(name.encode(), digest_size=8, key=str(seed).encode()).hexdigest()


@pytest.mark.parametrize("policy, field", [("uncertainty", "log_variance"), ("distance",) * 2])
def test_largest_first_and_ties_by_the_hash_of_the_id(policy, field):
    values = np.random.default_rng(0).integers(-5, 5, 60).astype(np.float32)  # Many ties.
    for seed in (0, 3):
        expected = sorted(range(60), key=lambda i: (-values[i], hash_of(IDS[i], seed)))
        rows = policies.Candidates(IDS, **{field: values})
        assert policies.POLICIES[policy](rows, seed).tolist() == expected
        # A function of the rows, not of how they are stored.
        mixed = np.random.default_rng(seed).permutation(60)
        rows = policies.Candidates(IDS[mixed], **{field: values[mixed]})
        found = IDS[mixed][policies.POLICIES[policy](rows, seed)]
        assert found.tolist() == IDS[expected].tolist()


def test_random_is_the_order_of_the_hashes():
    order = policies.random(policies.Candidates(IDS), 4)
    assert IDS[order].tolist() == sorted(IDS, key=lambda name: hash_of(name, 4))
    assert order.tolist() != policies.random(policies.Candidates(IDS), 5).tolist()


def test_a_policy_without_what_it_orders_by_is_refused():
    rows = policies.Candidates(IDS)
    with pytest.raises(InputError, match="no log-variance.*another policy"):
        policies.uncertainty(rows, 0)
    with pytest.raises(InputError, match="`target_column`"):
        policies.distance(rows, 0)


def test_order_of_a_file(tmp_path):
    path = tmp_path / "order.txt"
    left = policies.Candidates(IDS[[0, 2, 3, 5, 7]])
    # Windows line ends, an empty line, a repeated one, and a row that is backfilled already.
    path.write_bytes("\r\n".join([IDS[7], IDS[0], "", IDS[1], IDS[7], IDS[5], ""]).encode())
    assert policies.order(f"file:{path}", left, 0, IDS).tolist() == [4, 0, 3]


@pytest.mark.parametrize(
    "content, message",
    [
        ("photo-é1\n\nother\nmore\n", "order.txt: line 3: the gallery has no row 'other'"),
        ("\n", "names no row"),
        (b"\xff", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "order.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        policies.order(f"file:{path}", policies.Candidates(IDS), 0)


@pytest.mark.parametrize(
    "text, rows, seconds",
    [
        ("1000", 1000, None),
        ("5%", 20, None),
        ("0.1%", 1, None),  # 0.4 rows: at least one
        ("100%", 400, None),
        ("30min", None, 1800.0),
        (" .5 min", None, 30.0),
    ],
)
def test_budgets(text, rows, seconds):
    found = budget.parse(text, 400)
    assert (found.rows, found.seconds) == (rows, seconds)


@pytest.mark.parametrize("text", ["", "0", "0%", "0min", "-5", "101%", "5.5", "1h", "min", "1e3"])
def test_bad_budgets(text):
    with pytest.raises(InputError, match=f"`budget={text}`: give a number of rows"):
        budget.parse(text, 400)
