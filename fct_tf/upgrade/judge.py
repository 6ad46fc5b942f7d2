"""Whether an upgraded gallery is compatible, judged on labelled queries or on a sample."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column, Rows, check_spaces
from fct_tf.gallery.derived import open_sources
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import agreement, exact, same_ids
from fct_tf.upgrade import sentence
from fct_tf.upgrade.sentence import NEW, OLD, UPGRADED

NOT_COMPATIBLE_STATUS = 3


# With fewer rows hardly any difference is clear.
FEW_ROWS = 100


@dataclass(frozen=True)
class Verdict:
    """What `judge` says, as its callers get it; `record` has all numbers, in fractions."""

    record: dict[str, Any]

    @property
    def verdict(self) -> str:
        """`compatible`, `not compatible`, `undecided` or `without labels`."""
        return self.record["verdict"]

    @property
    def compatible(self) -> bool:
        """Whether the verdict is `compatible`."""
        return self.verdict == "compatible"

    @property
    def sentence(self) -> str:
        """The verdict with its numbers, on one line."""
        return self.record["sentence"]

    def details(self) -> str:
        """All numbers as a table for people."""
        return sentence.details(self.record)

    def __str__(self) -> str:
        return self.sentence


def open_old(gallery: Gallery, old: str, upgraded: str, uri: str) -> Gallery | None:
    """The gallery that has the column `old`, where that is not `gallery`; see `judge`.

    Args:
      uri: names it; empty to take `gallery`, which must have the column then.

    Raises:
      InputError: as `fct_tf.gallery.derived.open_sources`.
    """
    if uri or old not in gallery.columns:
        return open_sources(gallery, gallery.column(upgraded), uri)
    return None


def judge(
    gallery: Gallery,
    old: str,
    upgraded: str,
    new: str,
    *,
    sample: Gallery | None = None,
    sources: Gallery | None = None,
    exclude: Gallery | None = None,
    ks: Sequence[int] = (1, 5),
    overlap_ks: Sequence[int] = (1, 10, 100),
    bootstrap: int = 1000,
    seed: int = 0,
    max_queries: int = 2000,
    allow_space_mismatch: bool = False,
    progress: str = "",
) -> dict:
    """The verdict on an upgraded column, as the record that --output gets.

    Args:
      gallery: has the columns `old` and `upgraded`; `old` not if there are `sources`.
      old, upgraded, new: embedding columns; the spaces of the latter two must fit.
      sample: has the column `new`, by default what has `old`. Rows are matched by id.
      sources: has the column `old`, by default `gallery`. Rows are matched by id.
      exclude: rows of its ids are neither queries nor searched.
      ks: ranks of CMC.
      overlap_ks: k of overlap@k; those above rows - 1 are left out.
      bootstrap: resamples of the intervals.
      seed: of the resamples and of the queries drawn.
      max_queries: at most so many queries for the agreement of rankings; 0 for all.
      allow_space_mismatch: compare `new` with `upgraded` whatever their spaces are.
      progress: label of the progress bars; none when empty.

    Returns:
      `verdict` (`compatible`, `not compatible`, `undecided` or `without labels`) and `sentence`;
      `columns` (of which table), counts `num_*`, `level`, `resamples`, `seed`. `labels` is None
      without labelled rows that have a match, else it has per case, for `difference` (new/T(old)
      - old/old) and for `gap_share` the estimates of `cmc@k` and `map`; a share is None where
      new/new is not clearly above old/old. `agreement` has `overlap@k` and `spearman` with
      new/new, of both cases and their `difference`, and the `chance` of overlap@k. `closeness`
      of T(old) to new has `cosine` and `explained_variance`. An estimate is
      `{"mean", "low", "high"}`, in fractions.

    Raises:
      InputError: missing column, spaces or dimensions that do not fit, bad rows, fewer than
        three rows left.
    """
    for name, ranks in (("ks", ks), ("overlap_ks", overlap_ks)):
        if not ranks or min(ranks) < 1:
            raise InputError(f"{name} {list(ranks)}: ranks start at 1; give at least one")
    before = sources or gallery
    source = sample or before
    columns = [before.column(old), gallery.column(upgraded), source.column(new)]
    check_spaces(columns[2], columns[1], allow_mismatch=allow_space_mismatch)
    if columns[0].space == columns[2].space:
        raise InputError(
            f"columns {old!r} and {new!r} lie in one space (model {columns[0].model}): there is no "
            "upgrade to judge"
        )
    rows, vectors, counts = _read(gallery, before, columns, source, exclude)
    count = len(rows.ids)
    left_out = f"{counts['num_excluded']} excluded, {counts['num_not_in_gallery']} not in gallery"
    few = f"{source.path}: {count} rows to judge by ({left_out})"
    if count < 3:
        raise InputError(f"{few}; embed more rows of the gallery with the new model")
    if count < FEW_ROWS:
        logging.warning("%s: the intervals are wide", few)
    if counts["num_backfilled"]:
        logging.warning(
            "%s: the new model itself made %d of these %d rows of %r; the verdict is on a gallery "
            "with as large a share of them",
            *(gallery.path, counts["num_backfilled"], count, upgraded),
        )
    overlap_ks = [k for k in overlap_ks if k < count]
    if not overlap_ks:
        raise InputError(f"--overlap_ks: a row has only {count - 1} others; name a smaller k")
    cases = {
        OLD: agreement.Case(vectors["old"], vectors["old"], columns[0].distance),
        UPGRADED: agreement.Case(vectors["new"], vectors["upgraded"], columns[1].distance),
        NEW: agreement.Case(vectors["new"], vectors["new"], columns[2].distance),
    }
    near = agreement.closeness(vectors["upgraded"], vectors["new"], columns[1].distance)
    draws = (bootstrap, seed)
    record = {
        "columns": {
            "old": exact.describe(before, columns[0]),
            "upgraded": exact.describe(gallery, columns[1]),
            "new": exact.describe(source, columns[2]),
        },
        "num_rows": count,
        "num_gallery": gallery.num_rows,
        **counts,
        "level": 0.95,
        "resamples": bootstrap,
        "seed": seed,
        "labels": _labelled(cases, rows, ks, draws, progress),
        "agreement": _agreement(cases, overlap_ks, max_queries, draws, progress),
        "closeness": _plain(agreement.intervals(near, *draws)),
    }
    verdict, told = sentence.conclude(record)
    return {"verdict": verdict, "sentence": told, **record}


def _read(
    gallery: Gallery,
    before: Gallery,
    columns: list[Column],
    source: Gallery,
    exclude: Gallery | None,
) -> tuple[Rows, dict[str, np.ndarray], dict[str, int]]:
    """Rows (ids and labels), their vectors `old`, `upgraded` and `new`, and counts."""
    old, upgraded, new = columns
    for gallery_read in (gallery, before, source):
        gallery_read.check_rows()
    excluded = {i for rows in exclude.batches([], 65536) for i in rows.ids} if exclude else set()
    # Where the sample has the old embeddings too, they tell whether equal ids are equal rows.
    probe = source.columns.get(old.name, new)
    probe = probe if (probe.space, probe.dim) == (old.space, old.dim) else new
    made = source.read([new.name, probe.name], with_labels=True)
    wanted = set(made.ids) - excluded
    found = {i for rows in gallery.batches([], 65536) for i in rows.ids if i in wanted}
    kept = np.array([i in found for i in made.ids], bool)
    counts = {
        "num_excluded": len(made) - len(wanted),
        "num_not_in_gallery": len(wanted) - len(found),
    }
    vectors = {name: values[kept] for name, values in made.vectors.items()}
    made = Rows(made.ids[kept], np.asarray(made.labels)[kept], vectors)
    origin = f"{upgraded.name}_origin"
    fields = [origin] if origin in gallery.dataset.schema.names else []
    beside = [old.name] if before is gallery else []
    stored = gallery.take(list(made.ids), [upgraded.name, *beside], fields=fields)
    replaced = stored if beside else before.take(list(made.ids), [old.name])
    assert made.labels is not None and stored.labels is not None
    warning = same_ids.doubt(made, probe, replaced, old, np.arange(len(made)))
    if warning:
        logging.warning("%s and %s: %s", source.path, before.path, warning)
    counts["num_backfilled"] = sum(int(np.sum(stored.fields[f] == "backfilled")) for f in fields)
    # A gallery that was imported without labels is judged by those of its sample.
    pairs = zip(stored.labels, made.labels, strict=True)
    labels = np.array([b if a is None else a for a, b in pairs], object)
    roles = {"old": (replaced, old), "upgraded": (stored, upgraded), "new": (made, new)}
    vectors = {role: rows.vectors[column.name] for role, (rows, column) in roles.items()}
    return Rows(made.ids, labels), vectors, counts


def _labelled(cases, rows: Rows, ks, draws: tuple[int, int], progress: str) -> dict | None:
    assert rows.labels is not None
    sides = (rows.ids, rows.labels)
    if all(label is None for label in rows.labels):
        return None
    found = {
        name: exact.per_query(
            case.query, *sides, case.gallery, *sides, case.distance, progress=progress and name
        )
        for name, case in cases.items()
    }
    ranks = found[OLD].rank
    if not ranks.any():
        logging.warning("no row has the label of another: CMC and mAP have nothing to find")
        return None
    values = {name: agreement.per_query_metrics(case, ks) for name, case in found.items()}
    made = {name: _plain(agreement.intervals(case, *draws)) for name, case in values.items()}
    difference = agreement.paired_difference(values[UPGRADED], values[OLD], *draws)
    shares = agreement.gap_shares(values[UPGRADED], values[OLD], values[NEW], *draws)
    return {
        "num_queries": len(ranks),
        "num_queries_without_label": len(rows.ids) - len(ranks),
        "num_queries_without_match": int(np.sum(ranks == 0)),
        **made,
        "difference": _plain(difference),
        "gap_share": _plain(shares),
    }


def _agreement(cases, ks: list[int], max_queries: int, draws, progress: str) -> dict:
    count = len(cases[NEW].query)
    queries = np.random.default_rng(draws[1]).permutation(count)[: max_queries or None]
    judged = {name: cases[name] for name in (OLD, UPGRADED)}
    found = agreement.rankings(judged, cases[NEW], np.sort(queries), ks, progress)
    difference = agreement.paired_difference(found[UPGRADED], found[OLD], *draws)
    return {
        "num_queries": len(queries),
        **{name: _plain(agreement.intervals(case, *draws)) for name, case in found.items()},
        "difference": _plain(difference),
        "chance": {f"overlap@{k}": k / (count - 1) for k in ks},
    }


def _plain(estimates) -> dict[str, dict | None]:
    return {name: asdict(value) if value else None for name, value in estimates.items()}
