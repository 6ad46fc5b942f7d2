"""Ids and labels that other tools keep as bytes, numbers or text come in whole or not at all."""

import uuid

import h5py
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fct_tf import import_gallery
from fct_tf.backfill import policies
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_lines
from fct_tf.gallery import table, text_columns
from fct_tf.ingest import embedding_files

# With zeros in front and behind, and one whose bytes are letters.
UUIDS = [uuid.UUID(int=row * 2**90 + 7) for row in range(9)]
UUIDS += [uuid.UUID(bytes=b"abcdefghijklmnop"), uuid.UUID(int=2**127 + (5 << 16))]
BYTES = [one.bytes for one in UUIDS]
VECTORS = np.random.default_rng(0).normal(size=(len(UUIDS), 3)).astype(np.float32)


def tables(kind):
    return pa.table({"id": pa.array(BYTES, kind), "vector": list(VECTORS)})


def parquet(kind):
    return lambda path: pq.write_table(tables(kind), path)


def npz(values):
    return lambda path: np.savez(path, embedding=VECTORS, id=values)


def hdf5(values):
    def write(path):
        with h5py.File(path, "w") as file:
            file["embedding"], file["id"] = VECTORS, values

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("u.parquet", parquet(pa.binary(16))),
        ("u.parquet", parquet(pa.binary())),
        ("u.parquet", parquet(pa.large_binary())),
        ("u.parquet", parquet(pa.uuid())),
        ("u.parquet", parquet(pa.dictionary(pa.int32(), pa.binary()))),
        ("u.lance", lambda path: lance.write_dataset(tables(pa.uuid()), path)),
        ("u.lance", lambda path: lance.write_dataset(tables(pa.binary()), path)),
        ("u.npz", npz(np.array(BYTES, "V16"))),
        ("u.npz", npz(np.array(BYTES, "S16"))),
        ("u.npz", npz(np.frombuffer(b"".join(BYTES), np.uint8).reshape(-1, 16))),
        ("u.h5", hdf5(np.array(BYTES, "V16"))),
        ("u.h5", hdf5(np.array(BYTES, "S16"))),
    ],
)
def test_sixteen_bytes_are_a_uuid(tmp_path, run_door, name, write):
    write(tmp_path / name)
    flags = [f"--gallery={tmp_path}/g.lance", f"--embeddings={tmp_path / name}"]
    assert run_door(import_gallery, *flags, "--column=e", "--model_name=m") == 0
    rows = table.open(tmp_path / "g.lance").read(["e"])
    assert list(rows.ids) == [str(one) for one in UUIDS]
    np.testing.assert_array_equal(rows.vectors["e"], VECTORS)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(16)])
def test_text_of_sixteen_bytes(kind):
    """Bytes of any length are text where they can be; a type of 16 bytes always means UUIDs."""
    values = [b"photo_00000001.x", None, b"photo_00000002.x"]
    (found,) = text_columns.as_text(lambda: [pa.array(values, kind)], "f")
    text = [None if value is None else value.decode() for value in values]
    uuids = [None if value is None else str(uuid.UUID(bytes=value)) for value in values]
    assert found.to_pylist() == (uuids if kind == pa.binary(16) else text)


def test_what_bytes_mean_is_decided_for_the_whole_column():
    parts = [pa.array([b"abcdefghijklmnop"]), pa.array([UUIDS[-1].bytes, None])]
    found = [one for part in text_columns.as_text(lambda: parts, "f") for one in part.to_pylist()]
    assert found == [str(UUIDS[9]), str(UUIDS[-1]), None]


