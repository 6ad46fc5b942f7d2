"""Whether an upgraded gallery is compatible, judged on labelled queries or on a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Rows, check_spaces, fit
from fct_tf.gallery.derived import open_sources
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import agreement, compatibility, exact, two_columns
from fct_tf.retrieval.thresholds import translate
from fct_tf.upgrade import judged_rows, sentence, slices
from fct_tf.upgrade.sentence import NEW, OLD
from fct_tf.upgrade.transform import FUSED

NOT_COMPATIBLE_STATUS = 3


# With fewer rows hardly any difference is clear.
FEW_ROWS = 100

Cases = Mapping[str, agreement.Case]
Draws = tuple[int, int]  # Resamples and seed.


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
    def losing_slices(self) -> list[str | None]:
        """Values of `groups` whose queries are clearly worse off by a metric; the worst first."""
        by_group = self.record.get("slices")
        return [one["group"] for one in slices.losing(by_group)] if by_group else []

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
    query_column: str = "",
    against: str = "",
    groups: str = "",
    thresholds: Sequence[float] = (),
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
      old, upgraded, new: embedding columns; `upgraded` must fit the space of its queries.
      sample: has the column `new`, by default what has `old`. Rows are matched by id.
      sources: has the column `old`, by default `gallery`. Rows are matched by id.
      exclude: rows of its ids are neither queries nor searched.
      query_column: of the sample, the queries of `upgraded`; by default `new`, and of a fused
        column the one column of the sample in its space.
      against: another column of the gallery to compare `upgraded` with, for queries `new`; a
        fused one for `query_column` where that is in its space, or the sample's one column there.
      groups: a column of texts or whole numbers of the gallery, the sample or the sources, or
        `label`: the queries of each value are judged by themselves.
      thresholds: distances of `old` (squared L2, or 1 - cosine) to be translated.
      ks: ranks of CMC.
      overlap_ks: k of overlap@k; those above rows - 1 are left out.
      bootstrap: resamples of the intervals.
      seed: of the resamples and of the queries drawn.
      max_queries: at most so many queries for the agreement of rankings; 0 for all.
      allow_space_mismatch: compare queries with rows whatever their spaces are.
      progress: label of the progress bars; none when empty.

    Returns:
      `verdict` (`compatible`, `not compatible`, `undecided` or `without labels`) and `sentence`;
      `case`, how the upgraded case is called (new/T(old), of a fused column old+new/old+T(old));
      `columns` (of which table), counts `num_*`, `level`, `resamples`, `seed`. `labels` is None
      without labelled rows that have a match, else it has per case, for `difference` (`case` -
      old/old) and for `gap_share` the estimates of `cmc@k` and `map`; a share is None where
      new/new is not clearly above old/old; `negative_flips` are the queries whose nearest row had
      their label in old/old and no longer has, `positive_flips` the others that change.
      `slices` is as `slices.by_group` returns it, None without `groups` or labels. `against` has
      `case`, `difference` (the upgraded case less that one), `negative_flips` (right there, wrong
      in the upgraded case) and `positive_flips`; None without it or without labels. `thresholds`
      is a list of `old`, `distance` by role, `by` (`labels` or `all pairs`), `num_pairs` and
      `num_false_accepts` of `old`, `far`, `tar_old`, and for `upgraded` and `new` the `value`,
      `low`, `high` and `num_false_accepts`, `tar_upgraded`, `tar_new` and
      `tar_difference` (upgraded - old); TARs are None where no two rows have one label.
      `agreement` has `overlap@k` and `spearman` with new/new, of both cases and their
      `difference`, and the `chance` of overlap@k. `closeness` of the upgraded rows to their
      queries has `cosine` and `explained_variance`. An estimate is `{"mean", "low", "high"}`, in
      fractions.

    Raises:
      InputError: missing column, spaces or dimensions that do not fit, bad rows, fewer than
        three rows left, a threshold that the rows cannot tell of.
    """
    for name, ranks in (("ks", ks), ("overlap_ks", overlap_ks)):
        if not ranks or min(ranks) < 1:
            raise InputError(f"{name} {list(ranks)}: ranks start at 1; give at least one")
    for threshold in thresholds:
        if not 0 < threshold < np.inf:
            raise InputError(f"``threshold={threshold:g}``: a distance above 0, e.g. 0.62")
    before = sources or gallery
    source = sample or before
    columns = {
        "old": before.column(old),
        "upgraded": gallery.column(upgraded),
        "new": source.column(new),
    }
    columns["query"] = judged_rows.query_column(
        source, gallery, columns["upgraded"], new, query_column
    )
    if against:
        columns["against"] = other_column = gallery.column(against)
        asked = columns["new"]
        if other_column.kind == FUSED:
            asked = columns["query"]
            if not fit(asked, other_column):
                asked = judged_rows.query_column(source, gallery, other_column, new, "")
            columns["against_query"] = asked
        check_spaces(asked, other_column, allow_mismatch=allow_space_mismatch)
    check_spaces(columns["query"], columns["upgraded"], allow_mismatch=allow_space_mismatch)
    if columns["old"].space == columns["new"].space:
        raise InputError(
            f"columns {old!r} and {new!r} lie in one space (model {columns['old'].model}): there "
            "is no upgrade to judge"
        )
    rows, vectors, counts = judged_rows.read(gallery, before, columns, source, exclude, groups)
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
        raise InputError(f"``overlap_ks``: a row has only {count - 1} others; name a smaller k")

    def case(query: str, searched: str) -> agreement.Case:
        return agreement.Case(vectors[query], vectors[searched], columns[searched].distance)

    called = sentence.case_of(columns["upgraded"].kind)
    cases = {OLD: case("old", "old"), called: case("query", "upgraded"), NEW: case("new", "new")}
    asked_by = "against_query" if "against_query" in columns else "new"
    other = {f"{columns[asked_by].name}/{against}": case(asked_by, "against")} if against else {}
    near = agreement.closeness(vectors["upgraded"], vectors["query"], cases[called].distance)
    draws = (bootstrap, seed)
    translated = _thresholds(cases, rows, thresholds, draws, progress)
    tables = {"old": before, "upgraded": gallery, "against": gallery}
    record = {
        "case": called,
        "columns": {
            role: two_columns.describe(tables.get(role, source), column)
            for role, column in columns.items()
        },
        "num_rows": count,
        "num_gallery": gallery.num_rows,
        **counts,
        "level": 0.95,
        "resamples": bootstrap,
        "seed": seed,
        **_labelled(cases, other, rows, ks, groups, draws, progress),
        "thresholds": translated,
        "agreement": _agreement(cases, called, overlap_ks, max_queries, draws, progress),
        "closeness": _plain(agreement.intervals(near, *draws)),
    }
    verdict, phrase = sentence.conclude(record)
    return {"verdict": verdict, "sentence": phrase, **record}


