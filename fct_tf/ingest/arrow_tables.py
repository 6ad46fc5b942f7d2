"""Tables of other tools, column by column in blocks: Parquet files, folders of them, and Lance.

Both classes have `path`, `num_rows`, `types` (column -> Arrow type), `arrays(name, size)`,
`take(name, rows)` and `place(row)`, which names a row in messages.
"""

import bisect
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.gallery.reader import IO_BUFFER_BYTES, open_dataset

ENDINGS = (".parquet", ".parq", ".pq")


class Parquet:
    """A Parquet file, or a folder of them in the order of their names.

    Folders named `key=value` (Hive's) give their rows a column `key` of text. Hidden files and
    those whose names begin with `_` are left out, as Spark and Arrow do.
    """

    def __init__(self, path: Path):
        self.path = str(path)
        paths = _parts(path) if path.is_dir() else [str(path)]
        self.paths = paths
        self._keys = _hive_keys(path, paths) if path.is_dir() else [{}]
        counts = []
        for one in paths:
            with _opened(one) as file:
                counts.append(file.metadata.num_rows)
                if one == paths[0]:
                    self.types = {field.name: field.type for field in file.schema_arrow}
        self.types |= dict.fromkeys(self._keys[0], pa.string())
        self._starts = np.cumsum([0, *counts]).tolist()
        self.num_rows = self._starts[-1]

    def arrays(self, name: str, size: int) -> Iterator[pa.Array]:
        """The column's values, in order, in arrays of at most `size` rows."""
        for path, keys in zip(self.paths, self._keys, strict=True):
            with _opened(path) as file:
                rows = file.metadata.num_rows
                if name in keys:
                    value = pa.scalar(keys[name], pa.string())
                    for start in range(0, rows, size):
                        yield pa.repeat(value, min(size, rows - start))
                    continue
                if name not in file.schema_arrow.names:
                    raise InputError(
                        f"{path}: has no column {name!r}, which {self.paths[0]} has; all parts "
                        "of a table need the same columns"
                    )
                for batch in file.iter_batches(size, columns=[name]):
                    yield batch.column(0)

    def take(self, name: str, rows: np.ndarray) -> pa.Array | None:
        """None: a Parquet file is not read by row number."""
        return None

    def place(self, row: int) -> str:
        if len(self.paths) == 1:
            return f"row {row}"
        part = bisect.bisect_right(self._starts, row) - 1
        return f"row {row - self._starts[part]} of {os.path.relpath(self.paths[part], self.path)}"


