"""Rows removed from galleries: by their ids, or because what a gallery was made from lost them.

Lance marks a deleted row; its values stay in the data file, and in older versions and tags, until
the files are written anew and the versions are given up (`purge_versions`).
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
from absl import logging
from lance.commit import CommitConflictError

from fct_tf.common import files, objects
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.job import unfinished
from fct_tf.gallery.reader import Gallery, all_ids, open_gallery, places_in, read_error

# From a gallery to which of its rows are to go: bool [n], in the table's order.
Doomed = Callable[[Gallery], np.ndarray]


def read_ids(path: str) -> list[str]:
    """The ids that a file names, one a line, each once."""
    ids = [line for line in files.read_lines(path, f"``ids={path}``") if line]
    if not ids:
        raise InputError(f"{path}: names no row; give one id a line")
    return list(dict.fromkeys(ids))


def with_ids(ids: list[str]) -> Doomed:
    """The rows that have one of these ids."""
    id_array = pa.array(ids, pa.large_string())
    return lambda gallery: places_in(gallery, id_array) >= 0


def not_in(sources: Gallery) -> Doomed:
    """The rows whose id no row of `sources` has; `InputError` where none would be left."""
    source_ids = all_ids(sources)

    def doomed(gallery: Gallery) -> np.ndarray:
        gone = places_in(gallery, source_ids) < 0
        if len(gone) and gone.all():
            raise InputError(
                f"{gallery.path}: has no row of {sources.path}; name the gallery that it was made "
                "from with ``sources``"
            )
        return gone

    return doomed


def warn_of_unknown(
    path: str, ids: list[str], galleries: list[Gallery], masks: list[np.ndarray]
) -> None:
    """Says which ids are of no row: one that is misspelt stays in the galleries."""
    unknown = dict.fromkeys(ids)
    for gallery, mask in zip(galleries, masks, strict=True):
        for row_id in all_ids(gallery).filter(pa.array(mask)).to_pylist():
            unknown.pop(row_id, None)
    if len(unknown) == len(ids):
        logging.warning("%s: no gallery has a row with one of its %d ids", path, len(ids))
    elif unknown:
        logging.warning(
            "%s: no gallery has a row with %d of its %d ids, such as %r",
            path, len(unknown), len(ids), next(iter(unknown)),
        )  # fmt: skip


@dataclass(frozen=True)
class Purged:
    """bytes_removed: on the disk. tags: those of older versions that still hold removed rows.

    indices: names of those that may still hold their values.
    """

    bytes_removed: int
    tags: list[str]
    indices: list[str]


@dataclass(frozen=True)
class Removed:
    """What has been done to a gallery.

    Attributes:
      path, version: of the gallery, after it.
      count: rows removed, of `before`.
      purged: None where older versions were left alone.
      tags: of older versions that still hold removed rows.
      has_job: whether an unfinished job lies beside it.
    """

    path: str
    version: int
    count: int
    before: int
    purged: Purged | None
    tags: list[str]
    has_job: bool

    def __str__(self) -> str:
        lines = [f"{self.path}@{self.version}: {self.count} of {self.before} rows removed"]
        if self.purged:
            lines.append(f"  purged: {self.purged.bytes_removed:,} bytes of older versions")
            for name in self.purged.indices:
                lines.append(f"  index {name!r} may still hold them: drop it and build it anew")
        elif self.count:
            lines.append("  older versions still hold them; --purge gives those without a tag up")
        if self.tags:
            again = "" if self.purged else ", then purge"
            lines.append(
                f"  still held by the tag {', '.join(self.tags)}: move it (inspect_gallery --tag)"
                f"{again}"
            )
        if self.has_job:
            lines.append(
                f"  {self.path}.jobs: an unfinished job may hold some; let it end, or delete it"
            )
        return "\n".join(lines)


def remove_from(gallery: Gallery, doomed: Doomed, *, purge: bool = False) -> Removed:
    """Removes rows, and with `purge` older versions without a tag. Errors as `remove`, `purge`."""
    path, before = gallery.path, gallery.num_rows
    count = remove(path, doomed)
    purged = purge_versions(path, doomed) if purge else None
    now = open_gallery(path)
    tags = purged.tags if purged else tagged_with(now, doomed)
    has_job = unfinished(path)
    return Removed(path, now.version, count, before, purged, tags, has_job)


def remove(path: str, doomed: Doomed) -> int:
    """Removes rows of the newest version in one commit; returns how many there were.

    Rows of a commit of somebody else in the meantime are looked at too. Nothing is committed
    where no row is to go.

    Raises:
      InputError: no such gallery, a broken file.
    """
    for attempt in range(20):
        gallery = open_gallery(path)
        gone = np.flatnonzero(doomed(gallery))
        if not len(gone):
            return 0
        changed, emptied, start = [], [], 0
        for fragment in gallery.dataset.get_fragments():
            stop = start + fragment.count_rows()
            mine = gone[(gone >= start) & (gone < stop)] - start
            start = stop
            if len(mine):
                left = _without(gallery, fragment, mine)
                changed += [left] if left is not None else []
                emptied += [fragment.fragment_id] if left is None else []
        operation = lance.LanceOperation.Delete(changed, emptied, "id IN (...)")
        try:
            lance.LanceDataset.commit(
                path,
                operation,
                read_version=gallery.version,
                storage_options=objects.lance_options(path),
            )
        except CommitConflictError:
            logging.info("%s: another commit came first; attempt %d", path, attempt + 2)
            continue
        return len(gone)
    raise InputError(f"{path}: too many commits of others at the same time; start again")


def _without(
    gallery: Gallery, fragment: lance.LanceFragment, places: np.ndarray
) -> lance.fragment.FragmentMetadata | None:
    """The fragment without the rows at these places; None where none is left."""
    try:
        address = [
            batch["_rowaddr"].to_numpy()
            for batch in fragment.scanner(columns=[], with_row_address=True).to_batches()
        ]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise read_error(gallery, error) from None
    doomed = np.concatenate(address)[places]
    return fragment.delete(f"_rowaddr IN ({','.join(map(str, doomed.tolist()))})")


def tagged_with(gallery: Gallery, doomed: Doomed) -> list[str]:
    """The tags of versions before the newest that hold such rows."""
    tags = gallery.dataset.tags.list()
    older = {name: tag["version"] for name, tag in tags.items() if tag["version"] < gallery.version}
    holding = {v: doomed(open_gallery(f"{gallery.path}@{v}")).any() for v in {*older.values()}}
    return sorted(name for name, version in older.items() if holding[version])


def purge_versions(path: str, doomed: Doomed) -> Purged:
    """Writes the files with removed rows anew and gives up all older versions without a tag.

    Files that no version names go as well: those of an unfinished job, which then does its work
    again, and those of attempts at a fragment that outlived their job.

    Raises:
      InputError: Lance cannot do it.
    """
    gallery = open_gallery(path)
    before = gallery.dataset
    try:
        before.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0)
        dataset = table.open_gallery(path).dataset
        removed = dataset.cleanup_old_versions(
            older_than=datetime.timedelta(microseconds=1),
            delete_unverified=True,
            error_if_tagged_old_versions=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be purged ({files.one_line(error)})") from None
    # Where rows keep their numbers, Lance has no need to write an index anew, and does not.
    same = [one["name"] for one in dataset.list_indices()] if before.has_stable_row_ids else []
    return Purged(removed.bytes_removed, tagged_with(table.open_gallery(path), doomed), same)
