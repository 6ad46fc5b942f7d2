"""Embeddings of other tools, with their ids and labels: npy, npz, HDF5, Parquet and Lance.

Pickled objects are never loaded: they run code. Text arrays must be saved as text.
"""

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line, read_lines
from fct_tf.gallery import text_columns
from fct_tf.gallery.reader import split_uri
from fct_tf.ingest import arrow_tables

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".parquet")
# Names under which embeddings are looked for; `vector` is LanceDB's.
USUAL = ("embeddings", "embedding", "vector")
TEXT_ROWS = 65536


class Embeddings:
    """A matrix in a file or table, read in blocks or by row number.

    `shape` is (rows, dim), `dtype` float32 or float16 (anything but float16 becomes float32).
    """

    def __init__(self, path: str | Path, key: str = ""):
        """Opens embeddings.

        Args:
          path: .npy, .npz, .h5, .hdf5 or .parquet; a folder of Parquet files; a Lance or LanceDB
            table (a .lance directory), with a version or tag behind `@` if need be.
          key: name of the array (npz, HDF5) or column (Parquet, Lance); by default one of
            `USUAL`, or the only one that has two dimensions.

        Raises:
          InputError: unknown or broken file, no or several matrices, no numbers, no rows.
        """
        self.path = str(path)
        with _errors(self.path):
            self._table = _table(self.path)
            self._arrays = {} if self._table else _arrays(Path(path))
            self.key = self._choose(key)
            self._matrix: Any = (
                arrow_tables.ListColumn(self._table, self.key)
                if self._table
                else self._arrays[self.key]
            )
        check_matrix(self._matrix, f"{self.path}: {self.key!r}" if self.key else self.path)
        shape = self._matrix.shape
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = "float16" if self._matrix.dtype == np.float16 else "float32"

    @property
    def names(self) -> list[str]:
        """The arrays or columns that there are; of a .npy file one without name."""
        return list(self._table.types if self._table else self._arrays)

    def _choose(self, key: str) -> str:
        names = self.names
        if key or "" in names:
            if key and key not in names:
                raise InputError(f"{self.path}: no array {key!r}; there are: {self._listed()}")
            return key
        if self._table:
            types = self._table.types
            matrices = [name for name in names if arrow_tables.value_type(types[name])]
        else:
            matrices = [name for name in names if len(self._arrays[name].shape or ()) == 2]
        usual = [name for name in USUAL if name in (matrices or names)]
        if usual or len(matrices) == 1:
            return (usual or matrices)[0]
        raise InputError(
            f"{self.path}: which array holds the embeddings? Pass ``key``; there are: "
            f"{self._listed()}"
        )

    def _listed(self) -> str:
        return ", ".join(filter(None, self.names)) or (
            "one unnamed array" if self.names else "none"
        )

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """float [<= size, dim], in order."""
        with _errors(self.path):
            if self._table:
                yield from self._matrix.blocks(size)
                return
            for start in range(0, self.shape[0], size):
                yield np.asarray(self._matrix[start : start + size])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float [n, dim] of the given row numbers, in any order. rows: int [n]."""
        with _errors(self.path):
            if len(rows) == 0:
                return np.zeros((0, self.shape[1]), self.dtype)
            if self._table:
                return self._matrix.take(rows)
            # One slice where rows lie near each other: HDF5 is slow row by row.
            low, high = int(rows.min()), int(rows.max()) + 1
            if high - low <= 4 * len(rows):
                return np.asarray(self._matrix[low:high])[rows - low]
            unique, inverse = np.unique(rows, return_inverse=True)
            return np.asarray(self._matrix[unique])[inverse]

    def place(self, row: int) -> str:
        """How messages name a row."""
        return self._table.place(row) if self._table else text_columns.place_of(row)

    def beside(self, names: tuple[str, ...]) -> str:
        """The first of `names` that is an array or column of the same file, else empty."""
        return next((name for name in names if name in self.names), "")

    def texts(self, name: str) -> np.ndarray:
        """object [rows]: another array or column of the file as text, None for null or empty."""
        if name not in self.names:
            raise InputError(
                f"{self.path}: no file and no array {name!r}; there are: {self._listed()}"
            )
        where = f"{self.path}: {name!r}"
        with _errors(self.path):
            if self._table is None:
                return text_columns.of_numpy(self._arrays[name][...], where)
            table = self._table
            return text_columns.objects(
                text_columns.as_text(lambda: table.arrays(name, TEXT_ROWS), where, table.place)
            )

    def fingerprint(self) -> dict[str, str | int]:
        """What the content is known by in `created_by`: a SHA-256, or the version of a table."""
        if isinstance(self._table, arrow_tables.Lance):
            return {"embeddings_version": self._table.dataset.version}
        paths = self._table.paths if self._table else [self.path]
        sums = []
        for path in paths:
            with open(path, "rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
        if len(sums) > 1:
            sums = [hashlib.sha256("\n".join(sums).encode()).hexdigest()]
        return {"embeddings_sha256": sums[0]}


def texts(path: str | Path) -> np.ndarray:
    """object [n]: texts of a file, one per line (.txt) or an array (.npy).

    An empty line is None. Raises `InputError` for another or broken file.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        with _errors(str(path)):
            return text_columns.of_numpy(np.load(path, allow_pickle=False), str(path))
    return np.array([line or None for line in read_lines(path)], dtype=object)


