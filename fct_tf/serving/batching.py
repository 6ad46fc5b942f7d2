"""Requests run together: a queue per version, signature, outputs and shape of the rows.

As TF Serving's batching session, with one difference: a batch holds rows of one shape and dtype,
and a batch that fails is run again request by request. So a request that does not fit the
others, or that the model cannot read, fails alone.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.servable import Execute


@dataclass(frozen=True)
class Parameters:
    """`BatchingParameters` of one model, the pool of threads apart."""

    max_batch_size: int = 1000
    batch_timeout_s: float = 0.0
    max_enqueued_batches: int = 10
    # Below `max_batch_size` with `enable_large_batch_splitting`: larger requests are cut.
    max_execution_batch_size: int = 1000
    allowed_batch_sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, message) -> "Parameters":
        """From a `BatchingParameters` message.

        Raises:
          ServingError: INVALID_ARGUMENT, sizes that contradict each other.
        """
        largest = message.max_batch_size.value if message.HasField("max_batch_size") else 1000
        execution = largest
        if message.enable_large_batch_splitting.value and message.HasField(
            "max_execution_batch_size"
        ):
            execution = message.max_execution_batch_size.value
        enqueued = (
            message.max_enqueued_batches.value if message.HasField("max_enqueued_batches") else 10
        )
        allowed = tuple(message.allowed_batch_sizes)
        for name, value in (
            ("max_batch_size", largest),
            ("max_enqueued_batches", enqueued),
            ("max_execution_batch_size", execution),
        ):
            if value < 1:
                raise invalid(f"{name} must be positive; was {value}")
        if execution > largest:
            raise invalid(
                f"max_execution_batch_size must not exceed max_batch_size; was {execution}, "
                f"max_batch_size {largest}"
            )
        if message.batch_timeout_micros.value < 0:
            raise invalid(
                "batch_timeout_micros must be non-negative; was "
                f"{message.batch_timeout_micros.value}"
            )
        if list(allowed) != sorted(set(allowed)) or (allowed and allowed[0] < 1):
            raise invalid("allowed_batch_sizes entries must be positive and in increasing order")
        if allowed and allowed[-1] != execution:
            size = "max_execution_batch_size" if execution < largest else "max_batch_size"
            raise invalid(
                f"Last entry in allowed_batch_sizes must match {size}; last entry was "
                f"{allowed[-1]}; expected {execution}"
            )
        timeout_s = message.batch_timeout_micros.value / 1e6
        return cls(largest, timeout_s, enqueued, execution, allowed)


@dataclass
class _Task:
    """One request, or a piece of one."""

    feeds: dict[str, np.ndarray]
    rows: int
    deadline: float | None
    enqueued: float
    done: threading.Event = field(default_factory=threading.Event)
    outputs: list[np.ndarray] = field(default_factory=list)
    error: Exception | None = None


@dataclass
class _Batch:
    """Tasks with rows of one shape, for one queue."""

    queue: "Queue"
    key: tuple
    fetches: Sequence[str]
    ready_at: float
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0


class Batcher:
    """The threads that run batches, of all models."""

    def __init__(self, num_batch_threads: int, metrics: Any):
        self.metrics = metrics
        self._lock = threading.Condition()
        self._open: dict[tuple, _Batch] = {}
        self._full: deque[_Batch] = deque()
        self._waiting: Counter = Counter()  # Batches of each queue and set of outputs.
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Runs what waits, then ends the threads."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()

    def add(self, queue: "Queue", fetches: Sequence[str], tasks: list[_Task]) -> None:
        """Enqueues the pieces of one request: all of them, or none.

        Raises:
          ServingError: UNAVAILABLE, the queue is full.
        """
        parameters = queue.parameters
        limit = parameters.max_execution_batch_size
        kind = (id(queue), tuple(tasks[0].feeds), tuple(fetches))
        shapes = tuple((v.dtype, v.shape[1:]) for v in tasks[0].feeds.values())
        key = (kind, shapes)
        with self._lock:
            tail = self._open.get(key)
            first_fits = tail is not None and tail.rows + tasks[0].rows <= limit
            waiting = self._waiting[kind]
            if waiting + len(tasks) - first_fits > parameters.max_enqueued_batches:
                raise ServingError(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    + (
                        f"currently {waiting} batches enqueued and max_enqueued_batches is "
                        f"{parameters.max_enqueued_batches}"
                        if len(tasks) == 1
                        else f"task size is {sum(task.rows for task in tasks)} but scheduling "
                        "capacity is only "
                        f"{(parameters.max_enqueued_batches - waiting) * limit} "
                        f"(num_enqueued_batches={waiting}, "
                        f"max_enqueued_batches={parameters.max_enqueued_batches}, "
                        f"open_batch_size={tail.rows if tail else 0}, "
                        f"max_execution_batch_size={limit})"
                    ),
                )
            for task in tasks:
                self._put(queue, key, kind, fetches, task, limit)

    def _put(self, queue, key, kind, fetches, task: _Task, limit: int) -> None:
        """Puts a task into the open batch. Threads are woken for news only: a batch, or its end."""
        batch = self._open.get(key)
        if batch is not None and batch.rows + task.rows > limit:
            self._full.append(self._open.pop(key))
            self._lock.notify()
            batch = None
        if batch is None:
            ready_at = task.enqueued + queue.parameters.batch_timeout_s
            batch = self._open[key] = _Batch(queue, kind, fetches, ready_at)
            self._waiting[kind] += 1
            self._lock.notify()
        batch.tasks.append(task)
        batch.rows += task.rows
        if batch.rows >= limit:
            self._full.append(self._open.pop(key))
            self._lock.notify()

    def _work(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            try:
                self._run(batch)
            except Exception as error:  # A thread of the pool must not end.
                for task in batch.tasks:
                    task.error = task.error or error
            finally:
                for task in batch.tasks:
                    task.done.set()

    def _next(self) -> _Batch | None:
        """The next batch that is full or has waited long enough; None at the end."""
        with self._lock:
            while True:
                batch = None
                wait_s = None
                if self._full:
                    batch = self._full.popleft()
                elif self._open:
                    key = min(self._open, key=lambda k: self._open[k].ready_at)
                    wait_s = self._open[key].ready_at - time.monotonic()
                    if wait_s <= 0 or self._closed:
                        batch = self._open.pop(key)
                if batch is not None:
                    self._waiting[batch.key] -= 1
                    if not self._waiting[batch.key]:
                        del self._waiting[batch.key]
                    if self._full or self._open:
                        self._lock.notify()  # Another thread has the next one to wait for.
                    return batch
                if self._closed:
                    return None
                self._lock.wait(wait_s)

    def _run(self, batch: _Batch) -> None:
        now = time.monotonic()
        live = []
        for task in batch.tasks:
            self.metrics.queuing(now - task.enqueued)
            if task.deadline is not None and task.deadline <= now:
                task.error = ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "Run() timeout exceeded while waiting in batching queue",
                )
            else:
                live.append(task)
        if not live:
            return
        try:
            self._run_together(batch, live)
        except ServingError as error:
            if len(live) == 1 or error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
                for task in live:
                    task.error = error
                return
            for task in live:  # One of them is to blame: the others do not pay for it.
                try:
                    self._run_together(batch, [task])
                except ServingError as its_own:
                    task.error = its_own

    def _run_together(self, batch: _Batch, tasks: list[_Task]) -> None:
        rows = sum(task.rows for task in tasks)
        allowed = batch.queue.parameters.allowed_batch_sizes
        size = next((size for size in allowed if size >= rows), rows)
        self.metrics.padding(size - rows)
        self.metrics.batch_size(size)
        feeds = {}
        for name in tasks[0].feeds:
            parts = [task.feeds[name] for task in tasks]
            parts += [parts[-1][:1]] * (size - rows)
            feeds[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        deadlines = [task.deadline for task in tasks if task.deadline is not None]
        timeout_s = None
        if len(deadlines) == len(tasks):
            timeout_s = max(deadlines) - time.monotonic()
        outputs = batch.queue.run_session(feeds, batch.fetches, timeout_s)
        for array in outputs:
            if array.ndim == 0:
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions"
                )
            if array.shape[0] != size:
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors",
                )
        start = 0
        for task in tasks:
            task.outputs = [array[start : start + task.rows] for array in outputs]
            start += task.rows


class Queue:
    """The batches of one loaded version; stands in for its `execute`."""

    def __init__(self, batcher: Batcher, parameters: Parameters, run_session: Execute):
        self.batcher = batcher
        self.parameters = parameters
        self.run_session = run_session

    def __call__(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_s: float | None
    ) -> list[np.ndarray]:
        """Runs a request together with others like it. Raises ServingError."""
        rows = _rows(feeds)
        if rows > self.parameters.max_batch_size:
            raise invalid(
                f"Task size {rows} is larger than maximum input batch size "
                f"{self.parameters.max_batch_size}"
            )
        if rows == 0:  # Nothing to batch; TF Serving lets such a request wait for ever.
            return self.run_session(feeds, fetches, timeout_s)
        now = time.monotonic()
        deadline = None if timeout_s is None else now + timeout_s
        step = self.parameters.max_execution_batch_size
        ordered = dict(sorted(feeds.items()))
        tasks = [
            _Task(
                {name: array[start : start + step] for name, array in ordered.items()}
                if rows > step
                else ordered,
                min(step, rows - start),
                deadline,
                now,
            )
            for start in range(0, rows, step)
        ]
        self.batcher.add(self, fetches, tasks)
        for task in tasks:
            task.done.wait()
        for task in tasks:
            if task.error is not None:
                raise task.error
        if len(tasks) == 1:
            return tasks[0].outputs
        return [
            np.concatenate(parts) for parts in zip(*(task.outputs for task in tasks), strict=True)
        ]


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    """The first dimension that all inputs share; 0 for a signature without inputs."""
    sizes = set()
    for array in feeds.values():
        if array.ndim == 0:
            raise invalid("Batching Run() input tensors must have at least one dimension")
        sizes.add(array.shape[0])
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop() if sizes else 0
