"""Runs a whole model change: trains, embeds, upgrades, evaluates, and reports what it gained.

Every stage that has finished with the same settings and inputs is skipped, so the command can be
stopped and started again, or run again after a change of the experiment.

  python -m fct_tf.study --config=configs/glyphs.py --workdir=runs/glyphs

Leaves WORKDIR/results.json (one record per case and seed), WORKDIR/run.json (settings, versions,
command) and WORKDIR/report/index.html, and WORKDIR/backfilling.json where the experiment asks for
backfilling curves.
"""

import json
import re
import shlex
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from fct_tf import cli, embed_gallery, runs, train_backbone, train_side_info, train_transformation
from fct_tf import config as schema
from fct_tf.cases import Case, cases, sample_name
from fct_tf.curves import backfilling_curves
from fct_tf.data import datasets
from fct_tf.errors import InputError
from fct_tf.examples import example_queries
from fct_tf.files import make_dir, read_json, sha256_json, write_json
from fct_tf.gallery import sample, table, upgrade
from fct_tf.models import artifact
from fct_tf.provenance import library_versions
from fct_tf.report import page, verdict
from fct_tf.retrieval import exact
from fct_tf.training import rows as training_rows
from fct_tf.validation import training_order, validate


@dataclass(frozen=True)
class Tables:
    """Where a seed's rows are: training images, gallery images, query images."""

    train: Path
    gallery: Path
    query: Path


def study(config: ConfigDict, workdir: str | Path, command: str = "") -> list[dict]:
    """Runs the experiment for all its seeds and returns the records of results.json.

    Raises:
      InputError: the experiment is not valid, or data is missing.
    """
    validate(config)
    if config.training.strategy == "multi_worker":
        raise InputError(
            "training.strategy=multi_worker: study runs on one machine; run the training doors on "
            "several, then study with another strategy: it skips what is finished"
        )
    workdir = make_dir(workdir)
    records: list[dict] = []
    for seed in config.seeds:
        logging.info("seed %d", seed)
        records += run_seed(config, workdir / f"seed_{seed}", seed)
    backfilling = backfilling_curves(config, workdir)
    versions = library_versions()
    write_json(workdir / "results.json", records)
    write_json(
        workdir / "run.json",
        {"command": command, "config": schema.to_dict(config), "versions": versions},
    )
    page.write(
        workdir / "report",
        title=f"Model change: {config.name}",
        records=records,
        runs=list(_training_runs(config, workdir)),
        examples=example_queries(config, workdir / f"seed_{config.seeds[0]}"),
        backfilling=backfilling,
        config=schema.to_dict(config),
        command=command,
        versions=versions,
    )
    return records


def run_seed(config: ConfigDict, workdir: Path, seed: int) -> list[dict]:
    """All stages of one seed; returns its records."""
    models = _train_models(config, workdir, seed)
    columns = {f"embedding_{name}": path for name, path in models.items()}
    if config.side_info.method != "none":
        columns["side_info"] = train_side_info.train(
            config, workdir / "side_info", seed=seed, existing="skip"
        )
    tables = _embed(config, workdir, columns)
    # A transformation that corrects another one needs that one first.
    for name in sorted(config.transformations, key=lambda name: config.transformations[name].base):
        section = config.transformations[name]
        source, target = f"embedding_{section.source}", f"embedding_{section.target}"
        side_info = "side_info" if section.side_info else ""
        pairs = _pairs_table(section, workdir, tables.gallery, seed)
        trained = train_transformation.train(
            config,
            name,
            str(_views_table(config, name, workdir, columns, seed) or tables.train),
            source,
            target,
            workdir / name,
            side_info=side_info,
            pairs=pairs,
            base=workdir / section.base if section.base else "",
            classifier=columns[target] if section.discriminative_weight else "",
            seed=seed,
            existing="skip",
        )
        upgrade.upgrade(
            str(tables.gallery),
            trained / "saved_model",
            f"embedding_{name}",
            source=source,
            side_info=side_info or None,
            pairs=pairs,
            existing="skip",
        )
    return [_evaluate(config, workdir, tables, case, seed) for case in cases(config)]


def _train_models(config: ConfigDict, workdir: Path, seed: int) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for name in training_order(config):
        section = config.models[name].compatibility
        older: dict[str, Any] = {}
        if section.method != "none":
            column = f"embedding_{section.old}"
            rows = _embed_table(
                config,
                workdir / "rows" / "train",
                config.dataset.train,
                None,
                {column: models[section.old]},
            )
            older = {"old": models[section.old], "gallery": str(rows), "column": column}
        models[name] = train_backbone.train(
            config, name, workdir / name, seed=seed, existing="skip", **older
        )
    return models


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
        if column.kind != upgrade.TRANSFORMED
    }
    by = f"embedding_{section.source}" if section.pairs.draw == "spread" else ""
    path = directory / "pairs.lance"
    ids = training_rows.ids_sha256(gallery)
    settings = {"columns": stored, "rows": ids, "by": by, "seed": seed}
    if not runs.begin(directory, path, settings, "skip", makes=(path.name,)):
        count = sample.count_of(gallery.num_rows, share=section.pairs.share)
        drawn = sample.draw(gallery, count, method=section.pairs.draw, by=by, seed=seed)
        sample.copy_rows(gallery, drawn, str(path), overwrite=True)
    return str(path)


