"""What a column of a gallery is: its metadata, its space, and checks of its rows.

The metadata of an embedding column lies in its Arrow field, so it travels with every copy of the
table and tools outside this package can read it: `fct.space`, `fct.kind`, `fct.distance`,
`fct.compatible_with` (JSON list) and `fct.created_by` (JSON object).
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from fct_tf.common.errors import InputError

FORMAT = 1
KINDS = ("embedded", "imported", "side_info", "transformed", "fused")
# Kinds that upgrade_gallery makes.
MADE_BY_UPGRADE = ("transformed", "fused")
DISTANCES = ("l2", "cosine")
RESERVED = ("id", "label")
# Rows named per kind of problem; the rest is counted.
EXAMPLES = 5
NO_DIRECTION = "with no direction (zeros, or a length beyond float32)"
# The squared distance of two rows of this length is about the greatest number of float32.
LONGEST = 9e18
TOO_LONG = "longer than 9e18, whose squared distances are beyond float32"


@dataclass(frozen=True)
class Column:
    """An embedding column: `dim` values of `dtype` per row, in one embedding space.

    `space` is the hex fingerprint of the space. `compatible_with` lists further spaces that may
    be compared with it; the relation is not transitive.
    """

    name: str
    dim: int
    space: str
    dtype: str = "float32"
    kind: str = "embedded"
    distance: str = "l2"
    compatible_with: tuple[str, ...] = ()
    created_by: dict = field(default_factory=dict, hash=False)

    def __post_init__(self):
        object.__setattr__(self, "compatible_with", tuple(self.compatible_with))

    def check(self) -> None:
        """Refuses what cannot be written: `InputError` names the column and the value.

        Columns that are only read are not held to it: another tool may have more kinds.
        """
        where = f"column {self.name!r}"
        # Lance reads dots as paths into structs, and job directories are named after columns.
        if self.name in RESERVED or not self.name.replace("_", "a").replace("-", "a").isalnum():
            raise InputError(
                f"{where}: not a possible column name; use letters, digits, '_' and '-', and "
                "neither 'id' nor 'label'"
            )
        if self.dim < 1:
            raise InputError(f"{where}: dimension {self.dim}; it must be at least 1")
        for value, valid, what in (
            (self.dtype, ("float32", "float16"), "dtype"),
            (self.kind, KINDS, "kind"),
            (self.distance, DISTANCES, "distance"),
        ):
            if value not in valid:
                raise InputError(f"{where}: {what} {value!r}; it must be one of {', '.join(valid)}")

    @property
    def model(self) -> str:
        """The human name of the model that made the column, or `unknown`."""
        return str(self.created_by.get("model") or "unknown")

    @property
    def keeps_zero_vectors(self) -> bool:
        """Whether rows without direction were kept by choice when the column was made."""
        settings = self.created_by.get("settings")
        return isinstance(settings, dict) and settings.get("zero_vectors") == "keep"

    def to_field(self) -> pa.Field:
        """The Arrow field with the column's metadata."""
        value_type = pa.float32() if self.dtype == "float32" else pa.float16()
        metadata = {
            "fct.space": self.space,
            "fct.kind": self.kind,
            "fct.distance": self.distance,
            "fct.compatible_with": json.dumps(list(self.compatible_with)),
            "fct.created_by": json.dumps(self.created_by),
        }
        return pa.field(self.name, pa.list_(value_type, self.dim), metadata=metadata)


def from_field(arrow_field: pa.Field, where: str) -> Column | None:
    """The column that an Arrow field describes; None where the field is no embedding column."""
    metadata = {key.decode(): value.decode() for key, value in (arrow_field.metadata or {}).items()}
    if "fct.space" not in metadata:
        return None
    kind = arrow_field.type
    if not pa.types.is_fixed_size_list(kind) or not (
        pa.types.is_float32(kind.value_type) or pa.types.is_float16(kind.value_type)
    ):
        raise InputError(
            f"{where}: column {arrow_field.name!r} has a space but type {kind}; an embedding "
            "column is a fixed-size list of float32 or float16"
        )
    try:
        compatible_with = json.loads(metadata.get("fct.compatible_with", "[]"))
        created_by = json.loads(metadata.get("fct.created_by", "{}"))
        if not isinstance(compatible_with, list) or not isinstance(created_by, dict):
            raise ValueError("fct.compatible_with must be a list and fct.created_by an object")
    except ValueError as error:
        raise InputError(
            f"{where}: column {arrow_field.name!r} has broken metadata ({error})"
        ) from None
    return Column(
        name=arrow_field.name,
        dim=kind.list_size,
        dtype="float32" if pa.types.is_float32(kind.value_type) else "float16",
        space=metadata["fct.space"],
        kind=metadata.get("fct.kind", "embedded"),
        distance=metadata.get("fct.distance", "l2"),
        compatible_with=tuple(compatible_with),
        created_by=created_by,
    )


