"""Learning rates over time: cosine and constant, each after a linear warm-up."""

import math
from typing import Any

import keras

from fct_tf.common.errors import InputError
from fct_tf.config import duration_steps

NAMES = ("cosine", "constant")


def learning_rate(
    config: Any, steps_per_epoch: int, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of a training section of an experiment.

    Args:
      config: attributes `optimizer.learning_rate`, `schedule` (`name`, `per`) and
        `warmup_epochs` or `warmup_steps`.
      steps_per_epoch: optimizer steps of one epoch.
      total_steps: optimizer steps of the whole training.

    Raises:
      InputError: an unknown schedule, or a warm-up that is no shorter than the training.
    """
    schedule = config.schedule
    warmup_steps = duration_steps(config, "warmup", steps_per_epoch, "training")
    if schedule.name not in NAMES:
        raise InputError(f"schedule.name: {schedule.name!r} is not one of {', '.join(NAMES)}")
    if schedule.per not in ("epoch", "step"):
        raise InputError(f"schedule.per: {schedule.per!r} is not one of epoch, step")
    if warmup_steps < 0 or warmup_steps > total_steps:
        raise InputError(
            f"schedule: warm-up of {warmup_steps} steps in a training of {total_steps} steps; "
            "shorten the warm-up"
        )
    return WarmupSchedule(
        schedule.name,
        peak=config.optimizer.learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        # A duration given in steps may be shorter than an epoch: then the rate changes by step.
        unit_steps=steps_per_epoch if schedule.per == "epoch" and config.train_epochs else 1,
    )


@keras.saving.register_keras_serializable(package="fct_tf")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is constant within units of `unit_steps` steps.

    With e = step // unit_steps, and the warm-up w and the total E in the same unit:
    peak * (e + 1) / w while e < w, afterwards
    cosine: peak / 2 * (1 + cos(pi * (e - w) / (E - w))), never past its end;
    constant: peak.
    The FCT paper's recipe has units of one epoch and the cosine.
    """

    def __init__(
        self,
        name: str,
        *,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        unit_steps: int = 1,
    ):
        self.name = name
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.unit_steps = unit_steps

    def __call__(self, step: Any) -> Any:
        """The rate at optimizer step `step` (an integer tensor), float32 scalar."""
        ops = keras.ops
        step = ops.cast(step, "int64")
        unit = ops.cast(step // self.unit_steps, "float32")
        warmup = self.warmup_steps / self.unit_steps
        total = self.total_steps / self.unit_steps
        rate = ops.cast(self.peak, "float32")
        if self.name == "cosine":
            progress = (unit - warmup) / max(total - warmup, 1e-9)
            rate = rate / 2 * (1 + ops.cos(math.pi * ops.clip(progress, 0.0, 1.0)))
        if warmup:
            ramp = self.peak * ops.minimum((unit + 1) / warmup, 1.0)
            rate = ops.where(unit < warmup, ramp, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        return dict(self.__dict__)
