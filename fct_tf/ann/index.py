"""The index of a gallery's column: built, opened, searched, and kept as the gallery changes.

    index = build("photos.lance@live", "embedding_new", "photos.index")
    found = index.search(queries, 10, space=space)    # found.ids, found.distances

An index is of one version of the gallery and says so. `update` brings it to another by the rows
that differ. Whoever searches keeps what is open, whole, until `refresh`.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from fct_tf.ann import rows, scann_files, store
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.common import provenance
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column, check_spaces
from fct_tf.gallery.reader import Gallery, open_gallery

# Leaves and codes are made anew once so many rows, as a share of those that they were made of,
# have changed or gone since. Beyond the other share all rows are read and the index is built anew.
REBALANCE_SHARE, REBUILD_SHARE = 0.2, 0.5
_BUILD_AGAIN = "build it again with build_index --overwrite"


@dataclass(frozen=True)
class Neighbours:
    """ids: object [q, k] of str, None where there is none. distances: float32 [q, k], ascending,
    infinity there. version: of the gallery that was searched, None where rows were changed by
    hand. generation: of the index."""

    ids: np.ndarray
    distances: np.ndarray
    version: int | None
    generation: str


@dataclass(frozen=True)
class _State:
    """One generation in memory. ids: large_string [n]. digests: uint64 [n]."""

    manifest: dict
    searcher: Searcher
    ids: pa.Array
    digests: np.ndarray


class Index:
    """An index, opened by `open_index` or made by `build`.

    Threads may search it while another changes it: a search runs on one generation from beginning
    to end, and a change becomes the next generation, here and on the disk, when it is whole.
    """

    def __init__(self, path: str | os.PathLike, state: _State):
        self.path = str(path)
        self._state = state

    @property
    def manifest(self) -> dict:
        """What `manifest.json` says of the generation that is open."""
        return self._state.manifest

    @property
    def column(self) -> Column:
        """The column that it is of, with its space."""
        return _column(self.manifest)

    @property
    def num_rows(self) -> int:
        return self._state.searcher.num_rows

    @property
    def version(self) -> int | None:
        """The version of the gallery that it is of; None once rows were changed by hand."""
        return self.manifest["gallery"]["version"]

    @property
    def searcher(self) -> Searcher:
        """Of the generation that is open; rows are numbered as in `ids`."""
        return self._state.searcher

    @property
    def ids(self) -> pa.Array:
        """large_string [n]."""
        return self._state.ids

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        space: str | Column | None = None,
        exclude: Sequence[str] | np.ndarray | None = None,
        allow_space_mismatch: bool = False,
        num_leaves_to_search: int | None = None,
        reordering_num_neighbors: int | None = None,
        threads: int | None = None,
    ) -> Neighbours:
        """The k nearest rows of each query, as far as the index finds them.

        Args:
          queries: float [q, d].
          k: number of neighbours.
          space: in which the queries lie: a fingerprint, or the column that they are of.
          exclude: q ids; the row with a query's id is left out for it, and one more is asked for.
          allow_space_mismatch: search whatever the space of the queries is.
          num_leaves_to_search, reordering_num_neighbors, threads: as `Searcher.search`.

        Raises:
          InputError: queries of another space, or of none; of other dimensions, with NaN or
            infinity; k below 1.
        """
        state = self._state
        self.check_space(space, allow_mismatch=allow_space_mismatch)
        found, distances = state.searcher.search(
            queries,
            k + (exclude is not None),
            num_leaves_to_search=num_leaves_to_search,
            reordering_num_neighbors=reordering_num_neighbors,
            threads=threads,
        )
        if exclude is not None:
            own = self._places(state, _texts(exclude))
            if len(own) != len(found):
                raise InputError(f"exclude: {len(own)} ids for {len(found)} queries")
            # Its own row goes to the end, and the end is cut off.
            out = (found == own[:, None]) & (own[:, None] >= 0)
            order = np.argsort(out, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(found, order, axis=1)
            distances = np.take_along_axis(distances, order, axis=1)
        taken = state.ids.take(pa.array(found.reshape(-1), mask=found.reshape(-1) < 0))
        names = taken.to_numpy(zero_copy_only=False).reshape(found.shape)
        manifest = state.manifest
        return Neighbours(names, distances, manifest["gallery"]["version"], manifest["generation"])

    def check_space(self, space: str | Column | None, *, allow_mismatch: bool = False) -> None:
        """Refuses queries of a space that may not be compared with that of the index.

        Raises:
          InputError: with both fingerprints, or because no space is given.
        """
        own = self.column
        if space is None:
            if not allow_mismatch:
                raise InputError(
                    f"{self.path}: is of space {own.space} (model {own.model}); say in which "
                    "space the queries lie (space), or pass ``allow_space_mismatch=True``"
                )
            return
        if isinstance(space, str):
            space = Column("queries", own.dim, space)
        check_spaces(space, own, allow_mismatch=allow_mismatch)

    def difference(self, gallery: Gallery | None = None, most: int = 0) -> rows.Difference:
        """What it lacks to be of a version of its gallery; holds at most `most` vectors.

        Args:
          gallery: at that version; by default its own, at the newest, or where its tag is.

        Raises:
          InputError: no such gallery, or its column is another by now.
        """
        return _difference(self.path, self._state, gallery or self._source(), most)

    def stale(self, gallery: Gallery | None = None) -> int:
        """How many of its rows are not those of the gallery: new, changed and gone ones.

        Args and errors: as `difference`.
        """
        return self.difference(gallery).count

    def moved_on(self) -> str:
        """Which version its gallery is at by now, as a sentence; empty if none or out of reach."""
        about = self.manifest["gallery"]
        try:
            now = self._source()
            column = now.column(self.column.name)
        except InputError:
            return ""
        if now.version == about["version"]:
            return ""
        if column.space != self.column.space:
            how = f"its column {column.name!r} lies in another space; {_BUILD_AGAIN}"
        elif rows.states(now, column.name) == self.manifest["fragments"]:
            return ""
        else:
            how = "build_index --update brings it up"
        own = f"version {about['version']}" if about["version"] else "no version (changed by hand)"
        return f"is of {own} of {about['uri']}, which is at {now.version}; {how}"

    def refresh(self) -> bool:
        """Takes the newest generation from the disk; whether there was another.

        Raises:
          InputError: as `open_index`.
        """
        manifest = store.read_manifest(self.path)
        if manifest == self.manifest:
            return False
        if manifest["files"] == self.manifest["files"]:
            self._state = dataclasses.replace(self._state, manifest=manifest)
        else:
            self._state = _load(self.path)
        return True

    def update(
        self, gallery: Gallery | None = None, *, threads: int | None = None
    ) -> rows.Difference:
        """Brings it to a version of its gallery, by the rows that differ.

        Where much has changed leaves and codes are made anew, or the whole index is.

        Args:
          gallery: at that version; by default its own, at the newest, or where its tag is.
          threads: that build; None: one for each core.

        Returns:
          What was different.

        Raises:
          InputError: no such gallery; the column lies in another space by now; another process is
            writing the index.
        """
        gallery = gallery or self._source()
        with store.writing(self.path):
            self.refresh()
            state = self._state
            trained = state.manifest["training"]
            most = int(REBUILD_SHARE * max(trained["num_rows"], 1))
            found = _difference(self.path, state, gallery, most)
            column = gallery.column(self.column.name)
            about = _about(gallery, column)
            count = state.searcher.num_rows + found.new - len(found.gone)
            why = self._rebuild_reason(state, found, count)
            if not count:
                raise InputError(f"{gallery.path}: has no row left to index")
            if not found.count:
                manifest = store.amend(self.path, {**state.manifest, **about})
                self._state = dataclasses.replace(state, manifest=manifest)
                return found
            if why:
                logging.info("%s: %s: %s, built anew", self.path, found, why)
                settings = None if trained["by"] == "rows" else state.searcher.settings
                read = rows.read(gallery, column)
                searcher = Searcher.taking(read.vectors, column.distance, settings, threads=threads)
                about["left_out"] = read.left_out
                about |= _trained(searcher, trained["by"], trained.get("found"))
                self._commit(searcher, read.ids, read.digests, about)
                return found
            assert found.vectors is not None
            self._change(state, found.gone, found.ids, found.vectors, found.digests, about)
        return found

    def upsert(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Replaces the rows with these ids, and adds those that there are none of, by hand.

        Args:
          ids: no two alike.
          vectors: float [m, d], of the index's space.

        Raises:
          InputError: repeated ids, rows that do not fit, another process writing.
        """
        self._by_hand((), ids, np.asarray(vectors, np.float32))

    def delete(self, ids: Collection[str]) -> None:
        """Removes the rows with these ids, by hand.

        Raises:
          InputError: an id that it does not have, another process writing.
        """
        self._by_hand(list(ids), (), np.empty((0, self.column.dim), np.float32))

    def rebalance(self) -> None:
        """Makes leaves and codes anew of the rows that are there; takes as long as building."""
        with store.writing(self.path):
            self.refresh()
            state = _load(self.path)
            state.searcher.rebalance()
            about = {"training": {**state.manifest["training"], "changed": 0}}
            about["training"]["num_rows"] = state.searcher.num_rows
            self._commit(state.searcher, state.ids, state.digests, about)

    def _source(self) -> Gallery:
        return open_gallery(self.manifest["gallery"]["uri"])

    def _by_hand(self, gone, ids, vectors) -> None:
        gone, ids = (
            pa.array([str(one) for one in some], pa.large_string()) for some in (gone, ids)
        )
        if len(pc.unique(ids)) < len(ids):
            raise InputError("ids: each once")
        with store.writing(self.path):
            self.refresh()
            state = self._state
            unknown = gone.filter(pc.invert(pc.is_in(gone, value_set=state.ids)))
            if len(unknown):
                raise InputError(f"{self.path}: has no row with id {unknown[0].as_py()!r}")
            about = {"gallery": {**state.manifest["gallery"], "version": None}, "fragments": {}}
            self._change(state, gone, ids, vectors, rows.digest(vectors), about)

    def _change(self, state: _State, gone, ids, vectors, digests, about: dict) -> None:
        """Removes and upserts rows of a copy, and lets it be the next generation."""
        # A copy from the disk: the one in memory is being searched.
        copy = _load(self.path)
        searcher, kept, marks = copy.searcher, copy.ids, copy.digests
        if len(gone):
            places, moved = searcher.delete(self._places(copy, gone))
            order = np.arange(len(kept))
            order[places] = moved
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
        training = dict(state.manifest["training"])
        training["changed"] += len(gone) + len(ids)
        many = training["changed"] > REBALANCE_SHARE * training["num_rows"]
        if many and searcher.settings.can_rebalance and not searcher.is_exact:
            logging.info(
                "%s: %d rows have changed since leaves were made of %d; they are made anew",
                self.path, training["changed"], training["num_rows"],
            )  # fmt: skip
            searcher.rebalance()
            training |= {"changed": 0, "num_rows": searcher.num_rows}
        self._commit(searcher, kept, marks, {**about, "training": training})

    def _commit(self, searcher: Searcher, ids, digests, about: dict) -> None:
        about = {**self.manifest, **about, "num_rows": searcher.num_rows}
        about["settings"] = searcher.settings.to_json()
        about["versions"] = provenance.library_versions()
        manifest = store.commit(self.path, searcher, ids, digests, about)
        self._state = _State(manifest, searcher, ids, digests)

    def _rebuild_reason(self, state: _State, found: rows.Difference, count: int) -> str:
        """Why the whole index is built anew instead of changed; empty if it is not."""
        trained, settings = state.manifest["training"], state.searcher.settings
        if found.vectors is None:
            return f"more than {REBUILD_SHARE:.0%} of the rows differ"
        if trained["by"] == "rows" and not 0.5 <= count / trained["num_rows"] <= 2:
            return f"{count} rows, its leaves are for {trained['num_rows']}"
        if state.searcher.is_exact and not settings.is_exact and scann_files.available():
            return "it was built without ScaNN"
        if not settings.can_change:
            return "ScaNN cannot change rows under these settings"
        changed = trained["changed"] + found.count
        if changed > REBALANCE_SHARE * trained["num_rows"] and not settings.can_rebalance:
            return f"{changed} rows have changed, and leaves cannot be made of codes"
        return ""

    def _places(self, state: _State, ids: pa.Array) -> np.ndarray:
        """int64 [m], the rows with these ids, -1 where there is none."""
        found = pc.index_in(ids, value_set=state.ids)
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def build(
    gallery: Gallery | str | os.PathLike,
    column: str,
    path: str | os.PathLike,
    settings: Settings | Mapping | None = None,
    *,
    recall: float | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: str = "",
) -> Index:
    """Builds the index of a column and saves it at `path`.

    Args:
      gallery: or its path, with version or tag; which of them the index follows.
      column: name of an embedding column; its distance is the index's.
      path: directory to make.
      settings: of ScaNN; those not given are the defaults for the number of rows.
      recall: instead, the settings of most queries per second at this recall@10, as the tuner
        finds them.
      threads: that build; None: one for each core.
      overwrite: replace an index at `path`, which serves until the new one is whole.
      seed: of the tuner.
      progress: label of the progress bar; none when empty.

    Raises:
      InputError: no such gallery or column, no row to index, bad rows, settings that do not fit,
        an existing output, another process writing it.
    """
    gallery = gallery if isinstance(gallery, Gallery) else open_gallery(gallery)
    found = gallery.column(column)
    given = settings.to_json() if isinstance(settings, Settings) else dict(settings or {})
    if recall is not None and given:
        raise InputError(f"recall={recall}: finds the settings; leave {next(iter(given))} out")
    gallery.check_rows()
    store.check_output(path, overwrite)
    with store.writing(path):
        store.check_output(path, overwrite)
        read = rows.read(gallery, found, progress)
        for reason, count in read.left_out.items():
            if count:
                logging.info("%s: %d rows are left out (%s)", gallery.path, count, reason)
        count, dim, distance = len(read.ids), found.dim, found.distance
        chosen, by, told = None, "rows", None
        if recall is not None:
            from fct_tf.ann import tuner

            tuned = tuner.tune(read.vectors, distance, recall, k=10, threads=threads, seed=seed)
            # It has built what it found.
            searcher, by, told = tuned.searcher, "recall", tuned.to_json()
        else:
            if given:
                chosen, by = Settings.for_rows(count, dim, distance, **given), "settings"
            logging.info("%s: building an index of %d rows x %d", gallery.path, count, dim)
            searcher = Searcher.taking(read.vectors, distance, chosen, threads=threads)
        about = _about(gallery, found)
        about |= {"left_out": read.left_out, "num_rows": count}
        about |= {"settings": searcher.settings.to_json(), **_trained(searcher, by, told)}
        about["versions"] = provenance.library_versions()
        manifest = store.commit(path, searcher, read.ids, read.digests, about)
    return Index(path, _State(manifest, searcher, read.ids, read.digests))


