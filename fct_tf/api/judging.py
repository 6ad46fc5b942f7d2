"""What a column is worth: the methods of `fct_tf.Gallery` that measure and judge."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fct_tf.api.arguments import EngineName, GalleryLike, PathLike, names, opened, uri_of
from fct_tf.api.transformation import Transformation
from fct_tf.engines.engine import open_engine
from fct_tf.retrieval import in_parts, two_columns
from fct_tf.retrieval.records import Evaluation

if TYPE_CHECKING:
    from fct_tf.api.gallery import Gallery
    from fct_tf.upgrade.judge import Verdict


@dataclasses.dataclass(frozen=True)
class BackfillingCurves:
    """What backfilling brings, by policy; `records` are those of `backfilling_curve --output`."""

    records: list[dict[str, Any]]

    @property
    def auc(self) -> dict[str, dict[str, float]]:
        """Policy -> `{"1": .., "map": ..}`, the mean of the curve; of the first random order."""
        first = [r for r in self.records if not r["order"] and not r["corrected"]]
        return {record["policy"]: record["auc"] for record in first}

    def __str__(self) -> str:
        from fct_tf.report import backfilling

        return backfilling.text(self.records)


def judge(
    self: "Gallery",
    old: str,
    upgraded: str,
    new: str,
    sample: GalleryLike | None = None,
    *,
    sources: GalleryLike | None = None,
    exclude: GalleryLike | None = None,
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
) -> "Verdict":
    """Says before the switch whether an upgraded column is compatible.

    Args:
      old, upgraded, new: columns: of the old model, made from it, of the new model.
      sample: a gallery with `new`, rows matched by id; None: every row has it here.
      sources: the gallery with `old`, where `upgraded` lies in a gallery of its own.
      exclude: rows of its ids are left out: those that the transformation was trained on.
      query_column: of the sample, its rows search `upgraded`; empty: `new`, and for a fused
        column the one column in its space.
      against: another column here, searched by `new`, to compare `upgraded` with.
      groups: a column such as `camera`, or `label`: each value's queries are judged as well.
      thresholds: distances in the space of `old` (squared L2, or 1 - cosine) to be translated.
      ks, overlap_ks, bootstrap, seed, max_queries, allow_space_mismatch: as the flags of
        `verdict`.
      progress: label of the progress bars; none when empty.

    Returns:
      The verdict: `.compatible`, `.verdict`, `.sentence` (what `print` shows), `.record` with
      all numbers, `.details()` as a table, `.losing_slices`, the groups that are worse off.

    Raises:
      InputError: a missing column, spaces that do not fit, fewer than three rows.
    """
    from fct_tf.upgrade import judge

    record = judge.judge(
        self._opened,
        old,
        upgraded,
        new,
        sample=opened(sample),
        sources=judge.open_old(self._opened, old, upgraded, uri_of(sources)),
        exclude=opened(exclude),
        query_column=query_column,
        against=against,
        groups=groups,
        thresholds=thresholds,
        ks=ks,
        overlap_ks=overlap_ks,
        bootstrap=bootstrap,
        seed=seed,
        max_queries=max_queries,
        allow_space_mismatch=allow_space_mismatch,
        progress=progress,
    )
    return judge.Verdict(record)


def backfilling_curve(
    self: "Gallery",
    column: str,
    target_column: str,
    policies: Sequence[str] = ("random",),
    queries: GalleryLike | None = None,
    query_column: str = "",
    *,
    random_orders: int = 5,
    corrected: Sequence[str] = (),
    groups: str = "",
    ks: Sequence[int] = (1, 5),
    distance: str = "",
    seed: int = 0,
    allow_space_mismatch: bool = False,
    progress: str = "",
) -> BackfillingCurves:
    """Says what re-embedding a part of an upgraded column brings, by policy.

    Args:
      column: transformed; target_column: of the new model, whose rows replace its rows.
      policies: `uncertainty`, `random`, `distance`, `ranks`, `file:PATH`.
      queries: their gallery; None for this one. query_column: the new model's there; by
        default `target_column`.
      random_orders, corrected, groups, ks, distance, seed, allow_space_mismatch: as the flags
        of `backfilling_curve`.
      progress: label of the progress bar; none when empty.

    Raises:
      InputError: spaces that do not fit, an unknown policy, no labelled query.
    """
    from fct_tf.backfill import evaluate

    records = evaluate.evaluate(
        opened(queries) or self._opened,
        query_column or target_column,
        self._opened,
        column,
        target_column,
        names(policies),
        random_orders=random_orders,
        corrected=names(corrected),
        groups=groups,
        ks=ks,
        distance=distance or None,
        seed=seed,
        allow_space_mismatch=allow_space_mismatch,
        progress=progress,
    )
    return BackfillingCurves(records)


def evaluate(
    self: "Gallery",
    column: str,
    queries: GalleryLike | None = None,
    query_column: str = "",
    *,
    ks: Sequence[int] = (1, 5),
    distance: str = "",
    search: Literal["exact", "scann"] = "exact",
    index: PathLike | None = None,
    rerank: Transformation | PathLike | None = None,
    candidates: int = 100,
    target: str | None = None,
    side_info: str | None = None,
    exclude_same: str = "",
    bootstrap: int = 1000,
    seed: int = 0,
    allow_space_mismatch: bool = False,
    progress: str = "",
    engine: EngineName = "local",
    spark_master: str = "",
) -> Evaluation:
    """Evaluates queries against a column of this gallery; a query's own id is left out.

    Args:
      column: that is searched.
      queries: their gallery; None for this one. query_column: there; by default `column`.
      ks, distance, search, index, exclude_same, bootstrap, seed, allow_space_mismatch: as the
        flags of `evaluate`.
      rerank: a fused search that orders the first `candidates` rows of each query; `column`
        and `query_column` are the old model's.
      target, side_info: what it reads beside them, the new model's column of the queries and
        the gallery's side-information; by default found by their spaces.
      progress: label of the progress bar; none when empty.
      engine: `spark` to search on a cluster: the session there is, or one on `spark_master`.

    Returns:
      `.cmc[1]`, `.map`, `.record` (of results.json), `.per_query`, `.by_class()`.

    Raises:
      InputError: spaces that do not fit, no labelled query, bad rows.
    """
    from fct_tf.upgrade.rerank import searching

    asked = opened(queries) or self._opened
    fused: Any = getattr(rerank, "loaded", rerank)
    approximate = searching(
        (asked, query_column or column, self._opened, column),
        search=search,
        index=os.fspath(index or ""),
        transformation=fused or "",
        first=candidates,
        target=target or "",
        side_info=side_info or "",
        allow_space_mismatch=allow_space_mismatch,
    )
    with open_engine(engine, spark_master) as used:
        evaluated = two_columns.evaluate_queries(
            asked,
            query_column or column,
            self._opened,
            column,
            ks=ks,
            distance=distance or None,
            approximate=approximate,
            exclude_same=exclude_same,
            bootstrap=bootstrap,
            seed=seed,
            allow_space_mismatch=allow_space_mismatch,
            progress=progress,
            searching=None if engine == "local" else in_parts.searching(used),
        )
    return Evaluation(*evaluated)
