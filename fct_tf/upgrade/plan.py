"""What an upgrade reads and writes, and what it would cost."""

import functools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.common.provenance import created_by
from fct_tf.gallery import fragments, indices, table
from fct_tf.gallery import missing as completed
from fct_tf.gallery.columns import MADE_BY_UPGRADE, Column, Rows
from fct_tf.gallery.reader import to_rows
from fct_tf.upgrade.inputs import ROLES, Transformation, find_sources

TRANSFORMED = "transformed"  # kind of the column, and value of the field X_origin
FUSED = "fused"  # kind of the column of a fused search


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


def plan(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    target: str | None = None,
    side: str = "gallery",
    batch_size: int = 8192,
    existing: runs.Existing = "refuse",
    allow_space_mismatch: bool = False,
    output: str = "",
    drop_indices: bool = False,
) -> Plan:
    """What `upgrade` with the same arguments would do; changes nothing. Errors as `upgrade`."""
    gallery, written, model, sources, made = prepare(
        gallery_uri,
        transformation,
        column,
        {"source_embedding": source, "side_info": side_info, "target_embedding": target},
        batch_size,
        allow_space_mismatch,
        output,
        side=side,
        refuse_existing=existing == "refuse",
        drop_indices=drop_indices,
    )
    dropped = []
    if written and output:
        dropped = indices.on(written.dataset, None)
    elif written:
        dropped = table.check_replaced(written, column, drop_indices=True)
    rows = gallery.batches([found.name for found in sources.values()], batch_size)
    first = next(rows, None)
    return _plan(gallery, model, sources, made, first, gallery.num_rows, output, dropped=dropped)


def plan_missing(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike,
    column: str,
    *,
    source: str | None = None,
    side_info: str | None = None,
    target: str | None = None,
    batch_size: int = 8192,
    allow_space_mismatch: bool = False,
    output: str = "",
) -> Plan:
    """What `upgrade_missing` with the same arguments would do; changes nothing."""
    names = {"source_embedding": source, "side_info": side_info, "target_embedding": target}
    gallery, written, model, sources, there = prepare_missing(
        gallery_uri, transformation, column, names, allow_space_mismatch, output
    )
    missing = completed.find(gallery, column, written)
    first, read = None, [found.name for found in sources.values()]
    for number, places in missing.rows.items():
        needed = list(dict.fromkeys(["id", *read]))
        batch = next(fragments.read_rows(gallery.dataset, number, needed, batch_size, places))
        first = to_rows(batch, read, where=gallery.path)
        break
    return _plan(
        gallery, model, sources, there, first, missing.count, output, missing=True, dropped=[]
    )


def _plan(
    gallery: table.Gallery,
    model: Transformation,
    sources: dict[str, Column],
    made: Column,
    first: Rows | None,
    num_rows: int,
    output: str,
    *,
    missing: bool = False,
    dropped: list[indices.Index],
) -> Plan:
    """first: the rows of a batch, to see how long one takes; None where there are none."""
    read = {found.name: found for found in sources.values()}
    row_read = sum(found.dim * np.dtype(found.dtype).itemsize for found in read.values())
    row_written = 4 * made.dim + len(TRANSFORMED) + 4 * model.has_log_variance
    seconds = 0.0
    if first is not None:
        times = [_seconds(functools.partial(run_model, model, sources, first)) for _ in range(4)]
        # The first call also prepares the graph.
        seconds = float(np.median(times[1:])) * num_rows / len(first)
        if output:
            row_written += round(np.mean([len(name.encode()) for name in first.ids]))
    written_to = output or gallery.path
    return Plan(
        reads=sources,
        writes=made,
        missing=missing,
        num_rows=num_rows,
        bytes_read=num_rows * row_read,
        bytes_written=num_rows * row_written,
        estimated_s=seconds,
        bytes_free=None if "://" in written_to else _bytes_free(written_to),
        dropped=dropped,
    )


def _bytes_free(path: str) -> int:
    """On the file system that `path` is, or will be, on."""
    place = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def prepare(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    name: str,
    names: Mapping[str, str | None],
    batch_size: int,
    allow_space_mismatch: bool,
    output: str,
    *,
    side: str = "gallery",
    refuse_existing: bool,
    drop_indices: bool = False,
) -> tuple[table.Gallery, table.Gallery | None, Transformation, dict[str, Column], Column]:
    """The gallery, the one that is written to (None: not there yet), the transformation, the
    columns that it reads, by default those of `names`, role -> column, and the new column."""
    gallery = table.open_gallery(gallery_uri)
    target: table.Gallery | None = gallery
    if output:
        there = table.check_output(
            output, [gallery], overwrite=not refuse_existing, drop_indices=drop_indices
        )
        target = table.open_gallery(output) if there else None
    else:
        table.check_newest(gallery)
        if refuse_existing and name in gallery.dataset.schema.names:
            raise InputError(
                f"{gallery.path}: column {name!r} exists already; pass --overwrite to replace it, "
                "or --missing for the rows without a value"
            )
        table.check_replaced(gallery, name, drop_indices=drop_indices)
    model = _load(transformation, side)
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


