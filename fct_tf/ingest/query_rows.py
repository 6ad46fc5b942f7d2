"""Queries of a search, block by block: a column of a gallery, or a file of vectors."""

from collections.abc import Iterator

import numpy as np

from fct_tf.common import copies, files
from fct_tf.common.errors import InputError
from fct_tf.gallery import reader
from fct_tf.gallery.columns import Column, check_finite, imported_space
from fct_tf.ingest import embedding_files
from fct_tf.models.info import INFO, read_info

# Queries that are searched at a time.
BLOCK = 8192

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


def read(
    path: str,
    column: str = "",
    *,
    model: str = "",
    model_name: str = "",
    space: str = "",
    needs_ids: bool = False,
) -> tuple[Column | None, int, Blocks]:
    """Opens a gallery or a file.

    Args:
      path: of either.
      column: of a gallery; of a file, which array or column.
      model, model_name, space: of a file, one of them at most: the artifact or SavedModel that
        made the vectors, its name as in import_gallery, or the fingerprint of their space.
      needs_ids: refuse a file, whose rows are only numbered.

    Returns:
      (column with their space, None where none is told; their number; blocks of ids, object [b],
      and vectors, float32 [b, d]).

    Raises:
      InputError: none there, no such column, or what does not go together; while blocks are read,
        bad rows.
    """
    origins = {"model": model, "model_name": model_name, "space": space}
    given = [name for name, value in origins.items() if value]
    if reader.exists(reader.split_uri(path)[0]):
        gallery = reader.open_gallery(path)
        if given:
            raise InputError(f"``{given[0]}``: goes with a file; a gallery's column says its space")
        if not column:
            raise InputError(
                f"``query_column`` is missing; {gallery.path} has: {', '.join(gallery.columns)}"
            )
        existing = gallery.column(column)
        gallery.check_rows()
        batches = gallery.batches([existing.name], BLOCK)
        blocks = ((batch.ids, batch.vectors[existing.name]) for batch in batches)
        return existing, gallery.num_rows, blocks
    if needs_ids:
        raise InputError(f"``exclude_own=True``: {path} has no ids; name a gallery, or leave it")
    if len(given) > 1:
        raise InputError(f"``{given[0]}`` and ``{given[1]}``: give one of them")
    source = embedding_files.Embeddings(path, column)
    own = _told(source.shape[1], model, model_name, space) if given else None
    return own, source.shape[0], _numbered(source, path)


def _numbered(source: embedding_files.Embeddings, path: str) -> Blocks:
    start = 0
    for block in source.blocks(BLOCK):
        ids = np.array([str(start + row) for row in range(len(block))], object)
        vectors = np.asarray(block, np.float32)
        check_finite(vectors, ids, path)
        yield ids, vectors
        start += len(block)


def _told(dim: int, model: str, model_name: str, space: str) -> Column:
    """A column for the space that is told."""
    if space:
        return Column("queries", dim, space)
    if model_name:
        named = {"model": model_name}
        return Column("queries", dim, imported_space(model_name), created_by=named)
    path = copies.local(model)
    info = read_info(path) if (path / INFO).exists() else files.read_json(path / "model.json")
    if not isinstance(info, dict) or "space" not in info:
        raise InputError(f"``model={path}``: neither an artifact nor a SavedModel of this package")
    compatible = tuple(info.get("compatible_with", ()))
    named = {"model": info.get("name", "unknown")}
    return Column("queries", dim, info["space"], compatible_with=compatible, created_by=named)
