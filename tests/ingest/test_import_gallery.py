"""Embeddings of other tools come in, by id, or are refused with one line."""

import hashlib
import json
import re

import h5py
import lance
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fct_tf import import_gallery, inspect_gallery
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.ingest import embedding_files, import_files

ROWS, DIM = 101, 5
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
IDS = [f"photo {row}.jpg" for row in range(ROWS)]
LABELS = [f"c{row % 7}" if row % 5 else None for row in range(ROWS)]


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "e.npy", VECTORS)
    (tmp_path / "ids.txt").write_text("\n".join(IDS) + "\n")
    (tmp_path / "labels.txt").write_text("\n".join(label or "" for label in LABELS) + "\n")
    return tmp_path


@pytest.fixture
def imported(files, run_door):
    """Imports, with defaults for what a test does not care about."""

    def run(*flags, gallery="g.lance", embeddings="e.npy", column="embedding", model="clip"):
        return run_door(
            import_gallery,
            f"--gallery={files / gallery}",
            f"--embeddings={files / embeddings}",
            f"--column={column}",
            f"--model_name={model}",
            *flags,
        )

    return run


def flag(files, **names):
    return [f"--{key}={files / name}" for key, name in names.items()]


def check(path, ids=IDS, labels=LABELS):
    rows = table.open(path).read(["embedding"], with_labels=True)
    assert list(rows.ids) == list(ids)
    assert list(rows.labels) == list(labels)
    np.testing.assert_array_equal(rows.vectors["embedding"], VECTORS)


def test_npy_with_id_and_label_files(files, imported, capsys):
    assert imported(*flag(files, ids="ids.txt", labels="labels.txt"), "--distance=cosine") == 0
    check(files / "g.lance")
    column = table.open(files / "g.lance").columns["embedding"]
    assert column.space == hashlib.sha256(b"clip").hexdigest()
    assert (column.kind, column.distance, column.model) == ("imported", "cosine", "clip")
    assert column.created_by["door"] == "import_gallery"
    expected = hashlib.sha256((files / "e.npy").read_bytes()).hexdigest()
    assert column.created_by["settings"]["embeddings_sha256"] == expected
    assert "101 rows of 5 float32" in capsys.readouterr().out


def test_without_ids_rows_are_numbered(files, imported, capsys):
    assert imported() == 0
    assert "e.npy: no ids; its rows are numbered clip:0" in capsys.readouterr().err
    check(files / "g.lance", [f"clip:{row}" for row in range(ROWS)], [None] * ROWS)


def write_npz(path):
    labels = np.array([label or "" for label in LABELS])
    np.savez(path, embeddings=VECTORS, ids=np.array(IDS), labels=labels, other=np.eye(3))


def write_compressed(path):
    labels = np.array([label or "" for label in LABELS])
    np.savez_compressed(path, x=VECTORS, id=np.array(IDS), label=labels)


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["group/embeddings"] = VECTORS
        file["ids"] = np.array(IDS, dtype=object)
        file["labels"] = np.array([label or "" for label in LABELS], dtype=object)


def write_parquet(path, kind=None):
    kind = kind or pa.list_(pa.float32())
    lists = pa.array(list(VECTORS), kind)
    labels = pa.array(LABELS).dictionary_encode()
    pq.write_table(pa.table({"id": IDS, "label": labels, "vector": lists}), path, row_group_size=17)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("e.npz", write_npz),
        ("e.npz", write_compressed),
        ("e.h5", write_hdf5),
        ("e.hdf5", write_hdf5),
        ("e.parquet", write_parquet),
        ("e.parquet", lambda path: write_parquet(path, pa.list_(pa.float32(), DIM))),
        ("e.parquet", lambda path: write_parquet(path, pa.large_list(pa.float64()))),
    ],
)
def test_files_that_hold_ids_and_labels_themselves(files, imported, name, write, monkeypatch):
    monkeypatch.setattr(import_files, "BLOCK_ROWS", 23)
    write(files / name)
    assert imported(embeddings=name) == 0
    check(files / "g.lance")
    # And as a second column of that gallery, which has another order.
    assert imported(embeddings=name, column="second", model="other") == 0
    rows = table.open(files / "g.lance").read(["embedding", "second"])
    np.testing.assert_array_equal(rows.vectors["embedding"], rows.vectors["second"])


