"""A model server for benchmarks: the package's own, in a process of its own on loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def serving(flags: Mapping[str, Any], log: Path) -> Iterator[tuple[int, int, int]]:
    """Runs `python -m fct_tf.model_server`.

    Args:
      flags: of the server, without ports.
      log: file for what it prints.

    Yields:
      The process, and the ports of gRPC and REST.
    """
    ports = free_port(), free_port()
    named = {"port": ports[0], "rest_api_port": ports[1], **flags}
    command = [sys.executable, "-m", "fct_tf.model_server"]
    command += [f"--{name}={value}" for name, value in named.items()]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for port in ports:
            _wait_for(port, process, log)
        yield process.pid, *ports
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        time.sleep(0.1)


def processor_s(process: int) -> float:
    """Processor time that a process has taken so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: int) -> int:
    """Memory that a process has now (Linux)."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
