"""TF Serving's gRPC messages and their tensors as NumPy arrays, without TensorFlow.

The stubs of tensorflow-serving-api import all of TensorFlow (about six seconds and 600 MB) for
the sake of a few messages. These are the same messages on the wire, of those fields that a client
reads or writes; a test holds their numbers against the stubs. They live in a descriptor pool of
their own, so a program may import both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "fct_tf.wire"
# Message -> fields as "name number type"; a type of this list, "map TYPE" with text as keys, or
# a basic one; a star marks a repeated field.
_MESSAGES = {
    "Any": ["type_url 1 string", "value 2 bytes"],
    "Int64Value": ["value 1 int64"],
    "Dim": ["size 1 int64"],
    "TensorShapeProto": ["dim 2 Dim*", "unknown_rank 3 bool"],
    # Numbers of fixed size are packed: their bytes are those of an array, so they are read as
    # bytes, without an object for each number.
    "TensorProto": [
        "dtype 1 int32",
        "tensor_shape 2 TensorShapeProto",
        "tensor_content 4 bytes",
        "float_val 5 bytes",
        "double_val 6 bytes",
        "int_val 7 int32*",
        "string_val 8 bytes*",
        "int64_val 10 int64*",
        "bool_val 11 bool*",
        "half_val 13 int32*",
        "uint32_val 16 uint32*",
        "uint64_val 17 uint64*",
    ],
    "ModelSpec": [
        "name 1 string",
        "version 2 Int64Value",
        "signature_name 3 string",
        "version_label 4 string",
    ],
    "PredictRequest": ["model_spec 1 ModelSpec", "inputs 2 map TensorProto"],
    "PredictResponse": ["outputs 1 map TensorProto", "model_spec 2 ModelSpec"],
    "TensorInfo": ["name 1 string", "dtype 2 int32", "tensor_shape 3 TensorShapeProto"],
    "SignatureDef": ["inputs 1 map TensorInfo", "outputs 2 map TensorInfo"],
    "SignatureDefMap": ["signature_def 1 map SignatureDef"],
    "GetModelMetadataRequest": ["model_spec 1 ModelSpec", "metadata_field 2 string*"],
    "GetModelMetadataResponse": ["model_spec 1 ModelSpec", "metadata 2 map Any"],
    "StatusProto": ["error_code 1 int32", "error_message 2 string"],
    "ModelVersionStatus": ["version 1 int64", "state 2 int32", "status 3 StatusProto"],
    "GetModelStatusRequest": ["model_spec 1 ModelSpec"],
    "GetModelStatusResponse": ["model_version_status 1 ModelVersionStatus*"],
}


def _define() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="fct_tf_wire.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            label, number, kind = field.split(" ", 2)
            if kind.startswith("map "):
                entry = message.nested_type.add(name=f"{label.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                _add_field(entry, "key", 1, "string")
                _add_field(entry, "value", 2, kind.removeprefix("map "))
                kind = f"{name}.{entry.name}*"
            _add_field(message, label, int(number), kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(message, name: str, number: int, kind: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
    if kind.endswith("*"):
        field.label, kind = kinds.LABEL_REPEATED, kind[:-1]
    if kind[0].isupper():
        field.type, field.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")


messages = _define()

# Number of a `tensorflow.DataType` -> the NumPy type and the field with its values.
_TYPES: dict[int, tuple[np.dtype, str]] = {
    1: (np.dtype("<f4"), "float_val"),
    2: (np.dtype("<f8"), "double_val"),
    3: (np.dtype("<i4"), "int_val"),
    4: (np.dtype("u1"), "int_val"),
    5: (np.dtype("<i2"), "int_val"),
    6: (np.dtype("i1"), "int_val"),
    7: (np.dtype(object), "string_val"),
    9: (np.dtype("<i8"), "int64_val"),
    10: (np.dtype(bool), "bool_val"),
    17: (np.dtype("<u2"), "int_val"),
    19: (np.dtype("<f2"), "half_val"),
    22: (np.dtype("<u4"), "uint32_val"),
    23: (np.dtype("<u8"), "uint64_val"),
}
_NUMBERS = {dtype: number for number, (dtype, _) in _TYPES.items()}
# As `tensorflow.DataType` spells them, which is how REST shows them.
NAMES = {
    "DT_FLOAT": 1,
    "DT_DOUBLE": 2,
    "DT_INT32": 3,
    "DT_UINT8": 4,
    "DT_INT16": 5,
    "DT_INT8": 6,
    "DT_STRING": 7,
    "DT_INT64": 9,
    "DT_BOOL": 10,
    "DT_UINT16": 17,
    "DT_HALF": 19,
    "DT_UINT32": 22,
    "DT_UINT64": 23,
}


def is_known(number: int) -> bool:
    """Whether NumPy has that `tensorflow.DataType`."""
    return number in _TYPES


def dtype_of(number: int) -> np.dtype:
    """The NumPy type of a `tensorflow.DataType`; object for strings (bytes).

    Raises:
      ValueError: one that NumPy does not have.
    """
    if number not in _TYPES:
        raise ValueError(f"tensors of type {number} of tensorflow.DataType are not supported")
    return _TYPES[number][0]


def shape_of(proto) -> tuple[int | None, ...] | None:
    """A `TensorShapeProto`: None where a dimension, or the number of them, is open."""
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in proto.dim)


def encode(array: np.ndarray):
    """A `TensorProto` of an array; of dtype object, each element is bytes or text.

    Raises:
      ValueError: a dtype that TensorFlow does not have.
    """
    proto = messages["TensorProto"]()
    if array.dtype.kind in "USO":
        proto.dtype = NAMES["DT_STRING"]
        proto.string_val.extend(
            value if isinstance(value, bytes) else str(value).encode() for value in array.flat
        )
    else:
        little = array.dtype.newbyteorder("<")
        if little not in _NUMBERS:
            raise ValueError(f"arrays of {array.dtype} cannot be sent")
        proto.dtype = _NUMBERS[little]
        proto.tensor_content = array.astype(little, copy=False).tobytes()
    proto.tensor_shape.SetInParent()  # A scalar has a shape too, of no dimensions.
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def decode(proto) -> np.ndarray:
    """The array of a `TensorProto`, read-only where it shares the message's bytes.

    Values that are fewer than the shape asks for repeat the last one, as in TensorFlow.

    Raises:
      ValueError: a type that NumPy does not have, or more or fewer values than the shape has.
    """
    dtype, field = dtype_of(proto.dtype), _TYPES[proto.dtype][1]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    values = getattr(proto, field)
    if proto.tensor_content:
        array = np.frombuffer(proto.tensor_content, dtype)
    elif isinstance(values, bytes):
        array = np.frombuffer(values, dtype)
    elif field == "half_val":
        array = np.array(values, np.uint16).view(dtype)
    else:
        array = _array(values, dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if 0 < len(array) < count and not proto.tensor_content:
        array = np.concatenate([array, np.repeat(array[-1:], count - len(array))])
    return array.reshape(shape)


def _array(values: Sequence, dtype: np.dtype) -> np.ndarray:
    array = np.empty(len(values), dtype)
    array[:] = list(values)
    return array
