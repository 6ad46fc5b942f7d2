"""What pairs from the gallery bring: the share of re-embedded rows against accuracy, on rows alone.

Needs a directory with `train.lance` and `test.lance`, galleries with the columns
`embedding_old`, `side_info` and `embedding_new`. For every seed, with and without
side-information: the network is trained on `train.lance`, then corrected by pairs, one seeded and
nested sample of `test.lance`. Beside it the closed-form maps and, at the largest share, the
network trained on pairs and training rows together. Two scorings: `backfilled`, the whole gallery
with the pairs' rows re-embedded, and `remaining`, the other rows alone as queries and gallery.

  python benchmarks/reference_rows_pairs.py --config=configs/omniglot.py --rows=DIR \\
      --workdir=runs/reference_rows_pairs --output=results/reference_rows_pairs.json
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import matplotlib
import reference_rows
from absl import flags
from ml_collections import ConfigDict

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fct_tf.common import cli
from fct_tf.gallery import table
from fct_tf.retrieval import exact
from fct_tf.training import transformation
from fct_tf.upgrade import sample, upgrade

OLD, NEW, SIDE_INFO = reference_rows.OLD, reference_rows.NEW, reference_rows.SIDE_INFO
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)


def experiment(config: ConfigDict) -> ConfigDict:
    """The experiment with every transformation that is measured.

    A name is METHOD or METHOD_PERCENT with `_no_side_info` behind it where there is none.
    """
    recipe = config.transformations.fct
    config.evaluation.backfilling.update(policies=(), transformations=())  # Of other names.
    for name in list(config.transformations):
        del config.transformations[name]
    for with_side in (True, False):
        end = "" if with_side else "_no_side_info"

        def add(name: str, share: float = 0.0, side_info=with_side, end=end, **settings) -> None:
            section = recipe.copy_and_resolve_references()
            section.side_info = side_info
            section.pairs.share = share
            section.pairs.update(settings.pop("pairs", {}))
            section.update(settings)
            config.transformations[f"{name}{end}"] = section

        add("fct")
        add("affine", map="affine")
        for share in SHARES:
            add(f"fct_pairs_{100 * share:g}", share, base=f"fct{end}")
        add(f"fct_rows_{100 * SHARES[-1]:g}", SHARES[-1], pairs={"method": "rows"})
        add(f"affine_pairs_{100 * SHARES[-1]:g}", SHARES[-1], map="affine")
        only = {"method": "rows", "batch_share": 0.999}
        add(f"affine_rows_{100 * SHARES[-1]:g}", SHARES[-1], map="affine", pairs=only)
        if not with_side:
            add("procrustes", map="procrustes")
    return config


def measure(config: ConfigDict, rows: Path, workdir: Path) -> list[dict]:
    """Records of results.json, for every seed, transformation and scoring."""
    gallery = reference_rows.copy_of_test(rows, workdir)
    records = []
    for seed in config.seeds:
        opened = table.open_gallery(str(gallery))
        pairs: dict[float, Path] = {}
        left_out: dict[float, Collection[str]] = {0.0: ()}
        for share in SHARES:
            pairs[share] = workdir / f"pairs_{share:g}_{seed}.lance"
            left_out[share] = sample.draw(opened, round(share * opened.num_rows), seed=seed)
            if not pairs[share].exists():
                original = table.open_gallery(str(rows / "test.lance"))
                sample.copy_rows(original, left_out[share], str(pairs[share]))

        def record(case, query, column, share, scoring, seed=seed, left_out=left_out, **keys):
            opened = table.open_gallery(str(gallery))
            without = left_out[share] if scoring == "remaining" else ()
            found = exact.evaluate(opened, query, opened, column, without=without)
            for side in ("query", "gallery"):  # Not where this machine keeps them.
                found[side]["path"] = Path(found[side]["path"]).name
            note = f" (remaining {100 * (1 - share):g} %)" if scoring == "remaining" else ""
            keys = {"case": f"{case}{note}", "pairs": share, "scoring": scoring, **keys}
            return {**found, **keys, "seed": seed}

        for scoring, share in [("backfilled", 0.0)] + [("remaining", s) for s in (0.0, *SHARES)]:
            for case, column in (("old/old", OLD), ("new/new", NEW)):
                keys = {"method": "independent", "side_info": False}
                records.append(record(case, column, column, share, scoring, **keys))
        for name in sorted(config.transformations, key=lambda n: config.transformations[n].base):
            section, share = config.transformations[name], config.transformations[name].pairs.share
            uri = str(pairs[share]) if share else ""
            side_info = SIDE_INFO if section.side_info else ""
            trained = transformation.train(
                config,
                name,
                str(rows / "train.lance"),
                OLD,
                NEW,
                workdir / f"seed_{seed}" / name,
                side_info=side_info,
                pairs=uri,
                base=workdir / f"seed_{seed}" / section.base if section.base else "",
                seed=seed,
                existing="skip",
            )
            column = f"{name}_{seed}"
            upgrade.upgrade(
                str(gallery),
                trained / "saved_model",
                column,
                source=OLD,
                side_info=side_info or None,
                pairs=uri,
                existing="skip",
            )
            keys = {"method": re.sub(r"(_\d+)?(_no_side_info)?$", "", name)}
            keys["side_info"] = section.side_info
            label = f"new/T(old) {name}"
            for scoring in ("backfilled", "remaining"):
                records.append(record(label, NEW, column, share, scoring, **keys))
    return records


def curve(records: list[dict], method: str, side_info: bool, scoring: str, metric) -> Iterator:
    """(share, mean over seeds) of a method, its start at no pairs included."""
    start = method.split("_")[0]
    for share in (0.0, *SHARES):
        wanted = (method if share else start, share, scoring, side_info)
        values = [
            metric(r)
            for r in records
            if (r["method"], r["pairs"], r["scoring"], r["side_info"]) == wanted
        ]
        if values:
            yield share, sum(values) / len(values)


def plot(records: list[dict], path: str) -> None:
    """top-1 and mAP against the share of pairs, both scorings."""
    metrics = {"top-1": lambda r: 100 * r["cmc"]["1"], "mAP": lambda r: 100 * r["map"]}
    titles = {
        "backfilled": "the whole gallery, pairs backfilled",
        "remaining": "the remaining rows alone",
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex=True, layout="constrained")
    for column, (scoring, title) in enumerate(titles.items()):
        axes[0][column].set_title(title)
        axes[1][column].set_xlabel("gallery rows re-embedded as pairs (%)")
        for ax, (name, metric) in zip(axes[:, column], metrics.items(), strict=True):
            for side_info, colour in ((True, "C0"), (False, "C1")):
                told = "with" if side_info else "without"
                points = dict(curve(records, "fct_pairs", side_info, scoring, metric))
                xs = [100 * share for share in points]
                label = f"FCT {told} side-information"
                ax.plot(xs, list(points.values()), "o-", color=colour, label=label)
            for case, style in (("old/old", "--"), ("new/new", ":")):
                points = dict(references(records, case, scoring, metric))
                if len(points) == 1:  # The whole gallery, whatever the share.
                    points[SHARES[-1]] = points[0.0]
                xs = [100 * share for share in points]
                ax.plot(xs, list(points.values()), style, color="0.4", label=case)
            ax.set_ylabel(f"{name} (%)")
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def references(records: list[dict], case: str, scoring: str, metric) -> Iterator:
    """(share, mean over seeds) of old/old or new/new on the rows that are scored."""
    for share in (0.0, *SHARES):
        values = [
            metric(r)
            for r in records
            if r["case"].startswith(case) and (r["pairs"], r["scoring"]) == (share, scoring)
        ]
        if values:
            yield share, sum(values) / len(values)


def main(values: flags.FlagValues) -> None:
    config = experiment(values.config)
    records = measure(config, Path(values.rows), Path(values.workdir))
    reference_rows.write(records, config, values.output)
    plot(records, str(Path(values.output).with_suffix(".svg")))


if __name__ == "__main__":
    cli.run(__doc__, main, reference_rows.define_flags)
