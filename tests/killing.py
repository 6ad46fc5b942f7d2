"""Ends what is at work: commands in processes of their own, by SIGKILL, and calls in this one.

TensorFlow is imported once, by a server that is forked for each of them: its import costs more
processor time than most of what these processes do.
"""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from fct_tf.common import cli

_CONTEXT = multiprocessing.get_context("forkserver")
# The package before TensorFlow, which it sets up. Lance starts threads, which no fork survives.
_CONTEXT.set_forkserver_preload(["fct_tf", "tensorflow", "tests.killing"])


class Program:
    """`python -m ARGUMENTS` in a process of its own, `environment` added to that of the tests."""

    def __init__(self, arguments: Sequence[str], **environment: str):
        self._errors = tempfile.TemporaryFile()
        descriptor = multiprocessing.reduction.DupFd(self._errors.fileno())
        self._process = _CONTEXT.Process(
            target=_call, args=(list(arguments), environment, descriptor)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> bool:
        """Kills it with SIGKILL; whether it was still running."""
        self._process.kill()
        return self.wait() == -signal.SIGKILL

    def wait(self, timeout_s: float = 300) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        self._process.join(timeout_s)
        assert not self._process.is_alive(), self.errors()
        return self._process.exitcode

    def errors(self) -> str:
        """What it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read().decode()


def _call(arguments, environment, errors) -> None:
    os.environ.update(environment)
    os.dup2(errors.detach(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    module = importlib.import_module(arguments[0])
    sys.exit(cli.call(module.__doc__, module.main, module.define_flags, arguments))


def kill_when(arguments: Sequence[str], ready: Callable[[], bool], delay_s: float) -> bool:
    """Runs `python -m ARGUMENTS`, kills it `delay_s` after `ready()`; whether it was killed.

    A program that ends by itself before that must have succeeded.
    """
    program = Program(arguments)
    try:
        while program.running():
            if ready():
                time.sleep(delay_s)
                if program.kill():
                    return True
                break
            time.sleep(0.01)
    finally:
        program.kill()
    assert program.wait() == 0, program.errors()[-2000:]
    return False


def run(arguments: Sequence[str]) -> None:
    """Runs `python -m ARGUMENTS` to its end, which must be a success."""
    program = Program(arguments)
    assert program.wait() == 0, program.errors()[-2000:]


@contextlib.contextmanager
def interrupted(owner: Any, name: str, call: int = 1, *, after: bool = False) -> Iterator[None]:
    """The block, which has to end as by Ctrl-C: in this call of `owner.name`, or after it."""
    function, calls = getattr(owner, name), itertools.count(1)

    def ends(*arguments, **named):
        is_last = next(calls) == call
        if is_last and not after:
            raise KeyboardInterrupt
        result = function(*arguments, **named)
        if is_last:
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, ends)
        yield