def test_a_column_is_added_by_id(files, imported):
    assert imported(*flag(files, ids="ids.txt", labels="labels.txt")) == 0
    order = np.random.default_rng(1).permutation(ROWS)
    np.save(files / "new.npy", np.concatenate([VECTORS[order] * 2, np.ones((3, DIM), np.float32)]))
    shuffled = [IDS[row] for row in order] + ["x", "y", "z"]
    np.save(files / "new_ids.npy", np.array(shuffled))
    arguments = flag(files, ids="new_ids.npy")
    old = table.open(files / "g.lance").columns["embedding"].space
    assert (
        imported(
            *arguments, "--compatible_with=embedding", embeddings="new.npy", column="new", model="m"
        )
        == 0
    )
    gallery = table.open(files / "g.lance")
    assert gallery.version == 2 and gallery.num_rows == ROWS
    assert gallery.columns["new"].compatible_with == (old,)
    rows = gallery.read(["embedding", "new"], with_labels=True)
    np.testing.assert_array_equal(rows.vectors["new"], rows.vectors["embedding"] * 2)
    assert list(rows.labels) == LABELS


def test_an_existing_column_is_refused_unless_overwrite(files, imported, capsys):
    arguments = flag(files, ids="ids.txt", labels="labels.txt")
    assert imported(*arguments) == 0
    assert imported(*arguments) == 2
    assert "column 'embedding' exists already; pass --overwrite" in capsys.readouterr().err
    assert imported(*arguments, "--overwrite") == 0
    assert table.open(files / "g.lance").version == 2
    check(files / "g.lance")


def test_float16_stays_float16_and_numbers_become_float32(files, imported):
    np.save(files / "half.npy", VECTORS.astype(np.float16))
    np.save(files / "bytes.npy", np.arange(ROWS * DIM, dtype=np.uint8).reshape(ROWS, DIM))
    assert imported(embeddings="half.npy", gallery="half.lance") == 0
    assert imported(embeddings="bytes.npy", gallery="bytes.lance") == 0
    assert table.open(files / "half.lance").columns["embedding"].dtype == "float16"
    column = table.open(files / "bytes.lance")
    assert column.columns["embedding"].dtype == "float32"
    assert column.read(["embedding"]).vectors["embedding"].max() == 255


def test_numbers_as_ids(files, imported):
    np.save(files / "numbers.npy", np.arange(ROWS) + 7)
    assert imported(*flag(files, ids="numbers.npy")) == 0
    check(files / "g.lance", [str(row + 7) for row in range(ROWS)], [None] * ROWS)


def no_gallery(files):
    return not any(path.name.startswith((".g.lance", "g.lance")) for path in files.iterdir())


def nan_row(files):
    bad = VECTORS.copy()
    bad[13, 2] = np.nan
    np.save(files / "e.npy", bad)
    return flag(files, ids="ids.txt"), "row 'photo 13.jpg' with NaN or infinity"


def too_large_for_float32(files):
    bad = VECTORS.astype(np.float64)
    bad[13, 2] = 1e300
    np.save(files / "e.npy", bad)
    return (
        [],
        "row 'clip:13' with NaN or infinity once stored as float32: values lie beyond its range",
    )


def repeated_id(files):
    (files / "ids.txt").write_text("\n".join([*IDS[:-1], IDS[3]]))
    return flag(files, ids="ids.txt"), "ids.txt: id 'photo 3.jpg' occurs more than once"


def empty_id(files):
    (files / "ids.txt").write_text("\n".join([*IDS[:50], "", *IDS[51:]]))
    return flag(files, ids="ids.txt"), "ids.txt: row 50 has no id"


def short_ids(files):
    (files / "ids.txt").write_text("\n".join(IDS[:-1]))
    return flag(files, ids="ids.txt"), "100 entries for 101 rows"


