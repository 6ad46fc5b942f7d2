"""TF Serving's REST API from the client's side.

urllib3 carries it: its pool of connections may be shared by threads, and it is installed already
as what others depend on. It retries nothing here: only the client knows the deadline.
"""

import base64
import json
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import urllib3

from fct_tf.serving import wire
from fct_tf.serving.transport import (
    Address,
    Arrays,
    Failure,
    Metadata,
    Model,
    Signature,
    TensorSpec,
)

# The inverse of how TF Serving maps codes to statuses, where it has one.
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",  # Of a proxy, as 503 is, while no server is up behind it.
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RestTransport:
    """A pool of connections to one server. Threads may share it."""

    tells_version = False

    def __init__(self, address: Address, connections: int = 32):
        self._root = f"http{'s' if address.scheme == 'https' else ''}://"
        self._root += f"{address.host}:{address.port}/v1/models/"
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False)

    def predict(
        self, model: Model, name: str, signature: Signature, inputs: Arrays, timeout_s: float
    ) -> tuple[int | None, dict[str, np.ndarray]]:
        body = _dumps({"signature_name": name, "inputs": {k: _plain(v) for k, v in inputs.items()}})
        reply = self._call("POST", f"{_path(model)}:predict", timeout_s, body)
        outputs: Any = reply.get("outputs")
        if len(signature.outputs) == 1:
            outputs = {next(iter(signature.outputs)): outputs}
        try:
            return None, {
                key: _array(outputs[key], spec.dtype) for key, spec in signature.outputs.items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise Failure("INTERNAL", f"an answer that cannot be read: {error!r}") from None

    def metadata(self, model: Model, timeout_s: float) -> Metadata:
        reply = self._call("GET", f"{_path(model)}/metadata", timeout_s)
        try:
            definitions = reply["metadata"]["signature_def"]["signature_def"]
            signatures = {
                name: Signature(_specs(signature["inputs"]), _specs(signature["outputs"]))
                for name, signature in definitions.items()
            }
            return Metadata(int(reply["model_spec"]["version"]), signatures)
        except (KeyError, TypeError, ValueError) as error:
            raise Failure("INTERNAL", f"metadata that cannot be read: {error!r}") from None

    def versions(self, name: str, timeout_s: float) -> dict[int, str]:
        reply = self._call("GET", quote(name, safe=""), timeout_s)
        return {int(status["version"]): status["state"] for status in reply["model_version_status"]}

    def close(self) -> None:
        self._pool.clear()

    def _call(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> dict:
        try:
            answer = self._pool.request(
                method,
                self._root + path,
                body=body,
                headers={"Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=timeout_s),
            )
        except urllib3.exceptions.ConnectTimeoutError as error:
            raise Failure("UNAVAILABLE", f"no connection ({error})") from None
        except urllib3.exceptions.TimeoutError:
            raise Failure("DEADLINE_EXCEEDED", "Deadline Exceeded") from None
        except urllib3.exceptions.HTTPError as error:
            raise Failure("UNAVAILABLE", f"no connection ({error})") from None
        reply: Any = _loads(answer.data)
        if answer.status == 200 and isinstance(reply, dict):
            return reply
        text = reply.get("error") if isinstance(reply, dict) else None
        text = text or answer.data[:200].decode("utf-8", "replace")
        code = "INTERNAL" if answer.status == 200 else _CODES.get(answer.status, "UNKNOWN")
        raise Failure(code, str(text) or f"status {answer.status}")


def _path(model: Model) -> str:
    path = quote(model.name, safe="")
    if model.version is not None:
        return f"{path}/versions/{model.version}"
    return f"{path}/labels/{quote(model.label, safe='')}" if model.label else path


def _plain(array: np.ndarray) -> Any:
    """What `_dumps` writes as the values of an array; bytes as TF Serving reads them."""
    if array.dtype.kind in "USO":
        return _encoded(array.tolist())
    return np.ascontiguousarray(array)


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    value = value if isinstance(value, bytes) else str(value).encode()
    return {"b64": base64.b64encode(value).decode()}


def _dumps(value: dict) -> bytes:
    inputs = value["inputs"].values()
    numbers = [part for part in inputs if isinstance(part, np.ndarray)]
    if all(part.dtype.kind != "f" or np.isfinite(part).all() for part in numbers):
        # Each number as short as reads back to the same float32.
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=np.ndarray.tolist)
    # JSON has no NaN, and orjson writes null; TF Serving reads and writes the bare word.
    return json.dumps(value, default=lambda array: array.astype(object).tolist()).encode()


def _loads(data: bytes) -> Any:
    for load in (orjson.loads, json.loads):
        try:
            return load(data)
        except ValueError:
            pass
    return None


def _array(value: Any, dtype: np.dtype) -> np.ndarray:
    if dtype.kind != "O":
        return np.array(value, dtype)
    if isinstance(value, list):
        parts = [_array(part, dtype) for part in value]
        array = np.empty([len(parts), *(parts[0].shape if parts else ())], object)
        for row, part in enumerate(parts):
            array[row] = part if part.ndim else part.item()
        return array
    text = base64.b64decode(value["b64"]) if isinstance(value, dict) else str(value).encode()
    return np.array(text, object)


def _specs(infos: dict) -> dict[str, TensorSpec]:
    return {
        key: TensorSpec(wire.dtype_of(number), _shape(info["tensor_shape"]))
        for key, info in infos.items()
        if (number := wire.NAMES.get(info["dtype"]))
    }


def _shape(shape: dict) -> tuple[int | None, ...] | None:
    if shape["unknown_rank"]:
        return None
    sizes = [int(dim["size"]) for dim in shape["dim"]]
    return tuple(None if size < 0 else size for size in sizes)
