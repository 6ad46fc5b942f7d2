"""An index on the disk: a directory whose manifest names one generation of files, whole or not.

    index/manifest.json      which generation counts, and the size and SHA-256 of each file of it
    index/generation-7/      ScaNN's files, `searcher.json`, and `ids.arrow`: ids, and a digest of
                             each row's values

Of an index in shards each is such a directory in itself, of some fragments of the gallery:

    index/manifest.json      which shards count, and the size and SHA-256 of each one's manifest
    index/shard-3-7/         shard 3 as the whole index's generation 7 made it

A writer makes the next generation beside the one that serves, then replaces the manifest in one
step; killed anywhere before, it changes nothing. Readers hold all of it in memory once open. No
file is a pickle, and only files that the manifest names are read.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fct_tf.ann import manifests
from fct_tf.ann.manifests import (
    FORMAT,
    GENERATION,
    IDS,
    MANIFEST,
    REMEDY,
    SHARD,
    SHARDED,
    generation_of,
    is_sharded,
    on_disk,
    shards,
)
from fct_tf.ann.merged import Merged
from fct_tf.ann.searcher import Searcher
from fct_tf.common import files, runs
from fct_tf.common.errors import InputError

# A shard until it is whole, of which several may be made at once; or while it is removed.
_UNFINISHED = re.compile(r"\.shard-[1-9]\d*-[1-9]\d*\.[0-9a-f]+\.(tmp|removed)")


def load(
    directory: str | os.PathLike,
) -> tuple[dict, Searcher | Merged, pa.Array, np.ndarray]:
    """The manifest, searcher, ids and digests of an index, all in memory, as they were committed.

    Raises:
      InputError: no index, or a file is missing or is not what was written.
    """
    while True:
        manifest = manifests.read(directory)
        try:
            load_it = _load_shards if is_sharded(manifest) else _load_one
            searcher, ids, digests = load_it(Path(directory), manifest)
            if searcher.num_rows != manifest["num_rows"]:
                raise InputError(
                    f"{Path(directory) / MANIFEST}: says {manifest['num_rows']} rows, there are "
                    f"{searcher.num_rows}; {REMEDY}"
                )
            return manifest, searcher, ids, digests
        except InputError:
            # A writer may have replaced what was being read.
            if manifests.read(directory)["generation"] == manifest["generation"]:
                raise


def _load_one(directory: Path, manifest: dict) -> tuple[Searcher, pa.Array, np.ndarray]:
    check(directory, manifest)
    generation = directory / manifest["generation"]
    searcher = Searcher.load(generation)
    ids, digests = _read_ids(generation / IDS)
    if len(ids) != searcher.num_rows:
        raise InputError(f"{generation}: {len(ids)} ids for {searcher.num_rows} rows; {REMEDY}")
    return searcher, ids, digests


def _load_shards(directory: Path, manifest: dict) -> tuple[Merged, pa.Array, np.ndarray]:
    check(directory, manifest)
    parts = []
    for name in shards(manifest):
        own = manifests.read(directory / name)
        if is_sharded(own):
            raise InputError(f"{directory / name}: is no shard; {REMEDY}")
        parts.append(_load_one(directory / name, own))
    searchers, ids, digests = zip(*parts, strict=True)
    return Merged(searchers), pa.concat_arrays(ids), np.concatenate(digests)


def check(directory: str | os.PathLike, manifest: dict) -> None:
    """Refuses files that are not what a manifest says, by name; of shards, their manifests."""
    place = Path(directory) / ("" if is_sharded(manifest) else manifest["generation"])
    for name, written in manifest["files"].items():
        _check(place / name, written)


def check_present(directory: str | os.PathLike, manifest: dict) -> None:
    """Refuses by name files that are missing or of another length, without reading them."""
    for name, written in manifest["files"].items():
        _check(Path(directory) / manifest["generation"] / name, written, whole=False)


def load_ids(directory: str | os.PathLike, manifest: dict) -> tuple[pa.Array, np.ndarray]:
    """The ids and digests of an index in one piece, and nothing else of it."""
    path = Path(directory) / manifest["generation"] / IDS
    _check(path, manifest["files"][IDS])
    return _read_ids(path)


@contextlib.contextmanager
def writing(directory: str | os.PathLike, *, resuming: bool = False) -> Iterator[dict | None]:
    """The index for this writer alone: its manifest, None where there is none yet.

    What killed writers left is removed; if `resuming`, all but whole shards of the next generation.

    Raises:
      InputError: another process is writing it, or the directory holds other things.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: a file of that name is in the way; choose another")
    with runs.locked(directory, str(directory)):
        manifest = manifests.read(directory) if (directory / MANIFEST).exists() else None
        strangers = [one.name for one in directory.iterdir() if not _is_own(one.name)]
        if manifest is None and strangers:
            raise InputError(
                f"{directory}: holds {sorted(strangers)[0]!r} and no index; choose another path"
            )
        _remove_others(directory, manifest, generation_of(manifest) + 1 if resuming else 0)
        yield manifest


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
    matches = [GENERATION.fullmatch(one.name) for one in directory.iterdir()]
    if (directory / MANIFEST).exists():
        matches.append(GENERATION.fullmatch(manifests.read(directory)["generation"]))
    number = 1 + max((int(match[1]) for match in matches if match), default=0)
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
    return _write(directory, {**about, "format": FORMAT, "generation": generation.name}, written)


