"""The model server's warm-up, and its configuration files."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from fct_tf.common.errors import InputError
from fct_tf.serving import loading, text_protos
from fct_tf.serving.errors import ServingError
from fct_tf.serving.metrics import Metrics
from tests.model_servers import config, linear, ones, publish, request, running

EXAMPLE = tf.train.Example(
    features=tf.train.Features(
        feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))}
    )
)
GIVEN = {"example_list": {"examples": [EXAMPLE]}}
SPEC = {"name": "whatever", "version": {"value": 99}}


def _log(kind: str, message) -> prediction_log_pb2.PredictionLog:
    return prediction_log_pb2.PredictionLog(**{kind: {"request": message}})


def _examples(signature: str) -> dict:
    return {"model_spec": {**SPEC, "signature_name": signature}, "input": GIVEN}


GOOD = {
    "predict": _log("predict_log", linear("whatever", version=99)),
    "classify": _log("classify_log", _examples("classify")),
    "regress": _log("regress_log", _examples("regress")),
    "multi_inference": _log(
        "multi_inference_log",
        {
            "tasks": [
                {
                    "model_spec": {**SPEC, "signature_name": "regress"},
                    "method_name": "tensorflow/serving/regress",
                }
            ],
            "input": GIVEN,
        },
    ),
    "nothing": prediction_log_pb2.PredictionLog(),
}
BAD = {
    "wrong width": (
        _log("predict_log", request("m", {"x": ones(1, 4)})),
        "INVALID_ARGUMENT: Matrix size-incompatible",
    ),
    "unknown signature": (
        _log("predict_log", linear("m", signature="S")),
        'FAILED_PRECONDITION: Serving signature key "S" not found.',
    ),
    "session run": (
        prediction_log_pb2.PredictionLog(session_run_log={}),
        "UNIMPLEMENTED: Unsupported log_type for warmup: 5",
    ),
}


def warm(saved: Path, base_path: Path, records: list, version: int = 1) -> Path:
    """A version with warm-up records, PredictionLogs or bytes."""
    staged = publish(saved, base_path, version, ".staged")
    file = staged / loading.WARMUP_FILE
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())
    return staged.rename(base_path / str(version))


def load(path: Path, **settings):
    metrics = Metrics()
    servable = loading.Loader(metrics, **settings)("m", 1, str(path))
    return servable, metrics


@pytest.mark.parametrize("kind", GOOD)
def test_records_are_replayed_whatever_model_they_name(saved_models, tmp_path, kind):
    servable, metrics = load(warm(saved_models[1], tmp_path / "m", [GOOD[kind]]))
    servable.close()
    page = metrics.page()
    assert ":tensorflow:serving:model_warmup_latency" in page
    assert 'status="OK"' in page


@pytest.mark.parametrize("kind", BAD)
def test_one_failing_record_fails_the_load(saved_models, tmp_path, kind):
    record, text = BAD[kind]
    path = warm(saved_models[1], tmp_path / "m", [GOOD["predict"], record])
    with pytest.raises(ServingError) as caught:
        load(path)
    assert str(caught.value).startswith(text)
    load(path, warmup=False)[0].close()


def test_a_file_that_is_no_tfrecord(saved_models, tmp_path):
    path = warm(saved_models[1], tmp_path / "m", [GOOD["predict"]])
    (path / loading.WARMUP_FILE).write_bytes(b"this is no TFRecord file at all")
    with pytest.raises(ServingError) as caught:
        load(path)
    assert caught.value.code.name == "DATA_LOSS"
    assert caught.value.message.endswith("Please verify your warmup data is in TFRecord format.")


def test_a_record_that_is_no_prediction_log(saved_models, tmp_path):
    path = warm(saved_models[1], tmp_path / "m", [b"\xff\xff\xff"])
    with pytest.raises(ServingError, match="INVALID_ARGUMENT: Failed to parse warmup record"):
        load(path)


@pytest.mark.parametrize(("count", "fits"), [(1000, True), (1001, False)])
def test_at_most_a_thousand_records(saved_models, tmp_path, count, fits):
    path = warm(saved_models[1], tmp_path / "m", [GOOD["nothing"]] * count)
    if fits:
        load(path)[0].close()
        return
    with pytest.raises(ServingError) as caught:
        load(path)
    assert caught.value.message == (
        f"Number of warmup records exceeds the maximum (1000) at {path / loading.WARMUP_FILE}"
    )


def test_records_are_run_in_order_and_as_often_as_asked(saved_models, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        loading.inference,
        "predict",
        lambda servable, message: seen.append(message.inputs["x"].tensor_shape.dim[0].size),
    )
    records = [_log("predict_log", linear("m", rows=rows)) for rows in (1, 8, 4)]
    load(warm(saved_models[1], tmp_path / "m", records), warmup_iterations=2)[0].close()
    assert seen == [1, 1, 8, 8, 4, 4]


def test_the_warm_up_goes_through_batching_and_stands_before_available(saved_models, tmp_path):
    base_path = tmp_path / "m"
    publish(saved_models[1], base_path, 1)
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 4 }")
    with running(
        config({"name": "m", "base_path": base_path}),
        tmp_path,
        enable_batching=True,
        batching_parameters_file=str(file),
        max_num_load_retries=0,
    ) as started:
        warm(saved_models[2], base_path, [_log("predict_log", linear("m", rows=5))], 2)
        started.client.wait("m", v2="END")
        assert started.client.status("m")[2][1] == (
            "Task size 5 is larger than maximum input batch size 4"
        )
        assert started.client.predict(linear("m")).model_spec.version.value == 1
        warm(saved_models[2], base_path, [_log("predict_log", linear("m", rows=4))], 3)
        started.client.wait("m", v3="AVAILABLE", v1="END")


def test_inputs_with_a_default_may_be_left_out(saved_models, tmp_path):
    path = publish(saved_models[1], tmp_path / "m", 1)
    servable, _ = load(path)
    signature = servable.signatures["pair"]
    signature.defaults["b"].CopyFrom(tf.make_tensor_proto(np.int32([10])))
    assert servable.run("pair", {"a": ones(1, 2)})["sum"].tolist() == [12.0]
    assert servable.run("pair", {"a": ones(1, 2), "b": np.int32([1])})["sum"].tolist() == [3.0]
    with pytest.raises(ServingError, match=r"alias: a\(feed name: .*default input alias set: b"):
        servable.run("pair", {"b": np.int32([1])})
    with pytest.raises(ServingError, match="Inputs contains invalid name. Used request inputs: a"):
        servable.run("pair", {"a": ones(1, 2), "z": ones()})
    servable.close()


# Text protos.


def test_the_messages_that_the_package_lacks(tmp_path):
    file = tmp_path / "x.config"
    file.write_text(
        "max_batch_size { value: 128 }\nbatch_timeout_micros { value: 1000 }\n"
        "max_enqueued_batches { value: 64 }\nnum_batch_threads { value: 2 }\n"
        'thread_pool_name { value: "pool" }\nallowed_batch_sizes: 8\nallowed_batch_sizes: 128\n'
        "pad_variable_length_inputs: true\nenable_large_batch_splitting { value: true }\n"
        "max_execution_batch_size { value: 32 }\n"
    )
    message = text_protos.parse(str(file), text_protos.BatchingParameters())
    assert message.max_batch_size.value == 128
    assert list(message.allowed_batch_sizes) == [8, 128]
    assert message.enable_large_batch_splitting.value
    file.write_text('prometheus_config { enable: true, path: "/metrics" }')
    message = text_protos.parse(str(file), text_protos.MonitoringConfig())
    assert (message.prometheus_config.enable, message.prometheus_config.path) == (True, "/metrics")
    file.write_text('server_key: "k" server_cert: "c" custom_ca: "a" client_verify: true')
    message = text_protos.parse(str(file), text_protos.SSLConfig())
    assert (message.server_key, message.client_verify) == ("k", True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_batch_size { value: 1 }\nmax_batch_sice { value: 2 }", "x.config:2: not a Batching"),
        ("max_batch_size { value: many }", "x.config:1: not a BatchingParameters"),
        ("max_batch_size { value: 1", "x.config:1: not a BatchingParameters"),
        (b"\xff\xfe\x00", "x.config: not text"),
        (None, "x.config: No such file"),
    ],
)
def test_a_wrong_text_proto_is_one_line_with_file_and_line(tmp_path, text, told):
    file = tmp_path / "x.config"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        text_protos.parse(str(file), text_protos.BatchingParameters())
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
