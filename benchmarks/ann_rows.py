"""Many rows made of few real ones, to measure approximate search with: a gallery, and its queries.

Each row is a convex mixture of a real row and one of its nearest neighbours, plus a little noise
that is spread over the dimensions as the differences between neighbours are. A tenth of the real
rows is held apart: the queries are made of those, in the same way. Labels are those of the row
that weighs most.

What makes rows hard to search is compared with the real rows, at the same number of rows: recall@10
by the share of leaves that is searched, recall@10 by the number of rows that are reordered, and the
intrinsic dimension (Levina and Bickel, NIPS 2004). Several mixtures are tried and the nearest one
is taken, which the command prints; `--noise` and `--neighbours` set one by hand.

  python benchmarks/ann_rows.py --rows=train.lance,test.lance --columns=embedding_new \\
      --num_rows=1000000 --output=rows.lance --queries=queries.lance

With several columns, neighbours are those of the first, and all are mixed alike. A pass over a
million rows of 128 dimensions takes half a minute and little memory: rows are made in blocks.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import machine
import numpy as np
from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.common.files import check_output_file, write_json
from fct_tf.common.provenance import library_versions
from fct_tf.gallery import table
from fct_tf.retrieval import exact

BLOCK_ROWS = 1 << 16
HELD_APART = 0.1
K = 10
# What is tried. Curves that are as near as this differ by chance: of those the dimension decides.
NEIGHBOURS = (5, 20)
NOISE = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
NEAR = 0.01
# Where the two are compared: shares of the leaves, and numbers of rows reordered.
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
REORDERED = (10, 20, 30, 50, 100, 200)
CURVES = {"by_share_of_leaves": "leaves", "by_rows_reordered": "reordered"}
DIMENSION_NEIGHBOURS = 20


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How rows are made; noise is in units of the spread of differences between neighbours."""

    neighbours: int
    noise: float
    seed: int = 0


class Rows:
    """Real rows of one or more columns, and as many as wanted made of them.

    Attributes:
      stored: float32 [n, d], the columns side by side.
      apart: bool [n], those that queries are made of.
      near: int [n, m], the nearest rows that are not held apart, nearest first.
    """

    def __init__(self, galleries: Sequence[str], columns: Sequence[str], seed: int):
        """Reads them.

        Raises:
          InputError: no such gallery or column, columns that differ between galleries, or too few
            rows.
        """
        opened = [table.open_gallery(path) for path in galleries]
        self.columns = [opened[0].column(name) for name in columns]
        for gallery in opened[1:]:
            for column in self.columns:
                other = gallery.column(column.name)
                if (other.space, other.dim) != (column.space, column.dim):
                    raise InputError(
                        f"{gallery.path}: column {column.name!r} is of another space or width "
                        f"than in {opened[0].path}; name galleries of one model"
                    )
        parts = [gallery.read(columns, with_labels=True) for gallery in opened]
        sides = [np.concatenate([part.vectors[name] for part in parts]) for name in columns]
        sides = [
            unit(side) if column.distance == "cosine" else side
            for side, column in zip(sides, self.columns, strict=True)
        ]
        self.stored = np.concatenate(sides, axis=1)
        self.labels = np.concatenate([part.labels for part in parts])
        generator = np.random.default_rng([seed, 0])
        self.apart = np.zeros(len(self.stored), bool)
        held = generator.permutation(len(self.stored))[: int(HELD_APART * len(self.stored))]
        self.apart[held] = True
        kept = np.flatnonzero(~self.apart)
        if len(held) < 10 or len(kept) <= max(NEIGHBOURS):
            raise InputError(f"{galleries[0]}: {len(self.stored)} rows are too few to mix")
        first = self.stored[:, : self.dim]
        own = np.full(len(self.stored), -1)
        own[kept] = np.arange(len(kept))
        found, _ = exact.search(first, first[kept], max(NEIGHBOURS), self.distance, own)
        self.near = kept[found]
        # Of one pair per row: how far neighbours lie apart in which directions.
        nearest = generator.integers(0, min(NEIGHBOURS), len(self.stored))
        apart = self.stored - self.stored[self.near[np.arange(len(self.stored)), nearest]]
        values, vectors = np.linalg.eigh(apart.T.astype(np.float64) @ apart / len(apart))
        self._spread = (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)

    @property
    def distance(self) -> str:
        return self.columns[0].distance

    @property
    def dim(self) -> int:
        return self.columns[0].dim

    def make(self, count: int, mixture: Mixture, *, queries: bool) -> Iterator[table.Rows]:
        """Made rows in blocks; those of queries are of the rows held apart."""
        kind = "query" if queries else "made"
        base = np.flatnonzero(self.apart == queries)
        for block, start in enumerate(range(0, count, BLOCK_ROWS)):
            size = min(BLOCK_ROWS, count - start)
            generator = np.random.default_rng([mixture.seed, 1 + queries, block])
            own = base[generator.integers(0, len(base), size)]
            other = self.near[own, generator.integers(0, mixture.neighbours, size)]
            # At least half is of the row itself: of the other there are rows of its own.
            share = generator.uniform(0, 0.5, (size, 1)).astype(np.float32)
            rows = self.stored[own] * (1 - share) + self.stored[other] * share
            noise = generator.standard_normal(rows.shape, np.float32) @ self._spread
            rows += np.float32(mixture.noise) * noise
            vectors, at = {}, 0
            for column in self.columns:
                side = rows[:, at : at + column.dim]
                vectors[column.name] = unit(side) if column.distance == "cosine" else side
                at += column.dim
            ids = np.array([f"{kind}/{start + i:09d}" for i in range(size)], object)
            yield table.Rows(ids, self.labels[own], vectors)

    def first(self, count: int, mixture: Mixture, *, queries: bool) -> np.ndarray:
        """float32 [count, d]: the first column of made rows."""
        name = self.columns[0].name
        return np.concatenate(
            [rows.vectors[name] for rows in self.make(count, mixture, queries=queries)]
        )


def unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)


def profile(rows: np.ndarray, queries: np.ndarray, distance: str) -> dict:
    """What makes rows hard to search: two curves of recall@10, and the intrinsic dimension."""
    import scann

    truth, _ = exact.search(queries, rows, K, distance)
    if distance == "cosine":  # Of unit vectors it ranks as squared L2.
        rows, queries = unit(rows), unit(queries)
    leaves = round(2 * len(rows) ** 0.5)

    def built(scored):
        builder = scann.scann_ops_pybind.builder(rows, K, "squared_l2")
        return scored(builder.tree(leaves, leaves, training_sample_size=len(rows))).build()

    def recall(searcher, **settings) -> float:
        found, _ = searcher.search_batched_parallel(queries, final_num_neighbors=K, **settings)
        return round(exact_recall(found, truth), 4)

    partitioned = built(lambda builder: builder.score_brute_force())
    coded = built(lambda builder: builder.score_ah(2, 0.2).reorder(max(REORDERED)))
    return {
        "by_share_of_leaves": {
            str(share): recall(partitioned, leaves_to_search=max(1, round(share * leaves)))
            for share in SHARES
        },
        "by_rows_reordered": {
            str(count): recall(coded, pre_reorder_num_neighbors=count) for count in REORDERED
        },
        "intrinsic_dimension": round(intrinsic_dimension(rows), 2),
    }


