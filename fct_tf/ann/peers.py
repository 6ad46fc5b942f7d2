"""ScaNN and other libraries behind one interface, to be measured in the same run.

`LIBRARIES[name].build(rows, distance, settings, threads)` makes an index with

    search(queries, k, *, threads=None, **settings) -> (rows int64 [q, k], distances float32 [q, k])
    save(directory)
    nbytes

and `LIBRARIES[name].load(directory)` opens it again. Settings have the library's own names.
`threads` None is one per core. Cosine (1 - cosine) is half the squared distance of unit vectors.

A library is imported when it is first used: faiss and hnswlib come with the extra `[ann]`.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fct_tf.ann import scann_files
from fct_tf.ann.searcher import Searcher, cores
from fct_tf.ann.settings import Settings as ScannSettings
from fct_tf.common.errors import InputError
from fct_tf.common.files import make_dir, one_line, read_json, write_json
from fct_tf.gallery.columns import DISTANCES
from fct_tf.retrieval import exact

Settings = Mapping[str, Any]
# Lists of values by the name of a setting.
Grid = dict[str, list]


@dataclass(frozen=True)
class Library:
    """How a library is built, loaded and swept.

    module, install: what has to import, and what to do where it does not.
    make, load: (rows, distance, settings, threads) -> index; directory -> index.
    grid: (num_rows, dim) -> values of the settings of a build; the first of each is its default.
    search_grid: (k, build settings) -> values of the settings of a search.
    """

    module: str
    install: str
    make: Callable[..., Any]
    load: Callable[[str | os.PathLike], Any]
    grid: Callable[[int, int], Grid]
    search_grid: Callable[[int, Settings], Grid]

    @property
    def installed(self) -> bool:
        # ScaNN may be there and not load: on another processor, or beside another TensorFlow.
        if self.module == "scann":
            return scann_files.available()
        return importlib.util.find_spec(self.module) is not None

    def build(
        self,
        rows: np.ndarray,
        distance: str,
        settings: Settings | None = None,
        threads: int | None = None,
    ) -> Any:
        """An index of float [n, d]; settings that are not given have their defaults.

        ScaNN takes every setting of `settings.Settings`, the others those of their `grid`.

        Raises:
          InputError: not installed, unknown distance or setting, no rows, or settings that the
            library refuses.
        """
        if not self.installed:
            raise InputError(f"{self.module} is not installed: {self.install}")
        if distance not in DISTANCES:
            raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")
        if not len(rows):
            raise InputError("an index needs at least one row")
        defaults = {name: values[0] for name, values in self.grid(*rows.shape).items()}
        unknown = sorted(set(settings or {}) - set(defaults))
        if unknown and self.module != "scann":
            names = ", ".join(defaults) or "none"
            raise InputError(f"{self.module}: no setting {unknown[0]!r}; there are: {names}")
        chosen = {**defaults, **(settings or {})}
        try:
            return self.make(rows, distance, chosen, threads)
        except (RuntimeError, ValueError) as error:
            # faiss begins with its own source file and condition.
            reason = one_line(error).rsplit("failed: ", 1)[-1]
            raise InputError(
                f"{self.module} cannot index {len(rows)} rows of {rows.shape[1]} dimensions with "
                f"{told(chosen)}: {reason}"
            ) from None


class FaissIndex:
    """An index of faiss: IVF-PQ fast scan with refinement, HNSW, or flat."""

    def __init__(self, index: Any, distance: str):
        self.distance = distance
        self._index = index

    def search(
        self, queries: np.ndarray, k: int, *, threads: int | None = None, **settings: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        faiss.omp_set_num_threads(threads or cores())
        values, numbers = self._index.search(
            side(queries, self.distance), k, params=_faiss_parameters(settings)
        )
        values = np.where(numbers >= 0, values, np.inf)
        return numbers, values / 2 if self.distance == "cosine" else values

    def save(self, directory: str | os.PathLike) -> None:
        import faiss

        directory = make_dir(directory)
        faiss.write_index(self._index, str(directory / "index.faiss"))
        write_json(directory / "index.json", {"distance": self.distance})

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "FaissIndex":
        import faiss

        distance = read_json(Path(directory) / "index.json")["distance"]
        return cls(faiss.read_index(str(Path(directory) / "index.faiss")), distance)

    @property
    def nbytes(self) -> int:
        """Bytes of the file that `save` writes."""
        import faiss

        sizes: list[int] = []
        # Counted, not kept: `serialize_index` would copy the index.
        writer = faiss.PyCallbackIOWriter(lambda data: sizes.append(len(data)), 1 << 20)
        faiss.write_index(self._index, writer)
        return sum(sizes)


class HnswlibIndex:
    """An index of hnswlib."""

    def __init__(self, index: Any, distance: str):
        self.distance = distance
        self._index = index

    def search(
        self, queries: np.ndarray, k: int, *, threads: int | None = None, ef: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        queries = side(queries, self.distance)
        width = min(k, self._index.get_current_count())
        self._index.set_ef(max(ef, k))
        numbers = np.full((len(queries), k), -1, np.int64)
        values = np.full((len(queries), k), np.inf, np.float32)
        try:
            numbers[:, :width], values[:, :width] = self._index.knn_query(
                queries, width, num_threads=threads or cores()
            )
        except RuntimeError:
            # Of rows that are there many times a part of the graph can be out of reach. It then
            # gives nothing rather than fewer: each query asks for as many as it can have.
            for row, query in enumerate(queries):
                self._fewer(query, width, numbers[row], values[row])
        return numbers, values / 2 if self.distance == "cosine" else values

    def _fewer(self, query: np.ndarray, k: int, found: np.ndarray, values: np.ndarray) -> None:
        while k:
            try:
                found[:k], values[:k] = self._index.knn_query(query, k, num_threads=1)
                return
            except RuntimeError:
                k //= 2

    def save(self, directory: str | os.PathLike) -> None:
        directory = make_dir(directory)
        self._index.save_index(str(directory / "index.hnswlib"))
        write_json(
            directory / "index.json", {"distance": self.distance, "dim": int(self._index.dim)}
        )

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "HnswlibIndex":
        import hnswlib

        about = read_json(Path(directory) / "index.json")
        index = hnswlib.Index(space="l2", dim=about["dim"])
        index.load_index(str(Path(directory) / "index.hnswlib"))
        return cls(index, about["distance"])

    @property
    def nbytes(self) -> int:
        """Bytes of the file that `save` writes."""
        return self._index.index_file_size()


class ExactIndex:
    """This project's exact search: every row, ties settled in float64."""

    def __init__(self, rows: np.ndarray, distance: str):
        self.distance = distance
        self._rows = rows

    def search(
        self, queries: np.ndarray, k: int, *, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        with _blas_threads(threads or cores()):
            return exact.search(queries, self._rows, k, self.distance, threads=threads)

    def save(self, directory: str | os.PathLike) -> None:
        directory = make_dir(directory)
        np.save(directory / "rows.npy", self._rows, allow_pickle=False)
        write_json(directory / "index.json", {"distance": self.distance})

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "ExactIndex":
        distance = read_json(Path(directory) / "index.json")["distance"]
        return cls(np.load(Path(directory) / "rows.npy", allow_pickle=False), distance)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes


def side(vectors: np.ndarray, distance: str) -> np.ndarray:
    """float32 [n, d] as these libraries read it; unit vectors where the distance is cosine."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if distance != "cosine":
        return vectors
    # Scaled first: a length beyond what float32 can square would become 0 or infinity.
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    vectors = vectors / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def told(settings: Settings) -> str:
    """`nlist=1024, m=64`"""
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "no settings"


def _scann(rows, distance, settings, threads):
    num_rows, dim = rows.shape
    chosen = ScannSettings.for_rows(num_rows, dim, distance, **settings)
    return Searcher.build(rows, distance, chosen, threads=threads)


def _faiss_parameters(settings: Settings) -> Any:
    """faiss' search parameters: `nprobe` and `k_factor` of IVF, `efSearch` of HNSW, or None."""
    import faiss

    if "nprobe" in settings or "k_factor" in settings:
        base = faiss.SearchParametersIVF(nprobe=int(settings.get("nprobe", 1)))
        return faiss.IndexRefineSearchParameters(
            k_factor=float(settings.get("k_factor", 1)), base_index_params=base
        )
    if "efSearch" in settings:
        return faiss.SearchParametersHNSW(efSearch=int(settings["efSearch"]))
    return None


def _faiss(description: str, rows: np.ndarray, distance: str, threads: int | None, **fields):
    import faiss

    faiss.omp_set_num_threads(threads or cores())
    rows = side(rows, distance)
    index = faiss.index_factory(rows.shape[1], description, faiss.METRIC_L2)
    for name, value in fields.items():
        setattr(faiss.downcast_index(index).hnsw, name, int(value))
    index.train(rows)
    index.add(rows)
    return FaissIndex(index, distance)


def _faiss_ivf(rows, distance, settings, threads):
    nlist, m = int(settings["nlist"]), int(settings["m"])
    if nlist > len(rows):
        raise ValueError(f"nlist={nlist} is more than there are rows")
    return _faiss(f"IVF{nlist},PQ{m}x4fs,RFlat", rows, distance, threads)


def _faiss_hnsw(rows, distance, settings, threads):
    construction = settings["efConstruction"]
    description = f"HNSW{int(settings['M'])},Flat"
    return _faiss(description, rows, distance, threads, efConstruction=construction)


def _faiss_flat(rows, distance, settings, threads):
    return _faiss("Flat", rows, distance, threads)


def _hnswlib(rows, distance, settings, threads):
    import hnswlib

    rows = side(rows, distance)
    index = hnswlib.Index(space="l2", dim=rows.shape[1])
    index.init_index(
        max_elements=len(rows),
        M=int(settings["M"]),
        ef_construction=int(settings["ef_construction"]),
        random_seed=0,
    )
    index.add_items(rows, num_threads=threads or cores())
    return HnswlibIndex(index, distance)


def _exact(rows, distance, settings, threads):
    return ExactIndex(np.array(rows, np.float32), distance)


def _blas_threads(count: int) -> contextlib.AbstractContextManager:
    """Holds NumPy's matrix products to `count` threads, where threadpoolctl is installed."""
    controller = _controller()
    return controller.limit(limits=count) if controller else contextlib.nullcontext()


@functools.cache
def _controller() -> Any:
    try:
        import threadpoolctl
    except ImportError:
        return None
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def leaves(num_rows: int, *times: float) -> list[int]:
    """Numbers of partitions as multiples of the root of the rows; a leaf has 8 rows or more."""
    counts = [max(1, min(num_rows // 8, round(factor * num_rows**0.5))) for factor in times]
    return list(dict.fromkeys(counts))


def doubling(first: int, last: int) -> list[int]:
    """`first`, twice that, and so on up to `last`, which is there too."""
    values = []
    while first < last:
        values.append(first)
        first *= 2
    return [*values, last]


def _scann_grid(num_rows: int, dim: int) -> Grid:
    return {
        "num_leaves": leaves(num_rows, 2, 1, 4),
        "dimensions_per_block": [2, 4][: max(1, min(2, dim // 4))],
        "anisotropic_quantization_threshold": [0.2, None],
        "reordering_data": ["float32", "bfloat16", "int8"],
    }


def _scann_search_grid(k: int, settings: Settings) -> Grid:
    return {
        "num_leaves_to_search": doubling(1, max(1, settings["num_leaves"] // 4)),
        "reordering_num_neighbors": [3 * k, 10 * k, 30 * k],
    }


def _ivf_grid(num_rows: int, dim: int) -> Grid:
    # Codes of 2 dimensions each, as ScaNN's; faiss wants blocks of one size.
    return {"nlist": leaves(num_rows, 2, 1, 4), "m": [dim // 2 if dim % 2 == 0 else dim]}


def _ivf_search_grid(k: int, settings: Settings) -> Grid:
    return {"nprobe": doubling(1, max(1, settings["nlist"] // 4)), "k_factor": [3, 10, 30]}


def _none(*_) -> Grid:
    return {}


_EXTRA = "pip install 'fct_tf[ann]'"
LIBRARIES: dict[str, Library] = {
    "scann": Library(
        "scann",
        "pip install 'scann[tf]'; it needs a processor with AVX2",
        _scann,
        Searcher.load,
        _scann_grid,
        _scann_search_grid,
    ),
    "faiss_ivf": Library("faiss", _EXTRA, _faiss_ivf, FaissIndex.load, _ivf_grid, _ivf_search_grid),
    "faiss_hnsw": Library(
        "faiss",
        _EXTRA,
        _faiss_hnsw,
        FaissIndex.load,
        lambda num_rows, dim: {"M": [16, 32], "efConstruction": [200]},
        lambda k, settings: {"efSearch": doubling(max(16, k), 64 * max(16, k))},
    ),
    "hnswlib": Library(
        "hnswlib",
        _EXTRA,
        _hnswlib,
        HnswlibIndex.load,
        lambda num_rows, dim: {"M": [16, 32], "ef_construction": [200]},
        lambda k, settings: {"ef": doubling(max(16, k), 64 * max(16, k))},
    ),
    "faiss_flat": Library("faiss", _EXTRA, _faiss_flat, FaissIndex.load, _none, _none),
    "exact": Library("numpy", "pip install numpy", _exact, ExactIndex.load, _none, _none),
}