def short_labels(files):
    (files / "labels.txt").write_text("a\n")
    return flag(files, labels="labels.txt"), "1 entries for 101 rows"


def missing_ids(files):
    return flag(files, ids="nothing.txt"), "no file and no array"


def missing_file(files):
    (files / "e.npy").unlink()
    return [], "e.npy: no such file"


def truncated(files):
    data = (files / "e.npy").read_bytes()
    (files / "e.npy").write_bytes(data[: len(data) // 2])
    return [], "e.npy: cannot be read"


def one_dimension(files):
    np.save(files / "e.npy", VECTORS[:, 0])
    return [], "two dimensions, received shape \\(101,\\)"


def text_instead_of_numbers(files):
    np.save(files / "e.npy", np.array([["a", "b"]]))
    return [], "no numbers but"


def pickled(files):
    np.save(files / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return [], "pickles are not loaded"


def version_in_path(files):
    return ["--gallery=" + str(files / "g.lance@3")], "leave the part after '@' out"


def bad_column_name(files):
    return ["--column=label"], "'label': not a possible column name"


def bad_compatible(files):
    return ["--compatible_with=old"], "--compatible_with=old: neither a fingerprint"


def no_rows(files):
    np.save(files / "e.npy", np.zeros((0, 3), np.float32))
    return [], "no rows"


def no_columns(files):
    np.save(files / "e.npy", np.zeros((3, 0), np.float32))
    return [], "no rows or no columns"


@pytest.mark.parametrize(
    "case",
    [
        nan_row, too_large_for_float32, repeated_id, empty_id, short_ids, short_labels,
        missing_ids, missing_file, truncated, one_dimension, text_instead_of_numbers, pickled,
        version_in_path, bad_column_name, bad_compatible, no_rows, no_columns,
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(files, imported, capsys, case):
    flags, message = case(files)
    assert imported(*flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert no_gallery(files)


def test_gallery_rows_without_embedding_are_named(files, imported, capsys):
    assert imported(*flag(files, ids="ids.txt")) == 0
    assert imported(column="new") == 2
    error = capsys.readouterr().err
    assert "no embedding for row 'photo 0.jpg' and 100 more rows" in error and "--ids" in error
    assert table.open(files / "g.lance").version == 1


def test_labels_that_contradict_the_gallery_are_refused(files, imported, capsys):
    assert imported(*flag(files, ids="ids.txt", labels="labels.txt")) == 0
    (files / "labels.txt").write_text("\n".join(["other"] * ROWS))
    assert imported(*flag(files, ids="ids.txt", labels="labels.txt"), column="new") == 2
    assert "row 'photo 0.jpg' has label None" in capsys.readouterr().err


def test_which_array_is_meant_must_be_clear(files, tmp_path):
    np.savez(tmp_path / "two.npz", a=np.eye(3), b=np.eye(4))
    with pytest.raises(InputError, match="Pass `key`; there are: a, b"):
        embedding_files.Embeddings(tmp_path / "two.npz")
    assert embedding_files.Embeddings(tmp_path / "two.npz", "b").shape == (4, 4)
    with pytest.raises(InputError, match="no array 'c'; there are: a, b"):
        embedding_files.Embeddings(tmp_path / "two.npz", "c")
    with pytest.raises(InputError, match="no array 'c'"):
        embedding_files.Embeddings(files / "e.npy", "c")
    (tmp_path / "e.csv").write_text("1,2")
    with pytest.raises(InputError, match="embeddings are read from .npy"):
        embedding_files.Embeddings(tmp_path / "e.csv")


def test_uneven_and_null_lists_are_refused(tmp_path):
    for name, lists, message in (
        ("uneven", [[1.0, 2.0], [3.0, 4.0], [5.0]], "different lengths"),
        ("cancelling", [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], "different lengths"),
        ("null", [[1.0, 2.0], None], "is null in row 1"),
        ("inside", [[1.0, 2.0], [3.0, None]], "null values"),
    ):
        pq.write_table(pa.table({"v": lists}), tmp_path / f"{name}.parquet")
        with pytest.raises(InputError, match=message):
            list(embedding_files.Embeddings(tmp_path / f"{name}.parquet").blocks(10))
    for name in ("e.npz", "e.h5", "e.parquet"):
        (tmp_path / name).write_bytes(b"not what the name says")
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            embedding_files.Embeddings(tmp_path / name)


@pytest.mark.parametrize("write", [write_npz, write_hdf5, write_parquet])
def test_rows_by_number(tmp_path, write):
    name = {write_npz: "e.npz", write_hdf5: "e.h5", write_parquet: "e.parquet"}[write]
    write(tmp_path / name)
    source = embedding_files.Embeddings(tmp_path / name)
    for rows in ([3, 1, 2], [100, 0], [7, 7, 50], []):
        rows = np.array(rows, np.int64)
        np.testing.assert_array_equal(source.take(rows), VECTORS[rows])
    blocks = list(source.blocks(17))
    assert max(len(block) for block in blocks) <= 17
    np.testing.assert_array_equal(np.concatenate(blocks), VECTORS)


@pytest.mark.parametrize("write", [write_npz, write_hdf5, write_parquet])
def test_what_the_file_offers_wins_over_a_file_of_that_name(
    files, imported, write, monkeypatch, capsys
):
    suffix = {write_npz: "npz", write_hdf5: "h5", write_parquet: "parquet"}[write]
    name = f"e.{suffix}"
    ids, labels = ("id", "label") if write is write_parquet else ("ids", "labels")
    write(files / name)
    monkeypatch.chdir(files)
    for other in (ids, labels):
        (files / other).write_text("\n".join(f"other {row}" for row in range(ROWS)))
    assert imported(embeddings=name) == 0
    check(files / "g.lance")
    named = (f"--ids={ids}", f"--labels={labels}")
    assert imported(*named, embeddings=name, gallery="named.lance") == 0
    check(files / "named.lance")
    assert f"the file of that name is ./{ids}" in capsys.readouterr().err
    assert imported(f"--ids=./{ids}", embeddings=name, gallery="file.lance") == 0
    check(files / "file.lance", [f"other {row}" for row in range(ROWS)])


ODD = {
    "zeros": [0, 0, 0, 0, 0],
    "denormal": [1e-40, 0, 0, 0, 0],
    "short": [1e-20] * 5,
    "long": [1e30, 0, 0, 0, 0],
}


@pytest.mark.parametrize("row", ODD.values(), ids=ODD.keys())
def test_rows_without_direction(files, imported, row, run_door, capsys):
    vectors = VECTORS.copy()
    vectors[[3, 50]] = row
    np.save(files / "e.npy", vectors)
    assert imported("--distance=cosine") == 2
    error = capsys.readouterr().err
    assert "e.npy: column 'embedding': 2 rows with no direction" in error
    assert "'clip:3', 'clip:50'; cosine" in error and "--zero_vectors=keep" in error
    assert no_gallery(files)
    if row == ODD["long"]:  # Squared distances are beyond float32.
        assert imported("--distance=l2", gallery="l2.lance") == 2
        assert "'clip:3' and 1 more rows longer than 9e18" in capsys.readouterr().err
    else:
        assert imported("--distance=l2", gallery="l2.lance") == 0
        assert not table.verify(table.open(files / "l2.lance"))
    assert imported("--distance=cosine", "--zero_vectors=keep") == 0
    assert "2 rows with no direction" in capsys.readouterr().err
    rows = table.open(files / "g.lance").read(["embedding"])
    np.testing.assert_array_equal(rows.vectors["embedding"], vectors)
    gallery = f"--gallery={files / 'g.lance'}"
    assert run_door(inspect_gallery, gallery, "--verify", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["problems"] == [] and "kept by choice: 'clip:3', 'clip:50'" in record["notes"][0]


def test_rows_without_direction_that_do_not_come_in_do_not_matter(files, imported):
    assert imported(*flag(files, ids="ids.txt")) == 0
    more = np.concatenate([VECTORS, np.zeros((1, DIM), np.float32)])
    np.save(files / "more.npy", more)
    (files / "more.txt").write_text("\n".join([*IDS, "x"]))
    flags = [*flag(files, ids="more.txt"), "--distance=cosine"]
    assert imported(*flags, embeddings="more.npy", column="new") == 0


def as_bfloat16(files):
    np.save(files / "e.npy", VECTORS.astype(ml_dtypes.bfloat16))
    return r"2 bytes whose type NumPy does not keep \(\|V2\), as of bfloat16; save .*astype\('float"


def structured(files):
    np.save(files / "e.npy", np.zeros(ROWS, [("x", "f4"), ("y", "f4")]))
    return "structured array with the fields x, y; save one matrix"


def true_or_false(files):
    np.save(files / "e.npy", VECTORS > 0)
    return r"true and false; save them with .astype\('float32'\)"


def complex_numbers(files):
    np.save(files / "e.npy", VECTORS.astype(np.complex64))
    return r"complex numbers \(complex64\)"


def three_dimensions(files):
    np.save(files / "e.npy", VECTORS[:, :, None])
    return r"two dimensions, received shape \(101, 5, 1\)"


def empty_folder(files):
    (files / "e.npy").unlink()
    (files / "e.npy").mkdir()
    return "e.npy: a folder without Parquet files"


def database(files):
    (files / "e.npy").unlink()
    lance.write_dataset(pa.table({"vector": list(VECTORS)}), files / "e.npy" / "photos.lance")
    return r"a folder of Lance tables \(photos.lance\); name one"


def too_large_for_float16(files):
    gallery = table.Column("embedding", DIM, "0" * 64, dtype="float16")
    with pytest.raises(InputError, match=r"row 'a' .* once stored as float16: .*\(\+-65504\)"):
        table.create(files / "h.lance", [table.Rows(["a"], None, {"embedding": [[7e4] * DIM]})],
                     [gallery])  # fmt: skip
    (files / "e.npy").unlink()
    return "no such file"


@pytest.mark.parametrize(
    "case",
    [
        as_bfloat16, structured, true_or_false, complex_numbers, three_dimensions, empty_folder,
        database, too_large_for_float16,
    ],
)  # fmt: skip
def test_what_is_no_matrix_of_numbers_is_told_in_plain_words(files, imported, capsys, case):
    message = case(files)
    assert imported() == 2
    assert re.search(message, capsys.readouterr().err)
    assert no_gallery(files)


@pytest.mark.parametrize("dtype", ["int8", "uint16", ">f4", "<f8", ">f2", "longdouble"])
def test_all_real_numbers_come_in(files, imported, dtype):
    np.save(files / "e.npy", (VECTORS * 10).astype(dtype))
    assert imported() == 0
    rows = table.open(files / "g.lance").read(["embedding"])
    expected = (VECTORS * 10).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(rows.vectors["embedding"], expected)


LISTS = {
    "ragged": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0]]],
    "longer": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0, 9.0]]],
    "null first": [[None, [1.0, 2.0]], [[3.0, 4.0]]],
    "empty first": [[[], [1.0, 2.0]], [[3.0, 4.0]]],
    "null list": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], None]],
    "null inside": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, None]]],
}


