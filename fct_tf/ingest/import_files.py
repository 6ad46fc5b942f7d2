"""Embeddings from files become a gallery, or a column of one."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from absl import logging
from tqdm import tqdm

from fct_tf.common.errors import InputError
from fct_tf.common.provenance import created_by
from fct_tf.gallery import table, text_columns
from fct_tf.gallery.columns import Directions, declared_spaces
from fct_tf.gallery.ids import Lookup, check_ids, code_points, looks_like
from fct_tf.ingest import embedding_files

BLOCK_ROWS = 8192


# Names under which ids and labels are looked for beside the embeddings.
ID_NAMES = ("id", "ids")


LABEL_NAMES = ("label", "labels")


class Matrix(Protocol):
    """Embeddings to import, wherever they are; `path` is how messages name them."""

    path: str
    shape: tuple[int, int]

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """float [<= size, dim], in order."""
        ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float [n, dim] of the given row numbers, int [n]."""
        ...


def import_embeddings(
    gallery: str | Path,
    embeddings: str | Path,
    column: str,
    model_name: str,
    *,
    key: str = "",
    ids: str = "",
    labels: str = "",
    distance: str = "l2",
    kind: str = "imported",
    compatible_with: list[str] | tuple[str, ...] = (),
    zero_vectors: str = "refuse",
    overwrite: bool = False,
    drop_indices: bool = False,
) -> table.Gallery:
    """Makes a gallery of the embeddings of a file, or adds them to one as a column, by id.

    The arguments are the flags of the command. A stopped call leaves nothing visible; repeated, it
    ends in the same content.

    Raises:
      InputError: file, ids or labels that cannot be read or do not fit, rows with NaN or
        infinity, or with zeros where the distance is cosine; repeated ids, gallery rows without
        embedding, existing column.
    """
    path = str(gallery)
    if not model_name:
        raise InputError("``model_name`` is empty; name the model that made the embeddings")
    if table.split_uri(path)[1] is not None:
        raise InputError(f"{path}: a new column makes a new version; leave the part after '@' out")
    existing = table.open_gallery(path) if table.exists(path) else None
    if existing:
        existing.check_rows()  # Rows are matched by id: none would come.
    source = embedding_files.Embeddings(embeddings, key)
    count, dim = source.shape
    row_ids = _texts(source, ids, ID_NAMES, "``ids``")
    if row_ids is None:
        row_ids = np.array([f"{model_name}:{row}" for row in range(count)], dtype=object)
        logging.warning(
            "%s: no ids; its rows are numbered %s:0 and so on. Rows of another file get the same "
            "ids and are taken for the same rows: give ``ids`` where they are not",
            embeddings,
            model_name,
        )
    _check_ids(row_ids, ids, source)
    settings = {
        "embeddings": str(embeddings),
        **source.fingerprint(),
        "key": source.key,
        "ids": ids,
        "ids_sha256": hashlib.sha256("\n".join(row_ids).encode()).hexdigest(),
        "labels": labels,
        "zero_vectors": zero_vectors,
    }
    new = table.Column(
        column,
        dim,
        table.imported_space(model_name),
        source.dtype,
        kind,
        distance,
        declared_spaces(compatible_with, existing.columns if existing else {}),
        created_by("import_gallery", settings, model=model_name),
    )
    row_labels = _texts(source, labels, LABEL_NAMES, "``labels``")
    if existing is None:
        check_directions(source, row_ids, new, zero_vectors)
        return table.create(path, _batches(source, column, row_ids, row_labels), [new])
    row_labels = row_labels if labels else None
    return add_by_id(
        existing, new, source, row_ids, row_labels, zero_vectors, overwrite, drop_indices
    )


def check_directions(
    source: Matrix,
    ids: np.ndarray,
    column: table.Column,
    zero_vectors: str,
    used: np.ndarray | None = None,
) -> None:
    """Refuses or counts rows that cosine cannot compare, in a pass of its own: it counts all.

    used: bool [rows], those that come into the gallery; None for all.
    """
    if column.distance != "cosine":
        return
    directions, start = Directions(), 0
    for block in source.blocks(BLOCK_ROWS):
        names = ids[start : start + len(block)]
        kept = slice(None) if used is None else used[start : start + len(block)]
        directions.add(block[kept], names[kept])
        start += len(block)
    directions.judge(f"{source.path}: column {column.name!r}", zero_vectors)


