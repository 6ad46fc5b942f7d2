"""The evaluation of one case of a study, a stage like the others: a finished one is skipped."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import runs
from fct_tf.common.files import read_json, sha256_json, write_json
from fct_tf.experiments import comparison, costs, identities
from fct_tf.experiments.cases import Case
from fct_tf.gallery import table
from fct_tf.ingest import match_dims
from fct_tf.retrieval import two_columns
from fct_tf.training import rows as training_rows


@dataclass(frozen=True)
class Tables:
    """Where a seed's rows are: of training, of the gallery, of the queries."""

    train: Path
    gallery: Path
    query: Path


def made_from(path: Path) -> str:
    """The fingerprint of the images, or of the stored rows, that a study's table was made from."""
    settings = read_json(path.parent / runs.SETTINGS)
    return settings["images"] if "images" in settings else sha256_json(settings)


def distance_of(config: ConfigDict, gallery: table.Gallery, case: Case) -> str:
    """By what the rows of a case are compared: fused ones by what their columns say."""
    if case.fusion:
        return gallery.column(case.gallery).distance
    return config.evaluation.distance


def evaluate(
    config: ConfigDict, workdir: Path, tables: Tables, case: Case, seed: int
) -> comparison.Evaluated:
    """The record of a case, its cost and what each query achieved.

    Makes WORKDIR/evaluation/NAME with results.json and per_query.npz.
    """
    gallery = table.open_gallery(str(tables.gallery))
    if case.matched:
        dim = gallery.column(case.gallery).dim
        match_dims.add_matched(tables.query, case.matched, dim, case.query)
    query = table.open_gallery(str(tables.query))
    images = {"query": made_from(tables.query), "gallery": made_from(tables.gallery)}
    left_out: Collection[str] = ()
    if case.scoring == "remaining":
        pairs = workdir / "rows" / case.sample / "pairs.lance"
        left_out = table.open_gallery(str(pairs)).read([]).ids
    evaluation = schema.to_dict(config.evaluation)
    evaluation["distance"] = distance_of(config, gallery, case)
    # These have stages of their own, or say which cases there are.
    identity_settings = evaluation.pop("identities")
    del evaluation["backfilling"], evaluation["scann"], evaluation["more_cases"]
    settings = {
        "images": images,
        "query": query.column(case.query).space,
        "gallery": gallery.column(case.gallery).space,
        "evaluation": evaluation,
        "rows": [query.num_rows, gallery.num_rows],
        **case.keys,
        **({"left_out": sha256_json(sorted(left_out))} if len(left_out) else {}),
    }
    directory = workdir / "evaluation" / re.sub(r"[^\w.]+", "_", case.name).strip("_")
    output, per_query = directory / "results.json", directory / "per_query.npz"
    order = training_rows.ids_sha256(query)
    done = runs.begin(directory, output, settings, "skip", makes=(output.name, per_query.name))
    # Without results by query, or with those of other rows, the evaluation is repeated.
    achieved = comparison.load_per_query(per_query, order) if done else None
    if achieved is None:
        logging.info("evaluating %s", case.name)
        record, achieved, _ = two_columns.evaluate_queries(
            query,
            case.query,
            gallery,
            case.gallery,
            ks=tuple(config.evaluation.ks),
            distance=evaluation["distance"],
            bootstrap=config.evaluation.bootstrap,
            seed=seed,
            without=left_out,
            # The untransformed pair is evaluated to show that it is at chance.
            allow_space_mismatch=True,
        )
        comparison.save_per_query(per_query, achieved, order)
        write_json(output, {**record, **case.keys, "seed": seed})
    record = read_json(output)
    if identity_settings["fars"] or identity_settings["fpirs"]:
        settings["identities"] = identity_settings
        record["identities"] = identities.of_case(
            query, gallery, case, directory / "identities", settings, seed, left_out
        )
    cost = costs.of_case(config, workdir, query, gallery, case)
    return comparison.Evaluated(case, {**record, **({"cost": cost} if cost else {})}, achieved)
