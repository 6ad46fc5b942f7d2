"""Samples of a gallery: who is drawn, what is copied, and what is embedded."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from fct_tf import sample_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.ingest import embed
from fct_tf.upgrade import reembed_sample, sample
from tests import killing, tiny

N = 24  # images of the split val: 4 classes of 6
SPACES = {"old": "a" * 64, "side": "b" * 64}


def names(count):
    return np.array([f"val/{i}.jpg" for i in range(count)], object)


def test_order_sorts_by_a_keyed_hash():
    ids = [f"photo-é{i}" for i in range(500)]

    def number(row_id):
        digest = hashlib.blake2b(row_id.encode("utf-8"), digest_size=8, key=b"7").hexdigest()
        return int(digest, 16)

    assert [ids[i] for i in sample.order(ids, 7)] == sorted(ids, key=number)
    assert sample.order(ids, 7).dtype == np.int64 and len(sample.order([], 7)) == 0
    assert (sample.order(ids, 7) != sample.order(ids, 8)).any()


def test_random_is_nested_and_does_not_look_at_the_order_of_the_table():
    ids = names(1000)
    small, large = sample.random(ids, 10, 3), sample.random(ids, 20, 3)
    np.testing.assert_array_equal(small, large[:10])
    mixed = ids[np.random.default_rng(0).permutation(1000)]
    np.testing.assert_array_equal(mixed[sample.random(mixed, 20, 3)], ids[large])
    assert set(ids[small]) != set(ids[sample.random(ids, 10, 4)])
    # Rows of the first and of the second half of the table are as likely: 2.6 standard deviations.
    assert abs((sample.random(ids, 400, 0) < 500).sum() - 200) < 20


@pytest.mark.parametrize(
    "given, expected",
    [({"share": 0.2}, 2), ({"share": 0.001}, 1), ({"share": 1.0}, 11), ({"rows": 11}, 11)],
)
def test_count(given, expected):
    assert sample.count_of(11, **given) == expected


def write(path, count=40, extra=()):
    """A gallery of two columns, one of them half precision, unlabelled rows among the others."""
    rng = np.random.default_rng(5)
    columns = [
        table.Column("old", 4, SPACES["old"], distance="cosine", created_by={"model": "m1"}),
        table.Column("side", 3, SPACES["side"], "float16", "side_info", "l2", ("c" * 64,)),
        *extra,
    ]
    vectors = {c.name: rng.normal(size=(count, c.dim)).astype(np.float16) for c in columns}
    labels = np.array([None if i % 7 == 0 else f"class{i % 3}" for i in range(count)], object)
    rows = table.Rows(names(count), labels, vectors)
    return table.create(path, [rows], columns, rows_per_file=16)


def test_copied_rows_are_the_gallery_s_with_their_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "BLOCK_ROWS", 5)
    made = table.Column("fct", 4, "d" * 64, kind="transformed")
    gallery = write(tmp_path / "g.lance", extra=[made])
    ids = gallery.read([]).ids[[33, 2, 17, 16, 39, 0, 21]]
    copy = sample.copy_rows(gallery, ids, str(tmp_path / "copy.lance"))
    assert copy.columns == {name: gallery.columns[name] for name in SPACES}
    found = copy.read(list(SPACES), with_labels=True)
    assert list(found.ids) == [f"val/{i}.jpg" for i in (0, 2, 16, 17, 21, 33, 39)]
    expected = gallery.take(found.ids, list(SPACES))
    assert found.labels.tolist() == expected.labels.tolist() and None in found.labels.tolist()
    for name in SPACES:
        np.testing.assert_array_equal(found.vectors[name], expected.vectors[name])
    assert copy.dataset.schema.field("side").type == pa.list_(pa.float16(), 3)
    with pytest.raises(InputError, match="no row with id 'gone' and 1 more"):
        sample.copy_rows(gallery, [*ids, "gone", "lost"], str(tmp_path / "other.lance"))
    assert not (tmp_path / "other.lance").exists()


def door(run_door, tmp_path, *more, output="pairs.lance"):
    arguments = [f"--gallery={tmp_path}/g.lance", f"--output={tmp_path}/{output}", *more]
    return run_door(sample_gallery, *arguments)


def test_larger_sample_contains_the_smaller_one(tmp_path, run_door, capsys):
    write(tmp_path / "g.lance")
    found = []
    for rows in ("--share=0.1", "--rows=9"):
        assert door(run_door, tmp_path, rows, "--overwrite") == 0
        made = table.open_gallery(tmp_path / "pairs.lance")
        assert list(made.columns) == ["old", "side"] and not table.verify(made)
        found.append(set(made.read([]).ids))
    assert len(found[0]) == 4 and len(found[1]) == 9 and found[0] < found[1]
    assert "pairs.lance@2: 9 rows, columns old, side" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--share=0.1", "--rows=3"], "--share or as --rows, one of them"),
        ([], "--share or as --rows, one of them"),
        (["--rows=41"], "--rows=41: must be at least 1 and at most 40"),
        (["--rows=0"], "--rows=0"),
        (["--share=1.1"], "--share=1.1"),
        (["--rows=3", "--method=spread"], "Unknown command line flag 'method'"),
        (["--rows=3", "--images=folder:x"], "--images and --model go together"),
        (["--rows=3", "--model=x"], "--images and --model go together"),
        (["--rows=3", "--images=folder:x", "--model=x", "--column=old"], "'old' already"),
        (["--rows=3", "--images=folder:x", "--model=x", "--column=a.b"], "'a.b'"),
        (["--rows=3", "--images=folder:x", "--model=nowhere"], "nowhere: no such model"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(tmp_path, run_door, capsys, flags, message):
    write(tmp_path / "g.lance")
    assert door(run_door, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.lance"]


def test_existing_output_is_refused(tmp_path, run_door, capsys):
    write(tmp_path / "g.lance")
    assert door(run_door, tmp_path, "--rows=3") == 0
    assert door(run_door, tmp_path, "--rows=4") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert table.open_gallery(tmp_path / "pairs.lance").num_rows == 3
    assert door(run_door, tmp_path, "--rows=4", "--overwrite", output="g.lance") == 2
    assert "is the gallery that is read" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    assert door(run_door, tmp_path, "--rows=4", "--overwrite", output="photos") == 2
    assert "is no gallery" in capsys.readouterr().err
    assert door(run_door, tmp_path, "--rows=4", output="pairs.lance@3") == 2
    assert "'@'" in capsys.readouterr().err


def test_only_transformed_columns(tmp_path, run_door, capsys):
    column = table.Column("fct", 2, "d" * 64, kind="transformed")
    rows = table.Rows(names(9), None, {"fct": np.zeros([9, 2], np.float32)})
    table.create(tmp_path / "g.lance", [rows], [column])
    assert door(run_door, tmp_path, "--rows=3") == 2
    assert "no embedding column to copy" in capsys.readouterr().err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images, their gallery with the embeddings of one model, and a second model."""
    import keras

    from fct_tf.ingest import embed_images

    directory = tmp_path_factory.mktemp("photos")
    images = tiny.image_folder(directory / "images")
    for name in ("old", "new"):
        keras.utils.set_random_seed(len(name) + ord(name[0]))
        inputs = keras.Input((16, 16, 3))
        outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
        keras.Model(inputs, outputs).save(directory / f"{name}.keras")
        embed_images.embed_gallery(
            f"{directory}/{'g' if name == 'old' else 'all'}.lance",
            f"folder:{images}:val",
            f"{directory}/{name}.keras",
            f"embedding_{name}",
        )
    return directory


