"""What backfilling a small share of a large gallery writes: bytes, seconds, memory.

A gallery of random rows has a source column and a transformed one, with its origin and
log-variance, which lies beside the source or in a gallery of its own. The most uncertain percent of
its rows is backfilled, in a process of its own. No image is read: a stand-in makes each vector from
its row's number, since the question is what the table costs, not what embedding costs. Counted are
all files that the job adds to the gallery, by kind; the staged vectors, which are removed at the
end, are counted beside them. Uncertain rows lie scattered over all data files, as in practice.

Lance replaces rows by moving them whole: what is written is the share times the bytes of a row in
*all* columns of its table. In a gallery of its own (`own_gallery`) that is about the share of the
column's bytes; beside the source (`beside_source`) it is the share of the table's, for two columns
of equal size twice as much. Target, of the column's bytes there and of the table's here: the share
of rows, 10 % more at most.

For comparison, beside the source: `merge_insert` of Lance itself updates the same rows, and
`overlay` writes them as Lance's data overlay files: those hold the column's cells alone, but are
unstable, and readers that are not told to accept them refuse the table (`opens_without_setting`).

  python benchmarks/backfill_bytes.py --output=results/backfill_bytes.json

The galleries are made in TMPDIR: 6 GB with the sizes given here, and removed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np

OLD, NEW = "a" * 64, "c" * 64
MAX_SHARE = 1.1  # times the share of rows that is backfilled
WAYS = ("own_gallery", "beside_source", "merge_insert", "overlay")
OWN = ("own_gallery",)  # The others run on the gallery with both columns.
OVERLAYS = "LANCE_ENABLE_UNSTABLE_DATA_OVERLAY_FILES"


def row_id(number: int) -> str:
    return f"gallery/{number:09d}.jpg"


def vectors_of(numbers: np.ndarray, dim: int) -> np.ndarray:
    """float32 [n, dim]: what the new model says of these rows."""
    return np.sin(numbers[:, None] + np.arange(dim)).astype(np.float32)


class NoImages:
    """Stands in for `fct_tf.data.by_id.Images`: the image of a row is its number."""

    name, any_order = "numbers", True

    def find(self, ids) -> np.ndarray:
        return np.array([int(name[8:-4]) for name in ids], np.int64)

    def num_bytes(self, places: np.ndarray) -> None:
        return None

    def batches(self, places: np.ndarray, batch_size: int):
        import tensorflow as tf

        rows = {"image": places, "ok": np.ones(len(places), bool)}
        return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)


def make_galleries(folder: Path, count: int, dim: int, rows_per_file: int) -> tuple[Path, Path]:
    """A gallery of `count` random rows that has been upgraded, and the upgrade on its own."""
    import pyarrow as pa

    from fct_tf.gallery import table

    path, own = folder / "g.lance", folder / "own.lance"

    generator = np.random.default_rng(0)

    def batches() -> Iterator[table.Rows]:
        for start in range(0, count, 1 << 16):
            numbers = range(start, min(start + (1 << 16), count))
            ids = np.array([row_id(number) for number in numbers], object)
            old = generator.normal(size=(len(ids), dim)).astype(np.float32)
            yield table.Rows(ids, None, {"embedding_old": old})

    old = table.Column("embedding_old", dim, OLD)
    gallery = table.create(path, batches(), [old], rows_per_file=rows_per_file)
    new = table.Column("embedding_fct", dim, "b" * 64, "float32", "transformed", "l2", (NEW,))
    log_variance = generator.normal(size=count).astype(np.float32)

    def transformed(rows: table.Rows) -> dict:
        numbers = np.array([int(name[8:-4]) for name in rows.ids])
        return {
            "embedding_fct": rows.vectors["embedding_old"] / 2,
            "embedding_fct_origin": np.full(len(rows), "transformed", object),
            "embedding_fct_log_variance": log_variance[numbers],
        }

    fields = [
        pa.field("embedding_fct_origin", pa.string()),
        pa.field("embedding_fct_log_variance", pa.float32()),
    ]
    what = (new, transformed, ["embedding_old"])
    table.add_column(gallery, *what, output=str(own), extra_fields=fields)
    table.add_column(gallery, *what, extra_fields=fields)
    return path, own


def sizes(path: Path) -> dict[str, int]:
    """Bytes of every file below `path`."""
    return {str(f.relative_to(path)): f.stat().st_size for f in path.rglob("*") if f.is_file()}


def written(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Bytes of the files that are new, by what they are."""
    kinds = {"data": 0, "_deletions": 0, "_versions": 0, "_transactions": 0}
    for name, size in after.items():
        if name not in before:
            kinds[name.split("/")[0]] += size
    return kinds


