"""Versions that are swapped under load, and broken ones beside those that serve."""

import gc
import threading
import time

import grpc
import pytest
import tensorflow as tf

from tests.model_servers import config, free_of, linear, publish, running, specific

BREAKAGE = {
    "no variables": ("variables",),
    "no pb": ("saved_model.pb",),
    "index only": ("variables/variables.data-00000-of-00001",),
}


@pytest.mark.parametrize("kind", [*BREAKAGE, "truncated pb", "empty", "a file"])
def test_a_broken_version_beside_it_changes_nothing(place, saved_models, tmp_path, kind):
    base_path = place("m", 1)
    with running(
        config({"name": "m", "base_path": base_path}), tmp_path, max_num_load_retries=0
    ) as started:
        staged = base_path / ".broken"
        if kind == "a file":
            staged.write_text("no directory")
        elif kind == "empty":
            staged.mkdir()
        else:
            staged = publish(saved_models[2], base_path, 2, ".broken")
            free_of(staged, *BREAKAGE.get(kind, ()))
        if kind == "truncated pb":
            whole = (staged / "saved_model.pb").read_bytes()
            (staged / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
        staged.rename(base_path / "2")
        started.client.wait("m", v2="END")
        assert started.client.status("m")[1] == ("AVAILABLE", "")
        assert started.client.status("m")[2][1]
        response = started.client.predict(linear("m"))
        assert response.model_spec.version.value == 1
        # A good one after it is taken.
        publish(saved_models[1], base_path, 3)
        started.client.wait("m", v3="AVAILABLE", v1="END")


def test_a_missing_base_path_keeps_what_is_loaded(place, tmp_path):
    base_path = place("m", 1)
    with running(config({"name": "m", "base_path": base_path}), tmp_path) as started:
        base_path.rename(tmp_path / "away")
        time.sleep(0.3)  # Several polls.
        assert started.client.predict(linear("m")).model_spec.version.value == 1
        (tmp_path / "away").rename(base_path)
        free_of(base_path, "1")
        started.client.wait("m", v1="END")


def test_hot_swaps_under_load_fail_no_request_and_mix_no_versions(place, saved_models, tmp_path):
    base_path = place("m", 1)
    model = {"name": "m", "base_path": base_path}

    def step(*loaded: int, **labels: int):
        return config({**model, "model_version_policy": specific(*loaded), "labels": labels})

    with running(
        step(1, stable=1),
        tmp_path,
        allow_version_labels_for_unavailable_models=True,
        num_load_threads=2,
    ) as started:
        stop = threading.Event()
        failures: list = []
        answers: list[tuple[str, int]] = []

        def send(number: int) -> None:
            label = None if number % 2 else "stable"
            message = linear("m", rows=1 + number, label=label)
            while not stop.is_set():
                try:
                    response = started.client.predict(message)
                except grpc.RpcError as error:
                    failures.append((error.code(), error.details()))
                    return
                version = response.model_spec.version.value
                factor = 2.0 - version % 2
                values = {name: set(proto.float_val) for name, proto in response.outputs.items()}
                if values != {"factor": {factor}, "y": {3 * factor}}:
                    failures.append((version, values))
                answers.append((label or "latest", version))

        senders = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for sender in senders:
            sender.start()
        client = started.client
        publish(saved_models[2], base_path, 2)
        broken = publish(saved_models[1], base_path, 3, ".half-written")
        free_of(broken, "variables")
        broken.rename(base_path / "3")
        client.reload(step(1, 2, 3, stable=1))  # Publish; a broken one beside it.
        client.wait("m", v2="AVAILABLE")
        client.reload(step(1, 2, stable=1, canary=2))
        assert client.predict(linear("m", label="canary")).model_spec.version.value == 2
        time.sleep(0.2)
        client.reload(step(1, 2, stable=2, canary=2))  # Promote.
        time.sleep(0.2)
        client.reload(step(1, 2, stable=1))  # Roll back: no load.
        time.sleep(0.2)
        client.reload(step(1, 2, stable=2))
        client.reload(step(2, stable=2))  # Drop the old one.
        client.wait("m", v1="END")
        time.sleep(0.2)
        stop.set()
        for sender in senders:
            sender.join(20)
        assert not failures
        assert {version for label, version in answers if label == "stable"} == {1, 2}
        assert {version for label, version in answers if label == "latest"} == {1, 2}


@pytest.mark.slow
def test_memory_is_flat_over_loads_and_unloads(place, saved_models, tmp_path):
    import psutil

    base_path = place("m", 1)
    with running(config({"name": "m", "base_path": base_path}), tmp_path) as started:

        def swap(version: int) -> float:
            place("m", version)
            started.client.wait("m", **{f"v{version}": "AVAILABLE", f"v{version - 1}": "END"})
            free_of(base_path, str(version - 1))
            started.client.predict(linear("m"))
            gc.collect()
            return psutil.Process().memory_info().rss / 2**20

        for version in range(2, 12):
            warm = swap(version)
        graphs = _graphs()
        for version in range(12, 32):
            after = swap(version)
        assert _graphs() <= graphs
        assert after < warm * 1.10


def _graphs() -> int:
    """Graphs alive in this process: those of unloaded versions must not be."""
    return sum(isinstance(thing, tf.Graph) for thing in gc.get_objects())
