"""The loop around every train step: strategy, epochs, checkpoints, summaries, progress.

A command owns its train step and hands it to `run`, which calls it several times per Python call,
stops at a non-finite loss, and continues a killed run from its last checkpoint. What a run
computes depends on its settings and seed alone: the batches of an epoch are a function of seed
and epoch, so a restarted run sees the batches that it would have seen.
"""

import bisect
import contextlib
import functools
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import keras
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.common.files import atomic_write_text, make_dir, sha256_json
from fct_tf.data import datasets

TrainStep = Callable[[Any, int], tf.Tensor]
Arguments = ParamSpec("Arguments")


def alone(train: Callable[Arguments, Path]) -> Callable[Arguments, Path]:
    """A training that nothing else works beside in its working directory, from its first check on.

    Several workers share the directory: the chief holds it for all of them.

    Args:
      train: has the arguments `config` and `workdir`; raises InputError if another process holds
        the directory.
    """
    signature = inspect.signature(train)

    @functools.wraps(train)
    def held(*given: Arguments.args, **named: Arguments.kwargs) -> Path:
        arguments = signature.bind(*given, **named).arguments
        if arguments["config"].training.strategy == "multi_worker":
            # Asked before there is a strategy, which waits until every worker has come.
            if not _is_first(tf.distribute.cluster_resolver.TFConfigClusterResolver()):
                return train(*given, **named)
        with runs.locked(arguments["workdir"], str(arguments["workdir"])):
            return train(*given, **named)

    return held


def setup(training: ConfigDict, seed: int) -> tf.distribute.Strategy:
    """Prepares TensorFlow for a run and returns the distribution strategy.

    Args:
      training: the section `training` of an experiment.
      seed: of every random number that is not a function of (seed, epoch, example) already.
    """
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    if training.threads:
        _set_threads(training.threads)
    if training.strategy == "one_device":
        return tf.distribute.get_strategy()
    if training.strategy == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise InputError(
                "training.strategy=multi_worker: TF_CONFIG is not set; give every process its "
                'cluster and task, e.g. {"cluster": {"worker": ["host:port", ..]}, "task": ..}'
            )
        if "multi_worker" not in _strategies:
            _strategies["multi_worker"] = tf.distribute.MultiWorkerMirroredStrategy()
        return _strategies["multi_worker"]
    devices = _devices(training.devices)
    if str(devices) not in _strategies:
        _strategies[str(devices)] = tf.distribute.MirroredStrategy(devices)
    return _strategies[str(devices)]


# One strategy per set of devices and process: a second one would number its collectives from the
# start again and meet those of the first (or, over several workers, start the servers again).
_strategies: dict[str, tf.distribute.Strategy] = {}


def stage_seed(seed: int, stage: str) -> int:
    """A seed for one model of an experiment: no two of them start from the same weights."""
    return int(sha256_json([seed, stage])[:7], 16)


