"""A transformation at work on a gallery's rows: what it reads, and what it makes of them."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.common.provenance import created_by
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, Directions, Rows
from fct_tf.upgrade.inputs import ROLES, Transformation
from fct_tf.upgrade.pairs import BACKFILLED, Reembedded

TRANSFORMED = "transformed"  # kind of the column, and value of the field X_origin
FUSED = "fused"  # kind of the column of a fused search
POINTLESS = "without direction"  # what a note is of


@dataclasses.dataclass
class Transform:
    """A new column, and what makes it of rows.

    Attributes:
      gallery: whose rows are read.
      model: runs over them.
      sources: role (`source_embedding`, `side_info`) -> column that is read.
      column: the new one.
      known: rows that need no transformation.
      notes: `[BACKFILLED, rows]` of rows that are known, and `[POINTLESS, column, rows, first ids]`
        of those without a direction in a source that is compared by direction. Recorded with each
        fragment, see `fct_tf.gallery.table.add_column`.
    """

    gallery: table.Gallery
    model: Transformation
    sources: dict[str, Column]
    column: Column
    known: Reembedded | None = None
    notes: list = dataclasses.field(default_factory=list)

    @property
    def reads(self) -> list[str]:
        """Names of the columns that are read, each once."""
        return list(dict.fromkeys(source.name for source in self.sources.values()))

    @property
    def fields(self) -> list[pa.Field]:
        """Those that come with the column."""
        if is_query_side(self.model):
            return []
        fields = [pa.field(f"{self.column.name}_origin", pa.string())]
        if self.model.has_log_variance:
            fields.append(pa.field(f"{self.column.name}_log_variance", pa.float32()))
        return fields

    def take(self, known: Reembedded) -> None:
        """Takes rows that the new model has embedded from there."""
        self.known, self.column = known, _with_pairs(self.column, known)

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
        """The values of the column and of its fields."""
        name, reembedded = self.column.name, self.known
        for read in {one.name: one for one in self.sources.values()}.values():
            if read.distance == "cosine":
                directions = Directions()
                directions.add(rows.vectors[read.name], rows.ids)
                if directions.count:
                    self.notes.append([POINTLESS, read.name, directions.count, directions.first])
        outputs = run_model(self.model, self.sources, rows)
        values = {name: outputs["embedding"]}
        if is_query_side(self.model):
            return values
        origin, log_variance = f"{name}_origin", f"{name}_log_variance"
        values[origin] = np.full(len(rows), TRANSFORMED, object)
        if self.model.has_log_variance:
            values[log_variance] = _finite(outputs["log_variance"], rows, self.gallery.path)
        if reembedded:
            backfilled, vectors = reembedded.of_rows(rows)
            if self.model.fuse:
                source = self.sources["source_embedding"].name
                vectors = self.model.fuse(rows.vectors[source][backfilled], vectors)
            values[name] = values[name].copy()  # The model's output is read-only.
            values[name][backfilled] = vectors
            values[origin][backfilled] = BACKFILLED
            if backfilled.any():
                self.notes.append([BACKFILLED, int(backfilled.sum())])
            if self.model.has_log_variance:
                values[log_variance] = np.where(backfilled, np.nan, values[log_variance])
        return values

    @property
    def num_known(self) -> int:
        """Rows made so far that are of `known`."""
        return sum(rest[0] for what, *rest in self.notes if what == BACKFILLED)

    def warn_of_pointless(self) -> None:
        without: dict[str, Directions] = {}
        for what, *rest in self.notes:
            if what == POINTLESS:
                name, count, first = rest
                without.setdefault(name, Directions()).count_more(count, first)
        for name, directions in without.items():
            logging.warning(
                "%s: column %r has %s; what the upgrade makes of them means nothing: embed "
                "these rows again, or backfill them first",
                self.gallery.path, name, directions,
            )  # fmt: skip


def describe(
    name: str, model: Transformation, sources: Mapping[str, Column], batch_size: int
) -> Column:
    """The new column: its space is told by the transformation and by what it reads."""
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


def run_model(
    model: Transformation, sources: Mapping[str, Column], rows: Rows
) -> dict[str, np.ndarray]:
    """What the transformation makes of the rows."""
    return model(*(rows.vectors[sources[role].name] for role in ROLES if role in sources))


def _with_pairs(made: Column, known: Reembedded) -> Column:
    """The column where rows that the new model has embedded are taken from there."""
    if made.kind == FUSED:  # They lie in the same space as the others.
        settings = {**made.created_by["settings"], "pairs": known.fingerprint}
        return dataclasses.replace(made, created_by={**made.created_by, "settings": settings})
    identity = {"transformed": made.space, "backfilled": known.fingerprint}
    return dataclasses.replace(made, space=sha256_json(identity))


def _finite(values: np.ndarray, rows: Rows, where: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"{where}: row {str(rows.ids[bad[0]])!r}: the transformation returns a log_variance "
            f"of {values[bad[0]]}; train it again"
        )
    return values
