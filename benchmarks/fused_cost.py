"""What a fused search costs: a query's encoders, the upgrade of the gallery, and the search itself.

query: the exported query encoder of the new model beside that of a fused search, which holds both
models, one image at a time and in batches; in turn, several rounds, the median counts.

upgrade: `upgrade_gallery` by the plain map and by the fused one, on random rows; in turn.

search: exact search of the same number of rows with the values of one model and of both.

  python benchmarks/fused_cost.py --run=runs/omniglot_fused/seed_0 --output=results/fused_cost.json

RUN is the directory of one seed of a study that has the models `old` and `new` and the
transformations `fct` and `fct_fused`. Galleries are made in TMPDIR and removed.
"""

import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.files import check_output_file, write_records
from fct_tf.gallery import table
from fct_tf.retrieval import exact

PLAIN, FUSED = "fct", "fct_fused"


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; in turn, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def query_latency(run: Path, folder: Path, batches: Sequence[int], rounds: int) -> list[dict]:
    """Milliseconds of a call of both query encoders, of images of the models' own size."""
    import tensorflow as tf

    from fct_tf.models import saved_model
    from fct_tf.serving import exports

    new = run / "new" / "artifact"
    fused = run / FUSED / "artifact"
    paths = {
        "new": exports.export_model(new, str(folder / "new")),
        "both": exports.export_model(
            fused,
            str(folder / "both"),
            encoder=str(run / "old" / "artifact"),
            target_encoder=str(new),
        ),
    }
    loaded = {name: tf.saved_model.load(path) for name, path in paths.items()}
    embed = {name: model.signatures[saved_model.RESIZED] for name, model in loaded.items()}
    (shape,) = {
        tuple(signature.structured_input_signature[1]["image"].shape[1:])
        for signature in embed.values()
    }
    found = []
    for size in batches:
        images = tf.constant(
            np.random.default_rng(0).integers(0, 256, (size, *shape), dtype=np.uint8)
        )
        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(call, image=images) for name, call in embed.items()
        }
        spent = medians(calls, rounds)
        found.append(
            {
                "images": size,
                "new_ms": round(1000 * spent["new"], 3),
                "both_ms": round(1000 * spent["both"], 3),
                "times": round(spent["both"] / spent["new"], 2),
            }
        )
    return found


def make_gallery(path: Path, columns: Sequence[table.Column], count: int) -> str:
    """A gallery of random rows with these columns."""
    generator = np.random.default_rng(0)

    def batches() -> Iterator[table.Rows]:
        for start in range(0, count, 1 << 16):
            numbers = range(start, min(start + (1 << 16), count))
            ids = np.array([f"{number:09d}" for number in numbers], object)
            vectors = {
                one.name: generator.normal(size=(len(ids), one.dim)).astype(np.float32)
                for one in columns
            }
            yield table.Rows(ids, None, vectors)

    table.create(path, batches(), columns)
    return str(path)


def upgrades(run: Path, folder: Path, count: int, rounds: int) -> dict:
    """Rows per second and bytes a row of both upgrades."""
    from fct_tf.models import artifact
    from fct_tf.upgrade import upgrade

    paths = {name: run / name / "artifact" for name in (PLAIN, FUSED)}
    info = {name: artifact.load(path).info for name, path in paths.items()}
    dims = info[PLAIN]["dims"]
    columns = [
        table.Column("embedding_old", dims["source_embedding"], info[PLAIN]["source_space"]),
        table.Column("side_info", dims["side_info"], info[PLAIN]["side_info_space"]),
    ]
    gallery = make_gallery(folder / "gallery.lance", columns, count)
    numbers = itertools.count()

    def run_upgrade(path: Path) -> None:
        upgrade.Upgrade(gallery, path, f"column_{next(numbers)}").run()

    spent = medians(
        {name: functools.partial(run_upgrade, path) for name, path in paths.items()},
        rounds,
    )
    rate = {name: count / seconds for name, seconds in spent.items()}
    return {
        "rows": count,
        "plain_rows_per_s": round(rate[PLAIN]),
        "fused_rows_per_s": round(rate[FUSED]),
        "speed": round(rate[FUSED] / rate[PLAIN], 3),
        "plain_bytes_per_row": 4 * info[PLAIN]["dims"]["embedding"],
        "fused_bytes_per_row": 4 * info[FUSED]["dims"]["embedding"],
    }


def searches(dims: Sequence[int], count: int, queries: int, rounds: int) -> dict:
    """Milliseconds a query of exact search for ten rows: rows of one model, and of both."""
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(count + queries, dim)).astype(np.float32) for dim in dims]
    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(exact.search, one[:queries], one[queries:], 10)
        for name, one in zip(("one", "both"), rows, strict=True)
    }
    spent = medians(calls, rounds)
    return {
        "rows": count,
        "dims": list(dims),
        "one_ms": round(1000 * spent["one"] / queries, 3),
        "both_ms": round(1000 * spent["both"] / queries, 3),
        "times": round(spent["both"] / spent["one"], 2),
    }


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "Of one seed of a study.", required=True, flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write.", required=True, flag_values=values)
    flags.DEFINE_list("batches", ["1", "8", "32"], "Images a call.", flag_values=values)
    flags.DEFINE_integer("rows", 300_000, "Of the gallery.", flag_values=values)
    flags.DEFINE_integer("queries", 256, "Of the exact search.", flag_values=values)
    flags.DEFINE_integer("rounds", 7, "In turn.", lower_bound=1, flag_values=values)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    check_output_file(values.output, values.overwrite, "--output")
    run, batches = Path(values.run), [int(one) for one in values.batches]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        query = query_latency(run, folder, batches, 20 * values.rounds)
        print(*query, sep="\n", flush=True)
        upgrade = upgrades(run, folder, values.rows, values.rounds)
        print(upgrade, flush=True)
    dims = [upgrade[f"{kind}_bytes_per_row"] // 4 for kind in ("plain", "fused")]
    search = searches(dims, values.rows, values.queries, values.rounds)
    print(search)
    record = {
        "benchmark": "fused_cost",
        "query": query,
        "upgrade": upgrade,
        "search": search,
        **machine.about(sys.argv),
    }
    write_records(values.output, record)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
