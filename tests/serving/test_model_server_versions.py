"""Versions on the disk and in memory: which are wanted, loaded, kept and unloaded."""

import concurrent.futures
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tensorflow_serving.config.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)

from fct_tf.serving import versions
from fct_tf.serving.errors import ServingError
from fct_tf.serving.versions import State, Versions

Policy = FileSystemStoragePathSourceConfig.ServableVersionPolicy


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["1", "2", "10"], {1: "1", 2: "2", 10: "10"}),
        (["00000007"], {7: "00000007"}),
        (["007", "7"], {7: "7"}),
        ([".tmp-3", "3.tmp", "v3", "3a", "latest", "3 "], {}),
        (["99999999999999999999"], {}),
        ([str(2**63 - 1)], {2**63 - 1: str(2**63 - 1)}),
        ([str(2**63)], {}),
    ],
)
def test_names_that_are_whole_numbers_are_versions(tmp_path, names, found):
    for name in names:
        (tmp_path / name).mkdir()
    expected = {number: f"{tmp_path}/{name}" for number, name in found.items()}
    assert versions.on_disk("m", str(tmp_path)) == expected


@pytest.mark.parametrize("missing", ["/no/such/place", "file:///no/such/place"])
def test_a_missing_base_path_is_an_error_and_not_no_versions(missing):
    with pytest.raises(ServingError, match=f"Could not find base path {missing} for servable m"):
        versions.on_disk("m", missing)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ({}, {9}),
        ({"latest": {}}, {9}),
        ({"latest": {"num_versions": 0}}, {9}),
        ({"latest": {"num_versions": 2}}, {9, 5}),
        ({"latest": {"num_versions": 99}}, {9, 5, 1}),
        ({"all": {}}, {9, 5, 1}),
        ({"specific": {"versions": [1, 5, 7]}}, {1, 5}),
        ({"specific": {}}, set()),
    ],
)
def test_policies(policy, chosen):
    found = {1: "a", 5: "b", 9: "c"}
    assert versions.wanted(found, Policy(**policy)) == {n: found[n] for n in chosen}


class Fake:
    """Stands for a loaded version."""

    def __init__(self, number: int):
        self.version = number
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


class Loads:
    """Loads that the test lets through, or makes fail."""

    def __init__(self):
        self.started: list[int] = []
        self.loaded: dict[int, Fake] = {}
        self.broken: dict[int, str] = {}
        self.gates: dict[int, threading.Event] = {}

    def __call__(self, name, version, path):
        self.started.append(version)
        if version in self.gates:
            assert self.gates[version].wait(20)
        if version in self.broken:
            raise ServingError(grpc.StatusCode.DATA_LOSS, self.broken[version])
        self.loaded[version] = Fake(version)
        return self.loaded[version]


@pytest.fixture
def loads():
    return Loads()


@pytest.fixture
def manager(loads):
    made = Versions(loads, max_num_load_retries=2, load_retry_interval_s=0.02)
    yield made
    for gate in loads.gates.values():
        gate.set()
    made.close()


def want(manager, *numbers: int) -> None:
    manager.want("m", {number: f"/m/{number}" for number in numbers})


def wait(manager, **expected: State) -> None:
    wanted = {int(key[1:]): state for key, state in expected.items()}
    for _ in range(1000):
        seen = {number: state for number, (state, _) in manager.states("m").items()}
        if all(seen.get(number) == state for number, state in wanted.items()):
            return
        time.sleep(0.005)
    raise AssertionError(f"{seen}, not {wanted}")


def latest(manager) -> int:
    with manager.use("m") as servable:
        return servable.version


def test_the_new_one_is_loaded_before_the_old_one_goes(manager, loads):
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    loads.gates[2] = threading.Event()
    want(manager, 2)
    wait(manager, v1=State.AVAILABLE, v2=State.LOADING)
    assert latest(manager) == 1
    loads.gates[2].set()
    wait(manager, v1=State.END, v2=State.AVAILABLE)
    assert latest(manager) == 2
    assert loads.loaded[1].closed.is_set()


def test_removing_the_latest_returns_to_the_one_before(manager, loads):
    want(manager, 2)
    wait(manager, v2=State.AVAILABLE)
    loads.gates[1] = threading.Event()
    want(manager, 1)
    wait(manager, v1=State.LOADING)
    assert latest(manager) == 2
    loads.gates[1].set()
    wait(manager, v2=State.END)
    assert latest(manager) == 1


