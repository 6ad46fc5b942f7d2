"""An hour of constant load on a model server with a swap of versions each minute.

Each minute a version is published beside the others, the label `stable` moves to it once it is
loaded, and the one before is dropped and its files deleted. Meanwhile clients send rows by the
label, at a constant rate. Each answer is compared with what the version that it names computes:
a swap must neither fail a request nor mix two versions in an answer. The server's memory is
noted all the time.

  python benchmarks/serving_soak.py --minutes=60 --output=results/serving_soak.json

The JSON is written anew after each minute, so a run that ends early has told what it saw.

Target: no failed request, no mixed answer, and memory within 10 % of what it was after the first
swap.
"""

import argparse
import collections
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import local_server
import machine
import numpy as np

MAX_GROWTH = 1.1
MEMORY_EVERY_S = 2.0
CONFIG = """model_config_list {{
  config {{
    name: "fct"
    base_path: "{base}"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ {versions} }} }}
    version_labels {{ key: "stable" value: {stable} }}
  }}
}}
"""


class Load:
    """Clients that send at a constant rate, and what became of their requests."""

    def __init__(self, target: str, rows: tuple[np.ndarray, ...], expected: list[np.ndarray]):
        self._target, self._rows, self._expected = target, rows, expected
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.requests = 0
        self.versions: collections.Counter = collections.Counter()
        self.wrong: list[str] = []
        self.failures: list[str] = []
        self.latencies: list[float] = []

    def start(self, clients: int, requests_per_s: float) -> None:
        """Starts the clients' threads."""
        pause = clients / requests_per_s
        for number in range(clients):
            thread = threading.Thread(target=self._work, args=(pause, number * pause / clients))
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ends them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> dict:
        """Figures since the last time."""
        with self._lock:
            milliseconds = 1000 * np.array(self.latencies or [0.0])
            self.latencies = []
            p50, p99 = np.percentile(milliseconds, [50, 99])
            return {
                "requests": self.requests,
                "failed": len(self.failures),
                "wrong": len(self.wrong),
                "p50_ms": round(float(p50), 2),
                "p99_ms": round(float(p99), 2),
                "max_ms": round(float(milliseconds.max()), 2),
            }

    def _work(self, pause_s: float, first_s: float) -> None:
        from fct_tf.serving.client import DEFAULT
        from fct_tf.serving.grpc_client import GrpcTransport
        from fct_tf.serving.transport import Address, Failure, Signature

        address = Address.parse(self._target)
        # Without the client's retries, which would hide what fails.
        transport = GrpcTransport(address)
        inputs = dict(zip(("source_embedding", "side_info"), self._rows, strict=True))
        due = time.monotonic() + first_s
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + pause_s, time.monotonic())
            start = time.perf_counter()
            try:
                version, outputs = transport.predict(
                    address.model, DEFAULT, Signature({}, {}), inputs, 30.0
                )
            except Failure as failure:
                with self._lock:
                    self.requests += 1
                    self.failures.append(f"{time.strftime('%H:%M:%S')} {failure}")
                continue
            taken = time.perf_counter() - start
            assert version is not None
            apart = np.abs(outputs["embedding"] - self._expected[version % 2]).max()
            with self._lock:
                self.requests += 1
                self.versions[version] += 1
                self.latencies.append(taken)
                if apart > 1e-4:
                    self.wrong.append(f"version {version}: {apart:.3g} apart")
        transport.close()


class Versions:
    """The model's versions on disk and in the server's configuration."""

    def __init__(self, folder: Path, exported: Sequence[Path]):
        self._exported = exported  # Of even and of odd numbers.
        self._base = folder / "served"
        self._base.mkdir()
        self.config = folder / "models.config"

    def publish(self, version: int) -> None:
        """Copies a SavedModel beside the versions, and renames it."""
        staged = self._base / f".staged-{version}"
        shutil.copytree(self._exported[version % 2], staged)
        staged.rename(self._base / str(version))

    def configure(self, versions: Sequence[int], stable: int) -> None:
        """Replaces the configuration file, which the server polls, at once."""
        listed = " ".join(f"versions: {version}" for version in versions)
        text = CONFIG.format(base=self._base, versions=listed, stable=stable)
        staged = self.config.with_suffix(".new")
        staged.write_text(text)
        staged.rename(self.config)

    def delete(self, version: int) -> None:
        """Removes a version's files."""
        shutil.rmtree(self._base / str(version))


def swap(versions: Versions, client: Any, old: int) -> dict:
    """One swap; returns how long its steps took, in seconds."""
    new, start = old + 1, time.monotonic()
    versions.publish(new)
    versions.configure([old, new], old)
    wait_for(lambda: client.versions().get(new) == "AVAILABLE", f"version {new} to load")
    loaded = time.monotonic()
    versions.configure([old, new], new)
    wait_for(lambda: client.metadata().version == new, f"the label to move to {new}")
    moved = time.monotonic()
    versions.configure([new], new)
    wait_for(lambda: client.versions().get(old, "END") == "END", f"version {old} to go")
    versions.delete(old)
    return {
        "version": new,
        "load_s": round(loaded - start, 2),
        "label_s": round(moved - loaded, 2),
        "drop_s": round(time.monotonic() - moved, 2),
    }


