"""The client of a model server: against servers that misbehave as told, by gRPC and by REST."""

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from fct_tf.common.errors import InputError
from fct_tf.serving import retries, wire
from fct_tf.serving.client import ServerError, connect
from fct_tf.serving.transport import Address, Failure, Model
from tests.stub_server import D_IN, D_OUT, Behaviour, stub

KINDS = ("grpc", "http")
ROWS = np.random.default_rng(0).normal(size=(300, D_IN)).astype(np.float32)
INFO = {"format": 1, "kind": "transformation", "name": "fct", "distance": "l2"}


@pytest.fixture
def behaviour():
    return Behaviour()


@pytest.fixture(params=KINDS)
def server(request, behaviour):
    with stub(request.param, behaviour) as address:
        yield address


@pytest.fixture
def client(server):
    with connect(f"{server}/fct") as found:
        yield found


def error_of(call) -> str:
    with pytest.raises(ServerError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# The messages.

STUBS = {
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "ModelSpec": model_pb2.ModelSpec,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
}


@pytest.mark.parametrize("name", STUBS)
def test_messages_have_the_numbers_of_the_stubs(name):
    """All that a message holds too."""
    pending = [(wire.messages[name].DESCRIPTOR, STUBS[name].DESCRIPTOR)]
    while pending:
        ours, theirs = pending.pop()
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            assert (other.number, other.is_repeated or field.type == field.TYPE_BYTES) == (
                field.number,
                field.is_repeated or field.type == field.TYPE_BYTES,
            )
            if field.message_type:
                pending.append((field.message_type, other.message_type))


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3) / 3,
    np.array([[np.nan, np.inf, -0.0]], np.float64),
    np.arange(4, dtype=np.uint8).reshape(1, 2, 2),
    np.array([-1, 2**62], np.int64),
    np.array([-5, 7], np.int32),
    np.array([True, False]),
    np.array([0.5, -2], np.float16),
    np.array([2**63 + 1], np.uint64),
    np.array([b"\xff\xd8", b""], object),
    np.array(3.5, np.float32),
    np.empty([0, 4], np.float32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
@pytest.mark.parametrize("content", [True, False])
def test_tensors_as_tensorflow_has_them(array, content):
    ours = wire.encode(array).SerializeToString()
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(ours))
    np.testing.assert_array_equal(read, array)
    assert read.shape == array.shape
    proto = tf.make_tensor_proto(array, shape=array.shape)
    if not content:  # As TF Serving writes answers: a value each.
        proto = tensor_pb2.TensorProto.FromString(_as_fields(array))
    got = wire.decode(wire.messages["TensorProto"].FromString(proto.SerializeToString()))
    assert got.dtype == array.dtype and got.shape == array.shape
    np.testing.assert_array_equal(got, array)


def _as_fields(array) -> bytes:
    proto = tf.make_tensor_proto(array, shape=array.shape)
    names = {"float32": "float_val", "float64": "double_val", "uint8": "int_val"}
    names |= {"int32": "int_val", "int64": "int64_val", "bool": "bool_val", "uint64": "uint64_val"}
    if proto.tensor_content and array.dtype.name in names:
        proto.ClearField("tensor_content")
        getattr(proto, names[array.dtype.name]).extend(array.ravel().tolist())
    return proto.SerializeToString()


def test_fewer_values_repeat_the_last():
    proto = tensor_pb2.TensorProto(dtype=1, float_val=[1.0, 2.0])
    proto.tensor_shape.dim.add(size=4)
    got = wire.decode(wire.messages["TensorProto"].FromString(proto.SerializeToString()))
    assert got.tolist() == [1, 2, 2, 2]


def test_needs_no_tensorflow():
    code = (
        "import sys, fct_tf.serving.client as c\n"
        "c.connect('grpc://h:1/m'), c.connect('http://h:1/m')\n"
        "import fct_tf.upgrade.upgrade, fct_tf.serving.remote\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Addresses.


@pytest.mark.parametrize(
    "text, expected",
    [
        ("grpc://host:1/fct", Address("grpc", "host", 1, Model("fct"))),
        ("grpc://host/fct@stable", Address("grpc", "host", 8500, Model("fct", None, "stable"))),
        ("http://host/fct@7", Address("http", "host", 8501, Model("fct", 7))),
        ("https://[::1]:443/a%2Fb", Address("https", "[::1]", 443, Model("a/b"))),
    ],
)
def test_addresses(text, expected):
    assert Address.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["host:8500/fct", "grpc://host:8500", "ftp://h/m", "grpc:///m", "grpc://h:x/m", ""]
)
def test_what_is_no_address(text):
    with pytest.raises(InputError, match="^server '"):
        connect(text)


