"""A small table and its columns."""

import numpy as np

from fct_tf.gallery import table


def column(name, dim=4, model=None, **settings):
    model = model or name
    created_by = {"door": "test", "model": model}
    return table.Column(name, dim, table.imported_space(model), created_by=created_by, **settings)


def rows(count, dim=4, seed=0, start=0, name="a"):
    generator = np.random.default_rng(seed)
    ids = np.array([f"row {row}" for row in range(start, start + count)], object)
    labels = np.array([f"c{row % 3}" if row % 5 else None for row in range(count)], object)
    return table.Rows(ids, labels, {name: generator.normal(size=(count, dim)).astype(np.float32)})


def doubled(batch):
    return batch.vectors["a"] * 2


def files_of(path):
    return sorted(str(file) for file in path.rglob("*"))
