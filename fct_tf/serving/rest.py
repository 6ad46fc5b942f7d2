"""TF Serving's REST API over a `ServerCore`: routes, limits and HTTP statuses.

Predict, classify and regress by POST, status and metadata by GET, under `/v1/models/`; metrics
for Prometheus; a page for a person at `/`.
"""

import math
import re
import socket
import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
import anyio.to_thread
import uvicorn
from absl import logging
from google.protobuf import json_format
from grpc import StatusCode
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    regression_pb2,
)

from fct_tf.common.errors import InputError
from fct_tf.serving import json_arrays, json_document, rest_examples, rest_json, status_page
from fct_tf.serving.errors import ServingError, invalid

METRICS_PATH = "/monitoring/prometheus/metrics"
MAX_UNPACKED_BYTES = 100 << 20
_MOST_DISCARDED_BYTES = 1 << 30

_WHICH = "(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_INFERENCE = re.compile(
    f"/v1/models/([^/:]+){_WHICH}:(classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_INFORMATION = re.compile(
    f"/v1/models(?:/([^/:]+))?{_WHICH}(?:/(metadata))?", re.IGNORECASE | re.ASCII
)

_HTTP_STATUS = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@dataclass(frozen=True)
class Options:
    """Settings of the REST API.

    Attributes:
      timeout_s: for one request, from its arrival; 0 is none.
      metrics_path: where the metrics are; None is nowhere.
      cors: whether pages of other origins may call.
      max_request_bytes: of a body, unpacked or not; 0 is no limit.
      status_page: whether there is a page at `/`.
      threads: requests that are worked on at once; with batching, rows that can meet in a batch.
    """

    timeout_s: float = 30.0
    metrics_path: str | None = None
    cors: bool = False
    max_request_bytes: int = 0
    status_page: bool = True
    threads: int = 64


@dataclass(frozen=True)
class _Target:
    """What a path names."""

    model: str
    version: int | None
    label: str | None
    method: str  # predict, classify, regress, metadata, or empty for the status.

    def spec(self) -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=self.model)
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        return spec


def app(core: Any, options: Options = Options()) -> Starlette:
    """The ASGI application.

    Args:
      core: a `ServerCore`.
      options: settings.
    """
    handler = _Handler(core, options)
    limiter = anyio.CapacityLimiter(options.threads)
    headers = _CORS if options.cors else {}

    async def endpoint(request: Request) -> Response:
        started = time.monotonic()
        path, query = request.scope["raw_path"].decode("latin-1"), request.scope["query_string"]
        full_path = f"{path}?{query.decode('latin-1')}" if query else path
        if path == options.metrics_path:
            return await anyio.to_thread.run_sync(handler.metrics, full_path)
        if path == "/" and options.status_page and request.method in ("GET", "HEAD"):
            page = await anyio.to_thread.run_sync(status_page.html, core)
            return Response(page, headers=status_page.HEADERS)
        if not path.lower().startswith("/v1/"):
            return Response("Not Found\n", 404, {"Content-Type": "text/plain"})
        if request.method == "OPTIONS" and "origin" in request.headers:
            return Response(b"", headers={"Content-Type": "application/json", **headers})
        try:
            body = await _body(request, options.max_request_bytes)
        except ClientDisconnect:
            return Response(b"", 499)
        except _TooLarge as error:
            # The body may not have been read to its end, so nothing can follow it.
            return _json(413, _error(error.message), {**headers, "Connection": "close"})
        gzipped = "gzip" in request.headers.get("content-encoding", "").lower()
        status, content = await anyio.to_thread.run_sync(
            handler.answer, request.method, full_path, body, gzipped, started, limiter=limiter
        )
        return _json(status, content, headers)

    return Starlette(routes=[_AnyPath("/{path:path}", endpoint)])


class Server:
    """A running REST server; `port` is the one it listens on."""

    def __init__(self, server: uvicorn.Server, sock: socket.socket):
        self.port: int = sock.getsockname()[1]
        self._server = server
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [sock]}, name="rest", daemon=True
        )
        self._thread.start()
        while not server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self, grace_s: float = 0.0) -> None:
        """Takes no new connections, lets requests in flight finish within `grace_s` seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, math.ceil(grace_s))
        self._server.should_exit = True
        self._thread.join(grace_s + 5)


def serve(core: Any, host: str, port: int, options: Options = Options()) -> Server:
    """Starts the REST API in a thread of its own.

    Args:
      core: a `ServerCore`.
      host: address to listen on.
      port: 0 takes a free one.
      options: settings.

    Raises:
      InputError: the address cannot be listened on.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(f"``rest_api_port``: cannot listen on {host}:{port}: {error}") from None
    config = uvicorn.Config(
        app(core, options),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        # Its own would close all handlers that the process has.
        log_config=None,
        log_level="error",
        server_header=False,
        timeout_keep_alive=60,
    )
    return Server(uvicorn.Server(config), sock)


class _AnyPath(Route):
    """All methods, known ones or not: what is wrong with one is told in JSON."""

    def __init__(self, path: str, endpoint: Any):
        super().__init__(path, endpoint)
        self.methods = None


