"""Servers that several modules of tests ask. TensorFlow is imported by who needs it."""

import pytest


@pytest.fixture
def place(saved_models, tmp_path):
    """Publishes versions: `place("m", 1, 2)`; odd ones multiply by 1, even ones by 2."""
    from tests.model_servers import publish

    def at(name, *numbers):
        for number in numbers:
            publish(saved_models[2 - number % 2], tmp_path / name, number)
        return tmp_path / name

    return at


@pytest.fixture(scope="package")
def service(saved_models, tmp_path_factory):
    """A model server: versions 1 and 2 of `m`, with labels; 3 is on disk and not loaded."""
    from tests.model_servers import config, publish, running, specific

    directory = tmp_path_factory.mktemp("predict")
    for version in (1, 2, 3):
        publish(saved_models[min(version, 2)], directory / "m", version)
    labels = {"stable": 1, "canary": 2, "ahead": 3}
    model = {"name": "m", "base_path": directory / "m", "labels": labels}
    with running(
        config({**model, "model_version_policy": specific(1, 2)}),
        directory,
        allow_version_labels_for_unavailable_models=True,
    ) as started:
        # The ports open with the first version of a model.
        started.client.wait("m", v1="AVAILABLE", v2="AVAILABLE")
        yield started


@pytest.fixture(scope="package")
def client(service):
    """gRPC stubs of `service`."""
    return service.client


@pytest.fixture(scope="package")
def models(tmp_path_factory):
    """A core with `tiny`, versions 1 (stable) and 2, and `a model`, version 2."""
    from fct_tf.serving import core, loading, servable
    from fct_tf.serving.metrics import Metrics
    from tests import tiny_servables
    from tests.serving.rest_calls import config_of

    base_path = tmp_path_factory.mktemp("models")
    tiny_servables.write(base_path / "1", plus=1.0)
    tiny_servables.write(base_path / "2", plus=2.0)
    metrics = Metrics()
    loader = loading.Loader(metrics, limits=servable.Limits(max_rows=10_000))
    options = core.Options(file_system_poll_wait_seconds=0)
    started = core.ServerCore(loader, metrics, options)
    started.start(config_of(base_path), 5.0)
    started.reload(config_of(base_path, 'version_labels { key: "stable" value: 1 }'))
    yield started
    started.close()


@pytest.fixture(scope="package")
def port(models):
    """The port of a REST server of `models`."""
    from fct_tf.serving import rest
    from tests.serving.rest_calls import serving

    with serving(models, metrics_path=rest.METRICS_PATH, max_request_bytes=8 << 20) as port:
        yield port
