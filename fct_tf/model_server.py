"""Serves exported models over gRPC and REST as TF Serving does, where no container can run.

The API, flags and configuration files are TF Serving's, so clients need no change. It is for
development and small deployments: one Python process, reachable from this machine only unless
--host says otherwise, without authentication. SIGTERM lets requests in flight finish.

  python -m fct_tf.model_server --rest_api_port=8501 --model_name=fct \\
      --model_base_path=$PWD/serving/models/fct
"""

import signal
import threading

from absl import flags

from fct_tf.common import cli
from fct_tf.common.errors import InputError

_TEXT = {
    "host": ("127.0.0.1", "Address to listen at; 0.0.0.0 makes the models public."),
    "model_config_file": ("", "ModelServerConfig: which models, versions and labels."),
    "model_base_path": ("", "Directory with a version per number, without a config file."),
    "model_name": ("default", "Name of the model, with --model_base_path."),
    "monitoring_config_file": ("", "MonitoringConfig: whether REST has metrics for Prometheus."),
    "batching_parameters_file": ("", "BatchingParameters, with --enable_batching."),
    "saved_model_tags": ("serve", "Comma separated tags of the graph to load."),
    "grpc_channel_arguments": ("", "Settings of gRPC: key=value,key=value."),
    "grpc_socket_path": ("", "UNIX socket where gRPC is served as well."),
    "ssl_config_file": ("", "SSLConfig: gRPC over TLS."),
}
_NUMBERS = {
    "port": (8500, 0, "Port of gRPC; 0 takes a free one."),
    "rest_api_port": (0, -1, "Port of REST; 0: no REST, -1: a free one."),
    "rest_api_timeout_in_ms": (30000, 0, "Milliseconds that a REST request may take."),
    "rest_api_num_threads": (0, 0, "REST requests at a time; 0 chooses."),
    "grpc_max_threads": (0, 0, "gRPC requests at a time; 0 chooses."),
    "model_config_file_poll_wait_seconds": (0, 0, "Seconds until it is read again; 0: never."),
    "file_system_poll_wait_seconds": (
        1,
        None,
        "Seconds between looks for versions; 0: at reloads.",
    ),
    "max_num_load_retries": (5, 0, "More tries of a version that does not load."),
    "load_retry_interval_micros": (60_000_000, 0, "Microseconds between tries."),
    "num_load_threads": (0, 0, "Versions loaded at a time."),
    "num_unload_threads": (0, 0, "Versions unloaded at a time."),
    "num_request_iterations_for_warmup": (1, 0, "Times that each warm-up request is run."),
    "tensorflow_session_parallelism": (0, 0, "Threads of TensorFlow; 0 chooses."),
    "tensorflow_intra_op_parallelism": (0, 0, "Threads inside an operation; 0 chooses."),
    "tensorflow_inter_op_parallelism": (0, 0, "Operations at a time; 0 chooses."),
    "max_request_bytes": (1 << 29, 0, "Bytes of the largest request or tensor; 0: no limit."),
    "max_request_rows": (1_000_000, 0, "Rows of the largest request; 0: no limit."),
    "shutdown_grace_seconds": (20, 0, "Seconds for requests in flight after SIGTERM."),
    "startup_wait_seconds": (60, 0, "Seconds for the first version of every model to appear."),
}
_SWITCHES = {
    "enable_batching": (False, "Run requests together."),
    "enable_per_model_batching_parameters": (
        False,
        "Batch only versions with a batching_params.pbtxt in their directory, as it says.",
    ),
    "allow_version_labels_for_unavailable_models": (
        False,
        "Labels that are new may name a version that is not loaded yet.",
    ),
    "force_allow_any_version_labels_for_unavailable_models": (
        False,
        "Labels may move to a version that is not loaded: requests fail until it is.",
    ),
    "enable_serialization_as_tensor_content": (
        False,
        "Answer in tensor_content, which is faster to read, not in float_val.",
    ),
    "enable_grpc_healthcheck_service": (False, "Answer grpc.health.v1, for liveness only."),
    "enable_model_warmup": (True, "Replay assets.extra/tf_serving_warmup_requests at loading."),
    "rest_api_enable_cors_support": (False, "Let pages of other origins call."),
    "flush_filesystem_caches": (True, "Accepted; nothing to flush here."),
    "status_page": (True, "A page for a person at / of the REST port."),
}


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags, by TF Serving's names."""
    for name, (text, help_text) in _TEXT.items():
        flags.DEFINE_string(name, text, help_text, flag_values=values)
    for name, (number, lowest, help_text) in _NUMBERS.items():
        # A larger port would wrap around, and the server would listen at another one.
        highest = 65535 if name in ("port", "rest_api_port") else None
        flags.DEFINE_integer(name, number, help_text, lowest, highest, flag_values=values)
    for name, (on, help_text) in _SWITCHES.items():
        flags.DEFINE_boolean(name, on, help_text, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Serves until SIGTERM or SIGINT."""
    _check(values)
    from fct_tf.serving import server

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    running = server.start(values, stop)
    if running is None:  # Told to stop while it waited for the models.
        return
    print(f"Running gRPC ModelServer at {values.host}:{running.grpc.port} ...", flush=True)
    if running.rest is not None:
        print(f"Exporting HTTP/REST API at:{values.host}:{running.rest.port} ...", flush=True)
    stop.wait()
    print("Stopping: requests in flight are finished ...", flush=True)
    running.stop(values.shutdown_grace_seconds)


def _check(values: flags.FlagValues) -> None:
    if not values.model_config_file and not values.model_base_path:
        raise InputError("give --model_base_path, or --model_config_file for several models")
    if values.batching_parameters_file and not values.enable_batching:
        raise InputError("--batching_parameters_file is of no use without --enable_batching")
    if values.port == values.rest_api_port and values.port > 0:
        raise InputError(f"--rest_api_port={values.port} is --port; give another one")
    if values.tensorflow_session_parallelism and (
        values.tensorflow_intra_op_parallelism or values.tensorflow_inter_op_parallelism
    ):
        raise InputError(
            "give --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not both"
        )


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