def sampled(photos, output, **more):
    """A sample of half of the rows."""
    arguments = {"images": f"folder:{photos}/images:val", "model": f"{photos}/new.keras", **more}
    return reembed_sample.sample_gallery(f"{photos}/g.lance", str(output), share=0.5, **arguments)


def test_embeddings_of_the_drawn_images_alone(photos, tmp_path):
    made = sampled(photos, tmp_path / "pairs.lance")
    ids = sample.draw(table.open_gallery(photos / "g.lance"), N // 2)
    rows = made.read(["embedding_old", "embedding_new"], with_labels=True)
    assert sorted(rows.ids) == sorted(ids) and len(ids) == 12
    assert rows.labels.tolist() == [row_id.split("/")[1] for row_id in rows.ids]
    for name, gallery in (("embedding_old", "g"), ("embedding_new", "all")):
        whole = table.open_gallery(photos / f"{gallery}.lance")
        assert made.columns[name].space == whole.columns[name].space
        expected = whole.take(rows.ids, [name]).vectors[name]
        np.testing.assert_allclose(rows.vectors[name], expected, rtol=1e-5, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.lance"]


def test_unknown_images_are_named_and_nothing_is_written(photos, tmp_path):
    with pytest.raises(InputError, match=r"images:train: has no image 'val/class.* and 11 more"):
        sampled(photos, tmp_path / "pairs.lance", images=f"folder:{photos}/images:train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_before_and_after_the_commit_of_the_column(photos, tmp_path, monkeypatch, moment):
    """What was embedded is not embedded again; until all is done there is no table."""
    with killing.interrupted(embed, "_add_column", after=moment == "after"):
        sampled(photos, tmp_path / "pairs.lance")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.lance.jobs"]
    monkeypatch.setattr(embed.datasets, "eval_batches", None)
    made = sampled(photos, tmp_path / "pairs.lance")
    assert list(made.columns) == ["embedding_old", "embedding_new"] and made.num_rows == 12
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.lance"]


def test_other_rows_are_not_taken_from_an_unfinished_sample(photos, tmp_path):
    with killing.interrupted(embed, "_add_column"):
        sampled(photos, tmp_path / "pairs.lance")
    made = sampled(photos, tmp_path / "pairs.lance", seed=1)
    ids = sample.draw(table.open_gallery(photos / "g.lance"), N // 2, seed=1)
    assert sorted(made.read([]).ids) == sorted(ids)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.lance"]
