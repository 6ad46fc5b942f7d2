"""A look at every row of a gallery: ids, vectors, data files."""

import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fct_tf.common import files
from fct_tf.engines.engine import Engine, Tick, local
from fct_tf.gallery.columns import (
    EXAMPLES,
    NO_DIRECTION,
    TOO_LONG,
    Column,
    too_long,
    without_direction,
)
from fct_tf.gallery.fragments import fragment_of
from fct_tf.gallery.ids import UniqueIds
from fct_tf.gallery.reader import Gallery, broken_files

KEPT = ", kept by choice"
REPEATED = "with an id that another row has"
# More ids than this share no hash by chance, see `UniqueIds`.
SUSPECTS = 1000


def verify(gallery: Gallery, engine: Engine = local) -> list[str]:
    """The problems of a gallery, one line each; empty if there are none.

    Checked: data files there and of the recorded length, every row readable, ids not null and
    unique, every vector there, finite and, where the distance is cosine, with a direction. A
    flipped bit that leaves a finite number is not seen. Rows without direction that were kept by
    choice (--zero_vectors=keep) are no problem, see `look`.

    Args:
      engine: what looks at the vectors, a fragment at a time; ids are compared in this process.
    """
    return look(gallery, engine)[0]


def look(
    gallery: Gallery, engine: Engine = local, progress: str = ""
) -> tuple[list[str], list[str]]:
    """The problems of a gallery, see `verify`, and what is worth knowing besides; one line each.

    progress: label of the progress bar; none when empty.
    """
    problems = broken_files(gallery)
    unreadable = bool(problems)
    counts: Counter[str] = Counter()
    named: dict[str, list[str]] = {}

    def note(problem: str, count: int, rows: Sequence[str]) -> None:
        counts[problem] += count
        shown = named.setdefault(problem, [])
        shown.extend(rows[: EXAMPLES - len(shown)])

    units, start = [], 0
    for fragment in gallery.dataset.get_fragments():
        units.append((fragment.fragment_id, start))
        start += fragment.count_rows()
    with tqdm(total=start, desc=progress, unit="row", disable=None if progress else True) as bar:
        make = functools.partial(_look_at, gallery)
        seen = dict(engine(make, units, bar.update, progress or "verify"))
    for number, first in units:
        of_fragment, error = seen[number, first]
        for problem, (count, rows) in of_fragment.items():
            note(problem, count, rows)
        if error and not unreadable:
            problems.append(f"{gallery.path}: fragment {number} cannot be read ({error})")
    readable = [number for number, first in units if not seen[number, first][1]]
    suspects, more = _repeated(gallery, readable)
    # One more pass over the ids, at the end: a pass per batch would be many.
    if suspects and len(suspects) <= SUSPECTS and not problems:
        really = set(gallery.repeated(suspects))
        suspects = [i for i in suspects if i in really]
    note(REPEATED, len(suspects) + more, [repr(i) for i in suspects[:EXAMPLES]])
    notes: list[str] = []
    for problem, count in counts.items():
        if count:
            etc = ", ..." if count > len(named[problem]) else ""
            lines = notes if problem.endswith(KEPT) else problems
            lines.append(
                f"{gallery.path}: {count} rows {problem}: {', '.join(named[problem])}{etc}"
            )
    return problems, notes


def _repeated(gallery: Gallery, numbers: Sequence[int]) -> tuple[list[str], int]:
    """Ids in these fragments that were there before, the first `SUSPECTS` or so, and how many more
    there are."""
    unique, more = UniqueIds(), 0
    suspects: list[str] = []
    for number in numbers:
        for batch in fragment_of(gallery.dataset, number).to_batches(columns=["id"]):
            repeated = unique.add(batch["id"].drop_null().to_pylist())
            if len(suspects) <= SUSPECTS:
                suspects += repeated
            else:
                more += len(repeated)
    return suspects, more


def _look_at(
    gallery: Gallery, unit: tuple[int, int], tick: Tick
) -> tuple[dict[str, tuple[int, list[str]]], str]:
    """What is wrong with rows of a fragment, and why not all of them could be read.

    Args:
      unit: the fragment's number, and how many rows are in front of it.

    Returns:
      problem -> number of rows and the first of them; the error, or an empty string.
    """
    problems: dict[str, tuple[int, list[str]]] = {}

    def note(problem: str, rows: list[str]) -> None:
        count, shown = problems.get(problem, (0, []))
        problems[problem] = count + len(rows), shown + rows[: EXAMPLES - len(shown)]

    number, row = unit
    names = ["id", *gallery.columns]
    try:
        fragment = fragment_of(gallery.dataset, number)
        for batch in fragment.to_batches(columns=names, batch_size=8192):
            ids = batch["id"]
            missing = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))
            note("without id", [f"number {row + i}" for i in missing])
            for name in gallery.columns:
                _check_vectors(batch[name], ids, gallery.columns[name], note)
            row += len(batch)
            tick(len(batch))
    except (OSError, ValueError, pa.ArrowException) as error:
        return problems, files.one_line(error)
    return problems, ""


def _check_vectors(array: pa.FixedSizeListArray, ids: pa.Array, column: Column, note) -> None:
    name = column.name
    absent = array.is_null().to_numpy(zero_copy_only=False)
    values = array.values.slice(
        array.offset * array.type.list_size, len(array) * array.type.list_size
    )
    vectors = values.to_numpy(zero_copy_only=False).reshape(len(array), -1)
    broken = ~np.isfinite(vectors).all(axis=1) & ~absent
    pointless = beyond = np.zeros(len(array), bool)
    if column.distance == "cosine":
        pointless = without_direction(vectors) & ~absent
    else:
        beyond = too_long(np.where((absent | broken)[:, None], 0, vectors))
    kept = KEPT if column.keeps_zero_vectors else ""
    for problem, rows in (
        (f"with no vector in column {name!r}", absent),
        (f"with NaN or infinity in column {name!r}", broken),
        (f"{NO_DIRECTION} in column {name!r}, whose distance is cosine{kept}", pointless),
        (f"{TOO_LONG}, in column {name!r}", beyond),
    ):
        note(problem, [repr(ids[int(i)].as_py()) for i in np.flatnonzero(rows)])
