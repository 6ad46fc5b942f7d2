"""The model server without its transports: models by name, version and label, and their config.

gRPC (`grpc_services`) and REST (`rest`) both stand on one `ServerCore`. Errors are
`ServingError`s with TF Serving's codes and texts.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import grpc
from absl import logging
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from fct_tf.serving import inference, versions
from fct_tf.serving.errors import ServingError, invalid
from fct_tf.serving.servable import Servable
from fct_tf.serving.versions import State

# How long a reload waits for the first version of a new model to appear under its base path.
# TF Serving waits for ever, with every later reload behind it.
RELOAD_WAIT_S = 5.0

PLATFORM = "tensorflow"


@dataclass(frozen=True)
class Options:
    """Settings of a `ServerCore`, by the names of the flags."""

    file_system_poll_wait_seconds: float = 1.0
    num_load_threads: int = 0
    num_unload_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    allow_version_labels_for_unavailable_models: bool = False
    force_allow_any_version_labels_for_unavailable_models: bool = False
    enable_serialization_as_tensor_content: bool = False

    @classmethod
    def names(cls) -> list[str]:
        """Of the settings, which are those of the flags."""
        return [field.name for field in fields(cls)]


class ServerCore:
    """The models of a server.

    Attributes:
      metrics: counters and histograms (`fct_tf.serving.metrics.Metrics`).
    """

    def __init__(
        self,
        load: versions.Load,
        metrics: Any,
        options: Options = Options(),
    ):
        """No model yet: `reload` brings them.

        Args:
          load: loads a version.
          metrics: shared with the transports.
          options: settings.
        """
        self.metrics = metrics
        self.options = options
        self._versions = versions.Versions(
            load,
            num_load_threads=options.num_load_threads,
            num_unload_threads=options.num_unload_threads,
            max_num_load_retries=options.max_num_load_retries,
            load_retry_interval_s=options.load_retry_interval_micros / 1e6,
        )
        self._config: dict[str, ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._complaints: dict[str, str] = {}
        self._reloading = threading.Lock()
        self._lock = threading.Lock()  # Of the config and what is wanted by it.
        self._stop = threading.Event()
        self._poller: threading.Thread | None = None

    def start(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        wait_s: float,
        stop: threading.Event | None = None,
    ) -> bool:
        """Takes the first config, waits until every model serves, and starts to poll.

        Args:
          config: an empty one is no models yet.
          wait_s: how long to wait for the first version of each model to appear.
          stop: gives up where it is set.

        Returns:
          Whether the models serve; False where `stop` was set first.

        Raises:
          ServingError: the config is refused, or a model did not become available.
        """
        stop = stop or threading.Event()
        if config.WhichOneof("config") is not None:
            self.reload(config, wait_s, stop)
        if stop.is_set():
            return False
        interval = self.options.file_system_poll_wait_seconds
        if interval > 0:
            self._poller = threading.Thread(target=self._poll, args=(interval,), name="versions")
            self._poller.daemon = True
            self._poller.start()
        return True

    def close(self) -> None:
        """Stops polling and unloads everything; requests that go on for a second are cancelled."""
        self._stop.set()
        if self._poller is not None:
            self._poller.join()
        self._versions.close()

    # The config.

    def reload(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        wait_s: float = RELOAD_WAIT_S,
        stop: threading.Event | None = None,
    ) -> None:
        """Replaces the whole config, and waits until models that are new to it serve.

        A refused config changes nothing. TF Serving keeps half of it: a model without a
        platform then makes it refuse all later ones, and one without a version blocks them.

        Args:
          config: models not in it are unloaded, labels not in it are gone.
          wait_s: how long the first version of a new model may take to appear on disk.
          stop: ends the waiting where it is set.

        Raises:
          ServingError: INVALID_ARGUMENT or FAILED_PRECONDITION, the config is refused; NOT_FOUND,
            a new model has no version; UNKNOWN, a new model does not load.
        """
        which = config.WhichOneof("config")
        if which != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        with self._reloading:
            models = self._checked(config.model_config_list.config)
            labels = self._checked_labels(models)
            new = [name for name in models if name not in self._config]
            stop = stop or self._stop
            if not self._await_versions([models[name] for name in new], wait_s, stop):
                return
            with self._lock:
                self._config = models
                self._labels = labels
                self._versions.keep_only(models)
            for model in models.values():
                self._look(model)
        # Outside the lock: another reload need not wait for these loads and their retries.
        failed = self._versions.wait_available(new, stop)
        if failed and not stop.is_set():
            raise ServingError(
                grpc.StatusCode.UNKNOWN,
                f"{len(failed)} model(s) did not become available: "
                f"{{{''.join(f'{report}, ' for report in failed.values())}}}",
            )

    def _checked(self, listed) -> dict[str, ModelConfig]:
        """The models of a config by name, in TF Serving's order of checks."""
        models: dict[str, ModelConfig] = {}
        for model in listed:
            if model.name in models:
                raise invalid(f"Illegal to list model {model.name} multiple times in config list")
            models[model.name] = model
        for model in listed:
            if "://" not in model.base_path and not os.path.isabs(model.base_path):
                raise invalid(
                    f"Expected model {model.name} to have an absolute path or URI; "
                    f"got base_path()={model.base_path}"
                )
        for model in listed:
            platform = _platform(model)
            if model.name in self._config and platform != PLATFORM:
                raise invalid(
                    f"Illegal to change a model's platform. For model {model.name} platform was "
                    f"{PLATFORM} and new platform requested is {platform}"
                )
            if platform != PLATFORM:
                raise invalid(f"Model {model.name} requests unsupported platform {platform}")
        return models

    def _checked_labels(self, models: dict[str, ModelConfig]) -> dict[str, dict[str, int]]:
        """The labels of a config. One may move to a version that serves, and only there."""
        labels = {name: dict(model.version_labels) for name, model in models.items()}
        for name, of_model in labels.items():
            states = self._versions.states(name)
            for label, version in of_model.items():
                if states.get(version, (None,))[0] == State.AVAILABLE:
                    continue
                stays = self._labels.get(name, {}).get(label, version) == version
                if self.options.force_allow_any_version_labels_for_unavailable_models or (
                    self.options.allow_version_labels_for_unavailable_models and stays
                ):
                    continue
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {name}, which is not "
                    "currently available for inference",
                )
        return labels

    def _await_versions(
        self, models: list[ModelConfig], wait_s: float, stop: threading.Event
    ) -> bool:
        """Waits for each model to have a version on disk; False where `stop` was set."""
        end = time.monotonic() + wait_s
        logged = False
        for model in models:
            while error := _no_version(model):
                if time.monotonic() >= end:
                    raise error
                if not logged:
                    logging.warning("%s; waiting up to %g s", error, wait_s)
                    logged = True
                if stop.wait(0.1):
                    return False
        return True

    # The file system.

    def _poll(self, interval: float) -> None:
        while not self._stop.wait(interval):
            with self._lock:
                models = list(self._config.values())
            for model in models:
                self._look(model)

    def _look(self, model: ModelConfig) -> None:
        """Makes what is on disk, by the model's policy, what should be loaded."""
        try:
            paths = versions.on_disk(model.name, model.base_path)
        except ServingError as error:
            # A missing base path says nothing about the versions: what is loaded stays.
            self._complain(model.name, str(error))
            return
        chosen = versions.wanted(paths, model.model_version_policy)
        if not chosen:
            self._complain(
                model.name,
                f"No versions of servable {model.name} found under base path {model.base_path}. "
                "Did you forget to name your leaf directory as a number (eg. '/1/')?",
            )
        else:
            self._complaints.pop(model.name, None)
        with self._lock:
            if self._config.get(name := model.name) is model:
                self._versions.want(name, chosen)

    def _complain(self, name: str, message: str) -> None:
        """Logs once, not at every poll."""
        if self._complaints.get(name) != message:
            self._complaints[name] = message
            logging.warning("%s", message)

    # Requests.

    @contextlib.contextmanager
    def servable(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """A loaded version in use: it stays loaded inside the `with`.

        Args:
          name: of the model.
          version: its number; None, without a label, for the highest that is loaded.
          label: instead of a version.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        if label is not None:
            version = self._labels.get(name, {}).get(label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {label}")
        with self._versions.use(name, version) as servable:
            yield servable

    def _servable_of(self, spec: model_pb2.ModelSpec):
        choice = spec.WhichOneof("version_choice")
        return self.servable(
            spec.name,
            spec.version.value if choice == "version" else None,
            spec.version_label if choice == "version_label" else None,
        )

    def predict(
        self, request: predict_pb2.PredictRequest, timeout_s: float | None = None
    ) -> predict_pb2.PredictResponse:
        """Runs a signature. Raises ServingError."""
        _check_spec(request)
        as_content = self.options.enable_serialization_as_tensor_content
        with self._servable_of(request.model_spec) as servable:
            return inference.predict(servable, request, timeout_s, as_content=as_content)

    def classify(
        self, request: classification_pb2.ClassificationRequest, timeout_s: float | None = None
    ) -> classification_pb2.ClassificationResponse:
        """Classes and scores of `tf.Example`s. Raises ServingError."""
        _check_spec(request)
        with self._servable_of(request.model_spec) as servable:
            return inference.classify(servable, request, timeout_s)

    def regress(
        self, request: regression_pb2.RegressionRequest, timeout_s: float | None = None
    ) -> regression_pb2.RegressionResponse:
        """Values of `tf.Example`s. Raises ServingError."""
        _check_spec(request)
        with self._servable_of(request.model_spec) as servable:
            return inference.regress(servable, request, timeout_s)

    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest, timeout_s: float | None = None
    ) -> inference_pb2.MultiInferenceResponse:
        """Several signatures of one model on the same examples. Raises ServingError."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self._servable_of(spec) as servable:
            return inference.multi_inference(servable, request, timeout_s)

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of a model. Raises ServingError."""
        _check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._servable_of(request.model_spec) as servable:
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(
        self, name: str, version: int | None = None
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of one version, or of all versions ever known, highest first.

        Raises:
          ServingError: NOT_FOUND.
        """
        states = self._versions.states(name)
        if version is not None:
            if version not in states:
                raise ServingError(
                    grpc.StatusCode.NOT_FOUND,
                    f"Could not find version {version} of model {name}",
                )
            states = {version: states[version]}
        elif not states:
            raise ServingError(
                grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}"
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, (state, error) in states.items():
            one = response.model_version_status.add(version=number, state=int(state))
            one.status.SetInParent()
            if error is not None:
                one.status.error_code = error.number
                one.status.error_message = error.message
        return response

    def models(self) -> dict[str, dict]:
        """Everything a person wants to see of the models, by name.

        Returns:
          name -> `base_path`, `labels` (label -> version) and `versions`, highest first: each
          `version`, `state` (text), `labels` and `error` (text; also of a load that will be
          tried again).
        """
        with self._lock:
            config, labels = self._config, self._labels
        shown = {}
        for name, model in sorted(config.items()):
            of_model = labels.get(name, {})
            errors = self._versions.last_errors(name)
            shown[name] = {
                "base_path": model.base_path,
                "labels": of_model,
                "versions": [
                    {
                        "version": number,
                        "state": state.name,
                        "labels": sorted(k for k, v in of_model.items() if v == number),
                        "error": str(errors[number]) if number in errors else "",
                    }
                    for number, (state, _) in self._versions.states(name).items()
                ],
            }
        return shown


def _platform(model: ModelConfig) -> str:
    if model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        if model.model_platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
        return PLATFORM
    if not model.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    return model.model_platform


def _no_version(model: ModelConfig) -> ServingError | None:
    """Why a model has nothing to load; None where it has."""
    try:
        paths = versions.on_disk(model.name, model.base_path)
    except ServingError as error:
        return error
    if versions.wanted(paths, model.model_version_policy):
        return None
    return ServingError(
        grpc.StatusCode.NOT_FOUND,
        f"Unable to find a numerical version path for servable {model.name} at: {model.base_path}",
    )


def _check_spec(request) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