def column_bytes(path: Path) -> int:
    """Bytes of the data files that hold the transformed column and what belongs to it."""
    import lance

    dataset = lance.dataset(str(path))
    (number,) = (f.id() for f in dataset.lance_schema.fields() if f.name() == "embedding_fct")
    described = [fragment.metadata for fragment in dataset.get_fragments()]
    files = [file for one in described for file in one.files if number in file.fields]
    return sum(file.file_size_bytes or 0 for file in files)


def backfill_here(path: str, share: str, dim: int) -> None:
    """The process whose memory is measured: a backfilling and nothing else."""
    from fct_tf.backfill import backfill

    def embed(numbers):
        return vectors_of(numbers.numpy().astype(np.int64), dim)

    model = SimpleNamespace(name="stand-in", space=NEW, dim=dim, distance="l2", embed=embed)
    start = time.perf_counter()
    images: Any = NoImages()
    done = backfill.Backfill(path, "embedding_fct", model, images, "uncertainty", share).run()
    spent = time.perf_counter() - start
    print(json.dumps({"rows": done.embedded, "seconds": round(spent, 1), **_peak()}))


def _peak() -> dict[str, int]:
    return {"peak_bytes": machine.peak_bytes()}


def chosen_table(path: str, share: float, dim: int):
    """The same rows with the same values, as the ways beside ours take them."""
    import pyarrow as pa

    from fct_tf.gallery import table

    rows = table.open_gallery(path).read([], fields=["embedding_fct_log_variance"])
    value = rows.fields["embedding_fct_log_variance"]
    chosen = rows.ids[np.argsort(-value)[: round(share * len(value))]]
    vectors = vectors_of(np.array([int(name[8:-4]) for name in chosen]), dim)
    return pa.table(
        {
            "id": pa.array(chosen, pa.string()),
            "embedding_fct": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
            "embedding_fct_origin": pa.array(["backfilled"] * len(chosen)),
            "embedding_fct_log_variance": pa.nulls(len(chosen), pa.float32()),
        }
    )


def merge_insert_here(path: str, share: float, dim: int) -> None:
    """Lance's own update of rows."""
    import lance

    new = chosen_table(path, share, dim)
    start = time.perf_counter()
    lance.dataset(path).merge_insert("id").when_matched_update_all().execute(new)
    spent = time.perf_counter() - start
    print(json.dumps({"rows": len(new), "seconds": round(spent, 1), **_peak()}))


def overlay_here(path: str, share: float, dim: int) -> None:
    """Lance's data overlay files: one with the changed cells for each fragment."""
    import lance
    import pyarrow as pa
    from lance.file import LanceFileWriter
    from lance.fragment import DataFile

    new = chosen_table(path, share, dim)
    start = time.perf_counter()
    dataset = lance.dataset(path)
    ids = dataset.to_table(columns=["id"], with_row_address=True)
    place = {name: row for row, name in enumerate(new["id"].to_pylist())}
    known = [(i, place[name]) for i, name in enumerate(ids["id"].to_pylist()) if name in place]
    address = ids["_rowaddr"].to_numpy()[[i for i, _ in known]].astype(np.int64)
    cells = new.drop_columns(["id"]).take(pa.array([row for _, row in known]))
    numbers = {f.name(): f.id() for f in dataset.lance_schema.fields()}
    operation = lance.LanceOperation
    groups = []
    for fragment in dataset.get_fragments():
        mine = np.flatnonzero(address >> 32 == fragment.fragment_id)
        name = f"overlay-{fragment.fragment_id}.lance"
        target = Path(path) / "data" / name
        with LanceFileWriter(str(target), cells.schema) as writer:
            for batch in cells.take(pa.array(mine)).to_batches():
                writer.write_batch(batch)
        like = fragment.metadata.files[0]
        file = DataFile(
            name,
            [numbers[column] for column in cells.column_names],
            list(range(cells.num_columns)),
            like.file_major_version,
            like.file_minor_version,
            target.stat().st_size,
        )
        offsets = (address[mine] & 0xFFFFFFFF).tolist()
        overlay = operation.DataOverlayFile(file, offsets)
        groups.append(operation.DataOverlayGroup(fragment.fragment_id, [overlay]))
    lance.LanceDataset.commit(path, operation.DataOverlay(groups), read_version=dataset.version)
    spent = time.perf_counter() - start
    print(json.dumps({"rows": len(new), "seconds": round(spent, 1), **_peak()}))


