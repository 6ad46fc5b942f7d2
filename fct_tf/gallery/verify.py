"""A look at every row of a gallery: ids, vectors, data files."""

from collections import Counter

import numpy as np
import pyarrow as pa

from fct_tf.common import files
from fct_tf.gallery.columns import EXAMPLES, NO_DIRECTION, Column, without_direction
from fct_tf.gallery.ids import UniqueIds
from fct_tf.gallery.reader import Gallery, broken_files

KEPT = ", kept by choice"
REPEATED = "with an id that another row has"
# More ids than this share no hash by chance, see `UniqueIds`.
SUSPECTS = 1000


def verify(gallery: Gallery) -> list[str]:
    """The problems of a gallery, one line each; empty if there are none.

    Checked: data files there and of the recorded length, every row readable, ids not null and
    unique, every vector there, finite and, where the distance is cosine, with a direction. A
    flipped bit that leaves a finite number is not seen. Rows without direction that were kept by
    choice (--zero_vectors=keep) are no problem, see `look`.
    """
    return look(gallery)[0]


def look(gallery: Gallery) -> tuple[list[str], list[str]]:
    """The problems of a gallery, see `verify`, and what is worth knowing besides; one line each."""
    problems = broken_files(gallery)
    unreadable = bool(problems)
    unique = UniqueIds()
    suspects: list[str] = []
    found: Counter[str] = Counter()
    named: dict[str, list[str]] = {}

    def note(problem: str, rows: list[str]) -> None:
        found[problem] += len(rows)
        shown = named.setdefault(problem, [])
        shown.extend(rows[: EXAMPLES - len(shown)])

    row = 0
    for fragment in gallery.dataset.get_fragments():
        try:
            for batch in fragment.to_batches(columns=["id", *gallery.columns], batch_size=8192):
                ids = batch["id"]
                missing = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))
                note("without id", [f"number {row + i}" for i in missing])
                there = ids.drop_null().to_pylist()
                repeated = unique.add(there)
                if len(suspects) <= SUSPECTS:
                    suspects += repeated
                else:
                    note(REPEATED, [repr(i) for i in repeated])
                for name in gallery.columns:
                    _check_vectors(batch[name], ids, gallery.columns[name], note)
                row += len(batch)
        except (OSError, ValueError, pa.ArrowException) as error:
            if not unreadable:
                problems.append(
                    f"{gallery.path}: fragment {fragment.fragment_id} cannot be read "
                    f"({files.one_line(error)})"
                )
    # One more pass over the ids, at the end: a pass per batch would be many.
    if suspects and len(suspects) <= SUSPECTS and not problems:
        really = set(gallery.repeated(suspects))
        suspects = [i for i in suspects if i in really]
    note(REPEATED, [repr(i) for i in suspects])
    notes: list[str] = []
    for problem, count in found.items():
        if count:
            more = ", ..." if count > len(named[problem]) else ""
            lines = notes if problem.endswith(KEPT) else problems
            lines.append(
                f"{gallery.path}: {count} rows {problem}: {', '.join(named[problem])}{more}"
            )
    return problems, notes


def _check_vectors(array: pa.FixedSizeListArray, ids: pa.Array, column: Column, note) -> None:
    name = column.name
    absent = array.is_null().to_numpy(zero_copy_only=False)
    values = array.values.slice(
        array.offset * array.type.list_size, len(array) * array.type.list_size
    )
    vectors = values.to_numpy(zero_copy_only=False).reshape(len(array), -1)
    broken = ~np.isfinite(vectors).all(axis=1) & ~absent
    pointless = np.zeros(len(array), bool)
    if column.distance == "cosine":
        pointless = without_direction(vectors) & ~absent
    kept = KEPT if column.keeps_zero_vectors else ""
    for problem, rows in (
        (f"with no vector in column {name!r}", absent),
        (f"with NaN or infinity in column {name!r}", broken),
        (f"{NO_DIRECTION} in column {name!r}, whose distance is cosine{kept}", pointless),
    ):
        note(problem, [repr(ids[int(i)].as_py()) for i in np.flatnonzero(rows)])
