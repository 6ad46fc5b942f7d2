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

The directory of an output in an object store lies there too, beside the output: whatever machine
goes on with the job finds its records. They are copied to the disk when the job is opened, and each
new one is written in both places. On a disk the directory is locked, in a store the process has a
lease (see `fct_tf.common.leases`).
"""

import contextlib
import fnmatch
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from fct_tf.common import files, leases, objects, runs, stores
from fct_tf.common.errors import InputError

HEADER = "job.json"
LEASE = "lock.json"
# All that a job makes in its directory, so that nothing else there is ever removed: the header,
# the records of units, a table until it is whole, and vectors that need not fit in memory.
_RECORDS = ("fragment-*.json", "chunk-*.npz", "copied.json", "chosen.json", "committing.json")
_OTHERS = ("table.lance", "table.lance.jobs", "vectors.npy")
_ALL = (HEADER, *_RECORDS, *_OTHERS)


def job_directory(output: str, name: str, job_dir: str | os.PathLike | None = None) -> str:
    """Where the job `name` at `output` keeps its records: by default beside the output.

    Raises:
      InputError: the output is on a disk and `job_dir` is in a store; or the output is in a store
        that only Lance reaches, and `job_dir` is not given.
    """
    if stores.in_store(output):
        stores.options(output)  # Refuses a name that cannot be.
        stores.check_path(output)
    if job_dir is None:
        if stores.in_store(output) and not objects.reaches(output):
            raise InputError(f"{output}: say where to keep the unfinished job (job_dir)")
        return f"{output}.jobs/{name}"
    if stores.in_store(job_dir) and not stores.in_store(output):
        raise InputError(
            f"``job_dir={job_dir}``: {output} is on a disk, and so must the unfinished job be"
        )
    return f"{stores.local_form(job_dir).rstrip('/')}/{name}"


def unfinished(output: str, name: str = "", job_dir: str | os.PathLike | None = None) -> bool:
    """Whether there is something of the job, or of any job without a name."""
    if job_dir is None and stores.in_store(output) and not objects.reaches(output):
        return False
    directory = job_directory(output, name, job_dir).rstrip("/")
    if stores.in_store(directory):
        return any(not path.endswith(LEASE) for path in objects.listed(directory))
    return os.path.exists(directory)


@contextlib.contextmanager
def open_job(
    output: str | os.PathLike, name: str, job_dir: str | os.PathLike | None = None
) -> Iterator["Job"]:
    """A job for this process alone while the block runs.

    If the block fails before anything is recorded, nothing is left of it.

    Args:
      output: the gallery that is changed or made.
      name: of the job among those at this output.
      job_dir: holds the job's directory, which has the job's name; default `<output>.jobs`. Of an
        output in a store it may be on a disk.

    Raises:
      InputError: another process is at work on the job; its directory cannot be made, or has a
        job.json that no job wrote.
    """
    output = str(output)
    directory = job_directory(output, name, job_dir)
    with contextlib.ExitStack() as stack:
        lease = None
        if objects.reaches(output):
            # Whoever works on it from another ``job_dir`` is seen too.
            at = f"{job_directory(output, name)}/{LEASE}"
            lease = stack.enter_context(leases.held(at, output))
        if stores.in_store(directory):
            local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fct_tf.")))
        else:
            if job_dir is None:
                files.make_parent(output)
            local = Path(directory)
            stack.enter_context(runs.locked(local, output))
        job = Job(directory, local, lease, remove_parent=job_dir is None)
        try:
            yield job
        finally:
            job.leave()


@contextlib.contextmanager
def alone(output: str, name: str) -> Iterator["Job | None"]:
    """As `open_job`; no job where the output lies in a store that only Lance reaches."""
    if stores.in_store(output) and not objects.reaches(output):
        yield None
        return
    with open_job(output, name) as job:
        yield job


class Job:
    """The records of one job, see `open_job`.

    directory: where they are kept. table: where a job that makes a new table keeps it until it is
    whole. token: of this job from its start to its end, and of no other.
    """

    def __init__(
        self,
        directory: str,
        local: Path,
        lease: leases.Lease | None = None,
        remove_parent: bool = False,
    ):
        self.directory = directory
        self.table = f"{directory}/table.lance"
        self._local, self._lease, self._remove_parent = local, lease, remove_parent
        self._in_store = stores.in_store(directory)
        self._started = self._removed = False
        if self._in_store:
            for one in objects.listed(directory):
                if _is_own(one, (HEADER, *_RECORDS)):
                    objects.download(f"{directory}/{one}", local / one)
        header = local / HEADER
        # Without a header: a job may have been killed while it removed its files.
        header_fields = files.read_json(header) if header.exists() else {"fingerprint": None}
        if not isinstance(header_fields, dict) or "fingerprint" not in header_fields:
            raise InputError(f"{directory}/{HEADER}: not written by a job; choose another job_dir")
        self._fingerprint = header_fields["fingerprint"]
        # Noted in the files that are made for the job and not for another one.
        self.token: str = header_fields.get("token", "")

    @property
    def started_at(self) -> float:
        """When it was started, by the clock of the file system."""
        if self._in_store:
            header = objects.about(f"{self.directory}/{HEADER}")
            return header.modified.timestamp() if header else 0.0
        return (self._local / HEADER).stat().st_mtime

    def check(self) -> None:
        """Refuses to go on where another process may have taken the job over.

        Raises:
          InputError: the output is in a store, which could not be reached for too long.
        """
        if self._lease:
            self._lease.check()

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
        files.write_json(self._local / HEADER, header)
        self._keep(self._local / HEADER)

    def finished(self, unit: str) -> bool:
        """Whether the unit is recorded."""
        return self._path(unit).exists()

    def record(self, unit: str, made: dict) -> None:
        """Records what was made of a unit: JSON, or for a chunk arrays of numbers or bytes."""
        path = self._path(unit)
        if path.suffix == ".json":
            files.write_json(path, made)
        else:
            with files.atomic_file(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **made)
        self._keep(path)

    def read(self, unit: str) -> dict:
        """What was recorded of a unit."""
        path = self._path(unit)
        if path.suffix == ".json":
            return files.read_json(path)
        with np.load(path) as arrays:
            return dict(arrays)

    def records(self, kind: str) -> Iterator[dict]:
        """What was recorded of all units whose names begin with `kind`-, in the names' order."""
        for path in sorted(self._local.glob(f"{kind}-*.*")):
            yield self.read(path.stem)

    def stacked(self, name: str, count: int, dim: int) -> np.ndarray:
        """The arrays of that name of all chunks as one, float32 [count, dim], in a file."""
        stacked = np.lib.format.open_memmap(
            self._local / "vectors.npy", mode="w+", dtype=np.float32, shape=(count, dim)
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
        if self._started and not any(any(self._local.glob(one)) for one in _RECORDS):
            self._remove_files()
        self._remove_directory()

    def _path(self, unit: str) -> Path:
        suffix = ".npz" if unit.startswith("chunk-") else ".json"
        return self._local / (unit + suffix)

    def _keep(self, path: Path) -> None:
        """Writes a record that is on the disk into the store, where the job lies in one."""
        self.check()
        if self._in_store:
            objects.write(f"{self.directory}/{path.name}", path.read_bytes())

    def _remove_directory(self) -> None:
        if self._in_store:  # Which has none, and the copies are going.
            return
        with contextlib.suppress(OSError):  # Not empty.
            self._local.rmdir()
            if self._remove_parent:
                self._local.parent.rmdir()

    def _remove_files(self) -> None:
        # The header goes first: what is left without one is nobody's.
        if self._in_store and not (self._lease and self._lease.lost):
            names = [name for name in objects.listed(self.directory) if _is_own(name, _ALL)]
            for name in sorted(names, key=lambda name: name != HEADER):
                objects.remove(f"{self.directory}/{name}")
        for pattern in _ALL:
            for own in (pattern, f".{pattern}.*.tmp", f".{pattern}.*.removed"):
                for path in self._local.glob(own):
                    runs.remove(path)


def _is_own(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file below the job's directory is one of these, or in a table that is."""
    return any(fnmatch.fnmatchcase(name.partition("/")[0], one) for one in patterns)
