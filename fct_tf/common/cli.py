"""Flags, errors and exit status shared by the commands.

Exit status: 0 done, 2 bad input (one line on stderr says what is wrong and what to do). Any
other exception is a bug and keeps its traceback. absl and ml_collections exit with 1, some
errors with a traceback; `call` gives them the same one line and status 2.
"""

import inspect
import logging as std_logging
import os
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from fct_tf.common import files, flag_groups, runs, store_errors, stores
from fct_tf.common.errors import InputError, as_flags, nearest
from fct_tf.common.files import one_line

Main = Callable[[flags.FlagValues], None]
DefineFlags = Callable[[flags.FlagValues], None]

# ml_collections reads the overrides of a config file (--config.key=value) from an argument
# vector of its own, which must be known when the flag is defined.
_argv: list[str] = []

# Keys that experiment files once had.
REMOVED = {"draw": "pairs are always drawn at random, leave it out"}


def run(doc: str | None, main: Main, define_flags: DefineFlags) -> None:
    """Runs a command as a program: parses `sys.argv`, calls `main`, exits."""
    sys.exit(call(doc, main, define_flags, sys.argv, flags.FLAGS))


def call(
    doc: str | None,
    main: Main,
    define_flags: DefineFlags,
    argv: Sequence[str],
    values: flags.FlagValues | None = None,
) -> int:
    """Calls a command in this process and returns its exit status.

    Args:
      doc: the command's docstring, shown by --help.
      main: receives the parsed flags.
      define_flags: defines the command's flags on the `FlagValues` it receives.
      argv: program name and arguments.
      values: where flags are defined; a fresh set by default.
    """
    values = flags.FlagValues() if values is None else values
    _argv[:] = argv
    try:
        try:
            flags.DEFINE_boolean("help", False, "Show this help.", flag_values=values)
        except flags.DuplicateFlagError:
            pass
        wants_help = any(arg in ("--help", "-h", "-help", "--helpfull") for arg in argv[1:])
        try:
            define_flags(values)
            if not wants_help:
                _parse(argv, values)
        except InputError:
            if not wants_help:
                raise
        if wants_help:
            print(_help(doc, argv[0], values))
            return 0
        _set_up_logging()
        if "storage_options" in values and values.storage_options:
            stores.use(values.storage_options)
        if "storage_options" in values:
            _check_addresses(values)
        main(values)
    except InputError as error:
        return _fail(one_line(as_flags(error.marked)))
    except (OSError, ValueError, RuntimeError) as error:  # As Lance raises what a store says.
        explanation = store_errors.explained(error)
        if explanation is None:
            raise
        return _fail(one_line(as_flags(explanation.marked)))
    except BrokenPipeError:
        return 0  # Of `| head`, which has seen enough.
    except KeyboardInterrupt:
        return _fail("interrupted; start the same command again to continue", status=130)
    return 0


def _check_addresses(values: flags.FlagValues) -> None:
    """Refuses those that are of no file in a bucket, before any work."""
    for flag in (one for defined in flag_groups.of(values).values() for one in defined):
        for text in flag.value if isinstance(flag.value, list) else [flag.value]:
            if isinstance(text, str):
                try:
                    stores.check_path(text)
                except InputError as error:
                    raise InputError(f"--{flag.name}={error.marked}") from None


