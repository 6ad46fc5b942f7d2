"""Embeddings in memory become a gallery, or a column of one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.provenance import created_by
from fct_tf.gallery import table, text_columns
from fct_tf.gallery.columns import DISTANCES, declared_spaces
from fct_tf.ingest import embedding_files, import_files

# How messages name what has no file.
IDS, LABELS = "ids", "labels"


class InMemory:
    """A matrix in memory, read as `fct_tf.ingest.embedding_files.Embeddings` is.

    `path` is how messages name it, `shape` is (rows, dim), `dtype` float32 or float16 (anything
    but float16 becomes float32).
    """

    def __init__(self, vectors: Any, where: str):
        self.path = where
        try:
            self._matrix = np.asarray(vectors)
        except ValueError:
            raise InputError(f"{where}: rows of different lengths") from None
        embedding_files.check_matrix(self._matrix, where)
        self.shape = self._matrix.shape
        self.dtype = "float16" if self._matrix.dtype == np.float16 else "float32"

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """float [<= size, dim], in order."""
        for start in range(0, self.shape[0], size):
            yield self._matrix[start : start + size]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float [n, dim] of the given row numbers. rows: int [n]."""
        return self._matrix[rows]


def create(
    path: str,
    ids: Any,
    vectors: Mapping[str, Any],
    labels: Any = None,
    *,
    model: str | Mapping[str, str],
    distance: str | Mapping[str, str] = "l2",
    zero_vectors: str = "refuse",
    overwrite: bool = False,
    drop_indices: bool = False,
) -> table.Gallery:
    """Writes a new gallery of vectors in memory, as `import_gallery` does of a file.

    Args:
      path: where; a Lance dataset.
      ids: n texts, whole numbers or UUIDs, unique.
      vectors: name of a column -> float [n, d].
      labels: n texts or whole numbers, None where a row has no label; None for no labels.
      model: name of the model that made the vectors, or one for each column. Its SHA-256 is the
        space, so give equal names to vectors of one model in all galleries.
      distance: how rows are compared, `l2` or `cosine`; or one for each column.
      zero_vectors, overwrite, drop_indices: as `fct_tf.ingest.import_files.import_embeddings`.

    Raises:
      InputError: as `import_embeddings`; vectors, ids and labels of different lengths.
    """
    if table.split_uri(path)[1] is not None:
        raise InputError(f"{path}: a new gallery has no version yet; leave the part after '@' out")
    if not vectors:
        raise InputError("vectors: holds no column; give at least one array")
    sources = {name: InMemory(array, f"vectors[{name!r}]") for name, array in vectors.items()}
    count = next(iter(sources.values())).shape[0]
    row_ids = _ids(ids, count)
    row_labels = None if labels is None else _texts(labels, count, LABELS)
    columns = []
    for name, source in sources.items():
        if source.shape[0] != count:
            raise InputError(f"{source.path}: {source.shape[0]} rows for {count} ids")
        settings = (_of(model, name, "model"), _of(distance, name, "distance"))
        columns.append(_column(name, source, *settings, zero_vectors))
        import_files.check_directions(source, row_ids, columns[-1], zero_vectors)

    def batches() -> Iterator[table.Rows]:
        for start in range(0, count, import_files.BLOCK_ROWS):
            rows = np.arange(start, min(count, start + import_files.BLOCK_ROWS))
            yield table.Rows(
                row_ids[rows],
                None if row_labels is None else row_labels[rows],
                {name: source.take(rows) for name, source in sources.items()},
            )

    return table.create(path, batches(), columns, overwrite=overwrite, drop_indices=drop_indices)


def add(
    gallery: table.Gallery,
    vectors: Any,
    name: str,
    model: str,
    *,
    ids: Any,
    distance: str = "l2",
    kind: str = "imported",
    compatible_with: Sequence[str] = (),
    zero_vectors: str = "refuse",
    overwrite: bool = False,
    drop_indices: bool = False,
) -> table.Gallery:
    """Adds vectors in memory to a gallery as a column, matched by id.

    Args:
      vectors: float [n, d].
      name: of the column.
      ids: of the vectors; the gallery's rows must all be among them.
      model, distance, kind, compatible_with, zero_vectors, overwrite, drop_indices: as
        `fct_tf.ingest.import_files.import_embeddings`, and the errors too.
    """
    gallery.check_rows()
    source = InMemory(vectors, "vectors")
    row_ids = _ids(ids, source.shape[0])
    column = _column(
        name,
        source,
        model,
        distance,
        zero_vectors,
        kind=kind,
        compatible_with=declared_spaces(compatible_with, gallery.columns),
    )
    return import_files.add_by_id(
        gallery, column, source, row_ids, None, zero_vectors, overwrite, drop_indices
    )


def _column(
    name: str,
    source: InMemory,
    model: str,
    distance: str,
    zero_vectors: str,
    *,
    kind: str = "imported",
    compatible_with: Sequence[str] = (),
) -> table.Column:
    if not model:
        raise InputError(f"column {name!r}: model is empty; name the model that made the vectors")
    if distance not in DISTANCES:
        raise InputError(f"distance {distance!r}: it must be one of {', '.join(DISTANCES)}")
    settings = {} if zero_vectors == "refuse" else {"zero_vectors": zero_vectors}
    provenance = created_by("Gallery", settings, model=model)
    space = table.imported_space(model)
    compatible_with = tuple(compatible_with)
    dim = source.shape[1]
    return table.Column(name, dim, space, source.dtype, kind, distance, compatible_with, provenance)


def _of(value: str | Mapping[str, str], name: str, what: str) -> str:
    """What an argument says of a column: the same of all, or each its own."""
    if isinstance(value, str):
        return value
    if name not in value:
        raise InputError(f"{what}: says nothing of the column {name!r}; it has {', '.join(value)}")
    return value[name]


def _ids(ids: Any, count: int) -> np.ndarray:
    """object [count] of str, none missing or repeated."""
    row_ids = _texts(ids, count, IDS)
    import_files.check_row_ids(row_ids, IDS, text_columns.place_of)
    return row_ids


def _texts(values: Any, count: int, where: str) -> np.ndarray:
    """object [count] of str, None for empty."""
    array = np.asarray(values)
    # NumPy writes a list of texts and None as objects, and one of texts and numbers as texts.
    if array.dtype.kind == "f":
        raise InputError(f"{where}: {text_columns.WANTED}, received {array.dtype}")
    texts = text_columns.of_numpy(array, where)
    if len(texts) != count:
        raise InputError(f"{where}: {len(texts)} entries for {count} rows of vectors")
    return texts
