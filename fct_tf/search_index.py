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

import numpy as np
from absl import flags, logging

from fct_tf.ann import flags as ann_flags
from fct_tf.ann import index, neighbours
from fct_tf.common import cli, flag_groups
from fct_tf.gallery.columns import check_finite
from fct_tf.ingest import query_rows


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("index", "Directory of the index.")
    read.required("query", "Gallery of the queries, or a file of them.")
    read.string("query_column", "Column of the queries; of a file, which array or column.")
    read.string("model", "Of a file: the artifact or SavedModel that made the queries.")
    read.string("model_name", "Or the name of their model, as in import_gallery.")
    read.string("space", "Or the fingerprint of their space.")
    search = flag_groups.Group(values, "What is searched:")
    search.integer("k", "Neighbours of each query.", 10, 1)
    search.boolean("exclude_own", "Leave the row with a query's id out.")
    usual = "Instead of what the index was built with."
    search.integer("num_leaves_to_search", usual, None, 1)
    more = f"{usual[:-1]}, or of up to four for each neighbour where k is above 10."
    search.integer("reordering_num_neighbors", more, None, 1)
    ann_flags.define_threads(values)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "File to write: .json, .csv or .parquet.")
    flag_groups.define_space_mismatch(values, "Search a space that does not fit.")
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Searches for what the flags name."""
    cli.check_output_files(values, output=neighbours.SUFFIXES)
    space, count, blocks = query_rows.read(
        values.query,
        values.query_column,
        model=values.model,
        model_name=values.model_name,
        space=values.space,
        needs_ids=values.exclude_own,
    )
    opened = index.open_index(values.index)
    opened.check_space(space, allow_mismatch=values.allow_space_mismatch)
    spent = 0.0

    def found() -> Iterator[tuple[np.ndarray, index.Neighbours]]:
        nonlocal spent
        for ids, vectors in blocks:
            check_finite(vectors, ids, values.query, opened.column.distance)
            start = time.perf_counter()
            block = opened.search(
                vectors,
                min(values.k, max(opened.num_rows, 1)),  # There are no more neighbours.
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


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