@pytest.mark.parametrize("setting", ["timeout_s", "max_batch_size", "in_flight"])
def test_settings_are_positive(setting):
    with pytest.raises(InputError, match=f"{setting}=0: must be positive"):
        connect("grpc://h/m", **{setting: 0})


# Results.


def test_numpy_in_and_out(client):
    outputs = client.transform(ROWS[:7].astype(np.float64))
    np.testing.assert_array_equal(outputs["embedding"], ROWS[:7, :D_OUT])
    np.testing.assert_array_equal(outputs["log_variance"], ROWS[:7, -1])
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}


def test_files_as_bytes(client):
    files = [b"\xff\xd8\xff\xfb\xef\xbe", b"", "é".encode()]
    expected = [[len(file), sum(file)] for file in files]
    np.testing.assert_array_equal(client.embed_encoded(files), expected)


def test_not_a_number_travels(client):
    rows = ROWS[:2].copy()
    rows[0, 0], rows[1, 1] = np.nan, -np.inf
    found = client.predict({"source_embedding": rows})["embedding"]
    np.testing.assert_array_equal(found, rows[:, :D_OUT])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_rows_are_not_transformed(client, behaviour, value):
    rows = ROWS[:5].copy()
    rows[3, 1] = value
    with pytest.raises(
        InputError, match="source_embedding: row 3 is NaN or infinite; leave it out"
    ):
        client.transform(rows)


def test_no_rows(client, behaviour):
    outputs = client.transform(ROWS[:0])
    assert {key: array.shape for key, array in outputs.items()} == {
        "embedding": (0, D_OUT),
        "log_variance": (0,),
    }
    assert not behaviour.attempts


@pytest.mark.parametrize("rows, sizes", [(128, [128]), (129, [1, 128]), (300, [44, 128, 128])])
def test_large_batches_are_split(client, behaviour, rows, sizes):
    outputs = client.transform(ROWS[:rows])
    np.testing.assert_array_equal(outputs["embedding"], ROWS[:rows, :D_OUT])
    assert sorted(count for _, count in behaviour.requests) == sizes


@pytest.mark.parametrize("in_flight", [1, 3])
def test_several_are_in_flight(server, behaviour, in_flight):
    behaviour.slow_s = 0.05
    with connect(f"{server}/fct", max_batch_size=25, in_flight=in_flight) as client:
        embedding = client.transform(ROWS)["embedding"]
    np.testing.assert_array_equal(embedding, ROWS[:, :D_OUT])
    assert behaviour.most_running == in_flight


def test_threads_may_share_a_client(client):
    def one(row):
        return client.transform(ROWS[row : row + 150])["embedding"]

    with ThreadPoolExecutor(8) as pool:
        for row, embedding in enumerate(pool.map(one, range(40))):
            np.testing.assert_array_equal(embedding, ROWS[row : row + 150, :D_OUT])


@pytest.mark.parametrize("suffix, factor", [("", 3), ("@1", 1), ("@2", 2), ("@canary", 2)])
def test_versions_and_labels(server, behaviour, suffix, factor):
    behaviour.versions, behaviour.labels = {1, 2, 3}, {"canary": 2}
    with connect(f"{server}/fct{suffix}") as client:
        np.testing.assert_array_equal(
            client.transform(ROWS[:3])["embedding"], factor * ROWS[:3, :D_OUT]
        )
        assert client.metadata().version == factor
        assert client.versions() == dict.fromkeys((3, 2, 1), "AVAILABLE")


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("suffix", ["", "@stable"])
def test_one_call_is_answered_by_one_version(server, behaviour, suffix, gone):
    """A swap in the middle of a call that is made of several requests."""
    behaviour.versions, behaviour.labels = {1}, {"stable": 1}

    def swap(attempt):
        if attempt == 3:
            behaviour.versions.add(2)
            behaviour.labels["stable"] = 2
            if gone:
                behaviour.versions.remove(1)

    behaviour.moves = swap
    with connect(f"{server}/fct{suffix}", max_batch_size=20, in_flight=2) as client:
        embedding = client.transform(ROWS)["embedding"]
    np.testing.assert_array_equal(embedding, (2 if gone else 1) * ROWS[:, :D_OUT])


