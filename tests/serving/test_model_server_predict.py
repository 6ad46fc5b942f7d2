"""Predict over gRPC: looking up a model, tensors of every kind, limits, and fuzzed requests."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from fct_tf.serving import grpc_services
from fct_tf.serving.errors import ServingError
from tests.model_servers import (
    config,
    flags,
    linear,
    ones,
    publish,
    request,
    running,
)
from tests.serving.grpc_calls import error_of, example_of

REGRESS = "tensorflow/serving/regress"


def arrays(response: predict_pb2.PredictResponse) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


@pytest.mark.parametrize(
    ("asked", "version"),
    [({}, 2), ({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)],
)
def test_versions_and_labels_are_resolved_and_the_answer_names_the_version(client, asked, version):
    response = client.predict(linear("m", **asked))
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.version_label) == ("m", version, "")
    assert spec.WhichOneof("version_choice") == "version"
    assert spec.signature_name == "serving_default"
    assert arrays(response)["y"].tolist() == [[3.0 * version] * 2] * 2


LOOKUPS = [
    ({"name": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
    (
        {"name": "nope", "version": 7},
        "NOT_FOUND",
        "Servable not found for request: Specific(nope, 7)",
    ),
    ({"name": "m", "version": 3}, "NOT_FOUND", "Servable not found for request: Specific(m, 3)"),
    ({"name": "m", "label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
    ({"name": "nope", "label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
    ({"name": "m", "label": ""}, "INVALID_ARGUMENT", "Unrecognized servable version label: "),
    (
        {"name": "m", "label": "ahead"},
        "NOT_FOUND",
        "Servable not found for request: Specific(m, 3)",
    ),
    ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
]


@pytest.mark.parametrize(("asked", "code", "text"), LOOKUPS)
def test_lookups_that_fail(client, asked, code, text):
    message = linear(**asked)
    assert error_of(client.predict, message) == (code, text)
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=message.model_spec, metadata_field=["signature_def"]
    )
    assert error_of(client.prediction.GetModelMetadata, metadata) == (code, text)
    example = {"examples": [example_of(1.0)]}
    for call, kind in (
        (client.prediction.Classify, classification_pb2.ClassificationRequest),
        (client.prediction.Regress, regression_pb2.RegressionRequest),
    ):
        message_of_kind = kind(model_spec=message.model_spec, input={"example_list": example})
        assert error_of(call, message_of_kind) == (code, text)
    multi = inference_pb2.MultiInferenceRequest(
        tasks=[{"model_spec": message.model_spec, "method_name": REGRESS}],
        input={"example_list": example},
    )
    assert error_of(client.prediction.MultiInference, multi) == (code, text)


@pytest.mark.parametrize(
    ("stub", "method", "message"),
    [
        ("prediction", "Predict", predict_pb2.PredictRequest()),
        ("prediction", "Classify", classification_pb2.ClassificationRequest()),
        ("prediction", "Regress", regression_pb2.RegressionRequest()),
        ("prediction", "GetModelMetadata", get_model_metadata_pb2.GetModelMetadataRequest()),
        ("models", "GetModelStatus", get_model_status_pb2.GetModelStatusRequest()),
    ],
)
def test_requests_without_a_model_spec(client, stub, method, message):
    call = getattr(getattr(client, stub), method)
    assert error_of(call, message) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_multi_inference_without_tasks_has_no_name(client):
    message = inference_pb2.MultiInferenceRequest()
    expected = ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert error_of(client.prediction.MultiInference, message) == expected


@pytest.mark.parametrize(
    ("length", "kept"), [(1024, "x" * 1024), (1025, "x" * 1024 + "...TRUNCATED")]
)
def test_long_messages_are_cut(length, kept):
    assert grpc_services.truncated("x" * length) == kept


def test_a_long_message_is_cut_on_the_wire(client):
    code, text = error_of(client.predict, linear("n" * 2000))
    assert code == "NOT_FOUND"
    assert text == "Servable not found for request: Latest(" + "n" * (1024 - 39) + "...TRUNCATED"


def test_any_signature_may_be_called_and_is_named_in_the_answer(client):
    response = client.predict(
        request("m", {"a": np.float32([[1, 2]]), "b": np.int32([3])}, signature="pair")
    )
    assert response.model_spec.signature_name == "pair"
    assert arrays(response)["sum"].tolist() == [6.0]
    examples = np.array([example_of(0.25).SerializeToString()], object)
    response = client.predict(request("m", {"inputs": examples}, signature="regress", version=2))
    assert arrays(response)["outputs"].tolist() == [[0.5]]


def test_the_output_filter_chooses_outputs(client):
    response = client.predict(linear("m", outputs=["factor"]))
    assert list(response.outputs) == ["factor"]
    assert set(client.predict(linear("m")).outputs) == {"factor", "y"}


BROKEN = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=b"123")
BROKEN.tensor_shape.dim.add(size=1)


BAD_REQUESTS = {
    "unknown signature": (
        linear("m", signature="S"),
        "FAILED_PRECONDITION",
        'Serving signature key "S" not found.',
    ),
    "input missing": (
        request("m", {"a": ones(1, 2)}, signature="pair"),
        "INVALID_ARGUMENT",
        "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
        "Missing but required: {b}.",
    ),
    "input too many": (
        request("m", {"x": ones(), "z": ones()}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
        "Missing but required: {}.",
    ),
    "no input": (
        request("m", {}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
        "Missing but required: {x}.",
    ),
    "input of another name": (
        request("m", {"z": ones()}),
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: serving_default_x:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {z}, or default input "
        "alias set: ",
    ),
    "not a tensor": (request("m", {"x": BROKEN}), "INVALID_ARGUMENT", "tensor parsing error: x"),
    "unknown output": (
        linear("m", outputs=["O"]),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: O Outputs expected to be in the set "
        "{factor,y}.",
    ),
    "output twice": (
        linear("m", outputs=["y", "y"]),
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    ),
    "double": (
        request("m", {"x": ones(dtype=np.float64)}),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but double is provided",
    ),
    "int": (
        request("m", {"x": ones(dtype=np.int64)}),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but int64 is provided",
    ),
    "string": (
        request("m", {"x": np.array([b"a"], object)}),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but string is provided",
    ),
    "wrong width": (
        request("m", {"x": ones(2, 4)}),
        "INVALID_ARGUMENT",
        "Matrix size-incompatible: In[0]: [2,4], In[1]: [3,2]\n\t [[{{node",
    ),
    "wrong rank": (request("m", {"x": np.ones(3, np.float32)}), "INVALID_ARGUMENT", ""),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_predict_refuses(client, kind):
    message, code, text = BAD_REQUESTS[kind]
    seen_code, seen = error_of(client.predict, message)
    assert seen_code == code
    assert seen.startswith(text) if text.endswith("node") or not text else seen == text


def test_the_signatures_shape_is_not_compared(client):
    # `total` is declared with any shape; `words` with [n]: a matrix passes, the operation allows.
    matrix = np.array([[b"ab", b"c"]], object)
    response = client.predict(request("m", {"text": matrix}, signature="words"))
    assert arrays(response)["length"].tolist() == [[2, 1]]


def test_zero_rows_are_fine(client):
    assert arrays(client.predict(linear("m", rows=0)))["y"].shape == (0, 2)


def test_scalars_go_in_and_come_out(client):
    response = client.predict(request("m", {"x": np.float32(4)}, signature="total"))
    assert response.outputs["total"].float_val == [4.0]
    assert response.outputs["total"].HasField("tensor_shape")
    assert tf.make_ndarray(response.outputs["text"]).tolist() == b"4.000000"


def _tensor(field: str, values, *shape: int, dtype=types_pb2.DT_FLOAT) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, field).extend(values)
    return proto


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2], [1, 2, 2]),
        ([5], [5, 5, 5]),
        ([], [0, 0, 0]),
        ([1, 2, 3, 4], [1, 2, 3]),
    ],
)
def test_a_short_list_of_values_repeats_its_last_one(client, given, meant):
    response = client.predict(
        request("m", {"x": _tensor("float_val", given, 1, 3)}, version=1, outputs=["y"])
    )
    assert response.outputs["y"].float_val == [float(sum(meant))] * 2
    words = _tensor("string_val", [b"%d" % v for v in given], 3, dtype=types_pb2.DT_STRING)
    response = client.predict(request("m", {"text": words}, signature="words"))
    expected = [b"%d" % v for v in meant] if given else [b"", b"", b""]
    assert response.outputs["upper_bytes"].string_val == expected


VALUES = {
    "float32": np.float32([1.5, -2, np.nan, np.inf]),
    "float64": np.float64([1.5, -2, 1e300, 0]),
    "float16": np.float16([1.5, -2, 65504, 0]),
    "bfloat16": np.array([1.5, -2, 3e38, 0], tf.bfloat16.as_numpy_dtype),
    "int8": np.int8([-128, 127, 0, 1]),
    "uint8": np.uint8([255, 0, 1, 2]),
    "int16": np.int16([-32768, 32767, 0, 1]),
    "uint16": np.uint16([65535, 0, 1, 2]),
    "int32": np.int32([-(2**31), 2**31 - 1, 0, 1]),
    "uint32": np.uint32([2**32 - 1, 0, 1, 2]),
    "int64": np.int64([-(2**63), 2**63 - 1, 0, 1]),
    "uint64": np.uint64([2**64 - 1, 0, 1, 2]),
    "bool": np.array([True, False, True, True]),
    "complex64": np.complex64([1 + 2j, -1j, 0, 3]),
    "complex128": np.complex128([1 + 2j, -1j, 0, 3]),
    "string": np.array([b"a", b"\x00\xff", b"", b"word"], object),
}


@pytest.mark.parametrize("rows", [4, 100])
def test_every_dtype_goes_in_and_comes_out_in_the_field_of_the_tutorials(client, rows):
    sent = {name: np.resize(value, rows) for name, value in VALUES.items()}
    response = client.predict(request("m", sent, signature="every_dtype"))
    # Sent back as it came: the answer's own fields are read by the server this time.
    response = client.predict(request("m", dict(response.outputs), signature="every_dtype"))
    for name, value in sent.items():
        proto = response.outputs[name]
        assert not proto.tensor_content, name
        np.testing.assert_array_equal(tf.make_ndarray(proto), value, err_msg=name)
    assert len(response.outputs["float32"].float_val) == rows


def test_answers_in_tensor_content_where_it_is_asked_for(saved_models, tmp_path):
    publish(saved_models[1], tmp_path / "m", 1)
    models = config({"name": "m", "base_path": tmp_path / "m"})
    with running(models, tmp_path, enable_serialization_as_tensor_content=True) as started:
        response = started.client.predict(linear("m"))
        assert not response.outputs["y"].float_val
        assert arrays(response)["y"].tolist() == [[3.0, 3.0]] * 2
        words = np.array([b"a", b"x" * 300, b""], object)
        response = started.client.predict(request("m", {"text": words}, signature="words"))
        content = response.outputs["upper_bytes"].tensor_content
        # All lengths as varints, then all bytes: the C++ runtime's own form, which it reads.
        assert content == b"\x01\xac\x02\x00" + b"A" + b"X" * 300
        again = {"text": response.outputs["upper_bytes"]}
        response = started.client.predict(request("m", again, "words", outputs=["length"]))
        assert arrays(response)["length"].tolist() == [1, 300, 0]


BAD_TENSORS = {
    "no dtype": tensor_pb2.TensorProto(),
    "dtype of no tensor": tensor_pb2.TensorProto(dtype=types_pb2.DT_RESOURCE),
    "unknown dtype": tensor_pb2.TensorProto(dtype=999),
    "negative dimension": _tensor("float_val", [1.0], 1, -3),
    "terabytes": _tensor("float_val", [1.0], 1 << 20, 1 << 20),
    "more than the address space": _tensor("float_val", [1.0], 1 << 40, 1 << 40),
    "content of other length": BROKEN,
    "strings of other length": tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_content=b"\x05ab",
        tensor_shape={"dim": [{"size": 1}]},
    ),
    "endless length": tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_content=b"\xff" * 20,
        tensor_shape={"dim": [{"size": 1}]},
    ),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_what_is_no_tensor_is_refused(client, kind):
    alias, signature = (
        ("text", "words") if "string" in kind or kind == "endless length" else ("x", "")
    )
    message = request("m", {alias: BAD_TENSORS[kind]}, signature=signature)
    expected = ("INVALID_ARGUMENT", f"tensor parsing error: {alias}")
    assert error_of(client.predict, message) == expected


def test_the_deadline_of_the_call_ends_the_run(client, service):
    message = request(
        "m", {"x": ones(), "steps": np.full(2, 2_000_000_000, np.int32)}, signature="slow"
    )
    assert error_of(client.predict, message, timeout=0.3)[0] == "DEADLINE_EXCEEDED"
    # And the run itself is over: the server's own clock ends it, not only the client's.
    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
        service.server.core.predict(message, 0.1)


def test_requests_and_answers_beyond_four_megabytes_pass(client):
    rows = 500_000
    response = client.predict(linear("m", rows=rows, version=1))
    assert len(response.outputs["y"].float_val) == 2 * rows


@pytest.mark.parametrize(
    ("limit", "message", "code", "text"),
    [
        ({"max_request_rows": 5}, linear("m", rows=6), "INVALID_ARGUMENT", "input x has 6 rows"),
        ({"max_request_bytes": 1000}, linear("m", rows=100), "RESOURCE_EXHAUSTED", "larger than"),
        (
            {"max_request_bytes": 1000},
            request("m", {"x": _tensor("float_val", [1.0], 100, 3)}),
            "INVALID_ARGUMENT",
            "tensor parsing error: x",
        ),
    ],
)
def test_limits_on_requests(saved_models, tmp_path, limit, message, code, text):
    publish(saved_models[1], tmp_path / "m", 1)
    models = config({"name": "m", "base_path": tmp_path / "m"})
    with running(models, tmp_path, **limit) as started:
        seen_code, seen = error_of(started.client.predict, message)
        assert seen_code == code
        assert text in seen
        assert started.client.predict(linear("m")).model_spec.version.value == 1


def test_the_limits_are_flags_with_defaults():
    defaults = flags()
    assert (defaults.max_request_bytes, defaults.max_request_rows) == (1 << 29, 1_000_000)
    assert defaults.host == "127.0.0.1"


def _fuzzed(generator: np.random.Generator) -> predict_pb2.PredictRequest | bytes:
    """A request that is wrong in one of many ways, or right."""
    kind = generator.integers(8)
    if kind == 0:
        return generator.bytes(generator.integers(1, 200))
    if kind == 1:
        whole = linear("m", rows=3).SerializeToString()
        return whole[: generator.integers(len(whole))]
    if kind == 2:
        whole = bytearray(linear("m", rows=3).SerializeToString())
        whole[generator.integers(len(whole))] = generator.integers(256)
        return bytes(whole)
    message = linear("m")
    proto = message.inputs["x"]
    if kind == 3:
        proto.dtype = int(generator.integers(-5, 140))
    elif kind == 4:
        del proto.tensor_shape.dim[:]
        for size in generator.integers(-2, 1 << generator.integers(2, 62), generator.integers(6)):
            proto.tensor_shape.dim.add(size=int(size))
    elif kind == 5:
        proto.tensor_content = generator.bytes(generator.integers(64))
    elif kind == 6:
        values = generator.choice([np.nan, np.inf, -0.0, 1e38], (2, 3)).astype(np.float32)
        proto.CopyFrom(tf.make_tensor_proto(values))
    else:
        shape = generator.integers(0, 5, generator.integers(0, 4))
        proto.CopyFrom(tf.make_tensor_proto(np.ones(shape, np.float32)))
    return message


def test_fuzzed_requests_get_a_status_each(client):
    generator = np.random.default_rng(0)
    # By its bytes: the stub would refuse what is no message.
    call = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    codes = set()
    for _ in range(1000):
        fuzzed = _fuzzed(generator)
        raw = fuzzed if isinstance(fuzzed, bytes) else fuzzed.SerializeToString()
        try:
            call(raw, timeout=20)
            codes.add("OK")
        except grpc.RpcError as error:
            codes.add(error.code().name)
    # INTERNAL is gRPC's own, for bytes that are no message.
    assert codes <= {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "INTERNAL",
    }
    assert {"OK", "INVALID_ARGUMENT", "INTERNAL"} <= codes
    assert arrays(client.predict(linear("m", version=1)))["y"].tolist() == [[3.0, 3.0]] * 2


def test_a_fuzzed_request_is_never_a_bug(service):
    """In process, where an INTERNAL would be ours."""
    generator = np.random.default_rng(1)
    for _ in range(1000):
        fuzzed = _fuzzed(generator)
        if not isinstance(fuzzed, bytes):
            try:
                service.server.core.predict(fuzzed)
            except ServingError as error:
                assert error.code.name in ("INVALID_ARGUMENT", "NOT_FOUND")