def wait_for(condition, what: str, timeout_s: float = 50.0) -> None:
    """Asks again and again."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.2)


def soak(folder: Path, arguments: argparse.Namespace, record: dict, save) -> None:
    """Fills the record, minute by minute."""
    from fct_tf.models import artifact, export, saved_model, transformation
    from fct_tf.serving import client as clients

    exported = []
    for seed in range(2):
        info = {"name": f"soak {seed}", "distance": "l2", "target_space": "c" * 64}
        info |= {"source_space": "a" * 64, "side_info_space": "b" * 64}
        dim = arguments.dim
        network = transformation.build(dim, dim, dim, hidden=arguments.hidden, seed=seed)
        saved = artifact.save(folder / f"artifact_{seed}", network, "transformation", info)
        exported.append(folder / f"saved_model_{seed}")
        export.export_transformation(saved, exported[-1])
    generator = np.random.default_rng(0)
    shape = (arguments.batch, arguments.dim)
    rows = tuple(generator.normal(size=shape).astype(np.float32) for _ in range(2))
    expected = [saved_model.load_transformation(path)(*rows)["embedding"] for path in exported]
    versions = Versions(folder, exported)
    versions.publish(1)
    versions.configure([1], 1)
    flags = {
        "model_config_file": versions.config,
        "model_config_file_poll_wait_seconds": 1,
        "allow_version_labels_for_unavailable_models": True,
        "num_load_threads": 2,
        "num_unload_threads": 2,
    }
    with local_server.serving(flags, folder / "server.log") as (process, port, _):
        target = f"grpc://127.0.0.1:{port}/fct@stable"
        load = Load(target, rows, expected)
        load.start(arguments.clients, arguments.requests_per_s)
        try:
            with clients.connect(target) as client:
                version, start = 1, time.monotonic()
                for minute in range(1, arguments.minutes + 1):
                    swapped = swap(versions, client, version)
                    version += 1
                    memory = []
                    while (left := start + 60 * minute - time.monotonic()) > 0:
                        time.sleep(min(left, MEMORY_EVERY_S))
                        memory.append(local_server.resident_bytes(process))
                    memory = memory or [local_server.resident_bytes(process)]
                    record["minutes"].append(
                        {
                            "minute": minute,
                            **swapped,
                            "resident_bytes": round(statistics.median(memory)),
                            "max_resident_bytes": max(memory),
                            **load.take(),
                        }
                    )
                    summarize(record, load)
                    save()
        except RuntimeError as error:
            record["error"] = str(error)
        finally:
            load.stop()
            summarize(record, load)
            save()


def summarize(record: dict, load: Load) -> None:
    """What the whole run shows so far."""
    minutes = record["minutes"]
    memory = [minute["resident_bytes"] for minute in minutes] or [0]
    growth = max(memory) / memory[0] if memory[0] else 0.0
    record |= {
        "requests": load.requests,
        "failed": len(load.failures),
        "failures": load.failures[:20],
        "wrong": len(load.wrong),
        "wrong_answers": load.wrong[:20],
        "swaps": len(minutes),
        "versions_that_answered": len(load.versions),
        "growth": round(growth, 3),
        "target": MAX_GROWTH,
        "passed": bool(
            minutes
            and not load.failures
            and not load.wrong
            and growth <= MAX_GROWTH
            and "error" not in record
        ),
    }


def main(argv: Sequence[str]) -> None:
    """Soaks, prints a line a minute, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write, after each minute")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests_per_s", type=float, default=20.0, help="of all clients")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=2048)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from fct_tf.common import files

    record: dict[str, Any] = {
        "benchmark": "serving_soak",
        **machine.about(sys.argv),
        "clients": arguments.clients,
        "requests_per_s": arguments.requests_per_s,
        "batch": arguments.batch,
        "minutes": [],
    }

    def save() -> None:
        if record["minutes"]:
            last = record["minutes"][-1]
            print(
                f"minute {last['minute']}: version {last['version']}, {record['requests']} "
                f"requests, {record['failed']} failed, {record['wrong']} wrong, "
                f"{last['resident_bytes'] / 1e6:,.0f} MB, p99 {last['p99_ms']} ms",
                flush=True,
            )
        if arguments.output:
            files.write_records(arguments.output, record)

    with tempfile.TemporaryDirectory() as folder:
        soak(Path(folder), arguments, record, save)
    if "error" in record:
        print(f"ended early: {record['error']}")
    verdict = "passed" if record["passed"] else "missed"
    print(f"{record['swaps']} swaps, memory {record['growth']:.3f} times as much: {verdict}")


if __name__ == "__main__":
    main(sys.argv[1:])