def add_by_id(
    gallery: table.Gallery,
    column: table.Column,
    source: Matrix,
    ids: np.ndarray,
    labels: np.ndarray | None,
    zero_vectors: str,
    overwrite: bool,
    drop_indices: bool,
) -> table.Gallery:
    """Adds the column to a gallery, whose rows must all be in the file."""
    find = Lookup(ids)
    used = np.zeros(len(ids), bool)
    missing = 0
    first = ""
    for batch in gallery.batches([], with_labels=labels is not None):
        for number, (row_id, row) in enumerate(zip(batch.ids, find(batch.ids), strict=True)):
            if row < 0:
                missing += 1
                first = first or row_id
                continue
            used[row] = True
            if labels is not None and batch.labels is not None:
                if labels[row] != batch.labels[number]:
                    raise InputError(
                        f"{gallery.path}: row {row_id!r} has label {batch.labels[number]!r}, "
                        f"``labels`` says {labels[row]!r}; leave ``labels`` out to keep the "
                        "gallery's, or import into a new gallery"
                        f"{looks_like(labels[row] or '', [batch.labels[number] or ''])}"
                    )
    if missing:
        more = f" and {missing - 1} more rows" if missing > 1 else ""
        raise InputError(
            f"{source.path}: no embedding for row {first!r}{more} of {gallery.path}; rows are "
            "matched by id, give ``ids`` with the ids of the gallery"
            f"{looks_like(first, ids)}"
        )
    extra = len(ids) - gallery.num_rows
    if extra:
        logging.warning("%s: %d rows are not in %s; left out", source.path, extra, gallery.path)
    check_directions(source, ids, column, zero_vectors, used)

    def look_up(rows: table.Rows) -> np.ndarray:
        return source.take(find.of_rows(rows.ids, gallery.path))

    return table.add_column(
        gallery,
        column,
        look_up,
        [],
        overwrite=overwrite,
        drop_indices=drop_indices,
        batch_size=BLOCK_ROWS,
        progress="import",
    )


def _batches(
    source: embedding_files.Embeddings, name: str, ids: np.ndarray, labels: np.ndarray | None
) -> Iterator[table.Rows]:
    start = 0
    with tqdm(desc="import", total=len(ids), unit="row", disable=None) as bar:
        for block in source.blocks(BLOCK_ROWS):
            part = slice(start, start + len(block))
            yield table.Rows(ids[part], None if labels is None else labels[part], {name: block})
            start += len(block)
            bar.update(len(block))


def _texts(
    source: embedding_files.Embeddings, given: str, usual: tuple[str, ...], flag: str
) -> np.ndarray | None:
    """object [rows]: ids or labels from a file, or from the file of the embeddings; else None."""
    if not given or given in source.names:
        # What is found in the file never becomes a path, whatever lies in this directory.
        name = given or source.beside(usual)
        if not name:
            return None
        if given and Path(given).is_file():
            logging.info(
                "%s=%s: taken from %s, which has it; the file of that name is ./%s",
                flag, given, source.path, given,
            )  # fmt: skip
        values = source.texts(name)
    elif Path(given).is_file():
        values = embedding_files.texts(given)
    else:
        values = source.texts(given)
    if len(values) != source.shape[0]:
        raise InputError(
            f"{flag}={given}: {len(values)} entries for {source.shape[0]} rows of {source.path}"
        )
    return values


def _check_ids(ids: np.ndarray, given: str, source: embedding_files.Embeddings) -> None:
    """`check_row_ids` of ids from a file."""
    inside = not given or given in source.names
    where, place = (source.path, source.place) if inside else (given, text_columns.place_of)
    check_row_ids(ids, where, place)


def check_row_ids(ids: np.ndarray, where: str, place: Callable[[int], str]) -> None:
    """Refuses null and repeated ids; tells of such as differ in a way that is not seen.

    Args:
      ids: object [n] of str or None.
      where, place: how messages name their file, and a row of it.
    """
    check_ids(lambda: [pa.array(ids, pa.string())], where, place)
    seen: dict[str, str] = {}
    for row_id in ids:
        if row_id.isascii():
            continue
        other = seen.setdefault(unicodedata.normalize("NFC", row_id), row_id)
        if other != row_id:
            logging.warning(
                "%s: ids %s and %s look the same and are two rows; write one as the other if they "
                "are not",
                where, code_points(other), code_points(row_id),
            )  # fmt: skip
            return
