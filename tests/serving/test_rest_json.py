"""JSON of requests: every dtype and both formats read, and what is refused."""

import json

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import classification_pb2

from fct_tf.serving import json_document, rest_examples, rest_json
from fct_tf.serving.errors import ServingError
from tests.serving.json_inputs import DTYPES, pretty, read


def refusal(body: str | bytes, **names: str) -> str:
    with pytest.raises(ServingError) as caught:
        read(body, **names)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"instances": [1, 2.5, 5]}', [1, 2.5, 5]),
        ('{"instances": [[1, 2], [3, 4], [5, 6]]}', [[1, 2], [3, 4], [5, 6]]),
        ('{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}', [[1, 2], [3, 4]]),
        ('{"instances": [{"x": 1}, {"x": 2}]}', [1, 2]),
        ('{"instances": [[], []]}', [[], []]),
        ('{"instances": [[[]], [[]]]}', [[[]], [[]]]),
        ('{"inputs": [[1, 2], [3, 4]]}', [[1, 2], [3, 4]]),
        ('{"inputs": {"x": [[1, 2]]}}', [[1, 2]]),
        ('{"inputs": 7}', 7),
        ('{"inputs": {"x": 7, "more": "ignored"}}', 7),
        ('{"inputs": []}', []),
        ('{"signature_name": "s", "other": null, "inputs": [1]}', [1]),
        ('{"inputs": [1]} and text after it', [1]),
        (b'\xef\xbb\xbf{"inputs": [1]}', [1]),
        ('  {"inputs": [NaN, Infinity, -Infinity]}', [np.nan, np.inf, -np.inf]),
        ('{"inputs": [NaN, 1e10, 16777216.0, 2]}', [np.nan, 1e10, 16777216, 2]),
        ('{"inputs": [1, 2], "note": true}', [1, 2]),
    ],
)
def test_values_of_both_formats(body, expected):
    found = read(body)["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("half", "string")])
@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_every_dtype(dtype, form):
    values = [True, False] if dtype == "bool" else [1, 100]
    for spelled in (values, [[value] for value in values]):
        found = read(json.dumps({form: spelled}), x=dtype)["x"]
        assert found.dtype == {"float": np.float32, "double": np.float64}.get(dtype, dtype)
        assert found.tolist() == spelled


@pytest.mark.parametrize(
    ("dtype", "spelled", "value"),
    [
        ("uint8", 300, 44),
        ("uint8", -1, 255),
        ("int8", 200, -56),
        ("int64", 2**63 - 1, 2**63 - 1),
        ("int64", -(2**63), -(2**63)),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("uint32", 2**32 - 1, 2**32 - 1),
        ("float", 16777215, 16777215.0),
        ("double", 9007199254740991, 9007199254740991.0),
        ("double", 1e300, 1e300),
    ],
)
def test_ends_of_the_range(dtype, spelled, value):
    for listed in ([spelled], [spelled, spelled]):
        assert read(json.dumps({"inputs": listed}), x=dtype)["x"].tolist() == [value] * len(listed)


@pytest.mark.parametrize(
    ("dtype", "spelled", "value", "kind"),
    [
        ("float", "null", "null", "Null"),
        ("float", "true", "true", "True"),
        ("float", "false", "false", "False"),
        ("float", '"a"', '"a"', "String"),
        ("float", '{"a": 1}', '{\n    "a": 1\n}', "Object"),
        ("double", "true", "true", "True"),
        ("int32", "1.0", "1.0", "Number"),
        ("int32", "2147483648", "2147483648", "Number"),
        ("int32", "true", "true", "True"),
        ("int32", "NaN", "NaN", "Number"),
        ("int32", "0.333333333333", "0.333333343", "Number"),
        ("uint8", "1.5", "1.5", "Number"),
        ("int64", "9223372036854775808", "9223372036854775808", "Number"),
        ("uint32", "-1", "-1", "Number"),
        ("uint64", "-1", "-1", "Number"),
        ("bool", "1", "1", "Number"),
        ("bool", "0.0", "0.0", "Number"),
        ("string", "1", "1", "Number"),
        ("string", "null", "null", "Null"),
        ("string", "true", "true", "True"),
    ],
)
def test_values_of_another_type(dtype, spelled, value, kind):
    told = f"JSON Value: {value} Type: {kind} is not of expected type: {dtype}"
    good = {"bool": "true", "string": '"a"'}.get(dtype, "1")
    assert refusal(f'{{"inputs": [{spelled}]}}', x=dtype) == told
    assert refusal(f'{{"inputs": [[{good}], [{spelled}]]}}', x=dtype) == told
    if kind != "Object":
        assert refusal(f'{{"instances": [{good}, {spelled}]}}', x=dtype) == (
            f"Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: {told}"
        )
    assert refusal(f'{{"instances": [{{"x": {spelled}}}]}}', x=dtype) == (
        f"Failed to process element: 0 key: x of 'instances' list. Error: INVALID_ARGUMENT: {told}"
    )


@pytest.mark.parametrize(
    ("dtype", "spelled", "value"),
    [
        ("float", "16777216", "16777216"),
        ("float", "-16777217", "-16777217"),
        ("float", "1e39", "1e+39"),
        ("double", "9007199254740993", "9007199254740993"),
    ],
)
def test_numbers_that_a_float_does_not_hold(dtype, spelled, value):
    told = f"Cannot convert JSON value: {value} to {dtype} without loss of precision."
    assert refusal(f'{{"inputs": [1, {spelled}]}}', x=dtype) == told


def test_a_dtype_that_json_has_not():
    with pytest.raises(ServingError) as caught:
        read('{"inputs": [1.5]}', x="half")
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.message == "Conversion of JSON Value: 1.5 to type: half"


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        ('"plain"', b"plain"),
        ('"\\u00fc\\u20ac"', "ü€".encode()),
        (b'"\xff\xfe"', b"\xff\xfe"),
        (b'"\xff\\ud83d\\ude00\\\\ud800"', b"\xff\xf0\x9f\x98\x80\\ud800"),
        ('{"b64": "aGVsbG8="}', b"hello"),
        ('{"b64": "aGVsbG8"}', b"hello"),
        ('{"b64": "++//"}', b"\xfb\xef\xff"),
        ('{"b64": "aGVs\\nbG8="}', b"hello"),
        ('{"b64": ""}', b""),
    ],
)
def test_strings(spelled, value):
    spelled = spelled if isinstance(spelled, bytes) else spelled.encode()
    for body in (b'{"instances": [%s, %s]}', b'{"inputs": [%s, %s]}'):
        assert read(body % (spelled, spelled), x="string")["x"].tolist() == [value, value]
    assert read(b'{"inputs": %s}' % spelled, x="string")["x"].item() == value


