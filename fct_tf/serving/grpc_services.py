"""The gRPC side: PredictionService, ModelService and health, with the stock stubs' messages.

Threads rather than asyncio: TensorFlow lets go of the interpreter's lock while it runs, and
threads were faster (one row, 8 clients: 1.0 against 1.3 ms, median).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from absl import logging
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from fct_tf.common.errors import InputError
from fct_tf.serving.core import ServerCore
from fct_tf.serving.errors import ServingError, invalid

# gRPC's own limit of 4 MiB is not TF Serving's: no limit.
_UNLIMITED = -1
_MESSAGE_LIMIT_BYTES = 1024
HEALTH_SERVICES = ("", "ModelService", "PredictionService")


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, core: ServerCore):
        self._core = core

    def Predict(self, request, context):
        return self._counted("Predict", self._core.predict, request, context)

    def Classify(self, request, context):
        return self._counted("Classify", self._core.classify, request, context)

    def Regress(self, request, context):
        return self._counted("Regress", self._core.regress, request, context)

    def MultiInference(self, request, context):
        with _status_of(context):
            return self._core.multi_inference(request, context.time_remaining())

    def GetModelMetadata(self, request, context):
        with _status_of(context):
            return self._core.metadata(request)

    def _counted(self, api: str, call: Callable, request, context):
        """Runs a request and counts it; the latency is that of successes only."""
        metrics = self._core.metrics
        name = request.model_spec.name
        start = time.perf_counter()
        status = "INTERNAL"
        try:
            with _status_of(context):
                try:
                    response = call(request, context.time_remaining())
                except ServingError as error:
                    status = error.code.name
                    raise
            status = "OK"
            metrics.latency(name, api, "GRPC", time.perf_counter() - start)
            return response
        finally:
            metrics.request(name, status)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, core: ServerCore):
        self._core = core

    def GetModelStatus(self, request, context) -> get_model_status_pb2.GetModelStatusResponse:
        with _status_of(context):
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            spec = request.model_spec
            # A label is not looked at.
            with_version = spec.WhichOneof("version_choice") == "version"
            return self._core.status(spec.name, spec.version.value if with_version else None)

    def HandleReloadConfigRequest(self, request, context):
        with _status_of(context):
            gone = threading.Event()  # A client that has left need not be waited for.
            context.add_callback(gone.set)
            self._core.reload(request.config, stop=gone)
            response = model_management_pb2.ReloadConfigResponse()
            response.status.SetInParent()
            return response


@contextlib.contextmanager
def _status_of(context) -> Iterator[None]:
    """Turns an error into the status of the call, its text cut as TF Serving cuts it."""
    try:
        yield
    except ServingError as error:
        context.abort(error.code, truncated(error.message))
    except Exception as error:
        logging.exception("a bug in the server")
        context.abort(grpc.StatusCode.INTERNAL, truncated(f"{type(error).__name__}: {error}"))


def truncated(message: str) -> str:
    """At most 1024 bytes, and `...TRUNCATED` where some were cut."""
    encoded = message.encode()
    if len(encoded) <= _MESSAGE_LIMIT_BYTES:
        return message
    return encoded[:_MESSAGE_LIMIT_BYTES].decode(errors="ignore") + "...TRUNCATED"


class GrpcServer:
    """A started gRPC server.

    Attributes:
      port: where it listens.
    """

    def __init__(self, server: grpc.Server, port: int, health_servicer):
        self.port = port
        self._server = server
        self._health = health_servicer

    def stop(self, grace_s: float) -> None:
        """Takes no new calls, and waits for those in flight, at most `grace_s` seconds."""
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()


def serve(
    core: ServerCore,
    host: str,
    port: int,
    *,
    max_threads: int = 32,
    max_request_bytes: int = 0,
    with_health: bool = False,
    channel_arguments: Sequence[tuple[str, Any]] = (),
    credentials: grpc.ServerCredentials | None = None,
    socket_path: str = "",
) -> GrpcServer:
    """Starts the gRPC server.

    Args:
      core: the models.
      host: the address to listen at.
      port: 0 for a free one.
      max_threads: calls at a time; more wait.
      max_request_bytes: 0 for no limit.
      with_health: serve `grpc.health.v1`, SERVING from the start whatever the models' state.
      channel_arguments: gRPC's own.
      credentials: None for plain text.
      socket_path: a UNIX socket to listen at too.

    Raises:
      InputError: the port is taken.
    """
    server = grpc.server(
        ThreadPoolExecutor(max_threads, "grpc"),
        options=[
            ("grpc.max_receive_message_length", max_request_bytes or _UNLIMITED),
            ("grpc.max_send_message_length", _UNLIMITED),
            ("grpc.so_reuseport", 0),  # A port that is taken is an error, not shared.
            *channel_arguments,
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(core), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(core), server)
    health_servicer = None
    if with_health:
        health_servicer = health.HealthServicer()
        for service in HEALTH_SERVICES:
            health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    def listen(address: str) -> int:
        try:
            if credentials is not None:
                return server.add_secure_port(address, credentials)
            return server.add_insecure_port(address)
        except RuntimeError:
            raise InputError(
                f"``port={port}``: cannot listen at {address}; is another server there?"
            ) from None

    bracketed = f"[{host}]" if ":" in host else host
    bound = listen(f"{bracketed}:{port}")
    if socket_path:
        listen(f"unix:{socket_path}")
    server.start()
    return GrpcServer(server, bound, health_servicer)
