"""Approximate search through a study's model changes, a stage like the others."""

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.ann import across, benchmark_data
from fct_tf.common import runs
from fct_tf.common.files import read_json, write_json
from fct_tf.experiments.ann_benchmark import by_old_index
from fct_tf.experiments.cases import cases, versions
from fct_tf.experiments.evaluation import made_from
from fct_tf.gallery import table
from fct_tf.upgrade import rerank

# Rows that are ordered for a query of a fused search whose own rows are not stored.
RERANKED = 100


def approximate_search(config: ConfigDict, workdir: Path) -> list[dict]:
    """Records of all seeds, also written to WORKDIR/across.json.

    Returns:
      Records of `across.measure` with the transformation as `method`, and `seed`. Empty, and no
      file, if the experiment names no transformation for it.
    """
    output = workdir / "across.json"
    records = [
        record
        for seed in config.seeds
        for name in config.evaluation.scann.transformations
        for record in _measured(config, workdir / f"seed_{seed}", name, seed)
    ]
    if records:
        write_json(output, records)
    else:
        runs.remove(output)
    return records


def change(config: ConfigDict, name: str) -> list[across.Case]:
    """old/old, the case of the transformation, new/new, as the study names them.

    A fused search ends where both embeddings of every row are in the gallery.
    """
    sides = [f"embedding_{version}" for version in versions(config.transformations[name])]
    by_columns = {(case.query, case.gallery): case for case in cases(config) if not case.sample}
    middle = [case for case in cases(config) if case.method == name and case.scoring != "remaining"]
    chosen = [by_columns[sides[0], sides[0]], *middle[:1], by_columns[sides[1], sides[1]]]
    across_cases = [across.Case(case.name, case.query, case.gallery) for case in chosen]
    if middle[0].fusion:
        both = "+".join(versions(config.transformations[name]))
        column = middle[0].query
        across_cases[-1] = across.Case(f"{both}/{both} {name}", column, column)
    return across_cases


def _measured(config: ConfigDict, workdir: Path, name: str, seed: int) -> list[dict]:
    path = workdir / "rows" / "gallery" / "gallery.lance"
    query_path = workdir / "rows" / "query" / "gallery.lance" if config.dataset.query else path
    gallery, query = table.open_gallery(str(path)), table.open_gallery(str(query_path))
    section, asked = config.evaluation.scann, change(config, name)
    settings = {
        "images": {"query": made_from(query_path), "gallery": made_from(path)},
        "cases": [
            [case.name, query.column(case.query).space, gallery.column(case.gallery).space]
            for case in asked
        ],
        "rows": [query.num_rows, gallery.num_rows],
        "scann": {**schema.to_dict(section), "transformations": name},
        "distance": config.evaluation.distance,
    }
    recipe = config.transformations[name]
    if schema.is_fused(recipe):
        settings["rerank"] = RERANKED
    directory = workdir / "evaluation" / f"across_{name}"
    output = directory / "across.json"
    if not runs.begin(directory, output, settings, "skip", makes=(output.name,)):
        logging.info("approximate search through the change by %s", name)
        if schema.is_fused(recipe):
            old, new = (f"embedding_{version}" for version in versions(recipe))
            how = rerank.reranking(
                str(workdir / name),
                *(RERANKED, query, old, gallery, old),
                target=new,
                side_info="side_info" if recipe.side_info else "",
                allow_space_mismatch=True,
            )
            asked[1] = by_old_index(asked[1], how)
        queries, rows, distance = benchmark_data.of_cases(
            gallery,
            asked,
            query,
            num_queries=section.num_queries,
            distance=config.evaluation.distance,
            seed=seed,
            allow_space_mismatch=True,  # As in the evaluation of the cases.
        )
        ks = tuple(k for k in across.Measuring.ks if k < len(rows)) or (1,)
        measuring = across.Measuring(k=max(k for k in ks if k <= 10), ks=ks)
        records = across.measure(
            *(queries, rows, asked, distance),
            shares=tuple(section.backfilled),
            measuring=measuring,
            seed=seed,
            progress=f"across {name}",
        )
        write_json(output, [{**record, "method": name, "seed": seed} for record in records])
    return read_json(output)
