"""Rows by id: where ids are in others, and ids that are missing or occur more than once."""

import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fct_tf.common.errors import InputError
from fct_tf.gallery.text_columns import place_of

# Ids whose hashes are sorted together, and the ranges of values into which sorted runs are cut: a
# billion ids are a thousand runs, of which one range holds about as many hashes as one run.
_RUN_IDS = 1 << 20
_RANGES = 1 << 10
_MAX_SUSPECTS = 1000
_hash = hash

Ids: TypeAlias = Sequence[str] | np.ndarray | pa.Array


def places(ids: Ids, known: Ids) -> np.ndarray:
    """Where each of `ids` is in `known`, the first time: int64 [n], -1 where it is not.

    `known` is hashed anew in each call; see `Lookup` for many.
    """
    positions = pc.index_in(_array(ids), value_set=_array(known))
    return positions.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


class Lookup:
    """`places` in the same ids, again and again; they must be unique."""

    def __init__(self, known: Iterable[str]):
        self._place = {name: place for place, name in enumerate(known)}

    def __call__(self, ids: Iterable[str]) -> np.ndarray:
        return np.array([self._place.get(name, -1) for name in ids], np.int64)

    def of_rows(self, ids: Sequence[str] | np.ndarray, where: str) -> np.ndarray:
        """As a call, of rows that were all there when it was looked; `InputError` if not."""
        place = self(ids)
        strangers = np.flatnonzero(place < 0)
        if len(strangers):
            raise InputError(
                f"{where}: row {ids[strangers[0]]!r} has come in the meantime; start the same "
                "command again"
            )
        return place


def _array(ids: Ids) -> pa.Array:
    if isinstance(ids, pa.Array):
        return ids.cast(pa.large_string())
    return pa.array(list(ids), pa.large_string())


def repeated(where: str, name: str, rows: str = "") -> InputError:
    """What to raise of an id that more than one row has; `rows` may say which."""
    return InputError(f"{where}: id {name!r} occurs more than once{rows}; ids must be unique")


class UniqueIds:
    """Finds the first repeated id of a stream in 8 bytes per row.

    64-bit hashes are kept in sorted runs that double in size, so that a billion ids need 8 GB.
    Two different ids share a hash with probability n^2 / 2^65: 3e-8 for a million rows, 3 % for
    a billion. `confirm` looks at the ids themselves where the stream can be read again: it takes
    suspected ids and returns those that really occur more than once. Without it (`create`, whose
    rows are gone once they are written) such an id is reported although it is unique; the hashes
    of another process differ, so that a second attempt succeeds.
    """

    def __init__(self, confirm: Callable[[list[str]], list[str]] | None = None) -> None:
        self._runs: list[np.ndarray] = []
        self._confirm = confirm

    def add(self, ids: Sequence[str] | np.ndarray) -> list[str]:
        """Takes the next ids of the stream; returns those seen before, in this call or earlier."""
        hashes = np.fromiter(map(_hash, ids), np.int64, count=len(ids))
        order = np.argsort(hashes, kind="stable")
        run = hashes[order]
        seen = np.zeros(len(run), bool)
        seen[1:] = run[1:] == run[:-1]
        for earlier in self._runs:
            position = np.minimum(np.searchsorted(earlier, run), len(earlier) - 1)
            seen |= earlier[position] == run
        if len(run):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        suspected = [str(ids[row]) for row in np.sort(order[seen])]
        if not suspected or self._confirm is None:
            return suspected
        really = set(self._confirm(suspected))
        return [i for i in suspected if i in really]


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
                raise repeated(where, value, f" ({place(seen[value])} and {place(row)})")
            seen[value] = row
        start += len(ids)


def looks_like(name: str, others: Iterable[str]) -> str:
    """Of an id that was not found: `; it looks like ...` where another one only looks the same.

    Such are the composed and the decomposed form of an accented letter, spaces of another kind,
    and characters that are not shown. Both are given with their code points.
    """
    appearance, plain = _appearance(name), _is_plain(name)
    for other in others:
        # Two plain ids that differ do not look the same; looking at the others takes time.
        if other != name and not (plain and _is_plain(other)) and _appearance(other) == appearance:
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
    suspects: set[int] = set()
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
            suspects.update(hashes[1:][hashes[1:] == hashes[:-1]][:_MAX_SUSPECTS].tolist())
            if len(suspects) >= _MAX_SUSPECTS:
                break
    return suspects