def opens(path: Path, environment: dict[str, str]) -> bool:
    """Whether Lance opens the table in a process with this environment."""
    command = [sys.executable, "-c", f"import lance; lance.dataset({str(path)!r}).count_rows()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    """Each way on a copy of a gallery."""
    sized = (arguments.rows, arguments.dim, arguments.rows_per_file)
    beside, own = make_galleries(folder, *sized)
    column = column_bytes(beside)
    record = {
        "rows": arguments.rows,
        "dim": arguments.dim,
        "share": arguments.share,
        "column_bytes": column,
        "table_bytes": {
            "own_gallery": sum(sizes(own).values()),
            "beside_source": sum(sizes(beside).values()),
        },
        "ways": {},
    }
    plain = {name: value for name, value in os.environ.items() if name != OVERLAYS}
    for way in WAYS:
        path, where = folder / "copy.lance", "own_gallery" if way in OWN else "beside_source"
        shutil.copytree(own if way in OWN else beside, path)
        before = sizes(path)
        environment = {**plain, OVERLAYS: "1"} if way == "overlay" else plain
        command = [sys.executable, __file__, "--child", way, str(path)]
        command += [f"--share={arguments.share}", f"--dim={arguments.dim}"]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        kinds = written(before, sizes(path))
        data = kinds["data"] + kinds["_deletions"]
        child = json.loads(done.stdout)
        record["ways"][way] = {
            **child,
            "bytes_written": kinds,
            # Without manifests and transactions: these grow with fragments, not with rows.
            "column_share": round(data / column, 5),
            "table_share": round(data / record["table_bytes"][where], 5),
            "bytes_per_row": round(data / child["rows"], 1),
            "opens_without_setting": opens(path, plain),
        }
        shutil.rmtree(path)
    record["target"] = round(MAX_SHARE * arguments.share, 5)
    for way, whole in (("own_gallery", "column"), ("beside_source", "table")):
        told = record["ways"][way]
        told["staged_bytes"] = 2 * 4 * arguments.dim * told["rows"]
        told[f"passed_of_{whole}"] = told[f"{whole}_share"] <= record["target"]
    return record


def main(argv: Sequence[str]) -> None:
    """Measures, prints what came out, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.01, help="of the rows")
    parser.add_argument("--rows_per_file", type=int, default=1 << 20, help="as table.create")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.child:
        way, path = arguments.child
        if way in ("own_gallery", "beside_source"):
            backfill_here(path, f"{100 * arguments.share:g}%", arguments.dim)
        else:
            call = merge_insert_here if way == "merge_insert" else overlay_here
            call(path, arguments.share, arguments.dim)
        return

    from fct_tf.common import files

    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments)
    record = {
        "benchmark": "backfill_bytes",
        **machine.about(sys.argv),
        **found,
    }
    for way, told in record["ways"].items():
        print(
            f"{way}: {told['rows']:,} rows, {sum(told['bytes_written'].values()):,} bytes, "
            f"{told['column_share']:.2%} of the column, {told['table_share']:.2%} of the table, "
            f"{told['seconds']} s, peak {told['peak_bytes'] / 1e6:,.0f} MB"
        )
    if arguments.output:
        files.write_records(arguments.output, record)


if __name__ == "__main__":
    main(sys.argv[1:])
