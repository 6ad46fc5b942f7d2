"""The model server as a process: flags, start, health, the polled config file, SIGTERM."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fct_tf import model_server
from fct_tf.common.errors import InputError
from fct_tf.serving import server
from tests.conftest import ROOT
from tests.model_servers import (
    Client,
    config,
    flags,
    linear,
    ones,
    publish,
    request,
    running,
    specific,
)

# Flags and starts that fail: one line, status 2.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --model_base_path, or --model_config_file"),
        (
            ["--model_base_path=/m", "--batching_parameters_file=x"],
            "of no use without --enable_batching",
        ),
        (["--model_base_path=/m", "--port=81", "--rest_api_port=81"], "--rest_api_port=81"),
        (
            [
                "--model_base_path=/m",
                "--tensorflow_session_parallelism=2",
                "--tensorflow_intra_op_parallelism=2",
            ],
            "not both",
        ),
        (["--model_base_path=/m", "--port=-5"], "--port"),
        (["--model_base_path=/m", "--port=65536"], "--port=65536"),
        (["--model_base_path=/m", "--rest_api_port=70000"], "--rest_api_port=70000"),
        (["--model_base_path=/m", "--prot=8500"], "prot"),
        (["--model_config_file=/no/such"], "/no/such: No such file"),
        (["--model_base_path=some/where"], "to have an absolute path or URI"),
        (["--model_base_path=/no/such", "--startup_wait_seconds=0"], "Could not find base path"),
        (["--model_base_path=/m", "--monitoring_config_file=/no/such"], "/no/such: No such"),
        (["--model_base_path=/m", "--ssl_config_file=/no/such"], "/no/such: No such file"),
        (["--model_base_path=/m", "--grpc_channel_arguments=a"], "'a' is not key=value"),
    ],
)
def test_wrong_flags_are_one_line(run_door, capsys, arguments, told):
    assert run_door(model_server, *arguments) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert output.startswith("error: ")
    assert told in output


def test_the_help_says_what_it_is_for(run_door, capsys):
    assert run_door(model_server, "--help") == 0
    output = capsys.readouterr().out
    assert "development and small deployments" in output
    for name in (
        "port",
        "rest_api_port",
        "model_config_file",
        "enable_batching",
        "allow_version_labels_for_unavailable_models",
        "model_config_file_poll_wait_seconds",
        "enable_grpc_healthcheck_service",
        "max_request_bytes",
    ):
        assert f"--{name}:" in output


def test_a_model_that_does_not_load_ends_the_start(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        server.start(
            flags(
                model_base_path=str(tmp_path / "m"),
                max_num_load_retries=1,
                load_retry_interval_micros=1000,
            )
        )
    assert "1 model(s) did not become available: {{name: default version: 1 due to error" in str(
        caught.value
    )


def test_labels_in_the_first_config_end_the_start_unless_allowed(saved_models, tmp_path):
    publish(saved_models[1], tmp_path / "m", 1)
    models = config({"name": "m", "base_path": tmp_path / "m", "labels": {"stable": 1}})
    with pytest.raises(InputError, match="FAILED_PRECONDITION: Request to assign label"):
        with running(models, tmp_path):
            pass
    with running(models, tmp_path, allow_version_labels_for_unavailable_models=True) as started:
        assert started.client.predict(linear("m", label="stable")).model_spec.version.value == 1


def test_the_ports_open_when_every_model_has_a_version(saved_models, tmp_path):
    stop = threading.Event()
    (tmp_path / "m").mkdir()
    values = flags(model_base_path=str(tmp_path / "m"), model_name="m")
    started: list = []
    starter = threading.Thread(target=lambda: started.append(server.start(values, stop)))
    starter.start()
    starter.join(0.3)
    assert starter.is_alive()  # Waits, and says so in the log.
    publish(saved_models[1], tmp_path / "m", 4)
    starter.join(20)
    client = Client(started[0].grpc.port)
    assert client.predict(linear("m")).model_spec.version.value == 4
    client.channel.close()
    started[0].stop(1)


def test_a_start_that_is_told_to_stop_gives_up(tmp_path):
    stop = threading.Event()
    stop.set()
    assert server.start(flags(model_base_path=str(tmp_path)), stop) is None


def test_an_empty_config_is_no_models_yet(saved_models, tmp_path):
    file = tmp_path / "models.config"
    file.write_text("")
    publish(saved_models[1], tmp_path / "m", 1)
    started = server.start(flags(model_config_file=str(file)))
    client = Client(started.grpc.port)
    client.reload(config({"name": "m", "base_path": tmp_path / "m"}))
    assert client.predict(linear("m")).model_spec.version.value == 1
    client.channel.close()
    started.stop(1)


def test_a_port_that_is_taken_is_one_line(saved_models, tmp_path):
    publish(saved_models[1], tmp_path / "m", 1)
    models = config({"name": "m", "base_path": tmp_path / "m"})
    with running(models, tmp_path) as started:
        port = started.server.grpc.port
        with pytest.raises(InputError, match=f"`port={port}`: cannot listen"):
            with running(models, tmp_path, port=port):
                pass


# Health, the polled config file.


@pytest.mark.parametrize(
    ("service", "status"),
    [("", "SERVING"), ("ModelService", "SERVING"), ("PredictionService", "SERVING"), ("x", None)],
)
def test_health_is_serving_from_the_start(tmp_path, service, status):
    with running(config(), tmp_path, enable_grpc_healthcheck_service=True) as started:
        stub = health_pb2_grpc.HealthStub(started.client.channel)
        message = health_pb2.HealthCheckRequest(service=service)
        if status is None:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Check(message)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        else:
            seen = health_pb2.HealthCheckResponse.ServingStatus.Name(stub.Check(message).status)
            assert seen == status


def test_no_health_unless_asked_for(tmp_path):
    with running(config(), tmp_path) as started:
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(started.client.channel).Check(
                health_pb2.HealthCheckRequest()
            )
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_config_file_is_applied_at_every_poll(saved_models, tmp_path):
    for version in (1, 2):
        publish(saved_models[version], tmp_path / "m", version)
    model = {"name": "m", "base_path": tmp_path / "m"}
    one = config({**model, "model_version_policy": specific(1)})
    two = config({**model, "model_version_policy": specific(2)})
    with running(one, tmp_path, model_config_file_poll_wait_seconds=0.1) as started:
        client, file = started.client, started.config_file
        for broken in ("model_config_list { config { nonsense: 1 } }", None):
            if broken is None:
                file.unlink()
            else:
                file.write_text(broken)
            time.sleep(0.3)
            assert client.status("m") == {1: ("AVAILABLE", "")}
        staged = tmp_path / "staged"
        staged.write_text(text_format.MessageToString(two))
        staged.rename(file)
        client.wait("m", v2="AVAILABLE", v1="END")
        # A reload by gRPC lasts until the next poll.
        client.reload(one)
        client.wait("m", v2="AVAILABLE", v1="END")


# SIGTERM.


def _long(steps: int):
    return request("m", {"x": ones(1), "steps": np.int32([steps])}, signature="slow")


def test_stopping_finishes_requests_in_flight(saved_models, tmp_path):
    publish(saved_models[1], tmp_path / "m", 1)
    started = server.start(flags(model_base_path=str(tmp_path / "m"), model_name="m"))
    client = Client(started.grpc.port)
    client.predict(linear("m"))
    entered = threading.Event()
    core = started.core
    predict = core.predict

    def slow(message, timeout_s):
        entered.set()
        time.sleep(0.5)
        return predict(message, timeout_s)

    core.predict = slow
    future = client.prediction.Predict.future(linear("m"), timeout=20)
    assert entered.wait(20)
    started.stop(10)
    assert future.result().model_spec.version.value == 1
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.Predict(linear("m"), timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
def test_sigterm_drains_and_exits_with_0(saved_models, tmp_path):
    publish(saved_models[1], tmp_path / "m", 1)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fct_tf.model_server",
            "--port=0",
            "--rest_api_port=-1",
            "--model_name=m",
            f"--model_base_path={tmp_path / 'm'}",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        client = Client(port)
        future = client.prediction.Predict.future(_long(100_000), timeout=60)
        client.predict(linear("m"))  # The long one is under way.
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert future.result().model_spec.version.value == 1
        assert process.wait(60) == 0
        client.channel.close()
    finally:
        process.kill()
        process.stdout.close()
