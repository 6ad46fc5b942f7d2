"""An index in one piece, built of all rows of a column or of some of its fragments."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from absl import logging

from fct_tf.ann import fitting, rows
from fct_tf.ann.changes import commit
from fct_tf.ann.searcher import Searcher
from fct_tf.ann.settings import Settings
from fct_tf.ann.state import State, about, trained
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import Tick
from fct_tf.gallery.columns import Column
from fct_tf.gallery.reader import Gallery


@dataclass(frozen=True)
class Request:
    """How an index is to be built.

    settings: of ScaNN; those not given are the defaults for the number of rows. recall: instead,
    the settings of most queries per second at this recall@10. seed: of the tuner.

    Raises:
      InputError: both.
    """

    settings: Mapping
    recall: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recall is not None and self.settings:
            raise InputError(
                f"recall={self.recall}: finds the settings; leave {next(iter(self.settings))} out"
            )


def build(
    gallery: Gallery,
    column: Column,
    path: str | os.PathLike,
    request: Request,
    *,
    threads: int | None = None,
    tick: Tick = lambda count: None,
    fragments: Collection[int] | None = None,
    more: dict | None = None,
) -> tuple[dict[str, int], State | None]:
    """Builds an index in the directory `path`; inside `writing`.

    Args:
      threads: that build; None: one for each core.
      tick: told of rows that have been read.
      fragments: that it is to be of, if not of all.
      more: of the manifest.

    Returns:
      (number of rows left out by reason, the index, or None where all are).

    Raises:
      InputError: bad rows, settings that do not fit.
    """
    read = rows.read(gallery, column, tick, fragments)
    for reason, number in read.left_out.items():
        if number:
            logging.info("%s: %d rows are left out (%s)", gallery.path, number, reason)
    count, dim, distance = len(read.ids), column.dim, column.distance
    if not count:
        return read.left_out, None
    logging.info("%s: building an index of %d rows x %d", gallery.path, count, dim)
    chosen, by, report = None, "rows", None
    if request.recall is not None:
        from fct_tf.ann import tuner

        tuned = tuner.tune(
            read.vectors, distance, request.recall, k=10, threads=threads, seed=request.seed
        )
        # It has built what it found.
        searcher, by, report = tuned.searcher, "recall", tuned.to_json()
    else:
        if request.settings:
            chosen, by = Settings.for_rows(count, dim, distance, **request.settings), "settings"
        searcher = Searcher.taking(read.vectors, distance, chosen, threads=threads, measured=True)
        assert searcher.recall is not None
        if searcher.recall < fitting.LEAST_RECALL:
            logging.warning(
                "%s: recall@%d of %r is %.2f; build it for a wanted one (recall=0.95), or search "
                "more leaves (num_leaves_to_search) and reorder more rows "
                "(reordering_num_neighbors)",
                gallery.path, fitting.K, column.name, searcher.recall,
            )  # fmt: skip
    which = about(gallery, column, fragments) | {"left_out": read.left_out}
    which |= trained(searcher, by, report) | (more or {})
    return read.left_out, commit(path, {}, searcher, read.ids, read.digests, which)
