"""Studies that start from tables of stored embeddings: no image is read, no model trained.

`dataset.train`, `dataset.gallery` and perhaps `dataset.query` are `rows:GALLERY`; each of `models`
(and the side-information) is a column that all of them have. A seed works on copies of these
columns, under the names that they have where they are embedded by the study itself, so that every
later stage is the same and the tables of the user stay as they are.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.config.values import ROWS
from fct_tf.experiments.evaluation import Tables
from fct_tf.gallery import fragments, table
from fct_tf.gallery.columns import MADE_BY_UPGRADE
from fct_tf.training.frozen_classifier import open_classifier

ROLES = ("train", "gallery", "query")


def check_start(config: ConfigDict) -> None:
    """Checks that an experiment starts from rows or from images, and has no setting of the other.

    Raises:
      InputError: names the key.
    """
    from_rows = schema.starts_from_rows(config)
    start = f"dataset.train is {config.dataset.train!r}"
    for role in ROLES:
        source = config.dataset[role]
        if source and source.startswith(ROWS) != from_rows:
            raise InputError(
                f"dataset.{role}: {source!r}, but {start}; name tables of rows everywhere, or "
                "images everywhere"
            )
    for name, section in config.models.items():
        if ("column" in section) != from_rows:
            problem, remedy = "is a stored column", "name rows:GALLERY there, or use schema.model()"
            if from_rows:
                problem, remedy = "is a model to train", 'describe it with schema.stored("COLUMN")'
            raise InputError(f"models.{name}: {problem}, but {start}; {remedy}")
    method = config.side_info.method
    if from_rows and method not in ("stored", "none"):
        raise InputError(
            f"side_info.method: {method} is trained on images, but {start}; describe it with "
            'schema.stored_side_info("COLUMN"), or set it to none'
        )
    if method == "stored" and not (from_rows and "column" in config.side_info):
        remedy = 'stored_side_info("COLUMN")' if from_rows else "side_info()"
        raise InputError(f"side_info.method: stored, and {start}; describe it with schema.{remedy}")
    if from_rows:
        _check_no_image_settings(config, start)


def _check_no_image_settings(config: ConfigDict, start: str) -> None:
    default = schema.to_dict(schema.experiment(""))
    given = schema.to_dict(config)
    of_images = [("dataset", key) for key in default["dataset"] if key not in ROLES]
    for part, key in [*of_images, ("training", "embed_batch_size")]:
        if given[part].get(key) != default[part][key]:
            raise InputError(f"{part}.{key}: is a setting of images, but {start}; leave it out")
    for name, section in config.transformations.items():
        target = config.models.get(section.get("target"))
        if section.get("discriminative_weight") and target and not target.classifier:
            raise InputError(
                f"transformations.{name}.discriminative_weight: models.{section.target} has no "
                f"classifier; name its file in models.{section.target}.classifier, or set it to 0"
            )


def opened(config: ConfigDict) -> ConfigDict:
    """The experiment with the sizes of its columns, once all that it reads has been looked at.

    Raises:
      InputError: a table or column that is missing or differs from the others, a classifier that
        does not fit, no label to evaluate by.
    """
    config = config.copy_and_resolve_references()
    galleries = {role: _open(config, role) for role in ROLES if config.dataset[role]}
    spaces: dict[str, str] = {}
    distances = {}
    for key, name, column_name in _columns(config):
        columns = {}
        for role, gallery in galleries.items():
            if column_name not in gallery.columns:
                existing = ", ".join(gallery.columns) or "none"
                raise InputError(
                    f"{key}.column: {gallery.path} (dataset.{role}) has no embedding column "
                    f"{column_name!r}; there are: {existing}"
                )
            columns[role] = gallery.column(column_name)
        column = columns["train"]
        for role, other in columns.items():
            if other.space != column.space or other.dim != column.dim:
                raise InputError(
                    f"{key}.column: {column_name!r} is of {column.model} ({column.space}, "
                    f"{column.dim} values) in {galleries['train'].path}, of {other.model} "
                    f"({other.space}, {other.dim} values) in {galleries[role].path}; name tables "
                    "that one model has embedded"
                )
        if key == "side_info":
            continue
        if column.space in spaces:
            raise InputError(
                f"{key}.column: {column_name!r} lies in the space of {spaces[column.space]} (model "
                f"{column.model}); name a column of another model"
            )
        spaces[column.space] = key
        distances[name] = column.distance
        _fill_in(config.models[name], key, column)
    distance = config.evaluation.distance
    if distances and distance not in distances.values():
        stored_distance = next(iter(distances.values()))
        raise InputError(
            f"evaluation.distance: {distance}, but the columns of {', '.join(distances)} are "
            f"compared by {stored_distance}; set it to {stored_distance}"
        )
    queries = galleries.get("query", galleries["gallery"])
    if not any(_has_label(rows) for rows in queries.batches([], 65536, with_labels=True)):
        raise InputError(
            f"{queries.path}: no row has a label, and a study measures by labels; give the rows "
            "some, or judge an upgrade without them by the command verdict"
        )
    return config


def tables(config: ConfigDict, workdir: Path) -> Tables:
    """Copies the columns of the experiment to WORKDIR/rows; a table that is there is taken."""
    roles = [role for role in ROLES if config.dataset[role]]
    paths = {role: _copy(config, role, workdir / "rows" / role) for role in roles}
    return Tables(paths["train"], paths["gallery"], paths.get("query", paths["gallery"]))


def _copy(config: ConfigDict, role: str, directory: Path) -> Path:
    gallery = _open(config, role)
    names = {name: column for _, name, column in _columns(config, embedded=True)}
    columns = [_named(gallery.column(stored), name) for name, stored in names.items()]
    settings = {
        "rows": fragments.files_of(gallery.dataset, ["id", "label", *names.values()]),
        "columns": {
            column.name: [column.space, column.distance, list(column.compatible_with)]
            for column in columns
        },
    }
    path = directory / "gallery.lance"
    makes = (path.name, f"{path.name}.jobs")
    if not runs.begin(directory, path, settings, "skip", makes=makes):
        logging.info("dataset.%s: %d rows of %s", role, gallery.num_rows, gallery.path)
        batches = (
            table.Rows(
                rows.ids, rows.labels, {name: rows.vectors[old] for name, old in names.items()}
            )
            for rows in gallery.batches([*dict.fromkeys(names.values())], with_labels=True)
        )
        table.create(path, batches, columns)
    return path


def _named(column: table.Column, name: str) -> table.Column:
    # What the study did not transform itself is data to it: pairs are copies with all of it.
    kind = "imported" if column.kind in MADE_BY_UPGRADE else column.kind
    return dataclasses.replace(column, name=name, kind=kind)


def _columns(config: ConfigDict, embedded: bool = False) -> Iterator[tuple[str, str, str]]:
    """(key, name, column) of every model and of the side-information; as `embedded`, the name is
    that of the study's own column."""
    for name, section in config.models.items():
        yield f"models.{name}", f"embedding_{name}" if embedded else name, section.column
    if config.side_info.method == "stored":
        yield "side_info", "side_info", config.side_info.column


def _open(config: ConfigDict, role: str) -> table.Gallery:
    try:
        gallery = table.open_gallery(config.dataset[role].removeprefix(ROWS))
        gallery.check_rows()
    except InputError as error:
        raise InputError(f"dataset.{role}: {error.marked}") from None
    return gallery


def _fill_in(section: ConfigDict, key: str, column: table.Column) -> None:
    """The size of a model's column; its classifier is read once, before hours of work."""
    if section.dim not in (None, column.dim):
        raise InputError(
            f"{key}.dim: {section.dim}, but {column.name!r} has {column.dim}; leave it out"
        )
    section.dim = column.dim
    if section.classifier:
        try:
            open_classifier(section.classifier, column, section.classifier_labels)
        except InputError as error:
            raise InputError(f"{key}.classifier: {error.marked}") from None


def _has_label(rows: table.Rows) -> bool:
    return rows.labels is not None and any(label is not None for label in rows.labels)
