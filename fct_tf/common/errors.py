"""The one exception that means: the input is wrong, not the program.

Messages of the library name arguments, ``overwrite=True`` or ``side_info``, between two backticks
on either side, where Python shows one. A command shows its flags instead, which have the same
names: --overwrite and --side_info.
"""

import difflib
import re
from collections.abc import Sequence

_ARGUMENT = re.compile(r"``(\w+)(?:=([^`]*))?``")


class InputError(Exception):
    """Bad input of a user: a path, an argument, a configuration key, a row.

    The message is one line that names what is wrong (file, key or row) and what to do. Commands
    print it to stderr and exit with status 2 (see `fct_tf.common.cli`); every other exception is a
    bug and keeps its traceback.
    """

    def __str__(self) -> str:
        return _ARGUMENT.sub(lambda named: named[0][1:-1], self.marked)

    @property
    def marked(self) -> str:
        """The message with its arguments marked, to be part of another message."""
        return super().__str__()


def as_flags(message: str) -> str:
    """A message, marked, with its arguments as flags: ``overwrite=True`` as --overwrite."""

    def flag(named: re.Match) -> str:
        name, value = named.groups()
        return f"--{name}" if value in (None, "True") else f"--{name}={value}"

    return _ARGUMENT.sub(flag, message)


def nearest(word: str, valid: Sequence[str]) -> str:
    """`; did you mean X?`, or the empty string where nothing is near."""
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
