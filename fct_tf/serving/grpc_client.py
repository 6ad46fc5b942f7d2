"""TF Serving's gRPC API from the client's side."""

import json

import grpc
import numpy as np

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

_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_OPTIONS = [
    # gRPC's own limit of 4 MiB is one of the client's: TF Serving has none.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # One name may stand for many servers, as a headless service's does: use all of them.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Who calls again after a failure decides when; a channel that waits two minutes before it
    # connects again would not notice that a server has been restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class GrpcTransport:
    """A channel to one server, or to all that its name resolves to. Threads may share it."""

    tells_version = True

    def __init__(self, address: Address):
        target = f"dns:///{address.host}:{address.port}"
        # Without the last option, clients of one process would share a connection.
        options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if address.scheme == "grpcs":
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._predict = self._method("PredictionService/Predict", "Predict")
        self._metadata = self._method("PredictionService/GetModelMetadata", "GetModelMetadata")
        self._status = self._method("ModelService/GetModelStatus", "GetModelStatus")

    def _method(self, path: str, name: str):
        return self._channel.unary_unary(
            f"/tensorflow.serving.{path}",
            request_serializer=wire.messages[f"{name}Request"].SerializeToString,
            response_deserializer=wire.messages[f"{name}Response"].FromString,
        )

    def predict(
        self, model: Model, name: str, signature: Signature, inputs: Arrays, timeout_s: float
    ) -> tuple[int | None, dict[str, np.ndarray]]:
        request = wire.messages["PredictRequest"](model_spec=_spec(model, name))
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(wire.encode(array))
        reply = _call(self._predict, request, timeout_s)
        try:
            outputs = {key: wire.decode(proto) for key, proto in reply.outputs.items()}
        except ValueError as error:
            raise Failure("INTERNAL", f"an answer that cannot be read: {error}") from None
        return reply.model_spec.version.value, outputs

    def metadata(self, model: Model, timeout_s: float) -> Metadata:
        request = wire.messages["GetModelMetadataRequest"](model_spec=_spec(model))
        request.metadata_field.append("signature_def")
        reply = _call(self._metadata, request, timeout_s)
        definitions = wire.messages["SignatureDefMap"].FromString(
            reply.metadata["signature_def"].value
        )
        signatures = {
            name: Signature(_specs(signature.inputs), _specs(signature.outputs))
            for name, signature in definitions.signature_def.items()
        }
        return Metadata(reply.model_spec.version.value, signatures)

    def versions(self, name: str, timeout_s: float) -> dict[int, str]:
        request = wire.messages["GetModelStatusRequest"](model_spec=_spec(Model(name)))
        reply = _call(self._status, request, timeout_s)
        return {
            status.version: _STATES.get(status.state, "UNKNOWN")
            for status in reply.model_version_status
        }

    def close(self) -> None:
        self._channel.close()


def _spec(model: Model, signature: str = ""):
    spec = wire.messages["ModelSpec"](name=model.name, signature_name=signature)
    if model.version is not None:
        spec.version.value = model.version
        spec.version.SetInParent()  # Also where it is 0.
    elif model.label:
        spec.version_label = model.label
    return spec


def _specs(infos) -> dict[str, TensorSpec]:
    return {
        key: TensorSpec(wire.dtype_of(info.dtype), wire.shape_of(info.tensor_shape))
        for key, info in infos.items()
        if wire.is_known(info.dtype)
    }


def _call(method, request, timeout_s: float):
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise Failure(error.code().name, error.details() or "") from None