def _labelled(
    cases: Cases, other: Cases, rows: Rows, ks, groups: str, draws: Draws, progress: str
) -> dict[str, dict | None]:
    """`labels`, `slices` and `against` of the record."""
    assert rows.labels is not None
    sides = (rows.ids, rows.labels)
    nothing: dict[str, dict | None] = {"labels": None, "slices": None, "against": None}
    has_labels = any(label is not None for label in rows.labels)
    per_query = {
        name: exact.per_query(
            case.query, *sides, case.gallery, *sides, case.distance, progress=progress and name
        )
        for name, case in ({**cases, **other} if has_labels else {}).items()
    }
    if not has_labels or not per_query[OLD].rank.any():
        if has_labels:
            logging.warning("no row has the label of another: CMC and mAP have nothing to find")
        if groups or other:
            logging.warning("without labels that match there is nothing to tell of groups, against")
        return nothing
    ranks = per_query[OLD].rank
    upgraded = list(cases)[1]
    values = {name: agreement.per_query_metrics(case, ks) for name, case in per_query.items()}
    intervals = {name: _plain(agreement.intervals(values[name], *draws)) for name in cases}
    labels = {
        "num_queries": len(ranks),
        "num_queries_without_label": len(rows.ids) - len(ranks),
        "num_queries_without_match": int(np.sum(ranks == 0)),
        **intervals,
        **_compared(per_query, values, upgraded, OLD, draws),
        "gap_share": _plain(
            agreement.gap_shares(values[upgraded], values[OLD], values[NEW], *draws)
        ),
    }
    by_group = None
    if groups:
        flips = compatibility.flips(per_query[OLD], per_query[upgraded])
        of_queries = rows.fields[groups][per_query[OLD].position]
        by_group = slices.by_group(groups, of_queries, values[upgraded], values[OLD], flips, draws)
    against = None
    for name in other:
        against = {"case": name, **_compared(per_query, values, upgraded, name, draws)}
    return {"labels": labels, "slices": by_group, "against": against}


