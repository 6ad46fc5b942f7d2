"""The files of a deployment, made from the models that were published.

`models.config` says which versions are loaded and where the labels `stable` and `canary` point.
It is the only file that changes from day to day, so what it says already is the start of the next
one. The others are templates of this package, filled in with the models' names and sizes.
"""

import math
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from fct_tf.common.errors import InputError
from fct_tf.common.files import atomic_write_text, make_dir, read_lines, refuse_existing
from fct_tf.models import info as infos
from fct_tf.serving import text_protos

IMAGE = "tensorflow/serving:2.20.0"
LABELS = ("stable", "canary")
TEMPLATES = Path(__file__).parent / "templates"
MODELS, BATCHING, MONITORING = "models.config", "batching.config", "monitoring.config"
CONFIG_MAP = "kubernetes/configmap.yaml"

# Flags of the server, in the container and on a machine without one. serving/README.md says why.
FLAGS = {
    "model_config_file": f"/config/{MODELS}",
    "model_config_file_poll_wait_seconds": "30",
    "allow_version_labels_for_unavailable_models": "true",
    "num_load_threads": "2",
    "num_unload_threads": "2",
    "max_num_load_retries": "2",
    "load_retry_interval_micros": "5000000",
    "enable_batching": "true",
    "batching_parameters_file": f"/config/{BATCHING}",
    "enable_per_model_batching_parameters": "true",
    "tensorflow_intra_op_parallelism": "1",
    "tensorflow_inter_op_parallelism": "1",
    "monitoring_config_file": f"/config/{MONITORING}",
    "enable_grpc_healthcheck_service": "true",
    "enable_serialization_as_tensor_content": "true",
    "rest_api_timeout_in_ms": "30000",
    "grpc_channel_arguments": (
        "grpc.max_connection_age_ms=60000,grpc.max_connection_age_grace_ms=10000"
    ),
}


BASE_PATH = "/models"


@dataclass
class Model:
    """A model as `models.config` has it.

    Attributes:
      versions: those to load.
      labels: label -> version.
      base_path: where the server finds them; empty for `--base_path` and the name.
    """

    versions: list[int] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    base_path: str = ""


@dataclass(frozen=True)
class Steps:
    """What to change: (model, version) each.

    Attributes:
      load, unload: versions that are loaded from now on, or no longer.
      stable, canary: where the label points from now on.
    """

    load: Sequence[tuple[str, int]] = ()
    unload: Sequence[tuple[str, int]] = ()
    stable: Sequence[tuple[str, int]] = ()
    canary: Sequence[tuple[str, int]] = ()

    def __bool__(self) -> bool:
        return any((self.load, self.unload, self.stable, self.canary))


def deploy(
    models: str,
    output: str,
    steps: Steps,
    *,
    base_path: str = "",
    cores: int = 2,
    memory_gib: int = 0,
    allow_space_mismatch: bool = False,
    overwrite: bool = False,
) -> dict[str, Model]:
    """Writes the files of a deployment, or what a step of a rollout changes; the models by name.

    Args:
      models: directory of the published models.
      output: directory of the files.
      base_path: where the server finds the models; empty: `BASE_PATH`.
      cores, memory_gib: of the server; 0: enough for the models.
      allow_space_mismatch: see `change`.
      overwrite: make files anew that are there.

    Raises:
      InputError: no models, no files to change, a step that the server would refuse.
    """
    available, path = published(models), os.path.join(output, MODELS)
    exists, base_path = os.path.exists(path), base_path or BASE_PATH
    if steps and not exists:
        raise InputError(f"{path}: no such file; make it first, without ``load`` and the like")
    before = read_models(path) if exists else {}
    changed = change(before, available, steps, allow_space_mismatch=allow_space_mismatch)
    if steps:
        contents = moved_texts(output, changed, available, base_path)
    else:
        for model in changed.values():  # All of them at one place, as a container sees it.
            model.base_path = ""
        size = memory_gib or memory_needed_gib(models, changed)
        contents = texts(changed, available, base_path=base_path, cores=cores, memory_gib=size)
    write(output, contents, overwrite=overwrite or bool(steps))
    return changed


def published(base: str | os.PathLike) -> dict[str, dict[int, dict[str, Any]]]:
    """Models under a directory: name -> version -> description, empty where it has none.

    Raises:
      InputError: there are none.
    """
    models: dict[str, dict[int, dict[str, Any]]] = {}
    base = Path(base)
    directories = sorted(base.iterdir()) if base.is_dir() else []
    for directory in directories:
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name.isdecimal() and (path / "saved_model.pb").is_file():
                described = (path / infos.INFO).is_file()
                info = infos.read_info(path) if described else {}
                models.setdefault(directory.name, {})[int(path.name)] = info
    if not models:
        raise InputError(
            f"``models={base}``: no published model here, MODEL/VERSION/saved_model.pb; publish "
            "one with export_serving"
        )
    return models


