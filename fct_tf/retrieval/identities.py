"""Identities by two columns: 1:1 verification and open-set 1:N, as records of results.json."""

from collections.abc import Collection, Sequence

import numpy as np
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import check_spaces
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval import exact, open_set, same_ids, two_columns, verification


def verify(
    query_gallery: Gallery,
    query_column: str,
    gallery: Gallery,
    gallery_column: str,
    *,
    fars: Sequence[float] = (1e-3, 1e-4),
    fpirs: Sequence[float] = (1e-2,),
    absent_share: float = 0.5,
    enrolled_share: float = 0.5,
    distance: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    without: Collection[str] = (),
    allow_space_mismatch: bool = False,
    progress: str = "",
) -> dict:
    """Verifies a query column against a gallery column.

    Args:
      query_gallery, gallery: may be the same gallery; a row is never compared with its own id.
      fars: false accept rates of the verification (`verification.verify`).
      fpirs: false alarm rates of the open-set search (`open_set.search`).
      absent_share, enrolled_share: how the gallery is divided for it (`open_set.enrolled_rows`).
      distance: `l2` or `cosine`; None takes the gallery column's.
      bootstrap: resamples for the 95 % intervals over identities; 0 for none.
      seed: of the division and the resamples.
      without: ids that are left out of queries and gallery.
      allow_space_mismatch: compare different spaces all the same.
      progress: label of the progress bars; none when empty.

    Returns:
      `query` and `gallery` (which column), `distance`, `seed`, `level` and `resamples`,
      `num_*` counts, `verification` (None without `fars`): `num_same_pairs`,
      `num_different_pairs`, `rates`, a list of `far`, `tar`, `low`, `high`, `threshold`,
      `num_false_accepts`, and `roc`, a list of pairs of `[far, tar]`; `open_set` (None without
      `fpirs`): `absent_share`, `enrolled_share`, `num_enrolled`, `num_mated`, `num_non_mated`,
      `rates`, a list of `fpir`, `tpir`, `low`, `high`, `threshold`. Fractions, not percent.

    Raises:
      InputError: spaces or dimensions that do not fit, no rows, no labelled query, no pair of one
        label or of two, no mated or no non-mated query, bad rows.
    """
    a, b = query_gallery.column(query_column), gallery.column(gallery_column)
    check_spaces(a, b, allow_mismatch=allow_space_mismatch)
    for gallery_read in (query_gallery, gallery):
        gallery_read.check_rows()
    distance = distance or b.distance
    same = (query_gallery.path, query_gallery.version) == (gallery.path, gallery.version)
    columns = [gallery_column, query_column] if same else [gallery_column]
    rows = gallery.read(columns, with_labels=True)
    queries = rows if same else query_gallery.read([query_column], with_labels=True)
    if len(without):
        without = set(without)
        rows = rows.without(without)
        queries = rows if same else queries.without(without)
    labels, gallery_labels = queries.labels, rows.labels
    assert labels is not None and gallery_labels is not None
    num_labelled, num_stored_labelled = (
        sum(x is not None for x in side) for side in (labels, gallery_labels)
    )
    for count, table in ((num_labelled, query_gallery), (num_stored_labelled, gallery)):
        if not count:
            raise InputError(
                f"{table.path}: no row has a label; verification needs them, import the embeddings "
                "with import_gallery --labels into a new gallery"
            )
    if not same:
        own = exact.row_numbers(queries.ids, rows.ids)
        own[[label is None for label in labels]] = -1
        warning = same_ids.doubt(queries, a, rows, b, own)
        if warning:
            logging.warning("%s and %s: %s", query_gallery.path, gallery.path, warning)
    query = (queries.vectors[query_column], queries.ids, labels)
    stored = (rows.vectors[gallery_column], rows.ids, gallery_labels)
    pairs, search, draws = None, None, (bootstrap, seed)
    shares = {"absent_share": absent_share, "enrolled_share": enrolled_share}
    try:
        chosen = open_set.enrolled_rows(rows.ids, gallery_labels, queries.ids, **shares, seed=seed)
        if fpirs:  # First: it is the shorter one, and refuses more.
            bar = progress and f"{progress}, open set"
            searched = open_set.search(query, stored, chosen, distance, progress=bar)
            limits = open_set.intervals(searched, labels, fpirs, *draws) if bootstrap else None
            search = shares | _open_set(searched, fpirs, limits)
        if fars:
            verified = verification.verify(query, stored, fars, distance, progress=progress)
            limits = verification.tar_intervals(verified, labels, *draws) if bootstrap else None
            pairs = _verification(verified, limits)
    except InputError as error:
        raise InputError(f"{gallery.path}: {error.marked}") from None
    return {
        "query": two_columns.describe(query_gallery, a),
        "gallery": two_columns.describe(gallery, b),
        "num_queries": num_labelled,
        "num_queries_without_label": len(labels) - num_labelled,
        "num_gallery": num_stored_labelled,
        "num_gallery_without_label": len(rows) - num_stored_labelled,
        "distance": distance,
        "seed": seed,
        "level": 0.95 if bootstrap else None,
        "resamples": bootstrap,
        "verification": pairs,
        "open_set": search,
    }


def _verification(found: verification.Verification, limits) -> dict:
    rates = []
    for at, (far, accepts) in enumerate(zip(found.fars, found.false_accepts, strict=True)):
        if verification.allowed(far, found.num_different) == 0:
            _warn_few("FAR", far, found.num_different, "different-label pairs")
        rates.append(
            {
                "far": far,
                "tar": float(found.tar[at]),
                **_interval(limits, at),
                "threshold": float(found.thresholds[at]),
                "num_false_accepts": int(accepts),
            }
        )
    return {
        "num_same_pairs": int(found.num_same.sum()),
        "num_different_pairs": found.num_different,
        "rates": rates,
        "roc": found.roc.tolist(),
    }


def _open_set(found: open_set.OpenSet, fpirs, limits) -> dict:
    num_mated = int(found.mated.sum())
    num_non_mated = len(found.mated) - num_mated
    rates = []
    for at, fpir in enumerate(fpirs):
        if verification.allowed(fpir, num_non_mated) == 0:
            _warn_few("FPIR", fpir, num_non_mated, "non-mated queries")
        rates.append(
            {
                "fpir": fpir,
                "tpir": float(np.mean(found.found(fpir))),
                **_interval(limits, at),
                "threshold": found.threshold(fpir),
            }
        )
    return {
        "num_enrolled": found.num_enrolled,
        "num_mated": num_mated,
        "num_non_mated": num_non_mated,
        "rates": rates,
    }


def _interval(limits, at: int) -> dict:
    low, high = (float(side[at]) for side in limits) if limits else (None, None)
    return {"low": low, "high": high}


def _warn_few(name: str, rate: float, count: int, what: str) -> None:
    logging.warning(
        "%s %g of %d %s is less than one: the result is that of none; use more rows or a higher "
        "rate",
        *(name, rate, count, what),
    )


def summary(record: dict) -> str:
    """The rates of a record in percent, on one line."""
    parts = []
    for part, hits, alarms in (("verification", "tar", "far"), ("open_set", "tpir", "fpir")):
        for rate in (record[part] or {"rates": []})["rates"]:
            at = f"@{alarms.upper()} {rate[alarms]:g}"
            parts.append(f"{hits.upper()}{at} {100 * rate[hits]:.2f} %")
    case = f"{record['query']['column']}/{record['gallery']['column']}"
    return f"{case}: {', '.join(parts)} ({record['num_queries']} queries)"
