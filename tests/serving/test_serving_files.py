"""The files of a deployment: what they say, that they are made by the command, and its steps."""

import functools
import http.server
import json
import re
import subprocess
import threading

import pytest
import yaml
from tensorflow_serving.config import model_server_config_pb2

from fct_tf import model_server, serving_config
from fct_tf.serving import configuration, text_protos
from tests.conftest import ROOT

OLD, NEW, SIDE = "a" * 64, "b" * 64, "c" * 64


def add_version(base, name, version, kind, **info):
    """As much of a published version as the command reads."""
    directory = base / name / str(version)
    (directory / "assets.extra").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"")
    described = {"format": 1, "kind": kind, "name": name, "distance": "l2", **info}
    (directory / "assets.extra" / "fct_tf.json").write_text(json.dumps(described))


def add_encoder(base, name, version, space):
    add_version(base, name, version, "query_encoder", space=space, compatible_with=[])


def add_transformation(base, name, version, target, source=OLD):
    spaces = {"source_space": source, "side_info_space": SIDE, "target_space": target}
    add_version(base, name, version, "transformation", space="f" * 64, **spaces)


@pytest.fixture
def models(tmp_path):
    base = tmp_path / "models"
    add_transformation(base, "fct", 1, NEW)
    add_encoder(base, "query", 1, NEW)
    (base / "fct" / ".tmp-2").mkdir()  # Neither of these is a version.
    (base / "fct" / "3").mkdir()
    return base


@pytest.fixture
def run(models, tmp_path, run_door):
    output = tmp_path / "serving"

    def run(*steps):
        arguments = [f"--models={models}", f"--output={output}", *steps]
        return run_door(serving_config, *arguments)

    run.output = output
    return run


def read(directory):
    message = model_server_config_pb2.ModelServerConfig()
    message = text_protos.parse(str(directory / "models.config"), message)
    return {config.name: config for config in message.model_config_list.config}


def state(directory):
    return {
        name: (list(config.model_version_policy.specific.versions), dict(config.version_labels))
        for name, config in read(directory).items()
    }


def made_files(directory):
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )


def test_the_committed_files_are_what_the_command_makes(run):
    assert run() == 0
    committed = [name for name in made_files(ROOT / "serving") if name != "README.md"]
    assert made_files(run.output) == committed
    for name in committed:
        assert (ROOT / "serving" / name).read_text() == (run.output / name).read_text(), (
            f"serving/{name}: make it with python -m fct_tf.serving_config"
        )


def test_models_config(run):
    assert run() == 0
    found = read(run.output)
    assert sorted(found) == ["fct", "query"]
    for name, config in found.items():
        assert config.base_path == f"/models/{name}"
        assert config.model_platform == "tensorflow"
        assert list(config.model_version_policy.specific.versions) == [1]
        assert dict(config.version_labels) == {"stable": 1, "canary": 1}


