"""Predict, Classify, Regress and MultiInference on one loaded version.

Messages in, messages out. Classify and Regress take `tf.Example`s, which the model parses itself
from one string input named `inputs`.
"""

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    regression_pb2,
)

from fct_tf.serving import tensors
from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.servable import DEFAULT_SIGNATURE, Servable

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def predict(
    servable: Servable,
    request: predict_pb2.PredictRequest,
    timeout_s: float | None = None,
    *,
    as_content: bool = False,
) -> predict_pb2.PredictResponse:
    """Runs any signature. Raises ServingError."""
    spec = request.model_spec
    outputs = servable.run(spec.signature_name, request.inputs, request.output_filter, timeout_s)
    response = predict_pb2.PredictResponse()
    _fill_spec(response.model_spec, spec, servable)
    for alias, array in outputs.items():
        tensors.fill(response.outputs[alias], array, as_content)
    return response


def classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    timeout_s: float | None = None,
) -> classification_pb2.ClassificationResponse:
    """Classes and scores of each example. Raises ServingError."""
    signature = _signature(servable, request.model_spec.signature_name)
    feed, fetches = _classify_tensors(signature)
    examples = _examples(request.input)
    outputs = servable.timed("Classify", {feed: examples}, fetches, timeout_s)
    response = classification_pb2.ClassificationResponse()
    _fill_spec(response.model_spec, request.model_spec, servable)
    by_name = dict(zip(fetches, outputs, strict=True))
    _classifications(signature, len(examples), by_name, response.result)
    return response


def regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    timeout_s: float | None = None,
) -> regression_pb2.RegressionResponse:
    """One value for each example. Raises ServingError."""
    signature = _signature(servable, request.model_spec.signature_name)
    feed, fetches = _regress_tensors(signature)
    examples = _examples(request.input)
    outputs = servable.timed("Regress", {feed: examples}, fetches, timeout_s)
    response = regression_pb2.RegressionResponse()
    _fill_spec(response.model_spec, request.model_spec, servable)
    by_name = dict(zip(fetches, outputs, strict=True))
    _regressions(signature, len(examples), by_name, response.result)
    return response


def multi_inference(
    servable: Servable,
    request: inference_pb2.MultiInferenceRequest,
    timeout_s: float | None = None,
) -> inference_pb2.MultiInferenceResponse:
    """Several signatures in one run. Raises ServingError."""
    feed = ""
    fetches: set[str] = set()
    signatures = {}
    model_name = ""
    for task in request.tasks:
        name = task.model_spec.name
        if not name:
            raise invalid("Found ModelSpec with an empty model name.")
        model_name = model_name or name
        if name != model_name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        signature_name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if signature_name in signatures:
            raise invalid(f"Duplicate evaluation of signature: {signature_name}")
        if signature_name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {signature_name}")
        signature = signatures[signature_name] = servable.signatures[signature_name]
        if task.method_name == CLASSIFY:
            task_feed, task_fetches = _classify_tensors(signature)
        elif task.method_name == REGRESS:
            task_feed, task_fetches = _regress_tensors(signature)
        else:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        feed = feed or task_feed
        if task_feed != feed:
            raise invalid("Input tensor must be the same for all Signatures.")
        fetches.update(task_fetches)
    examples = _examples(request.input)
    names = sorted(fetches)
    outputs = servable.timed("MultiInference", {feed: examples}, names, timeout_s)
    by_name = dict(zip(names, outputs, strict=True))
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, signatures.values(), strict=True):
        result = response.results.add()
        _fill_spec(result.model_spec, task.model_spec, servable)
        if task.method_name == CLASSIFY:
            _classifications(signature, len(examples), by_name, result.classification_result)
        else:
            _regressions(signature, len(examples), by_name, result.regression_result)
    return response


def _fill_spec(spec, asked, servable: Servable) -> None:
    """The name as asked, and what was resolved: never a label."""
    spec.name = asked.name
    spec.version.value = servable.version
    spec.signature_name = asked.signature_name or DEFAULT_SIGNATURE


def _signature(servable: Servable, name: str):
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return servable.signatures[name]


def _examples(given: input_pb2.Input) -> np.ndarray:
    """The serialised `tf.Example`s, bytes `[n]`; a context is put in front of each."""
    kind = given.WhichOneof("kind")
    if kind is None or not getattr(given, kind).examples:
        raise invalid("Input is empty.")
    of_kind = getattr(given, kind)
    context = b""
    if kind == "example_list_with_context":
        # Messages that follow one another on the wire are merged by the parser.
        context = of_kind.context.SerializeToString()
    examples = np.empty(len(of_kind.examples), object)
    examples[:] = [context + example.SerializeToString() for example in of_kind.examples]
    return examples


def _classify_tensors(signature) -> tuple[str, list[str]]:
    """Names of the tensor to feed and of those to fetch."""
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    fetches = [
        signature.outputs[alias].name
        for alias in ("classes", "scores")
        if alias in signature.outputs
    ]
    if not fetches:
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature}'
        )
    return signature.inputs["inputs"].name, fetches


def _regress_tensors(signature) -> tuple[str, list[str]]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    return signature.inputs["inputs"].name, [signature.outputs["outputs"].name]


def _classifications(signature, count: int, arrays: dict[str, np.ndarray], result) -> None:
    """Fills a ClassificationResult from the fetched arrays."""
    columns = {}
    for alias, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if alias not in signature.outputs:
            continue
        array = arrays[signature.outputs[alias].name]
        if array.ndim != 2:
            raise invalid(
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
            )
        if _dtype_name(array) != dtype:
            raise invalid(f"Expected {alias} Tensor of {dtype}. Got: {_dtype_name(array)}")
        if array.shape[0] != count:
            raise invalid(f"Expected {alias} output batch size of {count}. Got: {array.shape[0]}")
        columns[alias] = array
    widths = [array.shape[1] for array in columns.values()]
    if len(set(widths)) > 1:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}"
        )
    classes, scores = columns.get("classes"), columns.get("scores")
    for row in range(count):
        classifications = result.classifications.add()
        for column in range(widths[0]):
            one = classifications.classes.add()
            if classes is not None:
                # The field is text; TF Serving writes bytes that are none unchecked.
                one.label = classes[row, column].decode("utf-8", "replace")
            if scores is not None:
                one.score = scores[row, column]


def _regressions(signature, count: int, arrays: dict[str, np.ndarray], result) -> None:
    """Fills a RegressionResult from the fetched arrays."""
    array = arrays[signature.outputs["outputs"].name]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(array)}"
        )
    if array.shape[0] != count:
        raise invalid(
            f"Input batch size did not match output batch size: {count} vs. {array.shape[0]}"
        )
    if _dtype_name(array) != "DT_FLOAT":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype_name(array)}")
    for value in array.ravel().tolist():
        result.regressions.add(value=value)


def _shape(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _dtype_name(array: np.ndarray) -> str:
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    return types_pb2.DataType.Name(dtype.as_datatype_enum)
