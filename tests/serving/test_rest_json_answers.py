"""JSON of answers: how numbers are spelled and laid out; examples of classify and regress."""

import base64
import json
import struct

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import classification_pb2, regression_pb2

from fct_tf.serving import json_arrays, json_document, rest_examples, rest_json
from fct_tf.serving.errors import ServingError
from tests.serving.json_inputs import pretty, read


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3.0"),
        (0, "0.0"),
        (-0.0, "-0.0"),
        (0.2, "0.2"),
        (1 / 3, "0.333333343"),
        (16777216, "16777216.0"),
        (9e6, "9e+06"),
        (999999, "999999.0"),
        (555557.5, "555557.5"),
        (0.0003, "0.0003"),
        (0.00003, "3e-05"),
        (0.0001, "0.0001"),
        (1e6, "1e+06"),
        (1234567, "1234567.0"),
        (1e-45, "1.4013e-45"),
        (3.4028235e38, "3.40282347e+38"),
        (np.nan, "NaN"),
        (np.inf, "Infinity"),
        (-np.inf, "-Infinity"),
    ],
)
def test_spelling_of_float32(value, text):
    assert json_arrays.tokens(np.array([value], np.float32)) == [text]
    assert rest_json.predictions({"y": np.array([value, 1], np.float32)}) == (
        f'{{\n    "predictions": [{text}, 1.0\n    ]\n}}'.encode()
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3.0"),
        (0.1, "0.1"),
        (1 / 3, "0.33333333333333331"),
        (1e300, "1e+300"),
        (123456789.0, "123456789.0"),
        (np.nan, "NaN"),
        (-np.inf, "-Infinity"),
    ],
)
def test_spelling_of_float64(value, text):
    assert json_arrays.tokens(np.array([value], np.float64)) == [text]


def by_the_rule(value: np.float32) -> str:
    """The rule with C's formatting, number by number."""
    if not np.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    text = f"{float(value):g}"
    try:
        reads_back = struct.pack("f", float(text)) == struct.pack("f", value)
    except OverflowError:
        reads_back = False
    text = text if reads_back else f"{float(value):.9g}"
    return text if "." in text or "e" in text else f"{text}.0"


@pytest.mark.parametrize("seed", range(4))
def test_spelling_of_many_float32(seed):
    rng = np.random.default_rng(seed)
    powers = 10.0 ** np.arange(-8, 10)
    values = np.concatenate(
        [
            rng.integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32),
            rng.normal(size=3000).astype(np.float32),
            (10 ** rng.uniform(-6, 8, 3000)).astype(np.float32),
            np.round(rng.normal(size=3000), seed + 2).astype(np.float32),
            (rng.integers(-(2**24), 2**24, 3000) / 1024).astype(np.float32),
            # Halfway between two of nine digits, where C rounds to the even one.
            (1 + rng.integers(0, 2**23, 3000) / 2**23).astype(np.float32) * np.float32(2**-9),
            powers.astype(np.float32),
            np.nextafter(powers.astype(np.float32), np.float32(0)),
            np.nextafter(powers.astype(np.float32), np.float32(np.inf)),
        ]
    )
    assert json_arrays.tokens(values) == [by_the_rule(value) for value in values]


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.array([1, -2], np.int8), ["1", "-2"]),
        (np.array([1], np.int16), ["1"]),
        (np.array([1], np.int32), ["1"]),
        (np.array([2**63 - 1], np.int64), ["9223372036854775807"]),
        (np.array([255], np.uint8), ["255"]),
        (np.array([2**32 - 1], np.uint32), ["4294967295"]),
        (np.array([2**64 - 1], np.uint64), ["18446744073709551615"]),
        (np.array([True, False]), ["true", "false"]),
        (np.array([b'a"b', "ü".encode()], object), ['"a\\"b"', '"ü"']),
    ],
)
def test_spelling_of_other_dtypes(array, parts):
    assert json_arrays.tokens(array) == parts


