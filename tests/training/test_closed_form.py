"""Held-out classes, which the ridge of a closed-form map is chosen on."""

import hashlib

import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.training import closed_form
from tests.builders import write_gallery


def make_table(path, ids, labels):
    """A table with a random column of 8 values."""
    vectors = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    return write_gallery(path, {"old": vectors}, labels, ids=ids)


def fraction(text):
    """Where in 0..1 the hash of a name lies, worked out again."""
    return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) / 2**64


def test_whole_classes_are_held_out_the_same_in_every_table(tmp_path):
    rng = np.random.default_rng(0)
    labels = [f"class {number}" for number in rng.integers(0, 200, 999)]
    ids = [f"row {number}" for number in range(999)]
    mask = closed_form.held_out(make_table(tmp_path / "a.lance", ids, labels), 0.25)
    np.testing.assert_array_equal(mask, [fraction(f"label {label}") < 0.25 for label in labels])
    classes = {label for label, out in zip(labels, mask, strict=True) if out}
    assert 0.15 < len(classes) / 200 < 0.35
    # Other rows of these classes, in another order; a larger share holds out more classes.
    order = rng.permutation(999)[:500]
    other = make_table(
        tmp_path / "b.lance", [f"x{i}" for i in range(500)], [labels[i] for i in order]
    )
    np.testing.assert_array_equal(closed_form.held_out(other, 0.25), mask[order])
    assert np.all(closed_form.held_out(other, 0.5) >= mask[order])


@pytest.mark.parametrize("labelled", [False, True])
def test_rows_without_label_are_held_out_by_themselves(tmp_path, labelled):
    ids = [f"train/{number}" for number in range(240)]
    labels = [None] * 239 + ["x"] if labelled else None
    mask = closed_form.held_out(make_table(tmp_path / "g.lance", ids, labels), 0.3)
    expected = [fraction(f"id {name}") < 0.3 for name in ids]
    np.testing.assert_array_equal(mask[:239], expected[:239])
    assert 0.2 < mask.mean() < 0.4


def test_few_classes(tmp_path):
    for count in (2, 3):
        names = [f"class {number}" for number in range(count)]
        ids = [f"row {number}" for number in range(4 * count)]
        gallery = make_table(tmp_path / f"{count}.lance", ids, names * 4)
        for share in (1e-9, 0.1, 0.999999):
            mask = closed_form.held_out(gallery, share)
            assert mask.any() and not mask.all()
    one = make_table(tmp_path / "1.lance", ["a", "b"], ["x", "x"])
    with pytest.raises(InputError, match="1.lance.*one class.*train on rows of more classes"):
        closed_form.held_out(one)
