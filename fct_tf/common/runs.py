"""Working directories: for one process at a time, and for the settings they belong to.

`settings.json` in a working directory holds the settings (and fingerprints of the inputs) of the
run that fills it. A run that was stopped continues; a finished one is not repeated; results of
other settings are never taken for one's own. Only what a run makes is ever removed.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import make_dir, read_json, write_json

# What to do with a finished run, or one of other settings: refuse it; skip a finished one and
# restart one of other settings; or start over in both cases.
Existing = Literal["refuse", "skip", "overwrite"]

SETTINGS = "settings.json"
TRAINING = ("checkpoints", "metrics.jsonl", "tensorboard", "artifact", "saved_model")


@contextlib.contextmanager
def locked(directory: str | os.PathLike, output: str) -> Iterator[None]:
    """Holds a directory, made if missing, for this process alone while the block runs.

    The lock is on the directory itself and goes with the process, however it ends. Of what was made
    for it, only what is empty in the end is removed.

    Args:
      directory: that the work is done in.
      output: what it is done for, for the message.

    Raises:
      InputError: another process is at work in it, or it cannot be made.
    """
    directory = Path(directory)
    new_directories = [one for one in (directory, *directory.parents) if not one.exists()]
    handle = _lock(directory, output)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Not empty, or gone.
            if new_directories and os.path.samestat(os.stat(directory), os.fstat(handle)):
                for one in new_directories:
                    one.rmdir()
        os.close(handle)


def _lock(directory: Path, output: str) -> int:
    while True:
        make_dir(directory)
        try:
            handle = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # Who ends its work may remove it.
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            place = "" if str(directory) == output else f", in {directory}"
            raise InputError(
                f"{output}: another process is at work on this{place}; wait until it has ended"
            ) from None
        except OSError as error:
            reason = error.strerror
            logging.warning("%s: cannot be locked (%s); start no second job", directory, reason)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(directory), os.fstat(handle)):
                return handle
        os.close(handle)


def begin(
    workdir: str | os.PathLike,
    output: str | os.PathLike | None,
    settings: dict,
    existing: Existing,
    *,
    makes: Sequence[str] = TRAINING,
    write: bool = True,
) -> bool:
    """Claims `workdir` for a run with `settings`; returns whether that run has finished already.

    Args:
      workdir: directory of the run; made if missing.
      output: what a finished run leaves, in `workdir` or elsewhere; None of a run that is never
        finished, such as a table which gets further columns.
      settings: all that the run's result depends on, as JSON.
      existing: what to do with what is there.
      makes: names in `workdir` that the run makes; removed when it starts over, and nothing else.
      write: False only decides, for the processes of a run that do not write.

    Raises:
      InputError: the run is finished, or has other settings, and `existing` is `refuse`; or
        `workdir` holds such names without settings, so that they are not known to be a run's.
    """
    workdir = Path(workdir)
    recorded = workdir / SETTINGS
    finished = output is not None and os.path.lexists(output)
    started = [name for name in makes if os.path.lexists(workdir / name)]
    if not recorded.exists() and started and not finished and write:
        raise InputError(
            f"{workdir}: holds {started[0]!r} but no {SETTINGS}; choose another ``workdir``, or "
            "remove it"
        )
    changed = changes(read_json(recorded), settings) if recorded.exists() else []
    # A run that failed before its first checkpoint has left nothing to protect.
    if changed and (started or finished):
        differences = "; ".join(changed[:5]) + (
            f"; and {len(changed) - 5} more" if changed[5:] else ""
        )
        if existing == "refuse":
            raise InputError(
                f"{workdir}: holds a run with other settings ({differences}); choose another "
                "``workdir`` or pass ``overwrite=True``"
            )
        logging.info("%s: starting over, the settings changed: %s", workdir, differences)
    elif finished:
        if existing == "refuse":
            raise InputError(f"{output}: exists already; pass ``overwrite=True`` to replace it")
        if existing == "skip" and recorded.exists():
            return True
    if write:
        if changed or finished:
            for name in started:
                remove(workdir / name)
            if output is not None:
                remove(output)
        make_dir(workdir)
        write_json(recorded, settings)
    return False


def remove(path: str | os.PathLike) -> None:
    """Removes a file or directory tree, if it is there; a tree disappears in one step."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    elif os.path.lexists(path):
        os.unlink(path)


def changes(old: Any, new: Any, key: str = "") -> list[str]:
    """How two settings differ, one `key: old -> new` for each value."""
    if isinstance(old, dict) and isinstance(new, dict):
        differences = []
        for name in sorted({*old, *new}):
            differences += changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return differences
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]