def _compared(found, values, after: str, before: str, draws: Draws) -> dict[str, Any]:
    """`difference` and the flips of two cases of the same queries."""
    flips = compatibility.negative_flips(
        found[before], found[after], resamples=draws[0], seed=draws[1]
    )
    difference = agreement.paired_difference(values[after], values[before], *draws)
    return {
        "difference": _plain(difference),
        **{f"{name}_flips": asdict(value) for name, value in flips._asdict().items()},
    }


def _thresholds(
    cases: Cases, rows: Rows, wanted: Sequence[float], draws: Draws, progress: str
) -> list[dict[str, Any]]:
    assert rows.labels is not None
    if not wanted:
        return []
    labelled = len({label for label in rows.labels if label is not None}) > 1
    labels = rows.labels if labelled else None
    translations = translate(cases, rows.ids, labels, sorted(set(wanted)), *draws, progress)
    roles = dict(zip(cases, ("old", "upgraded", "new"), strict=True))
    entries = []
    for one in translations:
        entry: dict[str, Any] = {
            "old": one.threshold,
            "distance": {role: cases[name].distance for name, role in roles.items()},
            "by": "labels" if labelled else "all pairs",
            "num_pairs": one.num_pairs,
            "num_false_accepts": one.num_false_accepts,
            "far": asdict(one.far),
            "tar_old": asdict(one.tar) if one.tar else None,
        }
        for name, carried in one.cases.items():
            value = {"value": carried.value.mean, **asdict(carried.value)}
            del value["mean"]
            entry[roles[name]] = {**value, "num_false_accepts": carried.num_false_accepts}
            entry[f"tar_{roles[name]}"] = asdict(carried.tar) if carried.tar else None
            if roles[name] == "upgraded":
                change = carried.tar_difference
                entry["tar_difference"] = asdict(change) if change else None
            missing = one.num_false_accepts - carried.num_false_accepts
            # A pair that is met from both ends ties with itself.
            if missing > max(1, one.num_false_accepts // 100):
                logging.warning(
                    "``threshold=%g``: many pairs of %s lie at %.6g exactly; %d of them pass, not "
                    "%d",
                    *(one.threshold, name, carried.value.mean),
                    *(carried.num_false_accepts, one.num_false_accepts),
                )
        entries.append(entry)
    return entries


def _agreement(
    cases: Cases, upgraded: str, ks: list[int], max_queries: int, draws: Draws, progress: str
) -> dict:
    count = len(cases[NEW].query)
    queries = np.random.default_rng(draws[1]).permutation(count)[: max_queries or None]
    judged = {name: cases[name] for name in (OLD, upgraded)}
    agreements = agreement.rankings(judged, cases[NEW], np.sort(queries), ks, progress)
    difference = agreement.paired_difference(agreements[upgraded], agreements[OLD], *draws)
    return {
        "num_queries": len(queries),
        **{name: _plain(agreement.intervals(case, *draws)) for name, case in agreements.items()},
        "difference": _plain(difference),
        "chance": {f"overlap@{k}": k / (count - 1) for k in ks},
    }


def _plain(estimates) -> dict[str, dict | None]:
    return {name: asdict(value) if value else None for name, value in estimates.items()}
