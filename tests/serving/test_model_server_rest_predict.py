"""Predict, classify and regress over REST."""

import contextlib
import gzip
import http.client
import json
import socket
import time

import pytest

from fct_tf.serving import rest
from tests.serving.rest_calls import PREDICT, ask, ask_json, error_of, serving


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain; charset=latin-1"},
        {"Content-Type": "application/json"},
    ],
)
def test_the_content_type_is_not_looked_at(port, headers):
    assert ask(port, "POST", PREDICT, '{"instances": [1.0]} text after it', headers)[0] == 200


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [1, 2.5]}, {"predictions": [2.5, 3.25]}),
        ({"instances": [{"x": 1}, {"x": 2}]}, {"predictions": [2.5, 3.0]}),
        ({"instances": [[1, 2], [3, 4]]}, {"predictions": [[2.5, 3.0], [3.5, 4.0]]}),
        ({"inputs": [1, 2.5]}, {"outputs": [2.5, 3.25]}),
        ({"inputs": {"x": [[1]]}}, {"outputs": [[2.5]]}),
        ({"inputs": 1}, {"outputs": 2.5}),
        (
            {"signature_name": "dense", "instances": [[1, 2, 3], [0, 0, 1]]},
            {
                "predictions": [
                    {"embedding": [4.0, 5.0], "log_variance": 6.0},
                    {"embedding": [1.0, 1.0], "log_variance": 1.0},
                ]
            },
        ),
        (
            {"signature_name": "dense", "inputs": [[1, 2, 3]]},
            {"outputs": {"embedding": [[4.0, 5.0]], "log_variance": [6.0]}},
        ),
        (
            {"signature_name": "two", "instances": [{"a": [1.5], "b": 1}, {"b": 2, "a": [2]}]},
            {"predictions": [{"b": 1, "sum": [2.5]}, {"b": 2, "sum": [4.0]}]},
        ),
        (
            {"signature_name": "two", "inputs": {"a": [[1.5]], "b": [1], "c": "ignored"}},
            {"outputs": {"b": [1], "sum": [[2.5]]}},
        ),
        (
            {"signature_name": "text", "instances": ["ü", {"b64": "YQ=="}]},
            {
                "predictions": [
                    {"s": "ü", "s_bytes": {"b64": "w7w="}},
                    {"s": "a", "s_bytes": {"b64": "YQ=="}},
                ]
            },
        ),
        (
            {"signature_name": "text", "inputs": "a\x00"},
            {"outputs": {"s": "a\x00", "s_bytes": {"b64": "YQA="}}},
        ),
        ({"signature_name": "total", "inputs": [1, 2]}, {"outputs": 3.0}),
        ({"signature_name": "uneven", "inputs": [1, 2]}, {"outputs": {"x": [1, 2], "first": [1]}}),
        ({"signature_name": "double", "instances": [0.1]}, {"predictions": [0.1]}),
        ({"signature_name": "bool", "instances": [True]}, {"predictions": [True]}),
    ],
)
def test_predict(port, body, answer):
    assert ask_json(port, "POST", PREDICT, body) == (200, answer)


def test_numbers_are_spelled_as_by_tf_serving(port):
    values = "[3, 0.2, 0.3333333333, 16777216.0, 9000000, NaN, Infinity, -Infinity]"
    body = f'{{"signature_name": "same", "instances": {values}}}'
    status, _, content = ask(port, "POST", PREDICT, body)
    assert (status, content.decode()) == (
        200,
        '{\n    "predictions": [3.0, 0.2, 0.333333343, 16777216.0, 9e+06, NaN, Infinity, '
        "-Infinity\n    ]\n}",
    )


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("", 400, "JSON Parse error: The document is empty"),
        ("not json", 400, "JSON Parse error: Invalid value. at offset: 1"),
        ("[]", 400, "JSON Value: [] Is not object"),
        ("{}", 400, "Missing 'inputs' or 'instances' key"),
        (
            {"signature_name": "S", "instances": [1]},
            400,
            'Serving signature name: "S" not found in signature def',
        ),
        (
            {"signature_name": "nothing", "instances": [1]},
            400,
            "Failed to get input map for signature: nothing",
        ),
        (
            {"instances": [1, "a"]},
            400,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            {"signature_name": "dense", "instances": [[1, 2]]},
            400,
            "Matrix size-incompatible: In[0]: [1,2], In[1]: [3,2]",
        ),
        (
            {"signature_name": "total", "instances": [1, 2]},
            400,
            "Tensor name: total has no shape information ",
        ),
        (
            {"signature_name": "uneven", "instances": [1, 2]},
            400,
            "Tensor name: x has inconsistent batch size: 2 expecting: 1",
        ),
        (
            {"signature_name": "half", "instances": [1.5]},
            400,
            "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: "
            "Conversion of JSON Value: 1.5 to type: half",
        ),
        (
            {"signature_name": "half", "inputs": [1.5]},
            501,
            "Conversion of JSON Value: 1.5 to type: half",
        ),
        (
            {"signature_name": "text", "instances": [{"b64": "-_-_"}]},
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Unable to base64 decode",
        ),
    ],
)
def test_predict_that_is_refused(port, body, status, told):
    given, message = error_of(port, "POST", PREDICT, body)
    assert given == status
    assert message.startswith(told)
    if "Matrix" not in told:
        assert message == told


