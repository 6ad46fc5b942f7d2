"""Classify and regress over REST: JSON to `tf.train.Example`s, and results to JSON."""

from typing import Any

from tensorflow.core.example import example_pb2
from tensorflow.core.example.feature_pb2 import Feature
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from fct_tf.serving import json_arrays, json_values, rest_json
from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.json_document import Document, format_error, readable, type_name

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def fill(document: Document, request: Any) -> None:
    """Puts the signature's name and the examples of a document into a request.

    Args:
      document: `{"examples": [{feature: value or list}, ...], "context": {...}}`.
      request: a ClassificationRequest or RegressionRequest, changed in place.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    members = document.members
    request.model_spec.signature_name = rest_json.signature_name(document)
    given: input_pb2.Input = request.input
    examples = given.example_list.examples
    if "context" in members:
        given.example_list_with_context.context.CopyFrom(_example(members["context"]))
        examples = given.example_list_with_context.examples
    if "examples" not in members:
        text = "When method is classify, key 'examples' is expected and was not found"
        raise format_error(members, text)
    if not isinstance(members["examples"], list):
        raise format_error(members, "Expecting 'examples' value to be an list/array")
    if not members["examples"]:
        raise format_error(members, "'examples' value is an empty array")
    examples.extend(_example(value) for value in members["examples"])


def classifications(result: classification_pb2.ClassificationResult) -> bytes:
    """`{"results": [[[label, score], ...], ...]}`."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = [
        ", ".join(f"[{json_arrays.string(c.label)}, {_decimal(c.score)}]" for c in row.classes)
        for row in result.classifications
    ]
    return f'{{\n    "results": [[{"], [".join(rows)}]\n    ]\n}}'.encode()


def regressions(result: regression_pb2.RegressionResult) -> bytes:
    """`{"results": [value, ...]}`."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = ", ".join(_decimal(row.value) for row in result.regressions)
    return f'{{\n    "results": [{values}]\n}}'.encode()


def _decimal(value: float) -> str:
    return json_arrays.decimal(value, single=True)


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[readable(name)]
        for item in content if isinstance(content, list) else [content]:
            _add(feature, name, item)
    return example


def _add(feature: Feature, name: str, value: Any) -> None:
    if isinstance(value, bool):
        _values(feature, name, "int64_list").append(int(value))
    elif isinstance(value, str) or json_values.is_base64(value):
        _values(feature, name, "bytes_list").append(json_values.to_bytes(value))
    elif isinstance(value, float):
        values = _values(feature, name, "float_list")
        values.append(json_values.to_float(value))
    elif isinstance(value, int):
        values = _values(feature, name, "int64_list")
        if value >= 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        values.append(value)
    else:
        raise _unexpected(name, value)


def _unexpected(name: str, value: Any) -> ServingError:
    return invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def _values(feature: Feature, name: str, kind: str) -> Any:
    actual = feature.WhichOneof("kind")
    if actual not in (None, kind):
        raise invalid(
            f"Unexpected element type in feature: {name} expecting type: {_KINDS[actual]}"
        )
    return getattr(feature, kind).value
