"""The offline data set: distinct classes, repeatable drawings, splits that share no class."""

import unicodedata

import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.data import datasets, glyphs


def test_classes_are_many_and_distinct_characters():
    assert len(glyphs.CHARACTERS) == len(set(glyphs.CHARACTERS)) == 450
    names = [unicodedata.name(character) for character in glyphs.CHARACTERS]
    assert len(set(names)) == 450
    for character in glyphs.CHARACTERS:
        assert unicodedata.decomposition(character) == ""
        fonts = [font for font in glyphs.FONTS if glyphs.has(font, character)]
        assert len(fonts) >= 12, character
    # Scripts are mixed: the first half of the training classes has its share of each.
    latin = ["LATIN" in name for name in names]
    assert 0.15 < np.mean(latin[:150]) < 0.45 and 0.15 < np.mean(latin[300:]) < 0.45


def test_no_two_classes_look_the_same_in_any_font():
    """Independent of `glyphs.similarity`: overlap (intersection over union) of hard bitmaps."""
    for font in glyphs.FONTS[::3]:
        characters = [c for c in glyphs.CHARACTERS if glyphs.has(font, c)]
        bitmaps = np.stack([glyphs.normalized(c, font, 32, 28).ravel() > 127 for c in characters])
        ink = bitmaps.astype(np.float32)
        both = ink @ ink.T
        union = ink.sum(1)[:, None] + ink.sum(1)[None] - both
        overlap = both / union - np.eye(len(characters))
        first, second = np.unravel_index(overlap.argmax(), overlap.shape)
        assert overlap.max() < 0.9, (font, characters[first], characters[second])


@pytest.mark.slow
def test_similarity_of_all_classes_in_all_fonts():
    similarity = glyphs.similarity("".join(glyphs.CHARACTERS))
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
    assert (similarity - np.eye(450)).max() < 0.95


def test_similarity_finds_letters_of_one_shape():
    alike = glyphs.similarity("A\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}BcC")
    assert alike[0, 1] > 0.99 and alike[0, 2] > 0.99 and alike[4, 5] > 0.95
    assert alike[0, 3] < 0.95 and alike[3, 4] < 0.95
    kept = set(glyphs.CHARACTERS)
    for group in ("A\u0391\u0410", "cC\u0441\u0421", "oO0\u03bf\u043e"):
        assert len(kept & set(group)) <= 1


def test_drawings_are_repeatable_and_differ():
    first = glyphs.draw("R", "DejaVuSans", 0)
    assert first.dtype == np.uint8 and first.shape == (64, 64)
    np.testing.assert_array_equal(first, glyphs.draw("R", "DejaVuSans", 0))
    drawings = [glyphs.draw("R", "DejaVuSans", number).astype(int) for number in range(20)]
    for i, ours in enumerate(drawings):
        assert np.mean(ours[[0, -1]] < 128) < 0.05 and ours.min() < 30  # On a white ground.
        assert 0.02 < (ours < 128).mean() < 0.6
        assert all(np.abs(ours - theirs).mean() > 3 for theirs in drawings[:i])


def test_nothing_is_cut_off_or_empty():
    for number, character in enumerate(glyphs.CHARACTERS):
        font = [font for font in glyphs.FONTS if glyphs.has(font, character)][number % 12]
        image = glyphs.draw(character, font, number % 20)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border < 128).mean() < 0.05, (character, font)
        assert (image < 128).sum() > 30, (character, font)


@pytest.fixture
def few(monkeypatch):
    """The data set with 7 training and 5 test classes of 3 drawings each."""
    monkeypatch.setattr(glyphs, "CHARACTERS", glyphs.CHARACTERS[:12])
    monkeypatch.setattr(glyphs, "NUM_TRAIN_CLASSES", 7)
    monkeypatch.setattr(glyphs, "DRAWINGS_PER_CLASS", 3)


def test_load_draws_what_is_missing(few, tmp_path):
    train = datasets.load("glyphs:train", image_size=32, data_dir=str(tmp_path))
    test = datasets.load("glyphs", split="test", image_size=64, data_dir=str(tmp_path))
    assert (train.num_examples, len(train.classes)) == (21, 7)
    assert (test.num_examples, len(test.classes)) == (15, 5)
    assert not set(train.classes) & set(test.classes)
    assert train.label_names == test.label_names == (*train.classes, *test.classes)
    drawn = {}
    for label, character in enumerate(glyphs.CHARACTERS[7:]):
        for number in range(3):
            drawn[glyphs.draw(character, glyphs.FONTS[number], number).tobytes()] = label
    for example in test.dataset.as_numpy_iterator():
        image = example["image"]
        assert (image == image[..., :1]).all()
        assert drawn.pop(np.ascontiguousarray(image[..., 0]).tobytes()) == example["label"]
        assert example["id"].startswith(b"glyphs/test/glyphs-test.tfrecord-00000-of-00001__")
    assert not drawn
    again = datasets.load("glyphs:train", image_size=32, data_dir=str(tmp_path))
    assert again.fingerprint == train.fingerprint


def test_the_same_data_are_drawn_anywhere(few, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    first = datasets.load("glyphs:train", image_size=16, data_dir=str(one))
    monkeypatch.setenv("TFDS_DATA_DIR", str(two))
    second = datasets.load("glyphs:train", image_size=16)
    assert first.fingerprint == second.fingerprint and (two / "glyphs").is_dir()
    for ours, theirs in zip(first.dataset, second.dataset, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        assert ours["id"] == theirs["id"]


def test_bad_requests_are_explained(few, tmp_path):
    with pytest.raises(InputError, match="no split 'val'.*train, test"):
        datasets.load("glyphs:val", image_size=32, data_dir=str(tmp_path))
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(InputError, match=f"glyphs.*{blocked}"):
        datasets.load("glyphs:train", image_size=32, data_dir=str(blocked))


@pytest.mark.slow
def test_the_whole_data_set(tmp_path):
    train = datasets.load("glyphs:train", image_size=32, data_dir=str(tmp_path))
    test = datasets.load("glyphs:test", image_size=32, data_dir=str(tmp_path))
    assert (train.num_examples, len(train.classes)) == (6000, 300)
    assert (test.num_examples, len(test.classes)) == (3000, 150)
    images = [e["image"].tobytes() for s in (train, test) for e in s.dataset.as_numpy_iterator()]
    assert len(set(images)) == 9000