def test_the_json_is_looked_at_before_the_model(port):
    assert error_of(port, "POST", "/v1/models/none:predict", "")[0] == 400


def test_too_many_rows(port):
    status, message = error_of(port, "POST", PREDICT, {"instances": [1] * 10_001})
    assert status == 400
    assert "10001 rows" in message


def test_a_request_that_takes_too_long(models):
    with serving(models, timeout_s=0.5) as impatient:
        started = time.monotonic()
        body = {"signature_name": "slow", "inputs": 2**31 - 1}
        assert error_of(impatient, "POST", PREDICT, body)[0] == 504
        assert time.monotonic() - started < 30
        assert ask(impatient, "POST", PREDICT, {"instances": [1]})[0] == 200
        metrics = models.metrics.page()
    assert 'request_count{model_name="tiny",status="DEADLINE_EXCEEDED"} 1' in metrics


def test_gzip(port):
    body = json.dumps({"instances": [1.0] * 1000}).encode()
    packed = gzip.compress(body[:100]) + gzip.compress(body[100:])
    for encoding in ("gzip", "GZIP"):
        headers = {"Content-Encoding": encoding, "Accept-Encoding": "gzip"}
        status, content = ask_json(port, "POST", PREDICT, packed, headers)
        assert (status, content) == (200, {"predictions": [2.5] * 1000})


# mtime: with the clock in its header, the test's name would differ from worker to worker.
@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b'{"inputs": [1]}' * 50, mtime=0)[:-9]], ids=["text", "cut"]
)
def test_gzip_that_is_none(port, body):
    status, message = error_of(port, "POST", PREDICT, body, {"Content-Encoding": "gzip"})
    assert status == 400
    assert message.startswith("Failed to uncompress the gzipped body: ")


def test_bodies_over_the_limit(models, port):
    told = (413, f"The request is larger than {8 << 20} bytes; send several requests")
    assert error_of(port, "POST", PREDICT, b" " * (8 << 20) + b"x") == told
    bomb = gzip.compress(b" " * (8 << 20) + b"x")
    assert error_of(port, "POST", PREDICT, bomb, {"Content-Encoding": "gzip"}) == told
    chunks = iter([b" " * (1 << 20)] * 9)
    assert error_of(port, "POST", PREDICT, chunks) == told
    with socket.create_connection(("127.0.0.1", port)) as client:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {9 << 20}\r\n"
        client.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    # Without a limit of the server's own, what is unpacked has that of TF Serving.
    with serving(models) as unlimited:
        bomb = gzip.compress(b" " * (rest.MAX_UNPACKED_BYTES + 1), 1)
        status, message = error_of(unlimited, "POST", PREDICT, bomb, {"Content-Encoding": "gzip"})
    assert (status, message.split(";")[0]) == (
        413,
        "The request is larger than 104857600 bytes",
    )


def test_chunked_bodies_and_100_continue(port):
    chunks = iter([b'{"inst', b'ances": [1', b".0]}"])
    assert ask(port, "POST", PREDICT, chunks)[0] == 200
    with socket.create_connection(("127.0.0.1", port)) as client:
        body = b'{"instances": [1.0]}'
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_one_connection_for_many_requests(port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
        for i in range(20):
            client.request("POST", PREDICT, json.dumps({"instances": [i]}))
            answer = client.getresponse()
            assert json.loads(answer.read()) == {"predictions": [i / 2 + 2]}


def test_classify_and_regress(port):
    examples = {"examples": [{"x": 0.25}, {"x": [1.0]}]}
    body = {"signature_name": "classify", **examples}
    assert ask_json(port, "POST", "/v1/models/tiny:classify", body) == (
        200,
        {"results": [[["yes", 0.25], ["no", 0.75]], [["yes", 1.0], ["no", 0.0]]]},
    )
    body = {"signature_name": "regress", **examples}
    for path in ("/v1/models/tiny:regress", "/v1/models/tiny/versions/1:regress"):
        assert ask_json(port, "POST", path, body) == (200, {"results": [0.5, 2.0]})
    status, message = error_of(port, "POST", "/v1/models/tiny:regress", {"examples": []})
    assert status == 400
    assert message.endswith("'examples' value is an empty array")
