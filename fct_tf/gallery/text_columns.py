"""Ids and labels of other tools as text: strings, whole numbers, and UUIDs kept as bytes.

Bytes are never replaced: two names that differ must stay two. What 16 bytes mean is decided for a
whole column:

- A type of exactly 16 bytes (`fixed_size_binary(16)`, Arrow's and Parquet's UUID, NumPy's `V16`
  and `uint8 [n, 16]`, HDF5's opaque) holds UUIDs, whatever the bytes are.
- Bytes of any length (`binary`, NumPy's `S`, HDF5's strings) are how tools store text, so they are
  text where all of them are printable UTF-8. Else they are UUIDs if each has 16 bytes, unless all
  would be printable as Latin-1: those are names in that encoding, and refused.
- All other bytes are UTF-8 text without zeros, or refused.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fct_tf.common.errors import InputError

UUID = pa.binary(16)
WANTED = "texts, whole numbers or UUIDs are needed"
# NumPy drops zeros at the end of its `S16`; more than two are no UUID's by chance.
_SHORTEST = 14


def place_of(row: int) -> str:
    return f"row {row}"


def as_text(
    arrays: Callable[[], Iterable[pa.Array]],
    where: str,
    place: Callable[[int], str] = place_of,
    uuids: bool | None = None,
) -> Iterator[pa.Array]:
    """The arrays of a column as string arrays; empty text is null.

    Args:
      arrays: gives the column; called a second time where bytes of any length must be looked at
        before the first can be read.
      where: file and column, for messages.
      place: names a row in messages, given its number.
      uuids: what `hold_uuids` says, if it has been asked already.

    Raises:
      InputError: another type, or bytes that are no UTF-8; names the row.
    """
    start = 0
    for array in arrays():
        if uuids is None and is_bytes(array.type):
            uuids = hold_uuids(arrays())
        yield convert(array, bool(uuids), where, functools.partial(_shifted, place, start))
        start += len(array)


def _shifted(place: Callable[[int], str], start: int, row: int) -> str:
    return place(start + row)


def hold_uuids(arrays: Iterable[pa.Array]) -> bool:
    """Whether bytes of any length are UUIDs, given the arrays of the whole column."""
    held = (_plain(array) for array in arrays if is_bytes(array.type))
    return _are_uuids(value for array in held for value in array.to_pylist())


def convert(
    array: pa.Array, uuids: bool, where: str, place: Callable[[int], str] = place_of
) -> pa.Array:
    """An array as a string array, where `uuids` is what `hold_uuids` says. Errors as `as_text`."""
    array = _plain(array)
    kind = array.type
    if not is_readable(kind):
        raise InputError(f"{where}: {WANTED}, received {kind}; store them as text")
    if kind == UUID or (uuids and is_bytes(kind)):
        return pa.array(map(_uuid, array.to_pylist()), pa.string())
    if is_bytes(kind):
        decoded = [_decode(value, where, place, row) for row, value in enumerate(array.to_pylist())]
        text = pa.array(decoded, pa.string())
    else:
        text = array.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds bytes that may be text."""
    kind = _plain_type(kind)
    fixed = pa.types.is_fixed_size_binary(kind) and kind != UUID
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return fixed or any(test(kind) for test in tests)


def is_string(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds text, as a dictionary or not."""
    kind = _plain_type(kind)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def is_readable(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type can be ids or labels."""
    kind = _plain_type(kind)
    numbers = pa.types.is_integer(kind) or pa.types.is_null(kind)
    return kind == UUID or is_bytes(kind) or is_string(kind) or numbers


def of_numpy(values: np.ndarray, where: str) -> np.ndarray:
    """object [n] of str, None for empty: a NumPy or HDF5 array as text.

    Args:
      values: [n] of text, bytes or whole numbers; or uint8 [n, 16], the bytes of UUIDs.
      where: file and array, for messages.

    Raises:
      InputError: another shape or type, or bytes that are no UTF-8; names the row.
    """
    array = _arrow(values, where)
    (text,) = as_text(lambda: [array], where)
    return objects([text])


def objects(arrays: Iterable[pa.Array]) -> np.ndarray:
    """String arrays as object [n] of str, None for null."""
    return np.array([value for array in arrays for value in array.to_pylist()], dtype=object)


def _arrow(values: np.ndarray, where: str) -> pa.Array:
    if values.dtype == np.uint8 and values.ndim == 2 and values.shape[1] == 16:
        values = np.ascontiguousarray(values).view("V16")[:, 0]
    if values.ndim != 1:
        raise InputError(f"{where}: one text per row is needed, received shape {values.shape}")
    kind = values.dtype.kind
    if kind in "iu":
        return pa.array(values.astype(values.dtype.newbyteorder("=")))
    if kind not in "SUVO" or values.dtype.names:
        raise InputError(f"{where}: {WANTED}, received {values.dtype}; save them as text")
    listed = values.tolist()
    if kind == "V":
        return pa.array(listed, pa.binary(values.dtype.itemsize))
    if kind == "S":
        if values.dtype.itemsize == 16 and _are_uuids(filter(None, listed), _SHORTEST):
            return pa.array([one.ljust(16, b"\0") if one else None for one in listed], UUID)
        return pa.array(listed, pa.binary())
    for row, value in enumerate(listed):
        if not isinstance(value, str | bytes | None):
            raise InputError(f"{where}: row {row}: {WANTED}, received {value!r}")
        if isinstance(value, str) and not _encodes(value):
            raise InputError(f"{where}: row {row}: {value!r} is no Unicode text; correct it")
    listed = [value.encode() if isinstance(value, str) else value for value in listed]
    return pa.array(listed, pa.binary())


def _plain_type(kind: pa.DataType) -> pa.DataType:
    kind = getattr(kind, "storage_type", kind)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(array: pa.Array) -> pa.Array:
    """Without the shell of an extension type and of a dictionary."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _are_uuids(values: Iterable[bytes | None], shortest: int = 16) -> bool:
    """Whether bytes of any length are UUIDs: see the head of this file."""
    utf_8 = latin_1 = True
    for value in values:
        if value is None:
            continue
        if not shortest <= len(value) <= 16:
            return False
        utf_8 = utf_8 and _is_printable(value, "utf-8")
        latin_1 = latin_1 and _is_printable(value, "latin-1")
    return not utf_8 and not latin_1


def _is_printable(value: bytes, encoding: str) -> bool:
    try:
        return value.decode(encoding).isprintable()
    except UnicodeDecodeError:
        return False


def _encodes(value: str) -> bool:
    """Whether text can be written: half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _uuid(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _decode(value: bytes | None, where: str, place: Callable[[int], str], row: int) -> str | None:
    if value is None:
        return None
    # Text has no zeros; keys that are numbers in binary have.
    with contextlib.suppress(UnicodeDecodeError):
        if b"\0" not in value:
            return value.decode()
    raise InputError(
        f"{where}: {place(row)}: {value!r} is neither UTF-8 text nor one of a column of UUIDs "
        "of 16 bytes; store text as UTF-8, and other keys as their hexadecimal text"
    )
