"""A whole model change: trains, embeds, upgrades, evaluates, and reports what it gained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.common.files import write_records
from fct_tf.common.provenance import library_versions
from fct_tf.data import datasets
from fct_tf.experiments import comparison, evaluation, stored
from fct_tf.experiments.across import approximate_search
from fct_tf.experiments.backfilling import backfilling_curves
from fct_tf.experiments.cases import cases, fused_queries, sample_name, versions
from fct_tf.experiments.chains import matrices, upgrade_in_turn
from fct_tf.experiments.evaluation import Tables
from fct_tf.experiments.examples import example_queries
from fct_tf.experiments.validate import training_order, validate
from fct_tf.gallery import table
from fct_tf.gallery.columns import MADE_BY_UPGRADE
from fct_tf.ingest import embed_images, match_dims
from fct_tf.models import artifact
from fct_tf.report import page
from fct_tf.training import backbone, transformation
from fct_tf.training import rows as training_rows
from fct_tf.training import side_info as side_info_training
from fct_tf.upgrade import sample
from fct_tf.upgrade.upgrade import Upgrade


def study(config: ConfigDict, workdir: str | Path, command: str = "") -> list[dict]:
    """Runs the experiment for all its seeds and returns the records of results.json.

    Raises:
      InputError: the experiment is not valid, data is missing, or another process is at work in
        `workdir`.
    """
    validate(config)
    if config.training.strategy == "multi_worker":
        raise InputError(
            "training.strategy=multi_worker: study runs on one machine; run the training commands "
            "on several, then study with another strategy: it skips what is finished"
        )
    if schema.starts_from_rows(config):
        config = stored.opened(config)
        validate(config)  # Chains ask for sizes, which only the tables have told.
    with runs.locked(workdir, str(workdir)):
        return _run(config, Path(workdir), command)


def _run(config: ConfigDict, workdir: Path, command: str) -> list[dict]:
    records: list[dict] = []
    for seed in config.seeds:
        logging.info("seed %d", seed)
        records += run_seed(config, workdir / f"seed_{seed}", seed)
    backfilling = backfilling_curves(config, workdir)
    searches = approximate_search(config, workdir)
    libraries = library_versions()
    chains = matrices(config, records)
    write_records(workdir / "results.json", records)
    if chains:
        write_records(workdir / "chains.json", chains)
    else:
        runs.remove(workdir / "chains.json")
    write_records(
        workdir / "run.json",
        {"command": command, "config": schema.to_dict(config), "versions": libraries},
    )
    page.write(
        workdir / "report",
        title=f"Model change: {config.name}",
        records=records,
        runs=list(_training_runs(config, workdir)),
        chains=chains,
        examples=example_queries(config, workdir / f"seed_{config.seeds[0]}"),
        backfilling=backfilling,
        across=searches,
        config=schema.to_dict(config),
        command=command,
        versions=libraries,
    )
    return records


def run_seed(config: ConfigDict, workdir: Path, seed: int) -> list[dict]:
    """All stages of one seed; returns its records."""
    columns: dict[str, Path] = {}
    if schema.starts_from_rows(config):
        tables = stored.tables(config, workdir)
    else:
        columns = _train_models(config, workdir, seed)
        tables = _embed(config, workdir, columns)
    # A transformation that corrects another one needs that one first.
    fitted = [name for name, section in config.transformations.items() if not section.compose]
    for name in sorted(fitted, key=lambda name: config.transformations[name].base):
        section = config.transformations[name]
        source, target = f"embedding_{section.source}", f"embedding_{section.target}"
        logging.info("%s: %s", name, _aim(section))
        side_info = "side_info" if section.side_info else ""
        pairs = _pairs_table(section, workdir, tables.gallery, seed)
        trained = transformation.train(
            config,
            name,
            str(tables.train),
            source,
            target,
            workdir / name,
            side_info=side_info,
            pairs=pairs,
            base=workdir / section.base if section.base else "",
            **_classifier(config, section, columns),
            seed=seed,
            existing="skip",
        )
        Upgrade(
            str(tables.query if section.side == "query" else tables.gallery),
            trained / "saved_model",
            f"embedding_{name}",
            source=source,
            side_info=side_info,
            pairs=pairs,
            existing="skip",
        ).run()
        # Of the gallery's rows too: so they are once they are re-embedded.
        both = {tables.query, tables.gallery} if schema.is_fused(section) else ()
        for path in sorted(both):
            Upgrade(
                str(path),
                trained / "saved_model",
                fused_queries(name),
                source=source,
                target=target,
                side="query",
                existing="skip",
            ).run()
    for name, section in config.transformations.items():
        if section.compose:
            upgrade_in_turn(config, name, workdir, tables.gallery)
    logging.info("evaluation: searching before and after the change, queries/gallery")
    evaluated = [evaluation.evaluate(config, workdir, tables, case, seed) for case in cases(config)]
    return comparison.compare(config, evaluated, seed)


def _part(config: ConfigDict, name: str) -> str:
    """What a model is in the change, for the log."""
    changes = [versions(section) for section in config.transformations.values()]
    if any(name == old for old, _ in changes):
        return "the embedding model of the stored gallery"
    if any(name == new for _, new in changes):
        return "the embedding model that is to take over"
    return "an embedding model"


def _aim(section: ConfigDict) -> str:
    """What a transformation is made for, for the log."""
    if schema.is_fused(section):
        return f"searching by the {section.source} and the {section.target} model together"
    if section.base:
        return f"correcting {section.base} by rows that were embedded anew"
    stored = f"{section.source} embeddings" + " and side-information" * section.side_info
    return f"learning to turn {stored} into {section.target} embeddings"


def _classifier(config: ConfigDict, section: ConfigDict, columns: dict[str, Path]) -> dict:
    """The new model's classifier, where a transformation's training asks for it."""
    if not section.discriminative_weight:
        return {}
    if schema.starts_from_rows(config):
        model = config.models[section.target]
        return {"classifier": model.classifier, "classifier_labels": model.classifier_labels}
    return {"classifier": columns[f"embedding_{section.target}"]}


def _train_models(config: ConfigDict, workdir: Path, seed: int) -> dict[str, Path]:
    """Trains what embeds images, in the order of their lives: artifacts by column."""
    artifacts: dict[str, Path] = {}
    oldest, *later = training_order(config)
    _train_model(config, oldest, workdir, seed, artifacts)
    if config.side_info.method != "none":
        logging.info("side_info: training what is stored beside embeddings, for models to come")
        directory = workdir / "side_info"
        artifacts["side_info"] = side_info_training.train(
            config, directory, seed=seed, existing="skip"
        )
    for name in later:
        _train_model(config, name, workdir, seed, artifacts)
    logging.info("rows: embedding each image with all models, once; from here on none is read")
    return artifacts


def _train_model(
    config: ConfigDict, name: str, workdir: Path, seed: int, made: dict[str, Path]
) -> None:
    """Trains one model and adds it to `made`, which has those that it is made compatible with."""
    section = config.models[name].compatibility
    fits = section.method != "none"
    fitting = f", comparable with {section.old}" if fits else ""
    logging.info("%s: training %s%s", name, _part(config, name), fitting)
    older: dict[str, Any] = {}
    if fits:
        column = f"embedding_{section.old}"
        rows = _embed_table(
            config,
            workdir / "rows" / "train",
            config.dataset.train,
            None,
            {column: made[column]},
        )
        older = {"old": made[column], "gallery": str(rows), "column": column}
    made[f"embedding_{name}"] = backbone.train(
        config, name, workdir / name, seed=seed, existing="skip", **older
    )


def _pairs_table(section: ConfigDict, workdir: Path, gallery_path: Path, seed: int) -> str:
    """The table of the gallery rows that the new model re-embeds; empty if there are none.

    Every row has been embedded for the evaluation already: the sample is a copy.
    """
    if not section.pairs.share:
        return ""
    directory = workdir / "rows" / sample_name(section)
    gallery = table.open_gallery(str(gallery_path))
    stored = {
        name: column.space
        for name, column in gallery.columns.items()
        if column.kind not in MADE_BY_UPGRADE and not match_dims.is_matched(column)
    }
    path = directory / "pairs.lance"
    ids = training_rows.ids_sha256(gallery)
    # "by" was a column to draw by: with it, samples made so far are still recognised.
    settings = {"columns": stored, "rows": ids, "by": "", "seed": seed}
    if not runs.begin(directory, path, settings, "skip", makes=(path.name,)):
        count = sample.count_of(gallery.num_rows, share=section.pairs.share)
        drawn = sample.draw(gallery, count, seed=seed)
        sample.copy_rows(gallery, drawn, str(path), overwrite=True)
    return str(path)


def _embed(config: ConfigDict, workdir: Path, columns: dict[str, Path]) -> Tables:
    """Embeds the training, gallery and query images with every model."""
    paths = {}
    for role in ("train", "gallery", "query"):
        source = config.dataset[role]
        if not source:
            continue
        subset = None if role == "train" else config.dataset.gallery_classes
        paths[role] = _embed_table(config, workdir / "rows" / role, source, subset, columns)
    return Tables(paths["train"], paths["gallery"], paths.get("query", paths["gallery"]))


def _embed_table(
    config: ConfigDict,
    directory: Path,
    source: str,
    classes: ConfigDict | None,
    columns: dict[str, Path],
) -> Path:
    """Embeds one image set with every model into `directory`/gallery.lance."""
    subset = None if classes is None else schema.class_subset(classes, "dataset.gallery_classes")
    arguments = schema.load_arguments(config.dataset)
    images = datasets.load(source, classes=subset, **arguments)
    settings = {"images": images.fingerprint}
    path = directory / "gallery.lance"
    makes = (path.name, f"{path.name}.jobs")
    runs.begin(directory, None, settings, "skip", makes=makes)
    for column, model in columns.items():
        space = artifact.load(model).space
        existing = table.open_gallery(str(path)).columns if path.exists() else {}
        if column in existing and existing[column].space == space:
            continue
        embed_images.embed_gallery(
            str(path),
            images,
            str(model),
            column,
            batch_size=config.training.embed_batch_size,
            overwrite=True,
        )
    return path


def _training_runs(config: ConfigDict, workdir: Path) -> Iterator[page.TrainingRun]:
    names = [*config.models, *config.transformations]
    if config.side_info.method != "none":
        names.insert(len(config.models), "side_info")
    for seed in config.seeds:
        for name in names:
            directory = workdir / f"seed_{seed}" / name
            metrics = directory / "metrics.jsonl"
            if not metrics.exists():  # Solved for, not trained.
                continue
            seconds = json.loads(metrics.read_text().splitlines()[-1])["seconds"]
            facts = artifact.load(directory / "artifact").info["facts"]
            yield page.TrainingRun(name, seed, metrics, {**facts, "duration_s": seconds})