@pytest.mark.parametrize("width", [0, 15, 16, 20])
@pytest.mark.parametrize("store", ["parquet", "npy", "h5"])
def test_bytes_that_are_no_text_are_refused(tmp_path, store, width):
    """Names in Latin-1, also where each fills sixteen bytes, never become one name."""
    values = [name.ljust(width).encode("latin-1") for name in ("Zoe", "Zoë", "Zoé")]
    path = tmp_path / f"e.{store}"
    if store == "parquet":
        pq.write_table(pa.table({"id": pa.array(values, pa.binary()), "v": [[1.0]] * 3}), path)
    elif store == "h5":
        with h5py.File(path, "w") as file:
            file["v"], file["id"] = np.ones((3, 1)), np.array(values)
    else:
        np.save(path, np.array(values))
    with pytest.raises(InputError, match=rf"e\.{store}.*: row 1: b'Zo\\xeb *' .*text as UTF-8"):
        if store == "npy":
            embedding_files.texts(path)
        else:
            embedding_files.Embeddings(path).texts("id")


@pytest.mark.parametrize("kind", [pa.binary(), pa.binary(8), pa.binary(12)])
def test_numbers_in_binary_are_no_text(kind):
    """Small ones are UTF-8 by chance; text filled up with zeros is another text than without."""
    width = kind.byte_width if pa.types.is_fixed_size_binary(kind) else 4
    for values in ([(1).to_bytes(width, "big")], [b"Zoe".ljust(width, b"\0")]):
        with pytest.raises(InputError, match="row 0: .*neither UTF-8 text.*hexadecimal"):
            list(text_columns.as_text(lambda values=values: [pa.array(values, kind)], "f"))


@pytest.mark.parametrize(
    "values",
    [
        np.array([b"caf\xe9"], "S16"),  # Shorter than NumPy's type of sixteen bytes.
        np.array([1.5]),
        np.array([True]),
        np.array([1j]),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([(1, 2)], [("a", "i4"), ("b", "i4")]),
        np.zeros((2, 3), np.uint8),
        np.array(["half \ud800"], object),
        np.array([3.5, "a"], object),
    ],
)
def test_what_can_be_no_id(values):
    with pytest.raises(InputError, match="^f: "):
        text_columns.of_numpy(values, "f")


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array(["a", "", "é"]), ["a", None, "é"]),
        (np.array([b"a", b"", "é".encode()]), ["a", None, "é"]),
        (np.array([7, 0, 2**63], np.uint64), ["7", "0", str(2**63)]),
        (np.array([1, -1], ">i4"), ["1", "-1"]),
        (np.array(["a", b"b", None], object), ["a", "b", None]),
    ],
)
def test_texts_and_numbers(values, expected):
    assert text_columns.of_numpy(values, "f").tolist() == expected


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb", ["a", "b"]),
        (b"\xef\xbb\xbfa\r\nb\r\n\r\n", ["a", "b", ""]),
        ("a\u2028b\x85c\x0cd\x0be\x1cf\n".encode(), ["a\u2028b\x85c\x0cd\x0be\x1cf"]),
    ],
)
def test_lines_end_at_line_ends_only_and_a_mark_is_no_text(tmp_path, data, expected):
    (tmp_path / "list.txt").write_bytes(data)
    assert read_lines(tmp_path / "list.txt") == expected


def read_ids(path, names):
    return list(embedding_files.texts(path))


def read_policy(path, names):
    rows = policies.Candidates(np.array(names[::-1], object))
    return list(rows.ids[policies.order(f"file:{path}", rows, 0)])


@pytest.mark.parametrize("read", [read_ids, read_policy])
def test_every_list_of_ids_is_read_alike(tmp_path, read):
    names = ["first", "a\u2028b", "c\x85d\x0c"]
    (tmp_path / "list.txt").write_text("\r\n".join(names), encoding="utf-8-sig", newline="")
    assert read(tmp_path / "list.txt", names) == names


@pytest.mark.parametrize(
    "data, message",
    [
        (b"a\nb\nZo\xeb\n", r"list.txt: .*line 3 is not UTF-8 text \(byte 0xeb\)"),
        (b"\xef\xbb\xbfa\nZo\xeb\n", "line 2 is"),
        ("a\nb".encode("utf-16"), r"line 1 is not UTF-8 text \(UTF-16\); save"),
        (None, "list.txt: no such file"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, data, message):
    if data is not None:
        (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / "list.txt")