def test_no_version_left_unloads_the_model(manager):
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    want(manager)
    wait(manager, v1=State.END)
    with pytest.raises(ServingError, match=r"NOT_FOUND: .* request: Latest\(m\)"):
        latest(manager)


def test_a_version_in_use_stays_until_the_request_is_done(manager, loads):
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    with manager.use("m", 1) as servable:
        want(manager, 2)
        wait(manager, v1=State.UNLOADING, v2=State.AVAILABLE)
        with pytest.raises(ServingError, match=r"Specific\(m, 1\)"), manager.use("m", 1):
            pass
        assert not servable.closed.wait(0.05)
    assert servable.closed.wait(5)
    wait(manager, v1=State.END)


def test_one_wanted_again_while_it_goes_is_loaded_again(manager, loads):
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    with manager.use("m", 1):
        want(manager, 2)
        wait(manager, v1=State.UNLOADING, v2=State.AVAILABLE)
        want(manager, 1, 2)
    wait(manager, v1=State.AVAILABLE, v2=State.AVAILABLE)
    assert loads.started == [1, 2, 1]


def test_waiting_for_one_wanted_again_while_it_goes(manager):
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    with contextlib.ExitStack() as request, ThreadPoolExecutor(1) as pool:
        request.enter_context(manager.use("m", 1))
        want(manager)
        want(manager, 1)
        waiting = pool.submit(manager.wait_available, ["m"], threading.Event())
        assert not concurrent.futures.wait([waiting], 0.3).done
        request.close()
        assert waiting.result(5) == {}
    assert latest(manager) == 1


def test_a_broken_version_leaves_the_old_one_and_is_tried_again(manager, loads):
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    loads.broken[2] = "no such thing"
    want(manager, 2)
    wait(manager, v2=State.END, v1=State.AVAILABLE)
    assert loads.started == [1, 2, 2, 2]  # Two retries.
    state, error = manager.states("m")[2]
    assert (error.code, error.message) == (grpc.StatusCode.DATA_LOSS, "no such thing")
    assert latest(manager) == 1
    # It stays failed, however often it is seen.
    loads.broken.clear()
    want(manager, 2)
    want(manager, 2)
    assert loads.started == [1, 2, 2, 2]
    # Until its directory goes away and comes back.
    want(manager, 1)
    want(manager, 2)
    wait(manager, v2=State.AVAILABLE, v1=State.END)


def test_a_broken_version_does_not_stop_the_others(loads):
    # With TF Serving's default of no load threads of its own, it would for five minutes.
    manager = Versions(loads, load_retry_interval_s=60)
    loads.broken[3] = "broken"
    want(manager, 3)
    for _ in range(1000):
        if manager.last_errors("m"):
            break
        time.sleep(0.005)
    want(manager, 3, 4)
    wait(manager, v3=State.LOADING, v4=State.AVAILABLE)
    assert manager.last_errors("m")[3].message == "broken"
    want(manager, 4)
    wait(manager, v3=State.END)  # Gone from disk: no more tries.
    manager.close()
    assert loads.loaded[4].closed.is_set()


def test_a_bug_of_the_loader_is_a_failed_load(manager, loads):
    def load(name, version, path):
        raise KeyError("x")

    broken = Versions(load, max_num_load_retries=0)
    broken.want("m", {1: "/m/1"})
    wait(broken, v1=State.END)
    assert broken.states("m")[1][1].code == grpc.StatusCode.INTERNAL
    broken.close()


def test_closing_waits_for_requests(loads):
    manager = Versions(loads)
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    entered, leave = threading.Event(), threading.Event()

    def use():
        with manager.use("m"):
            entered.set()
            leave.wait(20)

    user = threading.Thread(target=use)
    user.start()
    entered.wait(20)
    closing = threading.Thread(target=manager.close)
    closing.start()
    assert not loads.loaded[1].closed.wait(0.05)
    leave.set()
    closing.join(20)
    user.join(20)
    assert loads.loaded[1].closed.is_set()


def test_closing_cancels_what_does_not_end(loads):
    manager = Versions(loads)
    want(manager, 1)
    wait(manager, v1=State.AVAILABLE)
    with manager.use("m") as servable:
        manager.close(0.05)
        assert servable.closed.is_set()
    assert manager.states("m")[1][0] == State.END