def completing(column: Column, path: str) -> str:
    """What to run where rows of a gallery lack a column: the command that made it, as advice."""
    origin, settings = column.created_by, column.created_by.get("settings", {})
    arguments = {"gallery": path, "column": column.name}
    if origin.get("door") == "upgrade_gallery":
        if "gallery" in origin:
            arguments |= {"gallery": origin["gallery"]["path"], "output": path}
        arguments["transformation"] = "SAVED_MODEL"
        door, more = "upgrade_gallery", f" --missing (SAVED_MODEL of {column.model})"
    elif origin.get("door") == "embed_gallery":
        kept = ("images", "model", "match_dims", "zero_vectors")
        arguments |= {key: settings[key] for key in kept if key in settings}
        door, more = "embed_gallery", " --missing"
    elif origin.get("door") == "import_gallery":
        arguments |= {"embeddings": "FILE", "ids": "FILE", "model_name": column.model}
        arguments |= {"distance": column.distance, "kind": column.kind}
        door, more = "import_gallery", " --overwrite, with files of all rows"
    else:
        return "complete the column first"
    flags = " ".join(f"--{key}={shlex.quote(str(value))}" for key, value in arguments.items())
    return f"complete it: python -m fct_tf.{door} {flags}{more}"


def vector_array(values: np.ndarray, column: Column, ids, where: str) -> pa.Array:
    """float [n, dim] as the Arrow array of a column; refuses wrong shapes, NaN and infinity."""
    values = np.asarray(values)
    if values.shape != (len(ids), column.dim):
        raise InputError(
            f"{where}: column {column.name!r} needs rows of {column.dim} values for {len(ids)} "
            f"ids, received shape {values.shape}"
        )
    where = f"{where}: column {column.name!r}"
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(values, dtype=column.dtype)
    try:
        check_finite(converted, ids, where, column.distance)
    except InputError:
        if np.isfinite(converted).all():
            raise
        check_finite(values, ids, where)
        # Finite before the conversion: too large for the column.
        largest = np.finfo(column.dtype).max
        rows = ~np.isfinite(converted).all(axis=1)
        raise InputError(
            f"{where}: {named_rows(ids, rows)} with NaN or infinity once stored as "
            f"{column.dtype}: values lie beyond its range (+-{largest:.5g}); scale the "
            "embeddings, or leave these rows out"
        ) from None
    return pa.FixedSizeListArray.from_arrays(pa.array(converted.reshape(-1)), column.dim)


def imported_space(model_name: str) -> str:
    """The space of embeddings made elsewhere: SHA-256 (hex) of the name of their model."""
    return hashlib.sha256(model_name.encode("utf-8")).hexdigest()


def declared_spaces(names: Sequence[str], columns: Mapping[str, Column]) -> tuple[str, ...]:
    """What --compatible_with names: fingerprints as they are, columns as their spaces."""
    spaces = []
    for name in names:
        if name in columns:
            spaces.append(columns[name].space)
        elif re.fullmatch("[0-9a-f]{64}", name):
            spaces.append(name)
        else:
            raise InputError(
                f"``compatible_with={name}``: neither a fingerprint (64 hex digits) nor a column "
                f"of an existing gallery; its columns are: {', '.join(columns) or 'none'}"
            )
    return tuple(spaces)


def fit(a: Column, b: Column) -> bool:
    """Whether two columns may be compared: same space, or one declares the other compatible."""
    return a.space == b.space or a.space in b.compatible_with or b.space in a.compatible_with


def check_spaces(query: Column, gallery: Column, *, allow_mismatch: bool = False) -> None:
    """Refuses two columns that cannot be compared.

    Args:
      query: column of the queries.
      gallery: column of the gallery.
      allow_mismatch: accept different spaces; the dimensions must agree all the same.

    Raises:
      InputError: with both fingerprints and model names, or with both dimensions.
    """
    if not allow_mismatch and not fit(query, gallery):
        remedy = "compare columns of one space"
        if gallery.kind == "fused":
            remedy = "make the queries of the fused search by upgrade_gallery --side=query"
        raise InputError(
            f"columns {query.name!r} and {gallery.name!r} lie in different spaces: "
            f"{query.space} (model {query.model}) and {gallery.space} (model {gallery.model}); "
            f"{remedy}, or pass ``allow_space_mismatch=True``{_hint(query, gallery)}"
        )
    if query.dim != gallery.dim:
        raise InputError(
            f"columns {query.name!r} and {gallery.name!r} have different dimensions: {query.dim} "
            f"(model {query.model}) and {gallery.dim} (model {gallery.model})"
        )


def recorded_preprocessing(column: Column) -> dict[str, Any] | None:
    """How images came into an embedded column; None where that is not recorded."""
    settings = column.created_by.get("settings")
    recorded = settings.get("preprocessing") if isinstance(settings, dict) else None
    complete = isinstance(recorded, dict) and {*recorded} >= {"size", "resize", "mean", "std"}
    return recorded if complete else None


def _hint(a: Column, b: Column) -> str:
    """What to do about two spaces of what seems one model."""
    first, second = recorded_preprocessing(a), recorded_preprocessing(b)
    if a.model != b.model or a.model == "unknown" or {a.kind, b.kind} != {"embedded"}:
        return ""
    if (first is None) != (second is None):
        earlier = a if first is None else b
        return (
            f" if {a.model} is one model with one preprocessing in both: {earlier.name!r} was "
            "embedded by an earlier version of fct_tf, which knew models by less"
        )
    differing = [key for key, value in (first or {}).items() if (second or {}).get(key) != value]
    if differing:
        return f" (they were embedded with different preprocessing: {', '.join(differing)})"
    return ""


