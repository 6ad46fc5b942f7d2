"""Arrays in and out of TensorProtos, with the rules of TensorFlow's `Tensor::FromProto`.

`tf.make_ndarray` differs where TF Serving's clients notice: it raises on too many values, and it
does not know strings in `tensor_content`. `tf.make_tensor_proto` writes `tensor_content`, where
TF Serving answers in `float_val` and the like.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

# dtype -> (field of the values, the values' dtype in that field). Where the wire holds the
# values' own bytes, one after the other, `_PACKED` has the field's tag.
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.qint8: "int_val",
    tf.quint8: "int_val",
    tf.qint16: "int_val",
    tf.quint16: "int_val",
    tf.qint32: "int_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    tf.complex64: "scomplex_val",
    tf.complex128: "dcomplex_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
}
_PACKED = {
    tf.float32: b"\x2a",
    tf.float64: b"\x32",
    tf.bool: b"\x5a",
    tf.complex64: b"\x4a",
    tf.complex128: b"\x62",
}


def to_array(proto: tensor_pb2.TensorProto, max_bytes: int | None = None) -> np.ndarray:
    """The tensor of a request.

    Too few values in a `*_val` field repeat the last one (none at all: zeros), surplus ones are
    dropped; `tensor_content` must have exactly the tensor's bytes.

    Args:
      proto: the tensor; strings become an array of `bytes` objects.
      max_bytes: refuse tensors that would be larger. A few bytes of request can name a shape of
        terabytes, since one value is repeated.

    Raises:
      ValueError: not a tensor.
    """
    try:
        dtype = tf.as_dtype(proto.dtype)
        field = _FIELDS[dtype]
    except (KeyError, TypeError):
        raise ValueError(f"no tensor of dtype {proto.dtype}") from None
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if any(size < 0 for size in shape):
        raise ValueError("negative dimension")
    count = 1
    for size in shape:
        count *= size
    numpy_dtype = np.dtype(dtype.as_numpy_dtype)
    if count > (1 << 62) or (max_bytes and count * numpy_dtype.itemsize > max_bytes):
        raise ValueError("too large")
    if count == 0:
        return np.zeros(shape, numpy_dtype)
    content = proto.tensor_content
    if content:
        if dtype == tf.string:
            return _strings(content, count).reshape(shape)
        if len(content) != count * numpy_dtype.itemsize:
            raise ValueError("tensor_content has the wrong length")
        return np.frombuffer(content, numpy_dtype).reshape(shape)
    return _repeated(proto, dtype, numpy_dtype, field, count).reshape(shape)


def _repeated(proto, dtype, numpy_dtype, field: str, count: int) -> np.ndarray:
    """The values of a `*_val` field, exactly `count` of them."""
    if dtype == tf.string:
        strings = np.empty(count, object)
        given = list(proto.string_val[:count])
        strings[: len(given)] = given
        strings[len(given) :] = given[-1] if given else b""
        return strings
    values = getattr(proto, field)
    if dtype in (tf.float16, tf.bfloat16):
        array = np.array(values, np.uint32).astype(np.uint16).view(numpy_dtype)
    elif dtype in (tf.complex64, tf.complex128):
        part = np.float32 if dtype == tf.complex64 else np.float64
        array = np.array(values[: len(values) // 2 * 2], part).view(numpy_dtype)
    else:
        # Through int64 where the field is wider than the dtype: C++ casts, and so drops bits.
        wide = np.int64 if field == "int_val" else numpy_dtype
        array = np.array(values, wide).astype(numpy_dtype)
    if len(array) >= count:
        return array[:count]
    full = np.empty(count, numpy_dtype)
    full[: len(array)] = array
    full[len(array) :] = array[-1] if len(array) else 0
    return full


def _strings(content: bytes, count: int) -> np.ndarray:
    """Strings in `tensor_content`: all lengths as varints, then all bytes."""
    lengths = []
    position = 0
    for _ in range(count):
        length, shift = 0, 0
        while True:
            if position >= len(content) or shift > 63:
                raise ValueError("tensor_content has the wrong length")
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError("tensor_content has the wrong length")
    array = np.empty(count, object)
    for row, length in enumerate(lengths):
        array[row] = content[position : position + length]
        position += length
    return array


def fill(proto: tensor_pb2.TensorProto, array: np.ndarray, as_content: bool = False) -> None:
    """Writes an array into an empty TensorProto.

    Args:
      proto: is filled in place.
      array: numbers, or `bytes` objects for strings.
      as_content: in `tensor_content` (one copy) rather than in the field of the dtype, which is
        TF Serving's default and what its tutorials' clients read.
    """
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    proto.dtype = dtype.as_datatype_enum
    Dim = tensor_shape_pb2.TensorShapeProto.Dim
    # An empty shape still marks the field as present, as in C++.
    proto.tensor_shape.SetInParent()
    proto.tensor_shape.dim.extend([Dim(size=size) for size in array.shape])
    if array.size == 0:
        return
    if dtype == tf.string:
        values = [_bytes(value) for value in array.ravel().tolist()]
        if as_content:
            proto.tensor_content = b"".join([_varint(len(v)) for v in values] + values)
        else:
            proto.string_val.extend(values)
    elif as_content:
        proto.tensor_content = array.tobytes()
    elif dtype in _PACKED:
        # A packed field is its length and the values' own bytes: no loop over the values.
        raw = array.tobytes()
        proto.MergeFromString(b"".join((_PACKED[dtype], _varint(len(raw)), raw)))
    elif dtype in (tf.float16, tf.bfloat16):
        proto.half_val.extend(array.ravel().view(np.uint16).tolist())
    else:
        getattr(proto, _FIELDS[dtype]).extend(array.ravel().tolist())


def _bytes(value) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
