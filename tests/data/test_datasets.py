"""Image sets: sources, order, resizing, caches, subsets, broken input."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from fct_tf.common.errors import InputError
from fct_tf.data import by_id, datasets, sources, stores, tfds_source
from fct_tf.training import backbone
from tests import tiny

COUNTS = {"cat": 5, "dog": 7, "emu": 11}  # 23 images in the split train


def write_images(folder, counts, seed=0):
    """JPEG and PNG, coloured, gray and with an alpha channel, of different sizes."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = (int(side) for side in random.integers(20, 60, 2))
            coarse = random.integers(0, 256, (5, 5, 3), np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image = image.convert(["RGB", "L", "RGBA"][number % 3])
            ending = "png" if number % 3 == 2 else ["png", "JPEG", "jpg"][number % 2]
            image.save(folder / name / f"{number:02d}.{ending}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """train and val of a folder of images, with files in it that are no images."""
    path = tmp_path_factory.mktemp("images") / "photos"
    write_images(path / "train", COUNTS)
    write_images(path / "val", {"cat": 2, "owl": 3}, seed=1)
    (path / "train" / "dog" / "notes.txt").write_text("not an image")
    (path / "train" / "dog" / ".hidden.png").write_text("not an image")
    (path / "train" / "README").write_text("not a class")
    return path


def load(source, **arguments):
    return datasets.load(source, **{"image_size": 16, **arguments})


def joined(batches):
    """All batches as arrays, one after the other."""
    batches = list(batches)
    return {key: np.concatenate([np.array(b[key]) for b in batches]) for key in batches[0]}


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


def test_interrupted_disk_cache_leaves_nothing(photos, tmp_path, monkeypatch):
    def fail(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.np, "savez", fail)
        with pytest.raises(KeyboardInterrupt):
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


@pytest.fixture
def damaged(photos, tmp_path):
    """A copy of the folder of which 3 images of 23 cannot be read."""
    path = tmp_path / "damaged"
    shutil.copytree(photos, path)
    jpeg = path / "train" / "cat" / "01.JPEG"
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    (path / "train" / "dog" / "02.png").write_bytes(b"")
    (path / "train" / "emu" / "03.JPEG").write_text("an HTML page, say")
    return path


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_unreadable_images_are_named(damaged, tmp_path, cache):
    cache = f"disk:{tmp_path / 'cache'}" if cache == "disk" else cache
    with pytest.raises(InputError) as error:
        load(f"folder:{damaged}:train", cache=cache)
    for name in ("3 unreadable", "cat/01.JPEG", "dog/02.png", "emu/03.JPEG", "on_bad_image"):
        assert name in str(error.value)


def test_unreadable_images_are_named_while_streaming(damaged):
    images = load(f"folder:{damaged}:train", cache="none")
    with pytest.raises(tf.errors.InvalidArgumentError, match="unreadable images train/cat/01.JPEG"):
        list(datasets.eval_batches(images, 4))
    with pytest.raises(InputError) as error, datasets.naming_unreadable_images():
        list(datasets.eval_batches(images, 23))
    assert str(error.value) == (
        f"folder:{damaged}:train: unreadable images train/cat/01.JPEG, train/dog/02.png, "
        "train/emu/03.JPEG; mend or delete them, or leave them out with `on_bad_image=skip` "
        "(--config.dataset.on_bad_image=skip where there is a --config)"
    )


@pytest.mark.parametrize("name", ["a[1].png", 'a "b".png', "größe 猫.png", "a\\b.png", "{{x}}.png"])
def test_unreadable_images_of_any_name_are_named_while_streaming(tmp_path, name):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"no image")
    images = load(f"folder:{tmp_path}:s", cache="none")
    for take in (next, tf.function(lambda batches: next(batches))):
        batches = iter(datasets.eval_batches(images, 4))
        with pytest.raises(InputError) as error, datasets.naming_unreadable_images():
            take(batches)
        assert f":s: unreadable images s/{name}; mend" in str(error.value)
        assert str(error.value).startswith("folder:")


@pytest.mark.parametrize("cache", ["memory", "none", "disk"])
def test_unreadable_images_are_skipped_and_counted(damaged, tmp_path, cache):
    cache = f"disk:{tmp_path / 'cache'}" if cache == "disk" else cache
    for _ in range(2):  # The second time from the disk cache.
        images = load(f"folder:{damaged}:train", on_bad_image="skip", cache=cache)
        assert (images.num_examples, images.num_skipped) == (20, 3)
        rows = joined(datasets.eval_batches(images, 7))
        assert rows["index"].tolist() == list(range(20))
        assert rows["label"].tolist() == [0] * 4 + [1] * 6 + [2] * 10
        assert b"train/cat/01.JPEG" not in rows["id"] and b"train/cat/02.png" in rows["id"]


def test_names_beyond_ascii(photos, tmp_path):
    shutil.copytree(photos / "val" / "cat", tmp_path / "größe" / "naïve 猫")
    images = load(f"folder:{tmp_path}:größe")
    rows = joined(datasets.eval_batches(images, 2))
    assert images.classes == ("naïve 猫",)
    assert rows["id"][0].decode() == "größe/naïve 猫/00.png"


def test_a_link_to_nowhere_is_an_unreadable_image(photos, tmp_path):
    shutil.copytree(photos / "val", tmp_path / "val")
    (tmp_path / "val" / "owl" / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match="1 unreadable images: val/owl/link.png"):
        load(f"folder:{tmp_path}:val")
    assert load(f"folder:{tmp_path}:val", on_bad_image="skip").num_skipped == 1


def ids_of(images):
    return [row["id"].numpy().decode() for row in images.dataset]


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning."""
    logged = []
    monkeypatch.setattr(
        sources.logging, "warning", lambda text, *values: logged.append(text % values)
    )
    return logged


def lay_out(folder, names):
    """Small images at these paths below a folder."""
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return folder


FLAT = ["s/b.png", "s/a.JPG"]
NESTED = ["s/2024/05/b.png", "s/2024/06/a.png", "s/2023/01/c.png"]


@pytest.mark.parametrize(
    "names, source, ids",
    [
        (FLAT, "folder:{}:s", ["s/a.JPG", "s/b.png"]),
        (FLAT, "folder:{}/s", ["a.JPG", "b.png"]),
        (FLAT, "files:{}:s", ["s/a.JPG", "s/b.png"]),
        (FLAT, "files:{}", ["s/a.JPG", "s/b.png"]),
        (NESTED, "folder:{}:s", ["s/2023/01/c.png", "s/2024/05/b.png", "s/2024/06/a.png"]),
        (NESTED, "files:{}/s", ["2023/01/c.png", "2024/05/b.png", "2024/06/a.png"]),
        ([*NESTED, "s/z.png"], "folder:{}/s", ["z.png", *(x[2:] for x in sorted(NESTED))]),
        (["s/cat/1.png", "s/0.png"], "files:{}:s", ["s/0.png", "s/cat/1.png"]),
    ],
)
def test_images_without_classes(tmp_path, warnings, names, source, ids):
    source = source.format(lay_out(tmp_path, names))
    images = load(source)
    assert ids_of(images) == ids
    assert images.classes == images.label_names == () and not warnings
    assert joined(datasets.eval_batches(images, 2))["label"].tolist() == [-1] * len(ids)
    assert ids_of(load(source, ids=ids[1:])) == ids[1:]
    found = by_id.load(source, image_size=4, resize="bilinear_antialias")
    assert found.find([ids[1], "none.png", ids[0]]).tolist() == [1, -1, 0]
    with pytest.raises(InputError, match="has 0 classes"):
        load(source, classes={"first": 1})


def test_images_beside_and_below_class_folders_are_counted(tmp_path, warnings):
    names = [f"s/{n}.png" for n in range(7)] + ["s/cat/a.png", "s/cat/more/b.png", "s/deep/x/c.png"]
    lay_out(tmp_path, names)
    (tmp_path / "s" / "notes.txt").write_text("no image")
    images = load(f"folder:{tmp_path}:s")
    assert ids_of(images) == ["s/cat/a.png"] and images.classes == ("cat",)
    (told,) = warnings
    assert told.endswith(
        "s: left out 9 images not directly in a class folder (0.png, 1.png, 2.png, 3.png, 4.png, "
        "...) and 1 files that are not JPEG or PNG"
    )


def test_a_forgotten_split_is_not_taken_for_a_gallery(photos):
    with pytest.raises(InputError) as error:
        load(f"folder:{photos}")
    assert f"folder:{photos}:train" in str(error.value) and f"files:{photos}" in str(error.value)
    assert load(f"files:{photos}").num_examples == 28


def test_links_in_a_circle_end(tmp_path):
    lay_out(tmp_path, ["s/a/b/1.png"])
    (tmp_path / "s" / "a" / "up").symlink_to(tmp_path / "s")
    (tmp_path / "linked").symlink_to(tmp_path / "s" / "a")
    assert ids_of(load(f"files:{tmp_path}/linked")) == ["b/1.png"]


def test_labels_are_asked_for_where_they_are_needed(tmp_path):
    config = tiny.experiment(lay_out(tmp_path / "i", [f"train/{n}.png" for n in range(9)]))
    with pytest.raises(InputError, match="its images have no labels"):
        backbone.train(config, "new", tmp_path / "new")


NOT_UTF8 = [b"s/cat/na\xefve.png", b"s/d\xf6g/1.png", b"s/cat/\xff\xfe.jpg"]


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("bad", [*([name] for name in NOT_UTF8), NOT_UTF8])
def test_names_that_are_not_utf8(tmp_path, warnings, bad, cache):
    lay_out(tmp_path, ["s/cat/1.png", "s/dog/1.png", *bad])
    source, skip = f"folder:{tmp_path}:s", {"on_bad_image": "skip", "cache": cache}
    with pytest.raises(InputError) as error:
        load(source, cache=cache)
    told = str(error.value)
    told.encode()
    assert f": {len(bad)} images with names" in told and "`on_bad_image=skip`" in told
    assert bad[0].decode(errors="backslashreplace") in told
    images = load(source, **skip)
    assert (images.num_examples, images.num_skipped) == (2, len(bad))
    assert images.classes == ("cat", "dog") and ids_of(images) == ["s/cat/1.png", "s/dog/1.png"]
    assert any(told.endswith("left out") and "not UTF-8" in told for told in warnings)


def test_names_that_are_not_utf8_and_not_used(tmp_path):
    names = ["s/cat/1.png", "s/dog/1.png", b"s/cat/\xff.png", b"t/c\xe4t/1.png", b"s/dog/\xff.txt"]
    lay_out(tmp_path, [*names, b"s/\xff.png", b"s/dog/.\xff.png"])
    source = f"folder:{tmp_path}:s"
    assert load(source, classes={"list": ["dog"]}).num_examples == 1
    assert load(source, ids=["s/cat/1.png"]).num_skipped == 0
    found = by_id.load(source, image_size=4, resize="bilinear_antialias")
    assert found.find(["s/dog/1.png"]).tolist() == [1]
    # Where the folder lies is no part of an id.
    os.rename(os.fsencode(tmp_path / "s"), os.path.join(os.fsencode(tmp_path), b"s\xff"))
    os.unlink(os.path.join(os.fsencode(tmp_path), b"s\xff", b"cat", b"\xff.png"))
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"s\xff"))
    images = load(f"folder:{path}", cache="none")
    assert ids_of(images) == ["cat/1.png", "dog/1.png"]
    images.name.encode()
    with pytest.raises(
        InputError, match=r"2 images with names that are not UTF-8: s\\xff/cat/1.png"
    ):
        load(f"folder:{tmp_path}:{os.path.basename(path)}")


