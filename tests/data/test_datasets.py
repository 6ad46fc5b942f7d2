"""Images in batches: in order, shuffled, cached, resumed, and what their fingerprint tells."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from fct_tf.common.errors import InputError
from fct_tf.data import datasets, stores
from tests import killing
from tests.data.images import COUNTS, joined, load


def pil_resized(path, size):
    """Pillow's antialiased bilinear resizing, the same filter as TensorFlow's."""
    image = Image.open(path)
    image = Image.fromarray(np.asarray(image)[..., :3]) if image.mode == "RGBA" else image
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def test_folder_lists_classes_and_files_in_name_order(photos):
    images = load(f"folder:{photos}:train")
    assert images.num_examples == 23
    assert images.label_names == images.classes == ("cat", "dog", "emu")
    assert images.num_skipped == 0
    rows = joined(datasets.eval_batches(images, 4))
    assert rows["image"].shape == (23, 16, 16, 3) and rows["image"].dtype == np.uint8
    assert rows["label"].tolist() == [0] * 5 + [1] * 7 + [2] * 11
    assert rows["index"].tolist() == list(range(23))
    files = [
        f"train/{name}/{file}"
        for name in COUNTS
        for file in sorted(os.listdir(photos / "train" / name))
        if file.endswith(("png", "jpg", "JPEG")) and not file.startswith(".")
    ]
    assert [identity.decode() for identity in rows["id"]] == files
    for image, file in zip(rows["image"], files, strict=True):
        expected = pil_resized(photos / file, 16)
        # The decoders and the rounding of the two libraries differ by a level or two.
        assert np.abs(image.astype(int) - expected).max() <= 3, file


def test_no_image_is_dropped_and_the_last_batch_is_smaller(photos):
    images = load(f"folder:{photos}", split="train")
    sizes = [len(batch["id"]) for batch in datasets.eval_batches(images, 7)]
    assert sizes == [7, 7, 7, 2]
    rest = joined(datasets.eval_batches(images, 7, skip_batches=2))
    assert rest["index"].tolist() == list(range(14, 23))
    single = list(images.dataset.take(2))
    assert single[1]["image"].shape == (16, 16, 3)
    assert single[1]["id"].numpy().decode() == "train/cat/01.JPEG"


def test_classes_directly_below_the_folder(photos):
    images = load(f"folder:{photos}/train")
    rows = joined(datasets.eval_batches(images, 23))
    assert rows["id"][0] == b"cat/00.png"
    np.testing.assert_array_equal(
        rows["image"], joined(datasets.eval_batches(load(f"folder:{photos}:train"), 5))["image"]
    )


def test_center_crop(photos):
    images = load(f"folder:{photos}:val", image_size=28, resize="center_crop")
    rows = joined(datasets.eval_batches(images, 5))
    for image, identity in zip(rows["image"], rows["id"], strict=True):
        original = Image.open(photos / identity.decode())
        side = min(original.size)
        scaled = tuple(round(length * 32 / side) for length in original.size)  # 28 / 0.875
        pixels = np.asarray(original)[..., :3] if original.mode == "RGBA" else np.asarray(original)
        resized = Image.fromarray(pixels).convert("RGB").resize(scaled, Image.Resampling.BILINEAR)
        left, top = ((length - 28) // 2 for length in scaled)
        expected = np.asarray(resized)[top : top + 28, left : left + 28]
        assert np.abs(image.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_caches_hold_the_same_images(photos, tmp_path, cache):
    cache = f"disk:{tmp_path / 'cache'}" if cache == "disk" else cache
    memory = load(f"folder:{photos}:train", classes={"list": ("emu", "cat")})
    other = load(f"folder:{photos}:train", classes={"list": ("emu", "cat")}, cache=cache)
    assert memory.fingerprint == other.fingerprint and memory.classes == other.classes
    for batches in (
        lambda images: datasets.eval_batches(images, 5),
        lambda images: datasets.train_batches(images, 5, seed=3, epoch=2, augment="affine"),
    ):
        ours, theirs = joined(batches(memory)), joined(batches(other))
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_disk_cache_is_read_again_and_checked(photos, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    cache = tmp_path / "cache"
    first = joined(datasets.eval_batches(load(f"folder:{copy}:val", cache=f"disk:{cache}"), 5))
    broken = copy / "val" / "cat" / "00.png"
    broken.write_bytes(b"x" * broken.stat().st_size)  # Names and sizes are the same.
    again = joined(datasets.eval_batches(load(f"folder:{copy}:val", cache=f"disk:{cache}"), 5))
    np.testing.assert_array_equal(first["image"], again["image"])
    (made,) = cache.iterdir()
    with open(made / "images.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match="image cache.*delete it"):
        load(f"folder:{copy}:val", cache=f"disk:{cache}")


def test_interrupted_disk_cache_leaves_nothing(photos, tmp_path):
    with killing.interrupted(stores.np, "savez"):
        load(f"folder:{photos}:val", cache=f"disk:{tmp_path}")
    assert list(tmp_path.iterdir()) == []
    assert load(f"folder:{photos}:val", cache=f"disk:{tmp_path}").num_examples == 5


def test_images_that_do_not_fit_in_memory_are_refused(photos, monkeypatch):
    monkeypatch.setattr(stores, "_free_memory_bytes", lambda: 23 * 16 * 16 * 3)
    with pytest.raises(InputError, match="23 images.*cache none or disk:PATH"):
        load(f"folder:{photos}:train")
    assert load(f"folder:{photos}:train", cache="none").num_examples == 23


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_training_batches_shuffle_and_drop_the_rest(photos, cache):
    images = load(f"folder:{photos}:train", cache=cache)

    def order(seed, epoch):
        batches = list(datasets.train_batches(images, 5, seed=seed, epoch=epoch))
        assert [len(b["id"]) for b in batches] == [5, 5, 5, 5]
        return joined(batches)["index"].tolist()

    first = order(0, 0)
    assert len(set(first)) == 20 and first != sorted(first)
    assert first == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    # Over epochs every image takes part: 3 of 23 are left out of each.
    assert set().union(*(order(0, epoch) for epoch in range(8))) == set(range(23))


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("views", [1, 2])
def test_resuming_within_an_epoch_is_exact(photos, cache, views):
    images = load(f"folder:{photos}:train", cache=cache)
    arguments = {"seed": 7, "epoch": 1, "augment": "simclr", "views": views}
    whole = list(datasets.train_batches(images, 4, **arguments))
    rest = list(datasets.train_batches(images, 4, skip_batches=3, **arguments))
    assert len(whole) == 5 and len(rest) == 2
    for ours, theirs in zip(whole[3:], rest, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    assert list(datasets.train_batches(images, 4, skip_batches=5, **arguments)) == []


def test_augmentation_depends_on_seed_epoch_view_and_image_alone(photos):
    images = load(f"folder:{photos}:train")

    def by_index(batch_size, **arguments):
        arguments = {"seed": 0, "epoch": 0, "augment": "affine", **arguments}
        rows = joined(datasets.train_batches(images, batch_size, **arguments))
        assert rows["image"].dtype == np.float32
        return {i: row for i, *row in zip(*[rows[k] for k in ("index", "image")], strict=True)}

    small, large = by_index(3), by_index(23)
    for index, row in small.items():
        np.testing.assert_array_equal(row, large[index])
    for other in ({"seed": 1}, {"epoch": 1}):
        assert all((a[0] != large[i][0]).any() for i, a in by_index(23, **other).items())
    both = joined(datasets.train_batches(images, 23, seed=0, epoch=0, augment="affine", views=2))
    for index, first, second in zip(both["index"], both["image"], both["image2"], strict=True):
        np.testing.assert_array_equal(first, large[index][0])
        assert (first != second).any()


def test_a_view_of_all_images_in_order(photos):
    images = load(f"folder:{photos}:train")
    clean = datasets.eval_batches(images, 6)
    views = [
        joined(datasets.augmented(clean, images, "affine", seed=0, view=view)) for view in (0, 1)
    ]
    assert views[0]["index"].tolist() == list(range(23))
    assert (views[0]["image"] != views[1]["image"]).any()
    later = datasets.eval_batches(images, 6, skip_batches=2)
    rest = joined(datasets.augmented(later, images, "affine", seed=0, view=1))
    np.testing.assert_array_equal(rest["image"], views[1]["image"][12:])


def test_fewer_images_than_a_batch(photos):
    images = load(f"folder:{photos}:val")
    with pytest.raises(InputError, match="5 images do not fill one batch of 6"):
        datasets.train_batches(images, 6, seed=0, epoch=0)


def test_batches_are_shared_out_over_replicas(photos, two_devices):
    images = load(f"folder:{photos}:train")
    strategy = tf.distribute.MirroredStrategy(two_devices)
    batches = datasets.train_batches(images, 6, seed=0, epoch=0, augment="flip")
    seen = []
    for batch in strategy.experimental_distribute_dataset(batches):
        parts = strategy.experimental_local_results(batch["index"])
        assert [len(part) for part in parts] == [3, 3]
        seen.extend(np.concatenate(parts).tolist())
    assert seen == joined(batches)["index"].tolist()


def test_fingerprint_tells_what_was_asked_not_where_it_lies(photos, tmp_path):
    def fingerprint(path=photos, **arguments):
        return load(f"folder:{path}:val", **arguments).fingerprint

    same = fingerprint()
    shutil.copytree(photos, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == same
    assert fingerprint(cache="none") == same
    others = [
        fingerprint(image_size=17),
        fingerprint(resize="center_crop"),
        fingerprint(classes={"list": ["owl"]}),
    ]
    with open(tmp_path / "moved" / "val" / "cat" / "00.png", "ab") as file:
        file.write(b"\0")
    others.append(fingerprint(tmp_path / "moved"))
    assert len({same, *others}) == 5


def test_fingerprints_stay_what_runs_and_caches_have_recorded(tmp_path):
    for number, name in enumerate(("cat/a.png", "cat/b.jpg", "dog/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * (number + 1))

    def fingerprint(**arguments):
        return load(f"folder:{tmp_path}", cache="none", **arguments).fingerprint

    known = "f81398f44258a57378b09cbd88d2d345c5a9c3caa5b9fe85d744396ffa31e094"
    assert fingerprint() == fingerprint(ids=None) == known
    known_subset = "20b9db6d73261d89e9c2331aced69cc13a12b5b9199c077fc7588362bc18d1f9"
    assert fingerprint(classes={"list": ["dog"]}) == known_subset
    with tfds.testing.mock_data(num_examples=11):
        mocked = load("tfds:cifar100:train", image_size=8, cache="none").fingerprint
    assert mocked == "f40865745b3b4d8b3ddbfff711875d724c3dea2418cfe6c51820c8d88842a712"
    # With ids they say which, in whatever order and however often these are listed.
    one = fingerprint(ids=["dog/c.png", "cat/a.png"])
    assert one == fingerprint(ids={"cat/a.png": 0, "dog/c.png": 1})
    assert one == fingerprint(ids=["cat/a.png", "dog/c.png", "cat/a.png"])
    assert len({known, one, fingerprint(ids=["cat/a.png"]), known_subset}) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"resize": "bicubic"}, "resize"),
        ({"on_bad_image": "ignore"}, "on_bad_image"),
        ({"cache": "disk:"}, "cache"),
        ({"cache": "tape"}, "cache"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_bad_arguments_are_named(photos, arguments, message):
    with pytest.raises(InputError, match=message):
        load(f"folder:{photos}:train", **arguments)


@pytest.mark.slow
def test_repeatable_under_op_determinism(photos):
    program = f"""
import hashlib, tensorflow as tf
tf.config.experimental.enable_op_determinism()
tf.keras.utils.set_random_seed(0)
from fct_tf.data import datasets
images = datasets.load("folder:{photos}:train", image_size=16, cache="none")
digest = hashlib.sha256()
for batch in datasets.train_batches(images, 5, seed=0, epoch=3, augment="simclr", views=2):
    for key in sorted(batch):
        digest.update(batch[key].numpy().tobytes() if key != "id" else b"")
print(digest.hexdigest())
"""
    run = [sys.executable, "-c", program]
    digests = [subprocess.run(run, capture_output=True, text=True, check=True) for _ in range(2)]
    assert digests[0].stdout == digests[1].stdout and len(digests[0].stdout) == 65
