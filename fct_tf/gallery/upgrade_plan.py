"""What an upgrade reads and writes, and what it would cost."""

import functools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fct_tf import runs
from fct_tf.errors import InputError
from fct_tf.files import sha256_json
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Rows
from fct_tf.gallery.sources import ROLES, Transformation, find_sources
from fct_tf.provenance import created_by

TRANSFORMED = "transformed"  # kind of the column, and value of the field X_origin


@dataclass(frozen=True)
class Plan:
    """What an upgrade would do to the whole gallery.

    Attributes:
      reads: role (`source_embedding`, `side_info`) -> column.
      writes: the new column.
      num_rows, bytes_read, bytes_written: vectors and fields (and ids, in a new gallery), without
        what Lance adds.
      estimated_s: time of the model calls, from one warm batch of the gallery's rows.
      bytes_free: on the file system that is written to; None in an object store.
    """

    reads: dict[str, Column]
    writes: Column
    num_rows: int
    bytes_read: int
    bytes_written: int
    estimated_s: float
    bytes_free: int | None

    def __str__(self) -> str:
        reads = ", ".join(f"{column.name} ({column.model})" for column in self.reads.values())
        free = "unknown" if self.bytes_free is None else f"{self.bytes_free:,}"
        lines = [
            "dry run: nothing is written",
            f"reads:           {reads}",
            f"writes:          {self.writes.name} ({self.writes.model})",
            f"rows:            {self.num_rows:,}",
            f"bytes read:      {self.bytes_read:,}",
            f"bytes written:   {self.bytes_written:,}",
            f"estimated time:  {self.estimated_s:,.1f} s",
            f"free disk bytes: {free}",
        ]
        if self.bytes_free is not None and self.bytes_free < self.bytes_written:
            lines.append("warning: the disk is too small for the new column")
        return "\n".join(lines)


def plan(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    batch_size: int = 8192,
    existing: runs.Existing = "refuse",
    allow_space_mismatch: bool = False,
    output: str = "",
) -> Plan:
    """What `upgrade` with the same arguments would do; changes nothing. Errors as `upgrade`."""
    gallery, _, model, sources, made = prepare(
        gallery_uri,
        transformation,
        column,
        source,
        side_info,
        batch_size,
        allow_space_mismatch,
        output,
        refuse_existing=existing == "refuse",
    )
    read = {found.name: found for found in sources.values()}
    row_read = sum(found.dim * np.dtype(found.dtype).itemsize for found in read.values())
    row_written = 4 * made.dim + len(TRANSFORMED) + 4 * model.has_log_variance
    seconds = 0.0
    for rows in gallery.batches(list(read), batch_size):
        times = [_seconds(functools.partial(run_model, model, sources, rows)) for _ in range(4)]
        # The first call also prepares the graph.
        seconds = float(np.median(times[1:])) * gallery.num_rows / len(rows)
        if output:
            row_written += round(np.mean([len(name.encode()) for name in rows.ids]))
        break
    written_to = output or gallery.path
    return Plan(
        reads=sources,
        writes=made,
        num_rows=gallery.num_rows,
        bytes_read=gallery.num_rows * row_read,
        bytes_written=gallery.num_rows * row_written,
        estimated_s=seconds,
        bytes_free=None if "://" in written_to else _bytes_free(written_to),
    )


def _bytes_free(path: str) -> int:
    """On the file system that `path` is, or will be, on."""
    place = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def prepare(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    name: str,
    source: str | None,
    side_info: str | None,
    batch_size: int,
    allow_space_mismatch: bool,
    output: str,
    *,
    refuse_existing: bool,
) -> tuple[table.Gallery, table.Gallery | None, Transformation, dict[str, Column], Column]:
    """The gallery, the one that is written to (None: not there yet), the transformation, the
    columns that it reads, and the new column."""
    gallery = table.open_gallery(gallery_uri)
    target: table.Gallery | None = gallery
    if output:
        there = table.check_output(output, [gallery], overwrite=not refuse_existing)
        target = table.open_gallery(output) if there else None
    else:
        table.check_newest(gallery)
        if refuse_existing and name in gallery.dataset.schema.names:
            raise InputError(
                f"{gallery.path}: column {name!r} exists already; pass --overwrite to replace it"
            )
    model = _load(transformation)
    names = {"source_embedding": source, "side_info": side_info}
    taken = "" if output else name
    sources = find_sources(gallery, model, names, taken, allow_space_mismatch)
    if taken in (column.name for column in sources.values()):
        raise InputError(
            f"{gallery.path}: column {taken!r} is what the transformation reads; choose another "
            "name for the new column"
        )
    new = _column(name, model, sources, batch_size)
    new.check()
    return gallery, target, model, sources, new


def _load(transformation: str | os.PathLike | Transformation) -> Transformation:
    if callable(transformation):
        return transformation
    from fct_tf.models import saved_model  # TensorFlow, which one behind a server does without.

    return saved_model.load_transformation(transformation)


def _column(
    name: str, model: Transformation, sources: Mapping[str, Column], batch_size: int
) -> Column:
    info = model.info
    identity = {role: column.space for role, column in sources.items()}
    models = [info.get(key) or "unknown" for key in ("source_model", "target_model")]
    return Column(
        name=name,
        dim=model.dims["embedding"],
        space=sha256_json({"transformation": info["space"], **identity}),
        kind=TRANSFORMED,
        distance=info["distance"],
        compatible_with=tuple(space for space in [info.get("target_space")] if space),
        # Also what an unfinished job is recognised by: nothing that changes from run to run.
        created_by=created_by(
            "upgrade_gallery",
            {
                "transformation": info["space"],
                "dtype": info.get("dtype"),
                "batch_size": batch_size,
            },
            source=[{"column": column.name, "space": column.space} for column in sources.values()],
            model=f"{info['name']}: {models[0]} -> {models[1]}",
        ),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_model(
    model: Transformation, sources: Mapping[str, Column], rows: Rows
) -> dict[str, np.ndarray]:
    """What the transformation makes of the rows."""
    return model(*(rows.vectors[sources[role].name] for role in ROLES if role in sources))