def test_bad_folders_are_explained(photos, tmp_path):
    for source, message in [
        (f"folder:{photos}", f"folder:{photos}:train"),
        (f"folder:{photos}:test", r"no such image folder \(.*train, val\)"),
        (f"folder:{tmp_path / 'nowhere'}:train", "nowhere/train: no such image folder"),
        (f"folder:{tmp_path}", "no .* images"),
        ("folder:", "give images as"),
        ("photos", "give images as"),
        (f"zip:{photos}", "give images as"),
    ]:
        with pytest.raises(InputError, match=message):
            load(source)
    with pytest.raises(InputError, match="another split"):
        load(f"folder:{photos}:train", split="val")


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


class Shards(tfds.core.GeneratorBasedBuilder):
    """37 images, some without a label: image k is all of gray value k."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(num_classes=50),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k in range(37):
            image = np.full([4, 5, 1], k, np.uint8)
            yield k, {"image": image, "label": -1 if k % 10 == 9 else 3 + k % 4}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    builder = Shards(data_dir=str(tmp_path_factory.mktemp("tfds")))
    config = tfds.download.DownloadConfig(num_shards=5)
    builder.download_and_prepare(download_config=config)
    assert len(builder.info.splits["train"].shard_lengths) == 5
    return str(builder.data_dir_root)


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
