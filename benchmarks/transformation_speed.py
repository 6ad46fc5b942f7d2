"""How fast one core runs the transformation, against the fastest matrix product it can do.

Runs the exported SavedModel as `upgrade_gallery` does (NumPy in, NumPy out), the plain Keras
model, and bfloat16, pinned to one core with one thread. The speed of a shared machine swings
within seconds, so processor time is measured and not the clock on the wall, every round measures
the matrix products and all models one after the other, and what counts is the median over rounds
of the ratio within a round. Target: 80 % of the matrix-product peak in float32.

  python benchmarks/transformation_speed.py --output=results/transformation_speed.json

With `--torch_python=PYTHON`, an interpreter that has PyTorch, also the 1x1-convolution form of
the FCT authors' module and one of `torch.nn.Linear`, in the same rounds on the same core.
"""

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DIM = 128  # of source embedding, side-information and target
# Kernels of the network at these sizes, [in, out]: two branches and the mixer.
KERNELS = [(128, 256), (256, 256)] * 2 + [(512, 2048), (2048, 2048), (2048, 128)]
FLOP_PER_ROW = 2 * sum(rows * columns for rows, columns in KERNELS)
PEAK_SIZES = (1024, 2048, 4096)  # square matrix products
MIN_MEASURE_S = 0.25
TARGET = 0.8
FOLDED = "SavedModel, BatchNorm folded"


def seconds_per_call(call, min_s=MIN_MEASURE_S):
    """Mean processor time of a call, over as many calls as take `min_s`."""
    start, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - start < min_s:
        call()
        calls += 1
    return (time.process_time() - start) / calls


