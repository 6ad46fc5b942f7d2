"""How much a model server carries: clients x rows per request, by gRPC and REST.

Beside it, in the same run and in turn: the same SavedModel called in process by as many threads,
and a gRPC server in Python that answers each request with a constant, which is as fast as any
server on Python's gRPC can be. A server with batching and one without are measured.

Clients are threads of one process without TensorFlow, each with a connection of its own; each
sends its next request when the last is answered. A request's latency is what a client sees.
Ratios are of one round; the median over the rounds counts, since a machine's speed changes.

  python benchmarks/serving_load.py --output=results/serving_load.json \\
      --plot=results/serving_load.svg

Target: gRPC, with batches of 128 rows and 8 clients, carries 60 % of the rows that calls in
process do.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import local_server
import machine
import numpy as np

MIN_OF_IN_PROCESS = 0.6
TARGET_POINT = (8, 128)
IN_PROCESS = "in process"
ECHO = "gRPC, constant answer"
WARM_UP_S = 0.5
# As in serving/: see batching.config there.
BATCHING = """max_batch_size {{ value: 128 }}
batch_timeout_micros {{ value: 1000 }}
max_enqueued_batches {{ value: 64 }}
num_batch_threads {{ value: {cores} }}
"""

Call = Callable[[np.ndarray, np.ndarray], Any]


def drive(calls: Sequence[Call], batch: int, dim: int, seconds: float) -> dict:
    """Each call in a thread of its own, again and again."""
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(batch, dim)).astype(np.float32) for _ in range(2)]
    latencies: list[list[float]] = [[] for _ in calls]
    failures: list[str] = []
    start = time.perf_counter() + WARM_UP_S

    def work(call: Call, own: list[float]) -> None:
        while (before := time.perf_counter()) < start + seconds:
            try:
                call(*rows)
            except Exception as error:  # Counted: a load test ends with its last request.
                failures.append(str(error))
                time.sleep(0.01)
                continue
            after = time.perf_counter()
            if before >= start:
                own.append(after - before)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(calls, latencies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - start
    every = np.concatenate([np.array(own) for own in latencies])
    p50, p95, p99 = 1000 * np.percentile(every, [50, 95, 99]) if len(every) else [0.0] * 3
    return {
        "requests": len(every),
        "requests_per_s": round(len(every) / taken, 1),
        "rows_per_s": round(batch * len(every) / taken, 1),
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "failed": len(failures),
        "failure": failures[0] if failures else None,
    }


def load_here(arguments: argparse.Namespace) -> None:
    """The process that sends requests: a point a line of standard input, its figures as answer."""
    from fct_tf.serving import client

    for line in sys.stdin:
        point = json.loads(line)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(client.connect(point["target"]))
                for _ in range(point["clients"])
            ]
            for one in clients:
                one.metadata()
            calls = [one.transform for one in clients]
            answer = drive(calls, point["batch"], arguments.dim, arguments.seconds)
        print(json.dumps(answer), flush=True)


def in_process_here(arguments: argparse.Namespace) -> None:
    """The process that runs the SavedModel itself; the same protocol."""
    import tensorflow as tf

    from fct_tf.models import saved_model

    tf.config.threading.set_intra_op_parallelism_threads(arguments.intra_op)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.inter_op)
    model = saved_model.load_transformation(arguments.model)
    for line in sys.stdin:
        point = json.loads(line)
        calls = [model] * point["clients"]
        print(
            json.dumps(drive(calls, point["batch"], arguments.dim, arguments.seconds)), flush=True
        )


def echo_here(arguments: argparse.Namespace) -> None:
    """A server that parses a request and answers with a constant."""
    import grpc

    from fct_tf.serving import wire

    signatures = wire.messages["SignatureDefMap"]()
    signature = signatures.signature_def["serving_default"]
    for infos, names in (
        (signature.inputs, ("source_embedding", "side_info")),
        (signature.outputs, ("embedding",)),
    ):
        for name in names:
            infos[name].dtype = wire.NAMES["DT_FLOAT"]
            for size in (-1, arguments.dim):
                infos[name].tensor_shape.dim.add(size=size)
    metadata = wire.messages["GetModelMetadataResponse"]()
    metadata.metadata["signature_def"].value = signatures.SerializeToString()
    known: dict[int, bytes] = {}

    def predict(request, _) -> bytes:
        count = len(wire.decode(request.inputs["source_embedding"]))
        if count not in known:
            reply = wire.messages["PredictResponse"]()
            rows = np.zeros((count, arguments.dim), np.float32)
            reply.outputs["embedding"].CopyFrom(wire.encode(rows))
            known[count] = reply.SerializeToString()
        return known[count]

    handlers = {
        "Predict": grpc.unary_unary_rpc_method_handler(
            predict, wire.messages["PredictRequest"].FromString
        ),
        "GetModelMetadata": grpc.unary_unary_rpc_method_handler(
            lambda *_: metadata.SerializeToString()
        ),
    }
    server = grpc.server(futures.ThreadPoolExecutor(32))
    service = "tensorflow.serving.PredictionService"
    server.add_registered_method_handlers(service, handlers)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


@contextlib.contextmanager
def child(role: str, arguments: argparse.Namespace, *more: str) -> Iterator[subprocess.Popen]:
    """This file as a process of one of the roles above."""
    names = ("dim", "seconds", "intra_op", "inter_op")
    command = [sys.executable, __file__, f"--child={role}", *more]
    command += [f"--{name}={getattr(arguments, name)}" for name in names]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def ask(process: subprocess.Popen, point: dict) -> dict:
    """The figures of a point."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(point) + "\n")
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"a process of the benchmark ended at {point}")
    return json.loads(answer)


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """All points, round by round, all ways of a point in turn."""
    from upgrade_speed import make_transformation

    exported = make_transformation(folder, arguments.dim, arguments.hidden)
    base = folder / "served"
    base.mkdir()
    exported.rename(base / "1")
    cores = len(os.sched_getaffinity(0))
    parameters = folder / "batching.config"
    parameters.write_text(BATCHING.format(cores=cores))
    flags: dict[str, Any] = {
        "model_name": "fct",
        "model_base_path": base,
        "tensorflow_intra_op_parallelism": arguments.intra_op,
        "tensorflow_inter_op_parallelism": arguments.inter_op,
        "enable_serialization_as_tensor_content": True,
    }
    batched = flags | {"enable_batching": True, "batching_parameters_file": parameters}
    points: list[dict] = []
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        ways: dict[str, tuple[subprocess.Popen, str, int]] = {}
        local = enter(child("in_process", arguments, f"--model={base / '1'}"))
        ways[IN_PROCESS] = (local, "", local.pid)
        load = enter(child("load", arguments))
        for name, settings in (("", flags), (", batching", batched)):
            log = folder / f"server{len(ways)}.log"
            server, grpc_port, rest_port = enter(local_server.serving(settings, log))
            ways[f"gRPC{name}"] = (load, f"grpc://127.0.0.1:{grpc_port}/fct", server)
            ways[f"REST{name}"] = (load, f"http://127.0.0.1:{rest_port}/fct", server)
        echo = enter(child("echo", arguments))
        assert echo.stdout
        port = int(echo.stdout.readline())
        ways[ECHO] = (load, f"grpc://127.0.0.1:{port}/fct", echo.pid)
        for batch in arguments.batch_sizes:
            for clients in arguments.clients:
                point: dict[str, Any] = {"clients": clients, "batch": batch}
                rounds: dict[str, list[dict]] = {name: [] for name in ways}
                for _ in range(arguments.rounds):
                    for name, (process, target, server) in ways.items():
                        before = local_server.processor_s(server)
                        figures = ask(process, {**point, "target": target})
                        used = local_server.processor_s(server) - before
                        # The warm-up's time is in it.
                        figures["server_cores"] = round(used / (arguments.seconds + WARM_UP_S), 2)
                        rounds[name].append(figures)
                points.append(point | {"ways": summary(rounds)})
                show_point(points[-1])
    return points


