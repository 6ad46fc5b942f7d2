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
from fct_tf.common.flag_groups import Group


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags, by TF Serving's names."""
    models = Group(values, "Which models:")
    models.string("model_base_path", "Directory with a version per number, without a config file.")
    models.string("model_name", "Name of the model, with --model_base_path.", "default")
    models.string("model_config_file", "ModelServerConfig: which models, versions and labels.")
    text = "Seconds until it is read again; 0: never."
    models.integer("model_config_file_poll_wait_seconds", text, 0, 0)
    text = "Labels that are new may name a version that is not loaded yet."
    models.boolean("allow_version_labels_for_unavailable_models", text)
    text = "Labels may move to a version that is not loaded: requests fail until it is."
    models.boolean("force_allow_any_version_labels_for_unavailable_models", text)
    load = Group(values, "How versions are loaded:")
    text = "Seconds between looks for versions; 0: at reloads."
    load.integer("file_system_poll_wait_seconds", text, 1)
    text = "Seconds for the first version of every model to appear."
    load.integer("startup_wait_seconds", text, 60, 0)
    load.string("saved_model_tags", "Comma separated tags of the graph to load.", "serve")
    load.integer("max_num_load_retries", "More tries of a version that does not load.", 5, 0)
    load.integer("load_retry_interval_micros", "Microseconds between tries.", 60_000_000, 0)
    load.integer("num_load_threads", "Versions loaded at a time.", 0, 0)
    load.integer("num_unload_threads", "Versions unloaded at a time.", 0, 0)
    text = "Replay assets.extra/tf_serving_warmup_requests at loading."
    load.boolean("enable_model_warmup", text, True)
    text = "Times that each warm-up request is run."
    load.integer("num_request_iterations_for_warmup", text, 1, 0)
    load.boolean("flush_filesystem_caches", "Accepted; nothing to flush here.", True)
    listen = Group(values, "Where it listens:")
    text = "Address to listen at; 0.0.0.0 makes the models public."
    listen.string("host", text, "127.0.0.1")
    # A larger port would wrap around, and the server would listen at another one.
    listen.integer("port", "Port of gRPC; 0 takes a free one.", 8500, 0, 65535)
    listen.integer("rest_api_port", "Port of REST; 0: no REST, -1: a free one.", 0, -1, 65535)
    listen.string("grpc_socket_path", "UNIX socket where gRPC is served as well.")
    listen.string("ssl_config_file", "SSLConfig: gRPC over TLS.")
    listen.string("grpc_channel_arguments", "Settings of gRPC: key=value,key=value.")
    listen.boolean("rest_api_enable_cors_support", "Let pages of other origins call.")
    answers = Group(values, "What it answers:")
    text = "Answer in tensor_content, which is faster to read, not in float_val."
    answers.boolean("enable_serialization_as_tensor_content", text)
    text = "Answer grpc.health.v1, for liveness only."
    answers.boolean("enable_grpc_healthcheck_service", text)
    text = "MonitoringConfig: whether REST has metrics for Prometheus."
    answers.string("monitoring_config_file", text)
    answers.boolean("status_page", "A page for a person at / of the REST port.", True)
    batching = Group(values, "Batching:")
    batching.boolean("enable_batching", "Run requests together.")
    batching.string("batching_parameters_file", "BatchingParameters, with --enable_batching.")
    text = "Batch only versions with a batching_params.pbtxt in their directory, as it says."
    batching.boolean("enable_per_model_batching_parameters", text)
    limits = Group(values, "Limits and threads:")
    text = "Bytes of the largest request or tensor; 0: no limit."
    limits.integer("max_request_bytes", text, 1 << 29, 0)
    limits.integer("max_request_rows", "Rows of the largest request; 0: no limit.", 1_000_000, 0)
    text = "Milliseconds that a REST request may take."
    limits.integer("rest_api_timeout_in_ms", text, 30000, 0)
    limits.integer("shutdown_grace_seconds", "Seconds for requests in flight after SIGTERM.", 20, 0)
    limits.integer("rest_api_num_threads", "REST requests at a time; 0 chooses.", 0, 0)
    limits.integer("grpc_max_threads", "gRPC requests at a time; 0 chooses.", 0, 0)
    text = "Threads of TensorFlow; 0 chooses."
    limits.integer("tensorflow_session_parallelism", text, 0, 0)
    text = "Threads inside an operation; 0 chooses."
    limits.integer("tensorflow_intra_op_parallelism", text, 0, 0)
    text = "Operations at a time; 0 chooses."
    limits.integer("tensorflow_inter_op_parallelism", text, 0, 0)


def main(values: flags.FlagValues) -> None:
    """Serves until SIGTERM or SIGINT."""
    from fct_tf.serving import server

    server.check(values)
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


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
