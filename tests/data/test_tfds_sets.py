"""TFDS sets, mocked and made for the purpose, and Omniglot where it is there."""

import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fct_tf.common.errors import InputError
from fct_tf.data import datasets, tfds_source
from tests.data.images import joined, load


@pytest.mark.parametrize(
    "name, num_labels",
    [
        ("cifar100", 100),
        ("imagenet2012", 1000),
        ("places365_small", 365),
        ("stanford_online_products", 22634),
    ],
)
def test_mocked_tfds_sets(name, num_labels):
    with tfds.testing.mock_data(num_examples=11):
        loaded = {
            cache: load(f"tfds:{name}:train", cache=cache, image_size=8)
            for cache in ("memory", "none")
        }
        rows = {cache: joined(datasets.eval_batches(images, 4)) for cache, images in loaded.items()}
        batches = list(
            datasets.train_batches(loaded["none"], 5, seed=0, epoch=0, augment="crop_flip")
        )
    images = loaded["memory"]
    assert images.num_examples == 11 and len(images.label_names) == num_labels
    assert len(batches) == 2 and batches[0]["image"].shape == (5, 8, 8, 3)
    ids = [identity.decode() for identity in rows["memory"]["id"]]
    assert ids[10] == f"{name}/train/{name}-train.tfrecord-00000-of-00001__10"
    assert rows["memory"]["label"].max() < len(images.classes)
    for key in ("label", "id", "index"):
        np.testing.assert_array_equal(rows["memory"][key], rows["none"][key])


def test_mocked_tfds_set_with_text_labels():
    with tfds.testing.mock_data(num_examples=5):
        images = load("tfds:lfw:train")
        rows = joined(datasets.eval_batches(images, 5))
    assert len(images.classes) == len(set(images.classes)) == 5
    assert sorted(rows["label"]) == list(range(5))


@pytest.mark.parametrize("classes", [None, {"list": (3, 5)}])
def test_streaming_many_files_numbers_the_images_as_reading_them_in_order(shards, classes):
    arguments = {"data_dir": shards, "classes": classes}
    memory = load("tfds:shards:train", **arguments)
    stream = load("tfds:shards:train", cache="none", **arguments)
    ours, theirs = (joined(datasets.eval_batches(images, 5)) for images in (memory, stream))
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert memory.classes == (("3", "4", "5", "6") if classes is None else ("3", "5"))
    gray = ours["image"][:, 0, 0, 0].astype(int)
    expected = np.where(gray % 10 == 9, -1, 3 + gray % 4)
    named = [int(memory.classes[label]) if label >= 0 else -1 for label in ours["label"]]
    np.testing.assert_array_equal(named, expected)
    assert set(gray) == {
        k for k in range(37) if classes is None or (k % 10 != 9 and k % 4 in (0, 2))
    }
    # Shuffled, an index still stands for the same image.
    epochs = [joined(datasets.train_batches(stream, 3, seed=1, epoch=epoch)) for epoch in (0, 0, 1)]
    for rows in epochs:
        np.testing.assert_array_equal(rows["image"], ours["image"][rows["index"]])
        np.testing.assert_array_equal(rows["label"], ours["label"][rows["index"]])
        np.testing.assert_array_equal(rows["id"], ours["id"][rows["index"]])
    assert epochs[0]["index"].tolist() == epochs[1]["index"].tolist()
    assert epochs[0]["index"].tolist() != epochs[2]["index"].tolist()
    rest = joined(datasets.train_batches(stream, 3, seed=1, epoch=0, skip_batches=2))
    assert rest["index"].tolist() == epochs[0]["index"].tolist()[6:]


def test_part_of_a_split(shards):
    whole = joined(datasets.eval_batches(load("tfds:shards:train", data_dir=shards), 37))
    for cache in ("memory", "none"):
        images = load("tfds:shards:train[20%:60%]", data_dir=shards, cache=cache)
        rows = joined(datasets.eval_batches(images, 4))
        first = whole["id"].tolist().index(rows["id"][0])
        np.testing.assert_array_equal(rows["id"], whole["id"][first : first + 15])
        assert rows["index"].tolist() == list(range(15))


def test_labels_of_large_sets_are_kept(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tfds_source, "KEEP_LABELS_FROM", 30)
    first = load("tfds:shards:train", data_dir=shards, cache="none")
    (kept,) = (tmp_path / "fct_tf" / "labels").iterdir()
    again = load("tfds:shards:train", data_dir=shards, cache="none")
    assert first.fingerprint == again.fingerprint
    ours, theirs = (joined(datasets.eval_batches(images, 5)) for images in (first, again))
    np.testing.assert_array_equal(ours["label"], theirs["label"])
    kept.write_bytes(b"broken")
    assert load("tfds:shards:train", data_dir=shards, cache="none").num_examples == 37


