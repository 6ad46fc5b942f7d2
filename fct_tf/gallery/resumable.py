"""What a job that was killed goes on from: a record of every finished fragment, in a directory.

One process at a time works in such a directory. Records count only for the job that wrote them,
for fragments whose rows and values are what they were, and as long as their data files are whole.
"""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from absl import logging
from lance.file import LanceFileReader

from fct_tf import files, runs
from fct_tf.errors import InputError

HEADER = "job.json"


class Job:
    """The directory in which a job records its finished fragments, see `open_job`.

    directory: of this job alone. What else lies in it is left as it is. table: where a job that
    makes a new table keeps it until it is whole.
    """

    def __init__(self, directory: Path, settings: dict, remove_parent: bool):
        self.directory = directory
        self.table = directory / "table.lance"
        self._remove_parent = remove_parent
        header, fingerprint = directory / HEADER, files.sha256_json(settings)
        if header.exists():
            known = files.read_json(header)
            if not isinstance(known, dict) or "fingerprint" not in known:
                raise InputError(f"{header}: not written by a job; choose another job_dir")
            if known["fingerprint"] == fingerprint:
                return
            logging.info("%s: the settings have changed; the job starts anew", directory)
        # Without a header too: a job may have been killed while it removed its files.
        self._remove_files()
        files.write_json(header, {"fingerprint": fingerprint, "settings": settings})

    def finished(self, base: dict, data: str) -> dict | None:
        """The record of the fragment with metadata `base`; None if it must be done (again).

        Args:
          base: of the fragment whose rows are read, as it is now.
          data: directory of the data files that the record names.
        """
        path = self.directory / f"fragment-{base['id']}.json"
        if not path.exists():
            return None
        record = files.read_json(path)
        # Lance removes files that no version names when it cleans up.
        there = all(_is_whole(data, file) for file in record["files"])
        return record if there and same_rows(record, base) else None

    def record(self, staged: dict) -> None:
        files.write_json(self.directory / f"fragment-{staged['base']['id']}.json", staged)

    def is_empty(self) -> bool:
        """Whether no fragment is finished."""
        return not any(self.directory.glob("fragment-*.json"))

    def remove_if_empty(self) -> None:
        """Leaves nothing behind of a job that failed before its first fragment was finished."""
        if self.is_empty():
            self.remove()

    def remove(self) -> None:
        """Removes the job's files, and its directory if nothing else is in it."""
        self._remove_files()
        with contextlib.suppress(OSError):  # Not empty.
            self.directory.rmdir()
            if self._remove_parent:
                self.directory.parent.rmdir()

    def _remove_files(self) -> None:
        # The header goes first: what is left without one is nobody's.
        for pattern in (HEADER, "fragment-*.json", f".{HEADER}.*.tmp", ".fragment-*.json.*.tmp"):
            for own in self.directory.glob(pattern):
                own.unlink(missing_ok=True)
        runs.remove(self.table)


@contextlib.contextmanager
def open_job(directory: Path, settings: dict, *, remove_parent: bool = False) -> Iterator[Job]:
    """The job of a directory, for this process alone while the block runs.

    Args:
      directory: of this job alone.
      settings: what the job is recognised by; with others it starts from scratch.
      remove_parent: remove the directory's parent too at the end, once it is empty.

    Raises:
      InputError: the directory cannot be made, has a job.json that no job wrote, or another
        process is at work in it.
    """
    with locked(directory):
        yield Job(directory, settings, remove_parent)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """A directory, made if missing, for this process alone; `InputError` where another has it."""
    handle = _lock(directory)
    try:
        yield
    finally:
        os.close(handle)


def _lock(directory: Path) -> int:
    """A lock on the directory itself, which goes with the process: a file descriptor."""
    while True:
        files.make_dir(directory)
        try:
            handle = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # A job that ends removes it.
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"{directory}: another process is at work on this; wait until it has ended"
            ) from None
        except OSError as error:
            reason = error.strerror
            logging.warning("%s: cannot be locked (%s); start no second job", directory, reason)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(directory), os.fstat(handle)):
                return handle
        os.close(handle)


def same_rows(record: dict, now: dict) -> bool:
    """Whether a fragment has the rows and values that a record was computed from.

    Args:
      record: with `base`, the fragment's metadata then, and `read`, the ids of the fields read.
      now: the fragment's metadata; further files may have come. Both may have a digest `meant` of
        which rows.
    """
    return state_of_rows(record["base"], record["read"]) == state_of_rows(now, record["read"])


def state_of_rows(described: dict, fields: Collection[int]) -> str:
    """A digest that is another as soon as a fragment's rows, or values of these fields, may be.

    Args:
      described: the fragment's metadata; files without these fields do not count.
      fields: ids.
    """
    held = [(file["path"], sorted({*fields} & {*file["fields"]})) for file in described["files"]]
    rows = ("id", "physical_rows", "deletion_file", "overlays", "meant")
    return files.sha256_json(
        [[described.get(key) for key in rows], sorted((path, ids) for path, ids in held if ids)]
    )


def _is_whole(directory: str, file: dict) -> bool:
    """Whether a data file of a fragment's metadata is there, as long as it was written."""
    path = f"{directory}/{file['path']}"
    try:
        if "://" not in path:
            return os.stat(path).st_size == (file.get("file_size_bytes") or os.stat(path).st_size)
        LanceFileReader(path)  # Reads the end of the file, in an object store too.
    except (OSError, ValueError):
        return False
    return True
