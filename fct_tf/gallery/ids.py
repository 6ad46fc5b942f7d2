"""Ids of a whole gallery checked in memory that does not grow with its rows."""

import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from fct_tf.common.errors import InputError
from fct_tf.gallery.text_columns import place_of

# Ids whose hashes are sorted together, and the ranges of values into which sorted runs are cut: a
# billion ids are a thousand runs, of which one range holds about as many hashes as one run.
_RUN_IDS = 1 << 20
_RANGES = 1 << 10
_MAX_SUSPECTS = 1000
_hash = hash


def check_ids(
    read: Callable[[], Iterable[pa.Array]],
    where: str,
    place: Callable[[int], str] = place_of,
) -> None:
    """Refuses null and repeated ids, naming one and its rows.

    The 64-bit hashes of the ids go to a temporary file (8 bytes per row, in TMPDIR) in sorted
    runs, and one range of values after the other is read back from all of them. Ids that share a
    hash are read again and compared themselves.

    Args:
      read: gives all ids as Arrow string arrays; called a second time where hashes repeat.
      where: the gallery, for the message.
      place: names a row in messages, given its number.
    """
    try:
        suspects = _repeated(_hash_blocks(read(), where, place))
    except OSError as error:  # Of the temporary file: no directory for it, or a full disk.
        raise InputError(
            f"{where}: its ids cannot be checked ({error}); they need 8 bytes per row in a "
            "temporary file, set TMPDIR to a directory with that much room"
        ) from None
    seen: dict[str, int] = {}
    start = 0
    for ids in read() if suspects else ():
        for row, value in enumerate(ids.to_pylist(), start):
            if _hash(value) not in suspects:
                continue
            if value in seen:
                raise InputError(
                    f"{where}: id {value!r} occurs more than once ({place(seen[value])} and "
                    f"{place(row)}); ids must be unique"
                )
            seen[value] = row
        start += len(ids)


def looks_like(name: str, others: Iterable[str]) -> str:
    """Of an id that was not found: `; it looks like ...` where another one only looks the same.

    Such are the composed and the decomposed form of an accented letter, spaces of another kind,
    and characters that are not shown. Both are given with their code points.
    """
    wanted, plain = _appearance(name), _is_plain(name)
    for other in others:
        # Two plain ids that differ do not look the same; looking at the others takes time.
        if other != name and not (plain and _is_plain(other)) and _appearance(other) == wanted:
            return (
                f"; it looks like {other!r}, but is written {code_points(name)} and not "
                f"{code_points(other)}"
            )
    return ""


def code_points(text: str) -> str:
    """Text whose characters beyond printable ASCII are shown by number: `caf<U+00E9>`."""
    shown = (c if c.isascii() and c.isprintable() else f"<U+{ord(c):04X}>" for c in text)
    return "'" + "".join(shown) + "'"


def _is_plain(name: str) -> bool:
    return name.isascii() and name.isprintable() and " " not in name


def _appearance(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    shown = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc"))
    return " ".join(shown.split())


def _hash_blocks(
    batches: Iterable[pa.Array], where: str, place: Callable[[int], str]
) -> Iterator[np.ndarray]:
    """Hashes of the ids, int64, about `_RUN_IDS` at a time; refuses null."""
    row, held, count = 0, [np.empty(0, np.int64)], 0
    for ids in batches:
        if ids.null_count:
            first = row + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(f"{where}: {place(first)} has no id; every row needs a unique one")
        held.append(np.fromiter(map(_hash, ids.to_pylist()), np.int64, count=len(ids)))
        row, count = row + len(ids), count + len(ids)
        if count >= _RUN_IDS:
            yield np.concatenate(held)
            held, count = [np.empty(0, np.int64)], 0
    yield np.concatenate(held)


def _repeated(blocks: Iterable[np.ndarray]) -> set[int]:
    """Hashes that occur more than once; about `_MAX_SUSPECTS` of them where there are more."""
    starts = np.arange(1 - _RANGES // 2, _RANGES // 2) * (2**64 // _RANGES)
    edges: list[np.ndarray] = []
    found: set[int] = set()
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            block.sort()
            inner = np.searchsorted(block, starts)
            edges.append(file.tell() + block.itemsize * np.array([0, *inner, len(block)]))
            file.write(block.data)
        for first in range(_RANGES):
            parts = []
            for run in edges:
                file.seek(run[first])
                parts.append(np.frombuffer(file.read(run[first + 1] - run[first]), np.int64))
            hashes = np.sort(np.concatenate(parts))
            found.update(hashes[1:][hashes[1:] == hashes[:-1]][:_MAX_SUSPECTS].tolist())
            if len(found) >= _MAX_SUSPECTS:
                break
    return found
