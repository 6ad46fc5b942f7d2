"""Status, labels and reloads of the configuration, over gRPC."""

import threading
import time

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests.model_servers import config, linear, publish, running, specific


def error_of(call, *args, **kwargs) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code().name, caught.value.details()


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
