"""A running model server: models, gRPC, REST and the polling of the config file, from flags."""

import gc
import os
import threading
from typing import Any

import grpc
import tensorflow as tf
from absl import logging
from tensorflow_serving.config import model_server_config_pb2

from fct_tf.common.errors import InputError
from fct_tf.serving import batching, core, grpc_services, loading, rest, text_protos
from fct_tf.serving.errors import ServingError
from fct_tf.serving.metrics import Metrics
from fct_tf.serving.servable import Limits

# A call waits in its thread for its batch, so there are more threads than cores; without
# batching the cores are the limit, and more threads only fight for them.
_THREADS_WITH_BATCHING = 128


class ModelServer:
    """What `start` started.

    Attributes:
      core: the models.
      grpc: with its `port`.
      rest: likewise; None without REST.
    """

    def __init__(self, models: core.ServerCore, batcher: batching.Batcher | None):
        self.core = models
        self.grpc: Any = None
        self.rest: Any = None
        self._batcher = batcher
        self._stopping = threading.Event()
        self._config_poller: threading.Thread | None = None

    def stop(self, grace_s: float) -> None:
        """Takes no new requests, finishes those in flight within `grace_s`, frees everything."""
        self._stopping.set()
        transports = [t for t in (self.grpc, self.rest) if t is not None]
        drains = [threading.Thread(target=t.stop, args=(grace_s,)) for t in transports]
        for drain in drains:
            drain.start()
        for drain in drains:
            drain.join()
        if self._config_poller is not None:
            self._config_poller.join(grace_s)
        self.core.close()
        if self._batcher is not None:
            self._batcher.close()

    def poll_config(self, path: str, interval_s: float) -> None:
        """Applies the config file again and again, whether it changed or not, as TF Serving does.

        So a reload by gRPC lasts until the next time.
        """

        def poll() -> None:
            while not self._stopping.wait(interval_s):
                try:
                    config = text_protos.parse(path, model_server_config_pb2.ModelServerConfig())
                    self.core.reload(config)
                except (InputError, ServingError) as error:
                    logging.error("%s: the config stays as it was: %s", path, error)

        self._config_poller = threading.Thread(target=poll, name="config", daemon=True)
        self._config_poller.start()


def check(flags: Any) -> None:
    """Refuses flags that do not go together."""
    if not flags.model_config_file and not flags.model_base_path:
        raise InputError("give --model_base_path, or --model_config_file for several models")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise InputError("--batching_parameters_file is of no use without --enable_batching")
    if flags.port == flags.rest_api_port and flags.port > 0:
        raise InputError(f"--rest_api_port={flags.port} is --port; give another one")
    if flags.tensorflow_session_parallelism and (
        flags.tensorflow_intra_op_parallelism or flags.tensorflow_inter_op_parallelism
    ):
        raise InputError(
            "give --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not both"
        )


