"""Flags of the commands that build and search indexes: every setting of ScaNN by its name."""

import dataclasses
import typing

from absl import flags

from fct_tf.ann.settings import Settings
from fct_tf.common import flag_groups

SETTINGS = "Settings of ScaNN:"


def define_threads(values: flags.FlagValues) -> None:
    """Defines --threads."""
    run = flag_groups.Group(values, flag_groups.RUN)
    run.integer("threads", "Threads; by default one for each core.", None, 1)


def define_settings(values: flags.FlagValues) -> None:
    """Defines a flag for each setting, None where it is not given."""
    group = flag_groups.Group(values, SETTINGS)
    kinds = typing.get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        kind = next(iter(typing.get_args(kinds[field.name])), kinds[field.name])
        name, text = field.name, field.metadata["help"]
        if field.metadata["words"]:
            group.choice(name, text, None, field.metadata["words"])
        elif kind is bool:
            group.boolean(name, text, None)
        elif kind is int:
            group.integer(name, text, None)
        else:
            group.number(name, text, None)


def settings_given(values: flags.FlagValues) -> dict:
    """The settings that were given, by name."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return {name: values[name].value for name in names if values[name].value is not None}