@pytest.mark.parametrize("dtype", ["half", "complex64"])
def test_a_dtype_that_is_not_written(dtype):
    array = np.zeros(2, {"half": np.float16}.get(dtype, dtype))
    for write in (rest_json.predictions, rest_json.columns):
        with pytest.raises(
            ServingError,
            match=f"^INVALID_ARGUMENT: Failed to write JSON value for tensor type: {dtype}$",
        ):
            write({"y": array})


def test_layout_of_rows():
    y = np.array([[1, 2], [3, 4]], np.float32)
    assert rest_json.predictions({"y": y}).decode() == (
        '{\n    "predictions": [[1.0, 2.0], [3.0, 4.0]\n    ]\n}'
    )
    assert rest_json.predictions({"y": y, "a": np.array([7, 8])}).decode() == (
        '{\n    "predictions": [\n        {\n            "a": 7,\n            "y": [1.0, 2.0]\n'
        '        },\n        {\n            "a": 8,\n            "y": [3.0, 4.0]\n        }\n'
        "    ]\n}"
    )
    assert rest_json.predictions({"y": y[:0]}) == b'{\n    "predictions": []\n}'
    assert json.loads(rest_json.predictions({"y": np.zeros((2, 0), np.float32)})) == {
        "predictions": [[], []]
    }
    assert json.loads(rest_json.predictions({"y": np.zeros((2, 3, 0), np.float32)})) == {
        "predictions": [[[], [], []]] * 2
    }


def test_layout_of_columns():
    y = np.array([[1, 2]], np.float32)
    assert rest_json.columns({"y": y}).decode() == pretty({"outputs": [[1.0, 2.0]]})
    both = rest_json.columns({"y": y, "a": np.array(7)}).decode()
    assert both == pretty({"outputs": {"a": 7, "y": [[1.0, 2.0]]}})
    assert rest_json.columns({"y": np.float32(2.5).reshape(())}).decode() == pretty(
        {"outputs": 2.5}
    )
    assert rest_json.columns({"y": y[:, :0]}).decode() == pretty({"outputs": [[]]})


def test_rows_need_a_common_first_dimension():
    vector = np.zeros(3, np.float32)
    with pytest.raises(
        ServingError, match="^INVALID_ARGUMENT: Tensor name: y has no shape information $"
    ):
        rest_json.predictions({"y": np.zeros((), np.float32)})
    told = "^INVALID_ARGUMENT: Tensor name: z has inconsistent batch size: 2 expecting: 3$"
    with pytest.raises(ServingError, match=told):
        rest_json.predictions({"y": vector, "z": vector[:2]})
    with pytest.raises(ServingError, match="Cannot convert empty tensor map to JSON"):
        rest_json.predictions({})
    two = {"embedding": np.zeros((3, 2), np.float32), "log_variance": vector}
    assert json.loads(rest_json.predictions(two))["predictions"] == (
        [{"embedding": [0, 0], "log_variance": 0}] * 3
    )


def test_strings_whose_name_ends_in_bytes_are_base64():
    array = np.array([b"\xff\x00", b"b"], object)
    expected = [{"b64": base64.b64encode(value).decode()} for value in array]
    assert json.loads(rest_json.predictions({"image_bytes": array})) == {"predictions": expected}
    assert json.loads(rest_json.columns({"image_bytes": array})) == {"outputs": expected}
    assert b'["a"' not in rest_json.columns({"image_bytes": array})
    assert rest_json.predictions({"image": np.array([b"\xff"], object)}) == (
        b'{\n    "predictions": ["\xff"\n    ]\n}'
    )


def test_what_is_written_reads_back():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 2)).astype(np.float32)
    body = rest_json.predictions({"y": x}).replace(b"predictions", b"instances")
    np.testing.assert_array_equal(read(body)["x"], x)
    x[1, 1, 1] = np.nan
    body = rest_json.columns({"y": x}).replace(b"outputs", b"inputs")
    np.testing.assert_array_equal(read(body)["x"], x)


