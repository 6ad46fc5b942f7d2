"""What a searcher keeps its rows in: ScaNN, or an array that is searched exactly."""

import os
from pathlib import Path

import numpy as np

from fct_tf.ann import scann_files
from fct_tf.ann.settings import Settings
from fct_tf.common import files
from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact

ROWS = "rows.npy"


class Scann:
    """Prepared rows in ScaNN."""

    def __init__(self, searcher, settings: Settings, dim: int):
        self._searcher, self.settings, self._dim = searcher, settings, dim
        self._threads = 0  # Of ScaNN's pool; 0: as it was made.

    @property
    def num_rows(self) -> int:
        return self._searcher.size()

    @property
    def nbytes(self) -> int:
        return self.settings.nbytes(self.num_rows, self._dim)

    def search(self, queries, k: int, reordered: int, leaves: int, threads: int):
        if len(queries) == 1:
            numbers, values = self._searcher.search(queries[0], k, reordered, leaves)
            return np.asarray(numbers)[None].astype(np.int64), np.asarray(values)[None]
        parallel = threads > 1
        if parallel and threads != self._threads:
            self._searcher.set_num_threads(threads)
            self._threads = threads
        # Some blocks for each thread, so that none waits long for the last one.
        size = max(1, min(256, len(queries) // (4 * threads)))
        numbers, values = self._searcher.search_batched(
            queries, k, reordered, leaves, parallel, size
        )
        return numbers.astype(np.int64), values

    def upsert(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        self._check_can_change()
        count = self.num_rows
        existing = [number if number < count else None for number in numbers.tolist()]
        self._changing(self._searcher.upsert, existing, list(rows), 256)

    def delete(self, numbers: np.ndarray) -> None:
        self._check_can_change()
        self._changing(self._searcher.delete, numbers.tolist())

    def rebalance(self) -> None:
        self._changing(self._searcher.rebalance, "")

    def save(self, directory: Path) -> dict[str, str]:
        return scann_files.save(self._searcher, directory)

    def _check_can_change(self) -> None:
        """Asked first: what ScaNN does not refuse can end the process."""
        if not self.settings.can_change:
            raise InputError(
                "ScaNN cannot change an index with int8 to reorder by, or with SOAR "
                "(soar_lambda); build it again"
            )

    def _changing(self, change, *arguments) -> None:
        try:
            change(*arguments)
        except RuntimeError as error:
            s = self.settings
            kind = s.reordering_data if s.reordering_num_neighbors else "no rows"
            raise InputError(
                f"ScaNN cannot change an index with score={s.score} and {kind} to reorder by "
                f"({files.one_line(error)}); build it again"
            ) from None


class Exact:
    """Rows as they came, searched exactly."""

    def __init__(self, rows: np.ndarray, distance: str):
        self._rows, self._distance = rows, distance

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def search(self, queries: np.ndarray, k: int):
        return exact.search(queries, self._rows, k, self._distance)

    def upsert(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        added = int((numbers >= len(self._rows)).sum())
        grown = np.empty((len(self._rows) + added, self._rows.shape[1]), np.float32)
        grown[: len(self._rows)] = self._rows
        grown[numbers] = rows
        self._rows = grown

    def delete(self, numbers: np.ndarray) -> None:
        """numbers: descending."""
        rows, last = self._rows.copy(), len(self._rows) - 1
        for number in numbers:
            rows[number] = rows[last]
            last -= 1
        self._rows = rows[: last + 1]

    def rebalance(self) -> None:
        pass

    def save(self, directory: Path) -> dict[str, str]:
        np.save(directory / ROWS, self._rows, allow_pickle=False)
        return {ROWS: "ROWS"}


def cores() -> int:
    """Cores that this process may use: those there are, or as many as TensorFlow is told to."""
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if threads.isdecimal() and int(threads):
        return int(threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
