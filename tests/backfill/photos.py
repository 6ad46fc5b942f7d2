"""A folder of images, small models of them, and an upgraded gallery to be backfilled."""

import lance
import numpy as np
import pyarrow as pa

from fct_tf import backfill_gallery
from fct_tf.backfill import backfill
from fct_tf.data import by_id
from fct_tf.gallery import table
from fct_tf.ingest import embed_images
from fct_tf.models.load import load_any
from tests import tiny

N = 24  # images of the split val: 4 classes of 6


DIM = 3


BYTES = {"x_log_variance", "x_origin"}


def make_photos(directory):
    """images/, the new model, and a table of its embeddings of all images."""
    import keras

    images = tiny.image_folder(directory / "images")
    for seed, (name, dim) in enumerate((("new", DIM), ("other", DIM), ("wide", DIM + 1))):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((16, 16, 3))
        outputs = keras.layers.Dense(dim)(keras.layers.Flatten()(inputs))
        keras.Model(inputs, outputs).save(directory / f"{name}.keras")
    embed_images.embed_gallery(
        f"{directory}/all.lance", f"folder:{images}:val", f"{directory}/new.keras", "new"
    )
    return directory


def new_embeddings(photos):
    rows = table.open_gallery(photos / "all.lance").read(["new"])
    return dict(zip(rows.ids, rows.vectors["new"], strict=True))


def make_gallery(photos, path, *, log_variance=True, rows_per_file=7, **settings):
    """An upgraded gallery in an order of its own, with a further transformed column."""
    known = table.open_gallery(photos / "all.lance")
    ids = known.read([]).ids[np.random.default_rng(5).permutation(N)]
    labels = np.array([None if i % 5 == 0 else name.split("/")[1] for i, name in enumerate(ids)])
    rng = np.random.default_rng(0)
    columns = [table.Column("old", 40, "o" * 64), table.Column("side", 2, "s" * 64)]
    vectors = {c.name: rng.normal(size=(N, c.dim)).astype(np.float32) for c in columns}
    rows = table.Rows(ids, labels, vectors)
    table.create(path, [rows], columns, rows_per_file=rows_per_file)
    space = known.columns["new"].space
    for name in ("y", "x"):
        made = table.Column(
            name,
            DIM,
            name * 64,
            kind="transformed",
            compatible_with=(space,),
            created_by={"door": "upgrade_gallery", "model": "fct: old -> new"},
        )
        fields = [pa.field(f"{name}_origin", pa.string())]
        if log_variance:
            fields.append(pa.field(f"{name}_log_variance", pa.float32()))

        def transformed(rows, name=name):
            return {
                name: rows.vectors["old"][:, :DIM],
                f"{name}_origin": np.full(len(rows), "transformed", object),
                f"{name}_log_variance": np.round(rows.vectors["old"][:, 0]),  # With ties.
            }

        table.add_column(
            table.open_gallery(path), made, transformed, ["old"], extra_fields=fields, **settings
        )
    return str(path)


def load(photos, directory, name="new"):
    model = load_any(photos / f"{name}.keras")
    images = by_id.load(
        f"folder:{directory}/images:val", image_size=16, resize=model.preprocessing["resize"]
    )
    return model, images


def job(photos, directory, policy="uncertainty", budget="9", model=None, **more):
    loaded, images = load(photos, directory)
    return backfill.Backfill(
        directory / "g.lance", "x", model or loaded, images, policy, budget, batch_size=4, **more
    ).run()


def door(run_door, photos, directory, *more, model="new", budget="9"):
    return run_door(
        backfill_gallery,
        f"--gallery={directory}/g.lance",
        "--column=x",
        f"--model={photos}/{model}.keras",
        f"--images=folder:{directory}/images:val",
        f"--budget={budget}",
        "--batch_size=4",
        *more,
    )


def content(path):
    """All rows by id, vectors and all."""
    rows = lance.dataset(str(path)).to_table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == N
    return {row["id"]: row for row in rows}


def filled(path):
    return {name for name, row in content(path).items() if row["x_origin"] == "backfilled"}


def file(directory, name):
    return directory / "images" / name


def snapshot(directory):
    return {str(f): f.stat().st_mtime_ns for f in directory.rglob("*") if f.is_file()}


def by_uncertainty(rows, count):
    """The ids with the largest log-variance; ties as the policy breaks them."""
    from fct_tf.upgrade import sample

    ids = [name for name, row in rows.items() if row["x_log_variance"] is not None]
    tie = {ids[place]: rank for rank, place in enumerate(sample.order(ids, 0))}
    return sorted(ids, key=lambda i: (-rows[i]["x_log_variance"], tie[i]))[:count]


def check(photos, before, after, changed):
    """Only the rows `changed` differ, in the column x alone, and have the new model's vectors."""
    expected = new_embeddings(photos)
    for name, row in after.items():
        if name not in changed:
            assert row == before[name]
            continue
        np.testing.assert_allclose(row["x"], expected[name], rtol=1e-4, atol=1e-3)
        assert (row["x_origin"], row["x_log_variance"]) == ("backfilled", None)
        others = row.keys() - {"x", *BYTES}
        assert {"label", "old", "side", "y", "y_origin"} < others
        assert all(row[key] == before[name][key] for key in others)
