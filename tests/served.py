"""The model server of this package in the test's own process, and in one of its own."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from fct_tf import model_server
from fct_tf.serving import server


def settings(base_path, port=0, rest_port=-1, **more):
    """Flags of a server of one model, `fct`."""
    named = {"model_name": "fct", "model_base_path": base_path, "port": port}
    named |= {"rest_api_port": rest_port, "file_system_poll_wait_seconds": 1, **more}
    if "model_config_file" in named:
        del named["model_name"], named["model_base_path"]
    return [f"--{name}={value}" for name, value in named.items()]


@contextlib.contextmanager
def serving(base_path, **more):
    """Yields what is running: `.grpc.port`, `.rest.port`."""
    values = flags.FlagValues()
    model_server.define_flags(values)
    values(["model_server", *settings(base_path, **more)])
    running = server.start(values)
    assert running is not None
    try:
        yield running
    finally:
        running.stop(5)


def address(running, kind: str, model: str = "fct") -> str:
    """Of a model, by `grpc` or `http`."""
    port = running.grpc.port if kind == "grpc" else running.rest.port
    return f"{kind}://127.0.0.1:{port}/{model}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(base_path, port: int, **more) -> subprocess.Popen:
    """A server in a process of its own, which is up when this returns."""
    command = [sys.executable, "-m", "fct_tf.model_server"]
    command += settings(base_path, port=port, rest_port=0, **more)
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process
        time.sleep(0.1)
    raise AssertionError(f"the server ended with {process.returncode}")


def publish(saved_model, base_path, version: int) -> None:
    """A copy of a SavedModel as a version, by a rename."""
    staged = Path(base_path) / f".staged-{version}"
    shutil.copytree(saved_model, staged)
    staged.rename(Path(base_path) / str(version))