@dataclass(frozen=True)
class Rows:
    """Some rows of a gallery, or rows to be written.

    ids: object [n] of str, empty when not read. labels: object [n] of str or None, or None
    when not read. vectors: name -> float32 [n, dim]. fields: further fields by name, floats as
    float32 [n] with NaN for null, strings and whole numbers as texts, object [n], None for null.
    """

    ids: np.ndarray
    labels: np.ndarray | None = None
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    fields: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        arrays = (self.ids, self.labels, *self.vectors.values(), *self.fields.values())
        return max(len(array) for array in arrays if array is not None)

    def without(self, ids: Collection[str]) -> "Rows":
        """The rows that have none of these ids."""
        return self.take(np.array([value not in ids for value in self.ids], bool))

    def take(self, kept: np.ndarray) -> "Rows":
        """Some of the rows, by number, int [m], or by whether they are kept, bool [n]."""
        return Rows(
            self.ids[kept],
            None if self.labels is None else self.labels[kept],
            {name: values[kept] for name, values in self.vectors.items()},
            {name: values[kept] for name, values in self.fields.items()},
        )


def check_finite(vectors: np.ndarray, ids, where: str, distance: str = "") -> None:
    """Refuses a row with NaN or infinity, and one too long for its distance, naming its id.

    Args:
      vectors: float [n, dim].
      ids: n ids, or a function that returns them (called only for the message).
      where: path and column for the message.
      distance: by which the rows are compared; of `l2` they may be too long.
    """
    # A sum is finite for almost every good block and far cheaper than a look at every value.
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(np.sum(vectors, dtype=np.float64)):
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{where}: {named_rows(ids, bad)} with NaN or infinity; embed these rows "
                    "again or leave them out"
                )
    if distance == "l2" and (bad := too_long(vectors)).any():
        raise InputError(
            f"{where}: {named_rows(ids, bad)} {TOO_LONG}; divide all rows by one number, or leave "
            "these rows out"
        )


def named_rows(ids, found: np.ndarray) -> str:
    """`row 'a'`, or `row 'a' and 3 more rows`, of the rows found: bool [n], one at least.

    ids: n ids, or a function that returns them.
    """
    rows = np.flatnonzero(found)
    names = ids() if callable(ids) else ids
    more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
    return f"row {str(names[rows[0]])!r}{more}"


def too_long(vectors: np.ndarray) -> np.ndarray:
    """Which rows are too long to be compared by squared L2: bool [n]; see `LONGEST`.

    Args:
      vectors: float [n, dim]. Rows with NaN or infinity are another matter.
    """
    none, least = np.zeros(len(vectors), bool), LONGEST / max(vectors.shape[1], 1) ** 0.5
    if not vectors.size or float(np.abs([vectors.max(), vectors.min()]).max()) < least:
        return none
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return squares > LONGEST**2


def without_direction(vectors: np.ndarray) -> np.ndarray:
    """Which rows have no direction to compare by cosine: bool [n].

    Zeros, and rows so short or so long that their squared length is no number of float32, in
    which they are normalised: below 1.1e-19 or above 1.8e19. Rows with NaN or infinity are
    another matter.

    Args:
      vectors: float [n, dim].
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        vectors = np.asarray(vectors, np.float32)
        squares = np.einsum("ij,ij->i", vectors, vectors)
    directionless = ~((squares >= np.finfo(np.float32).tiny) & (squares < np.inf))
    directionless[directionless] = np.isfinite(vectors[directionless]).all(axis=1)
    return directionless


class Directions:
    """Counts rows of a `cosine` column that have no direction, block by block.

    count: of the rows so far. first: ids of the first of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, vectors: np.ndarray, ids) -> None:
        """Takes the next rows. vectors: float [n, dim]. ids: of the rows."""
        rows = np.flatnonzero(without_direction(vectors))
        self.count_more(len(rows), [str(ids[row]) for row in rows[:EXAMPLES]])

    def count_more(self, count: int, first: Sequence[str]) -> None:
        """Takes what was counted elsewhere of the next rows, and the ids of the first of them."""
        self.count += count
        self.first += first[: EXAMPLES - len(self.first)]

    def judge(self, where: str, zero_vectors: str) -> None:
        """Refuses the rows, or with `keep` tells of them. where: path and column.

        Raises:
          InputError: there are such rows, and they are not kept.
        """
        if self.count and zero_vectors != "keep":
            raise InputError(
                f"{where}: {self}; cosine cannot compare them: leave them out, or pass "
                "``zero_vectors=keep``, and an upgrade will make vectors of them that mean nothing"
            )
        if self.count:
            logging.warning("%s: %s; kept", where, self)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        rows = "row" if self.count == 1 else "rows"
        return f"{self.count} {rows} {NO_DIRECTION}: {', '.join(map(repr, self.first))}{more}"
