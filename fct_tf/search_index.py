"""Searches an index: queries from a column of a gallery or from a file, ids and distances out.

    python -m fct_tf.search_index --index=photos.index --query=photos.lance \\
        --query_column=embedding_new --exclude_own --k=10 --output=neighbours.parquet

The queries must lie in the space of the index, or in one that may be compared with it. Of a file
(.npy, .npz, HDF5, Parquet) say which model made it: --model (an artifact or SavedModel),
--model_name (as in import_gallery) or --space (a fingerprint).

Written are .json (one object with a list of `results`), .csv or .parquet (`query`, `rank`, `id`,
`distance`), nearest first.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags, logging

from fct_tf import cli, files
from fct_tf.ann import flags as ann_flags
from fct_tf.ann import index, neighbours
from fct_tf.errors import InputError
from fct_tf.gallery import embedding_files, reader
from fct_tf.gallery.columns import Column, check_finite, imported_space
from fct_tf.models.info import INFO, read_info

# Queries that are searched at a time.
BLOCK = 8192


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""

    def string(name, default, text, **more):
        flags.DEFINE_string(name, default, text, flag_values=values, **more)

    string("index", None, "Directory of the index.", required=True)
    string("query", None, "Gallery of the queries, or a file of them.", required=True)
    string("query_column", "", "Column of the queries; of a file, which array or column.")
    string("output", None, "File to write: .json, .csv or .parquet.", required=True)
    string("model", "", "Of a file: the artifact or SavedModel that made the queries.")
    string("model_name", "", "Or the name of their model, as in import_gallery.")
    string("space", "", "Or the fingerprint of their space.")
    flags.DEFINE_integer("k", 10, "Neighbours of each query.", 1, flag_values=values)
    flags.DEFINE_boolean("exclude_own", False, "Leave the row with a query's id out.", values)
    for name in ("num_leaves_to_search", "reordering_num_neighbors"):
        flags.DEFINE_integer(name, None, "Instead of the index's.", 1, flag_values=values)
    flags.DEFINE_boolean("allow_space_mismatch", False, "Search a different space.", values)
    ann_flags.define_threads(values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Searches for what the flags name."""
    if Path(values.output).suffix not in neighbours.SUFFIXES:
        raise InputError(f"--output={values.output}: ends in {', '.join(neighbours.SUFFIXES)}")
    files.check_output_file(values.output, values.overwrite, "--output")
    space, count, blocks = _queries(values)
    opened = index.open_index(values.index)
    opened.check_space(space, allow_mismatch=values.allow_space_mismatch)
    spent = 0.0

    def found() -> Iterator[tuple[np.ndarray, index.Neighbours]]:
        nonlocal spent
        for ids, vectors in blocks:
            start = time.perf_counter()
            block = opened.search(
                vectors,
                values.k,
                space=space,
                exclude=ids if values.exclude_own else None,
                allow_space_mismatch=values.allow_space_mismatch,
                num_leaves_to_search=values.num_leaves_to_search,
                reordering_num_neighbors=values.reordering_num_neighbors,
                threads=values.threads,
            )
            spent += time.perf_counter() - start
            yield ids, block

    about = {
        "index": neighbours.describe(opened),
        "query": values.query,
        "num_queries": count,
        "k": values.k,
    }
    neighbours.write(values.output, about, found())
    logging.info("%d queries searched in %.3f s", count, spent)
    how = "exactly" if opened.searcher.is_exact else "approximately"
    print(f"{count} queries, {opened.num_rows} rows searched {how} -> {values.output}")


def _queries(
    values: flags.FlagValues,
) -> tuple[Column | None, int, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Their column (None where no space is told), number, and blocks of (ids, vectors)."""
    told = [name for name in ("model", "model_name", "space") if getattr(values, name)]
    path = reader.split_uri(values.query)[0]
    if reader.exists(path):
        gallery = reader.open_gallery(values.query)
        if told:
            raise InputError(f"--{told[0]}: goes with a file; a gallery's column says its space")
        if not values.query_column:
            raise InputError(
                f"--query_column is missing; {gallery.path} has: {', '.join(gallery.columns)}"
            )
        column = gallery.column(values.query_column)
        gallery.check_rows()
        batches = gallery.batches([column.name], BLOCK)
        rows = ((batch.ids, batch.vectors[column.name]) for batch in batches)
        return column, gallery.num_rows, rows
    if values.exclude_own:
        raise InputError(f"--exclude_own: {values.query} has no ids; name a gallery, or leave it")
    if len(told) > 1:
        raise InputError(f"--{told[0]} and --{told[1]}: give one of them")
    source = embedding_files.Embeddings(values.query, values.query_column)
    space = _told(values, source.shape[1]) if told else None

    def numbered() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for block in source.blocks(BLOCK):
            ids = np.array([str(start + row) for row in range(len(block))], object)
            vectors = np.asarray(block, np.float32)
            check_finite(vectors, ids, values.query)
            yield ids, vectors
            start += len(block)

    return space, source.shape[0], numbered()


def _told(values: flags.FlagValues, dim: int) -> Column:
    """A column for the space that the flags tell."""
    if values.space:
        return Column("queries", dim, values.space)
    if values.model_name:
        space = imported_space(values.model_name)
        return Column("queries", dim, space, created_by={"model": values.model_name})
    path = Path(values.model)
    info = read_info(path) if (path / INFO).exists() else files.read_json(path / "model.json")
    if not isinstance(info, dict) or "space" not in info:
        raise InputError(f"--model={path}: neither an artifact nor a SavedModel of this package")
    compatible = tuple(info.get("compatible_with", ()))
    named = {"model": info.get("name", "unknown")}
    return Column("queries", dim, info["space"], compatible_with=compatible, created_by=named)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
