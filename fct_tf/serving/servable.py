"""One loaded version of a model: its SavedModel in a C++ session, run by signature.

TF Serving runs `Session::Run` on the tensor names of a signature, not the functions of the
SavedModel, and so does this: the same kernels, and the same errors word for word.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.python.client import pywrap_tf_session

from fct_tf.serving import tensors
from fct_tf.serving.errors import ServingError, invalid, of_tensorflow

DEFAULT_SIGNATURE = "serving_default"

# (feeds by tensor name, names of the tensors to fetch, timeout in seconds) -> arrays as fetched.
Execute = Callable[[Mapping[str, np.ndarray], Sequence[str], float | None], list[np.ndarray]]


@dataclass(frozen=True)
class Limits:
    """What one request may bring; 0 is no limit."""

    max_tensor_bytes: int = 0
    max_rows: int = 0


class Servable:
    """A version of a model, ready to run. Thread-safe.

    Attributes:
      name, version, path: which model this is.
      meta_graph: the `MetaGraphDef` of the SavedModel.
      signatures: name -> `SignatureDef`.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        *,
        tags: Iterable[str] = ("serve",),
        session_config: tf.compat.v1.ConfigProto | None = None,
        limits: Limits | None = None,
    ):
        """Loads the SavedModel.

        Raises:
          ServingError: it does not load.
        """
        self.name = name
        self.version = version
        self.path = path
        self._limits = limits or Limits()
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=session_config)
        try:
            with self._graph.as_default():
                self.meta_graph = tf.compat.v1.saved_model.load(self._session, list(tags), path)
            self._session._extend_graph()
        except tf.errors.OpError as error:
            self._session.close()
            raise of_tensorflow(error) from None
        except Exception as error:  # The loader's own: no such directory, no such tags.
            self._session.close()
            raise ServingError(grpc.StatusCode.NOT_FOUND, str(error)) from None
        self.signatures = dict(self.meta_graph.signature_def)
        self._outputs: dict[str, object] = {}
        # Requests go through `execute`, which batching replaces.
        self.execute: Execute = self.run_session
        self.on_runtime: Callable[[str, float], None] = lambda api, seconds: None

    def close(self) -> None:
        """Frees the memory. A `run` that is still going on ends with CANCELLED."""
        self._session.close()
        self.execute = self.run_session
        del self._graph, self._outputs
        gc.collect()  # A tf.Graph is a circle of references.

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray | tensor_pb2.TensorProto],
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature, whatever its `method_name`.

        Args:
          signature_name: empty for `serving_default`.
          inputs: alias -> tensor, all inputs of the signature that have no default.
          output_filter: aliases of the outputs wanted; empty for all.
          timeout_s: how long the run may take.

        Returns:
          alias -> array, in the order of the signature or of the filter.

        Raises:
          ServingError: FAILED_PRECONDITION for an unknown signature, INVALID_ARGUMENT for inputs
            and outputs that do not fit, DEADLINE_EXCEEDED, or what the model raises.
        """
        signature_name = signature_name or DEFAULT_SIGNATURE
        signature = self.signatures.get(signature_name)
        if signature is None:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{signature_name}" not found.',
            )
        feeds = self._feeds(signature, inputs)
        aliases = _outputs(signature, output_filter)
        fetches = [signature.outputs[alias].name for alias in aliases]
        outputs = self.timed("Predict", feeds, fetches, timeout_s)
        return dict(zip(aliases, outputs, strict=True))

    def timed(
        self,
        api: str,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        timeout_s: float | None,
    ) -> list[np.ndarray]:
        """`execute`, and its time to `on_runtime`. Raises ServingError."""
        start = time.perf_counter()
        outputs = self.execute(feeds, fetches, timeout_s)
        self.on_runtime(api, time.perf_counter() - start)
        return outputs

    def _feeds(self, signature, inputs) -> dict[str, np.ndarray]:
        """The inputs by tensor name, those left out from the signature's defaults."""
        defaults = signature.defaults
        if len(inputs) > len(signature.inputs) or (
            len(inputs) < len(signature.inputs) and not defaults
        ):
            given, expected = set(inputs), set(signature.inputs)
            raise invalid(
                f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} "
                f"len({{{_join(given)}}}) != len({{{_join(expected)}}}). "
                f"Sent extra: {{{_join(given - expected)}}}. "
                f"Missing but required: {{{_join(expected - given)}}}."
            )
        feeds = {}
        used = []
        for alias in sorted(signature.inputs):
            info = signature.inputs[alias]
            if alias in inputs:
                value = inputs[alias]
                used.append(alias)
            elif alias in defaults:
                value = defaults[alias]
            else:
                raise invalid(
                    f"Signature input alias: {alias}(feed name: {info.name}) not found in request "
                    "and no default value provided. Inputs expected to be in the request "
                    f"{{{_join(inputs)}}}, or default input alias set: {_join(defaults)}"
                )
            if not isinstance(value, np.ndarray):
                try:
                    value = tensors.to_array(value, self._limits.max_tensor_bytes)
                except (ValueError, MemoryError, OverflowError):
                    raise invalid(f"tensor parsing error: {alias}") from None
            self._check_rows(alias, value)
            feeds[info.name] = value
        if len(used) != len(inputs):
            raise invalid(
                f"Inputs contains invalid name. Used request inputs: {_join(used)}, "
                f"request input: {_join(inputs)}"
            )
        return feeds

    def _check_rows(self, alias: str, value: np.ndarray) -> None:
        limit = self._limits.max_rows
        if limit and value.ndim and value.shape[0] > limit:
            raise invalid(
                f"input {alias} has {value.shape[0]} rows, this server takes {limit} in a request "
                "(--max_request_rows); send several requests"
            )

    def run_session(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_s: float | None
    ) -> list[np.ndarray]:
        """`Session::Run` itself, without the checks of shapes that Python's session adds."""
        if timeout_s is not None and timeout_s <= 0:
            raise ServingError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification"
            )
        fed = {self._tensor(name): value for name, value in feeds.items()}
        fetched = [self._tensor(name) for name in fetches]
        try:
            with _options(timeout_s) as options:
                outputs = self._session._call_tf_sessionrun(options, fed, fetched, [], None)
        except tf.errors.OpError as error:
            raise of_tensorflow(error) from None
        except (TypeError, ValueError) as error:  # An array that is no tensor.
            raise invalid(str(error)) from None
        # A scalar comes as a number of NumPy's, or as bytes.
        return [
            out if isinstance(out, np.ndarray) else np.array(out, getattr(out, "dtype", object))
            for out in outputs
        ]

    def _tensor(self, name: str):
        output = self._outputs.get(name)
        if output is None:
            try:
                output = self._graph.get_tensor_by_name(name)._as_tf_output()
            except (KeyError, ValueError):
                raise ServingError(
                    grpc.StatusCode.NOT_FOUND,
                    f"Tensor {name}, specified in either feed_devices or fetch_devices was not "
                    "found in the Graph",
                ) from None
            self._outputs[name] = output
        return output


def _outputs(signature, output_filter: Sequence[str]) -> list[str]:
    """The aliases of the outputs to return."""
    for position, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{_join(signature.outputs)}}}."
            )
        if alias in output_filter[:position]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return list(output_filter) or sorted(signature.outputs)


@contextlib.contextmanager
def _options(timeout_s: float | None):
    """The run options of a timeout, as the C API takes them."""
    # Above a day the clock of gRPC says "no deadline".
    if timeout_s is None or timeout_s > 86400:
        yield None
        return
    options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout_s * 1000)))
    buffer = pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
    try:
        yield buffer
    finally:
        pywrap_tf_session.TF_DeleteBuffer(buffer)


def _join(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
