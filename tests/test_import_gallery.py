"""Embeddings of other tools come in, by id, or are refused with one line."""

import hashlib
import re

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fct_tf import import_gallery
from fct_tf.errors import InputError
from fct_tf.gallery import embedding_files, table

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
    monkeypatch.setattr(import_gallery, "BLOCK_ROWS", 23)
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
    return [], "row 'clip:13' with values beyond the range of float32"


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
    with pytest.raises(InputError, match="Pass --key; there are: a, b"):
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