def _embed(config: ConfigDict, workdir: Path, columns: dict[str, Path]) -> Tables:
    """Embeds the training, gallery and query images with every model."""
    made = {}
    for role in ("train", "gallery", "query"):
        source = config.dataset[role]
        if not source:
            continue
        subset = None if role == "train" else config.dataset.gallery_classes
        made[role] = _embed_table(config, workdir / "rows" / role, source, subset, columns)
    return Tables(made["train"], made["gallery"], made.get("query", made["gallery"]))


def _embed_table(
    config: ConfigDict,
    directory: Path,
    source: str,
    classes: ConfigDict | None,
    columns: dict[str, Path],
    **view_settings,
) -> Path:
    """Embeds one image set with every model into `directory`/gallery.lance."""
    subset = None if classes is None else schema.class_subset(classes, "dataset.gallery_classes")
    arguments = schema.load_arguments(config.dataset)
    images = datasets.load(source, classes=subset, **arguments)
    augment = view_settings.get("augment")
    settings = {
        "images": images.fingerprint,
        **view_settings,
        "augment": None if augment is None else schema.to_dict(augment),
    }
    path = directory / "gallery.lance"
    makes = (path.name, f"{path.name}.jobs")
    runs.begin(directory, directory / "never", settings, "skip", makes=makes)
    for column, model in columns.items():
        space = artifact.load(model).space
        existing = table.open_gallery(str(path)).columns if path.exists() else {}
        if column in existing and existing[column].space == space:
            continue
        embed_gallery.embed_gallery(
            str(path),
            images,
            str(model),
            column,
            batch_size=config.training.embed_batch_size,
            overwrite=True,
            **view_settings,
        )
    return path


def _views_table(
    config: ConfigDict, name: str, workdir: Path, columns: dict[str, Path], seed: int
) -> Path | None:
    """The table of augmented views that a transformation trains on, if it wants any."""
    section = config.transformations[name]
    if not section.views:
        return None
    return _embed_table(
        config,
        workdir / "rows" / f"train_views_{name}",
        config.dataset.train,
        None,
        columns,
        augment=section.views_augment,
        views=section.views,
        seed=seed,
    )


def _evaluate(config: ConfigDict, workdir: Path, tables: Tables, case: Case, seed: int) -> dict:
    query, gallery = table.open_gallery(str(tables.query)), table.open_gallery(str(tables.gallery))
    images = {
        role: read_json(Path(path).parent / runs.SETTINGS)["images"]
        for role, path in (("query", tables.query), ("gallery", tables.gallery))
    }
    left_out: Collection[str] = ()
    if case.scoring == "remaining":
        pairs = workdir / "rows" / case.sample / "pairs.lance"
        left_out = table.open_gallery(str(pairs)).read([]).ids
    evaluation = schema.to_dict(config.evaluation)
    settings = {
        "images": images,
        "query": query.column(case.query).space,
        "gallery": gallery.column(case.gallery).space,
        "evaluation": {key: value for key, value in evaluation.items() if key != "backfilling"},
        "rows": [query.num_rows, gallery.num_rows],
        **case.keys,
        **({"left_out": sha256_json(sorted(left_out))} if len(left_out) else {}),
    }
    directory = workdir / "evaluation" / re.sub(r"[^\w.]+", "_", case.name).strip("_")
    output = directory / "results.json"
    if not runs.begin(directory, output, settings, "skip", makes=(output.name,)):
        record = exact.evaluate(
            query,
            case.query,
            gallery,
            case.gallery,
            ks=tuple(config.evaluation.ks),
            distance=config.evaluation.distance,
            bootstrap=config.evaluation.bootstrap,
            seed=seed,
            without=left_out,
            # The untransformed pair is evaluated to show that it is at chance.
            allow_space_mismatch=True,
        )
        write_json(output, {**record, **case.keys, "seed": seed})
    return read_json(output)


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


def define_flags(values: flags.FlagValues) -> None:
    """The door's flags."""
    cli.define_config(values)
    flags.DEFINE_string(
        "workdir", None, "Directory of everything made.", required=True, flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Runs the experiment and prints its table."""
    command = shlex.join(["python", "-m", "fct_tf.study", *sys.argv[1:]])
    records = study(values.config, values.workdir, command)
    print(verdict.text(records))
    print(f"report: {Path(values.workdir) / 'report' / 'index.html'}")


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
