"""Loads a version: the SavedModel, its batching, and the warm-up that stands before AVAILABLE."""

import os
import time
from collections.abc import Iterable
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from fct_tf.common.errors import InputError
from fct_tf.serving import batching, inference, text_protos
from fct_tf.serving.errors import ServingError, invalid, of_tensorflow
from fct_tf.serving.servable import Limits, Servable

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000
BATCHING_FILE = "batching_params.pbtxt"


class Loader:
    """Called with a model's name, a version and its path, gives a `Servable` ready to serve."""

    def __init__(
        self,
        metrics: Any,
        *,
        batcher: batching.Batcher | None = None,
        parameters: batching.Parameters | None = None,
        per_model_parameters: bool = False,
        tags: Iterable[str] = ("serve",),
        session_config: tf.compat.v1.ConfigProto | None = None,
        limits: Limits | None = None,
        warmup: bool = True,
        warmup_iterations: int = 1,
    ):
        """Settings of every load.

        Args:
          metrics: gets the time of warm-ups and runs.
          batcher: None for no batching.
          parameters: of all models.
          per_model_parameters: `batching_params.pbtxt` in a version's directory instead; one
            without that file is not batched.
          tags: of the graph in the SavedModel.
          session_config: of the sessions.
          limits: of a request.
          warmup: whether to replay the recorded requests.
          warmup_iterations: how often each.
        """
        self._metrics = metrics
        self._batcher = batcher
        self._parameters = parameters or batching.Parameters()
        self._per_model = per_model_parameters
        self._tags = tuple(tags)
        self._session_config = session_config
        self._limits = limits or Limits()
        self._warmup = warmup
        self._iterations = max(1, warmup_iterations)

    def __call__(self, name: str, version: int, path: str) -> Servable:
        """Raises ServingError where the version does not load or does not answer its warm-up."""
        servable = Servable(
            name,
            version,
            path,
            tags=self._tags,
            session_config=self._session_config,
            limits=self._limits,
        )
        try:
            parameters = self._parameters_of(path)
            if self._batcher is not None and parameters is not None:
                servable.execute = batching.Queue(self._batcher, parameters, servable.run_session)
            if self._warmup:
                self._replay(servable)
        except BaseException:
            servable.close()
            raise
        servable.on_runtime = lambda api, seconds: self._metrics.runtime(name, api, seconds)
        return servable

    def _parameters_of(self, path: str) -> batching.Parameters | None:
        if not self._per_model:
            return self._parameters
        file = os.path.join(path, BATCHING_FILE)
        if not os.path.exists(file):
            return None
        try:
            return batching.Parameters.of(text_protos.parse(file, text_protos.BatchingParameters()))
        except InputError as error:
            raise invalid(str(error)) from None

    def _replay(self, servable: Servable) -> None:
        """Runs the recorded requests in order, through batching if there is any."""
        file = os.path.join(servable.path, WARMUP_FILE)
        if not tf.io.gfile.exists(file):
            return
        start = time.perf_counter()
        status = "OK"
        try:
            for number, record in enumerate(_records(file), start=1):
                for _ in range(self._iterations):
                    _run_record(servable, record)
                if number > MAX_WARMUP_RECORDS:
                    raise invalid(
                        "Number of warmup records exceeds the maximum "
                        f"({MAX_WARMUP_RECORDS}) at {file}"
                    )
        except ServingError as error:
            status = error.code.name
            raise
        finally:
            self._metrics.warmup(servable.path, status, time.perf_counter() - start)


def _records(file: str):
    """The `PredictionLog`s of a TFRecord file. Raises ServingError."""
    try:
        for record in tf.compat.v1.io.tf_record_iterator(file):
            try:
                yield prediction_log_pb2.PredictionLog.FromString(record)
            except DecodeError:
                raise invalid(f"Failed to parse warmup record: {record!r} from {file}") from None
    except tf.errors.DataLossError as error:
        raise ServingError(
            grpc.StatusCode.DATA_LOSS,
            f"{error.message}. Please verify your warmup data is in TFRecord format.",
        ) from None
    except tf.errors.OpError as error:
        raise of_tensorflow(error) from None


def _run_record(servable: Servable, record: prediction_log_pb2.PredictionLog) -> None:
    """Names and versions in a record are not looked at: it is for the version beside it."""
    kind = record.WhichOneof("log_type")
    if kind == "predict_log":
        inference.predict(servable, record.predict_log.request)
    elif kind == "classify_log":
        inference.classify(servable, record.classify_log.request)
    elif kind == "regress_log":
        inference.regress(servable, record.regress_log.request)
    elif kind == "multi_inference_log":
        inference.multi_inference(servable, record.multi_inference_log.request)
    elif kind == "session_run_log":
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, "Unsupported log_type for warmup: 5")
