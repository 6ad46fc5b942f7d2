"""The REST server: routes, bodies of any kind, and its end."""

import base64
import gc
import gzip
import json
import socket
import threading
import tracemalloc
from collections import Counter

import grpc
import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.serving import rest
from fct_tf.serving.errors import ServingError
from tests.serving.rest_calls import PREDICT, ask, ask_json, error_of, serving


@pytest.mark.parametrize(
    ("path", "plus"),
    [
        ("/v1/models/tiny:predict", 2),
        ("/v1/models/tiny/versions/1:predict", 1),
        ("/v1/models/tiny/versions/2:predict", 2),
        ("/v1/models/tiny/labels/stable:predict", 1),
        ("/v1/models/tin%79/labels/st%61ble:predict", 1),
        ("/V1/Models/tiny/Versions/1:Predict", 1),
        ("/v1/models/a%20model:predict", 2),
        ("/v1/models/tiny/versions/0001:predict", 1),
    ],
)
def test_predict_by_version_and_label(port, path, plus):
    status, content = ask_json(port, "POST", path, {"instances": [1.0, 2.0, 5.0]})
    assert (status, content) == (200, {"predictions": [0.5 + plus, 1.0 + plus, 2.5 + plus]})


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/v1/models/none:predict", 404, "Servable not found for request: Latest(none)"),
        (
            "/v1/models/tiny/versions/9:predict",
            404,
            "Servable not found for request: Specific(tiny, 9)",
        ),
        (
            "/v1/models/tiny/labels/none:predict",
            400,
            "Unrecognized servable version label: none",
        ),
        (
            "/v1/models/none/labels/none:predict",
            400,
            "Unrecognized servable version label: none",
        ),
        (
            "/v1/models/tiny/versions/99999999999999999999:predict",
            400,
            "Failed to convert version: 99999999999999999999 to numeric.",
        ),
    ],
)
def test_models_that_are_not_there(port, path, status, told):
    assert error_of(port, "POST", path, {"instances": [1.0]}) == (status, told)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/tiny:predict"),
        ("POST", "/v1/models/tiny"),
        ("POST", "/v1/models/tiny/metadata"),
        ("POST", "/v1/models/tiny:explain"),
        ("POST", "/v1/models/tiny:predict?verbose=1"),
        ("POST", "/v1/models/tiny/versions/x:predict"),
        ("POST", "/v1/models/tiny/versions/1/labels/stable:predict"),
        ("POST", "/v1/models/tiny/labels/:predict"),
        ("GET", "/v1/models/tiny/versions/1/more"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/"),
        ("GET", "/V1/else"),
        ("PUT", "/v1/models/tiny"),
        ("DELETE", "/v1/models/tiny"),
        ("PATCH", "/v1/models/tiny:predict"),
        ("OPTIONS", "/v1/models/tiny"),
    ],
)
def test_malformed_requests(port, method, path):
    assert error_of(port, method, path) == (400, f"Malformed request: {method} {path}")


def test_head_is_no_method_of_the_api(port):
    status, headers, body = ask(port, "HEAD", "/v1/models/tiny")
    assert (status, headers["content-type"], body) == (400, "application/json", b"")


@pytest.mark.parametrize("path", ["/v1/models", "/V1/MODELS", "/v1/models/metadata/metadata"])
def test_no_name_of_a_model(port, path):
    expected = (
        (404, "Servable not found for request: Latest(metadata)")
        if path.endswith("metadata")
        else (400, "Missing model name in request.")
    )
    assert error_of(port, "GET", path) == expected


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/favicon.ico", "/v1", "/index.html", "//"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_outside_of_the_api(port, method, path):
    status, headers, body = ask(port, method, path)
    assert (status, headers["content-type"]) == (404, "text/plain")
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


def test_the_query_string_belongs_to_the_name(port):
    assert error_of(port, "GET", "/v1/models/tiny?x=1") == (
        404,
        "Could not find any versions of model tiny?x=1",
    )


def test_cors(models, port):
    origin = {"Origin": "http://localhost:3000"}
    status, headers, _ = ask(port, "OPTIONS", PREDICT, headers=origin)
    assert status == 200
    assert not [name for name in headers if name.startswith("access-control")]
    with serving(models, cors=True) as with_cors:
        for method, path, body in (
            ("OPTIONS", PREDICT, None),
            ("POST", PREDICT, {"instances": [1.0]}),
            ("GET", "/v1/models/tiny", None),
        ):
            status, headers, _ = ask(with_cors, method, path, body, origin)
            assert status == 200
            assert headers["access-control-allow-origin"] == "*"
            assert headers["access-control-allow-methods"] == "POST, GET"
            assert headers["access-control-allow-headers"] == "Content-Type"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARGUMENT", 400),
        ("FAILED_PRECONDITION", 400),
        ("OUT_OF_RANGE", 400),
        ("UNAUTHENTICATED", 401),
        ("PERMISSION_DENIED", 403),
        ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409),
        ("ABORTED", 409),
        ("RESOURCE_EXHAUSTED", 429),
        ("CANCELLED", 499),
        ("UNIMPLEMENTED", 501),
        ("UNAVAILABLE", 503),
        ("DEADLINE_EXCEEDED", 504),
        ("INTERNAL", 500),
        ("UNKNOWN", 500),
        ("DATA_LOSS", 500),
    ],
)
def test_http_status_of_each_code(models, port, monkeypatch, code, status):
    def fails(*_):
        raise ServingError(grpc.StatusCode[code], f'of "{code}"\n')

    monkeypatch.setattr(models, "status", fails)
    assert error_of(port, "GET", "/v1/models/tiny") == (status, f'of "{code}"\n')


