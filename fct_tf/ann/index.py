"""The index of a gallery's column: built, opened, searched, and kept as the gallery changes.

    index = build("photos.lance@live", "embedding_new", "photos.index")
    found = index.search(queries, 10, space=space)    # found.ids, found.distances

An index is of one version of the gallery and says so. `update` brings it to another by the rows
that differ. Whoever searches keeps what is open, whole, until `refresh`. One that is too large for
a machine to build at once is built in shards, see `fct_tf.ann.shards`.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from absl import logging
from tqdm import tqdm

from fct_tf.ann import building, changes, manifests, rows, state, store
from fct_tf.ann import shards as in_shards
from fct_tf.ann.merged import Merged
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.common.annotations import checked, checked_methods, numbers
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Engine, local
from fct_tf.gallery.columns import Column, check_spaces
from fct_tf.gallery.reader import Gallery, open_gallery


@dataclass(frozen=True)
class Neighbours:
    """ids: object [q, k] of str, None where there is none. distances: float32 [q, k], ascending,
    infinity there. version: of the gallery that was searched, None where rows were changed by
    hand. generation: of the index."""

    ids: np.ndarray
    distances: np.ndarray
    version: int | None
    generation: str


@checked_methods
class Index:
    """An index, opened by `open_index` or made by `build`.

    Threads may search it while another changes it: a search runs on one generation from beginning
    to end, and a change becomes the next generation, here and on the disk, when it is whole.
    """

    def __init__(self, path: str | os.PathLike, loaded: state.State | None = None):
        """loaded: the generation to open; None: the one there is once rows are asked for."""
        self.path = str(manifests.on_disk(path))
        self._loaded = loaded
        self._manifest = loaded.manifest if loaded else manifests.read(self.path)

    @property
    def _state(self) -> state.State:
        if self._loaded is None:
            self._open(state.load(self.path))
        assert self._loaded
        return self._loaded

    def _open(self, loaded: state.State) -> None:
        self._loaded, self._manifest = loaded, loaded.manifest

    @property
    def manifest(self) -> dict:
        """What `manifest.json` says of the generation that is open."""
        return self._manifest

    @property
    def column(self) -> Column:
        """The column that it is of, with its space."""
        return state.column_of(self.manifest)

    @property
    def num_rows(self) -> int:
        return self.manifest["num_rows"]

    @property
    def version(self) -> int | None:
        """The version of the gallery that it is of; None once rows were changed by hand."""
        return self.manifest["gallery"]["version"]

    @property
    def searcher(self) -> Searcher | Merged:
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
        opened = self._state
        self.check_space(space, allow_mismatch=allow_space_mismatch)
        neighbours, distances = opened.searcher.search(
            numbers(queries, "queries"),
            k + (exclude is not None),
            num_leaves_to_search=num_leaves_to_search,
            reordering_num_neighbors=reordering_num_neighbors,
            threads=threads,
        )
        if exclude is not None:
            own = changes.places(opened, _texts(exclude))
            if len(own) != len(neighbours):
                raise InputError(f"exclude: {len(own)} ids for {len(neighbours)} queries")
            # Its own row goes to the end, and the end is cut off.
            out = (neighbours == own[:, None]) & (own[:, None] >= 0)
            order = np.argsort(out, axis=1, kind="stable")[:, :k]
            neighbours = np.take_along_axis(neighbours, order, axis=1)
            distances = np.take_along_axis(distances, order, axis=1)
        taken = opened.ids.take(pa.array(neighbours.reshape(-1), mask=neighbours.reshape(-1) < 0))
        names = taken.to_numpy(zero_copy_only=False).reshape(neighbours.shape)
        manifest = opened.manifest
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
        return state.difference(self.path, self._state, gallery or self._source(), most)

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
            how = f"its column {column.name!r} lies in another space; {state.BUILD_AGAIN}"
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
        manifest = manifests.read(self.path)
        if manifest == self.manifest:
            return False
        if self._loaded and manifest["files"] == self.manifest["files"]:
            self._open(dataclasses.replace(self._loaded, manifest=manifest))
        elif self._loaded:
            self._open(state.load(self.path))
        else:
            self._manifest = manifest
        return True

    def update(
        self,
        gallery: Gallery | None = None,
        *,
        threads: int | None = None,
        engine: Engine = local,
        progress: str = "",
    ) -> rows.Difference:
        """Brings it to a version of its gallery, by the rows that differ.

        Where much has changed leaves and codes are made anew, or the whole index is; of an index
        in shards each shard by itself, and the fragments that are new go to the shards with the
        fewest rows.

        Args:
          gallery: at that version; by default its own, at the newest, or where its tag is.
          threads: that build; None: one for each core.
          engine: what brings up the shards, see `fct_tf.engines.engine`.
          progress: label of the progress bar, of shards; none when empty.

        Returns:
          What was different; of an index in shards without the vectors.

        Raises:
          InputError: no such gallery; the column lies in another space by now; another process is
            writing the index.
        """
        gallery = gallery or self._source()
        if self._is_sharded():
            diff = in_shards.update(
                self.path, gallery, threads=threads, engine=engine, progress=progress
            )
            self.refresh()
            return diff
        if engine is not local:
            raise InputError(f"``engine``: makes shards, {self.path} is in one piece; leave it out")
        with store.writing(self.path):
            self.refresh()
            diff, new_state = changes.update(self.path, self._state, gallery, threads=threads)
            if new_state is None:
                raise InputError(f"{gallery.path}: has no row left to index")
            self._open(new_state)
        return diff

    def upsert(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Replaces the rows with these ids, and adds those that there are none of, by hand.

        Args:
          ids: no two alike.
          vectors: float [m, d], of the index's space.

        Raises:
          InputError: repeated ids, rows that do not fit, another process writing.
        """
        self._change(changes.by_hand, (), ids, numbers(vectors, "vectors"))

    def delete(self, ids: Collection[str]) -> None:
        """Removes the rows with these ids, by hand.

        Raises:
          InputError: an id that it does not have, another process writing.
        """
        self._change(changes.by_hand, list(ids), (), np.empty((0, self.column.dim), np.float32))

    def rebalance(self) -> None:
        """Makes leaves and codes anew of the rows that are there; takes as long as building."""
        self._change(lambda path, _: changes.rebalance(path))

    def _change(self, change, *arguments) -> None:
        if self._is_sharded():
            raise InputError(
                f"{self.path}: is in shards, which follow the gallery; change that, and update it"
            )
        with store.writing(self.path):
            self.refresh()
            self._open(change(self.path, self._state, *arguments))

    def _is_sharded(self) -> bool:
        # Another writer may have built it in another way.
        return manifests.is_sharded(manifests.read(self.path))

    def _source(self) -> Gallery:
        return open_gallery(self.manifest["gallery"]["uri"])