def test_batching_and_monitoring(run):
    assert run("--cores=6") == 0
    batching = text_protos.parse(
        str(run.output / "batching.config"), text_protos.BatchingParameters()
    )
    assert batching.num_batch_threads.value == 6
    assert batching.max_batch_size.value == 128
    assert batching.batch_timeout_micros.value == 1000
    assert batching.max_enqueued_batches.value == 64
    assert not batching.allowed_batch_sizes and not batching.pad_variable_length_inputs
    monitoring = text_protos.parse(
        str(run.output / "monitoring.config"), text_protos.MonitoringConfig()
    )
    assert monitoring.prometheus_config.enable
    prometheus = yaml.safe_load((run.output / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == monitoring.prometheus_config.path
    assert prometheus["rule_files"] == ["alerts.yml"]


def test_alerts_name_metrics_of_the_server(run):
    assert run() == 0
    (group,) = yaml.safe_load((run.output / "alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert {':tensorflow:serving:request_count{status!="OK"}'} <= set(
        re.findall(r":tensorflow:serving:request_count\{.*?\}", rules["ServingErrors"])
    )
    assert ":tensorflow:serving:request_latency_bucket" in rules["ServingSlow"]
    assert 'model_warmup_latency_count{status!="OK"}' in rules["ServingWarmUpFailed"]
    assert "container_memory_working_set_bytes" in rules["ServingMemory"]
    for expression in rules.values():
        assert expression.count("(") == expression.count(")")


def test_compose(run):
    assert run("--cores=3", "--memory_gib=5") == 0
    compose = yaml.safe_load((run.output / "docker-compose.yml").read_text())
    serving = compose["services"]["serving"]
    assert serving["image"] == "tensorflow/serving:2.20.0"
    assert serving["command"] == [f"--{k}={v}" for k, v in configuration.FLAGS.items()]
    assert {"../models:/models:ro", ".:/config:ro"} == set(serving["volumes"])
    assert [port.rpartition(":")[2] for port in serving["ports"]] == ["8500", "8501"]
    assert (serving["mem_limit"], serving["cpus"]) == ("5g", 3)
    assert serving["stop_grace_period"] == "15s"
    for image in (one["image"] for one in compose["services"].values()):
        assert re.search(r":v?\d+\.\d+\.\d+$", image)
    # What the flags name lies in the directory that is mounted.
    for name in re.findall(r"=/config/(\S+)", " ".join(serving["command"])):
        assert (run.output / name).is_file()


@pytest.mark.parametrize("status", [200, 404, None])
def test_compose_health_check_runs(run, status):
    """As the container would run it, on a port of ours."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/v1/models/fct/labels/stable/metadata"
            self.send_response(status if known else 400)
            self.end_headers()

        def log_message(self, *_):
            pass

    assert run() == 0
    compose = yaml.safe_load((run.output / "docker-compose.yml").read_text())
    command = compose["services"]["serving"]["healthcheck"]["test"]
    assert command[0] == "CMD"
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_port)
        if status is None:
            server.shutdown()
            server.server_close()
        command = [part.replace("8501", port).replace("localhost", "127.0.0.1") for part in command]
        ended = subprocess.run(command[1:], capture_output=True, timeout=20)
        if status is not None:
            server.shutdown()
    assert (ended.returncode == 0) == (status == 200)


def test_flags_are_those_of_the_server(run_door):
    """The local server takes every one; so the files are tried without a container."""
    from absl import flags

    values = flags.FlagValues()
    model_server.define_flags(values)
    values(["model_server", *(f"--{k}={v}" for k, v in configuration.FLAGS.items())])
    assert values.allow_version_labels_for_unavailable_models is True
    assert values.num_load_threads == 2


def manifests(directory):
    found = {}
    for path in sorted((directory / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found[document["kind"], document["metadata"]["name"]] = document
    return found


def test_kubernetes(run):
    assert run("--cores=4", "--memory_gib=3") == 0
    found = manifests(run.output)
    assert set(found) == {
        ("Deployment", "fct-serving"), ("Service", "fct-serving"), ("ConfigMap", "fct-envoy"),
        ("PodDisruptionBudget", "fct-serving"), ("ConfigMap", "fct-serving-config"),
        ("Deployment", "fct-envoy"), ("Service", "fct-envoy"),
    }  # fmt: skip
    deployment = found["Deployment", "fct-serving"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "tensorflow/serving:2.20.0"
    assert container["args"] == [f"--{k}={v}" for k, v in configuration.FLAGS.items()]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    path = {"path": "/v1/models/fct/labels/stable/metadata", "port": "rest"}
    assert container["readinessProbe"]["httpGet"] == path
    startup = container["startupProbe"]
    assert startup["httpGet"] == path and startup["failureThreshold"] * 5 >= 300
    assert container["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "15"]
    assert pod["terminationGracePeriodSeconds"] == 30 and "shareProcessNamespace" not in pod
    resources = container["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "4", "memory": "3Gi"}
    service = found["Service", "fct-serving"]["spec"]
    assert service["clusterIP"] == "None"
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (
        service["selector"],
        deployment["selector"]["matchLabels"],
        found["PodDisruptionBudget", "fct-serving"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["config"]["mountPath"] == "/config" and "subPath" not in mounts["config"]
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    config_map = found["ConfigMap", "fct-serving-config"]["data"]
    for name, text in config_map.items():
        assert text.strip() == (run.output / name).read_text().strip()


def test_envoy(run):
    assert run() == 0
    text = manifests(run.output)["ConfigMap", "fct-envoy"]["data"]["envoy.yaml"]
    resources = yaml.safe_load(text)["static_resources"]
    (cluster,) = resources["clusters"]
    assert cluster["lb_policy"] == "LEAST_REQUEST"
    (check,) = cluster["health_checks"]
    assert check["http_health_check"]["path"] == "/v1/models/fct/labels/stable/metadata"
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address == {"address": "fct-serving", "port_value": 8500}
    assert endpoint["endpoint"]["health_check_config"] == {"port_value": 8501}
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert options["explicit_http_config"] == {"http2_protocol_options": {}}
    (chain,) = resources["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["retry_policy"]["retry_on"] == "unavailable,resource-exhausted"
    assert route["retry_policy"]["num_retries"] == 1
    assert route["cluster"] == cluster["name"]


def test_a_rollout_step_by_step(run, models, capsys):
    assert run("--cores=7") == 0
    others = {name: (run.output / name).read_text() for name in made_files(run.output)}
    add_transformation(models, "fct", 2, NEW)
    for step, expected in [
        # A new version is there: nothing moves by itself.
        ("--load=fct:2", ([1, 2], {"stable": 1, "canary": 1})),
        ("--canary=fct:2", ([1, 2], {"stable": 1, "canary": 2})),
        ("--stable=fct:2", ([1, 2], {"stable": 2, "canary": 2})),
        # Back, while both are loaded; and forth.
        ("--stable=fct:1", ([1, 2], {"stable": 1, "canary": 2})),
        ("--stable=fct:2", ([1, 2], {"stable": 2, "canary": 2})),
        ("--unload=fct:1", ([2], {"stable": 2, "canary": 2})),
    ]:
        assert run(step) == 0, step
        assert state(run.output) == {"fct": expected, "query": ([1], {"stable": 1, "canary": 1})}
    assert "fct: versions 2; stable 2, canary 2" in capsys.readouterr().out.splitlines()[-2]
    for name, text in others.items():
        changed = name in ("models.config", "kubernetes/configmap.yaml")
        assert ((run.output / name).read_text() != text) == changed
    config_map = manifests(run.output)["ConfigMap", "fct-serving-config"]["data"]
    assert "value: 7" in config_map["batching.config"]
    assert config_map["models.config"].strip() == (run.output / "models.config").read_text().strip()


def test_encoder_and_transformation_move_together(run, models, capsys):
    assert run() == 0
    add_transformation(models, "fct", 2, "e" * 64)
    add_encoder(models, "query", 2, "e" * 64)
    assert run("--load=fct:2,query:2") == 0
    before = (run.output / "models.config").read_text()
    assert run("--canary=fct:2") == 2
    assert "label canary: fct:2 makes embeddings of space eee" in capsys.readouterr().err
    assert (run.output / "models.config").read_text() == before
    assert run("--canary=fct:2,query:2") == 0
    assert run("--canary=fct:1", "--allow_space_mismatch") == 0
    assert run("--canary=fct:2", "--stable=fct:2,query:2") == 0


def test_a_map_of_the_query_side_reads_what_the_encoder_makes(run, models):
    add_transformation(models, "back", 1, OLD, source=NEW)
    assert run() == 0


@pytest.mark.parametrize(
    "steps, message",
    [
        (["--stable=fct:2"], "first --load=fct:2, wait until it is AVAILABLE"),
        (["--load=fct:2", "--canary=fct:2"], "first --load=fct:2"),
        (["--load=fct:9"], "fct:9: to be served, but not among the published models"),
        (["--load=none:1"], "none:1: no such model; there are: fct, query"),
        (["--unload=fct:1"], "the label stable points to it"),
        (["--unload=fct:2"], "--unload=fct:2: is not served; versions 1 are"),
        (["--load=fct"], "MODEL:VERSION is wanted"),
        (["--canary=fct:x"], "MODEL:VERSION is wanted"),
        ([], "exists already"),
        (["--overwrite", "--base_path=models"], "wants an absolute path"),
    ],
)
def test_steps_that_the_server_would_refuse(run, models, capsys, steps, message):
    assert run() == 0
    add_transformation(models, "fct", 2, NEW)
    before = {name: (run.output / name).read_text() for name in made_files(run.output)}
    assert run(*steps) == 2
    assert message in capsys.readouterr().err
    assert {name: (run.output / name).read_text() for name in made_files(run.output)} == before


def test_bad_directories(run, models, run_door, tmp_path, capsys):
    check = functools.partial(run_door, serving_config)
    assert check(f"--models={tmp_path / 'none'}", f"--output={tmp_path / 'out'}") == 2
    assert "no published model here" in capsys.readouterr().err
    assert run("--load=fct:1") == 2
    assert "make it first" in capsys.readouterr().err
    assert run() == 0
    (run.output / "models.config").write_text("model_config_list {\n  config { nme: 'x' }\n}")
    assert run("--load=fct:1") == 2
    assert "models.config:2: not a ModelServerConfig" in capsys.readouterr().err
    (run.output / "models.config").write_text("model_config_list { config { name: 'fct' } }")
    assert run("--load=fct:1") == 2
    assert "fct has no `specific` versions" in capsys.readouterr().err


def test_memory_is_for_two_versions(models):
    with open(models / "fct" / "1" / "large", "wb") as file:
        file.truncate((4 << 30) - 4096)
    served = {"fct": configuration.Model([1], {})}
    assert configuration.memory_needed_gib(models, served) == 13  # 1.5 * 2 * 4 and one.


def test_flags_are_explained():
    text = (ROOT / "serving" / "README.md").read_text()
    for name in configuration.FLAGS:
        assert f"| `--{name}" in text, name
