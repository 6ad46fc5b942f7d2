"""Flags, errors and exit status shared by the commands.

Exit status: 0 done, 2 bad input (one line on stderr says what is wrong and what to do). Any
other exception is a bug and keeps its traceback. absl and ml_collections exit with 1, some
errors with a traceback; `call` gives them the same one line and status 2.
"""

import difflib
import inspect
import logging as std_logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging

from fct_tf.common import image_size
from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line

Main = Callable[[flags.FlagValues], None]
DefineFlags = Callable[[flags.FlagValues], None]

# ml_collections reads the overrides of a config file (--config.key=value) from an argument
# vector of its own, which must be known when the flag is defined.
_argv: list[str] = []


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
        main(values)
    except InputError as error:
        return _fail(one_line(error))
    except BrokenPipeError:
        return 0  # Of `| head`, which has seen enough.
    except KeyboardInterrupt:
        return _fail("interrupted; start the same command again to continue", status=130)
    return 0


def _set_up_logging() -> None:
    """Our own notes, and of the libraries' only what goes wrong: not TFDS' every step."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    if not handler.filters:
        handler.addFilter(_is_wanted)
        handler.setFormatter(std_logging.Formatter(_LINE, "%H:%M:%S"))
        std_logging.getLogger("tensorflow").addFilter(_is_wanted)


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
    print(f"error: {message}", file=sys.stderr)
    return status


def _help(doc: str | None, program: str, values: flags.FlagValues) -> str:
    lines = [(doc or "").strip(), "", f"Flags of {os.path.basename(program)}:"]
    by_module = values.flags_by_module_dict()
    own = {flag.name for module, defined in by_module.items() for flag in defined}
    standard = {
        flag.name for name in ("absl.app", "absl.logging") for flag in by_module.get(name, [])
    }
    for name in sorted(own - standard - {"help", "flagfile", "undefok"}):
        flag = values[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def arguments(values: flags.FlagValues, takes: Callable, **given: Any) -> dict[str, Any]:
    """The arguments of a function, or of a request, that are flags: those of the same names.

    Args:
      takes: the function or class.
      **given: those that are not what a flag says.
    """
    named = [name for name in inspect.signature(takes).parameters if name in values]
    return {name: values[name].value for name in named} | given


def define_config(values: flags.FlagValues, *, required: bool = True) -> None:
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
    if required:
        flags.mark_flag_as_required("config", flag_values=values)


def define_training(values: flags.FlagValues) -> None:
    """Defines the flags that all training commands share: --workdir, --seed, --overwrite."""
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of this run: checkpoints, summaries, the artifact.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Seed of every random number.", flag_values=values)
    define_overwrite(values)


IMAGES = (
    "tfds:NAME:SPLIT, folder:PATH[:SPLIT], files:PATH[:SPLIT] or glyphs:SPLIT. In a folder, "
    "PATH/<split>/<class>/<file> has the id <split>/<class>/<file> and the label <class>; where no "
    "directory directly below holds images, PATH/<split>/<file> (or deeper) has the id "
    "<split>/<file> and no label. files: takes every image at any depth, without labels. JPEG and "
    "PNG; photographs are turned as their EXIF orientation says."
)


def define_own_model(values: flags.FlagValues) -> None:
    """Defines what is said of a model of the user's own; `own_model` reads it."""

    def string(name, text):
        flags.DEFINE_string(
            name, "", f"Of a model of your own (.keras, .h5, SavedModel): {text}", values
        )

    string("model_name", "its human name; by default its file's.")
    string("image_size", "pixels, 224, or height x width, 160x96, where it takes any size.")
    string("signature", "which one of a SavedModel; serving_default if not given.")
    string("output_name", "which output is the embedding, where it has several.")
    for name, default, choices, text in (
        ("preprocessing", "raw", ["raw", "symmetric", "imagenet"], "what it expects of pixels"),
        (
            "resize",
            "bilinear_antialias",
            ["bilinear_antialias", "center_crop"],
            "how images are brought to its size",
        ),
        ("distance", "l2", ["l2", "cosine"], "how its embeddings are compared"),
        (
            "orientation",
            "applied",
            ["applied", "ignored"],
            "whether photographs are turned as EXIF says, which columns made before it was read "
            "ignored",
        ),
    ):
        if name in ("preprocessing", "orientation"):
            default = (
                "if not given, as the gallery's embeddings of that model had it, otherwise "
                f"{default}"
            )
        else:
            default = f"{default} if not given"
        text = f"Of a model of your own: {text}; {default}."
        flags.DEFINE_enum(name, "", ["", *choices], text, flag_values=values)


def own_model(values: flags.FlagValues) -> dict:
    """The flags of `define_own_model` that were given, as `fct_tf.models.foreign.load` has them.

    Raises:
      InputError: a size that is none.
    """
    given = {
        "name": values.model_name,
        "image_size": values.image_size and image_size.parse(values.image_size),
        "signature": values.signature,
        "output_name": values.output_name,
        "preprocessing": values.preprocessing,
        "resize": values.resize,
        "distance": values.distance,
        "orientation": values.orientation,
    }
    return {key: value for key, value in given.items() if value}


def define_overwrite(values: flags.FlagValues) -> None:
    """Defines --overwrite."""
    flags.DEFINE_boolean(
        "overwrite",
        False,
        "Replace an existing output; otherwise it is refused.",
        flag_values=values,
    )


def define_zero_vectors(values: flags.FlagValues) -> None:
    """Defines --zero_vectors."""
    flags.DEFINE_enum(
        "zero_vectors",
        "refuse",
        ["refuse", "keep"],
        "Where the distance is cosine: refuse rows that have no direction (zeros, or a length "
        "that float32 cannot square), or keep and count them.",
        flag_values=values,
    )


def define_drop_indices(values: flags.FlagValues) -> None:
    """Defines --drop_indices, beside --overwrite where what is replaced may have some."""
    flags.DEFINE_boolean(
        "drop_indices",
        False,
        "Overwrite although it has Lance indices: they are dropped and have to be built anew.",
        flag_values=values,
    )


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
    except KeyError as error:
        if error.args and error.args[0] == "get_config":
            raise InputError(f"--config: {filename}: defines no get_config()") from None
        raise InputError(f"--config: {filename}: {one_line(error)}") from None
    except Exception as error:  # Whatever a user's file does wrong.
        raise InputError(
            f"--config: {filename}: {type(error).__name__}: {one_line(error)}"
        ) from None
    for arg in argv:
        match = re.match(r"^--?(?:no)?config\.([^=]+)", arg)
        if match and match[1] not in valid:
            raise InputError(
                f"--config.{match[1]}: unknown key in {filename}{nearest(match[1], valid)}"
            )


def nearest(word: str, valid: Sequence[str]) -> str:
    """`; did you mean X?`, or the empty string where nothing is near."""
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _keys(config, prefix: str = "") -> list[str]:
    keys = []
    for key in config:
        name = f"{prefix}{key}"
        keys.append(name)
        value = config[key]
        if hasattr(value, "get_ref"):
            keys.extend(_keys(value, f"{name}."))
    return keys