@dataclass(frozen=True)
class _Handler:
    core: Any
    options: Options

    def metrics(self, path: str) -> Response:
        text = {"Content-Type": "text/plain"}
        if path != self.options.metrics_path:
            message = f"Unexpected path: {path}. Should be {self.options.metrics_path}"
            return Response(message, 400, text)
        return Response(self.core.metrics.page(), headers=text)

    def answer(
        self, method: str, path: str, body: bytes, gzipped: bool, started: float
    ) -> tuple[int, bytes]:
        """HTTP status and JSON."""
        target, code = None, StatusCode.OK
        try:
            target = _target(method, path)
            if gzipped:
                body = _unpacked(body, self.options.max_request_bytes)
            content = self._content(target, body, started)
        except ServingError as error:
            code, content = error.code, _error(error.message)
            if isinstance(error, _TooLarge):
                return 413, content
        except Exception as error:  # A bug; the server goes on.
            logging.exception("%s %s", method, path)
            code, content = StatusCode.INTERNAL, _error(f"{type(error).__name__}: {error}")
        if target and method == "POST":
            self.core.metrics.request(target.model, code.name)
            if code is StatusCode.OK:
                seconds = time.monotonic() - started
                self.core.metrics.latency(target.model, target.method, "REST", seconds)
        return _HTTP_STATUS.get(code, 500), content

    def _content(self, target: _Target, body: bytes, started: float) -> bytes:
        if not target.model:
            raise invalid("Missing model name in request.")
        if target.method == "predict":
            return self._predict(target, body, started)
        if target.method == "classify":
            request = classification_pb2.ClassificationRequest(model_spec=target.spec())
            rest_examples.fill(json_document.parse(body), request)
            response = self.core.classify(request, self._time_left(started))
            return rest_examples.classifications(response.result)
        if target.method == "regress":
            request = regression_pb2.RegressionRequest(model_spec=target.spec())
            rest_examples.fill(json_document.parse(body), request)
            response = self.core.regress(request, self._time_left(started))
            return rest_examples.regressions(response.result)
        if target.method == "metadata":
            request = get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=target.spec(), metadata_field=["signature_def"]
            )
            return _metadata(self.core.metadata(request))
        # Labels are ignored here, as the original does it.
        return _proto(self.core.status(target.model, target.version)).encode() + b"\n"

    def _predict(self, target: _Target, body: bytes, started: float) -> bytes:
        document = json_document.parse(body)
        name = rest_json.signature_name(document) or "serving_default"
        with self.core.servable(target.model, target.version, target.label) as servable:
            if name not in servable.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            inputs = rest_json.arrays(document, servable.signatures[name].inputs, name)
            outputs = servable.run(name, inputs, (), self._time_left(started))
        if rest_json.is_row_format(document):
            return rest_json.predictions(outputs)
        return rest_json.columns(outputs)

    def _time_left(self, started: float) -> float | None:
        if self.options.timeout_s <= 0:
            return None
        return self.options.timeout_s - (time.monotonic() - started)


def _target(method: str, path: str) -> _Target:
    pattern = {"POST": _INFERENCE, "GET": _INFORMATION}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if not match:
        raise invalid(f"Malformed request: {method} {path}")
    model, version, label, last = match.groups()
    if version and int(version) >= 2**63:
        raise invalid(f"Failed to convert version: {version} to numeric.")
    return _Target(
        model=_decoded(model or ""),
        version=int(version) if version else None,
        label=_decoded(label) if label else None,
        method=(last or "").lower(),
    )


def _decoded(part: str) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")


async def _body(request: Request, limit: int) -> bytes:
    """The body, of which no more than `limit` is kept.

    The rest of a larger one is read and thrown away, since most clients look for an answer only
    when they have sent everything; a client that asks first (Expect: 100-continue) is told.
    """
    length = request.headers.get("content-length", "")
    too_large = bool(limit) and length.isdigit() and int(length) > limit
    if too_large and "expect" in request.headers:
        raise _TooLarge(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if too_large or (limit and size > limit):
            too_large = True
            chunks.clear()
            if size > limit + _MOST_DISCARDED_BYTES:
                break
        else:
            chunks.append(chunk)
    if too_large:
        raise _TooLarge(limit)
    return b"".join(chunks)


def _unpacked(body: bytes, limit: int) -> bytes:
    """A body out of gzip; several members may follow one another."""
    most = min(limit or MAX_UNPACKED_BYTES, MAX_UNPACKED_BYTES)
    parts, left = [], most
    while body:
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            part = unpacker.decompress(body, left + 1)
        except zlib.error as error:
            raise invalid(f"Failed to uncompress the gzipped body: {error}") from None
        if len(part) > left:
            raise _TooLarge(most)
        if not unpacker.eof:
            raise invalid("Failed to uncompress the gzipped body: it ends too early")
        parts.append(part)
        left -= len(part)
        body = unpacker.unused_data
    return b"".join(parts)


class _TooLarge(ServingError):
    def __init__(self, limit: int):
        super().__init__(
            StatusCode.INVALID_ARGUMENT,
            f"The request is larger than {limit} bytes; send several requests",
        )


def _json(status: int, content: bytes, headers: dict[str, str]) -> Response:
    return Response(content, status, {"Content-Type": "application/json", **headers})


def _error(message: str) -> bytes:
    return f'{{\n    "error": {json_arrays.string(message)}\n}}'.encode("utf-8", "replace")


def _proto(message: Any) -> str:
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
    )


def _metadata(response: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return (
        f'{{\n"model_spec":{_proto(response.model_spec)}\n,\n'
        f'"metadata": {{"signature_def": {_proto(signatures)}\n}}\n}}\n'
    ).encode()