def read_models(path: str | os.PathLike) -> dict[str, Model]:
    """What a `models.config` says.

    Raises:
      InputError: no such file, or one that is not made here (without a list of versions).
    """
    message = text_protos.parse(str(path), config_pb2.ModelServerConfig())
    models = {}
    for config in message.model_config_list.config:
        versions = list(config.model_version_policy.specific.versions)
        if not versions:
            raise InputError(
                f"{path}: model {config.name} has no `specific` versions; labels need them"
            )
        order = [*LABELS, *sorted(set(config.version_labels) - {*LABELS})]
        labels = {
            label: config.version_labels[label] for label in order if label in config.version_labels
        }
        models[config.name] = Model(versions, labels, config.base_path)
    return models


def change(
    models: Mapping[str, Model],
    there: Mapping[str, Mapping[int, dict[str, Any]]],
    steps: Steps,
    *,
    allow_space_mismatch: bool = False,
) -> dict[str, Model]:
    """The models after some steps; new ones come in with both labels on their highest version.

    Args:
      models: what is served now, empty at first.
      there: see `published`.
      steps: what to do.
      allow_space_mismatch: let a label name models whose spaces do not fit.

    Raises:
      InputError: an unknown model or version; a label that would move to a version that is not
        loaded yet, which the server refuses; a version that a label still needs; under one label,
        a transformation into a space that no query encoder has, or a fused search without what
        makes its queries.
    """
    after = {
        name: Model([*of.versions], {**of.labels}, of.base_path) for name, of in models.items()
    }
    for name, versions in there.items():
        if name not in after:
            highest = max(versions)
            after[name] = Model([highest], dict.fromkeys(LABELS, highest))
    for name, version in [*steps.load, *steps.unload, *steps.stable, *steps.canary]:
        if name not in after:
            raise InputError(f"{name}:{version}: no such model; there are: {', '.join(after)}")
    for name, version in steps.load:
        if version not in after[name].versions:
            after[name].versions = sorted([*after[name].versions, version])
    for label in LABELS:
        for name, version in getattr(steps, label):
            before = models.get(name, after[name])
            if version not in before.versions:
                raise InputError(
                    f"``{label}={name}:{version}``: the server refuses a label on a version that "
                    f"is not loaded; first ``load={name}:{version}``, wait until it is AVAILABLE, "
                    "then move the label"
                )
            after[name].labels[label] = version
    for name, version in steps.unload:
        if version not in after[name].versions:
            served = ", ".join(map(str, after[name].versions))
            raise InputError(f"``unload={name}:{version}``: is not served; versions {served} are")
        held = [label for label, of in after[name].labels.items() if of == version]
        if held:
            raise InputError(
                f"``unload={name}:{version}``: the label {held[0]} points to it; move that first"
            )
        after[name].versions = [one for one in after[name].versions if one != version]
    for name, model in after.items():
        missing = [version for version in model.versions if version not in there.get(name, {})]
        if missing:
            raise InputError(
                f"{name}:{missing[0]}: to be served, but not among the published models; "
                f"publish it with export_serving --version={missing[0]}, ``unload`` it, or take "
                "another ``output``"
            )
    if not allow_space_mismatch:
        _check_spaces(after, there)
    return after


def _check_spaces(
    models: Mapping[str, Model], there: Mapping[str, Mapping[int, dict[str, Any]]]
) -> None:
    for label in LABELS:
        infos_of = {
            f"{name}:{model.labels[label]}": there[name][model.labels[label]]
            for name, model in models.items()
            if label in model.labels
        }
        encoders = [info for info in infos_of.values() if _makes_queries(info)]
        spaces = {space for info in encoders for space in (info["space"], *info["compatible_with"])}
        for name, info in infos_of.items():
            if not encoders or info.get("kind") not in infos.TRANSFORMS:
                continue
            source, target = info.get("source_space"), info.get("target_space")
            remedy = "move both labels together, or pass ``allow_space_mismatch=True``"
            if info["kind"] == "fused":
                # Its queries come from one encoder with both models in it, or from each of them.
                if info["fused_space"] not in spaces and not {source, target} <= spaces:
                    raise InputError(
                        f"label {label}: {name} makes rows of the fused space "
                        f"{info['fused_space']}, and no query encoder of that label does, nor do "
                        f"two make the embeddings of {info.get('source_model')} and "
                        f"{info.get('target_model')}; {remedy}"
                    )
            # Of a map of the query side the encoder makes what it reads.
            elif not spaces & {target, source}:
                raise InputError(
                    f"label {label}: {name} makes embeddings of space {target} "
                    f"(model {info.get('target_model')}), and no query encoder of that label does; "
                    f"{remedy}"
                )


def _makes_queries(info: Mapping[str, Any]) -> bool:
    return info.get("kind") == "query_encoder" or info.get("side") == "query"


