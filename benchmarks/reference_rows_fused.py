"""Fused search on the reference rows: what it gains without an image read, and while backfilling.

The rows are those of configs/reference_rows.py, and its `fct` and `fct_no_side_info` are the maps:
a study of them is run first, and its directory named here. Compared at each share of the gallery
that the new model has re-embedded, random rows, the map corrected by them: new/T(old) (`none`),
fused (`fused`, weight one half), fused and whitened (`whitened`). At 100 % nothing is transformed:
new/new, and both models' embeddings on both sides. Negative flips are against old/old.

Baselines that need no map: old/old whitened in the same way, old embedding and side-information on
both sides, and rankings of the old and of the re-embedded rows merged by distance, each in units of
the mean distance of its space. `dims` are fused rows cut to their leading directions, `weight`
other weights than one half, `rerank` the old ranking's first 100 rows in the order of the fused
distance.

  python -m fct_tf.study --config=configs/reference_rows.py:fused --workdir=runs/fused
  python benchmarks/reference_rows_fused.py --data=DIR --runs=runs/fused \\
      --output=results/reference_rows_fused.json
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.files import check_output_file, read_json, write_records
from fct_tf.common.provenance import library_versions
from fct_tf.gallery import table
from fct_tf.models import artifact, fusion, kernel, linear
from fct_tf.retrieval import compatibility, exact, metrics
from fct_tf.training import closed_form, fused

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0)
DIMS = (256, 192, 128, 96, 64)
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)
ROLES = {
    "source_embedding": "embedding_old",
    "side_info": "side_info",
    "target": "embedding_new",
}
RERANK = 100


@dataclass(frozen=True)
class Rows:
    """A table in memory; vectors by role."""

    gallery: table.Gallery
    ids: np.ndarray
    labels: np.ndarray
    vectors: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> "Rows":
        gallery = table.open_gallery(str(path))
        rows = gallery.read(list(ROLES.values()), with_labels=True)
        assert rows.labels is not None
        vectors = {role: rows.vectors[name] for role, name in ROLES.items()}
        return cls(gallery, rows.ids, rows.labels, vectors)

    def score(self, query: np.ndarray, stored: np.ndarray) -> exact.PerQuery:
        sides = (self.ids, self.labels)
        return exact.per_query(query, *sides, stored, *sides)


def record(found: exact.PerQuery, before: exact.PerQuery, **about) -> dict:
    """As those of `evaluate`, with negative flips against `before`."""
    flips = compatibility.negative_flips(before, found, resamples=1000, seed=0)
    return {
        **about,
        "num_queries": int(np.sum(found.rank > 0)),
        "cmc": metrics.cmc(found.rank, (1, 5)),
        "map": metrics.mean_average_precision(found.average_precision),
        "negative_flips": flips.negative.mean,
    }


class Fused:
    """What fuses rows of the old and the new space, its scales from the training rows."""

    def __init__(self, train: Rows, weight: float = 0.5, projection: np.ndarray | None = None):
        sides = (train.vectors["source_embedding"], train.vectors["target"])
        scales = (fused.scale(sides[0], "l2", weight), fused.scale(sides[1], "l2", 1 - weight))
        dims = (sides[0].shape[1], sides[1].shape[1])
        self.network = fusion.build(("l2", "l2"), scales, dims, projection)

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        inputs = {"source_embedding": source, "target_embedding": target}
        return self.network.predict(inputs, batch_size=8192, verbose=0)["embedding"]


def out_of_fold(train: Rows, roles: Sequence[str]) -> np.ndarray:
    """Training rows by a ridge-affine map that has not seen their class."""
    x = np.concatenate([train.vectors[role] for role in roles], axis=1)
    y = train.vectors["target"]
    _, classes = np.unique(train.labels, return_inverse=True)
    fold = np.random.default_rng(0).permutation(classes.max() + 1)[classes] % fused.FOLDS
    lam, _ = linear.choose_lambda(x, y, closed_form.held_out(train.gallery))
    made = np.empty(y.shape, np.float32)
    for number in range(fused.FOLDS):
        held = fold == number
        made[held] = linear.apply(linear.ridge_affine(x[~held], y[~held], lam), x[held])
    return made


def corrected(transformed, test: Rows, roles, some: np.ndarray, seed: int) -> np.ndarray:
    """The transformed rows, corrected by the pairs `some`, which are the new model's own."""
    made = transformed.astype(np.float64)
    if len(some):
        blocks = {role: test.vectors[role] for role in roles} | {"embedding": transformed}
        residual = test.vectors["target"][some] - made[some]
        fitted = kernel.fit(
            {key: value[some] for key, value in blocks.items()}, residual, seed=seed
        )
        if fitted.helps:
            made += fitted(blocks)
    made[some] = test.vectors["target"][some]
    return made.astype(np.float32)


