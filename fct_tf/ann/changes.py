"""An index in one piece, brought to another version of its gallery or changed by hand.

Every change becomes the next generation on the disk; what is in memory may be searched meanwhile.
"""

import dataclasses
import os
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from fct_tf.ann import rows, scann_files, store
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.state import State, about, column_of, difference, load, trained
from fct_tf.common import provenance
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import Gallery

# Leaves and codes are made anew once so many rows, as a share of those that they were made of,
# have changed or gone since. Beyond the other share all rows are read and the index is built anew.
REBALANCE_SHARE, REBUILD_SHARE = 0.2, 0.5


def update(
    path: str,
    state: State,
    gallery: Gallery,
    *,
    threads: int | None = None,
    fragments: Collection[int] | None = None,
    output: str | os.PathLike = "",
    more: dict | None = None,
) -> tuple[rows.Difference, State | None]:
    """Brings an index to a version of its gallery, by the rows that differ; inside `writing`.

    Args:
      path: of the index.
      state: its newest generation.
      gallery: at that version.
      threads: that build; None: one for each core.
      fragments: that the index is to be of, if not of all.
      output: another directory, in which the next generation is made. `state` may be spoiled then.
      more: of the manifest.

    Returns:
      (what was different, the next generation, or None where no row is left).

    Raises:
      InputError: the column lies in another space by now.
    """
    training = state.manifest["training"]
    most = int(REBUILD_SHARE * max(training["num_rows"], 1))
    diff = difference(path, state, gallery, most, fragments)
    column = gallery.column(column_of(state.manifest).name)
    which = about(gallery, column, fragments) | (more or {})
    count = state.searcher.num_rows + diff.new - len(diff.gone)
    if not count:
        return diff, None
    if not diff.count and not output:
        manifest = store.amend(path, {**state.manifest, **which})
        return diff, dataclasses.replace(state, manifest=manifest)
    why = _rebuild_reason(state, diff, count)
    if why:
        logging.info("%s: %s: %s, built anew", path, diff, why)
        settings = None if training["by"] == "rows" else state.searcher.settings
        read = rows.read(gallery, column, fragments=fragments)
        searcher = Searcher.taking(
            read.vectors, column.distance, settings, threads=threads, measured=True
        )
        which["left_out"] = read.left_out
        which |= trained(searcher, training["by"], training.get("found"))
        return diff, commit(output or path, state.manifest, searcher, read.ids, read.digests, which)
    assert diff.vectors is not None
    copy = state if output else load(path)
    changed = diff.gone, diff.ids, diff.vectors, diff.digests
    return diff, _change(output or path, copy, *changed, which)


def by_hand(
    path: str, state: State, gone: Collection[str], ids: Collection[str], vectors: np.ndarray
) -> State:
    """Removes rows and upserts others; inside `writing`. vectors: float32 [ids, d].

    Raises:
      InputError: repeated or unknown ids, rows that do not fit.
    """
    removed, new = (pa.array([str(one) for one in some], pa.large_string()) for some in (gone, ids))
    if len(pc.unique(new)) < len(new):
        raise InputError("ids: each once")
    unknown = removed.filter(pc.invert(pc.is_in(removed, value_set=state.ids)))
    if len(unknown):
        raise InputError(f"{path}: has no row with id {unknown[0].as_py()!r}")
    which = {"gallery": {**state.manifest["gallery"], "version": None}, "fragments": {}}
    return _change(path, load(path), removed, new, vectors, rows.digest(vectors), which)


def rebalance(path: str) -> State:
    """Makes leaves and codes anew of the rows that are there; inside `writing`."""
    state = load(path)
    searcher = state.whole
    searcher.rebalance()
    which = {"training": {**state.manifest["training"], "changed": 0}}
    which["training"]["num_rows"] = searcher.num_rows
    return commit(path, state.manifest, searcher, state.ids, state.digests, which)


def commit(
    path: str | os.PathLike,
    manifest: dict,
    searcher: Searcher,
    ids: pa.Array,
    digests: np.ndarray,
    which: dict,
) -> State:
    """Lets this be the next generation. manifest: what it says beside, or instead of, `which`."""
    next_manifest = {**manifest, **which, "num_rows": searcher.num_rows}
    next_manifest["settings"] = searcher.settings.to_json()
    next_manifest["versions"] = provenance.library_versions()
    written = store.commit(path, searcher, ids, digests, next_manifest)
    return State(written, searcher, ids, digests)


def places(state: State, ids: pa.Array) -> np.ndarray:
    """int64 [m], the rows with these ids, -1 where there is none."""
    positions = pc.index_in(ids, value_set=state.ids)
    return pc.fill_null(positions, -1).to_numpy().astype(np.int64)


def _change(
    path: str | os.PathLike, copy: State, gone: pa.Array, ids: pa.Array, vectors, digests, which
) -> State:
    """Removes and upserts rows of `copy`, which nobody searches, and commits it."""
    searcher, kept, marks = copy.whole, copy.ids, copy.digests
    if len(gone):
        freed, moved = searcher.delete(places(copy, gone))
        order = np.arange(len(kept))
        order[freed] = moved
        order = order[: searcher.num_rows]
        kept, marks = kept.take(pa.array(order)), marks[order]
    if len(ids):
        place = pc.fill_null(pc.index_in(ids, value_set=kept), -1).to_numpy().astype(np.int64)
        new = place < 0
        place[new] = len(kept) + np.arange(new.sum())
        searcher.upsert(place, vectors)
        kept = pa.concat_arrays([kept, ids.filter(pa.array(new))])
        marks = np.concatenate([marks, np.empty(int(new.sum()), np.uint64)])
        marks[place] = digests
    training = dict(copy.manifest["training"])
    training["changed"] += len(gone) + len(ids)
    many = training["changed"] > REBALANCE_SHARE * training["num_rows"]
    if many and searcher.settings.can_rebalance and not searcher.is_exact:
        logging.info(
            "%s: %d rows have changed since leaves were made of %d; they are made anew",
            path, training["changed"], training["num_rows"],
        )  # fmt: skip
        searcher.rebalance()
        training |= {"changed": 0, "num_rows": searcher.num_rows}
    return commit(path, copy.manifest, searcher, kept, marks, {**which, "training": training})


def _rebuild_reason(state: State, found: rows.Difference, count: int) -> str:
    """Why the whole index is built anew instead of changed; empty if it is not."""
    training, settings = state.manifest["training"], state.searcher.settings
    if found.vectors is None:
        return f"more than {REBUILD_SHARE:.0%} of the rows differ"
    if training["by"] == "rows" and not 0.5 <= count / training["num_rows"] <= 2:
        return f"{count} rows, its settings are for {training['num_rows']}"
    if state.searcher.lacks_scann and scann_files.available():
        return "it was built without ScaNN"
    if not settings.can_change:
        return "ScaNN cannot change rows under these settings"
    changed = training["changed"] + found.count
    if changed > REBALANCE_SHARE * training["num_rows"] and not settings.can_rebalance:
        return f"{changed} rows have changed, and leaves cannot be made of codes"
    return ""
