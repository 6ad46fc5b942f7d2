"""JSON as a request's inputs."""

import json

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from fct_tf.serving import json_document, rest_json

DTYPES = {
    "float": types_pb2.DT_FLOAT,
    "double": types_pb2.DT_DOUBLE,
    "int8": types_pb2.DT_INT8,
    "int16": types_pb2.DT_INT16,
    "int32": types_pb2.DT_INT32,
    "int64": types_pb2.DT_INT64,
    "uint8": types_pb2.DT_UINT8,
    "uint32": types_pb2.DT_UINT32,
    "uint64": types_pb2.DT_UINT64,
    "bool": types_pb2.DT_BOOL,
    "string": types_pb2.DT_STRING,
    "half": types_pb2.DT_HALF,
}


def inputs_of(**names: str):
    signature = meta_graph_pb2.SignatureDef()
    for name, dtype in names.items():
        signature.inputs[name].dtype = DTYPES[dtype]
    return signature.inputs


def read(body: str | bytes, **names: str) -> dict[str, np.ndarray]:
    document = json_document.parse(body.encode() if isinstance(body, str) else body)
    rest_json.signature_name(document)
    return rest_json.arrays(document, inputs_of(**(names or {"x": "float"})))


def pretty(value) -> str:
    return json.dumps(value, indent=4)
