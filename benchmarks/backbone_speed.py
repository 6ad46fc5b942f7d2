"""How fast the papers' networks train and run, against PyTorch's same networks in the same run.

ResNet-18 with the papers' stem on batches of 128 images of 32 pixels, and the transformation
128 + 128 -> 128 on batches of 1024 rows, float32: as train_backbone and train_transformation
train them, and as embed_gallery and upgrade_gallery run them. Ours with oneDNN and without,
PyTorch with contiguous and with channels-last images. One thread is measured by its processor
time; `--threads 2` by the clock, which says something on an idle machine only: on a busy one
PyTorch's threads wait for each other. Every variant is a process of its own; every round measures
all of them one after the other, and what counts is the median over rounds of the ratio within a
round. `--processors=avx2` has both libraries do without AVX-512.

  python benchmarks/backbone_speed.py --torch_python=PYTHON --output=results/backbone_speed.json

PYTHON is an interpreter that has PyTorch. Target: training at least as fast as PyTorch with
channels-last images.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TASKS = (
    "backbone_training",
    "backbone_inference",
    "transformation_training",
    "transformation_inference",
)
PROCESSORS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
OURS, WITHOUT = "fct_tf", "fct_tf, oneDNN off"
REFERENCE = "PyTorch, channels last"
TARGET = 1.0


class Worker:
    """A process that measures one library's networks when asked to."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._read()["version"]

    def rate(self, task: str, min_s: float) -> float:
        """Examples per second."""
        assert self._process.stdin
        print(json.dumps([task, min_s]), file=self._process.stdin, flush=True)
        return self._read()["rate"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a measuring process has ended, see its message above")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def measure_here(threads: int) -> None:
    """Our side: serves requests as torch_backbone.py does."""
    import fct_tf  # isort: skip  # Before TensorFlow, which it sets up.
    import numpy as np
    import tensorflow as tf

    from fct_tf import config as schema
    from fct_tf.models import artifact, backbone, export, preprocess, saved_model, transformation
    from fct_tf.training import losses, optimizers

    clock = time.process_time if threads == 1 else time.perf_counter
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    rng = np.random.default_rng(0)
    section = schema.model(1, 0, 128, embedding_dim=128)
    network = backbone.build(section.backbone, 32)
    classifier = backbone.classifier(100, 128)
    mapping = transformation.build(128, 128, 128)
    images = tf.constant(rng.normal(size=(128, 32, 32, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 100, 128))
    rows = rng.normal(size=(3, 1024, 128)).astype(np.float32)

    def training(loss, variables):
        optimizer = optimizers.build(section.optimizer, 0.01)
        optimizer.build(variables)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                value = loss()
            gradients = tape.gradient(value, variables)
            optimizers.descend(optimizer, gradients, variables, section.optimizer)
            return value

        return lambda: step().numpy()

    def classified():
        logits = tf.matmul(network(images, training=True), classifier.kernel)
        return tf.reduce_mean(losses.cross_entropy(logits, labels))

    def mapped():
        inputs = {"source_embedding": rows[0], "side_info": rows[1]}
        return tf.reduce_mean(losses.mse(mapping(inputs, training=True)["embedding"], rows[2]))

    with tempfile.TemporaryDirectory() as folder:
        info = {"name": "benchmark", "distance": "l2"}
        images_as = {"preprocessing": preprocess.preprocessing("raw", 32)}
        made = artifact.save(Path(folder) / "backbone", network, "backbone", {**info, **images_as})
        embed = tf.function(artifact.load(made).model)
        spaces = {"source_space": "a", "side_info_space": "b", "target_space": "c"}
        made = artifact.save(Path(folder) / "map", mapping, "transformation", {**info, **spaces})
        exported = export.export_transformation(made, Path(folder) / "saved_model")
        transform = saved_model.load_transformation(exported)
    tasks = {
        "backbone_training": (
            training(classified, network.trainable_variables + classifier.trainable_variables),
            128,
        ),
        "backbone_inference": (lambda: embed(images, training=False).numpy(), 128),
        "transformation_training": (training(mapped, mapping.trainable_variables), 1024),
        "transformation_inference": (lambda: transform(*rows[:2]), 1024),
    }
    print(json.dumps({"version": tf.__version__, "fct_tf": fct_tf.__version__}), flush=True)
    for line in sys.stdin:
        name, min_s = json.loads(line)
        call, size = tasks[name]
        start, calls = clock(), 0
        while calls == 0 or clock() - start < min_s:
            call()
            calls += 1
        print(json.dumps({"rate": calls * size / (clock() - start)}), flush=True)


def measure(arguments: argparse.Namespace, processor: str, threads: int) -> tuple[list, str]:
    """Records of all tasks and variants on one kind of processor, and PyTorch's version."""
    environment = {**PROCESSORS[processor], "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    ours = [sys.executable, __file__, f"--worker={threads}"]
    workers = {
        OURS: Worker(ours, environment),
        WITHOUT: Worker(ours, {**environment, "TF_ENABLE_ONEDNN_OPTS": "0"}),
    }
    if arguments.torch_python:
        script = str(Path(__file__).with_name("torch_backbone.py"))
        theirs = [arguments.torch_python, script, str(threads)]
        workers[REFERENCE] = Worker([*theirs, "channels_last"], environment)
        workers["PyTorch, contiguous"] = Worker([*theirs, "contiguous"], environment)
    records = []
    for task in TASKS:
        rates: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(-1, arguments.rounds):  # round -1 warms up
            for name, worker in workers.items():
                rate = worker.rate(task, arguments.seconds)
                if number >= 0:
                    rates[name].append(rate)
        base = rates.get(REFERENCE, rates[WITHOUT])
        for name, values in rates.items():
            ratios = [value / one for value, one in zip(values, base, strict=True)]
            records.append(
                {
                    **{"processor": processor, "threads": threads, "task": task, "name": name},
                    "per_s": round(statistics.median(values), 1),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                }
            )
            shown = records[-1]
            print(
                f"{processor:7s} {threads} {task:25s} {name:24s} {shown['per_s']:10,.1f} /s "
                f"{shown['ratio']:6.3f} times",
                flush=True,
            )
    for worker in workers.values():
        worker.close()
    return records, workers[REFERENCE].version if REFERENCE in workers else ""


def main() -> None:
    """Measures, prints a line per variant, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement, at least")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--processors", nargs="+", choices=list(PROCESSORS), default=["native"])
    parser.add_argument("--torch_python", default="", help="interpreter that has PyTorch")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure_here(arguments.worker)
        return

    from fct_tf.common.files import write_records
    from fct_tf.common.provenance import library_versions

    results, torch = [], ""
    for processor in arguments.processors:
        for threads in arguments.threads:
            records, torch = measure(arguments, processor, threads)
            results += records
    ratios = [
        record["ratio"]
        for record in results
        if (record["name"], record["task"]) == (OURS, "backbone_training")
    ]
    reached = min(ratios) if torch else None  # Otherwise they are to ours without oneDNN.
    record = {
        "what": "ResNet-18, 32 pixels, batch 128, and the transformation 128 + 128 -> 128, batch "
        "1024, float32; per second of processor time on one thread, of the clock on more; medians "
        "over rounds, ratios to PyTorch with channels-last images",
        # Where the other interpreter lies is nobody's concern.
        "command": machine.command(sys.argv).replace(
            machine.without_directories(f"--torch_python={arguments.torch_python}"),
            "--torch_python=PYTHON",
        ),
        "cpu": machine.cpu(),
        "versions": library_versions() | ({"torch": torch} if torch else {}),
        **{"rounds": arguments.rounds, "seconds": arguments.seconds},
        "results": results,
        "target": {
            "ratio": TARGET,
            "reached": reached,
            "passed": torch != "" and min(ratios) >= TARGET,
        },
    }
    if torch:
        print(f"training a backbone: at least {reached} times PyTorch's speed")
    if arguments.output:
        write_records(arguments.output, record)


if __name__ == "__main__":
    main()