@pytest.mark.parametrize("code", ["-_-_", "a", "aGVsbG8==", "aGVs*G8=", "a=Vs", "====", "ü"])
def test_other_base64(code):
    assert refusal(json.dumps({"inputs": {"b64": code}}), x="string") == "Unable to base64 decode"


def test_objects_that_are_no_base64():
    told = f"JSON Value: {pretty({'b64': 1})} not formatted correctly for base64 data"
    assert refusal('{"inputs": [{"b64": 1}]}', x="string") == told


def test_several_inputs_by_row_and_by_column():
    rows = '{"instances": [{"a": [1, 2], "s": "u"}, {"s": {"b64": "dg=="}, "a": [3, 4]}]}'
    columns = '{"inputs": {"a": [[1, 2], [3, 4]], "s": ["u", "v"]}}'
    for body in (rows, columns):
        found = read(body, a="float", s="string")
        assert found["a"].tolist() == [[1, 2], [3, 4]]
        assert found["s"].tolist() == [b"u", b"v"]
    found = read('{"inputs": {"a": [[1, 2]], "s": ["u", "v", "w"]}}', a="float", s="string")
    assert (found["a"].shape, found["s"].shape) == ((1, 2), (3,))
    found = read('{"instances": [{"a": 1, "b": true}, {"a": 2, "b": false}]}', a="int32", b="bool")
    assert (found["a"].tolist(), found["b"].tolist()) == ([1, 2], [True, False])


