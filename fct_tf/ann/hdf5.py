"""The HDF5 files of ann-benchmarks (https://github.com/erikbern/ann-benchmarks).

A data set has the datasets `train` [n, d], `test` [q, d], `neighbors` int [q, 100] and
`distances` [q, 100], and the attribute `distance`: `euclidean` (not squared) or `angular`
(1 - cosine). A result has `neighbors` and `distances` [q, count] and `times` [q], -1 and infinity
where a neighbour is missing, attributes that say what ran, and lies at
`results/DATA/COUNT/ALGORITHM/SETTINGS.hdf5`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fct_tf.ann.benchmark_data import Data, searchable
from fct_tf.common.errors import InputError
from fct_tf.common.files import make_parent, one_line, staging_dir
from fct_tf.gallery.columns import check_finite

# ann-benchmarks' distances by their names here.
DISTANCES = {"l2": "euclidean", "cosine": "angular"}
_INSTALL = "reading and writing HDF5 needs h5py: pip install 'fct_tf[ann]'"


def read(path: str | os.PathLike) -> Data:
    """A data set; `name` is that of the file.

    The stored distances are not read: they follow from the rows.

    Raises:
      InputError: no such file, not HDF5, datasets that are missing or do not fit one another,
        another distance than euclidean or angular, NaN, infinity or text.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: {_INSTALL}") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            distance = _distance(path, file.attrs)
            rows, queries = (_vectors(path, file, name) for name in ("train", "test"))
            if rows.shape[1] != queries.shape[1]:
                raise InputError(
                    f"{path}: train has {rows.shape[1]} dimensions, test {queries.shape[1]}"
                )
            neighbors = _neighbors(path, file, len(queries), len(rows))
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({one_line(error)})") from None
    return searchable(Data(Path(path).stem, distance, rows, queries, neighbors))


def write(path: str | os.PathLike, data: Data, distances: np.ndarray) -> None:
    """Writes a data set in the published format.

    Args:
      distances: float [q, m] of `data.neighbors`, as this project has them: squared, or 1 - cosine.
    """
    assert data.neighbors is not None
    content = {
        "train": data.rows,
        "test": data.queries,
        "neighbors": data.neighbors.astype(np.int32),
        "distances": _published(distances, data.distance),
    }
    about = {
        "type": "dense",
        "distance": DISTANCES[data.distance],
        "dimension": data.rows.shape[1],
        "point_type": "float",
    }
    _write(path, content, about)


def write_result(
    directory: str | os.PathLike,
    *,
    data: str,
    distance: str,
    algorithm: str,
    settings: Mapping[str, Any],
    neighbors: np.ndarray,
    distances: np.ndarray,
    times: np.ndarray,
    build_s: float,
    best_search_s: float,
    index_bytes: int,
    rounds: int,
    batch: bool,
) -> Path:
    """Writes one result where ann-benchmarks looks for it, below `directory`.

    Args:
      data: name of the data set.
      algorithm: the library; its line in the plot.
      settings: of build and search; they name the file.
      neighbors: int [q, k], -1 where there is none.
      distances: float [q, k], true distances of these: squared, or 1 - cosine.
      times: float [q], seconds of each query; in a batch, their mean.
      best_search_s: mean seconds of a query in the best round.
      rounds: how many there were.
      batch: whether all queries were searched in one call.

    Returns:
      The path of the file.
    """
    count = neighbors.shape[1]
    joined = "_".join(f"{name}_{value}" for name, value in settings.items()) or "default"
    name = re.sub(r"\W+", "_", joined).strip("_")
    folder = f"{algorithm}-batch" if batch else algorithm
    path = Path(directory) / "results" / data / str(count) / folder / f"{name}.hdf5"
    content = {
        "neighbors": neighbors.astype(np.int32),
        "distances": _published(distances, distance),
        "times": np.asarray(times, np.float32),
    }
    about = {
        "algo": folder,
        "batch_mode": batch,
        "best_search_time": best_search_s,
        "build_time": build_s,
        "candidates": float((neighbors >= 0).sum(axis=1).mean()),
        "count": count,
        "dataset": data,
        "distance": DISTANCES[distance],
        "expect_extra": False,
        "index_size": index_bytes / 1024,  # In kB there.
        "name": f"{algorithm}({', '.join(f'{key}={value}' for key, value in settings.items())})",
        "run_count": rounds,
    }
    _write(path, content, about)
    return path


def _published(distances: np.ndarray, distance: str) -> np.ndarray:
    """float32 [q, k]: euclidean distances are not squared there."""
    distances = np.asarray(distances, np.float64)
    return (np.sqrt(distances) if distance == "l2" else distances).astype(np.float32)


def _distance(path: str | os.PathLike, attributes: Mapping[str, Any]) -> str:
    metric = attributes.get("distance")
    metric = metric.decode() if isinstance(metric, bytes) else metric
    kind = attributes.get("type", "dense")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind != "dense":
        raise InputError(f"{path}: type {kind!r}: only dense vectors are read")
    for ours, theirs in DISTANCES.items():
        if metric == theirs:
            return ours
    problem = "no attribute distance" if metric is None else f"distance {metric!r}"
    raise InputError(f"{path}: {problem}; data sets of distance euclidean or angular are read")


def _vectors(path: str | os.PathLike, file: Any, name: str) -> np.ndarray:
    values = _dataset(path, file, name)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: {name} is {values.dtype} {list(values.shape)}; it must be numbers "
            "[rows, dimensions]"
        )
    vectors = np.empty(values.shape, np.float32)
    # Read into place: published sets are of float32 and large, some of float64 and larger.
    step = max(1, (64 << 20) // (values.dtype.itemsize * values.shape[1]))
    with np.errstate(over="ignore"):
        for start in range(0, len(vectors), step):
            vectors[start : start + step] = values[start : start + step]
    check_finite(vectors, range(len(vectors)), f"{path}: {name}")
    return vectors


def _neighbors(path: str | os.PathLike, file: Any, queries: int, rows: int) -> np.ndarray | None:
    if "neighbors" not in file:
        return None
    values = _dataset(path, file, "neighbors")
    if values.ndim != 2 or len(values) != queries or values.dtype.kind not in "iu":
        raise InputError(
            f"{path}: neighbors is {values.dtype} {list(values.shape)}; it must be whole numbers "
            f"[{queries}, neighbours], one line for each row of test"
        )
    neighbors = np.asarray(values, np.int64)
    if neighbors.size and not 0 <= neighbors.min() <= neighbors.max() < rows:
        raise InputError(f"{path}: neighbors names rows that train does not have, of {rows}")
    return neighbors


def _dataset(path: str | os.PathLike, file: Any, name: str) -> Any:
    import h5py

    if name not in file or not isinstance(file[name], h5py.Dataset):
        names = ", ".join(file) or "nothing"
        raise InputError(f"{path}: no dataset {name!r}; there are: {names}")
    return file[name]


def _write(path: str | os.PathLike, content: Mapping[str, np.ndarray], about: Mapping) -> None:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: {_INSTALL}") from None
    make_parent(path)
    with staging_dir(path) as temporary:
        with h5py.File(temporary / "file.hdf5", "w") as file:
            for name, values in content.items():
                file[name] = values
            for name, value in about.items():
                file.attrs[name] = value
        os.replace(temporary / "file.hdf5", path)
