"""The backfilling curves of a study: each transformation by each policy, finished ones skipped."""

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from fct_tf.backfill import evaluate
from fct_tf.common import runs
from fct_tf.common.files import read_json, write_json, write_records
from fct_tf.experiments.cases import Case, cases
from fct_tf.experiments.evaluation import distance_of, made_from
from fct_tf.gallery import table


def backfilling_curves(config: ConfigDict, workdir: Path) -> list[dict]:
    """Records of all curves of all seeds, also written to WORKDIR/backfilling.json.

    Transformations with pairs are left out: a part of their gallery is re-embedded already. In a
    fused search a re-embedded row is that of both embeddings, as its queries are.

    Returns:
      Records of `policy_curves.evaluate` with the transformation as `method`, and `case`. Empty,
      and no file, if the experiment asks for no policies.
    """
    output, records = workdir / "backfilling.json", []
    section = config.evaluation.backfilling
    names = section.transformations or config.transformations
    for seed in config.seeds if section.policies else ():
        for case in cases(config):
            if case.gallery.removeprefix("embedding_") in names and not case.scoring:
                records += _curves(config, workdir / f"seed_{seed}", case, seed)
    if records:
        write_records(output, records)
    else:
        runs.remove(output)
    return records


def _curves(config: ConfigDict, workdir: Path, case: Case, seed: int) -> list[dict]:
    paths = {"gallery": workdir / "rows" / "gallery" / "gallery.lance"}
    paths["query"] = paths["gallery"]
    if config.dataset.query:
        paths["query"] = workdir / "rows" / "query" / "gallery.lance"
    gallery, query = (table.open_gallery(str(paths[role])) for role in ("gallery", "query"))
    section = config.evaluation.backfilling
    policies = list(section.policies)
    if not evaluate.has_uncertainty(gallery, case.gallery) and "uncertainty" in policies:
        policies.remove("uncertainty")
        logging.info("%s has no uncertainty to backfill by", case.name)
    if not policies:
        return []
    distance = distance_of(config, gallery, case)
    corrected = [policy for policy in section.corrected if policy in policies]
    settings = {
        "images": {role: made_from(path) for role, path in paths.items()},
        "query": query.column(case.query).space,
        "transformed": gallery.column(case.gallery).space,
        "target": gallery.column(case.query).space,
        "rows": [query.num_rows, gallery.num_rows],
        "policies": policies,
        "random_orders": section.random_orders if "random" in policies else None,
        "ks": list(config.evaluation.ks),
        "distance": distance,
        "method": case.method,
        "case": case.name,
        "corrected": corrected,
    }
    directory = workdir / "evaluation" / f"backfilling_{case.method}"
    output = directory / "curves.json"
    if not runs.begin(directory, output, settings, "skip", makes=(output.name,)):
        logging.info("backfilling curves of %s", case.name)
        records = evaluate.evaluate(
            query,
            case.query,
            gallery,
            case.gallery,
            case.query,
            policies,
            random_orders=section.random_orders,
            ks=tuple(config.evaluation.ks),
            distance=distance,
            seed=seed,
            allow_space_mismatch=True,  # As in the evaluation of the case.
            corrected=corrected,
            progress=f"backfilling {case.name}",
        )
        write_json(output, [{**record, **case.keys} for record in records])
    return read_json(output)
