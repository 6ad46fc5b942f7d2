"""The tuner beside the full sweep that it replaces: how fast its answer is, and what it took.

The sweep builds every combination of the settings that the tuner changes one after another, and
measures recall and speed of each at many searches. Of its points that reach a recall, the fastest
are measured again in turn with the tuner's answer; what counts is the best of the rounds. `qps` and
`time` are by processor time, which hardly depends on what else the machine does; `seconds` are by
the clock too. Targets: at least 90 % of the speed, in at most a tenth of the time.

  python benchmarks/ann_tuner.py --rows=train.lance,test.lance --column=embedding_new \\
      --output=results/ann_tuner.json

Queries are a thousand of the rows, each without itself. `--coarse` halves the sweep's values, for
millions of rows.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
from absl import flags

from fct_tf.ann import effort, tuner
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.common import cli, flag_groups
from fct_tf.common.files import check_output_file, write_json
from fct_tf.gallery import table

WANTED = (0.9, 0.95, 0.99)
MIN_SPEED, MAX_TIME = 0.9, 0.1
# Points of the sweep that are measured again.
FINALISTS, ROUNDS, SECONDS = 5, 9, 0.2


def clocks() -> np.ndarray:
    """Seconds by the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def grid(usual: Settings, distance: str, coarse: bool) -> Iterator[Settings]:
    """Every combination of the settings of a build."""
    leaves = [round(usual.num_leaves * times) for times in (0.25, 0.5, 1, 2, 4)]
    values: dict[str, Sequence[Any]] = {
        "num_leaves": leaves[1:4] if coarse else leaves,
        "dimensions_per_block": (2,) if coarse else (1, 2, 4),
        "residual_quantization": (False, True) if distance == "cosine" else (False,),
        "reordering_data": ("float32", "bfloat16"),
    }
    for combination in itertools.product(*values.values()):
        yield dataclasses.replace(usual, **dict(zip(values, combination, strict=True)))


def searches(settings: Settings, k: int) -> Iterator[effort.Search]:
    """Every combination of the settings of a search."""
    # From 1 up by a half or so, to half of the leaves.
    steps = np.unique(np.round(1.5 ** np.arange(40)).astype(int))
    for leaves in steps[steps <= settings.num_leaves // 2].tolist():
        for times in effort.REORDERED:
            yield {"num_leaves_to_search": leaves, "reordering_num_neighbors": times * k}


def sweep(case: effort.Case, usual: Settings, coarse: bool) -> list[tuple[float, effort.Build]]:
    """(queries per second of processor time, build) of every point."""
    points = []
    for settings in grid(usual, case.distance, coarse):
        searcher = Searcher.build(case.rows, case.distance, settings)
        for search in searches(settings, case.k):
            build = effort.Build(searcher, search, case.recall(searcher, search))
            points.append((case.race([build])[0], build))
        print(f"{build.told}: {len(points)} points", flush=True)
    return points


def compare(rows: np.ndarray, distance: str, threads: int, coarse: bool) -> dict:
    """The record of some rows."""
    started = clocks()
    case = effort.Case.of(rows, distance, 0.0, 10, None, threads, 0)
    num_rows, dim = rows.shape
    points = sweep(case, Settings.for_rows(num_rows, dim, distance), coarse)
    swept_s = clocks() - started
    results = []
    for wanted in WANTED:
        started = clocks()
        found = tuner.tune(rows, distance, wanted, threads=threads)
        tuned_s = clocks() - started
        reaching = [point for point in points if point[1].recall >= wanted]
        if not reaching:
            raise SystemExit(f"no point of the sweep reaches a recall of {wanted}")
        reaching = sorted(reaching, key=lambda one: -one[0])[:FINALISTS]
        search = {
            name: getattr(found.settings, name)
            for name in ("num_leaves_to_search", "reordering_num_neighbors")
        }
        tuned = effort.Build(found.searcher, search, found.recall)
        builds = [tuned, *(build for _, build in reaching)]
        speeds = case.race(builds, rounds=ROUNDS, seconds=SECONDS)
        best = 1 + int(np.argmax(speeds[1:]))
        results.append(
            {
                "wanted_recall": wanted,
                "recall": found.recall,
                "qps": round(speeds[0]),
                "settings": tuned.told,
                "sweep_recall": builds[best].recall,
                "sweep_qps": round(speeds[best]),
                "sweep_settings": builds[best].told,
                "speed": round(speeds[0] / speeds[best], 3),
                "builds": found.builds,
                **dict(zip(("seconds", "cpu_seconds"), tuned_s.round(1).tolist(), strict=True)),
                "time": round(float((tuned_s / swept_s)[1]), 4),
            }
        )
        print(results[-1], flush=True)
    return {
        **{"num_rows": len(rows), "dim": rows.shape[1], "distance": distance, "threads": threads},
        "sweep": {
            "points": len(points),
            "builds": len({id(build.searcher) for _, build in points}),
            **dict(zip(("seconds", "cpu_seconds"), swept_s.round(1).tolist(), strict=True)),
        },
        "results": results,
        "passed": all(one["speed"] >= MIN_SPEED and one["time"] <= MAX_TIME for one in results),
    }


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_list("rows", None, "Galleries, as one.", required=True, flag_values=values)
    flags.DEFINE_string("column", None, "Of them.", required=True, flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write.", required=True, flag_values=values)
    flags.DEFINE_integer("threads", 1, "Of searches.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("coarse", False, "Sweep fewer values.", flag_values=values)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    check_output_file(values.output, values.overwrite, "output")
    galleries = [table.open_gallery(path) for path in values.rows]
    parts = [gallery.read([values.column], with_ids=False) for gallery in galleries]
    rows = np.concatenate([part.vectors[values.column] for part in parts])
    distance = galleries[0].column(values.column).distance
    record = {
        "data": [Path(gallery.path).name for gallery in galleries],
        **compare(rows, distance, values.threads, values.coarse),
        **machine.about(sys.argv),
    }
    write_json(values.output, record)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