def _set_up_logging() -> None:
    """Our own notes, and of the libraries' only what goes wrong: not TFDS' every step."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    if not handler.filters:
        handler.addFilter(_is_wanted)
        handler.setFormatter(_NamingFlags(_LINE, "%H:%M:%S"))
        std_logging.getLogger("tensorflow").addFilter(_is_wanted)


class _NamingFlags(std_logging.Formatter):
    """What the library tells of arguments, as flags, and of secrets nothing."""

    def format(self, record: std_logging.LogRecord) -> str:
        return stores.masked(as_flags(super().format(record)))


_LINE = "%(levelname).1s %(asctime)s %(message)s"

# Of TensorFlow and TFDS: deprecations of what they call themselves, AutoGraph's doubts, and the
# absence of what is about to be prepared.
_NOISE = ("deprecation.py", "ag_logging.py", "file_utils.py")


def _is_wanted(record: std_logging.LogRecord) -> bool:
    ours = f"{os.sep}fct_tf{os.sep}" in record.pathname
    noise = os.path.basename(record.pathname) in _NOISE
    return ours or (record.levelno >= std_logging.WARNING and not noise)


def _parse(argv: Sequence[str], values: flags.FlagValues) -> None:
    try:
        rest = values(argv)
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", str(error))
        message = f"--{missing[1]} is missing; name it" if missing else one_line(error)
        raise InputError(f"{message}, see --help") from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        # What a config file raises while it is run and overridden.
        raise InputError(f"--config: {one_line(error)}") from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags start with --, see --help")


def _fail(message: str, status: int = 2) -> int:
    sys.stdout.flush()
    print(f"error: {stores.masked(message)}", file=sys.stderr)
    return status


_WRAPPED: dict[str, Any] = {
    "subsequent_indent": "      ",
    "break_long_words": False,
    "break_on_hyphens": False,
}


def _help(doc: str | None, program: str, values: flags.FlagValues) -> str:
    lines = [(doc or "").strip(), "", f"Flags of {os.path.basename(program)}"]
    groups = flag_groups.of(values)
    # Those that a script outside the package defines; what libraries define is nobody's business.
    groups |= {"Others:": values.flags_by_module_dict().get(sys.argv[0], [])}
    for heading, defined in groups.items():
        lines += ["", heading] if defined else []
        for flag in defined:
            required = any("must have a value" in one.message for one in flag.validators)
            default = flag.default
            if isinstance(default, list):
                default = ",".join(map(str, default))
            default_text = "" if default in (None, "") else f" (default: {default})"
            name = f"--{flag.name}{' (required)' if required else ''}"
            lines += textwrap.wrap(f"  {name}: {flag.help}{default_text}", 100, **_WRAPPED)
    return "\n".join(lines)


def arguments(values: flags.FlagValues, takes: Callable, **given: Any) -> dict[str, Any]:
    """The arguments of a function, or of a request, that are flags: those of the same names.

    Args:
      takes: the function or class.
      **given: those that are not what a flag says.
    """
    named = [name for name in inspect.signature(takes).parameters if name in values]
    return {name: values[name].value for name in named} | given


def existing(values: flags.FlagValues) -> runs.Existing:
    """What --overwrite says of an output that is there."""
    return "overwrite" if values.overwrite else "refuse"


def define_config(
    values: flags.FlagValues, *, required: bool = True, heading: str = flag_groups.READ
) -> None:
    """Defines --config, an experiment file with `get_config()`, and its --config.key=value."""
    from ml_collections import config_flags  # Only commands with an experiment file pay for it.

    _check_config(_argv)
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment file (configs/NAME.py). Override its values with --config.key=value.",
        flag_values=values,
        lock_config=True,
        sys_argv=_argv,
    )
    values.register_flag_by_module(heading, values["config"])
    if required:
        flags.mark_flag_as_required("config", flag_values=values)


def whole_numbers(
    values: flags.FlagValues, name: str, *, highest: int = 1 << 31, empty: bool = False
) -> list[int]:
    """The numbers from 1 that a flag lists, each once, the lowest first.

    Raises:
      InputError: something else, or nothing unless it may be `empty`.
    """
    listed: list[str] = getattr(values, name)
    given = [text.strip() for text in listed if text.strip()]
    numbers = sorted({int(text) for text in given if text.isdecimal()})
    right = all(text.isdecimal() and 0 < int(text) <= highest for text in given)
    if not right or not given and not empty:
        raise InputError(f"--{name}={','.join(listed)}: whole numbers from 1, e.g. --{name}=1,5")
    return numbers


def check_output_files(values: flags.FlagValues, **suffixes: Sequence[str]) -> None:
    """Refuses output files that could not be written, of those flags that are given.

    Args:
      **suffixes: flag -> how the name of its file must end; none for any end.

    Raises:
      InputError: another end, an existing file without --overwrite, one file for two flags.
    """
    flag_of: dict[Path, str] = {}
    for name, ends in suffixes.items():
        path: str = getattr(values, name)
        if not path and name != "output":
            continue
        if ends and not path.endswith(tuple(ends)):
            listed = f"{', '.join(ends[:-1])} or {ends[-1]}"
            raise InputError(f"--{name}={path}: the name must end with {listed}")
        files.check_output_file(path, values.overwrite, name)
        same = flag_of.setdefault(Path(path).absolute(), name)
        if same != name:
            raise InputError(f"--{name}={path}: is --{same}; name another file")


def _check_config(argv: Sequence[str]) -> None:
    """Names a missing file and, for an unknown key, the nearest valid one."""
    path = None
    for position, arg in enumerate(argv):
        match = re.match(r"^--?config(?:=(.*))?$", arg)
        if match:
            path = match[1] if match[1] is not None else (list(argv) + [""])[position + 1]
    if path is None:
        return
    filename = path.split(":", 1)[0]
    if not os.path.isfile(filename):
        raise InputError(f"--config: {filename}: no such file")
    try:
        get_config = runpy.run_path(filename)["get_config"]
        config = get_config(*path.split(":", 1)[1:])
        valid = _keys(config)
    except Exception as error:  # Whatever a user's file does wrong.
        if isinstance(error, KeyError) and error.args == ("get_config",):
            raise InputError(f"--config: {filename}: defines no get_config()") from None
        key = re.search(r'Key "(\w+)" does not exist', str(error))
        if key and key[1] in REMOVED:
            raise InputError(
                f"--config: {filename}: {key[1]}: unknown key{nearest_key(key[1], [])}"
            ) from None
        raise InputError(
            f"--config: {filename}: {type(error).__name__}: {one_line(error)}"
        ) from None
    for arg in argv:
        match = re.match(r"^--?(?:no)?config\.([^=]+)", arg)
        if match and match[1] not in valid:
            raise InputError(
                f"--config.{match[1]}: unknown key in {filename}{nearest_key(match[1], valid)}"
            )


def nearest_key(key: str, valid: Sequence[str]) -> str:
    """As `nearest`, or what to do without a key that experiment files once had."""
    remedy = REMOVED.get(key.rpartition(".")[2])
    return f"; {remedy}" if remedy else nearest(key, valid)


def _keys(config, prefix: str = "") -> list[str]:
    keys = []
    for key in config:
        name = f"{prefix}{key}"
        keys.append(name)
        value = config[key]
        if hasattr(value, "get_ref"):
            keys.extend(_keys(value, f"{name}."))
    return keys