def models_text(models: Mapping[str, Model], base_path: str) -> str:
    """`models.config`."""
    message = config_pb2.ModelServerConfig()
    for name, model in sorted(models.items()):
        config = message.model_config_list.config.add()
        config.name = name
        config.base_path = model.base_path or f"{base_path.rstrip('/')}/{name}"
        config.model_platform = "tensorflow"
        config.model_version_policy.specific.versions.extend(model.versions)
        for label, version in model.labels.items():
            config.version_labels[label] = version
    return (
        "# Made by fct_tf.serving_config, which also moves labels. The server reads it again and\n"
        "# again. A label moves to a version that is loaded; load it in a step before.\n"
        + text_format.MessageToString(message)
    )


def batching_text(cores: int) -> str:
    """`batching.config`: the thread pool of all models that are batched."""
    message = text_protos.BatchingParameters()
    message.max_batch_size.value = 128
    message.batch_timeout_micros.value = 1000
    message.max_enqueued_batches.value = 64
    message.num_batch_threads.value = cores
    return (
        "# Threads for all models; the rest is for models without a batching_params.pbtxt of\n"
        "# their own, of which none is batched here (--enable_per_model_batching_parameters).\n"
        + text_format.MessageToString(message)
    )


def monitoring_text() -> str:
    """`monitoring.config`."""
    message = text_protos.MonitoringConfig()
    message.prometheus_config.enable = True
    message.prometheus_config.path = "/monitoring/prometheus/metrics"
    return text_format.MessageToString(message)


def memory_needed_gib(base: str | os.PathLike, models: Mapping[str, Model]) -> int:
    """Two versions of each model and half as much again, and one for the server itself."""
    total = 0
    for name, model in models.items():
        sizes = [
            sum(
                path.stat().st_size
                for path in (Path(base) / name / str(version)).rglob("*")
                if path.is_file()
            )
            for version in model.versions
        ]
        total += max(sizes, default=0)
    return max(2, 1 + math.ceil(1.5 * 2 * total / (1 << 30)))


def texts(
    models: Mapping[str, Model],
    there: Mapping[str, Mapping[int, dict[str, Any]]],
    *,
    base_path: str,
    cores: int,
    memory_gib: int,
) -> dict[str, str]:
    """Every file: name -> content."""
    contents = {
        MODELS: models_text(models, base_path),
        BATCHING: batching_text(cores),
        MONITORING: monitoring_text(),
    }
    arguments = "\n".join(f"- --{name}={value}" for name, value in FLAGS.items())
    values: dict[str, Any] = {
        "image": IMAGE,
        "base_path": base_path.rstrip("/"),
        "cores": cores,
        "memory_gib": memory_gib,
        "command_6": _indented(arguments, 6),
        "command_12": _indented(arguments, 12),
    }
    for path in sorted(TEMPLATES.rglob("*.y*ml")):
        name = path.relative_to(TEMPLATES).as_posix()
        contents[name] = _filled(name, models, there, {**values, **_quoted(contents)})
    return contents


def moved_texts(
    directory: str | os.PathLike,
    models: Mapping[str, Model],
    there: Mapping[str, Mapping[int, dict[str, Any]]],
    base_path: str,
) -> dict[str, str]:
    """The files that say which versions are served; what else the ConfigMap holds stays.

    Raises:
      InputError: `batching.config` or `monitoring.config` is not in the directory.
    """
    contents = {MODELS: models_text(models, base_path)}
    for name in (BATCHING, MONITORING):
        contents[name] = "\n".join(read_lines(Path(directory) / name))
    config_map = _filled(CONFIG_MAP, models, there, _quoted(contents))
    return {MODELS: contents[MODELS], CONFIG_MAP: config_map}


def _filled(
    template: str, models: Mapping[str, Model], there: Mapping[str, Any], values: Mapping[str, Any]
) -> str:
    kinds = {name: of[max(of)].get("kind") for name, of in there.items()}
    # Whose label says that a server is ready, and which the other objects are named after.
    transformations = [name for name in sorted(models) if kinds.get(name) in infos.TRANSFORMS]
    main = (transformations or sorted(models))[0]
    return string.Template((TEMPLATES / template).read_text()).substitute(values, main=main)


def _quoted(made: Mapping[str, str]) -> dict[str, str]:
    """The server's files as they stand in a ConfigMap."""
    names = {"models": MODELS, "batching": BATCHING, "monitoring": MONITORING}
    return {key: _indented(made[name], 4) for key, name in names.items()}


def write(directory: str | os.PathLike, made: Mapping[str, str], *, overwrite: bool) -> None:
    """Writes the files, each at once; `InputError` where one is there and may not be replaced."""
    directory = Path(directory)
    for name in made:
        refuse_existing(directory / name, overwrite)
    for name, text in made.items():
        make_dir((directory / name).parent)
        atomic_write_text(directory / name, text)


def _indented(text: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line if line else line for line in text.strip().splitlines())