def merged(train: Rows, test: Rows, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and rows whose distance is that of a row's own space: old, or new for `some`.

    Of the parts that a row lacks the query's length would stay; one more value takes it out.
    """
    old, new = (
        test.vectors[role] * fused.scale(train.vectors[role], "l2", 1.0)
        for role in ("source_embedding", "target")
    )
    excess = (old**2).sum(1) - (new**2).sum(1)  # Of a row of `some` over an old one.
    query = np.concatenate([old, new, 0.5 + 0.5 * excess[:, None]], axis=1)
    is_new = np.zeros((len(old), 1), np.float32)
    is_new[some] = 1
    return query, np.concatenate([old * (1 - is_new), new * is_new, is_new], axis=1)


def reranked(test: Rows, query: np.ndarray, stored: np.ndarray, queries: np.ndarray) -> dict:
    """CMC where the first `RERANK` rows by the old distance come in the order of the fused one."""
    old = test.vectors["source_embedding"]
    rows, _ = exact.search(old[queries], old, RERANK + 1, "l2")
    ranks = []
    for number, near in zip(queries, rows, strict=True):
        near = near[near != number][:RERANK]
        distance = ((stored[near] - query[number]) ** 2).sum(1)
        right = test.labels[near[np.argsort(distance)]] == test.labels[number]
        ranks.append(1 + int(np.argmax(right)) if right.any() else RERANK + 1)
    return metrics.cmc(np.array(ranks), (1, 5))


def of_map(
    train: Rows, test: Rows, before, about: dict, roles, transformed, first: bool
) -> Iterator[dict]:
    """Records of one map, all of them of the `first` seed; `transformed`: rows without pairs."""
    old, new = test.vectors["source_embedding"], test.vectors["target"]
    plain = Fused(train)
    stored = plain(train.vectors["source_embedding"], out_of_fold(train, roles))
    asked = plain(train.vectors["source_embedding"], train.vectors["target"])
    _, classes = np.unique(train.labels, return_inverse=True)
    white = fused.whitening(asked, stored, classes)
    seed = about["seed"]
    for share in SHARES:
        order = np.random.default_rng(seed).permutation(len(old))
        some = order[: round(share * len(order))]
        at = {**about, "pairs": share}
        rows = new if share == 1 else corrected(transformed, test, roles, some, seed)
        yield record(test.score(new, rows), before, **at, fusion="none")
        for name, made in (("fused", plain), ("whitened", Fused(train, projection=white))):
            yield record(test.score(made(old, new), made(old, rows)), before, **at, fusion=name)
        if first:
            found = test.score(*merged(train, test, some))
            yield record(found, before, **at, fusion="merged by distance")
    if not first:
        return
    for name, matrix in (("fused", np.eye(len(white))), ("whitened", white)):
        for dims in DIMS:
            made = Fused(train, projection=matrix @ fused.leading(stored @ matrix, dims))
            found = test.score(made(old, new), made(old, transformed))
            yield record(found, before, **about, pairs=0.0, fusion=name, dims=dims)
    for weight in WEIGHTS:
        made = Fused(train, weight)
        found = test.score(made(old, new), made(old, transformed))
        yield record(found, before, **about, pairs=0.0, fusion="fused", weight=weight)
    queries = np.sort(np.random.default_rng(seed).permutation(len(old))[:4000])
    cmc = reranked(test, plain(old, new), plain(old, transformed), queries)
    yield {**about, "pairs": 0.0, "fusion": "fused", "rerank": RERANK, "cmc": cmc}


def baselines(train: Rows, test: Rows, before: exact.PerQuery) -> Iterator[dict]:
    """Without a map: old/old as it is and whitened, old with side-information, new/new."""
    old, new = test.vectors["source_embedding"], test.vectors["target"]
    _, classes = np.unique(train.labels, return_inverse=True)
    rows = train.vectors["source_embedding"]
    white = fused.whitening(rows, rows, classes)
    beside = np.concatenate(
        [
            test.vectors[role] * fused.scale(train.vectors[role], "l2", 0.5)
            for role in ("source_embedding", "side_info")
        ],
        axis=1,
    )
    for name, vectors in (
        ("old/old", old),
        ("old/old whitened", old @ white),
        ("old and side-information on both sides", beside),
        ("new/new", new),
    ):
        yield record(test.score(vectors, vectors), before, method=name)


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "data", None, "Directory of the two tables.", required=True, flag_values=values
    )
    flags.DEFINE_string("runs", None, "Directory of the study.", required=True, flag_values=values)
    flags.DEFINE_multi_integer("seed", [0, 1, 2], "Of the study.", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write.", required=True, flag_values=values)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    check_output_file(values.output, values.overwrite, "output")
    train, test = (Rows.open(Path(values.data) / f"{name}.lance") for name in ("train", "test"))
    old = test.vectors["source_embedding"]
    before = test.score(old, old)
    records = list(baselines(train, test, before))
    for seed in values.seed:
        for name in ("fct", "fct_no_side_info", "affine", "affine_side_info"):
            if name.startswith("affine") and seed != values.seed[0]:
                continue  # The same for all seeds.
            side_info = name in ("fct", "affine_side_info")
            roles = ("source_embedding", "side_info")[: 1 + side_info]
            inputs = {role: test.vectors[role] for role in roles}
            if name.startswith("affine"):
                x, gallery = (
                    np.concatenate([rows.vectors[role] for role in roles], axis=1)
                    for rows in (train, test)
                )
                y = train.vectors["target"]
                lam, _ = linear.choose_lambda(x, y, closed_form.held_out(train.gallery))
                transformed = linear.apply(linear.ridge_affine(x, y, lam), gallery)
            else:
                model: Any = artifact.load(Path(values.runs) / f"seed_{seed}" / name).model
                transformed = model.predict(inputs, batch_size=8192, verbose=0)["embedding"]
            about = {"method": name.split("_")[0], "side_info": side_info, "seed": seed}
            transformed = np.asarray(transformed, np.float32)
            first = seed == values.seed[0]
            for one in of_map(train, test, before, about, roles, transformed, first):
                records.append(one)
                print(one, flush=True)
    write_records(values.output, records)
    run = {
        "command": machine.command(sys.argv),
        "config": read_json(Path(values.runs) / "run.json")["config"],
        "cpu": machine.cpu(),
        "versions": library_versions(),
    }
    write_records(Path(values.output).with_suffix(".run.json"), run)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
