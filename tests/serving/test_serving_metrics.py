"""Metrics of the model server, as TF Serving's page for Prometheus has them."""

import threading

import pytest

from fct_tf.serving import metrics as metrics_module
from fct_tf.serving.metrics import Metrics

PREFIX = ":tensorflow:serving:"


def lines_of(metrics: Metrics, name: str) -> list[str]:
    return [line for line in metrics.page().splitlines() if line.startswith(PREFIX + name)]


def test_every_metric_is_on_the_page_from_the_start():
    page = Metrics().page()
    kinds = {
        "request_count": "counter",
        "request_latency": "histogram",
        "runtime_latency": "histogram",
        "batching_session:queuing_latency": "histogram",
        "batching_session:padding_size": "histogram",
        "batching_session:processed_batch_size": "histogram",
        "model_warmup_latency": "histogram",
    }
    assert sorted(page.splitlines()) == sorted(
        f"# TYPE {PREFIX}{name} {kind}" for name, kind in kinds.items()
    )
    assert page.endswith("\n")


def test_requests_are_counted_by_model_and_status():
    metrics = Metrics()
    for model, status in (("a", "OK"), ("a", "OK"), ("a", "INVALID_ARGUMENT"), ('"\\\n', "OK")):
        metrics.request(model, status)
    assert lines_of(metrics, "request_count") == [
        f'{PREFIX}request_count{{model_name="\\"\\\\\\n",status="OK"}} 1',
        f'{PREFIX}request_count{{model_name="a",status="INVALID_ARGUMENT"}} 1',
        f'{PREFIX}request_count{{model_name="a",status="OK"}} 2',
    ]
    assert metrics.answers("a") == {"OK": 2, "INVALID_ARGUMENT": 1}
    assert metrics.answers("b") == {}


@pytest.mark.parametrize(
    ("add", "name", "labels"),
    [
        (
            lambda m, s: m.latency("a", "predict", "REST", s),
            "request_latency",
            'model_name="a",API="predict",entrypoint="REST"',
        ),
        (
            lambda m, s: m.latency("a", "Predict", "GRPC", s),
            "request_latency",
            'model_name="a",API="Predict",entrypoint="GRPC"',
        ),
        (
            lambda m, s: m.runtime("a", "Predict", s),
            "runtime_latency",
            'model_name="a",API="Predict",runtime="TF1"',
        ),
        (
            lambda m, s: m.warmup("/m/1", "OK", s),
            "model_warmup_latency",
            'model_path="/m/1",status="OK"',
        ),
        (lambda m, s: m.queuing(s), "batching_session:queuing_latency", ""),
    ],
)
def test_latencies_in_microseconds(add, name, labels):
    metrics = Metrics()
    for seconds in (5e-6, 15e-6, 25e-6, 3600.0):
        add(metrics, seconds)
    lines = lines_of(metrics, name)
    buckets = [line for line in lines if "_bucket{" in line]
    # 33 limits from 10 by 1.8, and what is above them.
    assert len(buckets) == 34
    comma = "," if labels else ""
    expected = [("10", 1), ("18", 2), ("32.4", 3), ("58.32", 3), ("104.976", 3)]
    assert buckets[:5] == [
        f'{PREFIX}{name}_bucket{{{labels}{comma}le="{limit}"}} {count}' for limit, count in expected
    ]
    assert buckets[-2].startswith(f'{PREFIX}{name}_bucket{{{labels}{comma}le="1.47')
    assert buckets[-2].endswith(" 3")
    assert buckets[-1] == f'{PREFIX}{name}_bucket{{{labels}{comma}le="+Inf"}} 4'
    total, count = lines[-2:]
    assert count == f"{PREFIX}{name}_count{{{labels}}} 4"
    assert total.startswith(f"{PREFIX}{name}_sum{{{labels}}} ")
    assert float(total.split()[-1]) == pytest.approx(3.6e9 + 45)


def test_sizes_of_batches():
    metrics = Metrics()
    metrics.padding(0)
    metrics.batch_size(128)
    padding = lines_of(metrics, "batching_session:padding_size")
    assert padding[0] == f'{PREFIX}batching_session:padding_size_bucket{{le="1"}} 1'
    sizes = lines_of(metrics, "batching_session:processed_batch_size")
    name = f"{PREFIX}batching_session:processed_batch_size_bucket"
    assert f'{name}{{le="64"}} 0' in sizes
    assert f'{name}{{le="128"}} 1' in sizes


def test_names_that_clients_make_up_do_not_fill_the_memory():
    metrics = Metrics()
    for i in range(3000):
        metrics.request(f"model {i}", "NOT_FOUND")
        metrics.latency(f"model {i}", "predict", "REST", 0.1)
    assert metrics.page().count("\n") < 40_000
    assert metrics.answers("(other)") == {"NOT_FOUND": 2000}


def test_recent_latencies(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: now[0])
    metrics = Metrics()
    assert metrics.recent("a") is None
    metrics.latency("a", "predict", "REST", 9.0)
    now[0] += 301
    for i in range(100):
        now[0] += 0.1
        metrics.latency("a", "predict", "REST", (i + 1) / 1000)
    recent = metrics.recent("a")
    assert recent.answers == 100
    assert recent.p50_ms == pytest.approx(50.5)
    assert recent.p99_ms == pytest.approx(99.01)
    assert recent.per_second == pytest.approx(10, rel=0.02)
    now[0] += 400
    assert metrics.recent("a") is None


def test_threads_lose_nothing():
    metrics = Metrics()

    def count() -> None:
        for _ in range(2000):
            metrics.request("a", "OK")
            metrics.queuing(1e-6)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.answers("a") == {"OK": 8000}
    assert lines_of(metrics, "batching_session:queuing_latency")[-1].endswith(" 8000")
