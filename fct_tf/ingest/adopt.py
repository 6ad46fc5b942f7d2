"""A Lance or LanceDB table of another tool becomes a gallery where it lies.

Its vectors are not copied, nor does anything else of its rows change: one commit adds the columns
`id` and `label` where they are missing, and the metadata by which a gallery's columns are known.
Other columns and the indices stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from absl import logging
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.common.provenance import created_by
from fct_tf.gallery import fragments, text_columns
from fct_tf.gallery.columns import (
    FORMAT,
    Column,
    Directions,
    check_finite,
    declared_spaces,
    imported_space,
)
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.job import alone
from fct_tf.gallery.reader import Gallery, open_gallery, split_uri
from fct_tf.ingest import arrow_tables
from fct_tf.ingest.embedding_files import TEXT_ROWS, USUAL

BLOCK_ROWS = 8192
ID, LABEL = "id", "label"
ADOPT = ".adopt"  # The job: no column has such a name.
# Metadata of the fields `id` and `label`: the column that they were made from.
MADE_FROM = "fct.made_from"


@dataclass(frozen=True)
class Adopted:
    """What was done. added: name of a new column -> the one it was made from, or empty."""

    gallery: Gallery
    column: Column
    added: dict[str, str]
    without_vector: int

    def __str__(self) -> str:
        gallery, column = self.gallery, self.column
        lines = [
            f"{gallery.path}, version {gallery.version}: column {column.name!r} adopted, "
            f"{gallery.num_rows} rows of {column.dim} {column.dtype}, space {column.space}"
        ]
        lines += [
            f"added: column {name!r}, " + (f"from {source!r}" if source else "empty")
            for name, source in self.added.items()
        ]
        if self.without_vector:
            lines.append(
                f"{self.without_vector} rows have no vector in {column.name!r}; commands that read "
                "the column name the first, --verify of inspect_gallery five"
            )
        return "\n".join(lines)


def adopt(
    path: str,
    model_name: str,
    *,
    key: str = "",
    ids: str = "",
    labels: str = "",
    distance: str = "l2",
    kind: str = "imported",
    compatible_with: Sequence[str] = (),
    zero_vectors: str = "refuse",
    overwrite: bool = False,
) -> Adopted:
    """Makes a gallery of a Lance table, in one commit.

    Rows may be without vector (null); each needs an id. Every row is looked at before anything
    is written.

    Args:
      path: of the table, at its newest version.
      model_name: of the model that made the vectors; its SHA-256 is the space.
      key: the column of vectors, a fixed-size list of float32 or float16; by default `embeddings`,
        `embedding`, `vector`, or the only one.
      ids, labels: columns of text, whole numbers or UUIDs, by default `id` and `label`, `ids` and
        `labels`. Columns `id` and `label` of text are made of others.
      distance, kind, compatible_with: of the column.
      zero_vectors: `refuse` or `keep` rows that have no direction, where the distance is cosine.
      overwrite: describe a column anew that is described already, and make `id` and `label` anew
        that were made by an earlier adoption: rows may have come without.

    Raises:
      InputError: no such table or column, or one of another type; null or repeated ids, vectors
        with NaN or infinity.
    """
    if not model_name:
        raise InputError("``model_name`` is empty; name the model that made the embeddings")
    if split_uri(path)[1] is not None:
        raise InputError(
            f"{path}: changes are made to the newest version; leave the part after '@' out"
        )
    place = arrow_tables.Lance(path).path
    with alone(place, ADOPT):
        source = arrow_tables.Lance(place)
        dataset, schema = source.dataset, source.dataset.schema
        name = _vectors(source, key, overwrite)
        added = {}
        for field, given in ((ID, ids), (LABEL, labels)):
            made_from = _made_from(source, field, given, overwrite)
            if made_from is not None:
                added[field] = made_from
        id_source = added.get(ID, ID)
        settings = {"adopted": name, "ids": id_source, "labels": added.get(LABEL, LABEL)}
        if zero_vectors != "refuse":
            settings["zero_vectors"] = zero_vectors
        kind_of_vectors = schema.field(name).type
        column = Column(
            name,
            kind_of_vectors.list_size,
            imported_space(model_name),
            str(np.dtype(kind_of_vectors.value_type.to_pandas_dtype())),
            kind,
            distance,
            declared_spaces(compatible_with, _columns(source)),
            created_by("import_gallery", settings, model=model_name),
        )
        try:
            column.check()
        except InputError as error:
            raise InputError(
                f"{source.path}: {error.marked}; rename yours, or copy it: "
                f"{_copy(source.path, name)}"
            ) from None
        texts = {one: _Text(source, one) for one in {id_source, *added.values()} - {""}}
        for text in texts.values():
            text.check()
        check_ids(texts[id_source].arrays, texts[id_source].where)
        without_vector = _check_vectors(source, texts[id_source], column, zero_vectors)
        fields = [
            pa.field(field, pa.string(), metadata={MADE_FROM: made_from})
            for field, made_from in added.items()
        ]

        def compute(batch: pa.RecordBatch) -> list[pa.Array]:
            return [
                texts[made_from].of(batch) if made_from else pa.nulls(len(batch), pa.string())
                for made_from in added.values()
            ]

        read = sorted(texts)
        records = [
            fragments.stage_fragment(
                dataset, fragment.fragment_id, compute, read, fields, TEXT_ROWS
            )
            if fields
            else {"base": fragment.metadata.to_json(), "read": [], "files": [], "names": {}}
            for fragment in dataset.get_fragments()
        ]
        _compare_with_indices(source, column)
        old = schema.field(name)
        noted = old.with_metadata({**(old.metadata or {}), **column.to_field().metadata})
        version = fragments.commit(
            source.path,
            records,
            fields,
            overwrite=overwrite,
            noted=[noted],
            metadata={"fct.format": str(FORMAT)},
        )
        return Adopted(open_gallery(f"{source.path}@{version}"), column, added, without_vector)


class _Text:
    """A column of a table as text, whole or batch by batch."""

    def __init__(self, source: arrow_tables.Lance, name: str):
        self._source, self.name = source, name
        self.where = f"{source.path}: column {name!r}"
        self._uuids = text_columns.is_bytes(source.types[name]) and text_columns.hold_uuids(
            source.arrays(name, TEXT_ROWS)
        )

    def arrays(self) -> Iterator[pa.Array]:
        return text_columns.as_text(
            lambda: self._source.arrays(self.name, TEXT_ROWS), self.where, uuids=self._uuids
        )

    def check(self) -> None:
        """Refuses what is no text, before anything is written."""
        for _ in self.arrays():
            pass

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        return text_columns.convert(batch[self.name], self._uuids, self.where)


def _vectors(source: arrow_tables.Lance, key: str, overwrite: bool) -> str:
    """The column to adopt."""
    schema, path = source.dataset.schema, source.path
    lists = [field.name for field in schema if arrow_tables.value_type(field.type)]
    usual = [name for name in USUAL if name in lists]
    if key and key not in schema.names:
        raise InputError(f"{path}: no column {key!r}; there are: {', '.join(schema.names)}")
    if not key and not usual and len(lists) != 1:
        raise InputError(
            f"{path}: which column holds the embeddings? Pass ``key``; there are: "
            f"{', '.join(lists) or 'no lists of numbers'}"
        )
    name = key or (usual or lists)[0]
    field = schema.field(name)
    fixed = pa.types.is_fixed_size_list(field.type) and (
        pa.types.is_float32(field.type.value_type) or pa.types.is_float16(field.type.value_type)
    )
    if not fixed:
        raise InputError(
            f"{path}: column {name!r} is {field.type}, and only a fixed-size list of float32 or "
            f"float16 can be adopted where it lies; copy it: {_copy(path, name)}"
        )
    if b"fct.space" in (field.metadata or {}) and not overwrite:
        raise InputError(
            f"{path}: column {name!r} is an embedding column already; pass ``overwrite=True`` to "
            "describe it anew"
        )
    return name


def _made_from(source: arrow_tables.Lance, field: str, given: str, overwrite: bool) -> str | None:
    """The column that `id` or `label` is made from; empty for none, None to leave it as it is."""
    schema, path, flag = source.dataset.schema, source.path, f"``{field}``s"
    readable = [one.name for one in schema if text_columns.is_readable(one.type)]
    copy = f"or copy the table: {_copy(path)}"
    if field in schema.names:
        existing = schema.field(field)
        earlier = (existing.metadata or {}).get(MADE_FROM.encode(), b"").decode()
        if not text_columns.is_string(existing.type):
            raise InputError(
                f"{path}: column {field!r} is {existing.type}, but a gallery's is text; rename "
                f"yours and name it with {flag}, {copy}"
            )
        if given in ("", field) and not (earlier and overwrite):
            return None
        if not (earlier and overwrite):
            raise InputError(
                f"{path}: has a column {field!r} already, which is the gallery's; leave {flag} "
                f"out, {copy}"
            )
        given = earlier if given in ("", field) else given
    name = given or next((one for one in (f"{field}s",) if one in readable), "")
    if name and name not in readable:
        problem = "has no column" if name not in schema.names else "cannot read as text the column"
        raise InputError(
            f"{path}: {problem} {name!r} of {flag}; columns of text, whole numbers or UUIDs are: "
            f"{', '.join(readable) or 'none'}"
        )
    if not name and field == ID:
        raise InputError(
            f"{path}: has no column 'id'; name the one that tells its rows apart with ``ids``: "
            f"{', '.join(readable) or 'there is none of text, whole numbers or UUIDs'}"
        )
    return name


def _copy(path: str, key: str = "VECTORS") -> str:
    return f"--embeddings={path} --key={key} --gallery=ANOTHER --column=NAME, without --adopt"


def _columns(source: arrow_tables.Lance) -> dict[str, Column]:
    """The embedding columns that are there already, of a gallery."""
    is_gallery = b"fct.format" in (source.dataset.schema.metadata or {})
    return open_gallery(source.path).columns if is_gallery else {}


def _compare_with_indices(source: arrow_tables.Lance, column: Column) -> None:
    """Warns of an index on the vectors that compares them in another way than is said now."""
    for index in source.dataset.describe_indices():
        metric = str((index.details or {}).get("metric_type", "")).lower()
        if index.field_names == [column.name] and metric not in ("", column.distance):
            logging.warning(
                "%s: the index %r compares %r by %s, but ``distance`` says %s; adopt it again with "
                "``overwrite=True`` if that is wrong",
                source.path, index.name, column.name, metric, column.distance,
            )  # fmt: skip


def _check_vectors(
    source: arrow_tables.Lance, ids: _Text, column: Column, zero_vectors: str
) -> int:
    """Refuses NaN, infinity and, by choice, zeros, naming ids; returns how many are null."""
    where = f"{source.path}: column {column.name!r}"
    directions, without = Directions(), 0
    with tqdm(desc="check", total=source.num_rows, unit="row", disable=None) as bar:
        for batch in source.batches([column.name, ids.name], BLOCK_ROWS):
            array = batch[column.name]
            valid = array.is_valid().to_numpy(zero_copy_only=False)
            names = ids.of(batch).to_numpy(zero_copy_only=False)[valid]
            vectors = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.dim)
            check_finite(vectors, names, where, column.distance)
            if column.distance == "cosine":
                directions.add(vectors, names)
            without += len(array) - len(names)
            bar.update(len(array))
    directions.judge(where, zero_vectors)
    return without
