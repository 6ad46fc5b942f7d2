"""Arrays as TF Serving writes them into JSON, to the character.

Floats have six digits (`%g`) where those read back as the same number, else nine (float32) or 17
(float64); `.0` is added where there is neither `.` nor `e`; NaN, Infinity and -Infinity are bare.
"""

import base64
import json
import math
from collections.abc import Sequence

import numpy as np
import orjson

from fct_tf.serving.errors import invalid

_POWERS = 10.0 ** np.arange(-4, 7)  # Exact from 1 on; no float32 equals one of the others.
# What brings a number between two powers to nine digits before the point.
_TO_NINE_DIGITS = 10.0 ** (8 - np.arange(-5, 7))


def decimal(value: float, *, single: bool) -> str:
    """One number; `single`: a float32."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if single:
        value = float(np.float32(value))
    text = f"{value:g}"
    with np.errstate(over="ignore"):
        same = np.float32(text) == np.float32(value) if single else float(text) == value
    if not same:
        text = f"{value:.9g}" if single else f"{value:.17g}"
    return text if "." in text or "e" in text else text + ".0"


def string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def tokens(array: np.ndarray, *, as_bytes: bool = False) -> list[str]:
    """JSON of each element, in row-major order.

    Args:
      array: of a dtype that the JSON of TF Serving has; bytes in an object array are strings.
      as_bytes: strings become `{"b64": ...}`.

    Raises:
      ServingError: INVALID_ARGUMENT, another dtype.
    """
    flat = array.reshape(-1)
    if array.dtype == np.float32:
        return _float32(flat)
    if array.dtype == np.float64:
        return [decimal(value, single=False) for value in flat.tolist()]
    if array.dtype == np.bool_:
        return ["true" if value else "false" for value in flat.tolist()]
    if array.dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64):
        return [str(value) for value in flat.tolist()]
    if array.dtype.kind in "OSU":
        values = [v if isinstance(v, bytes) else str(v).encode() for v in flat.tolist()]
        if as_bytes:
            return [f'{{"b64": "{base64.b64encode(v).decode()}"}}' for v in values]
        return [string(v.decode("utf-8", "surrogateescape")) for v in values]
    name = {"float16": "half"}.get(array.dtype.name, array.dtype.name)
    raise invalid(f"Failed to write JSON value for tensor type: {name}")


def rows(array: np.ndarray, *, as_bytes: bool = False) -> list[str]:
    """JSON of each row of an array `[n, ...]`, on one line; see `tokens`."""
    return _nested(tokens(array, as_bytes=as_bytes), array.shape, 1, None)


def whole(array: np.ndarray, *, as_bytes: bool = False, depth: int = 0) -> str:
    """JSON of an array, one element a line, that stands at a depth of indentation."""
    return _nested(tokens(array, as_bytes=as_bytes), array.shape, 0, depth)[0]


def _nested(
    parts: list[str], shape: Sequence[int], first_axis: int, depth: int | None
) -> list[str]:
    """Joins elements into lists, from the last axis up to `first_axis`; no `depth` is one line."""
    for axis in reversed(range(first_axis, len(shape))):
        size, count = shape[axis], math.prod(shape[:axis])
        if size == 0:
            parts = ["[]"] * count
            continue
        between, first, last = ", ", "", ""
        if depth is not None:
            first = "\n" + "    " * (depth + axis + 1)
            between, last = "," + first, "\n" + "    " * (depth + axis)
        parts = [
            f"[{first}{between.join(parts[i : i + size])}{last}]"
            for i in range(0, count * size, size)
        ]
    return parts


def _float32(flat: np.ndarray) -> list[str]:
    """`decimal` of each, 20 times as fast: orjson's shortest spelling of the rounded number.

    From 1e-4 up to 1e6 neither writes an exponent. There the product with the scale is exact in
    float64 (24 bits by 5^12 at most), rounding it is that of C, and what is left of the decimal
    after the division is its nearest float64, whose shortest spelling is the decimal. The
    others are few.
    """
    with np.errstate(invalid="ignore"):  # A signalling NaN.
        exact = flat.astype(np.float64)
    size = np.abs(exact)
    scale = _TO_NINE_DIGITS[np.searchsorted(_POWERS, size, side="right")]
    usual = (size >= _POWERS[0]) & (size < _POWERS[-1]) | (size == 0)
    with np.errstate(invalid="ignore", over="ignore"):
        nine = np.rint(exact * scale) / scale
        scale = scale / 1e3
        six = np.rint(exact * scale) / scale
        reads_back = six.astype(np.float32) == flat
    numbers = np.where(usual, np.where(reads_back, six, nine), 0.0)
    texts = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY).decode()[1:-1].split(",")
    for i in np.flatnonzero(~usual).tolist():
        texts[i] = decimal(float(flat[i]), single=True)
    return texts if flat.size else []