def summary(rounds: dict[str, list[dict]]) -> dict[str, dict]:
    """Medians over the rounds; `of_in_process` is the median of the rounds' ratios."""
    found = {}
    for name, figures in rounds.items():
        median = {
            key: round(statistics.median(f[key] for f in figures), 3)
            for key in figures[0]
            if key not in ("failed", "failure", "requests")
        }
        pairs = zip(figures, rounds[IN_PROCESS], strict=True)
        ratios = [one["rows_per_s"] / other["rows_per_s"] for one, other in pairs]
        found[name] = median | {
            "requests": sum(f["requests"] for f in figures),
            "failed": sum(f["failed"] for f in figures),
            "failure": next((f["failure"] for f in figures if f["failure"]), None),
            "of_in_process": round(statistics.median(ratios), 3),
        }
    return found


def show_point(point: dict) -> None:
    """A line per way."""
    for name, way in point["ways"].items():
        print(
            f"{point['clients']:>3} clients x {point['batch']:>3} rows, {name + ':':<23}"
            f"{way['rows_per_s']:>10,.0f} rows/s  {way['of_in_process']:>6.1%}  "
            f"p50 {way['p50_ms']:.2f}  p95 {way['p95_ms']:.2f}  p99 {way['p99_ms']:.2f} ms"
            + (f"  {way['failed']} FAILED: {way['failure']}" if way["failed"] else ""),
            flush=True,
        )


