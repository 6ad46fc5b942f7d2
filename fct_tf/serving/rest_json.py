"""Predict over REST: JSON to the arrays of a signature, and arrays to JSON.

Row format: `{"instances": [...]}` is answered by `{"predictions": [...]}`; column format:
`{"inputs": ...}` by `{"outputs": ...}`. Codes and texts are those of TF Serving.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2

from fct_tf.serving import json_arrays, json_values
from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.json_document import Document, format_error, readable, spelled
from fct_tf.serving.json_values import FLOATS, INTEGERS

_HIGHEST_RANK = 64  # NumPy's.


def signature_name(document: Document) -> str:
    """The signature that is asked for; empty is the default one.

    Raises:
      ServingError: INVALID_ARGUMENT, no string.
    """
    name = document.members.get("signature_name", "")
    if not isinstance(name, str):
        text = "not formatted correctly. 'signature_name' key must be a string value."
        raise format_error(document.members, text)
    return readable(name)


def arrays(document: Document, inputs: Mapping[str, Any], name: str = "") -> dict[str, np.ndarray]:
    """The inputs of a predict request.

    Args:
      document: the request.
      inputs: `inputs` of the SignatureDef: name to TensorInfo.
      name: of the signature, for messages.

    Returns:
      Name to array, of the dtype of the signature and the shape that the JSON has; strings are
      `bytes` in an object array.

    Raises:
      ServingError: INVALID_ARGUMENT; UNIMPLEMENTED where JSON has nothing for a dtype.
    """
    if not inputs:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    members = document.members
    if "instances" in members and "inputs" in members:
        text = (
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
        raise format_error(members, text)
    dtypes = {key: inputs[key].dtype for key in sorted(inputs)}
    if "instances" in members:
        instances = members["instances"]
        if not isinstance(instances, list):
            raise format_error(members, "Expecting 'instances' to be an list/array")
        if not instances:
            raise format_error(members, "No values in 'instances' array")
        return _rows(instances, dtypes, document.has_booleans)
    if "inputs" in members:
        return _columns(members["inputs"], dtypes, document.has_booleans)
    raise invalid("Missing 'inputs' or 'instances' key")


def is_row_format(document: Document) -> bool:
    return "instances" in document.members


def predictions(outputs: Mapping[str, np.ndarray]) -> bytes:
    """The answer in row format.

    Args:
      outputs: name to array, all `[n, ...]`.

    Raises:
      ServingError: INVALID_ARGUMENT, no common first dimension or a dtype that JSON has not.
    """
    _check_any(outputs)
    rows = -1
    for name, array in sorted(outputs.items()):
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (-1, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)
    items = {
        name: json_arrays.rows(array, as_bytes=_is_binary(name))
        for name, array in sorted(outputs.items())
    }
    if rows == 0:
        return b'{\n    "predictions": []\n}'
    if len(items) == 1:
        text = ", ".join(next(iter(items.values())))
    else:
        between = ",\n            "
        keys = [json_arrays.string(name) for name in items]
        text = ",".join(
            "\n        {\n            "
            + between.join(f"{key}: {value}" for key, value in zip(keys, row, strict=True))
            + "\n        }"
            for row in zip(*items.values(), strict=True)
        )
    return _encoded(f'{{\n    "predictions": [{text}\n    ]\n}}')


def columns(outputs: Mapping[str, np.ndarray]) -> bytes:
    """The answer in column format.

    Raises:
      ServingError: INVALID_ARGUMENT, a dtype that JSON has not.
    """
    _check_any(outputs)
    depth = 1 if len(outputs) == 1 else 2
    items = {
        name: json_arrays.whole(array, as_bytes=_is_binary(name), depth=depth)
        for name, array in sorted(outputs.items())
    }
    if len(items) == 1:
        text = next(iter(items.values()))
    else:
        lines = (f"        {json_arrays.string(name)}: {item}" for name, item in items.items())
        text = "{\n" + ",\n".join(lines) + "\n    }"
    return _encoded(f'{{\n    "outputs": {text}\n}}')


def _check_any(outputs: Mapping[str, np.ndarray]) -> None:
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")


def _is_binary(name: str) -> bool:
    """Strings of such an output are written in base64."""
    return name.endswith("_bytes")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _rows(instances: list, dtypes: Mapping[str, int], has_booleans: bool) -> dict[str, np.ndarray]:
    first = instances[0]
    if not isinstance(first, dict) and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not _is_object(first):
        name = next(iter(dtypes))
        array = _fast(instances, dtypes[name], has_booleans)
        return _row_by_row(instances, dtypes, objects=False) if array is None else {name: array}
    if all(isinstance(row, dict) and row.keys() == dtypes.keys() for row in instances):
        arrays = {
            name: _fast([row[name] for row in instances], dtype, has_booleans)
            for name, dtype in dtypes.items()
        }
        if all(array is not None for array in arrays.values()):
            return {name: array for name, array in arrays.items() if array is not None}
    return _row_by_row(instances, dtypes, objects=True)


def _row_by_row(
    instances: list, dtypes: Mapping[str, int], *, objects: bool
) -> dict[str, np.ndarray]:
    """What `_fast` does not take; errors in the order in which the original meets them."""
    values: dict[str, list] = {}
    shapes: dict[str, list[int]] = {}

    def add(item: Any, name: str) -> None:
        if name not in dtypes:
            raise invalid(f"JSON object: does not have named input: {name}")
        shape = _shape(item)
        flat: list = []
        _fill(item, 0, shape, dtypes[name], flat)
        expected = shapes.setdefault(name, shape)
        if math.prod(expected) != len(flat):
            raise invalid(f"Expecting tensor size: {math.prod(expected)} but got: {len(flat)}")
        if expected != shape:
            raise invalid(f"Expecting shape {_brackets(expected)} but got: {_brackets(shape)}")
        values.setdefault(name, []).extend(flat)

    for i, row in enumerate(instances):
        if objects != _is_object(row):
            if objects:
                raise invalid(f"Expecting object but got list at item {i} of input list")
            raise invalid(f"Expecting value/list but got object at item {i} of input list")
        if not objects:
            try:
                add(row, next(iter(dtypes)))
            except ServingError as error:
                raise _in_row(f"{i}", error) from None
            continue
        for name, item in row.items():
            try:
                add(item, name)
            except ServingError as error:
                raise _in_row(f"{i} key: {name}", error) from None
        if row.keys() != dtypes.keys():
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: "
                f"{spelled(row)} keys must be equal to: {','.join(dtypes)}"
            )
    return {
        name: _array(flat, dtypes[name], [len(instances), *shapes[name]])
        for name, flat in values.items()
    }


def _in_row(which: str, error: ServingError) -> ServingError:
    return invalid(
        f"Failed to process element: {which} of 'instances' list. "
        f"Error: {error.code.name}: {error.message}"
    )


def _columns(value: Any, dtypes: Mapping[str, int], has_booleans: bool) -> dict[str, np.ndarray]:
    if not _is_object(value):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = {next(iter(dtypes)): value}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        item = value[name]
        array = _fast(item, dtype, has_booleans)
        if array is None:
            shape = _shape(item)
            flat: list = []
            _fill(item, 0, shape, dtype, flat)
            array = _array(flat, dtype, shape)
        arrays[name] = array
    return arrays


def _fast(value: Any, dtype: int, has_booleans: bool) -> np.ndarray | None:
    """Lists of plain numbers in one step; None where a value has to be looked at by itself."""
    if not isinstance(value, list) or dtype == types_pb2.DT_STRING:
        return None
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # Lists of several lengths, or nested too deeply.
        return None
    kind = array.dtype.kind
    if dtype == types_pb2.DT_BOOL:
        return array if kind == "b" else None
    # NumPy takes True for 1.
    if has_booleans or kind not in "fiu" or array.size == 0:
        return None
    if dtype in FLOATS:
        finite = np.abs(array[np.isfinite(array)])
        # Larger numbers are legal where they are spelled as decimals: `json_values` tells.
        if finite.max(initial=0) > json_values.largest_whole(dtype):
            return None
        return array.astype(FLOATS[dtype])
    if dtype in INTEGERS and kind in "iu":
        numpy_dtype, lowest, highest = INTEGERS[dtype]
        if lowest <= int(array.min()) and int(array.max()) <= highest:
            return array.astype(numpy_dtype)
    return None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not json_values.is_base64(value)


def _shape(value: Any) -> list[int]:
    """Of nested lists, by the first of each."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    if len(shape) >= _HIGHEST_RANK:
        raise invalid(f"Lists are nested {len(shape)} deep; at most {_HIGHEST_RANK - 1} are read")
    return shape


def _brackets(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _fill(value: Any, level: int, shape: list[int], dtype: int, found: list) -> None:
    """Appends the values of nested lists, which must be of `shape`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {spelled(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        found.append(json_values.of_dtype(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _fill(item, level + 1, shape, dtype, found)


def _array(values: list, dtype: int, shape: list[int]) -> np.ndarray:
    if dtype in INTEGERS:
        wide = np.uint64 if dtype == types_pb2.DT_UINT64 else np.int64
        return np.array(values, wide).astype(INTEGERS[dtype][0]).reshape(shape)
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    numpy_dtype = np.bool_ if dtype == types_pb2.DT_BOOL else FLOATS.get(dtype, np.float32)
    return np.array(values, numpy_dtype).reshape(shape)