# Retries.


@pytest.fixture
def pauses(monkeypatch):
    """No waiting; the longest that each pause could have been."""
    found = []
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: found.append(high) or 0.0)
    return found


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_transient_failures_are_retried(client, behaviour, pauses, code):
    behaviour.refusals = [(code, "busy")] * 8
    np.testing.assert_array_equal(client.transform(ROWS[:2])["embedding"], ROWS[:2, :D_OUT])
    assert behaviour.attempts == 9
    np.testing.assert_allclose(pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


@pytest.mark.parametrize(
    "code", ["INVALID_ARGUMENT", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "INTERNAL"]
)
def test_others_are_not(client, behaviour, pauses, code):
    behaviour.refusals = [(code, "no such luck")]
    error_of(lambda: client.transform(ROWS[:2]))
    assert behaviour.attempts == 1


@pytest.mark.parametrize("suffix", ["@2", "@stable"])
def test_versions_that_are_loading_are_waited_for(server, behaviour, suffix, pauses):
    behaviour.labels, behaviour.loading = {"stable": 2}, {2: 3}
    with connect(f"{server}/fct{suffix}") as client:
        assert client.metadata().version == 2
        behaviour.loading = {2: 3}
        np.testing.assert_array_equal(client.transform(ROWS[:2])["embedding"], 2 * ROWS[:2, :D_OUT])
    assert len(pauses) == 6


def test_what_is_too_large_stays_so(client, behaviour, pauses):
    text = "Received message larger than max (5 vs. 4)"
    behaviour.refusals = [("RESOURCE_EXHAUSTED", text)] * 2
    assert "lower max_batch_size" in error_of(lambda: client.transform(ROWS[:2]))
    assert behaviour.attempts == 1


def test_retries_end_at_the_deadline(server, behaviour):
    behaviour.refusals = [("UNAVAILABLE", "busy")] * 10_000
    with connect(f"{server}/fct", timeout_s=0.5) as client:
        client.metadata()
        start = time.monotonic()
        message = error_of(lambda: client.transform(ROWS[:2]))
    assert time.monotonic() - start < 5
    assert "no answer within 0.5 s (busy)" in message
    assert behaviour.attempts > 1


def test_deadlines_bound_slow_answers(server, behaviour):
    with connect(f"{server}/fct", timeout_s=0.4) as client:
        client.metadata()
        behaviour.slow_s = 1.5
        assert "no result within 0.4 s" in error_of(lambda: client.transform(ROWS[:2]))
    assert behaviour.attempts == 1  # The server may be at work still.


def test_the_first_failure_ends_a_call(server, behaviour):
    behaviour.refusals = [("INTERNAL", "broken")]
    behaviour.slow_s = 0.02
    with connect(f"{server}/fct", max_batch_size=1, in_flight=1) as client:
        assert "broken (INTERNAL)" in error_of(lambda: client.transform(ROWS))
    assert behaviour.attempts < 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_restarts(kind, behaviour):
    """The connection breaks; rows sent meanwhile arrive once the server is back."""
    with stub(kind, behaviour) as address, connect(f"{address}/fct") as client:
        client.transform(ROWS[:2])
        port = int(address.rsplit(":", 1)[1])
    started = threading.Event()

    def restart():
        started.wait()
        time.sleep(0.5)
        with stub(kind, behaviour, port):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=restart)
    thread.start()
    with connect(f"{address}/fct") as client:
        started.set()
        np.testing.assert_array_equal(client.transform(ROWS)["embedding"], ROWS[:, :D_OUT])
    done.set()
    thread.join()


# Errors.


@pytest.mark.parametrize("kind", KINDS)
def test_server_down(kind):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{kind}://127.0.0.1:{unused.getsockname()[1]}"
        with connect(f"{address}/fct", timeout_s=0.5) as client:
            message = error_of(lambda: client.transform(ROWS))
    assert message.startswith(f"{address}: no answer within 0.5 s")
    assert message.endswith("is the server up, and the port its own?")


