"""Galleries opened and read: whole columns, batches, or rows by id, every value checked."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa

from fct_tf.common import files, objects, store_errors, stores
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import FORMAT, Column, Rows, check_finite, completing, from_field
from fct_tf.gallery.ids import UniqueIds, looks_like, places, repeated

# What Lance may read ahead. Its own limit, 2 GB, lets memory grow with the gallery where rows are
# read faster than they are used.
IO_BUFFER_BYTES = 32 << 20


@dataclass(frozen=True)
class Gallery:
    """A gallery opened at one version.

    `pinned` says that the version or tag was asked for; else it is the newest one at opening.
    `tag` is the tag that was asked for.
    """

    path: str
    dataset: lance.LanceDataset
    columns: dict[str, Column]
    pinned: bool = False
    tag: str = ""

    @property
    def uri(self) -> str:
        """What opens it again: at its version or tag if that was asked for, else at the newest."""
        path = self.path if stores.in_store(self.path) else os.path.abspath(self.path)
        return f"{path}@{self.tag or self.version}" if self.pinned else path

    @property
    def version(self) -> int:
        return self.dataset.version

    @property
    def num_rows(self) -> int:
        return self.dataset.count_rows()

    def column(self, name: str) -> Column:
        """The embedding column `name`; `InputError` lists the columns there are."""
        if name in self.columns:
            return self.columns[name]
        names = ", ".join(self.columns) or "none"
        raise InputError(f"{self.path}: no embedding column {name!r}; there are: {names}")

    def check_group(self, name: str, wanted_by: str) -> None:
        """Refuses a field that rows cannot be grouped by, of other than texts or whole numbers.

        Args:
          wanted_by: the argument that asks for it, for the message.

        Raises:
          InputError: says which fields there are.
        """
        grouping = [new.name for new in self.dataset.schema if _is_grouping(new.type)]
        if name not in grouping:
            raise InputError(
                f"{self.path}: ``{wanted_by}={name}``: no column of strings or whole numbers of "
                f"this name; there are: {', '.join(grouping)}"
            )

    def check_rows(self) -> None:
        """Refuses a gallery without rows, where nothing could come of it."""
        if not self.num_rows:
            raise InputError(f"{self.path}: has no rows; name a gallery with some")

    def read(
        self,
        columns: Sequence[str],
        *,
        with_ids: bool = True,
        with_labels: bool = False,
        fields: Sequence[str] = (),
    ) -> Rows:
        """All rows of the columns in memory, in the table's order.

        Args:
          columns: names of embedding columns.
          with_ids, with_labels: read ids and labels too.
          fields: names of further fields of numbers or strings, e.g. `X_origin`.

        Raises:
          InputError: unknown column, repeated or null id, NaN or infinity, broken data file.
        """
        # Filled batch by batch: joining all batches at the end would need twice the memory.
        count, start, columns = self.num_rows, 0, list(dict.fromkeys(columns))
        vectors = {name: np.empty((count, self.column(name).dim), np.float32) for name in columns}
        parts: list[Rows] = []
        for batch in self.batches(columns, 65536, with_ids, with_labels, fields):
            stop = start + len(batch)
            for name in columns:
                vectors[name][start:stop] = batch.vectors[name]
            parts.append(Rows(batch.ids, batch.labels, {}, batch.fields))
            start = stop
        parts = parts or [to_rows(self._empty(columns, fields), [], fields, where=self.path)]
        labels = [np.empty(0, object) if part.labels is None else part.labels for part in parts]
        return Rows(
            np.concatenate([part.ids for part in parts]),
            np.concatenate(labels) if with_labels else None,
            vectors,
            {name: np.concatenate([part.fields[name] for part in parts]) for name in fields},
        )

    def batches(
        self,
        columns: Sequence[str],
        batch_size: int = 8192,
        with_ids: bool = True,
        with_labels: bool = False,
        fields: Sequence[str] = (),
    ) -> Iterator[Rows]:
        """The rows in the table's order, at most `batch_size` at a time. Errors as `read`."""
        if batch_size < 1:
            raise InputError(f"``batch_size={batch_size}``: must be 1 or more")
        names = self._names(columns, fields, with_labels)
        unique = UniqueIds(self.repeated)
        for batch in reading(self, names, batch_size):
            rows = self._rows(batch, columns, fields, with_ids, with_labels)
            twice = unique.add(rows.ids)
            if twice:
                raise repeated(self.path, twice[0])
            yield rows

    def take(
        self, ids: Sequence[str], columns: Sequence[str], *, fields: Sequence[str] = ()
    ) -> Rows:
        """The rows with the given ids, in that order; labels are read too.

        Raises:
          InputError: names an id that the gallery does not have, an unknown column, a bad row.
        """
        names = self._names(columns, fields, True)
        unique_ids, inverse = np.unique(np.asarray(ids, dtype=str), return_inverse=True)
        position = self.places(unique_ids)
        # Lance reads rows in ascending order fastest.
        order = np.argsort(position)
        try:
            table = self.dataset.take(position[order].tolist(), columns=names)
        except (OSError, pa.ArrowException) as error:
            raise read_error(self, error) from None
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        table = table.take(pa.array(back[inverse.reshape(-1)]))
        batch = table.combine_chunks().to_batches()
        whole = batch[0] if batch else self._empty(columns, fields)
        return self._rows(whole, columns, fields, True, True)

    def places(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The places in the table of the rows with these ids, each once: int64 [n].

        Raises:
          InputError: names an id that the gallery does not have, or has more than once.
        """
        place, twice = self._places(ids)
        if twice:
            raise repeated(self.path, twice[0])
        missing = np.flatnonzero(place < 0)
        if len(missing):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            name = min(str(ids[int(row)]) for row in missing)
            batches = reading(self, ["id"], 65536)
            others = (one for batch in batches for one in batch["id"].drop_null().to_pylist())
            raise InputError(
                f"{self.path}: no row with id {name!r}{more}; name a gallery, or a version of it, "
                f"that has every row asked for{looks_like(name, others)}"
            )
        return place

    def repeated(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that more than one row has: one pass over the ids of the gallery."""
        return self._places(list(dict.fromkeys(ids)))[1]

    def _places(self, ids: Sequence[str] | np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The last place of each id in the table, or -1, and those that have several.

        The ids of the gallery are read in batches: they need not fit in memory.
        """
        id_array = pa.array(list(ids), pa.large_string())
        place, count = np.full(len(id_array), -1, np.int64), np.zeros(len(id_array), np.int64)
        start = 0
        for batch in reading(self, ["id"], 65536):
            matches = places(batch["id"], id_array)
            rows = np.flatnonzero(matches >= 0)
            place[matches[rows]] = start + rows
            count += np.bincount(matches[rows], minlength=len(id_array))
            start += len(batch)
        return place, [str(ids[int(row)]) for row in np.flatnonzero(count > 1)]

    def _names(self, columns: Sequence[str], fields: Sequence[str], labels: bool) -> list[str]:
        for name in columns:
            self.column(name)
        for name in fields:
            if name not in self.dataset.schema.names:
                raise InputError(f"{self.path}: no field {name!r}")
        label = ["label"] if labels and "label" in self.dataset.schema.names else []
        return list(dict.fromkeys(["id", *label, *columns, *fields]))

    def _empty(self, columns: Sequence[str], fields: Sequence[str]) -> pa.RecordBatch:
        schema = self.dataset.schema
        kept = [schema.field(name) for name in self._names(columns, fields, True)]
        return pa.RecordBatch.from_pylist([], schema=pa.schema(kept))

    def _rows(self, batch, columns, fields, with_ids: bool, with_labels: bool) -> Rows:
        return to_rows(batch, columns, fields, with_ids, with_labels, where=self.path)


def to_rows(
    batch: pa.RecordBatch, columns, fields=(), with_ids=True, with_labels=False, *, where: str
) -> Rows:
    """An Arrow batch as `Rows`, checked: no null id, every vector there and finite."""
    ids = batch["id"]
    if ids.null_count:
        raise InputError(f"{where}: a row without id; every row needs a unique one")
    vectors = {}
    for name in columns:
        array, column = batch[name], from_field(batch.schema.field(name), where)
        if array.null_count:
            first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            advice = completing(column, where) if column else "complete the column first"
            raise InputError(
                f"{where}: row {ids[first].as_py()!r} has no vector in column {name!r}; {advice}"
            )
        values = array.flatten().to_numpy(zero_copy_only=False)
        vectors[name] = values.reshape(len(batch), array.type.list_size)
        distance = column.distance if column else ""
        check_finite(vectors[name], ids.to_pylist, f"{where}: column {name!r}", distance)
        vectors[name] = vectors[name].astype(np.float32, copy=False)
    labels = None
    if with_labels and "label" in batch.schema.names:
        labels = _strings(batch["label"])
    elif with_labels:
        labels = np.full(len(batch), None, object)
    others = {}
    for name in fields:
        others[name] = (
            batch[name].cast(pa.float32()).to_numpy(zero_copy_only=False)
            if pa.types.is_floating(batch[name].type)
            else _strings(batch[name])
        )
    return Rows(_strings(ids if with_ids else ids[:0]), labels, vectors, others)


def _is_grouping(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*kinds, pa.types.is_integer, pa.types.is_boolean))


def _strings(array: pa.Array) -> np.ndarray:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.string()).to_numpy(zero_copy_only=False)


def reading(gallery: Gallery, names: Sequence[str], batch_size: int) -> Iterator[pa.RecordBatch]:
    """Batches of the dataset; what Lance says of a broken data file becomes an `InputError`."""
    try:
        yield from gallery.dataset.to_batches(
            columns=list(names), batch_size=batch_size, io_buffer_size=IO_BUFFER_BYTES
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise read_error(gallery, error) from None


def all_ids(gallery: Gallery) -> pa.Array:
    """The ids of all rows in the table's order, large_string [n]; refuses null."""
    parts = [pa.array([], pa.large_string())]
    for batch in reading(gallery, ["id"], 65536):
        if batch["id"].null_count:
            raise InputError(f"{gallery.path}: a row without id; every row needs a unique one")
        parts.append(batch["id"].cast(pa.large_string()))
    return pa.concat_arrays(parts)


def places_in(gallery: Gallery, known: pa.Array) -> np.ndarray:
    """Where the id of each row of `gallery` is in `known` (large_string): int64 [n], -1 if not.

    The ids of the gallery are held in memory too: looked up batch by batch, `known` would be
    hashed anew for each.
    """
    return places(all_ids(gallery), known)


def read_error(gallery: Gallery, error: Exception) -> InputError:
    """What to raise for an error of Lance at reading: names the data file that is broken."""
    failure = store_errors.explained(error, gallery.path) if stores.in_store(gallery.path) else None
    if failure:
        return failure
    broken = broken_files(gallery)
    if not broken:
        return InputError(f"{gallery.path}: cannot be read ({files.one_line(error)})")
    return InputError(f"{broken[0]}; put the file back, or use a version without it")


def broken_files(gallery: Gallery) -> list[str]:
    """Data files that are missing or not as long as the table says, as messages."""
    problems, data = [], f"{gallery.path}/data"
    remote = stores.in_store(data)
    if remote and not objects.reaches(data):
        return []
    sizes = {name: one.size for name, one in objects.listed(data).items()} if remote else {}
    for fragment in gallery.dataset.get_fragments():
        for file in fragment.metadata.to_json()["files"]:
            path = f"{data}/{file['path']}"
            expected = file.get("file_size_bytes")
            if file.get("base_id") is not None:
                continue
            if remote:
                size = sizes.get(file["path"])
            else:
                size = os.stat(path).st_size if os.path.exists(path) else None
            if size is None:
                problems.append(f"{path}: data file is missing")
            elif expected and size != expected:
                problems.append(f"{path}: data file has {size} bytes instead of {expected}")
    return problems


def split_uri(uri: str) -> tuple[str, str | int | None]:
    """`photos.lance@7` -> (`photos.lance`, 7); `photos.lance@live` -> (.., `live`).

    Slashes at the end go: what is kept beside a gallery must not come to lie in it.

    Raises:
      InputError: no path, but a bucket.
    """
    stores.check_path(uri)
    uri = stores.local_form(str(uri))
    uri = uri.rstrip("/") or uri
    head, separator, reference = uri.rpartition("@")
    if not separator or "/" in reference or os.path.exists(uri):
        return uri, None
    return head.rstrip("/") or head, int(reference) if reference.isdecimal() else reference


def exists(path: str) -> bool:
    """Whether there is a Lance dataset at `path` (without version or tag)."""
    try:
        lance.dataset(path, storage_options=objects.lance_options(path))
    except (ValueError, OSError) as error:
        failure = store_errors.explained(error, path) if stores.in_store(path) else None
        if failure:  # It may well be there.
            raise failure from None
        return False
    return True


def open_gallery(uri: str | os.PathLike) -> Gallery:
    """Opens a gallery: `photos.lance` (newest), `photos.lance@7` (version), `photos.lance@live`.

    Raises:
      InputError: no such gallery, version or tag; no gallery of this package or a newer format.
    """
    path, dataset = open_dataset(uri)
    schema = dataset.schema
    number = (schema.metadata or {}).get(b"fct.format", b"").decode()
    if not number.isdecimal() or "id" not in schema.names:
        raise InputError(
            f"{path}: a Lance dataset but no gallery (no column 'id' or no schema metadata "
            "fct.format); make one of it with import_gallery --adopt, or a copy with "
            "import_gallery --embeddings"
        )
    if int(number) > FORMAT:
        raise InputError(
            f"{path}: has gallery format {number}, this version reads up to {FORMAT}; "
            "install a newer fct_tf"
        )
    columns = {}
    for arrow_field in schema:
        column = from_field(arrow_field, path)
        if column:
            columns[column.name] = column
    reference = split_uri(str(uri))[1]
    tag = reference if isinstance(reference, str) else ""
    return Gallery(path, dataset, columns, pinned=reference is not None, tag=tag)


def open_dataset(uri: str | os.PathLike) -> tuple[str, lance.LanceDataset]:
    """The path without version or tag, and the Lance dataset at that version.

    Raises:
      InputError: no such dataset, version or tag.
    """
    path, reference = split_uri(str(uri))
    try:
        dataset = lance.dataset(path, storage_options=objects.lance_options(path))
    except (ValueError, OSError) as error:
        failure = store_errors.explained(error, path) if stores.in_store(path) else None
        if failure:
            raise failure from None
        if "not found" in str(error).lower():
            raise InputError(f"{path}: no gallery (Lance dataset) here") from None
        raise InputError(f"{path}: cannot be opened ({files.one_line(error)})") from None
    if reference is not None:
        dataset = _checkout(path, dataset, reference)
    return path, dataset


def _checkout(path: str, dataset: lance.LanceDataset, reference: str | int) -> lance.LanceDataset:
    if isinstance(reference, str):
        tags = dataset.tags.list()
        if reference not in tags:
            tag_names = ", ".join(sorted(tags)) or "none"
            raise InputError(f"{path}: no tag {reference!r}; there are: {tag_names}")
        reference = tags[reference]["version"]
    elif reference not in {version["version"] for version in dataset.versions()}:
        raise InputError(f"{path}: no version {reference}; the newest is {dataset.version}")
    return dataset.checkout_version(reference)
