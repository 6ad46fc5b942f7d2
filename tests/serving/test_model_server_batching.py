"""The model server's batching: its rules, and that requests in a batch keep apart."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from fct_tf.serving import batching, text_protos
from fct_tf.serving.batching import Batcher, Parameters, Queue
from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.metrics import Metrics
from tests.model_servers import config, linear, ones, publish, request, running


class Session:
    """Stands for `Session::Run`: doubles `x`, remembers its batches, waits if told to."""

    def __init__(self):
        self.batches: list[np.ndarray] = []
        self.timeouts: list = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)

    def __call__(self, feeds, fetches, timeout_s):
        self.started.release()
        assert self.gate.wait(20)
        x = feeds["x"]
        self.batches.append(x)
        self.timeouts.append(timeout_s)
        if x.dtype == np.float32 and np.isnan(x).any():
            raise invalid("not a number")
        if "scalar" in fetches:
            return [np.float32(0)]
        if "short" in fetches:
            return [x[:1]]
        return [x * 2]


@pytest.fixture
def session():
    return Session()


@pytest.fixture
def queue_of(session):
    """Makes a queue over the session: `queue_of(max_batch_size=4)`, with one thread."""
    batchers = []

    def make(**parameters) -> Queue:
        parameters.setdefault("max_execution_batch_size", parameters.get("max_batch_size", 1000))
        batchers.append(Batcher(1, Metrics()))
        return Queue(batchers[-1], Parameters(**parameters), session)

    yield make
    session.gate.set()
    for batcher in batchers:
        batcher.close()


def rows(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.float32(values)[:, None], width, 1)}


class Held:
    """Requests that wait behind one that keeps the only thread busy."""

    def __init__(self, queue: Queue, session: Session):
        self._pool = ThreadPoolExecutor(64)
        self._queue = queue
        self._session = session
        session.gate.clear()
        while session.started.acquire(blocking=False):
            pass
        self.first = self._pool.submit(queue, rows(-1), ["y"], None)
        assert session.started.acquire(timeout=20)

    def send(self, feeds, fetches=("y",), timeout_s=None):
        before = self._waiting()
        future = self._pool.submit(self._queue, feeds, list(fetches), timeout_s)
        # Until it waits in the queue, or failed: requests then keep their order.
        for _ in range(10_000):
            if future.done() or self._waiting() > before:
                break
            threading.Event().wait(0.002)
        return future

    def _waiting(self) -> int:
        batcher = self._queue.batcher
        with batcher._lock:
            batches = [*batcher._open.values(), *batcher._full]
            return sum(len(batch.tasks) for batch in batches)

    def release(self) -> None:
        self._session.gate.set()
        self.first.result(20)


def result(future) -> list:
    return future.result(20)[0].ravel().tolist()


def test_requests_that_wait_run_together_and_get_their_own_rows(queue_of, session):
    held = Held(queue_of(max_batch_size=10), session)
    futures = [held.send(rows(*values)) for values in ([1], [2, 3], [4, 5, 6])]
    held.release()
    assert [result(future) for future in futures] == [[2], [4, 6], [8, 10, 12]]
    assert [len(batch) for batch in session.batches] == [1, 6]


def test_a_batch_has_no_more_rows_than_allowed(queue_of, session):
    held = Held(queue_of(max_batch_size=4), session)
    futures = [held.send(rows(*values)) for values in ([1, 1], [2, 2, 2], [3], [4])]
    held.release()
    assert [result(future) for future in futures] == [[2, 2], [4, 4, 4], [6], [8]]
    assert [len(batch) for batch in session.batches] == [1, 2, 4, 1]


@pytest.mark.parametrize(
    "others",
    [
        rows(5, width=3),
        {"x": np.float64([[5]])},
        {"x": np.float32([5])},
    ],
    ids=["width", "dtype", "rank"],
)
def test_rows_of_another_shape_do_not_share_a_batch(queue_of, session, others):
    held = Held(queue_of(), session)
    futures = [held.send(rows(1)), held.send(others), held.send(rows(2))]
    held.release()
    assert [result(future)[0] for future in futures] == [2, 10, 4]
    assert sorted(len(batch) for batch in session.batches) == [1, 1, 2]


def test_other_outputs_do_not_share_a_batch(queue_of, session):
    held = Held(queue_of(), session)
    futures = [held.send(rows(1)), held.send(rows(2), fetches=["z"])]
    held.release()
    assert [result(future) for future in futures] == [[2], [4]]
    assert [len(batch) for batch in session.batches] == [1, 1, 1]


def test_a_request_that_the_model_refuses_fails_alone(queue_of, session):
    held = Held(queue_of(), session)
    futures = [held.send(rows(value)) for value in (1, np.nan, 3)]
    held.release()
    assert result(futures[0]) == [2]
    assert result(futures[2]) == [6]
    with pytest.raises(ServingError, match="not a number"):
        futures[1].result(20)


def test_batches_are_padded_to_the_next_allowed_size(queue_of, session):
    queue = queue_of(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    assert queue(rows(1, 2, 3), ["y"], None)[0].ravel().tolist() == [2, 4, 6]
    assert session.batches[-1].ravel().tolist() == [1, 2, 3, 1]
    queue(rows(1, 2), ["y"], None)
    assert len(session.batches[-1]) == 2


def test_a_batch_waits_for_more_rows_only_so_long(queue_of, session):
    queue = queue_of(max_batch_size=2, batch_timeout_s=0.2)
    assert queue(rows(1), ["y"], None)[0].tolist() == [[2]]
    with ThreadPoolExecutor(2) as pool:  # Full at once: no wait for the timeout.
        list(pool.map(lambda value: queue(rows(value), ["y"], None), [1, 2]))
    assert [len(batch) for batch in session.batches] == [1, 2]


REFUSED = [
    (rows(*range(33)), "Task size 33 is larger than maximum input batch size 32"),
    (
        {"x": np.float32([[1]]), "z": np.float32([[1], [2]])},
        "Batching Run() input tensors must have equal 0th-dimension size",
    ),
    ({"x": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
]


@pytest.mark.parametrize(("feeds", "text"), REFUSED)
def test_what_cannot_be_batched_is_refused(queue_of, feeds, text):
    with pytest.raises(ServingError) as caught:
        queue_of(max_batch_size=32)(feeds, ["y"], None)
    assert (caught.value.code.name, caught.value.message) == ("INVALID_ARGUMENT", text)


@pytest.mark.parametrize(
    ("fetch", "text"),
    [
        ("scalar", "Batched output tensor has 0 dimensions"),
        (
            "short",
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        ),
    ],
)
def test_outputs_that_are_no_batch_are_refused(queue_of, fetch, text):
    with pytest.raises(ServingError) as caught:
        queue_of()(rows(1, 2), [fetch], None)
    assert (caught.value.code.name, caught.value.message) == ("FAILED_PRECONDITION", text)


def test_zero_rows_run_alone(queue_of, session):
    assert queue_of(batch_timeout_s=60)({"x": np.zeros((0, 1))}, ["y"], None)[0].shape == (0, 1)


def test_a_full_queue_says_so(queue_of, session):
    held = Held(queue_of(max_batch_size=2, max_enqueued_batches=2), session)
    futures = [held.send(rows(1, 1)), held.send(rows(2)), held.send(rows(3))]
    refused = held.send(rows(4))
    with pytest.raises(ServingError) as caught:
        refused.result(20)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert caught.value.message == (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches "
        "enqueued and max_enqueued_batches is 2"
    )
    held.release()
    assert [result(future) for future in futures] == [[2, 2], [4], [6]]
    assert held._queue(rows(5), ["y"], None)[0].tolist() == [[10]]


def test_a_deadline_that_passes_in_the_queue(queue_of, session):
    held = Held(queue_of(), session)
    late, patient = held.send(rows(1), timeout_s=0.05), held.send(rows(2), timeout_s=60)
    threading.Event().wait(0.1)
    held.release()
    with pytest.raises(ServingError) as caught:
        late.result(20)
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.message == "Run() timeout exceeded while waiting in batching queue"
    assert result(patient) == [4]
    assert len(session.batches[-1]) == 1
    assert 50 < session.timeouts[-1] < 60


def test_large_requests_are_cut_and_put_together_again(queue_of, session):
    queue = queue_of(max_batch_size=10, max_execution_batch_size=4, max_enqueued_batches=3)
    values = list(range(10))
    assert queue(rows(*values), ["y"], None)[0].ravel().tolist() == [2 * v for v in values]
    assert [len(batch) for batch in session.batches] == [4, 4, 2]
    with pytest.raises(ServingError, match="Task size 11 is larger than maximum"):
        queue(rows(*range(11)), ["y"], None)
    held = Held(queue, session)
    held.send(rows(*range(4)))
    with pytest.raises(ServingError, match=r"task size is 10 but scheduling capacity is only 8"):
        held.send(rows(*values)).result(20)
    held.release()


def parameters(**fields) -> Parameters:
    message = text_protos.BatchingParameters()
    for name, value in fields.items():
        if name == "allowed_batch_sizes":
            message.allowed_batch_sizes.extend(value)
        else:
            getattr(message, name).value = value
    return Parameters.of(message)


def test_parameters_have_the_originals_defaults():
    assert parameters() == Parameters(1000, 0.0, 10, 1000, ())
    given = parameters(
        max_batch_size=128,
        batch_timeout_micros=1500,
        max_enqueued_batches=64,
        allowed_batch_sizes=[8, 128],
    )
    assert given == Parameters(128, 0.0015, 64, 128, (8, 128))
    # Without splitting, the size of an execution is that of a batch.
    assert parameters(max_execution_batch_size=16).max_execution_batch_size == 1000
    cut = parameters(
        max_batch_size=64, max_execution_batch_size=16, enable_large_batch_splitting=True
    )
    assert (cut.max_batch_size, cut.max_execution_batch_size) == (64, 16)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"max_batch_size": 32, "allowed_batch_sizes": [8, 16]},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 16; "
            "expected 32",
        ),
        ({"allowed_batch_sizes": [8, 4, 1000]}, "must be positive and in increasing order"),
        ({"allowed_batch_sizes": [0, 1000]}, "must be positive and in increasing order"),
        ({"max_batch_size": 0}, "max_batch_size must be positive; was 0"),
        ({"max_enqueued_batches": -1}, "max_enqueued_batches must be positive; was -1"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros must be non-negative; was -1"),
    ],
)
def test_parameters_that_contradict_each_other(fields, text):
    with pytest.raises(ServingError, match=text):
        parameters(**fields)


# Through a server.


def test_batching_over_grpc(saved_models, tmp_path):
    publish(saved_models[1], tmp_path / "m", 1)
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 16 } batch_timeout_micros { value: 20000 } "
        "num_batch_threads { value: 2 }"
    )
    with (
        running(
            config({"name": "m", "base_path": tmp_path / "m"}),
            tmp_path,
            enable_batching=True,
            batching_parameters_file=str(file),
        ) as started,
        ThreadPoolExecutor(16) as pool,
    ):
        client = started.client

        def send(number: int):
            x = ones(1 + number % 3) * number
            if number == 7:
                x = ones(1, 5)  # Of another width: its neighbours do not fail.
            return client.prediction.Predict.future(request("m", {"x": x}), timeout=20)

        for number, future in enumerate(list(pool.map(send, range(16)))):
            if number == 7:
                assert future.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert "Matrix size-incompatible: In[0]: [1,5]" in future.details()
                continue
            expected = [3.0 * number] * 2 * (1 + number % 3)
            assert list(future.result().outputs["y"].float_val) == expected
        with pytest.raises(grpc.RpcError) as caught:
            client.predict(linear("m", rows=17))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "Task size 17 is larger than maximum input batch size 16"
        with pytest.raises(grpc.RpcError) as caught:
            client.predict(request("m", {"a": ones(1, 2), "b": np.int32([1, 2])}, signature="pair"))
        assert "must have equal 0th-dimension size" in caught.value.details()
        assert client.predict(linear("m", rows=0)).outputs["y"].tensor_shape.dim[0].size == 0


def test_parameters_of_each_model_lie_in_its_version(saved_models, tmp_path):
    batched = publish(saved_models[1], tmp_path / "batched", 1)
    (batched / "batching_params.pbtxt").write_text("max_batch_size { value: 3 }")
    publish(saved_models[1], tmp_path / "alone", 1)
    with running(
        config(*({"name": n, "base_path": tmp_path / n} for n in ("batched", "alone"))),
        tmp_path,
        enable_batching=True,
        enable_per_model_batching_parameters=True,
        max_num_load_retries=0,
    ) as started:
        with pytest.raises(grpc.RpcError, match="maximum input batch size 3"):
            started.client.predict(linear("batched", rows=4))
        assert len(started.client.predict(linear("alone", rows=2000)).outputs["y"].float_val)
        scalar = request("alone", {"x": np.float32(2)}, signature="total")
        assert started.client.predict(scalar).outputs["total"].float_val == [2.0]
        # A file that is wrong fails the load; the version before it stays.
        staged = publish(saved_models[1], tmp_path / "batched", 2, ".staged")
        (staged / "batching_params.pbtxt").write_text("max_batch_sice { value: 3 }")
        staged.rename(tmp_path / "batched" / "2")
        started.client.wait("batched", v1="AVAILABLE", v2="END")
        assert "max_batch_sice" in started.client.status("batched")[2][1]


def test_every_batch_is_in_the_metrics(queue_of, session):
    queue = queue_of(max_batch_size=4, allowed_batch_sizes=(4,))
    queue(rows(1, 2, 3), ["y"], None)
    page = queue.batcher.metrics.page()
    assert ":tensorflow:serving:batching_session:queuing_latency" in page
    assert ":tensorflow:serving:batching_session:padding_size" in page
    assert isinstance(queue, batching.Queue)
