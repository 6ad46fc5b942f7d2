"""Galleries with fields of all kinds beside the vectors: every job takes the way that works.

Adopted tables have structs, images as blobs, dictionaries. Adding, completing, replacing and
removing rows must leave them to the bit, or be refused before the work.
"""

import dataclasses
import uuid

import lance
import numpy as np
import pyarrow as pa
import pytest

from fct_tf.gallery import missing, removal, replace, table
from fct_tf.gallery.columns import vector_array
from fct_tf.upgrade import sample

DIM = 3
OLD = table.Column("old", DIM, "a" * 64)
X = table.Column("x", DIM, "b" * 64, kind="transformed")
FIELDS = [pa.field("x_origin", pa.string()), pa.field("x_log_variance", pa.float32())]
PAIR = pa.struct([("a", pa.int32()), ("b", pa.string())])
LEGACY_BLOB = {"lance-encoding:blob": "true"}


def of(kind, count):
    """(field, array) of a kind: `count` values, every other one null where that can be."""

    def every_other(value, null=None):
        return [null if i % 2 else value for i in range(count)]

    plain = {
        "struct": (every_other({"a": 1, "b": "x"}), PAIR),
        "list of structs": (every_other([{"a": 1, "b": "x"}]), pa.list_(PAIR)),
        "map": (every_other([("k", 1)]), pa.map_(pa.string(), pa.int32())),
        "dictionary": (every_other("red"), pa.dictionary(pa.int16(), pa.string())),
        "binary": (every_other(b"\0\1"), pa.binary()),
        "large binary": (every_other(b"\0\1"), pa.large_binary()),
        "fixed-size binary": ([b"abcd"] * count, pa.binary(4)),
        "large string": (every_other("ü"), pa.large_string()),
        "timestamp": (every_other(17), pa.timestamp("us", tz="UTC")),
        "date": (every_other(17), pa.date32()),
        "duration": (every_other(17), pa.duration("ms")),
        "decimal": (every_other(17), pa.decimal128(10, 2)),
        "bool": (every_other(True), pa.bool_()),
        "list of vectors": (every_other([[1.0, 2.0]]), pa.list_(pa.list_(pa.float32(), 2))),
        "null": ([None] * count, pa.null()),
    }
    if kind in plain:
        array = pa.array(*plain[kind])
    elif kind == "uuid":
        ids = [uuid.UUID(int=i).bytes for i in range(count)]
        array = pa.ExtensionArray.from_storage(pa.uuid(), pa.array(ids, pa.binary(16)))
    elif kind == "json":
        array = pa.ExtensionArray.from_storage(pa.json_(), pa.array(every_other('{"a":1}')))
    elif kind == "blob":
        photos = every_other(b"photograph", b"")
        return lance.blob_field("other"), lance.blob_array(photos)
    elif kind == "blob with nulls":
        return lance.blob_field("other"), lance.blob_array(every_other(b"photograph"))
    elif kind == "blob in a struct":
        field = lance.blob_field("photo")
        photos = lance.blob_array([f"photo {i}".encode() for i in range(count)])
        array = pa.StructArray.from_arrays([photos], fields=[field])
    else:
        array = pa.array(every_other(b"photograph"), pa.large_binary())
        return pa.field("other", array.type, metadata=LEGACY_BLOB), array
    return pa.field("other", array.type), array


KINDS = [
    "struct", "list of structs", "map", "dictionary", "binary", "large binary",
    "fixed-size binary", "large string", "timestamp", "date", "duration", "decimal", "bool",
    "list of vectors", "null", "uuid", "json",
]  # fmt: skip
BLOBS = ["blob", "blob with nulls", "blob in a struct", "blob as it was written before"]
VERSION = {"blob as it was written before": "2.1"}


def rows(kind, start, count):
    field, other = of(kind, count)
    vectors = np.arange(start * DIM, (start + count) * DIM, dtype=np.float32)
    arrays = [
        pa.array([f"i/{start + i}" for i in range(count)]),
        pa.array(["class"] * count),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors), DIM),
        other,
    ]
    own = [pa.field("id", pa.string(), nullable=False), pa.field("label", pa.string())]
    schema = pa.schema([*own, OLD.to_field(), field], metadata={"fct.format": "1"})
    return pa.Table.from_arrays(arrays, schema=schema)


def others(path):
    """The values of the field by id, blobs as their bytes."""
    scanner = lance.dataset(path).scanner(columns=["id", "other"], blob_handling="all_binary")
    found = scanner.to_table().to_pylist()
    return {row["id"]: row["other"] for row in found}


