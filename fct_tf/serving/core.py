"""The model server without its transports: models by name, version and label, and their config.

gRPC (`grpc_services`) and REST (`rest`) both stand on one `ServerCore`. Errors are
`ServingError`s with TF Serving's codes and texts.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from absl import logging
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from fct_tf.serving import tensors, versions
from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.servable import DEFAULT_SIGNATURE, Servable
from fct_tf.serving.versions import State

# How long a reload waits for the first version of a new model to appear under its base path.
# TF Serving waits for ever, with every later reload behind it.
RELOAD_WAIT_S = 5.0


@dataclass(frozen=True)
class Options:
    """Settings of a `ServerCore`, by the names of the flags."""

    file_system_poll_wait_seconds: float = 1.0
    num_load_threads: int = 0
    num_unload_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    allow_version_labels_for_unavailable_models: bool = False
    enable_serialization_as_tensor_content: bool = False
    reload_wait_s: float = RELOAD_WAIT_S


class ServerCore:
    """The models of a server.

    Attributes:
      metrics: counters and histograms (`fct_tf.serving.metrics.Metrics`).
    """

    def __init__(
        self,
        load: versions.Load,
        metrics: Any,
        options: Options = Options(),
    ):
        """No model yet: `reload` brings them.

        Args:
          load: loads a version.
          metrics: shared with the transports.
          options: settings.
        """
        self.metrics = metrics
        self.options = options
        self._versions = versions.Versions(
            load,
            num_load_threads=options.num_load_threads,
            num_unload_threads=options.num_unload_threads,
            max_num_load_retries=options.max_num_load_retries,
            load_retry_interval_s=options.load_retry_interval_micros / 1e6,
        )
        self._config: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._reloading = threading.Lock()
        self._stop = threading.Event()
        self._poller: threading.Thread | None = None
