"""Folders of any layout, and files that cannot be read."""

import os
import shutil

import pytest
import tensorflow as tf
from PIL import Image

from fct_tf.common.errors import InputError
from fct_tf.data import by_id, datasets
from fct_tf.training import backbone
from tests import tiny
from tests.data.images import joined, load


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
