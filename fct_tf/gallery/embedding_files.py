"""Embeddings in files of other tools: npy, npz, HDF5 and Parquet, with their ids and labels.

Pickled objects are never loaded: they run code. Text arrays must be saved as text.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fct_tf.errors import InputError
from fct_tf.files import one_line

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".parquet")


class Embeddings:
    """A matrix in a file, read in blocks or by row number.

    `shape` is (rows, dim), `dtype` float32 or float16 (anything but float16 becomes float32).
    """

    def __init__(self, path: str | Path, key: str = ""):
        """Opens a file of embeddings.

        Args:
          path: .npy, .npz, .h5, .hdf5 or .parquet.
          key: name of the array (npz, HDF5) or column (Parquet); by default `embeddings`,
            `embedding`, or the only one that has two dimensions.

        Raises:
          InputError: unknown or broken file, no or several matrices, no numbers, no rows.
        """
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path}: embeddings are read from {', '.join(SUFFIXES)} files")
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        with _errors(self.path):
            self._file = _open(self.path)
            self.key = self._choose(key)
            source = self._file[self.key]
            self._matrix = _ListMatrix(source) if isinstance(source, _ParquetColumn) else source
        where = f"{self.path}: {self.key!r}" if self.key else str(self.path)
        shape = tuple(self._matrix.shape)
        if len(shape) != 2:
            raise InputError(f"{where}: embeddings have two dimensions, received shape {shape}")
        if 0 in shape:
            raise InputError(f"{where}: there are no rows or no columns, received shape {shape}")
        if self._matrix.dtype.kind not in "fiu":
            raise InputError(f"{where}: no numbers but {self._matrix.dtype}")
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = "float16" if self._matrix.dtype == np.float16 else "float32"

    def _choose(self, key: str) -> str:
        names = list(self._file)
        if key or "" in names:
            if key and key not in names:
                there = ", ".join(filter(None, names)) or "one unnamed array"
                raise InputError(f"{self.path}: no array {key!r}; there are: {there}")
            return key
        for usual in ("embeddings", "embedding"):
            if usual in names:
                return usual
        matrices = [name for name in names if len(self._file[name].shape) == 2]
        if len(matrices) != 1:
            raise InputError(
                f"{self.path}: which array holds the embeddings? Pass --key; there are: "
                f"{', '.join(names) or 'none'}"
            )
        return matrices[0]

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """float [<= size, dim], in order."""
        with _errors(self.path):
            if isinstance(self._matrix, _ListMatrix):
                yield from self._matrix.blocks(size)
                return
            for start in range(0, self.shape[0], size):
                yield np.asarray(self._matrix[start : start + size])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float [n, dim] of the given row numbers, in any order. rows: int [n]."""
        with _errors(self.path):
            if len(rows) == 0:
                return np.zeros((0, self.shape[1]), self.dtype)
            # One slice where rows lie near each other: HDF5 is slow row by row.
            low, high = int(rows.min()), int(rows.max()) + 1
            if high - low <= 4 * len(rows):
                return np.asarray(self._matrix[low:high])[rows - low]
            unique, inverse = np.unique(rows, return_inverse=True)
            return np.asarray(self._matrix[unique])[inverse]

    def beside(self, names: tuple[str, ...]) -> str:
        """The first of `names` that is an array or column of the same file, else empty."""
        return next((name for name in names if name in self._file), "")

    def texts(self, name: str) -> np.ndarray:
        """object [rows]: another array or column of the file as text, None for null."""
        if name not in self._file:
            there = ", ".join(filter(None, self._file)) or "one unnamed array"
            raise InputError(f"{self.path}: no file and no array {name!r}; there are: {there}")
        with _errors(self.path):
            source = self._file[name]
            values = source.read() if isinstance(source, _ParquetColumn) else source[...]
        return _texts(values, f"{self.path}: {name!r}")