def filled(body: str):
    request = classification_pb2.ClassificationRequest()
    rest_examples.fill(json_document.parse(body.encode()), request)
    return request


def test_examples():
    request = filled(
        '{"signature_name": "s", "context": {"c": 1}, "examples": [{"names": ["foo", {"b64":'
        ' "YmFy"}], "ratings": [8.0, 9.5], "age": 20, "old": [true, 3]}, {"ratings": 6.0}]}'
    )
    assert request.model_spec.signature_name == "s"
    given = request.input.example_list_with_context
    assert given.context.features.feature["c"].int64_list.value == [1]
    first = given.examples[0].features.feature
    assert first["names"].bytes_list.value == [b"foo", b"bar"]
    assert first["ratings"].float_list.value == [8.0, 9.5]
    assert first["age"].int64_list.value == [20]
    assert first["old"].int64_list.value == [1, 3]
    assert given.examples[1].features.feature["ratings"].float_list.value == [6.0]
    assert len(filled('{"examples": [{"a": 1}]}').input.example_list.examples) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "{}",
            "JSON Value: {} When method is classify, key 'examples' is expected and was not found",
        ),
        (
            '{"examples": 5}',
            f"JSON Value: {pretty({'examples': 5})} Expecting 'examples' value to be an list/array",
        ),
        (
            '{"examples": []}',
            f"JSON Value: {pretty({'examples': []})} 'examples' value is an empty array",
        ),
        ('{"examples": [5]}', "Example must be JSON object but got JSON Number"),
        (
            '{"examples": [{"a": null}]}',
            "Feature: a has element with unexpected JSON type: Null",
        ),
        (
            '{"examples": [{"a": [[1]]}]}',
            "Feature: a has element with unexpected JSON type: Array",
        ),
        (
            '{"examples": [{"a": {"b": 1}}]}',
            "Feature: a has element with unexpected JSON type: Object",
        ),
        (
            '{"examples": [{"a": [1, "b"]}]}',
            "Unexpected element type in feature: a expecting type: int64",
        ),
        (
            '{"examples": [{"a": [1.5, 1]}]}',
            "Unexpected element type in feature: a expecting type: float",
        ),
        (
            '{"examples": [{"a": 18446744073709551615}]}',
            "Feature: a has uint64 element. Only int64 is supported.",
        ),
        (
            '{"examples": [{"a": 1e39}]}',
            "Cannot convert JSON value: 1e+39 to float without loss of precision.",
        ),
    ],
)
def test_examples_that_are_refused(body, told):
    with pytest.raises(ServingError) as caught:
        filled(body)
    assert (caught.value.code, caught.value.message) == (grpc.StatusCode.INVALID_ARGUMENT, told)


def test_results_of_classify_and_regress():
    result = classification_pb2.ClassificationResult()
    with pytest.raises(ServingError, match="Cannot convert empty ClassificationResults to JSON"):
        rest_examples.classifications(result)
    for scores in ((0.5, 1 / 3), (1.0,)):
        row = result.classifications.add()
        for score in scores:
            row.classes.add(label="a", score=score)
    assert rest_examples.classifications(result) == (
        b'{\n    "results": [[["a", 0.5], ["a", 0.333333343]], [["a", 1.0]]\n    ]\n}'
    )
    regressed = regression_pb2.RegressionResult()
    with pytest.raises(ServingError, match="Cannot convert empty RegressionResults to JSON"):
        rest_examples.regressions(regressed)
    for value in (2, 0.2):
        regressed.regressions.add(value=value)
    assert rest_examples.regressions(regressed) == b'{\n    "results": [2.0, 0.2]\n}'


def test_few_numbers_are_spelled_one_by_one(monkeypatch):
    # One by one they take ten times as long.
    x = np.random.default_rng(0).normal(size=(512, 128)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    calls = []
    original = json_arrays.decimal
    monkeypatch.setattr(
        json_arrays, "decimal", lambda *args, **kw: calls.append(1) or original(*args, **kw)
    )
    rest_json.predictions({"y": x})
    assert len(calls) < x.size / 500
