"""The job under all that takes long: what was finished before a kill is not done again.

    with open_job(output, name) as job:
        job.start(settings)
        for unit in units:
            if not job.finished(unit):
                job.record(unit, make(unit))
        commit(job.records("chunk"))
        job.remove()

A unit is a fragment of a table, a chunk of images, or a step that is done once. Its record is
written whole or not at all, in the job's directory, and counts only for the settings that it was
made with. One process at a time works in such a directory.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from fct_tf.common import files, runs
from fct_tf.common.errors import InputError

HEADER = "job.json"
# All that a job makes in its directory, so that nothing else there is ever removed: the header,
# the records of units, a table until it is whole, and vectors that need not fit in memory.
_RECORDS = ("fragment-*.json", "chunk-*.npz", "copied.json", "chosen.json", "committing.json")
_OTHERS = ("table.lance", "table.lance.jobs", "vectors.npy")


def job_directory(output: str, name: str, job_dir: str | os.PathLike | None = None) -> Path:
    """Where the job `name` at `output` keeps its records: by default beside the output.

    Raises:
      InputError: the output is in an object store and `job_dir` is not given.
    """
    if job_dir is None and "://" in output:
        raise InputError(f"{output}: say where to keep the unfinished job (job_dir)")
    return Path(f"{output}.jobs" if job_dir is None else job_dir) / name


@contextlib.contextmanager
def open_job(
    output: str | os.PathLike, name: str, job_dir: str | os.PathLike | None = None
) -> Iterator["Job"]:
    """A job for this process alone while the block runs.

    If the block fails before anything is recorded, nothing is left of it.

    Args:
      output: the gallery that is changed or made.
      name: of the job among those at this output.
      job_dir: holds the job's directory, which has the job's name; default `<output>.jobs`.

    Raises:
      InputError: another process is at work on the job; its directory cannot be made, or has a
        job.json that no job wrote.
    """
    directory = job_directory(str(output), name, job_dir)
    if job_dir is None:
        files.make_parent(output)
    with runs.locked(directory, str(output)):
        job = Job(directory, remove_parent=job_dir is None)
        try:
            yield job
        finally:
            job.leave()


@contextlib.contextmanager
def alone(output: str, name: str) -> Iterator["Job | None"]:
    """As `open_job` where the output lies on this machine's disks; no job in an object store."""
    if "://" in output:
        yield None
        return
    with open_job(output, name) as job:
        yield job


class Job:
    """The records of one job, see `open_job`.

    table: where a job that makes a new table keeps it until it is whole. token: of this job from
    its start to its end, and of no other.
    """

    def __init__(self, directory: Path, remove_parent: bool = False):
        self.directory = directory
        self.table = directory / "table.lance"
        self._remove_parent = remove_parent
        self._started = self._removed = False
        header = directory / HEADER
        # Without a header: a job may have been killed while it removed its files.
        known = files.read_json(header) if header.exists() else {"fingerprint": None}
        if not isinstance(known, dict) or "fingerprint" not in known:
            raise InputError(f"{header}: not written by a job; choose another job_dir")
        self._fingerprint = known["fingerprint"]
        # Noted in the files that are made for the job and not for another one.
        self.token: str = known.get("token", "")

    @property
    def started_at(self) -> float:
        """When it was started, by the clock of the file system."""
        return (self.directory / HEADER).stat().st_mtime

    def is_of(self, settings: dict) -> bool:
        """Whether what is recorded was made with these settings, all that it depends on."""
        return self._fingerprint == files.sha256_json(settings)

    def start(self, settings: dict, *, anew: bool = False) -> None:
        """Keeps the records that were made with these settings, none of others, or none at all."""
        self._started = True
        if self.is_of(settings) and not anew:
            return
        if self._fingerprint and not self.is_of(settings):
            logging.info("%s: the settings have changed; the job starts anew", self.directory)
        self._remove_files()
        self._fingerprint = files.sha256_json(settings)
        self.token = secrets.token_hex(8)
        header = {
            "fingerprint": self._fingerprint,
            "settings": settings,
            "token": self.token,
        }
        files.write_json(self.directory / HEADER, header)

    def finished(self, unit: str) -> bool:
        """Whether the unit is recorded."""
        return self._path(unit).exists()

    def record(self, unit: str, made: dict) -> None:
        """Records what was made of a unit: JSON, or for a chunk arrays of numbers or bytes."""
        path = self._path(unit)
        if path.suffix == ".json":
            files.write_json(path, made)
            return
        with files.atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **made)

    def read(self, unit: str) -> dict:
        """What was recorded of a unit."""
        path = self._path(unit)
        if path.suffix == ".json":
            return files.read_json(path)
        with np.load(path) as arrays:
            return dict(arrays)

    def records(self, kind: str) -> Iterator[dict]:
        """What was recorded of all units whose names begin with `kind`-, in the names' order."""
        for path in sorted(self.directory.glob(f"{kind}-*.*")):
            yield self.read(path.stem)

    def stacked(self, name: str, count: int, dim: int) -> np.ndarray:
        """The arrays of that name of all chunks as one, float32 [count, dim], in a file."""
        stacked = np.lib.format.open_memmap(
            self.directory / "vectors.npy", mode="w+", dtype=np.float32, shape=(count, dim)
        )
        start = 0
        for chunk in self.records("chunk"):
            stacked[start : start + len(chunk[name])] = chunk[name]
            start += len(chunk[name])
        return stacked

    def remove(self) -> None:
        """Removes the job's files, and its directory if nothing else is in it."""
        self._remove_files()
        self._remove_directory()
        self._removed = True

    def leave(self) -> None:
        """Ends the work, for now; removes a job without a record."""
        if self._removed:  # What is there by now is another process's.
            return
        if self._started and not any(any(self.directory.glob(one)) for one in _RECORDS):
            self._remove_files()
        self._remove_directory()

    def _path(self, unit: str) -> Path:
        suffix = ".npz" if unit.startswith("chunk-") else ".json"
        return self.directory / (unit + suffix)

    def _remove_directory(self) -> None:
        with contextlib.suppress(OSError):  # Not empty.
            self.directory.rmdir()
            if self._remove_parent:
                self.directory.parent.rmdir()

    def _remove_files(self) -> None:
        # The header goes first: what is left without one is nobody's.
        for pattern in (HEADER, *_RECORDS, *_OTHERS):
            for own in (pattern, f".{pattern}.*.tmp", f".{pattern}.*.removed"):
                for path in self.directory.glob(own):
                    runs.remove(path)
