"""Verification and open-set search of a study's cases, each computed once.

Every labelled row of the evaluation is compared with every other one (1:1). For the open-set
search (1:N) of one table as queries and gallery, a seeded half of the identities is not enrolled:
their rows are the strangers. Half of the rows of each other identity are enrolled and searched by
its other half. All cases of a seed share the draw, which depends on ids and labels alone.
"""

from collections.abc import Collection
from pathlib import Path

from fct_tf.common import runs
from fct_tf.common.files import read_json, write_json
from fct_tf.experiments.cases import Case
from fct_tf.gallery.reader import Gallery
from fct_tf.retrieval.identities import verify

# What the record of a case has of it: the rest is known from the case itself.
_KEPT = ("verification", "open_set")


def of_case(
    query: Gallery,
    gallery: Gallery,
    case: Case,
    directory: Path,
    settings: dict,
    seed: int,
    left_out: Collection[str] = (),
) -> dict:
    """`verification` and `open_set` of a case, as `verify_identities.verify` has them.

    Args:
      query, gallery: tables with the case's columns.
      directory: where the result is kept; one with the same settings is taken from there.
      settings: all that the result depends on; `identities` is the experiment's section and
        `evaluation` has the distance and the resamples.
      seed: of the division and the resamples.
      left_out: ids of rows that are neither queries nor gallery rows.

    Raises:
      InputError: pairs or queries of one kind are missing, see `verify_identities.verify`.
    """
    section, evaluation = settings["identities"], settings["evaluation"]
    # Ranks do not matter here.
    settings = settings | {"evaluation": {k: evaluation[k] for k in ("distance", "bootstrap")}}
    output = directory / "identities.json"
    if not runs.begin(directory, output, settings, "skip", makes=(output.name,)):
        record = verify(
            query,
            case.query,
            gallery,
            case.gallery,
            **section,
            distance=evaluation["distance"],
            bootstrap=evaluation["bootstrap"],
            seed=seed,
            without=left_out,
            allow_space_mismatch=True,
        )
        write_json(output, {key: record[key] for key in _KEPT})
    return read_json(output)
