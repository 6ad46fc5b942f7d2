"""Rows that the new model has embedded already: they need no transformation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.gallery import table
from fct_tf.gallery.columns import Rows
from fct_tf.gallery.ids import Lookup

BACKFILLED = "backfilled"  # value of the field X_origin


@dataclass(frozen=True)
class Reembedded:
    """Vectors of the new model by id, held in memory.

    Attributes:
      column: which column of which table they come from.
      vectors: float32 [n, d].
      fingerprint: of the table, the ids and the column's space.
    """

    column: table.Column
    vectors: np.ndarray
    fingerprint: str
    _places: Lookup

    @classmethod
    def of(cls, column: table.Column, rows: Rows, fingerprint: str) -> "Reembedded":
        """The vectors of `rows`, in their column `column.name`."""
        return cls(column, rows.vectors[column.name], fingerprint, Lookup(rows.ids))

    @classmethod
    def open(cls, uri: str, space: str | None) -> "Reembedded":
        """Reads the column of the table `uri` that lies in `space`.

        Raises:
          InputError: no such table, no column in that space, bad rows.
        """
        gallery = table.open_gallery(uri)
        columns = [column for column in gallery.columns.values() if column.space == space]
        if not columns:
            existing = (
                ", ".join(f"{c.name} ({c.model})" for c in gallery.columns.values()) or "none"
            )
            raise InputError(
                f"{uri}: no column in the space {space} that the transformation maps to; it has "
                f"{existing}"
            )
        rows = gallery.read([columns[0].name])
        digest = sha256_json([space, gallery.version, sorted(map(str, rows.ids))])
        return cls.of(columns[0], rows, digest)

    def take(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The vectors of known rows, in the order of `ids`: float32 [n, d]."""
        return self.vectors[self._places.of_rows(ids, f"column {self.column.name!r}")]

    def of_rows(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Which rows are known, bool [len(rows)], and their vectors, float32 [known, d]."""
        place = self._places(rows.ids)
        is_known = place >= 0
        return is_known, self.vectors[place[is_known]]
