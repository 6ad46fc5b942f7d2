"""One generation of an index in memory, and what its manifest says of it."""

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fct_tf.ann import rows, store
from fct_tf.ann.merged import Merged
from fct_tf.ann.searcher import Searcher
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column
from fct_tf.gallery.reader import Gallery

BUILD_AGAIN = "build it again with build_index --overwrite"


@dataclass(frozen=True)
class State:
    """One generation. ids: large_string [n]. digests: uint64 [n], see `rows.digest`.

    searcher: of an index in shards one of all of them.
    """

    manifest: dict
    searcher: Searcher | Merged
    ids: pa.Array
    digests: np.ndarray

    @property
    def whole(self) -> Searcher:
        """The searcher of an index in one piece."""
        assert isinstance(self.searcher, Searcher)
        return self.searcher


def load(path: str | os.PathLike) -> State:
    """The generation that is on the disk, see `store.load`."""
    return State(*store.load(path))


def column_of(manifest: dict) -> Column:
    """The column that an index is of."""
    record = manifest["column"]
    return Column(
        name=record["name"],
        dim=record["dim"],
        dtype=record["dtype"],
        space=record["space"],
        kind=record["kind"],
        distance=record["distance"],
        compatible_with=tuple(record["compatible_with"]),
        created_by={"model": record["model"]},
    )


def told_of(column: Column) -> dict:
    """A column as a manifest tells it."""
    record = dataclasses.asdict(column)
    del record["created_by"]
    return {**record, "compatible_with": list(column.compatible_with), "model": column.model}


def about(gallery: Gallery, column: Column, fragments: Collection[int] | None = None) -> dict:
    """Of a manifest, what says which rows the index is of; of these fragments, or of all."""
    return {
        "column": told_of(column),
        "gallery": {"uri": gallery.uri, "version": gallery.version},
        "fragments": rows.states(gallery, column.name, fragments),
    }


def trained(searcher: Searcher, by: str, found: dict | None) -> dict:
    """Of a manifest, what leaves and codes were made of, and recall@10 as measured then.

    by: `rows` (defaults), `settings`, or `recall`, and then `found` is what the tuner tells.
    """
    training = {"by": by, "num_rows": searcher.num_rows, "changed": 0}
    return {"training": training | ({"found": found} if found else {}), "recall": searcher.recall}


def same_column(path: str, manifest: dict, gallery: Gallery) -> Column:
    """The column of a gallery that an index is of.

    Raises:
      InputError: it lies in another space by now.
    """
    own = column_of(manifest)
    column = gallery.column(own.name)
    if (column.space, column.dim, column.distance) != (own.space, own.dim, own.distance):
        raise InputError(
            f"{path}: column {own.name!r} of {gallery.path} lies in space {column.space} (model "
            f"{column.model}) by now, the index in {own.space} (model {own.model}); {BUILD_AGAIN}"
        )
    return column


def difference(
    path: str,
    state: State,
    gallery: Gallery,
    most: int,
    fragments: Collection[int] | None = None,
) -> rows.Difference:
    """What an index lacks to be of a version of its gallery; see `rows.difference`."""
    column = same_column(path, state.manifest, gallery)
    fragment_states = state.manifest["fragments"]
    return rows.difference(
        gallery, column, fragment_states, state.ids, state.digests, most, fragments
    )
