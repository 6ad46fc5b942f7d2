"""Stores that never answer, answer late, or with errors: what is told, and what is waited for."""

import contextlib
import http.server
import re
import socket
import threading
import time

import pytest

from fct_tf import Gallery
from fct_tf.common import objects, stores
from fct_tf.common.errors import InputError
from fct_tf.common.store_options import RETRY
from tests import buckets

URI = "s3://some-bucket/g.lance"


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """No options but those of the test."""
    buckets.forget_stores(monkeypatch)


@contextlib.contextmanager
def silent():
    """An endpoint that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering(answer):
    """An endpoint whose `answer(method, path)` is a status and a body; None keeps it silent."""
    asked, ended = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self):
            asked.append((self.command, self.path))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = answer(self.command, self.path)
            if told is None:
                ended.wait()
                return
            status, body = told
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def options(endpoint, **more):
    return {**buckets.Server(endpoint, None).options, **more}


def opened_by(way):
    """Opens the gallery with Lance, or a file with obstore."""
    return Gallery.open(URI) if way == "Lance" else objects.read(URI)


WAYS = pytest.mark.parametrize("way", ["Lance", "obstore"])


@WAYS
def test_a_store_that_never_answers(way):
    with silent() as endpoint:
        stores.use(options(endpoint, connect_timeout="300ms", timeout="5m", client_max_retries=9))
        with pytest.raises(InputError) as told:
            opened_by(way)
    line = str(told.value)
    assert re.search(rf"no answer in \d+ s from {endpoint}; check the network and the end", line)
    assert '"connect_timeout": "60s" in the file of' in line and buckets.SECRET not in line


def test_what_is_waited_for():
    """By default: a small request, asked twice, has a time that no person minds."""
    tries = 1 + int(objects._FIRST["client_max_retries"])
    assert tries * int(objects._FIRST["timeout"].removesuffix("s")) <= 20
    # What carries much has the 30 s of the libraries: nothing here makes them less.
    assert "timeout" not in RETRY and "timeout" not in (objects.lance_options("oss://b/x") or {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, RETRY),
        ({"client_max_retries": 9}, {**RETRY, "client_max_retries": "9"}),
        ({"download_retry_count": "7", "timeout": 90}, {"timeout": "90s", "client_max_retries": "3",
                                                        "client_retry_timeout": "45",
                                                        "download_retry_count": "7"}),
        ({"request_timeout": "2m"}, {**RETRY, "timeout": "2m"}),
    ],
)  # fmt: skip
def test_options_of_the_user_win(given, expected):
    stores.use(given)
    assert objects.lance_options("oss://bucket/g.lance") == expected


def test_variables_of_the_user_win(monkeypatch):
    monkeypatch.setenv("CLIENT_MAX_RETRIES", "9")
    assert "client_max_retries" not in objects.lance_options("oss://bucket/g.lance")


def test_a_slow_upload_is_not_taken_for_silence(monkeypatch):
    monkeypatch.setitem(objects._FIRST, "timeout", "500ms")

    def answer(method, path):
        if method == "PUT":
            time.sleep(1)
        return (200 if method == "PUT" else 404), b""

    with answering(answer) as (endpoint, asked):
        stores.use(options(endpoint))
        objects.write("s3://some-bucket/slow", b"content")
        objects.write("s3://some-bucket/slow", b"content")
    methods = [method for method, _ in asked]
    # It is asked whether anybody is there once.
    assert methods == ["HEAD", "PUT", "PUT"]


def error(code):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()


BUSY, NOT_BUSY = "the store has failed .*; try again", "the store does not do what is asked"
ANSWERS = [
    (404, error("NoSuchBucket"), "there is no such bucket; make it, or correct its name"),
    (400, error("InvalidBucketName"), "this cannot be the name of a bucket; correct it"),
    (403, error("InvalidAccessKeyId"), r"refuses the credentials \(InvalidAccessKeyId\)"),
    (403, error("SignatureDoesNotMatch"), r"refuses the credentials \(SignatureDoesNotMatch\)"),
    (400, error("ExpiredToken"), r"refuses the credentials \(ExpiredToken\)"),
    (403, b"", r"refuses the credentials \((403 Forbidden|PermissionDenied)\)"),
    (401, b"", r"refuses the credentials \((401 Unauthorized|Unauthenticated)\)"),
    (403, error("RequestTimeTooSkewed"), "the clock of this machine is wrong"),
    (301, error("PermanentRedirect"), "in another region; set aws_region in the file"),
    (400, error("AuthorizationHeaderMalformed"), "in another region; set aws_region"),
    (400, error("IllegalLocationConstraintException"), "in another region; set aws_region"),
    (405, error("MethodNotAllowed"), NOT_BUSY),
    (400, error("InvalidRequest"), NOT_BUSY),
    (501, error("NotImplemented"), NOT_BUSY),
    (500, error("InternalError"), BUSY),
    (503, error("SlowDown"), BUSY),
    (502, b"", BUSY),
    (429, b"", BUSY),
]


@WAYS
@pytest.mark.parametrize(("status", "body", "told"), ANSWERS)
def test_answers_that_are_errors(way, status, body, told):
    with answering(lambda method, path: (status, body)) as (endpoint, _):
        stores.use(options(endpoint, client_max_retries=0, download_retry_count=0))
        with pytest.raises(InputError, match=told) as raised:
            opened_by(way)
    line = str(raised.value)
    assert ("try again" in line) == (told is BUSY) and "\n" not in line and "<" not in line
    assert line.startswith(f"{URI}: ") and buckets.SECRET not in line


def test_an_endpoint_without_https():
    with answering(lambda method, path: (404, b"")) as (endpoint, _):
        stores.use(options(endpoint.replace("http:", "https:"), client_max_retries=0))
        with pytest.raises(InputError, match="does not speak https|cannot be reached"):
            opened_by("obstore")