ROW = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "JSON Parse error: The document is empty"),
        (" \n", "JSON Parse error: The document is empty. at offset: 2"),
        ("abc", "JSON Parse error: Invalid value. at offset: 0"),
        ("nul", "JSON Parse error: Invalid value. at offset: 3"),
        ('{"inputs": [tru]}', "JSON Parse error: Invalid value. at offset: 15"),
        ('{"inputs": [1,]}', "JSON Parse error: Invalid value. at offset: 14"),
        ('{"inputs": }', "JSON Parse error: Invalid value. at offset: 11"),
        ('{"ä": }', "JSON Parse error: Invalid value. at offset: 7"),
        (
            '{"inputs": [1, 2',
            "JSON Parse error: Missing a comma or ] after an array element. at offset: 16",
        ),
        (
            '{"inputs": [1 2]}',
            "JSON Parse error: Missing a comma or ] after an array element. at offset: 14",
        ),
        (
            '{"inputs": [1]',
            "JSON Parse error: Missing a comma or } after an object member. at offset: 14",
        ),
        (
            '{"]": [1] "x"',
            "JSON Parse error: Missing a comma or } after an object member. at offset: 10",
        ),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("{inputs: 1}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (
            '{"inputs" 1}',
            "JSON Parse error: Missing a colon after a name of object member. at offset: 10",
        ),
        (
            '{"inp',
            "JSON Parse error: Missing a closing quotation mark in string. at offset: 5",
        ),
        ('{"inputs": [1.]}', "JSON Parse error: Miss fraction part in number. at offset: 14"),
        ('{"inputs": [1e]}', "JSON Parse error: Miss exponent in number. at offset: 14"),
        (
            '{"inputs": [1e400]}',
            "JSON Parse error: Number too big to be stored in double. at offset: 12",
        ),
        ('{"a": "\\q"}', "JSON Parse error: Invalid escape character in string. at offset: 7"),
        ('{"a": "\x01"}', "JSON Parse error: Invalid escape character in string. at offset: 7"),
        (
            '{"a": "\0"}',
            "JSON Parse error: Missing a closing quotation mark in string. at offset: 7",
        ),
        (
            '{"a": "\\u12"}',
            "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: 7",
        ),
        (
            '{"a": "\\ud800"}',
            "JSON Parse error: The surrogate pair in string is invalid. at offset: 7",
        ),
        (
            '{"a": "\\n\\udc00"}',
            "JSON Parse error: The surrogate pair in string is invalid. at offset: 9",
        ),
        (
            '{"a": "\\ud83d \\ude00"}',
            "JSON Parse error: The surrogate pair in string is invalid. at offset: 7",
        ),
        ("[" * 100_000, "JSON Parse error: The document is nested too deeply."),
        ("5", "JSON Value: 5 Is not object"),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("null", "JSON Value: null Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        (
            '{"inputs": [1], "instances": [1]}',
            f"JSON Value: {pretty({'inputs': [1], 'instances': [1]})} Not formatted correctly "
            "expecting only one of 'inputs' or 'instances' keys to exist ",
        ),
        (
            '{"instances": 5}',
            f"JSON Value: {pretty({'instances': 5})} Expecting 'instances' to be an list/array",
        ),
        (
            '{"instances": []}',
            f"JSON Value: {pretty({'instances': []})} No values in 'instances' array",
        ),
        (
            '{"signature_name": 5, "inputs": [1]}',
            f"JSON Value: {pretty({'signature_name': 5, 'inputs': [1]})} not formatted correctly. "
            "'signature_name' key must be a string value.",
        ),
        ('{"inputs": {"y": [1]}}', "Missing named input: x in 'inputs' object."),
        (
            '{"inputs": [[1, 2, 3, 4, 5], [1, 2]]}',
            "Encountered list at unexpected size: 2 at level: 1 expected size: 5",
        ),
        ('{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (
            '{"inputs": [[1], 2]}',
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (
            '{"instances": [[1, 2, 3, 4, 5], [1, 2]]}',
            ROW.format(1, "Expecting tensor size: 5 but got: 2"),
        ),
        (
            '{"instances": [[1, 2], [[1, 2]]]}',
            ROW.format(1, "Expecting shape [2] but got: [1,2]"),
        ),
        ('{"instances": [1, [1]]}', ROW.format(1, "Expecting shape [] but got: [1]")),
        (
            '{"instances": [[[1, 2], [3]]]}',
            ROW.format(0, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ),
        (
            '{"instances": [{"y": 1}]}',
            ROW.format("0 key: y", "JSON object: does not have named input: y"),
        ),
        (
            '{"instances": [{"x": 1}, 2]}',
            "Expecting object but got list at item 1 of input list",
        ),
        (
            '{"instances": [2, {"x": 1}]}',
            "Expecting value/list but got object at item 1 of input list",
        ),
    ],
)
def test_what_is_refused_with_one_input(body, told):
    assert refusal(body) == told


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            '{"instances": [[1, 2]]}',
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            '{"inputs": [[1, 2]]}',
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            '{"instances": [{"a": 1}]}',
            "Failed to process element: 0 of 'instances' list. JSON object: "
            f"{pretty({'a': 1})} keys must be equal to: a,b",
        ),
        (
            '{"instances": [{"a": 1, "b": 2}, {"a": [1], "b": 3}]}',
            ROW.format("1 key: a", "Expecting shape [] but got: [1]"),
        ),
        (
            '{"instances": [{"a": 1, "b": 2, "c": 3}]}',
            ROW.format("0 key: c", "JSON object: does not have named input: c"),
        ),
        ('{"inputs": {"a": 1}}', "Missing named input: b in 'inputs' object."),
    ],
)
def test_what_is_refused_with_two_inputs(body, told):
    assert refusal(body, b="float", a="float") == told


