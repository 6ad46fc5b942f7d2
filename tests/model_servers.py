"""Tiny SavedModels and model servers on loopback, for the tests of the model server.

Everything of a model is in one SavedModel, so that the tests save few of them; what differs from
version to version is the number that `linear` multiplies with.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from fct_tf import model_server
from fct_tf.serving import server

FLOATS = tf.TensorSpec([None, 3], tf.float32, name="x")


class _Model(tf.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = tf.Variable(float(factor))
        self.weights = tf.Variable(np.ones((3, 2), np.float32))

    @tf.function(input_signature=[FLOATS])
    def linear(self, x):
        """The factor beside each product: an answer that mixes versions shows."""
        y = tf.matmul(x, self.weights) * self.factor
        return {"y": y, "factor": tf.ones_like(x[:, 0]) * self.factor}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="a"),
            tf.TensorSpec([None], tf.int32, name="b"),
        ]
    )
    def pair(self, a, b):
        return {"sum": tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), "b": b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def words(self, text):
        return {"length": tf.strings.length(text), "upper_bytes": tf.strings.upper(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="number")])
    def parse(self, number):
        return {"value": tf.strings.to_number(number)}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    def total(self, x):
        return {"total": tf.reduce_sum(x), "text": tf.strings.as_string(tf.reduce_sum(x))}

    @tf.function(
        input_signature=[FLOATS, tf.TensorSpec([None], tf.int32, name="steps")],
    )
    def slow(self, x, steps):
        """About a microsecond a step; `steps` is per row, the first one counts."""
        most = tf.reduce_max(steps)
        i = tf.constant(0)
        _, x = tf.while_loop(lambda i, x: i < most, lambda i, x: (i + 1, x * 1.0), [i, x])
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        x = self._parsed(inputs)
        labels = tf.tile(tf.constant([["low", "high"]]), [tf.shape(x)[0], 1])
        return {"classes": labels, "scores": tf.concat([1 - x, x], 1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        return {"outputs": self._parsed(inputs) * self.factor}

    def _parsed(self, inputs):
        features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
        return tf.io.parse_example(inputs, features)["x"]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], dtype, name=dtype.name)
            for dtype in (
                tf.float32,
                tf.float64,
                tf.float16,
                tf.bfloat16,
                tf.int8,
                tf.uint8,
                tf.int16,
                tf.uint16,
                tf.int32,
                tf.uint32,
                tf.int64,
                tf.uint64,
                tf.bool,
                tf.complex64,
                tf.complex128,
                tf.string,
            )
        ]
    )
    def every_dtype(self, *tensors):
        return {tensor.dtype.name: tf.identity(tensor) for tensor in tensors}


def save(path: Path, factor: float = 1.0) -> None:
    """Writes a version whose `linear` multiplies by `factor`."""
    model = _Model(factor)
    signatures = {
        name: getattr(model, name)
        for name in (
            "pair",
            "words",
            "parse",
            "total",
            "slow",
            "classify",
            "regress",
            "every_dtype",
        )
    }
    tf.saved_model.save(
        model, str(path), signatures={"serving_default": model.linear, **signatures}
    )


def publish(saved: Path, base_path: Path, version: int, name: str | None = None) -> Path:
    """Copies a SavedModel beside the versions and renames it to one."""
    base_path.mkdir(parents=True, exist_ok=True)
    staged = base_path / f".staging-{version}"
    shutil.copytree(saved, staged)
    return staged.rename(base_path / (name or str(version)))


def config(*models: dict) -> model_server_config_pb2.ModelServerConfig:
    """A ModelServerConfig of models given by the fields of ModelConfig; TensorFlow's platform."""
    message = model_server_config_pb2.ModelServerConfig()
    message.model_config_list.SetInParent()
    for model in models:
        labels = model.get("labels", {})
        rest = {key: value for key, value in model.items() if key != "labels"}
        rest["base_path"] = str(rest["base_path"])
        added = message.model_config_list.config.add(**{"model_platform": "tensorflow", **rest})
        added.version_labels.update(labels)
    return message


def specific(*versions: int) -> dict:
    """A version policy."""
    return {"specific": {"versions": versions}}


def flags(**changed) -> SimpleNamespace:
    """The command's flags at their defaults, on free ports, with some changed."""
    values = absl_flags.FlagValues()
    model_server.define_flags(values)
    defaults = {name: values[name].default for name in values}
    quick = {"port": 0, "rest_api_port": 0, "file_system_poll_wait_seconds": 0.05}
    return SimpleNamespace(**{**defaults, **quick, **changed})


class Client:
    """The stock stubs, and a few requests that the tests often send."""

    def __init__(self, port: int):
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", unlimited)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, request: predict_pb2.PredictRequest, timeout=20, **kwargs):
        return self.prediction.Predict(request, timeout=timeout, **kwargs)

    def status(self, name: str, version: int | None = None) -> dict[int, tuple[str, str]]:
        """version -> state and error."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        if version is not None:
            request.model_spec.version.value = version
        response = self.models.GetModelStatus(request, timeout=20)
        state = get_model_status_pb2.ModelVersionStatus.State.Name
        return {
            one.version: (state(one.state), one.status.error_message)
            for one in response.model_version_status
        }

    def reload(self, new: model_server_config_pb2.ModelServerConfig, timeout=30):
        request = model_management_pb2.ReloadConfigRequest(config=new)
        return self.models.HandleReloadConfigRequest(request, timeout=timeout)

    def wait(self, name: str, **states: str) -> None:
        """Waits until versions (`v2="AVAILABLE"`) are in these states."""
        wanted = {int(key[1:]): state for key, state in states.items()}
        seen: dict = {}
        for _ in range(1500):
            with contextlib.suppress(grpc.RpcError):
                seen = self.status(name)
            if all(seen.get(version, ("",))[0] == state for version, state in wanted.items()):
                return
            time.sleep(0.02)
        raise AssertionError(f"{name}: {seen}, not {wanted}")


def request(name: str, inputs: dict, signature: str = "", version=None, label=None, outputs=()):
    """A PredictRequest; inputs are arrays or TensorProtos."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    if label is not None:
        message.model_spec.version_label = label
    for alias, value in inputs.items():
        if not isinstance(value, tensor_pb2.TensorProto):
            value = tf.make_tensor_proto(value)
        message.inputs[alias].CopyFrom(value)
    message.output_filter.extend(outputs)
    return message


def ones(rows: int = 2, columns: int = 3, dtype=np.float32) -> np.ndarray:
    """Rows that `linear` takes."""
    return np.ones((rows, columns), dtype)


def linear(name: str, rows: int = 2, **kwargs) -> predict_pb2.PredictRequest:
    """A request that is fine."""
    return request(name, {"x": ones(rows)}, **kwargs)


@contextlib.contextmanager
def running(models: model_server_config_pb2.ModelServerConfig, directory: Path, **changed):
    """A server with a config file of these models, and a client."""
    path = directory / "models.config"
    path.write_text(text_format.MessageToString(models))
    started = server.start(flags(model_config_file=str(path), **changed))
    client = Client(started.grpc.port)
    try:
        yield SimpleNamespace(server=started, client=client, config_file=path)
    finally:
        client.channel.close()
        started.stop(5)


def free_of(path: Path, *parts: str) -> None:
    """Removes parts of a SavedModel."""
    for part in parts:
        target = path / part
        shutil.rmtree(target) if target.is_dir() else os.remove(target)