@pytest.mark.parametrize(
    "suffix, message",
    [
        ("other", "the server has no model 'other'"),
        ("other@stable", "the server has no model 'other'"),
        ("other@2", "the server has no model 'other'"),
        ("fct@stable", "no version has the label 'stable', .*loaded: 2, 1.*models.config"),
        ("fct@7", "version 7 is not loaded .loaded: 2, 1"),
    ],
)
def test_what_is_not_served(server, behaviour, suffix, message):
    behaviour.versions = {1, 2}
    with connect(f"{server}/{suffix}") as client:
        for call in (client.metadata, client.about, lambda: client.transform(ROWS)):
            with pytest.raises(ServerError, match=message):
                call()


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"source_embedding": ROWS[:, :4]}, r"source_embedding is float32 \[300, 4\].*\[\?, 5\]"),
        ({"source_embedding": ROWS[0]}, r"source_embedding is float32 \[5\]"),
        ({"source_embedding": np.array(["a"])}, r"source_embedding is string \[1\]"),
        ({"source_embedding": ROWS.astype(complex)}, "source_embedding is complex128"),
        ({"source": ROWS}, "takes source_embedding: float32.*but was given source"),
        ({"source_embedding": ROWS, "side_info": ROWS}, "given side_info, source_embedding"),
        ({}, "given nothing"),
    ],
)
def test_inputs_that_do_not_fit(client, behaviour, inputs, message):
    with pytest.raises(ServerError, match=message):
        client.predict(inputs)
    assert not behaviour.attempts


def test_no_such_signature(client):
    message = error_of(lambda: client.predict({"x": ROWS}, "other"))
    assert "no signature 'other'; it has encoded, serving_default" in message


def test_a_version_of_other_dimensions_takes_over(client, behaviour):
    client.transform(ROWS[:2])
    behaviour.d_in = 4
    np.testing.assert_array_equal(client.transform(ROWS[:2, :4])["embedding"], ROWS[:2, :D_OUT])


def test_more_rows_than_the_server_takes(client, behaviour):
    behaviour.max_batch_size = 32
    message = error_of(lambda: client.transform(ROWS))
    assert "maximum input batch size 32; lower max_batch_size (128)" in message


def test_a_full_queue(server, behaviour):
    text = "The batch scheduling queue to which this task was submitted is full"
    behaviour.refusals = [("UNAVAILABLE", text)] * 10_000
    with connect(f"{server}/fct", timeout_s=0.3) as client:
        assert "more requests than it can take" in error_of(lambda: client.transform(ROWS[:1]))


# Spaces.


def test_about(client, behaviour):
    behaviour.infos = {1: INFO | {"space": "a" * 64}}
    assert client.about() == behaviour.infos[1]


def test_space_is_checked_at_each_version(server, behaviour):
    behaviour.versions, behaviour.labels = {1, 2}, {"stable": 1}
    behaviour.infos = {1: INFO | {"space": "a" * 64}, 2: INFO | {"space": "b" * 64}}
    with connect(f"{server}/fct@stable", space="a" * 64) as client:
        np.testing.assert_array_equal(client.transform(ROWS)["embedding"], ROWS[:, :D_OUT])
        behaviour.labels["stable"] = 2
        for rows in (ROWS, ROWS[:1]):
            message = error_of(lambda rows=rows: client.transform(rows))
            assert f"version 2 (fct) writes space {'b' * 64}, expected is {'a' * 64}" in message
        behaviour.labels["stable"] = 1
        client.transform(ROWS[:1])


def test_a_version_without_description(server, behaviour):
    with connect(f"{server}/fct", space="a" * 64) as client:
        for call in (client.about, lambda: client.transform(ROWS[:1])):
            message = error_of(call)
            assert "does not say which space it writes" in message
            assert "export it again" in message


def test_the_last_failure_says_more_than_a_deadline():
    failures = [Failure("UNAVAILABLE", "refused"), Failure("DEADLINE_EXCEEDED", "")]

    def call(left_s):
        raise failures.pop(0)

    with pytest.raises(Failure, match="refused"):
        retries.until(retries.Deadline(5), call)