def doubled(batch):
    return {
        "x": 2 * batch.vectors["old"],
        "x_origin": np.full(len(batch), "transformed", object),
        "x_log_variance": batch.vectors["old"][:, 0],
    }


def replaced(path, ids):
    column = table.open(path).column("x")

    def values(place):
        names = [ids[i] for i in place]
        return {
            "x": vector_array(np.full((len(place), DIM), -1.0), column, names, path),
            "x_origin": pa.array(["backfilled"] * len(place)),
            "x_log_variance": pa.nulls(len(place), pa.float32()),
        }

    made = dataclasses.replace(column, created_by={"backfilled": [{"rows": len(ids)}]})
    replace.replace_rows(path, made, ids, values, space=column.space)


def vectors(path):
    read = table.open(path).read(["x"], fields=["x_origin"])
    return dict(zip(read.ids, read.vectors["x"].tolist(), strict=True))


def transformed(number):
    return [2.0 * (number * DIM + i) for i in range(DIM)]


@pytest.mark.parametrize("kind", [*KINDS, *BLOBS])
def test_a_gallery_lives_with_it(tmp_path, kind):
    path = str(tmp_path / "g.lance")
    version = VERSION.get(kind, "2.2")
    lance.write_dataset(rows(kind, 0, 40), path, max_rows_per_file=20, data_storage_version=version)
    before = others(path)
    assert len(before) == 40
    # Upgraded, then replaced.
    for overwrite in (False, True):
        table.add_column(
            table.open(path), X, doubled, ["old"], extra_fields=FIELDS, overwrite=overwrite
        )
    # Backfilled: a few rows of many, most rows, all of a fragment.
    for ids in (["i/3"], [f"i/{i}" for i in range(1, 19)], [f"i/{i}" for i in range(20, 40)]):
        replaced(path, ids)
    # Grown and completed.
    lance.write_dataset(rows(kind, 40, 5), path, mode="append")
    before |= {f"i/{40 + i}": value for i, value in enumerate(list(before.values())[:5])}
    if kind in ("uuid", "blob in a struct"):  # Of which every value is another.
        before |= {name: value for name, value in others(path).items() if name not in before}
        before |= {f"i/{i}": others(path)[f"i/{i}"] for i in range(40, 45)}
    column = table.open(path).column("x")
    missing.complete(table.open(path), column, doubled, ["old"], extra_fields=FIELDS)
    expected = {f"i/{i}": [-1.0] * DIM for i in [*range(1, 19), *range(20, 40)]}
    expected |= {f"i/{i}": transformed(i) for i in (0, 19, *range(40, 45))}
    assert vectors(path) == expected
    assert others(path) == before
    # Live, sampled, taken down and purged.
    table.tag(path, "live")
    made = sample.copy_rows(table.open(path), ["i/0", "i/44"], str(tmp_path / "s.lance"))
    assert made.num_rows == 2 and list(made.columns) == ["old"]
    assert removal.remove(path, removal.with_ids(["i/0", "i/25"])) == 2
    table.tag(path, "live")
    removal.purge_versions(path, removal.with_ids(["i/0", "i/25"]))
    for name in ("i/0", "i/25"):
        del before[name], expected[name]
    assert vectors(path) == expected
    assert others(path) == before
    assert table.verify(table.open(path)) == []


@pytest.mark.parametrize("kind", [*KINDS, *BLOBS])
def test_rows_with_blobs_stay_where_they_are(tmp_path, kind):
    """Others move, as few bytes as that is: the way is chosen by what can be done."""
    path = str(tmp_path / "g.lance")
    version = VERSION.get(kind, "2.2")
    lance.write_dataset(rows(kind, 0, 2000), path, data_storage_version=version)
    table.add_column(table.open(path), X, doubled, ["old"], extra_fields=FIELDS)
    dataset = lance.dataset(path)
    assert replace.can_move(dataset) == (kind not in BLOBS)
    column_bytes = 2000 * (4 * DIM + replace.COMPANION_BYTES)
    estimate = replace.estimate_bytes(dataset, X, 1)
    assert estimate == column_bytes if kind in BLOBS else estimate < column_bytes / 100
    replaced(path, ["i/700"])
    fragments = lance.dataset(path).get_fragments()
    moved = [fragment.count_rows() for fragment in fragments]
    assert moved == ([2000] if kind in BLOBS else [1999, 1])
