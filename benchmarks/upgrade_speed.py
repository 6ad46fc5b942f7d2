"""What an upgrade costs: its speed, its memory, and the images that it does not read.

speed: `upgrade` end to end (reads the gallery, runs the SavedModel, writes the column, commits)
beside the bare forward pass of the same SavedModel over the same rows in memory, in turn, several
rounds; what counts is the median of the ratio within a round. Target: 80 % of the bare speed.

memory: peak resident memory of a process that upgrades a small and a large gallery of equal
columns. Target: it does not grow with the gallery (10 % at most).

images: with --model and --images, what a million rows cost, upgraded or embedded again. Both are
extrapolated: from the speed above, and from images read, decoded and embedded as embed_gallery
does (the first batch, which prepares the graph, does not count).

  python benchmarks/upgrade_speed.py --output=results/upgrade_speed.json \\
      --model=runs/omniglot/seed_0/new/artifact --images=tfds:omniglot:test

Galleries are made in TMPDIR: 2 GB with the sizes given here, and removed. TFDS_DATA_DIR names
the directory of TFDS data sets.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import machine
import numpy as np

SPACES = {"embedding_old": "a" * 64, "side_info": "b" * 64, "new": "c" * 64}
SOURCES = ("embedding_old", "side_info")
MIN_OF_BARE = 0.8
MAX_MEMORY_GROWTH = 1.1
REEMBEDDED = 1_000_000


def make_transformation(folder: Path, dim: int, hidden: int) -> Path:
    """An exported transformation of random weights, from 2 x `dim` values to `dim`."""
    from fct_tf.models import artifact, export, transformation

    info = {"name": "benchmark", "distance": "l2", "target_space": SPACES["new"]}
    info |= {"source_space": SPACES["embedding_old"], "side_info_space": SPACES["side_info"]}
    network = transformation.build(dim, dim, dim, hidden=hidden)
    saved = artifact.save(folder / "artifact", network, "transformation", info)
    export.export_transformation(saved, folder / "saved_model")
    return folder / "saved_model"


def make_gallery(path: Path, count: int, dim: int, rows_per_file: int) -> str:
    """A gallery of `count` random rows with both source columns."""
    from fct_tf.gallery import table

    generator = np.random.default_rng(0)

    def batches() -> Iterator[table.Rows]:
        for start in range(0, count, 1 << 16):
            numbers = range(start, min(start + (1 << 16), count))
            ids = np.array([f"gallery/{number:09d}.jpg" for number in numbers], object)
            shape = (len(ids), dim)
            vectors = {name: generator.standard_normal(shape, np.float32) for name in SOURCES}
            yield table.Rows(ids, None, vectors)

    columns = [table.Column(name, dim, SPACES[name]) for name in SOURCES]
    table.create(path, batches(), columns, rows_per_file=rows_per_file)
    return str(path)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Time on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def measure_speed(folder: Path, arguments: argparse.Namespace) -> dict:
    """Both ways in turn, `rounds` times after one that warms up."""
    from fct_tf.gallery import table
    from fct_tf.models import saved_model
    from fct_tf.upgrade import upgrade

    exported = make_transformation(folder, arguments.dim, arguments.hidden)
    path = make_gallery(folder / "g.lance", arguments.rows, arguments.dim, arguments.rows_per_file)
    size = arguments.batch_size
    vectors = table.open_gallery(path).read(SOURCES, with_ids=False).vectors
    transformation = saved_model.load_transformation(exported)

    def bare() -> None:
        for start in range(0, arguments.rows, size):
            transformation(*(vectors[name][start : start + size] for name in SOURCES))

    def end_to_end() -> None:
        upgrade.Upgrade(path, exported, f"round_{next(numbers)}", batch_size=size).run()

    numbers = itertools.count()
    calls: dict[str, Callable[[], None]] = {"bare": bare, "end_to_end": end_to_end}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(-1, arguments.rounds):
        for name, call in calls.items():
            spent = seconds(call)
            if number >= 0:
                times[name].append(spent)
    pairs = list(zip(times["bare"], times["end_to_end"], strict=True))
    ratio = statistics.median(bare[0] / whole[0] for bare, whole in pairs)
    data = Path(path) / "data"
    written = sum(file.stat().st_size for file in data.iterdir())
    source = sum(
        (data / file["path"]).stat().st_size
        for fragment in table.open_gallery(f"{path}@1").dataset.get_fragments()
        for file in fragment.metadata.to_json()["files"]
    )
    return {
        "rows": arguments.rows,
        "dims": [arguments.dim] * 3,
        "hidden": arguments.hidden,
        "batch_size": size,
        "rounds": arguments.rounds,
        **{
            f"{name}_rows_per_s": round(arguments.rows / statistics.median(t[0] for t in spent))
            for name, spent in times.items()
        },
        "of_bare": round(ratio, 3),
        # Where other programs run too, this says more: it does not count the time they take.
        "of_bare_processor_time": round(
            statistics.median(bare[1] / whole[1] for bare, whole in pairs), 3
        ),
        "file_bytes_read_per_row": round(source / arguments.rows, 1),
        "file_bytes_written_per_row": round(
            (written - source) / arguments.rows / (arguments.rounds + 1), 1
        ),
        "target": MIN_OF_BARE,
        "passed": ratio >= MIN_OF_BARE,
    }


def measure_memory(folder: Path, arguments: argparse.Namespace) -> dict:
    """Peak memory of upgrades in processes of their own."""
    from fct_tf.gallery import table

    exported = make_transformation(folder, arguments.memory_dim, arguments.memory_hidden)
    sizes = []
    for count in arguments.memory_rows:
        path = make_gallery(
            folder / f"{count}.lance", count, arguments.memory_dim, arguments.rows_per_file
        )
        runs = []
        for number in range(arguments.memory_rounds):
            command = [sys.executable, __file__, "--child", path, str(exported), f"x{number}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout))
        size = {key: max(run[key] for run in runs) for key in ("peak_bytes", "seconds")}
        fragments = len(table.open_gallery(path).dataset.get_fragments())
        sizes.append({"rows": count, "fragments": fragments, **size})
    growth = sizes[-1]["peak_bytes"] / sizes[0]["peak_bytes"]
    return {
        "dims": [arguments.memory_dim] * 3,
        "hidden": arguments.memory_hidden,
        "sizes": sizes,
        "growth": round(growth, 3),
        "target": MAX_MEMORY_GROWTH,
        "passed": growth <= MAX_MEMORY_GROWTH,
    }


def upgrade_here(path: str, transformation: str, column: str) -> None:
    """The process whose memory is measured: an upgrade and nothing else."""
    from fct_tf.upgrade import upgrade

    spent = seconds(lambda: upgrade.Upgrade(path, transformation, column).run().gallery)
    print(json.dumps({"peak_bytes": machine.peak_bytes(), "seconds": round(spent[0], 1)}))


def measure_images(speed: dict, arguments: argparse.Namespace) -> dict:
    """A million rows upgraded beside a million images embedded again, extrapolated."""
    from fct_tf.data import datasets
    from fct_tf.models.load import load_any

    loaded = load_any(arguments.model)
    preprocessing = loaded.preprocessing
    # What lies under the image set: only encoded images have a size to be read.
    _, source = datasets.open_source(arguments.images, "", "")
    images = datasets.load(
        arguments.images,
        image_size=preprocessing["size"],
        resize=preprocessing["resize"],
        cache="none",
    )
    count = min(len(source.labels), arguments.num_images)
    encoded = source.encoded(np.arange(count)).map(
        lambda example: source.content(example["encoded"])
    )
    mean_bytes = statistics.mean(len(content) for content in encoded.as_numpy_iterator())
    batches = iter(datasets.eval_batches(images, arguments.image_batch_size))
    loaded.embed(next(batches)["image"]).numpy()
    done, start = 0, time.perf_counter()
    for batch in itertools.islice(batches, max(1, count // arguments.image_batch_size - 1)):
        done += len(loaded.embed(batch["image"]).numpy())
    images_per_s = done / (time.perf_counter() - start)
    row_bytes = 4 * sum(speed["dims"][:2])
    upgraded = {
        "seconds": round(REEMBEDDED / speed["end_to_end_rows_per_s"], 1),
        "bytes_read": REEMBEDDED * row_bytes,
        "bytes_written": REEMBEDDED * 4 * speed["dims"][2],
    }
    embedded = {
        "seconds": round(REEMBEDDED / images_per_s, 1),
        "bytes_read": round(REEMBEDDED * mean_bytes),
        "bytes_written": REEMBEDDED * 4 * loaded.dim,
    }
    return {
        "extrapolated_to": REEMBEDDED,
        "images": machine.without_directories(images.name),
        "image_size": images.image_size,
        "images_measured": done,
        "images_per_s": round(images_per_s, 1),
        "mean_encoded_bytes": round(mean_bytes, 1),
        "upgrade": upgraded,
        "embed": embedded,
        "times_as_fast": round(embedded["seconds"] / upgraded["seconds"], 1),
        "times_as_many_bytes_read": round(embedded["bytes_read"] / upgraded["bytes_read"], 2),
    }


def main(argv: Sequence[str]) -> None:
    """Measures, prints what came out, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--batch_size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows_per_file", type=int, default=1 << 20, help="as table.create")
    sizes = [100_000, 5_000_000]
    parser.add_argument("--memory_rows", type=int, nargs="*", default=sizes, help="none: skip it")
    parser.add_argument("--memory_rounds", type=int, default=2)
    parser.add_argument("--memory_dim", type=int, default=32)
    parser.add_argument("--memory_hidden", type=int, default=64)
    parser.add_argument("--model", default="", help="artifact of an embedding model")
    parser.add_argument("--images", default="", help="what it embeds")
    parser.add_argument("--num_images", type=int, default=4096)
    parser.add_argument("--image_batch_size", type=int, default=256)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.child:
        upgrade_here(*arguments.child)
        return

    from fct_tf.common import files

    with tempfile.TemporaryDirectory() as folder:
        memory = None
        if arguments.memory_rows:
            memory = measure_memory(files.make_dir(Path(folder) / "memory"), arguments)
        speed = measure_speed(files.make_dir(Path(folder) / "speed"), arguments)
    record = {
        "benchmark": "upgrade_speed",
        **machine.about(sys.argv),
        "speed": speed,
        "memory": memory,
        "images": measure_images(speed, arguments) if arguments.model else None,
    }
    show(record)
    if arguments.output:
        files.write_records(arguments.output, record)


def show(record: dict) -> None:
    """Prints the figures and whether the targets are met."""
    speed, memory, images = (record[key] for key in ("speed", "memory", "images"))
    verdict = {True: "passed", False: "missed"}
    print(
        f"end to end {speed['end_to_end_rows_per_s']:,} rows/s, {speed['of_bare']:.1%} of the bare "
        f"{speed['bare_rows_per_s']:,} rows/s ({speed['of_bare_processor_time']:.1%} by processor "
        f"time): target {MIN_OF_BARE:.0%} {verdict[speed['passed']]}"
    )
    for size in memory["sizes"] if memory else ():
        peak = size["peak_bytes"] / 1e6
        print(f"{size['rows']:,} rows: peak {peak:,.0f} MB, {size['seconds']} s")
    if memory:
        print(
            f"memory {memory['growth']:.3f} times as much: at most {MAX_MEMORY_GROWTH} "
            f"{verdict[memory['passed']]}"
        )
    for name in ("upgrade", "embed") if images else ():
        read, written = (images[name][f"bytes_{key}"] / 1e6 for key in ("read", "written"))
        print(
            f"{name} {REEMBEDDED:,}: {images[name]['seconds']:,} s, {read:,.0f} MB read, "
            f"{written:,.0f} MB written"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
