"""What README.md and docs/ show of results/: `python -m tests.pages` writes it anew.

`<!-- KIND: results/NAME.json -->` and `<!-- end -->` stand around what is made from results;
`key=value` behind the name, the value in JSON, keeps the records that have it, `key!=value` those
that do not. Behind a single
figure stands `<!-- results/NAME.json key.key -->`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from fct_tf.common import formats
from fct_tf.report import (
    ann,
    ann_across,
    backfilling,
    chain_tables,
    console,
    identities,
    methods,
    table,
)

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "serving/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)


def fused(records: list[dict]) -> str:
    """Shares of the gallery re-embedded down, maps alone and fused across; means over seeds."""
    columns = {"none": "new/T(old)", "fused": "fused", "whitened": "fused, whitened"}
    extra = ("dims", "weight", "rerank")
    plain = [r for r in records if "pairs" in r and not any(key in r for key in extra)]
    lines = []
    for share in sorted({record["pairs"] for record in plain}):
        at = {
            name: [r for r in plain if (r["pairs"], r["fusion"]) == (share, name)]
            for name in columns
        }
        flips = " / ".join(mean(at[name], lambda r: r["negative_flips"]) for name in columns)
        lines.append([f"{100 * share:g} %", *(scores(found) for found in at.values()), flips])
    header = ["re-embedded", *columns.values(), "negative flips of the three"]
    return formats.markdown(header, lines)


def fused_dims(records: list[dict]) -> str:
    """Values a row down, fused and whitened across."""
    sizes = sorted({record["dims"] for record in records if "dims" in record}, reverse=True)
    lines = [
        [
            str(size),
            *(
                scores([r for r in records if (r.get("dims"), r.get("fusion")) == (size, name)])
                for name in ("fused", "whitened")
            ),
        ]
        for size in sizes
    ]
    return formats.markdown(["values a row", "fused", "fused, whitened"], lines)


def scores(records: list[dict]) -> str:
    metrics = (lambda r: r["cmc"]["1"], lambda r: r["cmc"]["5"], lambda r: r["map"])
    return " / ".join(mean(records, metric) for metric in metrics)


def mean(records: list[dict], metric: Callable[[dict], float]) -> str:
    return f"{100 * fmean(map(metric, records)):.2f}"


def spark(record: dict) -> str:
    """What benchmarks/spark_upgrade.py has measured so far, and a billion rows by it."""
    billion, lines = 10**9, []
    if "speed" in record:
        speed, size = record["speed"], record["rows_per_file"]
        rate = {
            name: fmean(one[name] for one in speed["rows_per_s"]) for name in ("spark", "local")
        }
        seconds = billion / (rate["spark"] / 2)
        at = [f"{formats.duration(seconds / n)} on {n} cores" for n in (2, 16, 64)]
        told = f"{rate['spark']:,.0f} ({rate['local']:,.0f} by the local engine)"
        lines.append(["rows a second on 2 cores", told, ", ".join(at)])
        for name, count in speed["bytes_per_row"].items():
            lines.append([f"bytes {name}, a row", f"{count:,.0f}", f"{count / 1000:.2f} TB"])
        many = f"{billion // size:,}"
        lines.append([f"fragments of {size:,} rows", f"{speed['fragments']:,}", many])
    if "commit" in record:
        commit = record["commit"]
        manifest = f"{commit['manifest_bytes'] / 1e6:.1f} MB"
        told = f"{commit['commit_s']:.1f} s, a manifest of {manifest}"
        lines.append([f"commit of {commit['fragments']:,} fragments", told, "as measured, at most"])
    if "memory" in record:
        sizes = record["memory"]["sizes"]
        kinds = {
            "worker": "a Python worker",
            "executor": "an executor's Java",
            "driver": "the driver",
        }
        for kind, name in kinds.items():
            told = ", ".join(
                f"{one['peak_bytes'][kind] / 1e6:,.0f} MB at {one['rows']:,} rows" for one in sizes
            )
            # The driver knows every id; the others hold some fragments at a time.
            grown = sizes[-1]["peak_bytes"][kind] - sizes[0]["peak_bytes"][kind]
            a_row = grown / (sizes[-1]["rows"] - sizes[0]["rows"])
            more = f"{a_row:.0f} bytes a row, {a_row * billion / 1e9:,.0f} GB"
            lines.append([f"memory of {name}", told, more if kind == "driver" else "the same"])
    return formats.markdown(["what", "measured", "a billion rows"], lines, left=3)


MARKDOWN: dict[str, Callable[[Any], str]] = {
    "table": table.markdown,
    "methods": methods.markdown,
    "identities": identities.markdown,
    "chains": chain_tables.markdown,
    "backfilling": backfilling.markdown,
    "ann": ann.markdown,
    "across": ann_across.markdown,
    "fused": fused,
    "fused_dims": fused_dims,
    "spark": spark,
}
BLOCK = re.compile(
    rf"(<!-- (text|{'|'.join(MARKDOWN)}): (results/\S+\.json)((?: \S+=\S+)*) -->\n\n)"
    r"(.*?)(\n\n<!-- end -->)",
    re.S,
)
FIGURE = re.compile(r"([-+]?[\d.,]+)( ?%| points)?\s*<!-- (results/\S+\.json) (\S+) -->")


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def made(kind: str, path: str, kept: str = "") -> str:
    """What has to stand between the marks."""
    content = read(path)
    for key, value in (part.split("=") for part in kept.split()):
        if kind == "chains":  # metric="cmc@1" keeps that one.
            for chain in content.values():
                chain["metrics"] = {json.loads(value): chain["metrics"][json.loads(value)]}
            continue
        has, key = not key.endswith("!"), key.removesuffix("!")
        content = [r for r in content if (r.get(key) == json.loads(value)) == has]
    if kind != "text":
        return MARKDOWN[kind](content)
    # The first of the tables that the study prints.
    told = console.text(content).split("\n\n")[0]
    return f"```\n{told}\n```"


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text()
        page.write_text(BLOCK.sub(lambda m: f"{m[1]}{made(m[2], m[3], m[4])}{m[6]}", text))