@contextlib.contextmanager
def _errors(path: str):
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


def _table(path: str) -> arrow_tables.Parquet | arrow_tables.Lance | None:
    """The table at a path; None for a file of arrays. `InputError` for nothing that is known."""
    place, local = split_uri(path)[0], Path(path)
    if place.endswith(".lance") or (Path(place) / "_versions").is_dir():
        return arrow_tables.Lance(path)
    if local.is_dir():
        tables = sorted(one.name for one in local.glob("*.lance"))
        if tables:
            raise InputError(f"{path}: a folder of Lance tables ({', '.join(tables)}); name one")
        return arrow_tables.Parquet(local)
    if local.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: embeddings are read from {', '.join(SUFFIXES)} files, folders of Parquet "
            "files and .lance tables"
        )
    if not local.is_file():
        raise InputError(f"{path}: no such file")
    return arrow_tables.Parquet(local) if local.suffix.lower() == ".parquet" else None


def _arrays(path: Path) -> Any:
    """A mapping of names to arrays; npy has one, without name."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if suffix == ".npz":
        return _Npz(np.load(path, allow_pickle=False))
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading HDF5 needs h5py: pip install 'fct_tf[hdf5]'") from None
    file = h5py.File(path, "r")
    datasets: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            datasets[name] = node

    file.visititems(visit)
    return datasets


class _Npz(dict):
    """The arrays of an npz file, each decompressed once, when it is first asked for."""

    def __init__(self, file):
        super().__init__(dict.fromkeys(file.files))
        self._archive = file

    def __getitem__(self, name: str) -> np.ndarray:
        if super().__getitem__(name) is None:
            self[name] = self._archive[name]
        return super().__getitem__(name)


def check_matrix(matrix: Any, where: str) -> None:
    """Refuses what is no matrix of real numbers with rows; `matrix` has `shape` and `dtype`."""
    shape = tuple(matrix.shape)
    _check_numbers(matrix.dtype, where)
    if len(shape) != 2:
        raise InputError(
            f"{where}: embeddings have two dimensions, received shape {shape}; save them as "
            "one row of numbers each"
        )
    if 0 in shape:
        raise InputError(f"{where}: there are no rows or no columns, received shape {shape}")


def _check_numbers(dtype: np.dtype, where: str) -> None:
    """Refuses what is no matrix of real numbers, saying what to do."""
    if dtype.kind in "fiu":
        return
    message = f"no numbers but {dtype}; save one matrix of numbers"
    if dtype.names:
        message = f"a structured array with the fields {', '.join(dtype.names)}; save one matrix"
    elif dtype.kind == "V":
        message = (
            f"numbers of {dtype.itemsize} bytes whose type NumPy does not keep ({dtype}), as of "
            "bfloat16; save them again with .astype('float32')"
        )
    elif dtype.kind == "b":
        message = "true and false; save them with .astype('float32') if they are the embeddings"
    elif dtype.kind == "c":
        message = f"complex numbers ({dtype}); save real ones, such as both parts beside each other"
    raise InputError(f"{where}: {message}")
