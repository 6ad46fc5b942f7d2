"""Runs a program and kills it with SIGKILL at a chosen moment."""

import subprocess
import sys
import time
from collections.abc import Callable


def kill_when(arguments: list[str], ready: Callable[[], bool], delay_s: float) -> bool:
    """Runs `python -m ARGUMENTS`, kills it `delay_s` after `ready()`; whether it was killed.

    A program that ends by itself before that must have succeeded.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while process.poll() is None:
            if ready():
                time.sleep(delay_s)
                if process.poll() is None:
                    process.kill()
                    process.wait()
                    return True
                break
            time.sleep(0.01)
    finally:
        process.kill()
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()[-2000:]
    return False


def run(arguments: list[str]) -> None:
    """Runs `python -m ARGUMENTS` to its end, which must be a success."""
    result = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