def plot(record: dict, path: str) -> None:
    """Rows per second above, p99 below; a column per batch size."""
    import matplotlib
    from matplotlib.figure import Figure

    from fct_tf.report import plots

    with matplotlib.rc_context(plots.settings("light")):
        figure = Figure(layout="constrained")
        _draw(figure, record)
        plots.save(figure, path)


def _draw(figure, record: dict) -> None:
    from fct_tf.report import plots

    sizes = sorted({point["batch"] for point in record["points"]})
    figure.set_size_inches(3.4 * len(sizes), 6)
    axes = figure.subplots(2, len(sizes), sharex=True, squeeze=False)
    colours = {"in process": "black", "gRPC": "C0", "REST": "C1"}
    for column, size in enumerate(sizes):
        points = [point for point in record["points"] if point["batch"] == size]
        clients = [point["clients"] for point in points]
        for name in points[0]["ways"]:
            colour = "0.6" if name == ECHO else colours[name.split(",")[0]]
            style = "--" if "batching" in name else "-"
            for row, key in enumerate(("rows_per_s", "p99_ms")):
                values = [point["ways"][name][key] for point in points]
                axes[row, column].plot(clients, values, style, color=colour, marker=".", label=name)
        axes[0, column].set_title(f"{size} row{'s' if size > 1 else ''} per request")
        axes[1, column].set_xlabel("clients")
        for axis in axes[:, column]:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            plots.plain_log(axis.yaxis)
            axis.set_xticks(clients, map(str, clients))
    axes[0, 0].set_ylabel("rows/s")
    axes[1, 0].set_ylabel("p99 latency, ms")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


def main(argv: Sequence[str]) -> None:
    """Measures, prints what came out, writes the JSON and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--plot", default="", help="SVG or PNG file to write")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=2.0, help="per point, way and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intra_op", type=int, default=1, help="threads of an operation")
    parser.add_argument("--inter_op", type=int, default=0, help="operations at a time; 0: cores")
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    roles = {"load": load_here, "in_process": in_process_here, "echo": echo_here}
    parser.add_argument("--child", choices=roles, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.child:
        roles[arguments.child](arguments)
        return

    from fct_tf.common import files

    with tempfile.TemporaryDirectory() as folder:
        points = measure(Path(folder), arguments)
    record: dict[str, Any] = {
        "benchmark": "serving_load",
        **machine.about(sys.argv),
        "dims": [arguments.dim] * 3,
        "hidden": arguments.hidden,
        "threads": {"intra_op": arguments.intra_op, "inter_op": arguments.inter_op},
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "points": points,
        "target": MIN_OF_IN_PROCESS,
    }
    for point in points:
        if (point["clients"], point["batch"]) == TARGET_POINT:
            best = max(point["ways"][name]["of_in_process"] for name in ("gRPC", "gRPC, batching"))
            record |= {"of_in_process": best, "passed": best >= MIN_OF_IN_PROCESS}
            verdict = "passed" if record["passed"] else "missed"
            print(f"gRPC {best:.1%} of in process: target {MIN_OF_IN_PROCESS:.0%} {verdict}")
    if arguments.output:
        files.write_records(arguments.output, record)
    if arguments.plot:
        plot(record, arguments.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