def test_names_that_are_no_utf8():
    document = json_document.parse(b'{"signature_name": "a\xffb", "examples": [{"c\xff": 1}]}')
    assert rest_json.signature_name(document) == "a\ufffdb"
    request = classification_pb2.ClassificationRequest()
    rest_examples.fill(document, request)
    assert list(request.input.example_list.examples[0].features.feature) == ["c\ufffd"]


def test_a_signature_without_inputs():
    document = json_document.parse(b'{"inputs": [1]}')
    for name, told in (("", "DEFAULT"), ("s", "s")):
        with pytest.raises(ServingError, match=f"Failed to get input map for signature: {told}$"):
            rest_json.arrays(document, {}, name)


def test_a_long_value_is_cut_in_the_message():
    assert len(refusal(json.dumps({"instances": "a" * 10**6}))) < 1200
    assert len(refusal(json.dumps({"instances": {"a": list(range(10**5))}}))) < 1200


def test_lists_deeper_than_an_array_can_be():
    assert "63 are read" in refusal('{"inputs": ' + "[" * 200 + "]" * 200 + "}")


def test_the_fast_way_is_the_slow_way(monkeypatch):
    rng = np.random.default_rng(5)
    bodies = [
        {"inputs": rng.normal(size=(3, 4)).tolist()},
        {"instances": rng.integers(-9, 9, (3, 2, 2)).tolist()},
        {"instances": [{"x": row} for row in rng.normal(size=(4, 3)).tolist()]},
        {"inputs": [[1, 2.5], [16777215, 3e38]]},
    ]
    fast = [read(json.dumps(body))["x"] for body in bodies]
    monkeypatch.setattr(rest_json, "_fast", lambda *_: None)
    for body, found in zip(bodies, fast, strict=True):
        slow = read(json.dumps(body))["x"]
        assert slow.dtype == found.dtype
        np.testing.assert_array_equal(slow, found)
