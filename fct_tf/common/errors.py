"""The one exception that means: the input is wrong, not the program."""

import re

# Flags without a value, as messages name them.
_SWITCHES = ("allow_space_mismatch", "drop_indices", "dry_run", "missing", "overwrite")


class InputError(Exception):
    """Bad input of a user: a path, a flag, a configuration key, a row.

    The message is one line that names what is wrong (file, key or row) and what to do. Commands
    print it to stderr and exit with status 2 (see `fct_tf.common.cli`); every other exception is a
    bug and keeps its traceback.
    """


def as_arguments(message: str) -> str:
    """A message with its flags as the arguments of a call: `--overwrite` as `overwrite=True`.

    A command line in it, from `python -m` on, stays as it is.
    """

    def argument(flag: re.Match) -> str:
        return flag[1] + (flag[2] or ("=True" if flag[1] in _SWITCHES else ""))

    told, command, rest = message.partition("python -m ")
    return re.sub(r"(?<![\w-])--(\w+)(=?)", argument, told) + command + rest