class Torch:
    """A process of another interpreter that measures PyTorch's modules when asked to."""

    def __init__(self, python: str, core: int):
        worker = Path(__file__).with_name("torch_transformation.py")
        self._process = subprocess.Popen(
            [python, str(worker), str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._read()["version"]

    def measure(self, form: str, batch_size: int) -> float:
        """Seconds per call of `conv` or `linear`."""
        assert self._process.stdin
        print(json.dumps([form, batch_size, MIN_MEASURE_S]), file=self._process.stdin, flush=True)
        return self._read()["seconds"]

    def _read(self):
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the PyTorch process has ended, see its message above")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def models(batch_sizes, folder: Path):
    """(name, dtype, batch size) -> a call without arguments that transforms one batch."""
    import numpy as np
    import tensorflow as tf

    from fct_tf.models import artifact, export, saved_model, transformation

    network = transformation.build(DIM, DIM, DIM)
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if "moving" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    info = {"name": "benchmark", "distance": "l2"}
    info |= {"source_space": "source", "side_info_space": "side", "target_space": "target"}
    loaded = artifact.load(artifact.save(folder / "artifact", network, "transformation", info))
    exports = {
        FOLDED: (True, "float32"),
        "SavedModel, BatchNorm not folded": (False, "float32"),
        "SavedModel, BatchNorm folded, bfloat16": (True, "bfloat16"),
    }
    plain: Any = loaded.model  # as read back from the artifact, BatchNorm and all
    keras_model = tf.function(lambda inputs: plain(inputs, training=False)["embedding"])
    calls = {}
    for batch_size in batch_sizes:
        source, side = (rng.normal(size=(batch_size, DIM)).astype(np.float32) for _ in range(2))
        inputs = {"source_embedding": tf.constant(source), "side_info": tf.constant(side)}
        key = ("Keras model in tf.function", "float32", batch_size)
        calls[key] = lambda inputs=inputs: keras_model(inputs).numpy()
        for number, (name, (folded, dtype)) in enumerate(exports.items()):
            path = folder / f"saved_model_{number}"
            if not path.exists():
                export.export_transformation(loaded, path, fold_batch_norm=folded, dtype=dtype)
            model = saved_model.load_transformation(path)
            calls[name, dtype, batch_size] = functools.partial(model, source, side)
    return calls


def matrix_products():
    """(dtype, size) -> a call that multiplies two square matrices."""
    import numpy as np
    import tensorflow as tf

    calls = {}
    for dtype in ("float32", "bfloat16"):
        for size in PEAK_SIZES:
            values = np.random.default_rng(size).normal(size=(2, size, size)).astype(np.float32)
            a, b = (tf.cast(matrix, dtype) for matrix in tf.constant(values))
            # One number is read back: the product is finished then.
            calls[dtype, size] = lambda a=a, b=b: tf.matmul(a, b)[0, 0].numpy()
    return calls


def measure(model_calls, torch: Torch | None, batch_sizes, rounds: int):
    """Rounds of all measurements.

    Returns:
      dtype -> best GFLOP/s of the matrix products in each round, and (name, dtype, batch size)
      -> GFLOP/s in each round.
    """
    product_calls = matrix_products()
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    gflops: dict[tuple, list[float]] = {}
    for round_number in range(-1, rounds):  # round -1 warms up
        best = dict.fromkeys(peaks, 0.0)
        for (dtype, size), call in product_calls.items():
            best[dtype] = max(best[dtype], 2 * size**3 / seconds_per_call(call) / 1e9)
        seconds = {key: seconds_per_call(call) for key, call in model_calls.items()}
        if torch:
            for batch_size in batch_sizes:
                for form in ("conv", "linear"):
                    key = (f"PyTorch, {form}", "float32", batch_size)
                    seconds[key] = torch.measure(form, batch_size)
        if round_number >= 0:
            for dtype in peaks:
                peaks[dtype].append(best[dtype])
            for key, value in seconds.items():
                gflops.setdefault(key, []).append(FLOP_PER_ROW * key[2] / value / 1e9)
    return peaks, gflops


def main() -> None:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--torch_python", default="", help="interpreter that has PyTorch")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})

    import fct_tf  # isort: skip  # noqa: F401  Before TensorFlow, which it sets up.
    import numpy as np
    import tensorflow as tf

    from fct_tf.common.files import write_records
    from fct_tf.common.provenance import library_versions

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    torch = Torch(arguments.torch_python, arguments.core) if arguments.torch_python else None
    with tempfile.TemporaryDirectory() as folder:
        calls = models(arguments.batch_sizes, Path(folder))
        peaks, gflops = measure(calls, torch, arguments.batch_sizes, arguments.rounds)
    if torch:
        torch.close()
    results = []
    for (name, dtype, batch_size), values in gflops.items():
        of_peak = np.array(values) / np.array(peaks["float32"])
        results.append(
            {
                "name": name,
                "dtype": dtype,
                "batch_size": batch_size,
                "rows_per_s": round(float(np.median(values)) * 1e9 / FLOP_PER_ROW),
                "gflop_per_s": round(float(np.median(values)), 1),
                "of_float32_peak": round(float(np.median(of_peak)), 3),
                "of_float32_peak_quartiles": np.percentile(of_peak, [25, 75]).round(3).tolist(),
            }
        )
    # The batch size of upgrade_gallery's default, or the largest measured.
    folded = [result for result in results if result["name"] == FOLDED]
    reached = max(folded, key=lambda result: result["batch_size"])["of_float32_peak"]
    record = {
        "what": "transformation 128 + 128 -> 128, forward pass on one core, processor time; "
        f"peak: the best of square matrix products of {', '.join(map(str, PEAK_SIZES))} in the "
        "same round; medians over rounds",
        # Where the other interpreter lies is nobody's concern.
        "command": shlex.join(["python", *sys.argv]).replace(
            arguments.torch_python or "PYTHON", "PYTHON"
        ),
        "cpu": machine.cpu(),
        "cores": 1,
        "versions": library_versions() | ({"torch": torch.version} if torch else {}),
        "rounds": arguments.rounds,
        "mflop_per_row": FLOP_PER_ROW / 1e6,
        "peak_gflop_per_s": {k: round(float(np.median(v)), 1) for k, v in peaks.items()},
        "results": results,
        "target": {"of_float32_peak": TARGET, "reached": reached, "passed": reached >= TARGET},
    }
    for result in results:
        print(
            f"{result['name']:40s} batch {result['batch_size']:5d} "
            f"{result['rows_per_s']:8,d} rows/s {result['gflop_per_s']:7.1f} GFLOP/s "
            f"{100 * result['of_float32_peak']:5.1f} % of peak"
        )
    print(f"matrix products: {record['peak_gflop_per_s']} GFLOP/s")
    print(f"target {TARGET:.0%}: {'passed' if reached >= TARGET else 'missed'} ({reached:.1%})")
    if arguments.output:
        write_records(arguments.output, record)


if __name__ == "__main__":
    main()
