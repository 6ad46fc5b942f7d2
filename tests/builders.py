"""Small galleries and transformations of random weights. TensorFlow is imported by who needs it."""

import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from tests import killing

D_OLD, D_SIDE, D_NEW = 13, 7, 11


OLD, SIDE, NEW = "a" * 64, "b" * 64, "c" * 64


NUM_ROWS = 101


def numbered(prefix, numbers):
    """Ids or labels, object [n]: of so many rows, or with these numbers."""
    numbers = range(numbers) if isinstance(numbers, int) else numbers
    return np.array([f"{prefix}{number}" for number in numbers], object)


def some_labels(generator, count, classes, unlabelled=0.0):
    """Labels drawn at random, object [count]: None of a share of the rows."""
    labels = numbered("c", generator.integers(0, classes, count))
    labels[generator.random(count) < unlabelled] = None
    return labels


def make_transformation(
    directory,
    *,
    side=True,
    seed=0,
    log_variance=False,
    fused=False,
    source_space=OLD,
    target_space=NEW,
    dims=(),
):
    """A training's working directory with artifact/ and saved_model/."""
    import keras

    from fct_tf.models import artifact, export, fusion, transformation

    d_source, d_target = dims or (D_OLD, D_NEW)
    model = transformation.build(d_source, d_target, D_SIDE if side else None, hidden=31, seed=seed)
    if log_variance:
        embedding = model.output["embedding"]
        head = keras.layers.Dense(1, name="log_variance")(embedding)
        model = keras.Model(model.input, {"embedding": embedding, "log_variance": head})
    info = {
        "name": "fct",
        "distance": "l2",
        "source_space": source_space,
        "side_info_space": SIDE if side else None,
        "target_space": target_space,
        "source_model": "old model",
        "target_model": "new model",
    }
    if fused:
        both = fusion.build(("l2", "l2"), (0.7, 0.4), (d_source, d_target))
        model = fusion.gallery_side(model, both)
    kind = "fused" if fused else "transformation"
    artifact.save(directory / "artifact", model, kind, info)
    export.export_transformation(directory / "artifact", directory / "saved_model")
    return directory


def old_column(name="embedding_old", **settings):
    known = {"dim": D_OLD, "space": OLD, "created_by": {"model": "old model"}}
    return Column(name=name, **{**known, **settings})


def side_column(name="side_info"):
    return Column(name=name, dim=D_SIDE, space=SIDE, kind="side_info")


def make_gallery(path, columns=None, num_rows=NUM_ROWS, rows_per_file=37, seed=0):
    columns = [old_column(), side_column()] if columns is None else columns
    rng = np.random.default_rng(seed)
    rows = Rows(
        np.array([f"gallery/{i}" for i in range(num_rows)], object),
        np.array([None if i % 5 == 0 else f"class {i % 3}" for i in range(num_rows)], object),
        {c.name: rng.normal(size=(num_rows, c.dim)).astype(np.float32) for c in columns},
    )
    table.create(path, [rows], columns, rows_per_file=rows_per_file)
    return str(path)


def expected_embedding(workdir, rows, source="embedding_old", side="side_info"):
    """What the transformation makes of rows, outside of any upgrade."""
    from fct_tf.models import artifact

    inputs = {"source_embedding": rows.vectors[source]}
    if side:
        inputs["side_info"] = rows.vectors[side]
    return artifact.load(workdir / "artifact").model(inputs, training=False)


def snapshot(path):
    """Every file below a path, with its time of change."""
    parent = Path(path).parent
    return {str(f): f.stat().st_mtime_ns for f in sorted(parent.rglob("*")) if f.is_file()}


def append_bad_row(path):
    """A row with NaN, as another program may write it."""
    bad = np.zeros((1, D_OLD), np.float32)
    bad[0, 3] = np.nan
    vectors = [(bad, D_OLD), (np.zeros((1, D_SIDE), np.float32), D_SIDE)]
    arrays = [pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), d) for v, d in vectors]
    schema = lance.dataset(path).schema
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["broken row"]), pa.array([None], pa.string()), *arrays], schema=schema
    )
    lance.write_dataset(pa.Table.from_batches([batch]), path, mode="append")


def write_gallery(path, vectors, labels=None, *, ids="row", spaces=None, **settings):
    """A new gallery of these columns.

    Args:
      vectors: name -> float32 [n, dim].
      ids: of the rows, or what their numbers come behind.
      spaces: name -> space; by default made of the column's name.
      **settings: of every column.
    """
    spaces = {name: name * 8 for name in vectors} | (spaces or {})
    columns = [Column(name, v.shape[1], spaces[name], **settings) for name, v in vectors.items()]
    if isinstance(ids, str):
        ids = numbered(ids, len(next(iter(vectors.values()))))
    labels = None if labels is None else np.array(labels, object)
    return table.create(str(path), [Rows(np.array(ids, object), labels, vectors)], columns)


def make_pairs(path, ids, *, space=NEW, seed=7):
    """Rows that the new model has embedded, beside a column of the same size in another space."""
    columns = [Column(name, dim=D_NEW, space=s) for name, s in (("other", "o" * 64), ("z", space))]
    rng = np.random.default_rng(seed)
    vectors = {c.name: rng.normal(size=(len(ids), D_NEW)).astype(np.float32) for c in columns}
    table.create(path, [Rows(np.array(ids, object), None, vectors)], columns)
    return str(path), dict(zip(ids, vectors["z"], strict=True))


def start_door(path, workdir, *more):
    """The door in a process of its own, slowed down by tiny batches."""
    command = ["fct_tf.upgrade_gallery", f"--gallery={path}"]
    command += [f"--transformation={workdir}", "--column=x", "--batch_size=2", "--tag=live", *more]
    return killing.Program(command)


def finished_fragments(path):
    return len(list(Path(f"{path}.jobs/x").glob("fragment-*.json")))


def kill_at(process, path, fragments, delay_s):
    """Kills `process` a little after so many fragments are recorded; whether it was running."""
    while process.running() and finished_fragments(path) < fragments:
        time.sleep(0.001)
    time.sleep(delay_s)
    return process.kill()


def content(path):
    """All that the upgrade wrote, by id, to the bit."""
    gallery = table.open_gallery(path)
    rows = gallery.read(["x"], fields=["x_origin", "x_log_variance"])
    field = gallery.dataset.schema.field("x")
    assert len(set(rows.ids)) == len(rows.ids)
    return dict(field.metadata), {
        i: (vector.tobytes(), origin, log_variance.tobytes())
        for i, vector, origin, log_variance in zip(
            rows.ids,
            rows.vectors["x"],
            rows.fields["x_origin"],
            rows.fields["x_log_variance"],
            strict=True,
        )
    }
