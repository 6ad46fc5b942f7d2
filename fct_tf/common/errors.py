"""The one exception that means: the input is wrong, not the program."""


class InputError(Exception):
    """Bad input of a user: a path, a flag, a configuration key, a row.

    The message is one line that names what is wrong (file, key or row) and what to do. Commands
    print it to stderr and exit with status 2 (see `fct_tf.common.cli`); every other exception is a
    bug and keeps its traceback.
    """
