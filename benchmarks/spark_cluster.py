"""A Spark cluster on loopback: a standalone master and workers of one core, and their memory."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
from local_server import free_port

ROOT = Path(__file__).resolve().parent.parent
EXECUTOR = "CoarseGrainedExecutorBackend"
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.executor.memory": "512m",
    # An executor that is gone is missed after seconds, not minutes.
    "spark.network.timeout": "20s",
    "spark.network.timeoutInterval": "5s",
    "spark.executor.heartbeatInterval": "2s",
}


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Of a process that uses Spark, configured in `folder` by `settings` beside those above."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} {value}\n" for name, value in {**SETTINGS, **settings}.items()]
    (folder / "spark-defaults.conf").write_text("".join(lines))
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "SPARK_CONF_DIR": str(folder),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


class Cluster:
    """A master at `master` and two `workers`, until `stop`."""

    def __init__(self, folder: Path, memory: str = "1g"):
        """Starts it; `folder` holds its configuration, its log and the executors' directories."""
        import pyspark

        self._class = f"{Path(pyspark.__file__).parent}/bin/spark-class"
        self._folder, self._environment = folder, environment(folder / "conf")
        self._memory = memory
        port = free_port()
        self.master = f"spark://127.0.0.1:{port}"
        self._processes = [self._start("master.Master", "127.0.0.1", "--port", port)]
        # Of two names: a task is not tried a second time, for speculation, on the host it runs on.
        self._hosts = ["127.0.0.1", "127.0.0.2"]
        self.workers = [self._start_worker(), self._start_worker()]

    def _start(self, name: str, host: str, *arguments: object) -> subprocess.Popen:
        command = [self._class, f"org.apache.spark.deploy.{name}", "--host", host]
        command += ["--webui-port", "0", *map(str, arguments)]
        settings = {**self._environment, "SPARK_LOCAL_IP": host}
        with open(self._folder / "log", "ab") as log:
            # Java takes the place of the script: its number is the process's.
            return subprocess.Popen(command, env=settings, stdout=log, stderr=log)

    def _start_worker(self) -> subprocess.Popen:
        work = self._folder / "work"
        settings = ("--cores", 1, "--memory", self._memory, "--work-dir", work)
        host = self._hosts.pop(0)
        self._hosts.append(host)
        started = self._start("worker.Worker", host, *settings, self.master)
        self._processes.append(started)
        return started

    def executors(self, worker: subprocess.Popen) -> list[psutil.Process]:
        """The executors that a worker has running."""
        if worker.poll() is not None:
            return []
        return [p for p in below(worker.pid) if EXECUTOR in " ".join(command_of(p))]

    def lose_worker(self) -> None:
        """Kills a worker with all its executors, and starts another."""
        worker = self.workers.pop(0)
        for process in [psutil.Process(worker.pid), *below(worker.pid)]:
            kill(process)
        worker.wait()
        self.workers.append(self._start_worker())

    def kill_executor(self) -> bool:
        """Kills an executor, if there is one, by SIGKILL; whether there was."""
        for worker in self.workers:
            for executor in self.executors(worker):
                for process in [executor, *below(executor.pid)]:
                    kill(process)
                return True
        return False

    def stop(self) -> None:
        """Ends all that it has started."""
        for process in self._processes:
            if process.poll() is None:
                for started in below(process.pid):
                    kill(started)
                process.kill()
            process.wait()


def below(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and that these have."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def command_of(process: psutil.Process) -> list[str]:
    """A process's command line; empty of one that has ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def kill(process: psutil.Process) -> None:
    """Kills it by SIGKILL, if it is there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def watching_memory(pid: int) -> Iterator[dict[str, int]]:
    """The most resident memory that any one process below `pid` has while the block runs, by its
    kind: `worker`, which runs Python, `executor`, the Java beside it, and `driver`, its Python."""
    peaks = {"worker": 0, "executor": 0, "driver": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for process in below(pid):
                command = " ".join(command_of(process))
                if "pyspark.daemon" in command or "pyspark/daemon" in command:
                    kind = "worker"
                elif EXECUTOR in command:
                    kind = "executor"
                elif "--child" in command and "java" not in command.split(" ")[0]:
                    kind = "driver"
                else:
                    continue
                with contextlib.suppress(psutil.Error):
                    peaks[kind] = max(peaks[kind], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()
