"""Training on rows: from memory and from the table, BatchNorm frozen halfway, bad rows named."""

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf import train_transformation
from fct_tf.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import artifact
from fct_tf.training import rows as training_rows
from tests import tiny

ROWS = 53  # a prime: batches do not fit


@pytest.fixture
def rows(tmp_path):
    """A gallery whose new embedding is a rotation of the old one, plus what side-info knows."""
    rng = np.random.default_rng(0)
    old, side = (rng.normal(size=(ROWS, 8)).astype(np.float32) for _ in range(2))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    columns = [table.Column(name=name, dim=8, space=name * 8) for name in ("old", "side", "new")]
    vectors = {"old": old, "side": side, "new": old @ rotation + 0.1 * side}
    ids = np.array([f"row{i}" for i in range(ROWS)], dtype=object)
    path = str(tmp_path / "rows.lance")
    table.create(path, [table.Rows(ids, None, vectors)], columns)
    return path


def train(rows, workdir, *, name="fct", epochs=4, **settings):
    config = tiny.experiment(workdir, epochs=epochs)
    config.transformations[name].update(settings)
    side_info = "side" if config.transformations[name].side_info else ""
    train_transformation.train(config, name, rows, "old", "new", workdir, side_info=side_info)
    return artifact.load(workdir / "artifact")


def moving(model):
    return [w.numpy() for w in model.weights if "moving" in w.path]


def test_streamed_rows_give_what_rows_in_memory_give(rows, tmp_path):
    memory = train(rows, tmp_path / "memory").model.get_weights()
    streamed = train(rows, tmp_path / "streamed", memory_gb=0.0).model.get_weights()
    for a, b in zip(memory, streamed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_it_learns_and_the_saved_model_is_the_model(rows, tmp_path):
    loaded = train(rows, tmp_path / "run", epochs=60)
    inputs = table.open_gallery(rows).read(["old", "side", "new"]).vectors
    given = {"source_embedding": inputs["old"], "side_info": inputs["side"]}
    error = np.mean((loaded.model(given, training=False)["embedding"] - inputs["new"]) ** 2)
    assert error < 0.8 * np.var(inputs["new"])
    assert loaded.info["target_space"] == "new" * 8
    assert (tmp_path / "run" / "saved_model" / "saved_model.pb").exists()


def test_batch_norm_is_frozen_in_the_second_half(rows, tmp_path):
    """Trained to the middle, and on: the running statistics stay, scale and offset do not."""
    half = moving(train(rows, tmp_path / "half", epochs=4, freeze_bn_after=1.0).model)
    frozen = train(rows, tmp_path / "frozen", epochs=4, freeze_bn_after=0.0).model
    for statistics in moving(frozen):
        assert set(np.unique(statistics)) <= {0.0, 1.0}  # as they were initialised
    assert any(not set(np.unique(s)) <= {0.0, 1.0} for s in half)
    scales = [w.numpy() for w in frozen.weights if w.path.endswith("gamma")]
    assert all(np.ptp(scale) > 0 for scale in scales)


def test_freezing_within_an_epoch(rows, tmp_path):
    # 6 steps an epoch, 9 in all: BatchNorm learns in the first ceil(4.5) = 5 of them. The first
    # layer's mean decays from 0 towards the batches'; its kernel at rate 0 stays where it was.
    config = tiny.experiment(tmp_path).transformations.fct.optimizer
    config.learning_rate, config.l2 = 0.0, 0.0
    steps = {"train_epochs": 0, "warmup_epochs": 0, "optimizer": config}
    frozen = train(rows, tmp_path / "frozen", train_steps=9, **steps).model
    whole = train(rows, tmp_path / "whole", train_steps=5, freeze_bn_after=1.0, **steps).model
    longer = train(rows, tmp_path / "longer", train_steps=6, freeze_bn_after=1.0, **steps).model
    for a, b in zip(moving(frozen), moving(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.allclose(moving(frozen)[0], moving(longer)[0], rtol=1e-3, atol=1e-5)


def test_no_side_information(rows, tmp_path):
    loaded = train(rows, tmp_path / "run", name="fct_no_side_info")
    assert set(loaded.model.input) == {"source_embedding"}
    assert loaded.info["side_info_space"] is None


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_bad_row_is_named(rows, tmp_path, memory_gb):
    dataset = lance.dataset(rows)
    old = dataset.to_table().column("old").combine_chunks().flatten().to_numpy().copy()
    old[8 * 7] = np.nan
    broken = dataset.to_table().set_column(
        dataset.schema.names.index("old"),
        dataset.schema.field("old"),
        pa.FixedSizeListArray.from_arrays(pa.array(old), 8),
    )
    path = str(tmp_path / "broken.lance")
    lance.write_dataset(broken, path)
    with pytest.raises(InputError, match="row7"):
        train(path, tmp_path / "run", memory_gb=memory_gb)


@pytest.mark.parametrize(
    "source, side_info, message",
    [("older", "side", "older"), ("old", "", "--side_info"), ("old", "none", "none")],
)
def test_bad_columns(rows, tmp_path, source, side_info, message):
    config = tiny.experiment(tmp_path)
    with pytest.raises(InputError, match=message):
        train_transformation.train(
            config, "fct", rows, source, "new", tmp_path / "run", side_info=side_info
        )


def test_every_row_once_an_epoch():
    for views in (1, 4):
        orders = [training_rows.epoch_order(52, views, 3, epoch) for epoch in range(views)]
        assert sorted(np.concatenate(orders)) == list(range(52))
    first, again, other = (
        training_rows.epoch_order(52, 1, seed, epoch) for seed, epoch in ((3, 0), (3, 0), (3, 1))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
