"""Flags of the commands that build and search indexes: every setting of ScaNN by its name."""

import dataclasses
import typing

from absl import flags

from fct_tf.ann.settings import Settings


def define_threads(values: flags.FlagValues) -> None:
    """Defines --threads."""
    flags.DEFINE_integer("threads", None, "Threads; by default one for each core.", 1, None, values)


def define_settings(values: flags.FlagValues) -> None:
    """Defines a flag for each setting, None where it is not given."""
    kinds = typing.get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        kind = next(iter(typing.get_args(kinds[field.name])), kinds[field.name])
        name, text = field.name, field.metadata["help"]
        if field.metadata["words"]:
            flags.DEFINE_enum(name, None, field.metadata["words"], text, flag_values=values)
        elif kind is bool:
            flags.DEFINE_boolean(name, None, text, flag_values=values)
        elif kind is int:
            flags.DEFINE_integer(name, None, text, flag_values=values)
        else:
            flags.DEFINE_float(name, None, text, flag_values=values)


def settings_given(values: flags.FlagValues) -> dict:
    """The settings that were given, by name."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return {name: values[name].value for name in names if values[name].value is not None}
