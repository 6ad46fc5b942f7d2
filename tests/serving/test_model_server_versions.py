"""The model server's versions: on disk, in memory, by label, and through reloads of the config."""

import concurrent.futures
import contextlib
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)

from fct_tf.serving import versions
from fct_tf.serving.errors import ServingError
from fct_tf.serving.versions import State, Versions
from tests.model_servers import config, free_of, linear, publish, running, specific

Policy = FileSystemStoragePathSourceConfig.ServableVersionPolicy


def error_of(call, *args, **kwargs) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code().name, caught.value.details()


# On disk.


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


# In memory: without TensorFlow.


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


# Status, labels and reloads over gRPC.


@pytest.fixture
def place(saved_models, tmp_path):
    """Publishes versions: `place("m", 1, 2)`; odd ones multiply by 1, even ones by 2."""

    def at(name: str, *numbers: int) -> Path:
        for number in numbers:
            publish(saved_models[2 - number % 2], tmp_path / name, number)
        return tmp_path / name

    return at


def test_status_lists_every_version_ever_known_highest_first(place, tmp_path):
    base_path = place("m", 1, 2)
    with running(config({"name": "m", "base_path": base_path}), tmp_path) as started:
        client = started.client
        assert client.status("m") == {2: ("AVAILABLE", "")}
        place("m", 5)
        client.wait("m", v5="AVAILABLE", v2="END")
        seen = client.status("m")
        assert list(seen) == [5, 2]
        assert seen == {5: ("AVAILABLE", ""), 2: ("END", "")}
        assert client.status("m", 2) == {2: ("END", "")}
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "m"
        request.model_spec.version_label = "no such label"
        response = client.models.GetModelStatus(request)
        assert [one.version for one in response.model_version_status] == [5, 2]
        assert response.model_version_status[0].HasField("status")
        assert error_of(client.status, "x") == (
            "NOT_FOUND",
            "Could not find any versions of model x",
        )
        assert error_of(client.status, "") == (
            "NOT_FOUND",
            "Could not find any versions of model ",
        )
        assert error_of(client.status, "m", 9) == (
            "NOT_FOUND",
            "Could not find version 9 of model m",
        )


def test_a_reload_replaces_the_whole_config(place, tmp_path):
    first, second = place("a", 1), place("b", 3)
    model = {"name": "a", "base_path": first, "labels": {"stable": 1}}
    with running(
        config(model), tmp_path, allow_version_labels_for_unavailable_models=True
    ) as started:
        client = started.client
        response = client.reload(config({"name": "b", "base_path": second}))
        assert response.status.error_code == 0
        # The new model answers at once; the old one goes.
        assert client.predict(linear("b")).model_spec.version.value == 3
        client.wait("a", v1="END")
        assert error_of(client.predict, linear("a"))[0] == "NOT_FOUND"
        assert error_of(client.predict, linear("a", label="stable")) == (
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: stable",
        )
        assert client.status("a") == {1: ("END", "")}
        client.reload(config())
        client.wait("b", v3="END")


def test_a_reload_takes_a_new_policy_of_a_known_model(place, tmp_path):
    base_path = place("m", 1, 2, 3)
    model = {"name": "m", "base_path": base_path}
    with running(config(model), tmp_path) as started:
        client = started.client
        client.reload(config({**model, "model_version_policy": specific(1, 2)}))
        client.wait("m", v1="AVAILABLE", v2="AVAILABLE", v3="END")
        client.reload(config({**model, "model_version_policy": {"all": {}}}))
        client.wait("m", v1="AVAILABLE", v2="AVAILABLE", v3="AVAILABLE")


def test_labels_move_only_to_versions_that_serve(place, tmp_path):
    model = {
        "name": "m",
        "base_path": place("m", 1, 2),
        "model_version_policy": specific(1, 2),
    }
    refused = (
        "FAILED_PRECONDITION",
        "Request to assign label to version 3 of model m, which is not currently available for "
        "inference",
    )
    with running(config(model), tmp_path) as started:
        client = started.client
        client.wait("m", v1="AVAILABLE", v2="AVAILABLE")

        def labels(**to):
            return config({**model, "labels": to})

        def version(label):
            return client.predict(linear("m", label=label)).model_spec.version.value

        client.reload(labels(stable=1, canary=2))
        assert (version("stable"), version("canary")) == (1, 2)
        assert error_of(client.reload, labels(stable=2, next=3)) == refused
        # A refusal changes nothing, not even the labels that were fine.
        assert (version("stable"), version("canary")) == (1, 2)
        client.reload(labels(stable=2))
        assert version("stable") == 2
        assert error_of(client.predict, linear("m", label="canary")) == (
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: canary",
        )