def texts(path: str | Path) -> np.ndarray:
    """object [n]: texts of a file, one per line (.txt) or an array (.npy).

    An empty line is None. Raises `InputError` for another or broken file.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        with _errors(path):
            return _texts(np.load(path, allow_pickle=False), str(path))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as lines of text ({one_line(error)})") from None
    if lines and lines[-1] == "":
        lines.pop()
    return np.array([line.removesuffix("\r") or None for line in lines], dtype=object)


def _texts(values: Any, where: str) -> np.ndarray:
    if isinstance(values, pa.ChunkedArray):
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        values = np.array(values.to_pylist(), dtype=object)
    if values.ndim != 1:
        raise InputError(f"{where}: one text per row is needed, received shape {values.shape}")
    result = []
    for value in values.tolist():
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
            raise InputError(f"{where}: texts or whole numbers are needed, received {value!r}")
        result.append(None if value is None or value == "" else str(value))
    return np.array(result, dtype=object)


@contextlib.contextmanager
def _errors(path: Path):
    """Turns what a library says of a broken file into one line."""
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        pa.ArrowException,
        zipfile.BadZipFile,
    ) as error:
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        hint = "; save it as text or numbers, pickles are not loaded" if pickled else ""
        raise InputError(f"{path}: cannot be read ({one_line(error)}){hint}") from None


def _open(path: Path) -> Any:
    """A mapping of names to arrays; npy has one, without name."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if suffix == ".npz":
        return _Npz(np.load(path, allow_pickle=False))
    if suffix == ".parquet":
        file = pq.ParquetFile(path)
        return {name: _ParquetColumn(file, name) for name in file.schema_arrow.names}
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading HDF5 needs h5py: pip install 'fct_tf[hdf5]'") from None
    file = h5py.File(path, "r")
    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node

    file.visititems(visit)
    return found


class _Npz(dict):
    """The arrays of an npz file, each decompressed once, when it is first asked for."""

    def __init__(self, file):
        super().__init__(dict.fromkeys(file.files))
        self._archive = file

    def __getitem__(self, name: str) -> np.ndarray:
        if super().__getitem__(name) is None:
            self[name] = self._archive[name]
        return super().__getitem__(name)


class _ParquetColumn:
    """A column of a Parquet file; lists count as two dimensions."""

    def __init__(self, file: pq.ParquetFile, name: str):
        self.file, self.name = file, name
        kind = file.schema_arrow.field(name).type
        is_list = (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )
        rows = file.metadata.num_rows
        self.shape: tuple[int, ...] = (rows, -1) if is_list else (rows,)
        self.dtype = np.dtype(kind.value_type.to_pandas_dtype()) if is_list else np.dtype(object)

    def read(self) -> pa.ChunkedArray:
        return self.file.read([self.name])[self.name]


class _ListMatrix:
    """A Parquet column of lists as a matrix; rows by number read the whole column once."""

    def __init__(self, column: _ParquetColumn):
        self._column = column
        self.dtype = column.dtype
        self.shape = column.shape
        if len(column.shape) == 2 and column.shape[0]:
            self.shape = (column.shape[0], next(self.blocks(1)).shape[1])
        self._whole: np.ndarray | None = None

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        start = 0
        name = self._column.name
        for batch in self._column.file.iter_batches(size, columns=[name]):
            block = _matrix(batch.column(0), name, start)
            if self.shape[1] not in (-1, block.shape[1]):
                raise ValueError(f"{name!r} has lists of different lengths")
            yield block
            start += len(batch)

    def __getitem__(self, rows) -> np.ndarray:
        if self._whole is None:
            self._whole = np.concatenate(list(self.blocks(65536)))
        return self._whole[rows]


def _matrix(array: pa.Array, name: str, start: int) -> np.ndarray:
    """A list array as float [rows, dim]. `start` is its first row's number, for messages."""
    if array.null_count:
        row = start + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{name!r} is null in row {row}")
    values = array.flatten()
    if values.null_count:
        raise ValueError(f"{name!r} has null values in rows from {start} on")
    if not pa.types.is_fixed_size_list(array.type):
        lengths = np.diff(array.offsets.to_numpy())
        if len(lengths) and (lengths != lengths[0]).any():
            raise ValueError(f"{name!r} has lists of different lengths")
    return values.to_numpy(zero_copy_only=False).reshape(len(array), -1)
