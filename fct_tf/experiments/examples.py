"""Example queries of a study with their nearest images, before and after an upgrade."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_tf import config as schema
from fct_tf.data import datasets
from fct_tf.experiments.cases import cases
from fct_tf.experiments.evaluation import distance_of
from fct_tf.gallery import table
from fct_tf.report.pictures import Example
from fct_tf.retrieval import exact

EXAMPLES, NEIGHBOURS, EXAMPLE_SIZE = 8, 5, 96


def example_queries(config: ConfigDict, workdir: Path) -> list[Example]:
    """A seeded sample of queries with their nearest rows before and after an upgrade.

    Shown is a transformation with side-information, where the experiment has one. A study that
    starts from rows has no images to show.
    """
    if not config.transformations or schema.starts_from_rows(config):
        return []
    name = max(config.transformations, key=lambda key: config.transformations[key].side_info)
    case = next(case for case in cases(config) if case.method == name)
    gallery_path = workdir / "rows" / "gallery" / "gallery.lance"
    query_path = gallery_path if not config.dataset.query else workdir / "rows/query/gallery.lance"
    old = f"embedding_{case.gallery_model}"
    columns = {old: old, case.query: case.gallery}
    opened = table.open_gallery(str(gallery_path))
    query = table.open_gallery(str(query_path)).read([*columns], with_labels=True)
    gallery = opened.read([*dict.fromkeys(columns.values())], with_labels=True)
    assert query.labels is not None and gallery.labels is not None  # with_labels
    labels = {"query": query.labels, "gallery": gallery.labels}
    chosen = np.random.default_rng(0).permutation(len(query.ids))[:EXAMPLES]
    row_of = {value: row for row, value in enumerate(gallery.ids)}
    itself = np.array([row_of.get(query.ids[i], -1) for i in chosen], np.int32)
    distances = [config.evaluation.distance, distance_of(config, opened, case)]
    nearest = [
        exact.search(
            query.vectors[q][chosen],
            gallery.vectors[g],
            min(NEIGHBOURS, len(gallery.ids) - 1),
            distance,
            exclude=itself,
        )[0]
        for (q, g), distance in zip(columns.items(), distances, strict=True)
    ]
    pictures = _pictures(config, config.dataset.gallery, set(gallery.ids[np.ravel(nearest)]))
    pictures |= _pictures(
        config, config.dataset.query or config.dataset.gallery, set(query.ids[chosen])
    )

    def shown(rows):
        return [(pictures[gallery.ids[row]], str(labels["gallery"][row])) for row in rows]

    return [
        Example(
            *(pictures[query.ids[i]], str(labels["query"][i]), shown(before), shown(after)),
            case=case.name,
        )
        for i, before, after in zip(chosen, *nearest, strict=True)
    ]


def _pictures(config: ConfigDict, source: str, ids: set[str]) -> dict[str, np.ndarray]:
    """The images with these ids, uint8 [h, w, 3], at a size to look at."""
    arguments = schema.load_arguments(config.dataset)
    arguments |= {"image_size": EXAMPLE_SIZE, "cache": "none"}
    images = datasets.load(
        source,
        classes=schema.class_subset(config.dataset.gallery_classes, "dataset.gallery_classes"),
        **arguments,
    )
    pictures: dict[str, np.ndarray] = {}
    for batch in datasets.eval_batches(images, 256):
        for image, value in zip(batch["image"].numpy(), batch["id"].numpy(), strict=True):
            if value.decode("utf-8") in ids:
                pictures[value.decode("utf-8")] = image.astype(np.uint8)
        if len(pictures) == len(ids):
            break
    return pictures