def test_a_bug_is_an_answer_too(models, port, monkeypatch):
    monkeypatch.setattr(models, "status", lambda *_: 1 / 0)
    assert error_of(port, "GET", "/v1/models/tiny") == (500, "ZeroDivisionError: division by zero")


def test_a_port_that_is_taken(models, port):
    with pytest.raises(InputError, match=f"`rest_api_port`: cannot listen on 127.0.0.1:{port}: "):
        rest.serve(models, "127.0.0.1", port)


def test_requests_in_flight_finish_when_it_stops(models, monkeypatch):
    arrived = threading.Event()
    original = models.servable

    def servable(*args):
        arrived.set()
        return original(*args)

    monkeypatch.setattr(models, "servable", servable)
    server = rest.serve(models, "127.0.0.1", 0)
    answers = []
    body = {"signature_name": "slow", "inputs": 60_000}
    client = threading.Thread(
        target=lambda: answers.append(ask(server.port, "POST", PREDICT, body))
    )
    client.start()
    assert arrived.wait(60)
    server.stop(30)
    client.join()
    assert answers[0][0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(server.port, "GET", "/")


def fuzzed(rng: np.random.Generator) -> tuple[str, bytes, dict[str, str]]:
    """Signature's name is good, the rest of a request is wrong in one of many ways."""
    name = str(rng.choice(["serving_default", "dense", "two", "text", "double", "bool", "S", ""]))
    values = [
        None,
        True,
        -1,
        1.5,
        1e39,
        2**70,
        "text",
        [],
        {},
        [1, [2]],
        [[1, 2], [3]],
        {"b64": "*"},
        {"b64": "-_-_"},
        {"b64": 5},
        float("nan"),
        float("inf"),
        rng.normal(size=rng.integers(0, 5, rng.integers(1, 6))).tolist(),
        rng.integers(0, 2**31, int(rng.choice([1, 10, 20_000, 200_000]))).tolist(),
        [{"x": 1}, {"y": 2}, 3],
        [{"a": [1.0], "b": 1}, {"a": [1.0, 2.0], "b": 1}],
    ]
    value = values[rng.integers(len(values))]
    if rng.random() < 0.5:
        value = [value] * int(rng.integers(1, 4))
    form = str(rng.choice(["instances", "inputs", "examples", "other"], p=[0.45, 0.45, 0.05, 0.05]))
    body = json.dumps({"signature_name": name, form: value}).encode()
    kind = rng.integers(8)
    if kind == 0:
        body = body[: rng.integers(len(body))]
    elif kind == 1:
        body = rng.bytes(int(rng.integers(0, 2000)))
    elif kind == 2:
        at = rng.integers(len(body))
        body = body[:at] + rng.bytes(3) + body[at:]
    elif kind == 3 and rng.random() < 0.3:
        body = b'{"instances": ' + b"[" * int(rng.integers(1, 100_000))
    headers = {"Content-Encoding": "gzip"} if rng.random() < 0.1 else {}
    if headers and rng.random() < 0.5:
        body = gzip.compress(body)
    method = str(rng.choice(["predict", "predict", "predict", "classify", "regress"]))
    return f"/v1/models/tiny:{method}", body, headers


@pytest.mark.slow
def test_a_thousand_requests_that_are_wrong(models, port):
    rng = np.random.default_rng(11)

    def run(count: int) -> Counter[int]:
        statuses: Counter[int] = Counter()
        for i in range(count):
            path, body, headers = fuzzed(rng)
            if i % 50 == 0:  # No HTTP at all.
                with socket.create_connection(("127.0.0.1", port)) as client:
                    client.sendall(rng.bytes(200) + b"\r\n\r\n")
            status, given, content = ask(port, "POST", path, body, headers)
            assert status in (200, 400, 413, 501), (path, body[:200], content[:200])
            assert given["content-type"] == "application/json"
            if status != 200:
                assert list(json.loads(content)) == ["error"]
                assert len(content) < 4096
            statuses[status] += 1
        gc.collect()
        return statuses

    statuses = run(800)
    # What Python holds: what the process has from the system comes and goes by tens of megabytes.
    tracemalloc.start()
    try:
        run(30)
        held, _ = tracemalloc.get_traced_memory()
        statuses += run(200)
        kept = tracemalloc.get_traced_memory()[0] - held
    finally:
        tracemalloc.stop()
    assert sum(statuses.values()) == 1000
    assert statuses[400] > 500
    assert kept < 1 << 20, "5 kB an answer"
    assert ask_json(port, "POST", PREDICT, {"instances": [1]}) == (200, {"predictions": [2.5]})
    encoded = {"b64": base64.b64encode(b"a").decode()}
    body = {"signature_name": "text", "inputs": [encoded]}
    assert ask(port, "POST", PREDICT, body)[0] == 200