def _set_threads(threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:  # TensorFlow runs already, an earlier stage of this process started it.
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            logging.warning("training.threads=%d comes too late, TensorFlow runs", threads)


def _devices(count: int) -> list[str]:
    """`count` GPUs where there are any, else `count` logical CPU devices; 0 means all."""
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    physical = tf.config.list_physical_devices(kind)
    if kind == "CPU" and count > 1:
        try:
            tf.config.set_logical_device_configuration(
                physical[0], [tf.config.LogicalDeviceConfiguration()] * count
            )
        except RuntimeError:
            pass  # TensorFlow runs already; what there is is counted below.
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if count > len(names):
        raise InputError(f"training.devices={count}: there are {len(names)} {kind} devices")
    return names[: count or None]


def with_sync_batch_norm(network: ConfigDict, strategy: tf.distribute.Strategy) -> ConfigDict:
    """A network's settings; over several replicas BatchNorm sees the whole global batch."""
    return ConfigDict({**network, "sync_batch_norm": strategy.num_replicas_in_sync > 1})


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the checkpoints, summaries and artifacts."""
    return strategy.cluster_resolver is None or _is_first(strategy.cluster_resolver)


def _is_first(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> bool:
    if resolver.task_id is None:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_id == 0 and resolver.task_type == ("chief" if has_chief else "worker")


def run(
    train_step: TrainStep,
    epoch_batches: Callable[[int, int], tf.data.Dataset],
    variables: Mapping[str, Sequence[Any]],
    *,
    strategy: tf.distribute.Strategy,
    workdir: str | os.PathLike,
    steps_per_epoch: int,
    total_steps: int,
    batch_size: int,
    training: ConfigDict,
    learning_rate: Callable[[int], Any],
    phases: Sequence[int] = (0,),
    name: str = "train",
    unit: str = "images",
    failures: Sequence[InputError] = (),
) -> None:
    """Trains from the last checkpoint in `workdir`, or from the start, to `total_steps`.

    Args:
      train_step: `(batch, phase) -> loss` in replica context. Updates the variables and returns
        this replica's share of the loss, already divided by the *global* batch size: shares
        are summed over replicas.
      epoch_batches: `(epoch, skip_batches) -> batches` of the global batch size.
      variables: named lists of Keras or TensorFlow variables, all that the steps change.
      strategy: under which the variables were made.
      workdir: gets `checkpoints/`, `tensorboard/` and `metrics.jsonl` (step, loss,
        learning_rate, seconds).
      steps_per_epoch: batches of one epoch.
      total_steps: where to stop; may end within an epoch.
      batch_size: global, for the progress bar.
      training: the section `training` of an experiment.
      learning_rate: `step -> rate`, for the log.
      phases: first step of each phase; `train_step` gets the number of its phase.
      name: shown by the progress bar.
      unit: what a batch holds, shown by the progress bar.
      failures: where the input pipeline leaves what is wrong with a row; raised instead of what
        TensorFlow makes of it.

    Raises:
      InputError: the loss is not finite; names the step. The last good checkpoint is kept.
    """
    if steps_per_epoch < 1:
        raise InputError(f"{name}: fewer {unit} than one batch of {batch_size}; lower batch_size")
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        # Shares of different sizes would be weighed wrongly, and contrastive pairs mismatched.
        raise InputError(f"{name}: batch_size={batch_size} does not divide by {replicas} replicas")
    workdir = make_dir(workdir)
    # `seconds` counts the time spent training, over all restarts.
    counters = {
        "step": tf.Variable(0, dtype=tf.int64, trainable=False),
        "seconds": tf.Variable(0.0, dtype=tf.float64, trainable=False),
    }
    checkpoint = tf.train.Checkpoint(**counters, **_unwrap(variables))
    manager = tf.train.CheckpointManager(checkpoint, str(workdir / "checkpoints"), max_to_keep=2)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    step = int(counters["step"].numpy())
    started = time.monotonic() - float(counters["seconds"].numpy())
    _check_shared(strategy, step, workdir)
    logging.info("%s: %s", name, f"resumed at step {step}" if step else "started from scratch")
    chief = is_chief(strategy)
    metrics = _Metrics(workdir, step) if chief else None

    def save() -> None:
        # Never the same step twice: a kill in between would leave no whole checkpoint of it.
        if chief and int(counters["step"].numpy()) != step:
            counters["step"].assign(step)
            counters["seconds"].assign(time.monotonic() - started)
            manager.save(checkpoint_number=step)

    @tf.function(reduce_retracing=True)
    def train_steps(iterator, count, phase):
        losses = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            shares = strategy.run(train_step, args=(next(iterator), phase))
            total = strategy.reduce("sum", shares, axis=None)
            losses = losses.write(i, tf.cast(total, tf.float32))
        return losses.stack()

    saved_at = time.monotonic()
    with tqdm(
        desc=name,
        total=total_steps * batch_size,
        initial=step * batch_size,
        unit=f" {unit}",
        unit_scale=True,
        disable=None if chief else True,
    ) as progress:
        while step < total_steps:
            epoch, done = divmod(step, steps_per_epoch)
            epoch_end = min(total_steps, (epoch + 1) * steps_per_epoch)
            iterator = iter(strategy.experimental_distribute_dataset(epoch_batches(epoch, done)))
            while step < epoch_end:
                phase = bisect.bisect_right(phases, step) - 1
                phase_end = phases[phase + 1] if phase + 1 < len(phases) else total_steps
                count = min(training.steps_per_call, epoch_end - step, phase_end - step)
                with datasets.naming_unreadable_images(), _raising(failures):
                    losses = train_steps(iterator, tf.constant(count), phase).numpy()
                _stop_if_not_finite(losses, step, name, manager.latest_checkpoint)
                step += count
                if metrics:
                    metrics.write(
                        step,
                        loss=float(losses.mean()),
                        learning_rate=float(learning_rate(step - 1)),
                        seconds=round(time.monotonic() - started, 3),
                    )
                progress.update(count * batch_size)
                progress.set_postfix_str(f"loss {losses.mean():.4g}", refresh=False)
                due = time.monotonic() - saved_at > 60 * training.checkpoint_minutes
                if due and step < epoch_end:
                    save()
                    saved_at = time.monotonic()
            save()
            saved_at = time.monotonic()


def _check_shared(strategy: tf.distribute.Strategy, step: int, workdir: Path) -> None:
    """All workers must have restored the same checkpoint."""
    if strategy.cluster_resolver is None:
        return
    steps = strategy.gather(strategy.run(lambda: tf.constant([step])), axis=0).numpy()
    if len(set(steps.tolist())) > 1:
        raise InputError(
            f"{workdir}: the workers stand at different steps ({steps.tolist()}); ``workdir`` must "
            "be one directory that all of them share"
        )


@contextlib.contextmanager
def _raising(failures: Sequence[InputError]) -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


def _unwrap(variables: Mapping[str, Sequence[Any]]) -> dict[str, list[tf.Variable]]:
    """TensorFlow's variables behind Keras': the checkpoint is free of Keras' own names."""
    return {key: [getattr(v, "_value", v) for v in values] for key, values in variables.items()}


def _stop_if_not_finite(losses, step: int, name: str, latest: str | None) -> None:
    for offset, loss in enumerate(losses):
        if not abs(loss) < float("inf"):
            kept = f"the checkpoint {latest} is kept" if latest else "there is no checkpoint yet"
            raise InputError(
                f"{name}: the loss is {loss} at step {step + offset}; {kept}. "
                "Lower the learning rate or lengthen the warm-up, and start again"
            )


class _Metrics:
    """`metrics.jsonl` and TensorBoard summaries. Lines after the restored step are dropped."""

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        atomic_write_text(self._path, "".join(line + "\n" for line in kept))
        self._writer = tf.summary.create_file_writer(str(workdir / "tensorboard"))

    def write(self, step: int, **values: float) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        with self._writer.as_default(step=step):
            for key, value in values.items():
                tf.summary.scalar(key, value)
        self._writer.flush()
