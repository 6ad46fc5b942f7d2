"""A model server whose behaviour a test writes down: TF Serving's two APIs over one function."""

import base64
import contextlib
import http.server
import json
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

D_IN, D_OUT = 5, 3
STATUSES = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404}
STATUSES |= {"RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504}
STATUSES |= {"INTERNAL": 500}
CODES = {code.name: code for code in grpc.StatusCode}


class Refusal(Exception):
    """Code and text of an answer."""


@dataclass
class Behaviour:
    """What the server does.

    Attributes:
      refusals: of the next Predict requests, one after another: code and text; None to answer.
      slow_s: how long each answer takes.
      versions: those that are loaded; one multiplies by its number.
      labels: label -> version.
      infos: version -> its description; without one, no signature `about`.
      requests: (version, rows) of each Predict request that was answered.
      attempts: how many Predict requests came.
      moves: called with the number of each Predict request.
      loading: version -> how many requests for it come before it is loaded.
      max_batch_size: more rows are refused.
    """

    refusals: list = field(default_factory=list)
    slow_s: float = 0.0
    versions: set = field(default_factory=lambda: {1})
    labels: dict = field(default_factory=dict)
    infos: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    attempts: int = 0
    running: int = 0
    most_running: int = 0
    moves: object = None
    loading: dict = field(default_factory=dict)
    max_batch_size: int = 10_000
    d_in: int = D_IN
    lock: threading.Lock = field(default_factory=threading.Lock)

    def resolve(self, name: str, version, label: str) -> int:
        if label and (name != "fct" or label not in self.labels):
            raise Refusal("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
        version = self.labels[label] if label else version
        if name != "fct":
            what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {what}")
        version = max(self.versions) if version is None else version
        if version in self.loading:
            self.loading[version] -= 1
            if self.loading[version] < 0:
                del self.loading[version]
                self.versions.add(version)
        if version not in self.versions or version in self.loading:
            raise Refusal(
                "NOT_FOUND", f"Servable not found for request: Specific({name}, {version})"
            )
        return version

    def predict(self, name, version, label, signature, inputs):
        """The version and its outputs: the rows' first values times the version."""
        with self.lock:
            self.attempts += 1
            if self.moves:
                self.moves(self.attempts)
            refusal = self.refusals.pop(0) if self.refusals else None
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            if refusal:
                raise Refusal(*refusal)
            version = self.resolve(name, version, label)
            time.sleep(self.slow_s)
            if signature == "about":
                if version not in self.infos:
                    raise Refusal("FAILED_PRECONDITION", 'Serving signature key "about" not found.')
                return version, {"about": np.array([json.dumps(self.infos[version])], object)}
            rows = next(iter(inputs.values()))
            if len(rows) > self.max_batch_size:
                raise Refusal(
                    "INVALID_ARGUMENT",
                    f"Task size {len(rows)} is larger than maximum input batch size "
                    f"{self.max_batch_size}",
                )
            with self.lock:
                self.requests.append((version, len(rows)))
            if signature == "encoded":
                lengths = [[len(value), sum(value)] for value in rows]
                return version, {"embedding": np.array(lengths, np.float32)}
            if rows.shape[1] != self.d_in:
                raise Refusal("INVALID_ARGUMENT", "Matrix size-incompatible: In[0]: [2,4]")
            embedding = rows[:, :D_OUT] * np.float32(version)
            return version, {"embedding": embedding, "log_variance": rows[:, -1]}
        finally:
            with self.lock:
                self.running -= 1

    def signatures(self, version: int):
        found = get_model_metadata_pb2.SignatureDefMap()

        def tensor(infos, name, dtype, *shape):
            infos[name].dtype = dtype
            for size in (-1, *shape):
                infos[name].tensor_shape.dim.add(size=size)

        default, encoded = found.signature_def["serving_default"], found.signature_def["encoded"]
        tensor(default.inputs, "source_embedding", 1, self.d_in)
        tensor(default.outputs, "embedding", 1, D_OUT)
        tensor(default.outputs, "log_variance", 1)
        tensor(encoded.inputs, "image_bytes", 7)
        tensor(encoded.outputs, "embedding", 1, 2)
        if version in self.infos:
            about = found.signature_def["about"]
            tensor(about.inputs, "row", 3)
            tensor(about.outputs, "about", 7)
        return found

    def states(self, name: str):
        if name != "fct":
            raise Refusal("NOT_FOUND", f"Could not find any versions of model {name}")
        reply = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(self.versions, reverse=True):
            reply.model_version_status.add(version=version, state=30)
        for version in self.loading:
            reply.model_version_status.add(version=version, state=20)
        return reply


class _Services(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Both services of gRPC."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour

    @contextlib.contextmanager
    def _told(self, context):
        try:
            yield
        except Refusal as refusal:
            context.abort(CODES[refusal.args[0]], refusal.args[1])

    def Predict(self, request, context):  # noqa: N802
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        with self._told(context):
            spec = request.model_spec
            signature = spec.signature_name or "serving_default"
            version, outputs = self.behaviour.predict(*_chosen(spec), signature, inputs)
        reply = predict_pb2.PredictResponse()
        reply.model_spec.version.value = version
        for key, value in outputs.items():
            proto = tf.make_tensor_proto(value)
            if value.dtype == np.float32:  # As TF Serving answers unless told otherwise.
                proto.ClearField("tensor_content")
                proto.ClearField("float_val")
                proto.float_val.extend(value.ravel().tolist())
            reply.outputs[key].CopyFrom(proto)
        return reply

    def GetModelMetadata(self, request, context):  # noqa: N802
        with self._told(context):
            version = self.behaviour.resolve(*_chosen(request.model_spec))
        reply = get_model_metadata_pb2.GetModelMetadataResponse()
        reply.model_spec.version.value = version
        reply.metadata["signature_def"].Pack(self.behaviour.signatures(version))
        return reply

    def GetModelStatus(self, request, context):  # noqa: N802
        with self._told(context):
            return self.behaviour.states(request.model_spec.name)


def _chosen(spec):
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label


@contextlib.contextmanager
def grpc_server(behaviour: Behaviour, port: int = 0):
    """Yields the port."""
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    services = _Services(behaviour)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def rest_server(behaviour: Behaviour, port: int = 0):
    """Yields the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _chosen(self, path: str):
            parts = path.removeprefix("/v1/models/").split("/")
            if len(parts) == 1:
                return parts[0], None, ""
            kind, value = parts[1:]
            return parts[0], *((int(value), "") if kind == "versions" else (None, value))

        def _answer(self, call):
            try:
                status, reply = 200, call()
            except Refusal as refusal:
                status, reply = STATUSES[refusal.args[0]], {"error": refusal.args[1]}
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path, _, verb = self.path.rpartition(":")
            assert verb == "predict"
            inputs = {key: _decoded(value) for key, value in body["inputs"].items()}

            def call():
                name = body["signature_name"]
                _, outputs = behaviour.predict(*self._chosen(path), name, inputs)
                plain = {k: _plain(v) for k, v in outputs.items()}
                return {"outputs": next(iter(plain.values())) if len(plain) == 1 else plain}

            self._answer(call)

        def do_GET(self):  # noqa: N802
            options = {
                "preserving_proto_field_name": True,
                "always_print_fields_with_no_presence": 1,
            }

            def call():
                path, _, last = self.path.rpartition("/")
                if last != "metadata":
                    return json_format.MessageToDict(behaviour.states(last), **options)
                name, version, label = self._chosen(path)
                version = behaviour.resolve(name, version, label)
                signatures = json_format.MessageToDict(behaviour.signatures(version), **options)
                return {
                    "model_spec": {"name": name, "version": str(version)},
                    "metadata": {"signature_def": signatures},
                }

            self._answer(call)

        def log_message(self, *_):
            pass

    http.server.ThreadingHTTPServer.allow_reuse_address = True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _decoded(value):
    if value and isinstance(value[0], dict):
        found = np.empty(len(value), object)
        found[:] = [base64.b64decode(item["b64"], validate=True) for item in value]
        return found
    array = np.array(value)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _plain(array):
    return [value for value in array.tolist()]


@contextlib.contextmanager
def stub(kind: str, behaviour: Behaviour, port: int = 0):
    """Yields `grpc://127.0.0.1:PORT` or `http://...`."""
    serve = {"grpc": grpc_server, "http": rest_server}[kind]
    with serve(behaviour, port) as found:
        yield f"{kind}://127.0.0.1:{found}"