def test_labels_ahead_of_their_version_where_that_is_allowed(place, tmp_path):
    model = {"name": "m", "base_path": place("m", 1), "model_version_policy": specific(1, 3)}
    with running(
        config({**model, "labels": {"stable": 1, "next": 3}}),
        tmp_path,
        allow_version_labels_for_unavailable_models=True,
    ) as started:
        client = started.client
        assert client.predict(linear("m", label="stable")).model_spec.version.value == 1
        assert error_of(client.predict, linear("m", label="next")) == (
            "NOT_FOUND",
            "Servable not found for request: Specific(m, 3)",
        )
        client.reload(config({**model, "labels": {"stable": 1, "next": 3, "new": 9}}))
        moved = config({**model, "labels": {"stable": 3}})
        assert error_of(client.reload, moved)[0] == "FAILED_PRECONDITION"
        place("m", 3)
        client.wait("m", v3="AVAILABLE")
        client.reload(moved)
        assert client.predict(linear("m", label="stable")).model_spec.version.value == 3


def test_any_label_ahead_of_its_version_where_that_is_forced(place, tmp_path):
    model = {"name": "m", "base_path": place("m", 1)}
    with running(
        config({**model, "labels": {"stable": 1}}),
        tmp_path,
        force_allow_any_version_labels_for_unavailable_models=True,
    ) as started:
        started.client.reload(config({**model, "labels": {"stable": 9}}))
        assert error_of(started.client.predict, linear("m", label="stable"))[0] == "NOT_FOUND"


UNSUPPORTED = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
    "currently supported"
)


def _custom() -> model_server_config_pb2.ModelServerConfig:
    message = model_server_config_pb2.ModelServerConfig()
    message.custom_model_config.SetInParent()
    return message


REFUSALS = {
    "listed twice": (
        lambda p: config({"name": "m", "base_path": p}, {"name": "m", "base_path": p}),
        "INVALID_ARGUMENT",
        "Illegal to list model m multiple times in config list",
    ),
    "relative": (
        lambda p: config({"name": "n", "base_path": "some/where"}),
        "INVALID_ARGUMENT",
        "Expected model n to have an absolute path or URI; got base_path()=some/where",
    ),
    "no base path": (
        lambda p: config({"name": "n", "base_path": ""}),
        "INVALID_ARGUMENT",
        "Expected model n to have an absolute path or URI; got base_path()=",
    ),
    "no platform": (
        lambda p: config({"name": "n", "base_path": p, "model_platform": ""}),
        "INVALID_ARGUMENT",
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
        "ModelServerConfig::model_platform, model name is n",
    ),
    "other platform": (
        lambda p: config({"name": "n", "base_path": p, "model_platform": "caffe"}),
        "INVALID_ARGUMENT",
        "Model n requests unsupported platform caffe",
    ),
    "platform changed": (
        lambda p: config({"name": "m", "base_path": p, "model_platform": "caffe"}),
        "INVALID_ARGUMENT",
        "Illegal to change a model's platform. For model m platform was tensorflow and new "
        "platform requested is caffe",
    ),
    "type and platform": (
        lambda p: config({"name": "n", "base_path": p, "model_type": 1}),
        "INVALID_ARGUMENT",
        "Illegal setting both ModelServerConfig::model_type (deprecated) and "
        "ModelServerConfig::model_platform.",
    ),
    "other type": (
        lambda p: config({"name": "n", "base_path": p, "model_type": 2, "model_platform": ""}),
        "INVALID_ARGUMENT",
        "ModelServerConfig::model_type choice 2 not supported.",
    ),
    "empty": (
        lambda p: model_server_config_pb2.ModelServerConfig(),
        "INVALID_ARGUMENT",
        UNSUPPORTED,
    ),
    "custom": (lambda p: _custom(), "INVALID_ARGUMENT", UNSUPPORTED),
    # TF Serving waits for ever on these two.
    "no version": (
        lambda p: config({"name": "n", "base_path": p.parent / "empty"}),
        "NOT_FOUND",
        "Unable to find a numerical version path for servable n at: {}/empty",
    ),
    "missing base path": (
        lambda p: config({"name": "n", "base_path": p.parent / "missing"}),
        "INVALID_ARGUMENT",
        "Could not find base path {}/missing for servable n with error",
    ),
}