def open_index(path: str | os.PathLike) -> Index:
    """Opens an index, all of it in memory; warns where its gallery has moved on.

    Raises:
      InputError: no index, or a file is missing or has been changed.
    """
    index = load_index(path)
    warning = index.moved_on()
    if warning:
        logging.warning("%s: %s", path, warning)
    return index


def load_index(path: str | os.PathLike) -> Index:
    """As `open_index`, without a look at its gallery."""
    index = Index(path, _load(path))
    if index.searcher.is_exact and not index.searcher.settings.is_exact:
        logging.warning("%s: searched exactly, for want of ScaNN here or where it was built", path)
    return index


def _load(path: str | os.PathLike) -> _State:
    return _State(*store.load(path))


def _texts(ids) -> pa.Array:
    return pa.array([str(one) for one in ids], pa.large_string())


def _column(manifest: dict) -> Column:
    told = manifest["column"]
    return Column(
        name=told["name"],
        dim=told["dim"],
        dtype=told["dtype"],
        space=told["space"],
        kind=told["kind"],
        distance=told["distance"],
        compatible_with=tuple(told["compatible_with"]),
        created_by={"model": told["model"]},
    )


def _about(gallery: Gallery, column: Column) -> dict:
    """Of the manifest, what says which rows the index is of."""
    about = dataclasses.asdict(column)
    del about["created_by"]
    return {
        "column": {**about, "compatible_with": list(column.compatible_with), "model": column.model},
        "gallery": {"uri": gallery.uri, "version": gallery.version},
        "fragments": rows.states(gallery, column.name),
    }


def _trained(searcher: Searcher, by: str, found: dict | None) -> dict:
    """Of the manifest, what leaves and codes were made of.

    by: `rows` (defaults), `settings`, or `recall`, and then `found` is what the tuner tells.
    """
    told = {"by": by, "num_rows": searcher.num_rows, "changed": 0}
    return {"training": told | ({"found": found} if found else {})}


def _difference(path: str, state: _State, gallery: Gallery, most: int) -> rows.Difference:
    own = _column(state.manifest)
    column = gallery.column(own.name)
    if (column.space, column.dim, column.distance) != (own.space, own.dim, own.distance):
        raise InputError(
            f"{path}: column {own.name!r} of {gallery.path} lies in space {column.space} (model "
            f"{column.model}) by now, the index in {own.space} (model {own.model}); {_BUILD_AGAIN}"
        )
    known = state.manifest["fragments"]
    return rows.difference(gallery, column, known, state.ids, state.digests, most)
