"""Some of the images alone: by their ids and by their classes."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from fct_tf.common.errors import InputError
from fct_tf.data import datasets, tfds_source
from tests.data.images import COUNTS, joined, load


@pytest.fixture
def decodes(monkeypatch):
    """A list that gets one entry per image that is decoded."""
    decoded = []
    decode = tf.io.decode_image

    def counting(content, **arguments):
        def note(value):
            decoded.append(len(value))
            return value

        counted = tf.ensure_shape(tf.numpy_function(note, [content], tf.string), [])
        return decode(counted, **arguments)

    monkeypatch.setattr(tf.io, "decode_image", counting)
    return decoded


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_images_with_given_ids(photos, shards, decodes, kind, cache):
    source = f"folder:{photos}:train" if kind == "folder" else "tfds:shards:train"
    arguments = {"data_dir": shards} if kind == "tfds" else {}
    whole = load(source, **arguments)
    every = joined(datasets.eval_batches(whole, 8))
    wanted = np.array([21, 3, 4, 17, 9])  # TFDS: of several files.
    ids = [every["id"][place].decode() for place in wanted]
    decodes.clear()
    images = load(source, cache=cache, ids=ids, **arguments)
    rows = joined(datasets.eval_batches(images, 2))
    assert len(decodes) == images.num_examples == 5
    assert images.classes == whole.classes
    for key in ("image", "label", "id"):
        np.testing.assert_array_equal(rows[key], every[key][np.sort(wanted)])
    assert rows["index"].tolist() == list(range(5))
    epoch = joined(datasets.train_batches(images, 5, seed=0, epoch=0))
    np.testing.assert_array_equal(epoch["image"], rows["image"][epoch["index"]])


def test_unknown_ids_are_named(photos, shards):
    with pytest.raises(InputError, match="train: has no image 'train/cat/99.png' and 1 more"):
        load(
            f"folder:{photos}:train", ids=["train/cat/00.png", "val/cat/00.png", "train/cat/99.png"]
        )
    with pytest.raises(InputError, match="no id is listed"):
        load(f"folder:{photos}:train", ids=[])
    with pytest.raises(InputError, match="has no image 'train/cat/00.png'"):
        load(f"folder:{photos}:train", ids=["train/cat/00.png"], classes={"list": ["dog"]})
    known = "shards/train/shards-train.tfrecord-00001-of-00005__3"
    unknown = [
        f"{known[:-1]}9",  # Behind the end of its file, not in the next one.
        f"{known[:-1]}03",
        known.replace("00001-of", "00009-of"),
        known.replace("/train/", "/test/"),
        "train/cat/00.png",
    ]
    with pytest.raises(InputError, match=f"has no image '{unknown[0]}'; name the images"):
        load("tfds:shards:train", data_dir=shards, ids=[known, unknown[0]])
    whole, tail, head = (
        tfds_source.dataset("shards", f"train{part}", shards) for part in ("", "[50%:]", "[:50%]")
    )
    (place,) = whole.find([known])
    assert whole.find([*unknown, known]).tolist() == [-1] * 5 + [place]
    assert tail.find([known]) == -1 and head.find([known]) == place
    found = [row["id"] for row in whole.encoded(whole.find([known])).as_numpy_iterator()]
    assert found == [known.encode()]


def test_ids_of_a_mocked_set():
    with tfds.testing.mock_data(num_examples=11):
        ids = [f"cifar100/train/cifar100-train.tfrecord-00000-of-00001__{k}" for k in (10, 2)]
        images = load("tfds:cifar100:train", image_size=8, ids=ids)
    assert [row["id"].numpy().decode() for row in images.dataset] == ids[::-1]


@pytest.mark.parametrize(
    "classes, kept",
    [
        ({"fraction": 0.5}, ("cat",)),
        ({"fraction": 1.0}, ("cat", "dog", "emu")),
        ({"fraction": 2 / 3}, ("cat", "dog")),
        ({"first": 2}, ("cat", "dog")),
        ({"list": ("emu", "cat")}, ("cat", "emu")),
        ({"list": (2, "1")}, ("dog", "emu")),
        (ConfigDict({"list": ("dog",)}), ("dog",)),
        (None, ("cat", "dog", "emu")),
    ],
)
def test_class_subsets(photos, classes, kept):
    images = load(f"folder:{photos}:train", classes=classes)
    assert images.classes == kept
    assert images.label_names == ("cat", "dog", "emu")
    assert images.num_examples == sum(COUNTS[name] for name in kept)
    rows = joined(datasets.eval_batches(images, 3))
    named = [images.classes[label] for label in rows["label"]]
    assert named == [identity.decode().split("/")[1] for identity in rows["id"]]
    assert rows["index"].tolist() == list(range(images.num_examples))


def test_class_file(photos, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("# old classes\nemu\ta large bird\n\n1\n")
    images = load(f"folder:{photos}:train", classes={"file": str(file)})
    assert images.classes == ("dog", "emu")
    file.write_bytes(b"\xef\xbb\xbfemu\r\ndog\r\n")
    assert load(f"folder:{photos}:train", classes={"file": str(file)}).classes == ("dog", "emu")
    file.write_bytes(b"emu\nd\xf6g\n")
    with pytest.raises(InputError, match=f"classes.file: {file}: .*line 2 is not UTF-8"):
        load(f"folder:{photos}:train", classes={"file": str(file)})
    file.write_text("emu\ncow\n7\n")
    with pytest.raises(InputError, match=f"{file}.*2 of these classes: cow, 7"):
        load(f"folder:{photos}:train", classes={"file": str(file)})
    with pytest.raises(InputError, match="nowhere.txt"):
        load(f"folder:{photos}:train", classes={"file": str(tmp_path / "nowhere.txt")})


@pytest.mark.parametrize(
    "classes, message",
    [
        ({"list": ("owl",)}, "owl"),
        ({"list": ("dog", 1)}, "dog is listed more than once"),
        ({"list": ()}, "no class is listed"),
        ({"first": 4}, "has 3 classes, got 4"),
        ({"first": 0}, "has 3 classes"),
        ({"fraction": 0.1}, "leaves no class"),
        ({"fraction": 1.5}, "at most 1"),
        ({"frist": 2}, "frist"),
        ({"first": 1, "fraction": 0.5}, "give one of"),
        ({}, "give one of"),
    ],
)
def test_bad_class_subsets_are_named(photos, classes, message):
    with pytest.raises(InputError, match=message):
        load(f"folder:{photos}:train", classes=classes)
