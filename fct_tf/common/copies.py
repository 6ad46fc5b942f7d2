"""Directories of files in an object store, such as model artifacts: copied here, and put there.

What is read is copied once, into a folder whose name comes from the versions of its files, and is
found there again as long as these are the same. What is written lies on the disk until it is whole;
then it is put into the store, and the file by which it is known (`model.json` of an artifact,
`saved_model.pb` of a SavedModel) comes last. Without that one there is nothing to be read.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from fct_tf.common import files, leases, objects, stores
from fct_tf.common.errors import InputError

# Names the folder of copies, which may be deleted whenever no process reads from it.
CACHE = "FCT_TF_CACHE"

_origins: dict[str, str] = {}  # Copies made by this process, and where they come from.


def local(path: str | os.PathLike) -> Path:
    """The path on this machine's disks of a file or directory, which is copied from a store.

    A path that is not in a store is returned as it is, and so is one where there is nothing.

    Raises:
      InputError: the store cannot be opened, the files change meanwhile, or the cache cannot be
        written.
    """
    if not stores.in_store(path):
        return Path(stores.local_form(path))
    uri = os.fspath(path).rstrip("/")
    for _ in range(3):
        contents = _contents(uri)
        state = [[name, one.size, one.version] for name, one in sorted(contents.items())]
        # Its own name stays: that of a model is told by it.
        place = _cache() / files.sha256_json([uri, state])[:32] / uri.rpartition("/")[2]
        if not place.exists():
            if not contents:
                return place
            temporary = files.make_dir(place.parent.parent / f".{secrets.token_hex(8)}.tmp")
            try:
                whole = _copy(uri, contents, temporary / place.name)
                if not whole or _contents(uri) != contents:
                    logging.info("%s: has changed while it was copied; once more", uri)
                    continue
                with contextlib.suppress(OSError):  # Another process was faster.
                    os.replace(temporary, place.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            size = sum(one.size for one in contents.values())
            logging.info("%s: copied to %s (%s bytes)", uri, place, f"{size:,}")
        _origins[str(place)] = uri
        return place
    raise InputError(f"{uri}: changes all the time; read it when it is at rest")


def as_path(path: str | os.PathLike) -> Path | str:
    """A path on the disk as `Path`; a URI stays a text, as a `Path` would lose a slash of it."""
    return os.fspath(path) if stores.in_store(path) else Path(path)


def origin(path: str | os.PathLike) -> str:
    """Where a path comes from: of a copy its URI in the store, of others the absolute path."""
    here = Path(os.path.abspath(path))
    for one in (here, *here.parents):
        if str(one) in _origins:
            rest = here.relative_to(one).as_posix()
            return _origins[str(one)] + ("" if rest == "." else f"/{rest}")
    return str(here)


@contextlib.contextmanager
def made_dir(path: str | os.PathLike, last: str, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty directory that becomes `path` when the block ends without error.

    On a disk see `files.atomic_dir`; a store has no such step. There the file `last` is removed
    first and written last, and one process at a time does so.

    Raises:
      InputError: `path` is there already and may not be overwritten; it cannot be written.
    """
    if not stores.in_store(path):
        with files.atomic_dir(stores.local_form(path), overwrite) as directory:
            yield directory
        return
    stores.check_path(path)
    uri = os.fspath(path).rstrip("/")
    _refuse_existing(uri, last, overwrite)
    with tempfile.TemporaryDirectory(prefix="fct_tf.") as temporary:
        directory = Path(temporary) / uri.rpartition("/")[2]
        directory.mkdir()
        yield directory
        with leases.held(f"{uri}.lock", uri) as lease:
            _refuse_existing(uri, last, overwrite)
            objects.remove(f"{uri}/{last}")
            objects.remove(uri)
            put(directory, uri, last, lease)
    logging.info("%s: written", uri)


def put(directory: Path, uri: str, last: str, lease: leases.Lease | None = None) -> None:
    """Writes the files of a directory into a store, the one of the name `last` as the last.

    Raises:
      InputError: they cannot be written. What has been written is not whole.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    paths.sort(key=lambda path: path.relative_to(directory).as_posix() == last)
    for path in paths:
        if lease:
            lease.check()
        objects.write(f"{uri}/{path.relative_to(directory).as_posix()}", path)


def _refuse_existing(uri: str, last: str, overwrite: bool) -> None:
    if not overwrite and objects.about(f"{uri}/{last}") is not None:
        raise InputError(f"{uri}: exists already; pass ``overwrite=True`` to replace it")


def _contents(uri: str) -> dict[str, objects.Object]:
    """The files below, or of a file itself under the name ``."""
    contents = objects.listed(uri)
    if contents:
        return contents
    alone = objects.about(uri)
    return {} if alone is None else {"": alone}


def _copy(uri: str, found: dict[str, objects.Object], place: Path) -> bool:
    """Copies the files; whether they are as long as the store says, and as their sums say."""
    for name, one in found.items():
        path = place / name if name else place
        files.make_parent(path)
        try:
            objects.download(f"{uri}/{name}" if name else uri, path)
        except FileNotFoundError:
            return False
        if path.stat().st_size != one.size:
            return False
    model_json = place / "model.json"
    sums = files.read_json(model_json) if model_json.is_file() else {}
    for name, expected in (sums.get("sha256") or {}).items() if isinstance(sums, dict) else ():
        if (place / name).is_file() and _sha256(place / name) != expected:
            raise InputError(f"{uri}/{name}: changed or damaged since it was saved; copy it again")
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return files.make_dir(Path(os.environ.get(CACHE) or Path(home) / "fct_tf") / "stores")
