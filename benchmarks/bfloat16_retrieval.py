"""What bfloat16 costs in retrieval: one transformation exported twice, the same gallery upgraded.

  python benchmarks/bfloat16_retrieval.py --model=runs/omniglot/seed_0/fct/artifact \\
      --gallery=runs/omniglot/seed_0/rows/gallery/gallery.lance --query_column=embedding_new \\
      --output=results/bfloat16_retrieval.json
"""

import shutil
import sys
import tempfile
from pathlib import Path

import machine
from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.files import check_output_file, write_records
from fct_tf.common.provenance import library_versions
from fct_tf.gallery import table
from fct_tf.models import export
from fct_tf.retrieval import two_columns
from fct_tf.upgrade import upgrade

DTYPES = ("float32", "bfloat16")


def measure(model: str, gallery: str, query_column: str, folder: Path) -> dict:
    """CMC and mAP of the query column against the upgraded one, by the arithmetic's dtype."""
    copy = folder / "gallery.lance"
    shutil.copytree(gallery, copy, copy_function=shutil.copyfile)
    found = {}
    for dtype in DTYPES:
        transformation = export.export_transformation(model, folder / dtype, dtype=dtype)
        upgrade.Upgrade(str(copy), transformation, f"upgraded_{dtype}").run()
        rows = table.open_gallery(str(copy))
        record = two_columns.evaluate(rows, query_column, rows, f"upgraded_{dtype}", bootstrap=0)
        found[dtype] = {"top_1": record["cmc"]["1"], "top_5": record["cmc"]["5"]}
        found[dtype]["map"] = record["map"]
    points = [100 * (found["bfloat16"][key] - value) for key, value in found["float32"].items()]
    return {**found, "largest_change_points": max(map(abs, points))}


def define_flags(values: flags.FlagValues) -> None:
    for name, text in (
        ("model", "Artifact of a transformation."),
        ("gallery", "Gallery that it upgrades; a copy is upgraded."),
        ("query_column", "Column of the queries."),
        ("output", "JSON file to write."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    check_output_file(values.output, values.overwrite, "output")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(values.model, values.gallery, values.query_column, Path(folder))
    result |= {
        "command": machine.command(sys.argv),
        "cpu": machine.cpu(),
        "versions": library_versions(),
    }
    write_records(values.output, result)
    print(result)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
