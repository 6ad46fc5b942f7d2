"""The manifest of an index: which generation or shards count, and what they are of.

Other programs may have written into it, or a hand: what it says is held to the types that opening,
searching and updating an index need, and what it names to files of an index.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from fct_tf.ann.searcher import HEADER
from fct_tf.ann.settings import Settings
from fct_tf.common import files, stores
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import DISTANCES

MANIFEST, IDS = "manifest.json", "ids.arrow"
FORMAT, SHARDED = 1, 2
GENERATION = re.compile(r"generation-([1-9]\d*)")
SHARD = re.compile(r"shard-([1-9]\d*)-([1-9]\d*)")
_NAME = re.compile(r"[A-Za-z0-9_]+\.[a-z]+")
REMEDY = "build it again with build_index --overwrite"

# What an index is opened with, of which types.
_HEAD = {"num_rows": int, "settings": dict, "fragments": dict}
_COLUMN = {
    "name": str,
    "dim": int,
    "dtype": str,
    "space": str,
    "kind": str,
    "distance": str,
    "compatible_with": list,
    "model": str,
}
_LEFT_OUT = {"null": int, "without_direction": int}
_GALLERY = {"uri": str, "version": int | None}
_TRAINING = {"by": str, "num_rows": int, "changed": int}
_FILE = {"bytes": int, "sha256": str}


def on_disk(path: str | os.PathLike) -> Path:
    """The directory of an index, which searching reads as a whole.

    Raises:
      InputError: it lies in an object store.
    """
    if stores.in_store(path):
        raise InputError(
            f"{stores.masked(os.fspath(path))}: lies in an object store, and an index is a "
            "directory on this machine; name one (an index in a store is copied to it first)"
        )
    return Path(stores.local_form(path))


def read(directory: str | os.PathLike) -> dict:
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
        raise InputError(f"{path}: not the manifest of an index; {REMEDY}")
    if number > SHARDED:
        raise InputError(
            f"{path}: has index format {number}, this version reads up to {SHARDED}; install a "
            "newer fct_tf"
        )
    if not _is_whole(manifest):
        raise InputError(f"{path}: broken; {REMEDY}")
    return manifest


def is_sharded(manifest: dict) -> bool:
    """Whether it is of an index in shards."""
    return manifest["format"] == SHARDED


def shards(manifest: dict) -> list[str]:
    """The directories of the shards of an index, in their order."""
    return [name.partition("/")[0] for name in manifest["files"]] if is_sharded(manifest) else []


def number_of(shard: str) -> int:
    """The number of the shard in a directory of this name."""
    match = SHARD.fullmatch(shard)
    assert match
    return int(match[1])


def generation_of(manifest: dict | None) -> int:
    """The number of the generation; 0 where there is no index yet."""
    match = GENERATION.fullmatch(manifest["generation"]) if manifest else None
    return int(match[1]) if match else 0


def _is_whole(manifest: dict) -> bool:
    """Whether it has what an index is opened with, each of its type."""
    sharded, written = is_sharded(manifest), manifest.get("files")
    parts: list[tuple[object, Mapping]] = [
        (manifest, _HEAD),
        (manifest.get("column"), _COLUMN),
        (manifest.get("gallery"), _GALLERY),
        (manifest.get("left_out"), _LEFT_OUT),
        *([] if sharded else [(manifest.get("training"), _TRAINING)]),
    ]
    if not isinstance(written, dict) or not all(
        _has(one, types) for one, types in [*parts, *((entry, _FILE) for entry in written.values())]
    ):
        return False
    try:
        Settings.from_json(manifest["settings"])
    except InputError:
        return False
    return (
        GENERATION.fullmatch(str(manifest.get("generation"))) is not None
        and (bool(written) if sharded else {IDS, HEADER} <= {*written})
        and all(_is_name(name, sharded) for name in written)
        and all(name.isdecimal() for name in manifest["fragments"])
        and manifest["column"]["distance"] in DISTANCES
        # Earlier versions have measured none.
        and isinstance(manifest.get("recall"), int | float | None)
    )


def _has(part: object, types: Mapping) -> bool:
    """Whether it is an object with these names, each of its type; a bool is no number."""
    return isinstance(part, dict) and all(
        name in part and isinstance(part[name], kind) and not isinstance(part[name], bool)
        for name, kind in types.items()
    )


def _is_name(name: str, sharded: bool) -> bool:
    if not sharded:
        return _NAME.fullmatch(name) is not None
    shard, _, file = name.partition("/")
    return SHARD.fullmatch(shard) is not None and file == MANIFEST