def commit_shards(
    directory: str | os.PathLike, names: Sequence[str], number: int, about: dict
) -> dict:
    """Lets these shards be generation `number` of an index; inside `writing`. As `commit`."""
    directory = Path(directory)
    written = {f"{name}/{MANIFEST}": _sync(directory / name / MANIFEST) for name in names}
    _sync_dir(directory)
    head = {"format": SHARDED, "generation": f"generation-{number}"}
    return _write(directory, {**about, **head}, written)


def _write(directory: Path, manifest: dict, written: dict) -> dict:
    """Lets a generation count whose files are written; those of others go."""
    head = {key: manifest.pop(key) for key in ("format", "generation")}
    manifest = {**head, **manifest, "files": written}
    files.write_json(directory / MANIFEST, manifest)
    _sync_dir(directory)
    _remove_others(directory, manifest)
    return manifest


@contextlib.contextmanager
def making(directory: str | os.PathLike, name: str) -> Iterator[Path]:
    """A new directory for a shard that is made in it, and gone again at the end of the block.

    Name and place are no other attempt's, so that the same shard may be made twice at once.
    """
    temporary = Path(directory) / f".{name}.{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put(made: Path, name: str, fits: Callable[[Path], bool]) -> None:
    """Lets a shard of `making` have its name, if none that fits has it already."""
    shard = made.with_name(name)
    while True:
        try:
            os.rename(made, shard)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise InputError(f"{shard}: cannot be written ({files.one_line(error)})") from None
        if fits(shard):
            return
        runs.remove(shard)


def amend(directory: str | os.PathLike, manifest: dict) -> dict:
    """Replaces the manifest and no other file; inside `writing`. Returns it."""
    files.write_json(Path(directory) / MANIFEST, manifest)
    _sync_dir(Path(directory))
    return manifest


def check_output(directory: str | os.PathLike, overwrite: bool) -> None:
    """Refuses an index that is there already unless it may be overwritten."""
    if (on_disk(directory) / MANIFEST).exists():
        files.refuse_existing(directory, overwrite)


def _check(path: Path, written: dict, *, whole: bool = True) -> None:
    """Refuses a file that is not what the manifest says, by name; its content too if `whole`."""
    try:
        if not path.is_file() or path.is_symlink():
            raise InputError(f"{path}: missing; put it back, or {REMEDY}")
        size = path.stat().st_size
        if size != written["bytes"]:
            raise InputError(f"{path}: has {size} bytes instead of {written['bytes']}; {REMEDY}")
        if whole and _digest(path) != written["sha256"]:
            raise InputError(f"{path}: has been changed since it was written; {REMEDY}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None


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
        raise InputError(f"{path}: cannot be read ({files.one_line(error)}); {REMEDY}") from None


def _is_own(name: str) -> bool:
    return (
        any(pattern.fullmatch(name) for pattern in (GENERATION, SHARD, _UNFINISHED))
        or name.startswith(f".{MANIFEST}.")
        or name == MANIFEST
    )


def _remove_others(directory: Path, manifest: dict | None, resumed: int = 0) -> None:
    """Removes what no manifest names any more, and nothing that is not an index's; whole shards of
    the generation `resumed` stay."""
    kept = {MANIFEST}
    if manifest:
        kept |= {*shards(manifest)} if is_sharded(manifest) else {manifest["generation"]}
    for path in directory.iterdir():
        shard = SHARD.fullmatch(path.name)
        if not _is_own(path.name) or path.name in kept or (shard and int(shard[2]) == resumed):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
