"""An index in shards: each is an index of some of the gallery's fragments, and an engine's unit.

Whoever makes a shard holds the rows of that shard alone. It makes it in a directory of its own,
which gets its name when it is whole. So a job that was killed, or begun by another engine, goes on
with the shards that are missing; and until the index's manifest names all of them, the old ones
serve.

A fragment belongs to one shard. Building deals the fragments out in their order, as evenly as they
allow. An update leaves them where they are, and gives each new one to the shard that has the fewest
rows by then.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging
from tqdm import tqdm

from fct_tf.ann import building, changes, manifests, rows, state, store
from fct_tf.common import provenance
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Engine, Tick
from fct_tf.gallery.columns import Column
from fct_tf.gallery.ids import check_ids
from fct_tf.gallery.reader import Gallery, reading


@dataclass(frozen=True)
class _Shard:
    """One to make. number: from 1. states: of its fragments, see `rows.states`. num_rows: theirs.

    asked: what it is made by, beside its rows, as JSON. source: directory of the one to bring up;
    empty: it is built.
    """

    number: int
    states: Mapping[str, str]
    num_rows: int
    asked: Mapping
    source: str = ""

    @property
    def fragments(self) -> list[int]:
        return [int(name) for name in self.states]


@dataclass(frozen=True)
class _Work:
    """What whoever makes shards has to know. generation: of the index that they are for."""

    path: str
    gallery: Gallery
    column: Column
    generation: int
    threads: int | None
    request: building.Request | None = None

    def directory(self, shard: _Shard) -> str:
        return f"shard-{shard.number}-{self.generation}"

    def is_made(self, shard: _Shard, directory: Path) -> bool:
        """Whether this is there, whole, and made of these rows by what is asked now."""
        try:
            manifest = manifests.read(directory)
            store.check(directory, manifest)
        except InputError:
            return False
        recorded = (manifest["fragments"], manifest["column"], manifest.get("asked"))
        return recorded == (shard.states, state.told_of(self.column), shard.asked)

    def make(self, shard: _Shard, tick: Tick) -> dict[str, int] | None:
        """Makes a shard; of one that no row is left for, the numbers of rows left out by reason."""
        name, more = self.directory(shard), {"asked": dict(shard.asked)}
        with store.making(self.path, name) as directory:
            if shard.source:
                source = str(Path(self.path) / shard.source)
                _, new_state = changes.update(
                    source,
                    state.load(source),
                    self.gallery,
                    threads=self.threads,
                    fragments=shard.fragments,
                    output=directory,
                    more=more,
                )
                left_out: dict[str, int] = {}
                tick(shard.num_rows)
            else:
                assert self.request
                left_out, new_state = building.build(
                    self.gallery,
                    self.column,
                    directory,
                    self.request,
                    threads=self.threads,
                    tick=tick,
                    fragments=shard.fragments,
                    more=more,
                )
            if new_state is None:
                return left_out
            store.put(directory, name, functools.partial(self.is_made, shard))
        return None


def build(
    gallery: Gallery,
    column: Column,
    path: str,
    request: building.Request,
    count: int,
    *,
    overwrite: bool,
    threads: int | None,
    engine: Engine,
    progress: str,
) -> None:
    """Builds an index in `count` shards; see `fct_tf.ann.index.build`."""
    states, asked = rows.states(gallery, column.name), dataclasses.asdict(request)
    shards = [
        _Shard(number, {str(one): states[str(one)] for one in fragments}, num_rows, asked)
        for number, (fragments, num_rows) in enumerate(_dealt(gallery, count), 1)
    ]
    with store.writing(path, resuming=True) as manifest:
        store.check_output(path, overwrite)
        generation = manifests.generation_of(manifest) + 1
        work = _Work(path, gallery, column, generation, threads, request)
        left_out = _make(work, shards, engine, progress)
        names = [work.directory(one) for one in shards if one.number not in left_out]
        if not names:
            raise rows.no_row(gallery, column, _sums(left_out.values()))
        about = _about(work, names, left_out.values())
        store.commit_shards(path, names, generation, about)


def update(
    path: str, gallery: Gallery, *, threads: int | None, engine: Engine, progress: str
) -> rows.Difference:
    """Brings an index in shards to a version of its gallery; see `fct_tf.ann.index.update`."""
    with store.writing(path, resuming=True):
        manifest = manifests.read(path)
        store.check(path, manifest)
        for name in manifests.shards(manifest):
            # Those that change are read, and their content is checked then.
            store.check_present(Path(path) / name, manifests.read(Path(path) / name))
        column = state.same_column(path, manifest, gallery)
        states = rows.states(gallery, column.name)
        work = _Work(path, gallery, column, manifests.generation_of(manifest) + 1, threads)
        # By the directory that there is: the one that takes its place, none where no row is left.
        now: dict[str, str | None] = {}
        shards = []
        for name, (fragments, num_rows) in _kept(path, manifest, gallery).items():
            own = {str(one): states[str(one)] for one in fragments}
            now[name] = name if fragments else None
            if fragments and own != manifests.read(Path(path) / name)["fragments"]:
                asked = {"updates": manifest["files"][f"{name}/{manifests.MANIFEST}"]["sha256"]}
                shard = _Shard(manifests.number_of(name), own, num_rows, asked, name)
                now[name] = work.directory(shard)
                shards.append(shard)
        left_out = _make(work, shards, engine, progress)
        now |= {one.source: None for one in shards if one.number in left_out}
        names = [name for name in now.values() if name]
        if not names:
            raise InputError(f"{gallery.path}: has no row left to index")
        diff = _difference(path, now)
        about = _about(work, names, left_out.values())
        if names == manifests.shards(manifest):
            store.amend(path, {**manifest, **about})
        else:
            store.commit_shards(path, names, work.generation, about)
    return diff


def _make(
    work: _Work, shards: Sequence[_Shard], engine: Engine, progress: str
) -> dict[int, dict[str, int]]:
    """Makes the shards that are not there yet; by number, what is left out where no row is left."""
    if not shards:
        return {}
    gallery = work.gallery
    # Whoever makes a shard sees no repetition in another one.
    check_ids(lambda: (batch["id"] for batch in reading(gallery, ["id"], 65536)), gallery.path)
    missing = [
        one for one in shards if not work.is_made(one, Path(work.path) / work.directory(one))
    ]
    if len(missing) < len(shards):
        logging.info(
            "%s: %d of %d shards are there already",
            work.path, len(shards) - len(missing), len(shards),
        )  # fmt: skip
    left_out, total = {}, sum(one.num_rows for one in missing)
    with tqdm(total=total, desc=progress, unit="rows", disable=None if progress else True) as bar:
        for shard, empty in engine(work.make, missing, bar.update, f"index {work.column.name}"):
            if empty is not None:
                left_out[shard.number] = empty
    return left_out


def _dealt(gallery: Gallery, count: int) -> list[tuple[list[int], int]]:
    """The fragments of each of so many shards, and their rows."""
    counts = _row_counts(gallery)
    if count < 1:
        raise InputError(f"``shards={count}``: must be 1 or more")
    if len(counts) < count:
        raise InputError(
            f"{gallery.path}: has {len(counts)} fragments, and a shard is one or more of them; "
            f"``shards={count}`` must be {len(counts)} at most"
        )
    upto = np.cumsum([*counts.values()])
    cuts = [0]
    for number in range(1, count):
        near = int(np.abs(upto - upto[-1] * number / count).argmin()) + 1
        # Each has a fragment at least, and so have those behind it.
        cuts.append(min(max(near, cuts[-1] + 1), len(counts) - (count - number)))
    names = [*counts]
    parts = [names[start:stop] for start, stop in zip(cuts, [*cuts[1:], None], strict=True)]
    return [(part, sum(counts[one] for one in part)) for part in parts]


def _kept(path: str, manifest: dict, gallery: Gallery) -> dict[str, tuple[list[int], int]]:
    """By directory of a shard, the fragments that it is to have at a version, and their rows."""
    counts, left = _row_counts(gallery), dict.fromkeys(_row_counts(gallery))
    dealt: dict[str, tuple[list[int], int]] = {}
    for name in manifests.shards(manifest):
        own = [int(one) for one in manifests.read(Path(path) / name)["fragments"]]
        own = [one for one in own if one in left]
        for one in own:
            del left[one]
        dealt[name] = own, sum(counts[one] for one in own)
    for one in left:
        least = min(dealt, key=lambda name: dealt[name][1])
        fragments, num_rows = dealt[least]
        dealt[least] = [*fragments, one], num_rows + counts[one]
    return dealt


def _row_counts(gallery: Gallery) -> dict[int, int]:
    return {one.fragment_id: one.count_rows() for one in gallery.dataset.get_fragments()}


def _about(work: _Work, names: Sequence[str], left_out: Iterable[dict[str, int]]) -> dict:
    """Of the manifest, what the whole index says."""
    shard_manifests = [manifests.read(Path(work.path) / name) for name in names]
    return {
        **state.about(work.gallery, work.column),
        "left_out": _sums([*(one["left_out"] for one in shard_manifests), *left_out]),
        "num_rows": sum(one["num_rows"] for one in shard_manifests),
        # Of the largest.
        "settings": max(shard_manifests, key=lambda one: one["num_rows"])["settings"],
        # Of the worst; None where one has been built by an earlier version of fct_tf.
        "recall": _least([one.get("recall") for one in shard_manifests]),
        "versions": provenance.library_versions(),
    }


def _least(recalls: Sequence[float | None]) -> float | None:
    measured = [one for one in recalls if one is not None]
    return min(measured) if len(measured) == len(recalls) else None


def _sums(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = {"null": 0, "without_direction": 0}
    for one in counts:
        total |= {reason: total[reason] + number for reason, number in one.items()}
    return total


def _difference(path: str, now: Mapping[str, str | None]) -> rows.Difference:
    """How shards differ from those in whose place they come, taken together: a row may have come
    from one to another."""
    none = pa.array([], pa.large_string()), np.empty(0, np.uint64)
    gone, new, changed = [none], [none], [none]
    for name, other in now.items():
        if name == other:
            continue
        ids, digests = _ids_of(path, name)
        other_ids, marks = _ids_of(path, other) if other else none
        place = pc.fill_null(pc.index_in(other_ids, value_set=ids), -1).to_numpy()
        is_new = place < 0
        is_other = ~is_new
        is_other[is_other] = marks[is_other] != digests[place[is_other]]
        is_gone = pc.invert(pc.is_in(ids, value_set=other_ids)).to_numpy(zero_copy_only=False)
        for parts, side_ids, which, side in (
            (gone, ids, is_gone, digests),
            (new, other_ids, is_new, marks),
            (changed, other_ids, is_other, marks),
        ):
            parts.append((side_ids.filter(pa.array(which)), side[which]))
    (left, old), (come, marks), (others, other_marks) = map(_joined, (gone, new, changed))
    place = pc.fill_null(pc.index_in(come, value_set=left), -1).to_numpy()
    moved = place >= 0
    same = moved.copy()
    same[moved] = marks[moved] == old[place[moved]]
    return rows.Difference(
        left.filter(pc.invert(pc.is_in(left, value_set=come))),
        pa.concat_arrays([come.filter(pa.array(~same)), others]),
        None,
        np.concatenate([marks[~same], other_marks]),
        int((~moved).sum()),
    )


def _ids_of(path: str, name: str) -> tuple[pa.Array, np.ndarray]:
    directory = Path(path) / name
    return store.load_ids(directory, manifests.read(directory))


def _joined(parts: Sequence[tuple[pa.Array, np.ndarray]]) -> tuple[pa.Array, np.ndarray]:
    ids, digests = zip(*parts, strict=True)
    return pa.concat_arrays(ids), np.concatenate(digests)