def _load(
    transformation: str | os.PathLike | Transformation, side: str = "gallery"
) -> Transformation:
    if callable(transformation):
        return transformation.query_side() if side == "query" else transformation
    from fct_tf.models import saved_model

    return saved_model.load_transformation(transformation, side)


def prepare_missing(
    gallery_uri: str | os.PathLike,
    transformation: str | os.PathLike | Transformation,
    name: str,
    names: Mapping[str, str | None],
    allow_space_mismatch: bool,
    output: str,
) -> tuple[table.Gallery, table.Gallery | None, Transformation, dict[str, Column], Column]:
    """As `prepare` for the rows that a column lacks; the gallery of its own, or None; the column.

    Raises:
      InputError: no such column, one that another transformation made, or sources that lie in
        other spaces than those it was made from.
    """
    gallery = table.open_gallery(gallery_uri)
    target = table.open_gallery(output) if output else None
    written = target or gallery
    table.check_newest(written)
    if name not in written.dataset.schema.names:
        raise InputError(f"{written.path}: has no column {name!r} yet; leave --missing out")
    there = written.column(name)
    model = _load(transformation)
    made_with = there.created_by.get("settings", {}).get("transformation")
    whole = "or transform all rows with --overwrite"
    if there.kind not in MADE_BY_UPGRADE or made_with != model.info["space"]:
        raise InputError(
            f"{written.path}: column {name!r} ({there.model}) was made by the transformation "
            f"{made_with or 'of none'}, {model.path} is {model.info['space']}; name the one it "
            f"was made with, {whole}"
        )
    if there.created_by.get("gallery") and not output:
        raise InputError(
            f"{written.path}: column {name!r} was made from another gallery; name that one with "
            "--gallery and this one with --output"
        )
    known = there.created_by.get("source", [])
    if there.created_by["settings"].get("side") == "query":
        model = model.query_side()
    roles = [role for role in ROLES if role in model.dims]
    names = dict(names)
    for role, one in zip(roles, known, strict=False):
        if not names.get(role) and one["column"] in gallery.columns:
            names[role] = one["column"]
    sources = find_sources(gallery, model, names, "" if output else name, allow_space_mismatch)
    for found, one in zip(sources.values(), known, strict=True):
        if found.space != one["space"]:
            raise InputError(
                f"{gallery.path}: column {name!r} was made from {one['column']!r} in space "
                f"{one['space']}, {found.name!r} lies in space {found.space} (model "
                f"{found.model}); name a column in that space with --source or --side_info, {whole}"
            )
    return gallery, target, model, sources, there


def _column(
    name: str, model: Transformation, sources: Mapping[str, Column], batch_size: int
) -> Column:
    info = model.info
    identity = {role: column.space for role, column in sources.items()}
    models = [info.get(key) or "unknown" for key in ("source_model", "target_model")]
    own = sha256_json({"transformation": info["space"], **identity})
    fits = info.get("target_space")
    if info["kind"] == FUSED:
        fits = info["fused_space"]
        # Rows and queries lie in one space; others than those of its models only come near it.
        if all(column.space == info[f"{ROLES[role]}_space"] for role, column in sources.items()):
            own, fits = fits, None
    queries = {"side": "query"} if is_query_side(model) else {}
    return Column(
        name=name,
        dim=model.dims["embedding"],
        space=own,
        kind=FUSED if info["kind"] == FUSED else TRANSFORMED,
        distance=info["distance"],
        compatible_with=(fits,) if fits else (),
        # Also what an unfinished job is recognised by: nothing that changes from run to run.
        created_by=created_by(
            "upgrade_gallery",
            {
                "transformation": info["space"],
                "dtype": info.get("dtype"),
                "batch_size": batch_size,
                **queries,
            },
            source=[{"column": column.name, "space": column.space} for column in sources.values()],
            model=f"{info['name']}: {models[0]} -> {models[1]}",
        ),
    )


def is_query_side(model: Transformation) -> bool:
    """Whether a transformation makes the queries of a fused search."""
    return "target_embedding" in model.dims


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_model(
    model: Transformation, sources: Mapping[str, Column], rows: Rows
) -> dict[str, np.ndarray]:
    """What the transformation makes of the rows."""
    return model(*(rows.vectors[sources[role].name] for role in ROLES if role in sources))
