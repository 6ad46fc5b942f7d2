"""Counters and histograms of the server, as TF Serving names them, and its Prometheus page.

Latencies are in microseconds there. Neither the version nor the signature of a model is a label.
"""

import bisect
import itertools
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_PREFIX = ":tensorflow:serving:"


def _exponential(first: float, growth: float, count: int) -> list[float]:
    factors = itertools.repeat(growth, count - 1)
    return list(itertools.accumulate(factors, lambda limit, factor: limit * factor, initial=first))


LATENCY_LIMITS = _exponential(10, 1.8, 33)
_SIZE_LIMITS = _exponential(1, 2, 14)

# Names of models come from clients: past so many series a new one is counted as `(other)`.
_MOST_SERIES = 1000
_RECENT_REQUESTS = 1000
_RECENT_S = 300.0


class Series(NamedTuple):
    """A histogram of the page."""

    name: str
    labels: tuple[str, ...]
    limits: list[float]


REQUEST_LATENCY = Series("request_latency", ("model_name", "API", "entrypoint"), LATENCY_LIMITS)
RUNTIME_LATENCY = Series("runtime_latency", ("model_name", "API", "runtime"), LATENCY_LIMITS)
QUEUING_LATENCY = Series("batching_session:queuing_latency", (), LATENCY_LIMITS)
PADDING_SIZE = Series("batching_session:padding_size", (), _SIZE_LIMITS)
PROCESSED_BATCH_SIZE = Series("batching_session:processed_batch_size", (), _SIZE_LIMITS)
WARMUP_LATENCY = Series("model_warmup_latency", ("model_path", "status"), LATENCY_LIMITS)
_HISTOGRAMS = (
    PADDING_SIZE,
    PROCESSED_BATCH_SIZE,
    QUEUING_LATENCY,
    WARMUP_LATENCY,
    REQUEST_LATENCY,
    RUNTIME_LATENCY,
)


class Recent(NamedTuple):
    """Latencies of the last answers of a model, of at most five minutes; in milliseconds."""

    answers: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass
class _Histogram:
    counts: list[int]
    total: float = 0.0


@dataclass
class _State:
    requests: Counter = field(default_factory=Counter)
    histograms: dict[str, dict[tuple[str, ...], _Histogram]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    recent: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)


class Metrics:
    """What the server has counted since it started. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = _State()

    def request(self, model: str, status: str) -> None:
        """Counts an answer; `status` is the name of its code: OK, INVALID_ARGUMENT, ..."""
        with self._lock:
            requests = self._state.requests
            key = (model, status)
            if key not in requests and len(requests) >= _MOST_SERIES:
                key = ("(other)", status)
            requests[key] += 1

    def latency(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Time of a request that succeeded, from its first byte to its answer.

        Args:
          model: its name.
          api: `Predict` for gRPC, `predict` for REST, likewise the others.
          entrypoint: `GRPC` or `REST`.
          seconds: the time.
        """
        self._add(REQUEST_LATENCY, (model, api, entrypoint), seconds * 1e6)
        with self._lock:
            recent = self._state.recent
            if model in recent or len(recent) < _MOST_SERIES:
                times = recent.setdefault(model, deque(maxlen=_RECENT_REQUESTS))
                times.append((time.monotonic(), seconds))

    def runtime(self, model: str, api: str, seconds: float) -> None:
        """Time in `Session.run`."""
        self._add(RUNTIME_LATENCY, (model, api, "TF1"), seconds * 1e6)

    def queuing(self, seconds: float) -> None:
        """Time that a request waited for its batch."""
        self._add(QUEUING_LATENCY, (), seconds * 1e6)

    def padding(self, rows: int) -> None:
        """Rows that were added to a batch."""
        self._add(PADDING_SIZE, (), rows)

    def batch_size(self, rows: int) -> None:
        """Rows of a batch that was run."""
        self._add(PROCESSED_BATCH_SIZE, (), rows)

    def warmup(self, path: str, status: str, seconds: float) -> None:
        """Time of a version's warm-up."""
        self._add(WARMUP_LATENCY, (path, status), seconds * 1e6)

    def recent(self, model: str) -> Recent | None:
        """Of the last five minutes and 1000 answers; None where there was none."""
        now = time.monotonic()
        with self._lock:
            kept = [at for at in self._state.recent.get(model, ()) if now - at[0] <= _RECENT_S]
        if not kept:
            return None
        p50, p95, p99 = np.percentile([seconds * 1e3 for _, seconds in kept], [50, 95, 99])
        per_second = len(kept) / max(now - kept[0][0], 1.0)
        return Recent(len(kept), per_second, float(p50), float(p95), float(p99))

    def answers(self, model: str) -> dict[str, int]:
        """Answers of a model since the start, by the name of their status."""
        with self._lock:
            requests = self._state.requests.items()
            return {status: count for (name, status), count in requests if name == model}

    def page(self) -> str:
        """The page that Prometheus reads."""
        with self._lock:
            lines = [
                *_counter_lines("request_count", ("model_name", "status"), self._state.requests)
            ]
            for series in _HISTOGRAMS:
                lines += _histogram_lines(series, self._state.histograms[series.name])
        return "\n".join(lines) + "\n"

    def _add(self, series: Series, labels: tuple[str, ...], value: float) -> None:
        with self._lock:
            histograms = self._state.histograms[series.name]
            if labels not in histograms and len(histograms) >= _MOST_SERIES:
                labels = ("(other)", *labels[1:])
            if labels not in histograms:
                histograms[labels] = _Histogram([0] * (len(series.limits) + 1))
            histogram = histograms[labels]
            histogram.counts[bisect.bisect_left(series.limits, value)] += 1
            histogram.total += value


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> list[str]:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return [f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True)]


def _counter_lines(name: str, labels: tuple[str, ...], counts: Counter) -> list[str]:
    lines = [f"# TYPE {_PREFIX}{name} counter"]
    for values, count in sorted(counts.items()):
        lines.append(f"{_PREFIX}{name}{{{','.join(_labels(labels, values))}}} {count}")
    return lines


def _histogram_lines(series: Series, histograms: dict[tuple[str, ...], _Histogram]) -> list[str]:
    name = _PREFIX + series.name
    lines = [f"# TYPE {name} histogram"]
    limits = [*(f"{limit:g}" for limit in series.limits), "+Inf"]
    for values, histogram in sorted(histograms.items()):
        labels = _labels(series.labels, values)
        counts = itertools.accumulate(histogram.counts)
        for limit, count in zip(limits, counts, strict=True):
            bucket = ",".join([*labels, f'le="{limit}"'])
            lines.append(f"{name}_bucket{{{bucket}}} {count}")
        lines.append(f"{name}_sum{{{','.join(labels)}}} {histogram.total!r}")
        lines.append(f"{name}_count{{{','.join(labels)}}} {sum(histogram.counts)}")
    return lines
