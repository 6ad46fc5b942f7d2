"""What an upgrade would do, and what it would cost."""

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fct_tf.common import stores
from fct_tf.gallery import indices
from fct_tf.gallery.columns import Column, Rows
from fct_tf.upgrade.transform import TRANSFORMED, Transform, run_model


@dataclass(frozen=True)
class Plan:
    """What an upgrade would do to the whole gallery.

    Attributes:
      reads: role (`source_embedding`, `side_info`) -> column.
      writes: the new column.
      missing: whether only the rows are meant that the column lacks.
      num_rows, bytes_read, bytes_written: vectors and fields (and ids, in a new gallery), without
        what Lance adds.
      estimated_s: time of the model calls, from one warm batch of the gallery's rows.
      dropped: indices that go with a column, or a gallery, that is replaced.
      bytes_free: on the file system that is written to; None in an object store.
    """

    reads: dict[str, Column]
    writes: Column
    missing: bool
    num_rows: int
    bytes_read: int
    bytes_written: int
    estimated_s: float
    bytes_free: int | None
    dropped: list[indices.Index]

    def __str__(self) -> str:
        reads = ", ".join(f"{column.name} ({column.model})" for column in self.reads.values())
        free = "unknown" if self.bytes_free is None else f"{self.bytes_free:,}"
        lines = [
            "dry run: nothing is written",
            f"reads:           {reads}",
            f"writes:          {self.writes.name} ({self.writes.model})",
            f"rows:            {self.num_rows:,}{' missing' if self.missing else ''}",
            f"bytes read:      {self.bytes_read:,}",
            f"bytes written:   {self.bytes_written:,}",
            f"estimated time:  {self.estimated_s:,.1f} s",
            f"free disk bytes: {free}",
        ]
        lines += [f"drops the index: {index}" for index in self.dropped]
        if self.bytes_free is not None and self.bytes_free < self.bytes_written:
            lines.append("warning: the disk is too small for the new column")
        return "\n".join(lines)


def estimate(
    work: Transform,
    first: Rows | None,
    num_rows: int,
    output: str,
    *,
    missing: bool = False,
    dropped: Sequence[indices.Index] = (),
) -> Plan:
    """The plan of transforming `num_rows` rows.

    Args:
      work: the transformation and what it reads and makes.
      first: the rows of a batch, to see how long one takes; None where there are none.
      output: path of a new gallery for the column; empty where it joins the others.
      missing, dropped: as `Plan` has them.
    """
    model, read = work.model, {source.name: source for source in work.sources.values()}
    row_read = sum(source.dim * np.dtype(source.dtype).itemsize for source in read.values())
    row_written = 4 * work.column.dim + len(TRANSFORMED) + 4 * model.has_log_variance
    seconds = 0.0
    if first is not None:
        run = functools.partial(run_model, model, work.sources, first)
        # The first call also prepares the graph.
        seconds = float(np.median([_seconds(run) for _ in range(4)][1:])) * num_rows / len(first)
        if output:
            row_written += round(np.mean([len(name.encode()) for name in first.ids]))
    written_to = output or work.gallery.path
    return Plan(
        reads=work.sources,
        writes=work.column,
        missing=missing,
        num_rows=num_rows,
        bytes_read=num_rows * row_read,
        bytes_written=num_rows * row_written,
        estimated_s=seconds,
        bytes_free=None if stores.in_store(written_to) else _bytes_free(written_to),
        dropped=list(dropped),
    )


def _bytes_free(path: str) -> int:
    """On the file system that `path` is, or will be, on."""
    place = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
