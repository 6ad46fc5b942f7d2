"""Builds one index in a process of its own, so that its peak memory is that build's alone.

    python -m fct_tf.ann.build_process JOB

JOB is a directory with `job.json`: rows (a .npy file), distance, library, settings, threads. It
gets the index, and `built.json`: `build_s`, `build_cpu_s` of all its threads, `bytes` of the saved
index, and on Linux
`peak_memory_bytes` of the process and `memory_before_bytes`, what it held before the build: Python,
the library and the rows. Where the library refuses, `built.json` has `error`.
"""

import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np

from fct_tf.ann.peers import LIBRARIES
from fct_tf.common import files
from fct_tf.common.errors import InputError

JOB, INDEX, BUILT = "job.json", "index", "built.json"


def build(directory: str | os.PathLike, alone: bool = True) -> dict:
    """Builds what `job.json` in a directory says; returns what it writes to `built.json`.

    Args:
      alone: whether the process does nothing else, so that its memory is the build's.
    """
    directory = Path(directory)
    job = files.read_json(directory / JOB)
    library = LIBRARIES[job["library"]]
    try:
        importlib.import_module(library.module)  # Loading it is no part of the build.
        rows = np.load(job["rows"], allow_pickle=False)
        before = _memory("VmRSS") if alone else None
        started, processor = time.perf_counter(), time.process_time()
        index = library.build(rows, job["distance"], job["settings"], job["threads"])
        record: dict = {"build_s": time.perf_counter() - started}
        record["build_cpu_s"] = time.process_time() - processor
        if alone and before is not None:
            record |= {"peak_memory_bytes": _memory("VmHWM"), "memory_before_bytes": before}
        index.save(directory / INDEX)
        saved = (directory / INDEX).rglob("*")
        record["bytes"] = sum(path.stat().st_size for path in saved if path.is_file())
    except (InputError, MemoryError) as error:
        record = {"error": files.one_line(error) or "out of memory"}
    files.write_json(directory / BUILT, record)
    return record


def _memory(field: str) -> int | None:
    """Bytes of this process, from /proc; None where there is none."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return None


if __name__ == "__main__":
    build(sys.argv[1])
