"""How much the quickstart's figures vary: with the seed, the threads, and the processor.

Trained on another processor, or with other threads, a model sums in another order and so ends
elsewhere, as with another seed. Every combination is a study of its own, in WORKDIR; finished ones
are kept, so that several of these commands can fill one record.

  python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4 --workdir=runs/quickstart_seeds \\
      --output=results/quickstart_seeds.json
  python benchmarks/quickstart_seeds.py --seeds 0 1 --threads=1 --workdir=runs/quickstart_seeds \\
      --output=results/quickstart_seeds.json

The processor time is that of all starts of a study together, without the data set, which is
drawn once (28 s), and holds for the busy machine that it ran on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PROCESSORS: dict[str, dict[str, str]] = {
    "native": {},
    # As a processor without AVX-512 computes.
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
}


def main() -> None:
    """Runs what is asked for and writes a record of all that WORKDIR has."""
    from fct_tf.common.files import write_records
    from fct_tf.common.provenance import library_versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", choices=PROCESSORS, default="native")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        run(arguments, seed)
    if arguments.output:
        records = sorted(map(record, arguments.workdir.glob("*/results.json")), key=_order)
        write_records(
            arguments.output,
            {
                "what": "The quickstart with other seeds, threads and processors; fractions; "
                "deviations are of the seeds with the most records, one processor and threads",
                "command": machine.command(sys.argv),
                "cpu": machine.cpu(),
                "versions": library_versions(),
                "summary": summary(records),
                "records": records,
            },
        )


def run(arguments: argparse.Namespace, seed: int) -> None:
    """One study; adds its processor time to what was spent on it before."""
    threads, processor = arguments.threads, arguments.processor
    workdir = arguments.workdir / f"{processor}_{threads}_{seed}"
    command = [sys.executable, "-m", "fct_tf.study", f"--config={arguments.config}"]
    command += [f"--config.seeds=({seed},)", f"--config.training.threads={threads}"]
    environment = os.environ | PROCESSORS[processor] | {"PYTHONPATH": str(ROOT)}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    before = os.times()
    subprocess.run([*command, f"--workdir={workdir}"], check=True, env=environment, cwd=ROOT)
    after = os.times()
    used = workdir / "usage.json"
    known = json.loads(used.read_text())["cpu_s"] if used.exists() else 0.0
    cpu_s = known + after.children_user - before.children_user
    cpu_s += after.children_system - before.children_system
    settings = {"seed": seed, "threads": threads, "processor": processor}
    used.write_text(json.dumps({**settings, "cpu_s": round(cpu_s, 1)}))


def record(path: Path) -> dict:
    """What a study found: top-1, top-5 and mAP of every case."""
    cases = {
        one["case"]: {"top_1": one["cmc"]["1"], "top_5": one["cmc"]["5"], "map": one["map"]}
        for one in json.loads(path.read_text())
    }
    return {**json.loads((path.parent / "usage.json").read_text()), "cases": cases}


def summary(records: list[dict]) -> dict:
    """Means and deviations over the seeds, and the largest difference with other threads."""
    groups: dict[tuple, dict[int, dict]] = {}
    for one in records:
        groups.setdefault((one["processor"], one["threads"]), {})[one["seed"]] = one
    most = max(groups, key=lambda key: len(groups[key]))
    seeds = groups.pop(most)
    made: dict = {"processor": most[0], "threads": most[1], "seeds": len(seeds)}
    made["cpu_s_most"] = max(one["cpu_s"] for one in records)
    for case in next(iter(seeds.values()))["cases"]:
        made[case] = {}
        for name in ("top_1", "top_5", "map"):
            values = [one["cases"][case][name] for one in seeds.values()]
            moved = [
                abs(one["cases"][case][name] - seeds[seed]["cases"][case][name])
                for group in groups.values()
                for seed, one in group.items()
                if seed in seeds
            ]
            made[case][name] = {
                "mean": round(statistics.fmean(values), 5),
                "deviation": round(statistics.stdev(values), 5) if len(values) > 1 else None,
                "range": [round(min(values), 5), round(max(values), 5)],
                "largest_change_with_threads": round(max(moved), 5) if moved else None,
            }
    return made


def _order(one: dict) -> tuple:
    return one["processor"], -one["threads"], one["seed"]


if __name__ == "__main__":
    main()
