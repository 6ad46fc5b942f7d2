"""An index on the disk: a directory whose manifest names one generation of files, whole or not.

    index/manifest.json      which generation counts, and the size and SHA-256 of each file of it
    index/generation-7/      ScaNN's files, `searcher.json`, and `ids.arrow`: ids, and a digest of
                             each row's values

A writer makes the next generation beside the one that serves, then replaces the manifest in one
step; killed anywhere before, it changes nothing. Readers hold all of it in memory once open. No
file is a pickle, and only files that the manifest names are read.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fct_tf.ann.searcher import HEADER, Searcher
from fct_tf.common import files, runs
from fct_tf.common.errors import InputError

MANIFEST, IDS = "manifest.json", "ids.arrow"
FORMAT = 1
_GENERATION = re.compile(r"generation-([1-9]\d*)")
_NAME = re.compile(r"[A-Za-z0-9_]+\.[a-z]+")
_REMEDY = "build it again with build_index --overwrite"


def read_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of an index, checked as far as opening needs it.

    Raises:
      InputError: no index, one of a newer format, or a broken manifest.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise InputError(f"{directory}: no index here (no {MANIFEST}); make one with build_index")
    manifest = files.read_json(path)
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if type(number) is not int:
        raise InputError(f"{path}: not the manifest of an index; {_REMEDY}")
    if number > FORMAT:
        raise InputError(
            f"{path}: has index format {number}, this version reads up to {FORMAT}; install a "
            "newer fct_tf"
        )
    if not _is_whole(manifest):
        raise InputError(f"{path}: broken; {_REMEDY}")
    return manifest


def _is_whole(manifest: dict) -> bool:
    """Whether it has what an index is opened with, each of its type."""
    parts = ("column", "gallery", "fragments", "training", "files")
    if not all(isinstance(manifest.get(name), dict) for name in parts):
        return False
    column = {"name", "dim", "dtype", "space", "kind", "distance", "compatible_with", "model"}
    return (
        _GENERATION.fullmatch(str(manifest.get("generation"))) is not None
        and column <= {*manifest["column"]}
        and {"uri", "version"} <= {*manifest["gallery"]}
        and {"by", "num_rows", "changed"} <= {*manifest["training"]}
        and {IDS, HEADER} <= {*manifest["files"]}
        and all(
            _NAME.fullmatch(name) and isinstance(told, dict) and {"bytes", "sha256"} <= {*told}
            for name, told in manifest["files"].items()
        )
    )


def load(directory: str | os.PathLike) -> tuple[dict, Searcher, pa.Array, np.ndarray]:
    """The manifest, searcher, ids and digests of an index, all in memory, as `commit` had them.

    Raises:
      InputError: no index, or a file is missing or is not what was written.
    """
    while True:
        manifest = read_manifest(directory)
        generation = Path(directory) / manifest["generation"]
        try:
            for name, written in manifest["files"].items():
                _check(generation / name, written)
            searcher = Searcher.load(generation)
            ids, digests = _read_ids(generation / IDS)
            if len(ids) != searcher.num_rows:
                raise InputError(
                    f"{generation}: {len(ids)} ids for {searcher.num_rows} rows; {_REMEDY}"
                )
        except InputError:
            # A writer may have replaced what was being read.
            if read_manifest(directory)["generation"] != manifest["generation"]:
                continue
            raise
        return manifest, searcher, ids, digests


@contextlib.contextmanager
def writing(directory: str | os.PathLike) -> Iterator[dict | None]:
    """The index for this writer alone: its manifest, None where there is none yet.

    What killed writers left is removed. A directory that is made for this and stays empty goes.

    Raises:
      InputError: another process is writing it, or the directory holds other things.
    """
    directory = Path(directory)
    made = not directory.exists()
    if not made and not directory.is_dir():
        raise InputError(f"{directory}: a file of that name is in the way; choose another")
    with runs.locked(directory, str(directory)):
        try:
            manifest = read_manifest(directory) if (directory / MANIFEST).exists() else None
            strangers = [one.name for one in directory.iterdir() if not _is_own(one.name)]
            if manifest is None and strangers:
                raise InputError(
                    f"{directory}: holds {sorted(strangers)[0]!r} and no index; choose another path"
                )
            _remove_others(directory, manifest)
            yield manifest
        finally:
            if made:
                with contextlib.suppress(OSError):  # Not empty.
                    directory.rmdir()


def commit(
    directory: str | os.PathLike,
    searcher: Searcher,
    ids: pa.Array,
    digests: np.ndarray,
    about: dict,
) -> dict:
    """Writes the next generation and lets it count; inside `writing`.

    Args:
      directory: of the index.
      searcher: of n rows.
      ids: large_string [n].
      digests: uint64 [n], of the rows' values.
      about: of the manifest, all but generation, format and files.

    Returns:
      The new manifest.
    """
    directory = Path(directory)
    there = [_GENERATION.fullmatch(one.name) for one in directory.iterdir()]
    number = 1 + max((int(match[1]) for match in there if match), default=0)
    generation = directory / f"generation-{number}"
    try:
        generation.mkdir()
        searcher.save(generation)
        with pa.OSFile(str(generation / IDS), "wb") as sink:
            batch = pa.record_batch([ids, pa.array(digests)], names=["id", "digest"])
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
        written = {path.name: _sync(path) for path in sorted(generation.iterdir())}
        for parent in (generation, directory):
            _sync_dir(parent)
    except OSError as error:
        shutil.rmtree(generation, ignore_errors=True)
        raise InputError(f"{generation}: cannot be written ({files.one_line(error)})") from None
    except BaseException:
        shutil.rmtree(generation, ignore_errors=True)
        raise
    head = {"format": FORMAT, "generation": generation.name}
    manifest = {**head, **about, **head, "files": written}
    files.write_json(directory / MANIFEST, manifest)
    _sync_dir(directory)
    _remove_others(directory, manifest)
    return manifest


def amend(directory: str | os.PathLike, manifest: dict) -> dict:
    """Replaces the manifest and no other file; inside `writing`. Returns it."""
    files.write_json(Path(directory) / MANIFEST, manifest)
    _sync_dir(Path(directory))
    return manifest


def check_output(directory: str | os.PathLike, overwrite: bool) -> None:
    """Refuses an index that is there already unless it may be overwritten."""
    if (Path(directory) / MANIFEST).exists():
        files.refuse_existing(directory, overwrite)


def _check(path: Path, written: dict) -> None:
    """Refuses a file that is not what the manifest says, by name."""
    try:
        if not path.is_file() or path.is_symlink():
            raise InputError(f"{path}: missing; put it back, or {_REMEDY}")
        size = path.stat().st_size
        if size != written["bytes"]:
            raise InputError(f"{path}: has {size} bytes instead of {written['bytes']}; {_REMEDY}")
        if _digest(path) != written["sha256"]:
            raise InputError(f"{path}: has been changed since it was written; {_REMEDY}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None


def _sync(path: Path) -> dict:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_dir(directory: Path) -> None:
    with contextlib.suppress(OSError):  # Some file systems cannot.
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_ids(path: Path) -> tuple[pa.Array, np.ndarray]:
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
        ids = pa.concat_arrays([pa.array([], pa.large_string()), *table["id"].chunks])
        return ids, table["digest"].to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({files.one_line(error)}); {_REMEDY}") from None


def _is_own(name: str) -> bool:
    return bool(_GENERATION.fullmatch(name)) or name.startswith(f".{MANIFEST}.") or name == MANIFEST


def _remove_others(directory: Path, manifest: dict | None) -> None:
    """Removes what no manifest names any more, and nothing that is not an index's."""
    kept = (MANIFEST, manifest["generation"] if manifest else None)
    for path in directory.iterdir():
        if _is_own(path.name) and path.name not in kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
