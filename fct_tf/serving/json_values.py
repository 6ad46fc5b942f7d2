"""Single JSON values as elements of tensors: what TF Serving takes for which dtype."""

import math
import re
from base64 import b64decode
from typing import Any

import numpy as np
from grpc import StatusCode
from tensorflow.core.framework import types_pb2

from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.json_document import spelled, type_name

FLOATS: dict[int, Any] = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_DOUBLE: np.float64}
# The dtype of the array, and the numbers that JSON may have for it: small integers may be any
# int32, and then wrap around.
INTEGERS: dict[int, tuple[Any, int, int]] = {
    types_pb2.DT_INT8: (np.int8, -(2**31), 2**31 - 1),
    types_pb2.DT_INT16: (np.int16, -(2**31), 2**31 - 1),
    types_pb2.DT_INT32: (np.int32, -(2**31), 2**31 - 1),
    types_pb2.DT_UINT8: (np.uint8, -(2**31), 2**31 - 1),
    types_pb2.DT_INT64: (np.int64, -(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (np.uint32, 0, 2**32 - 1),
    types_pb2.DT_UINT64: (np.uint64, 0, 2**64 - 1),
}
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def of_dtype(value: Any, dtype: int) -> Any:
    """A value of an input of a dtype (`types_pb2.DT_...`), as NumPy takes it.

    Raises:
      ServingError: INVALID_ARGUMENT, of another type or not held by it; UNIMPLEMENTED, JSON has
        nothing for this dtype.
    """
    if dtype == types_pb2.DT_STRING:
        return to_bytes(value)
    if dtype == types_pb2.DT_BOOL:
        if not isinstance(value, bool):
            raise _type_error(value, dtype)
        return value
    if dtype in FLOATS:
        return _number(value, dtype)
    if dtype in INTEGERS:
        _, lowest, highest = INTEGERS[dtype]
        if type(value) is not int or not lowest <= value <= highest:
            raise _type_error(value, dtype)
        return value
    if isinstance(value, dict):
        raise _type_error(value, dtype)
    raise ServingError(
        StatusCode.UNIMPLEMENTED,
        f"Conversion of JSON Value: {spelled(value)} to type: {_dtype_name(dtype)}",
    )


def largest_whole(dtype: int) -> int:
    """The largest integer that JSON may have for a float."""
    return 2 ** (24 if dtype == types_pb2.DT_FLOAT else 53) - 1


def _number(value: Any, dtype: int) -> int | float:
    if type(value) not in (int, float):
        raise _type_error(value, dtype)
    if isinstance(value, int):
        fits = abs(value) <= largest_whole(dtype)
    else:
        fits = not math.isfinite(value) or abs(value) <= float(np.finfo(FLOATS[dtype]).max)
    if not fits:
        raise invalid(
            f"Cannot convert JSON value: {spelled(value)} to {_dtype_name(dtype)} "
            "without loss of precision."
        )
    return value


def to_float(value: float) -> float:
    """A number that float32 holds."""
    return _number(value, types_pb2.DT_FLOAT)


def to_bytes(value: Any) -> bytes:
    """The bytes of a string or of `{"b64": TEXT}`."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not isinstance(value, dict):
        raise _type_error(value, types_pb2.DT_STRING)
    if not is_base64(value):
        raise invalid(f"JSON Value: {spelled(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    code = text.rstrip("=")
    padded = len(code) == len(text) or len(text) % 4 == 0
    if not _BASE64.fullmatch(text) or not padded or len(code) % 4 == 1:
        raise invalid("Unable to base64 decode")
    return b64decode(code + "=" * (-len(code) % 4))


def _type_error(value: Any, dtype: int) -> ServingError:
    return invalid(
        f"JSON Value: {spelled(value)} Type: {type_name(value)} "
        f"is not of expected type: {_dtype_name(dtype)}"
    )


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def is_base64(value: Any) -> bool:
    """Whether a value is `{"b64": TEXT}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)