def exact_recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbours, int [q, k], that are among those found."""
    return (
        float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]))
        / (truth.shape[1])
    )


def intrinsic_dimension(rows: np.ndarray, sample: int = 1000) -> float:
    """The maximum likelihood estimate from distances to the nearest rows (MacKay's mean)."""
    asked = np.random.default_rng(0).choice(len(rows), min(sample, len(rows)), replace=False)
    _, squared = exact.search(rows[asked], rows, DIMENSION_NEIGHBOURS, "l2", asked)
    squared = squared[(squared > 0).all(axis=1)].astype(np.float64)
    logs = 0.5 * np.log(squared[:, -1:] / squared[:, :-1])
    return float(1 / logs.mean())


def shown(found: dict) -> str:
    """A profile in one line."""
    curves = [" ".join(f"{value:.3f}" for value in found[curve].values()) for curve in CURVES]
    return f"{' | '.join(curves)}, intrinsic dimension {found['intrinsic_dimension']:.2f}"


def gap(real: dict, made: dict) -> float:
    """Mean difference of recall over both curves."""
    pairs = [(value, made[curve][key]) for curve in CURVES for key, value in real[curve].items()]
    return float(np.mean([abs(a - b) for a, b in pairs]))


def choose(rows: Rows, mixtures: Sequence[Mixture]) -> tuple[Mixture, dict]:
    """The mixture whose rows are searched most like the real ones, and what was compared."""
    first = rows.stored[:, : rows.dim]
    real = profile(first[~rows.apart], first[rows.apart], rows.distance)
    print(f"real rows: {shown(real)}", flush=True)
    tried = []
    for mixture in mixtures:
        made = rows.first(int((~rows.apart).sum()), mixture, queries=False)
        queries = rows.first(int(rows.apart.sum()), mixture, queries=True)
        found = profile(made, queries, rows.distance)
        tried.append((gap(real, found), mixture, found))
        print(f"{mixture}, {tried[-1][0]:.4f} away: {shown(found)}", flush=True)

    def rank(one: tuple[float, Mixture, dict]) -> tuple[float, float]:
        dimensions = one[2]["intrinsic_dimension"], real["intrinsic_dimension"]
        return max(one[0], NEAR), abs(np.log(dimensions[0] / dimensions[1]))

    nearest, mixture, found = min(tried, key=rank)
    return mixture, {
        **{"real": real, "made": found, "mean_difference_of_recall": round(nearest, 4)},
        **{"rows": int((~rows.apart).sum()), "mixture": dataclasses.asdict(mixture)},
    }


def make(
    galleries: Sequence[str],
    columns: Sequence[str],
    output: str,
    queries: str,
    *,
    num_rows: int,
    num_queries: int,
    seed: int = 0,
    neighbours: int | None = None,
    noise: float | None = None,
    overwrite: bool = False,
) -> dict:
    """Writes the gallery and its queries; returns how near they are to the real rows.

    Raises:
      InputError: an output that exists, galleries or columns that cannot be read, too few rows.
    """
    for path in (output, queries):
        table.check_output(
            path, [table.open_gallery(one) for one in galleries], overwrite=overwrite
        )
    rows = Rows(galleries, columns, seed)
    mixtures = [
        Mixture(near, spread, seed)
        for near in ([neighbours] if neighbours else NEIGHBOURS)
        for spread in (NOISE if noise is None else [noise])
    ]
    mixture, record = choose(rows, mixtures)
    made_by = {"model": f"made of {rows.columns[0].model}", "settings": dataclasses.asdict(mixture)}
    made = [
        dataclasses.replace(column, dtype="float32", created_by=made_by) for column in rows.columns
    ]
    for path, count, is_query in ((output, num_rows, False), (queries, num_queries, True)):
        table.create(path, rows.make(count, mixture, queries=is_query), made, overwrite=overwrite)
    return record


def define_flags(values: flags.FlagValues) -> None:
    for name, text in (
        ("rows", "Galleries with the real rows."),
        ("columns", "Their columns; neighbours are those of the first."),
    ):
        flags.DEFINE_list(name, None, text, required=True, flag_values=values)
    for name, text in (
        ("output", "Gallery to write."),
        ("queries", "Gallery of the queries to write."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)
    flags.DEFINE_string("record", "", "JSON file of the comparison to write.", flag_values=values)
    for number, default, text in (
        ("num_rows", 1_000_000, "Rows to make."),
        ("num_queries", 10_000, "Queries to make."),
        ("seed", 0, "Of the split, of the mixtures and of the noise."),
    ):
        flags.DEFINE_integer(number, default, text, flag_values=values)
    flags.DEFINE_integer(
        "neighbours",
        None,
        "Nearest rows that one is mixed with; by default what comes nearest.",
        lower_bound=1,
        upper_bound=max(NEIGHBOURS),
        flag_values=values,
    )
    flags.DEFINE_float("noise", None, "Likewise, of the noise.", lower_bound=0, flag_values=values)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    if values.record:
        check_output_file(values.record, values.overwrite, "record")
    record = make(
        values.rows,
        values.columns,
        values.output,
        values.queries,
        num_rows=values.num_rows,
        num_queries=values.num_queries,
        seed=values.seed,
        neighbours=values.neighbours,
        noise=values.noise,
        overwrite=values.overwrite,
    )
    real, made = record["real"], record["made"]
    print(f"of {record['rows']:,} rows, recall@{K}:{'':10s}real   made")
    for curve, title in CURVES.items():
        for key, value in real[curve].items():
            print(f"  {title:>10s} {key:>6s} {'':14s}{value:6.4f} {made[curve][key]:6.4f}")
    dimensions = real["intrinsic_dimension"], made["intrinsic_dimension"]
    print("  intrinsic dimension{:12s}{:6.2f} {:6.2f}".format("", *dimensions))
    print(f"mean difference of recall {record['mean_difference_of_recall']}: {record['mixture']}")
    if values.record:
        record |= {"command": machine.command(sys.argv), "versions": library_versions()}
        record["gallery"] = Path(values.output).name
        write_json(values.record, record)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