def start(flags: Any, stop: threading.Event | None = None) -> ModelServer | None:
    """Loads the models, then opens the ports.

    Args:
      flags: settings as attributes, by the names of the flags of `fct_tf.model_server`.
      stop: set from elsewhere to give up waiting for the models.

    Returns:
      The server; None where `stop` was set before it served.

    Raises:
      InputError: a file, a flag or a model is wrong; names which.
    """
    config = _config(flags)
    metrics_path = _metrics_path(flags)
    credentials = _credentials(flags)
    channel_arguments = _channel_arguments(flags.grpc_channel_arguments)
    metrics = Metrics()
    batcher, parameters = _batching(flags, metrics)
    loader = loading.Loader(
        metrics,
        batcher=batcher,
        parameters=parameters,
        per_model_parameters=flags.enable_per_model_batching_parameters,
        tags=flags.saved_model_tags.split(","),
        session_config=_session_config(flags),
        limits=Limits(flags.max_request_bytes, flags.max_request_rows),
        warmup=flags.enable_model_warmup,
        warmup_iterations=flags.num_request_iterations_for_warmup,
    )
    options = core.Options(**{name: getattr(flags, name) for name in core.Options.names()})
    models = core.ServerCore(loader, metrics, options)
    server = ModelServer(models, batcher)
    try:
        if not models.start(config, flags.startup_wait_seconds, stop):
            server.stop(0)
            return None
        # What is there now stays; collections after an unload need not look at it.
        gc.collect()
        gc.freeze()
        threads = _THREADS_WITH_BATCHING if batcher else max(8, 4 * (os.cpu_count() or 1))
        server.grpc = grpc_services.serve(
            models,
            flags.host,
            flags.port,
            max_threads=flags.grpc_max_threads or threads,
            max_request_bytes=flags.max_request_bytes,
            with_health=flags.enable_grpc_healthcheck_service,
            channel_arguments=channel_arguments,
            credentials=credentials,
            socket_path=flags.grpc_socket_path,
        )
        if flags.rest_api_port:
            rest_options = rest.Options(
                timeout_s=flags.rest_api_timeout_in_ms / 1000,
                metrics_path=metrics_path,
                cors=flags.rest_api_enable_cors_support,
                max_request_bytes=flags.max_request_bytes,
                status_page=flags.status_page,
                threads=flags.rest_api_num_threads or threads,
            )
            port = max(flags.rest_api_port, 0)
            server.rest = rest.serve(models, flags.host, port, rest_options)
    except ServingError as error:
        server.stop(0)
        raise InputError(f"{_source(flags)}: {error}") from None
    except BaseException:
        server.stop(0)
        raise
    if flags.model_config_file and flags.model_config_file_poll_wait_seconds:
        server.poll_config(flags.model_config_file, flags.model_config_file_poll_wait_seconds)
    return server


def _source(flags) -> str:
    return flags.model_config_file or f"--model_base_path={flags.model_base_path}"


def _config(flags) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    if flags.model_config_file:
        text_protos.parse(flags.model_config_file, config)
        if config.WhichOneof("config") == "custom_model_config":
            raise InputError(
                f"{flags.model_config_file}: custom_model_config is not supported; use "
                "model_config_list"
            )
        return config
    config.model_config_list.config.add(
        name=flags.model_name, base_path=flags.model_base_path, model_platform=core.PLATFORM
    )
    return config


def _metrics_path(flags) -> str | None:
    if not flags.monitoring_config_file:
        return None
    message = text_protos.parse(flags.monitoring_config_file, text_protos.MonitoringConfig())
    if not message.prometheus_config.enable:
        return None
    return message.prometheus_config.path or rest.METRICS_PATH


def _batching(flags, metrics) -> tuple[batching.Batcher | None, batching.Parameters | None]:
    if not flags.enable_batching:
        return None, None
    message = text_protos.BatchingParameters()
    if flags.batching_parameters_file:
        text_protos.parse(flags.batching_parameters_file, message)
    threads = os.cpu_count() or 1
    if message.HasField("num_batch_threads"):
        threads = message.num_batch_threads.value
    try:
        if threads < 1:
            raise InputError(
                f"{flags.batching_parameters_file}: num_batch_threads must be positive"
            )
        parameters = batching.Parameters.of(message)
    except ServingError as error:
        raise InputError(f"{flags.batching_parameters_file}: {error.message}") from None
    return batching.Batcher(threads, metrics), parameters


def _session_config(flags) -> tf.compat.v1.ConfigProto:
    both = flags.tensorflow_session_parallelism
    return tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=flags.tensorflow_intra_op_parallelism or both,
        inter_op_parallelism_threads=flags.tensorflow_inter_op_parallelism or both,
    )


def _credentials(flags) -> grpc.ServerCredentials | None:
    if not flags.ssl_config_file:
        return None
    message = text_protos.parse(flags.ssl_config_file, text_protos.SSLConfig())
    if not message.server_key or not message.server_cert:
        raise InputError(f"{flags.ssl_config_file}: server_key and server_cert are needed")
    return grpc.ssl_server_credentials(
        [(message.server_key.encode(), message.server_cert.encode())],
        message.custom_ca.encode() or None,
        message.client_verify,
    )


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    arguments: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise InputError(f"--grpc_channel_arguments: {part!r} is not key=value")
        try:
            arguments.append((key, int(value)))
        except ValueError:
            arguments.append((key, value))
    return arguments