@contextlib.contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """One at a time: a table may have more parts than a process may open files."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from None


class Lance:
    """A Lance or LanceDB table at a version: `photos.lance`, `photos.lance@7`."""

    def __init__(self, uri: str):
        self.path, self.dataset = open_dataset(uri)
        self.types = {field.name: field.type for field in self.dataset.schema}
        self.num_rows = self.dataset.count_rows()

    def arrays(self, name: str, size: int) -> Iterator[pa.Array]:
        """The column's values, in order, in arrays of at most `size` rows."""
        for batch in self.batches([name], size):
            yield batch.column(0)

    def batches(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Several columns, in order, in batches of at most `size` rows."""
        try:
            yield from self.dataset.to_batches(
                columns=list(dict.fromkeys(names)), batch_size=size, io_buffer_size=IO_BUFFER_BYTES
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: cannot be read ({one_line(error)})") from None

    def take(self, name: str, rows: np.ndarray) -> pa.Array | None:
        """The values of rows by number, which must rise."""
        return self.dataset.take(rows.tolist(), columns=[name])[name].combine_chunks()

    def place(self, row: int) -> str:
        return f"row {row}"


class ListColumn:
    """A column of lists of one length as a matrix: `shape` [rows, dim] and `dtype`."""

    def __init__(self, table: Parquet | Lance, name: str):
        self._table, self._name = table, name
        self._where = f"{table.path}: {name!r}"
        self._value_type = value_type(table.types[name])
        if self._value_type is None:
            raise InputError(
                f"{self._where}: embeddings are lists of numbers, received {table.types[name]}"
            )
        self.dtype = _dtype(self._value_type, self._where)
        self.shape = (table.num_rows, self._dim())
        self._whole: np.ndarray | None = None

    def _dim(self) -> int:
        """How long the first list is that has something in it; 0 if none has."""
        for array in self._table.arrays(self._name, 1024):
            lengths = pc.list_value_length(_storage(array)).to_numpy(zero_copy_only=False)
            if (lengths > 0).any():
                return int(lengths[lengths > 0][0])
        return 0

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Blocks [<= size, dim], in order; refuses null and rows of another length."""
        start = 0
        for array in self._table.arrays(self._name, size):
            yield self._matrix(array, np.arange(start, start + len(array)))
            start += len(array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """[n, dim] of rows by number, in any order. Parquet is then held in memory as a whole."""
        unique, inverse = np.unique(rows, return_inverse=True)
        if self._whole is None:
            array = self._table.take(self._name, unique)
            if array is not None:
                return self._matrix(array, unique)[inverse]
            self._whole = np.concatenate(list(self.blocks(65536)))
        return self._whole[rows]

    def _matrix(self, array: pa.Array, rows: np.ndarray) -> np.ndarray:
        array = _storage(array)
        dim = self.shape[1]

        def refuse(row: int, what: str):
            place = self._table.place(int(rows[row]))
            return InputError(
                f"{self._where} {what} in {place}; fill it with {dim} numbers or leave the row out"
            )

        if value_type(array.type) != self._value_type:
            place = self._table.place(int(rows[0])) if len(rows) else "a part"
            raise InputError(
                f"{self._where} is {array.type} from {place} on, and lists of {self._value_type} "
                "before; all parts of a table need the same types"
            )
        if array.null_count:
            raise refuse(_first(array.is_null()), "is null")
        lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        if (lengths != dim).any():
            row = int(np.flatnonzero(lengths != dim)[0])
            raise refuse(row, f"has lists of different lengths: {dim}, and {lengths[row]}")
        values = array.flatten()
        if values.null_count:
            raise refuse(_first(values.is_null()) // dim, "has null values")
        return values.to_numpy(zero_copy_only=False).reshape(len(array), dim)


def value_type(kind: pa.DataType) -> pa.DataType | None:
    """Of the values of a list type; None where it is none."""
    kind = getattr(kind, "storage_type", kind)  # Such as Arrow's fixed-shape tensors.
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(test(kind) for test in tests) else None


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _dtype(kind: pa.DataType, where: str) -> np.dtype:
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return np.dtype(kind.to_pandas_dtype())
    raise InputError(
        f"{where}: embeddings are lists of numbers, received lists of {kind}; store float32"
    )


def _first(mask: pa.Array) -> int:
    return int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0])


def _parts(folder: Path) -> list[str]:
    """The Parquet files of a folder and the folders in it, by name."""
    paths = []
    for one in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in one.relative_to(folder).parts)
        if one.is_file() and not hidden:
            paths.append(one)
    named = [one for one in paths if one.suffix.lower() in ENDINGS]
    if named and len(named) < len(paths):
        other = next(one for one in paths if one not in named)
        logging.warning(
            "%s: left out of %s, whose Parquet files end in .parquet, with %d other files",
            other.relative_to(folder), folder, len(paths) - len(named) - 1,
        )  # fmt: skip
    if not paths:
        raise InputError(f"{folder}: a folder without Parquet files")
    return [str(one) for one in named or paths]


def _hive_keys(folder: Path, paths: list[str]) -> list[dict]:
    """The values in the names of the folders that each file lies in: key -> text or None."""
    names = [
        {part.partition("=")[0]: None for part in Path(path).relative_to(folder).parts[:-1]
         if "=" in part}
        for path in paths
    ]  # fmt: skip
    for path, keys in zip(paths, names, strict=True):
        if keys != names[0]:
            raise InputError(
                f"{path}: lies in folders {list(keys)}, {paths[0]} in {list(names[0])}; all parts "
                "of a table need the same columns"
            )
    schema = pa.schema([(key, pa.string()) for key in names[0]])
    partitioning = ds.partitioning(schema, flavor="hive")
    relative = (os.path.relpath(path, folder) for path in paths)
    return [ds.get_partition_keys(partitioning.parse(path)) for path in relative]