@pytest.mark.parametrize("parts", LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize("where", ["file", "folder", "lance"])
def test_uneven_lists_name_file_column_and_row(tmp_path, parts, where):
    kind = pa.list_(pa.float32())
    tables = [pa.table({"v": pa.array(part, kind)}) for part in parts]
    path, row = tmp_path / "e.parquet", 3 if len(parts[1]) == 2 else 0
    place = f"row {row}"
    if where == "file":
        pq.write_table(pa.concat_tables(tables), path)
    elif where == "folder":
        path.mkdir()
        for number, one in enumerate(tables):
            pq.write_table(one, path / f"part-{number}.parquet")
        place = "row 1 of part-1.parquet" if row else "row 0 of part-0.parquet"
    else:
        path = tmp_path / "e.lance"
        lance.write_dataset(pa.concat_tables(tables), path)
    with pytest.raises(InputError, match=f"{path.name}: 'v' .* in {place}; fill it with 2 n"):
        list(embedding_files.Embeddings(path).blocks(10))


def write_folder(path):
    """Parts in folders of Hive's, with what Spark and others leave beside them."""
    for number, rows in enumerate(np.array_split(np.arange(ROWS), 5)):
        part = path / f"split=0{number}" / f"part-{number}.snappy.parquet"
        part.parent.mkdir(parents=True)
        labels = pa.array([LABELS[row] for row in rows], pa.string())
        if number == 1:
            labels = labels.dictionary_encode()
        vectors = pa.array(list(VECTORS[rows]), pa.list_(pa.float32()))
        ids = [IDS[row] for row in rows]
        pq.write_table(pa.table({"id": ids, "label": labels, "vector": vectors}), part)
    for name in ("_SUCCESS", "_metadata", ".part-0.parquet.crc", "split=00/.hidden.parquet"):
        (path / name).write_bytes(b"no rows")
    (path / "README.md").write_text("About")


def test_a_folder_of_parquet_files(files, imported, monkeypatch, capsys):
    monkeypatch.setattr(import_files, "BLOCK_ROWS", 7)
    write_folder(files / "parts")
    assert imported(embeddings="parts") == 0
    check(files / "g.lance")
    assert "README.md: left out of" in capsys.readouterr().err
    # The names of Hive's folders are a column, of text as it is written.
    assert imported("--labels=split", embeddings="parts", gallery="split.lance") == 0
    groups = np.repeat([f"0{number}" for number in range(5)], [21, 20, 20, 20, 20])
    check(files / "split.lance", labels=groups)
    assert imported(embeddings="parts", column="second", model="other") == 0
    rows = table.open(files / "g.lance").read(["embedding", "second"])
    np.testing.assert_array_equal(rows.vectors["embedding"], rows.vectors["second"])


def other_type(part):
    return part.set_column(2, "vector", part["vector"].cast(pa.list_(pa.float64())))


def repeated(part):
    return part.set_column(0, "id", pa.array([*part["id"].to_pylist()[:-1], IDS[22]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_type, "is list<element: double> from row 0 of split=03/part-3.*same types"),
        (lambda part: part.drop(["label"]), "part-3.snappy.parquet: has no column 'label'"),
        (repeated, r"once \(row 1 of split=01/part-1.*parquet and row 19 of split=03/part-3"),
        (None, "part-3.snappy.parquet: cannot be read"),
    ],
)
def test_parts_that_do_not_belong_together(files, imported, capsys, change, message):
    write_folder(files / "parts")
    path = files / "parts" / "split=03" / "part-3.snappy.parquet"
    if change is None:
        path.write_bytes(b"broken")
    else:
        changed = change(pq.ParquetFile(path).read())
        pq.write_table(changed, path)
    assert imported(embeddings="parts") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert no_gallery(files)


COMPOSED, DECOMPOSED = "caf\u00e9.jpg", "cafe\u0301.jpg"


def test_ids_that_only_look_the_same(files, imported, capsys):
    np.save(files / "e.npy", VECTORS[:2])
    (files / "ids.txt").write_text(f"{COMPOSED}\n{DECOMPOSED}\n", encoding="utf-8")
    assert imported(*flag(files, ids="ids.txt")) == 0
    shown = "'caf<U+00E9>.jpg' and 'cafe<U+0301>.jpg' look the same and are two rows"
    assert shown in capsys.readouterr().err
    (files / "ids.txt").write_text(f"{COMPOSED}\nb\n", encoding="utf-8")
    assert imported(*flag(files, ids="ids.txt"), column="new") == 2
    shown = "is written 'cafe<U+0301>.jpg' and not 'caf<U+00E9>.jpg'"
    assert shown in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"it looks like .* is written 'caf<U\+200B><U\+00E9>.jpg'"
    ):
        table.open(files / "g.lance").take(["caf\u200b\u00e9.jpg"], [])
