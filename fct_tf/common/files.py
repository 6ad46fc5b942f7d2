"""Files written whole or not at all, and fingerprints of settings."""

import codecs
import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from absl import logging

from fct_tf.common.errors import InputError

# What TensorFlow says of the graph that an error comes from, and Keras's bold type.
_GRAPH = re.compile(
    r"\{\{function_node .*?\}\}|\[\[.*?\]\]|\[Op:\w+\]( name:.*)?|\x1b\[[\d;]*m"
    r"|Graph execution error:.*?<stack traces unavailable>"
    r"|Error in user-defined function passed to \S+ transformation with iterator: \S+:(?=\s)",
    re.DOTALL,
)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` so that a reader sees the old or the new content, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a file that becomes `path` when the block ends without error.

    Raises:
      InputError: it cannot be written.
    """
    path = Path(path)
    make_parent(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({one_line(error)})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as indented JSON, atomically. NaN is refused: JSON has none."""
    atomic_write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def write_records(path: str | os.PathLike, obj: list | dict[str, Any]) -> None:
    """Writes results as JSON, atomically: an element, or a key and its value, a line.

    So many records stay readable by line tools, and a change shows which record it is in.
    """
    opening, closing = "{}" if isinstance(obj, dict) else "[]"
    if isinstance(obj, dict):
        lines = [f"{json.dumps(key)}: {_dumps(value)}" for key, value in obj.items()]
    else:
        lines = [_dumps(value) for value in obj]
    content = ",\n".join(lines)
    atomic_write_text(path, f"{opening}\n{content}\n{closing}\n")


def _dumps(obj: Any) -> str:
    return json.dumps(obj, allow_nan=False)


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; `InputError` names a missing or broken one."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable JSON file ({one_line(error)})") from None


def read_lines(
    path: str | os.PathLike, where: str = "", *, errors: Literal["strict", "replace"] = "strict"
) -> list[str]:
    """The lines of a text file of a user's, without their ends.

    A line ends at a newline, with or without a carriage return before it, and at nothing else: an
    id may hold whatever else `str.splitlines` takes for an end. A byte-order mark is no text.

    Args:
      path: of the file, UTF-8.
      where: how messages name it, such as the flag and the path; by default the path.
      errors: `replace` to read over bytes that are no UTF-8.

    Raises:
      InputError: no such file, or one that is not UTF-8; names the line.
    """
    where = where or str(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from None
    try:
        lines = data.decode("utf-8-sig", errors).split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        detail = "UTF-16" if utf_16 else f"byte 0x{error.object[error.start]:02x}"
        raise InputError(
            f"{where}: cannot be read: line {line} is not UTF-8 text ({detail}); save the file as "
            "UTF-8"
        ) from None
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def sha256_json(obj: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `obj`: sorted keys, no spaces."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def one_line(error: object) -> str:
    """The message of an exception on a single line."""
    return " ".join(str(error).split())


def reason(error: Exception) -> str:
    """What an error of TensorFlow or Keras says of the data, on one line.

    What it says of its graph is left out, and so is what colours the text on a terminal.
    """
    return one_line(_GRAPH.sub(" ", getattr(error, "message", None) or str(error)))


def make_parent(path: str | os.PathLike) -> None:
    """Makes the directory that `path` lies in; `InputError` when a regular file is in the way."""
    make_dir(Path(path).absolute().parent)


def make_dir(path: str | os.PathLike) -> Path:
    """Makes a directory with its parents; `InputError` says why it cannot be made."""
    if re.match(r"[a-z0-9+]+:/", str(path)):  # A `Path` has lost the second slash.
        raise InputError(
            f"{path}: lies in an object store, and this is written on a disk; name a path on this "
            "machine"
        )
    path = Path(path)
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # Another process has just removed its parent.
            path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"{path}: cannot make this directory, a file of that name is in the way; "
            "choose another path"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot make this directory ({error.strerror})") from None
    return path


def refuse_existing(path: str | os.PathLike, overwrite: bool) -> None:
    """Refuses an output that is there already, unless it may be overwritten."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists already; pass ``overwrite=True`` to replace it")


def check_output_file(path: str, overwrite: bool, name: str) -> None:
    """Refuses an output file that could not be written later; makes nothing.

    Args:
      path: of the file; its directory need not be there yet.
      overwrite: whether an existing file may be replaced.
      name: of the argument, for the message.
    """
    if not path:
        raise InputError(f"``{name}`` is empty; name the file to write")
    if "://" in path:
        raise InputError(
            f"``{name}={path}``: lies in an object store, and this file is written on a disk; name "
            "a path on this machine"
        )
    if os.path.isdir(path) or path.endswith("/"):
        raise InputError(f"``{name}={path}``: is a directory; name a file in it")
    refuse_existing(path, overwrite)
    parent = Path(path).absolute().parent
    existing = next(directory for directory in (parent, *parent.parents) if directory.exists())
    if not existing.is_dir():
        raise InputError(f"``{name}={path}``: {existing} is a file, not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"``{name}={path}``: no permission to write in {existing}")


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty sibling directory that becomes `path` when the block ends without error.

    A process killed inside the block leaves `path` as it was. When `path` exists it is moved
    aside only for the moment between two renames. Of several processes that make `path` at the
    same time, one succeeds and the others are refused, unless they may overwrite.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    with staging_dir(path) as temporary:
        yield temporary
        move_dir(temporary, path, overwrite)


@contextlib.contextmanager
def staging_dir(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty directory beside `path`, `.NAME.HOST.PID.TOKEN.tmp`, gone when it ends.

    What a killed process left is removed when that process ran on this machine and is gone; else
    it is named in the log.
    """
    path = Path(path)
    make_parent(path)
    for other in sorted(path.parent.glob(f".{glob.escape(path.name)}.*.*.{'[0-9a-f]' * 8}.tmp")):
        host, process = other.name.split(".")[-4:-2]
        if host == _host() and process.isdecimal() and not runs_here(int(process)):
            shutil.rmtree(other, ignore_errors=True)
        else:
            logging.warning(
                "%s: another process is writing it, or was killed; delete it if none is", other
            )
    token = f"{_host()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    make_dir(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_dir(temporary: Path, path: Path, overwrite: bool = False) -> None:
    """Lets a `staging_dir` become `path`, by a rename; see `atomic_dir`.

    Raises:
      InputError: `path` exists already and may not be overwritten.
    """
    refuse_existing(path, overwrite)
    replaced = temporary.with_suffix(".replaced")
    if os.path.lexists(path):
        os.replace(path, replaced)
    try:
        os.replace(temporary, path)
    except OSError:
        if os.path.lexists(path):
            raise InputError(f"{path}: another process has just made it") from None
        if os.path.lexists(replaced):
            os.replace(replaced, path)
        raise
    finally:
        _remove(replaced)


def runs_here(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)  # Signal 0 only asks.
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