def test_bad_tfds_sources_are_explained(shards, monkeypatch):
    for source, message in [
        ("tfds:no_such_set:train", "no data set of this name"),
        ("tfds:shards:test", "no split 'test'.*train"),
        ("tfds:shards:train+train", "no split"),
        ("tfds:shards:train[x]", "train"),
        ("tfds:shards", "no split ''"),
    ]:
        with pytest.raises(InputError, match=message):
            load(source, data_dir=shards)
    monkeypatch.setenv("TFDS_DATA_DIR", shards)
    assert load("tfds:shards:train").num_examples == 37


def test_damaged_tfds_files_are_named(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "tfds")
    for file in (tmp_path / "tfds").rglob("*.tfrecord-00002*"):
        file.write_bytes(file.read_bytes()[:-7])
    for cache in ("memory", "none"):
        with pytest.raises(InputError, match="tfds:shards:train: cannot be read.*damaged") as error:
            load("tfds:shards:train", data_dir=str(tmp_path / "tfds"), cache=cache)
        assert not any(noise in str(error.value) for noise in ("{{", "[[", "[Op:", "Iterator::"))


class Tags(tfds.core.GeneratorBasedBuilder):
    """Images with several labels each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=5))
        features = {"image": tfds.features.Image(), "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k in range(4):
            yield k, {"image": np.full([4, 4, 3], k, np.uint8), "label": list(range(k))}


def test_several_labels_an_image_are_none(tmp_path, warnings):
    Tags(data_dir=str(tmp_path)).download_and_prepare()
    images = load("tfds:tags:train", data_dir=str(tmp_path))
    assert (images.num_examples, images.classes) == (4, ())
    (told,) = warnings
    assert told.startswith("tfds:tags: has several labels per image (feature label)")
    assert "folder:PATH" in told


def test_a_data_set_that_cannot_be_downloaded_is_explained_at_once(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no name resolution")

    monkeypatch.setattr(tfds_source.socket, "getaddrinfo", no_network)
    monkeypatch.setattr(tfds_source.urllib.request, "getproxies", dict)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        load("tfds:cifar100:train", data_dir=str(tmp_path))
    assert time.monotonic() - start < 20
    for part in ("tfds:cifar100", str(tmp_path), "toronto", "tfds build cifar100 --data_dir="):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    # Data sets that ask for files downloaded by hand say so.
    with pytest.raises(InputError, match="imagenet2012.*tfds build.*by hand"):
        load("tfds:imagenet2012:train", data_dir=str(tmp_path))


def test_omniglot_labels_and_pixels(shared_datasets):
    images = load(
        "tfds:omniglot:small1", image_size=32, data_dir=str(shared_datasets / "tfds"),
        classes={"first": 3},
    )  # fmt: skip
    assert (images.num_examples, len(images.classes)) == (60, 3)
    assert len(images.label_names) == 1623
    rows = joined(datasets.eval_batches(images, 13))
    assert len(set(rows["id"])) == 60
    plain = tfds.load("omniglot", split="small1", data_dir=shared_datasets / "tfds", download=False)
    labels = [images.label_names.index(name) for name in images.classes]
    expected = [e for e in plain.as_numpy_iterator() if e["label"] in labels]
    for image, label, example in zip(rows["image"], rows["label"], expected, strict=True):
        assert labels[label] == example["label"]
        resized = Image.fromarray(example["image"]).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(image.astype(int) - np.asarray(resized)).max() <= 1


@pytest.mark.slow
def test_omniglot_reference_protocol(shared_datasets):
    arguments = {"image_size": 32, "data_dir": str(shared_datasets / "tfds")}
    new = load("tfds:omniglot:train", **arguments)
    old_classes = str(shared_datasets / "omniglot_old_classes.txt")
    old = load("tfds:omniglot:train", classes={"file": old_classes}, **arguments)
    test = load("tfds:omniglot:test", **arguments)
    assert (new.num_examples, len(new.classes)) == (19280, 964)
    assert (old.num_examples, len(old.classes)) == (9640, 482)
    assert (test.num_examples, len(test.classes)) == (13180, 659)
    assert not set(new.classes) & set(test.classes) and set(old.classes) < set(new.classes)