@checked
def build(
    gallery: Gallery | str | os.PathLike,
    column: str,
    path: str | os.PathLike,
    settings: Settings | Mapping | None = None,
    *,
    recall: float | None = None,
    shards: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    engine: Engine = local,
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
      shards: build it in so many, each of some fragments of the gallery, and each with settings
        for its own rows; None: in one piece.
      threads: that build; None: one for each core.
      overwrite: replace an index at `path`, which serves until the new one is whole.
      seed: of the tuner.
      engine: what makes the shards, see `fct_tf.engines.engine`.
      progress: label of the progress bar; none when empty.

    Raises:
      InputError: no such gallery or column, no row to index, bad rows, settings that do not fit,
        an existing output, another process writing it, more shards than fragments.
    """
    gallery = gallery if isinstance(gallery, Gallery) else open_gallery(gallery)
    embedding = gallery.column(column)
    given = settings.to_json() if isinstance(settings, Settings) else dict(settings or {})
    request = building.Request(given, recall, seed)
    if shards is None and engine is not local:
        raise InputError("``engine``: makes shards; say how many (``shards``), or leave it out")
    gallery.check_rows()
    path = manifests.on_disk(path)
    store.check_output(path, overwrite)
    if shards is not None:
        in_shards.build(
            gallery,
            embedding,
            str(path),
            request,
            shards,
            overwrite=overwrite,
            threads=threads,
            engine=engine,
            progress=progress,
        )
        return Index(path)
    with store.writing(path):
        store.check_output(path, overwrite)
        total, silent = gallery.num_rows, None if progress else True
        with tqdm(total=total, desc=progress, unit="rows", disable=silent) as bar:
            left_out, new_state = building.build(
                gallery, embedding, path, request, threads=threads, tick=bar.update
            )
        if new_state is None:
            raise rows.no_row(gallery, embedding, left_out)
    return Index(path, new_state)


@checked
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
    index = Index(path, state.load(manifests.on_disk(path)))
    if index.searcher.lacks_scann:
        logging.warning("%s: searched exactly, for want of ScaNN here or where it was built", path)
    return index


def _texts(ids) -> pa.Array:
    return pa.array([str(one) for one in ids], pa.large_string())
