"""Classify, regress, multi-inference and metadata over gRPC."""

import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    regression_pb2,
)

from tests.model_servers import (
    config,
    linear,
    publish,
    running,
)
from tests.serving.grpc_calls import error_of, example_of

EXAMPLES = {"example_list": {"examples": [example_of(0.25), example_of(0.75)]}}


WITH_CONTEXT = {
    "example_list_with_context": {
        "context": example_of(0.5),
        "examples": [tf.train.Example(), tf.train.Example()],
    }
}


@pytest.mark.parametrize(
    ("given", "scores"), [(EXAMPLES, [0.25, 0.75]), (WITH_CONTEXT, [0.5, 0.5])]
)
def test_classify_and_regress(client, given, scores):
    spec = {"name": "m", "version_label": "canary", "signature_name": "classify"}
    message = classification_pb2.ClassificationRequest(model_spec=spec, input=given)
    response = client.prediction.Classify(message)
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (
        2,
        "classify",
    )
    seen = [
        [(one.label, one.score) for one in row.classes] for row in response.result.classifications
    ]
    assert seen == [[("low", 1 - x), ("high", x)] for x in scores]
    spec["signature_name"] = "regress"
    message = regression_pb2.RegressionRequest(model_spec=spec, input=given)
    response = client.prediction.Regress(message)
    assert [row.value for row in response.result.regressions] == [2 * x for x in scores]


def test_multi_inference_runs_signatures_on_the_same_tensor(service, client):
    # `classify` and `regress` of a Keras export have a placeholder each.
    def tasks(*names):
        return inference_pb2.MultiInferenceRequest(
            tasks=[
                {
                    "model_spec": {"name": "m", "signature_name": name},
                    "method_name": f"tensorflow/serving/{name}",
                }
                for name in names
            ],
            input=EXAMPLES,
        )

    response = client.prediction.MultiInference(tasks("regress"))
    result = response.results[0]
    assert (result.model_spec.version.value, result.model_spec.signature_name) == (2, "regress")
    assert [row.value for row in result.regression_result.regressions] == [0.5, 1.5]
    expected = ("INVALID_ARGUMENT", "Input tensor must be the same for all Signatures.")
    assert error_of(client.prediction.MultiInference, tasks("classify", "regress")) == expected
    expected = ("INVALID_ARGUMENT", "Duplicate evaluation of signature: regress")
    assert error_of(client.prediction.MultiInference, tasks("regress", "regress")) == expected
    expected = ("INVALID_ARGUMENT", "Requested signature not found in model graph: S")
    assert error_of(client.prediction.MultiInference, tasks("S")) == expected


def test_multi_inference_of_a_shared_placeholder(shared_input_model, tmp_path):
    publish(shared_input_model, tmp_path / "old", 4)
    with running(config({"name": "old", "base_path": tmp_path / "old"}), tmp_path) as started:
        message = inference_pb2.MultiInferenceRequest(
            tasks=[
                {
                    "model_spec": {"name": "old", "signature_name": name},
                    "method_name": f"tensorflow/serving/{name}",
                }
                for name in ("regress", "classify")
            ],
            input=EXAMPLES,
        )
        first, second = started.client.prediction.MultiInference(message).results
        assert [row.value for row in first.regression_result.regressions] == [0.25, 0.75]
        scores = second.classification_result.classifications
        assert [[one.score for one in row.classes] for row in scores] == [[0.25], [0.75]]
        message.tasks[1].method_name = "tensorflow/serving/predict"
        expected = (
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        )
        assert error_of(started.client.prediction.MultiInference, message) == expected
        message.tasks[1].model_spec.name = "other"
        expected = (
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        )
        assert error_of(started.client.prediction.MultiInference, message) == expected


BAD_EXAMPLES = [
    ("classify", {}, "Input is empty."),
    ("classify", {"example_list": {}}, "Input is empty."),
    ("S", EXAMPLES, "No signature was found with the name: S"),
    ("pair", EXAMPLES, "Expected one input Tensor."),
    ("every_dtype", EXAMPLES, "Expected one input Tensor."),
]


@pytest.mark.parametrize(("signature", "given", "text"), BAD_EXAMPLES)
def test_classify_and_regress_refuse(client, signature, given, text):
    spec = {"name": "m", "signature_name": signature}
    message = classification_pb2.ClassificationRequest(model_spec=spec, input=given)
    assert error_of(client.prediction.Classify, message) == ("INVALID_ARGUMENT", text)
    if signature == "classify":
        spec["signature_name"] = "regress"
    message = regression_pb2.RegressionRequest(model_spec=spec, input=given)
    assert error_of(client.prediction.Regress, message) == ("INVALID_ARGUMENT", text)


@pytest.mark.parametrize(
    ("method", "signature", "text"),
    [
        ("Classify", "parse", "No classification inputs found in SignatureDef: inputs {"),
        ("Regress", "parse", "No regression inputs found in SignatureDef: inputs {"),
        (
            "Classify",
            "regress",
            "Expected classification signature outputs to contain at least one of "
            '"classes" or "scores". Signature was: inputs {',
        ),
        ("Regress", "classify", "Expected one output Tensor."),
    ],
)
def test_a_signature_of_another_form_is_refused(client, method, signature, text):
    kind = {
        "Classify": classification_pb2.ClassificationRequest,
        "Regress": regression_pb2.RegressionRequest,
    }[method]
    spec = {"name": "m", "signature_name": signature}
    code, seen = error_of(getattr(client.prediction, method), kind(model_spec=spec, input=EXAMPLES))
    assert code == "INVALID_ARGUMENT"
    assert seen.startswith(text)


def test_metadata_has_every_signature(client):
    message = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec={"name": "m", "version_label": "stable"}, metadata_field=["signature_def"]
    )
    response = client.prediction.GetModelMetadata(message)
    assert (response.model_spec.name, response.model_spec.version.value) == ("m", 1)
    assert response.model_spec.signature_name == ""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "pair", "classify", "__saved_model_init_op"} <= set(
        signatures.signature_def
    )
    pair = signatures.signature_def["pair"]
    assert {name: info.dtype for name, info in pair.inputs.items()} == {
        "a": types_pb2.DT_FLOAT,
        "b": types_pb2.DT_INT32,
    }


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["F"], "Metadata field F is not supported"),
        (["signature_def", "F"], "Metadata field F is not supported"),
    ],
)
def test_metadata_refuses(client, names, text):
    message = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec={"name": "m"}, metadata_field=names
    )
    call = client.prediction.GetModelMetadata
    assert error_of(call, message) == ("INVALID_ARGUMENT", text)


def test_requests_are_counted_by_model_and_status(service, client):
    metrics = service.server.core.metrics
    before = metrics.answers("m")
    client.predict(linear("m"))
    error_of(client.predict, linear("m", version=99))
    after = metrics.answers("m")
    assert after["OK"] == before.get("OK", 0) + 1
    assert after["NOT_FOUND"] == before.get("NOT_FOUND", 0) + 1
