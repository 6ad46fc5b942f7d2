"""What a search found, written to a file block by block: JSON, CSV or Parquet."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fct_tf.ann import manifests
from fct_tf.ann.index import Index, Neighbours
from fct_tf.common import files

SUFFIXES = (".json", ".csv", ".parquet")
_SCHEMA = pa.schema(
    [
        ("query", pa.large_string()),
        ("rank", pa.int32()),
        ("id", pa.large_string()),
        ("distance", pa.float32()),
    ]
)
Found = Iterable[tuple[np.ndarray, Neighbours]]


def describe(index: Index) -> dict:
    """Which rows were searched, and how, for a record of results."""
    column, shards = index.column, len(manifests.shards(index.manifest))
    return {
        "path": index.path,
        "generation": index.manifest["generation"],
        "gallery": index.manifest["gallery"],
        "column": column.name,
        "space": column.space,
        "model": column.model,
        "distance": column.distance,
        "num_rows": index.num_rows,
        "exact": index.searcher.is_exact,
        "settings": index.searcher.settings.to_json(),
        **({"shards": shards} if shards else {}),
    }


def write(path: str, about: dict, found: Found) -> None:
    """Writes what was found, nearest first, whole or not at all; places without a row are left out.

    Args:
      path: .json (`about` and `results`), .csv or .parquet (one line for each neighbour; Parquet
        has `about` in the metadata of its schema).
      about: of the search, as JSON.
      found: blocks of (ids object [q], their neighbours).

    Raises:
      InputError: it cannot be written, or what `found` raises.
    """
    with files.atomic_file(path) as temporary:
        kind = Path(path).suffix
        if kind == ".json":
            _write_json(temporary, about, found)
        elif kind == ".csv":
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(_SCHEMA.names)
                for batch in _batches(found):
                    columns = [batch[name].to_pylist() for name in _SCHEMA.names]
                    writer.writerows(zip(*columns, strict=True))
        else:
            schema = _SCHEMA.with_metadata({"fct.search": json.dumps(about)})
            with pq.ParquetWriter(temporary, schema) as parquet:
                for batch in _batches(found):
                    parquet.write_batch(batch.cast(schema))


def _write_json(path: Path, about: dict, found: Found) -> None:
    with open(path, "w", encoding="utf-8") as file:
        head = json.dumps(about, indent=2, allow_nan=False)
        file.write(f'{head[:-2]},\n  "results": [')
        separator = "\n"
        for queries, block in found:
            for query, ids, distances in zip(queries, block.ids, block.distances, strict=True):
                pairs = [
                    {"id": one, "distance": float(distance)}
                    for one, distance in zip(ids, distances, strict=True)
                    if one is not None
                ]
                line = json.dumps({"query": str(query), "neighbours": pairs}, allow_nan=False)
                file.write(f"{separator}    {line}")
                separator = ",\n"
        file.write("\n  ]\n}\n")


def _batches(found: Found) -> Iterator[pa.RecordBatch]:
    for queries, block in found:
        count, k = block.ids.shape
        present = (block.ids != None).reshape(-1)  # noqa: E711
        query = np.repeat(np.arange(count), k)[present]
        rank = np.tile(np.arange(1, k + 1, dtype=np.int32), count)[present]
        columns = [
            pa.array([str(one) for one in queries], pa.large_string()).take(pa.array(query)),
            pa.array(rank),
            pa.array(block.ids.reshape(-1)[present], pa.large_string()),
            pa.array(block.distances.reshape(-1)[present]),
        ]
        yield pa.record_batch(columns, schema=_SCHEMA)