@pytest.fixture(scope="module")
def reloaded(saved_models, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reload")
    (directory / "empty").mkdir()
    publish(saved_models[1], directory / "m", 1)
    with running(config({"name": "m", "base_path": directory / "m"}), directory) as started:
        yield started, directory


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_reload_changes_nothing_and_poisons_nothing(reloaded, monkeypatch, kind):
    started, directory = reloaded
    # The bounded wait for a version, shortened.
    reload = type(started.server.core).reload
    monkeypatch.setattr(reload, "__defaults__", (0.2, None))
    make, code, text = REFUSALS[kind]
    seen_code, seen = error_of(started.client.reload, make(directory / "m"))
    assert seen_code == code
    assert seen.startswith(text.format(directory))
    assert started.client.predict(linear("m")).model_spec.version.value == 1
    started.client.reload(config({"name": "m", "base_path": directory / "m"}))
    assert started.client.predict(linear("m")).model_spec.version.value == 1


def test_a_model_by_its_deprecated_type_is_served(reloaded):
    started, directory = reloaded
    model = {"name": "t", "base_path": directory / "m", "model_type": 1, "model_platform": ""}
    both = config({"name": "m", "base_path": directory / "m"}, model)
    started.client.reload(both)
    assert started.client.predict(linear("t")).model_spec.name == "t"


def test_a_version_that_appears_while_a_reload_waits_is_served(reloaded, saved_models):
    started, directory = reloaded
    models = config(
        {"name": "m", "base_path": directory / "m"},
        {"name": "late", "base_path": directory / "late"},
    )
    timer = threading.Timer(0.3, publish, (saved_models[2], directory / "late", 7))
    timer.start()
    started.client.reload(models)
    assert started.client.predict(linear("late")).model_spec.version.value == 7


def test_a_new_model_that_does_not_load_is_told(reloaded):
    started, directory = reloaded
    (directory / "broken" / "1").mkdir(parents=True)
    started.server.core._versions._max_retries = 0
    models = config(
        {"name": "m", "base_path": directory / "m"},
        {"name": "broken", "base_path": directory / "broken"},
    )
    code, text = error_of(started.client.reload, models)
    assert code == "UNKNOWN"
    assert text.startswith(
        "1 model(s) did not become available: {{name: broken version: 1 due to error: NOT_FOUND: "
    )
    assert started.client.status("broken")[1][0] == "END"
    assert started.client.predict(linear("m")).model_spec.version.value == 1


def test_a_model_that_is_still_tried_does_not_block_other_reloads(place, tmp_path):
    model = {"name": "m", "base_path": place("m", 1)}
    (tmp_path / "broken" / "1").mkdir(parents=True)
    broken = {"name": "broken", "base_path": tmp_path / "broken"}
    with running(config(model), tmp_path) as started:  # Tries again after a minute.
        message = model_management_pb2.ReloadConfigRequest(config=config(model, broken))
        waiting = started.client.models.HandleReloadConfigRequest.future(message)
        started.client.wait("broken", v1="LOADING")
        other = {"name": "other", "base_path": place("other", 2)}
        started.client.reload(config(model, other))
        assert started.client.predict(linear("other")).model_spec.version.value == 2
        # And the one that waited learns that its model is gone.
        assert waiting.exception(timeout=20).code() == grpc.StatusCode.UNKNOWN


def test_the_page_for_a_person_sees_errors_of_tries_to_come(place, tmp_path):
    base_path = place("m", 1)
    model = {"name": "m", "base_path": base_path, "labels": {"stable": 1}}
    with running(
        config(model), tmp_path, allow_version_labels_for_unavailable_models=True
    ) as started:
        (base_path / "2").mkdir()
        for _ in range(1000):
            shown = started.server.core.models()["m"]
            if shown["versions"][0]["error"]:
                break
            time.sleep(0.01)
        assert shown["labels"] == {"stable": 1}
        two, one = shown["versions"]
        assert (two["version"], two["state"]) == (2, "LOADING")
        assert "NOT_FOUND" in two["error"]
        assert one == {"version": 1, "state": "AVAILABLE", "labels": ["stable"], "error": ""}
        # TF Serving's status knows no error before the last try.
        assert started.client.status("m")[2] == ("LOADING", "")


# Swaps.


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
