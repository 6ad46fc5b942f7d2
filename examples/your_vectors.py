"""Two .npy files become an upgraded gallery and a transformation to serve. No image is read.

old.npy   float [n, d_old]: the whole gallery, as the old model embedded it
new.npy   float [m, d_new]: some of its rows, embedded again by the new model
rows.npy  int [m]: which rows these are; without it the first m
labels.npy  [n] texts or numbers: what each row shows, if that is known

    python examples/your_vectors.py old.npy new.npy --rows rows.npy --labels labels.npy --output out

A quarter of the m rows is kept back and asked whether the change helps: is the upgraded gallery
better, for queries of the new model, than the old gallery was for queries of the old one? Without
labels it says how much of the new model's ranking the upgraded gallery has.

Leaves OUT/gallery.lance with the column `embedding_upgraded`, OUT/upgraded.npy with the same rows
as float32 [n, d_new], and OUT/model/1, a SavedModel for TensorFlow Serving.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

import fct_tf


def main() -> None:
    """Reads the files, fits, judges, upgrades, exports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="[n, d_old]: the whole gallery, embedded by the old model")
    parser.add_argument("new", help="[m, d_new]: some of its rows, embedded by the new model")
    parser.add_argument("--rows", help="[m]: which rows of old; by default the first m")
    parser.add_argument("--labels", help="[n]: what each row shows")
    parser.add_argument("--distance", choices=["l2", "cosine"], default="l2")
    parser.add_argument(
        "--method",
        choices=["fct", "affine", "procrustes"],
        help="by default affine below 5,000 rows to learn from, where a network has too few",
    )
    parser.add_argument("--output", type=Path, required=True, help="a directory that is not there")
    args = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # What goes wrong is raised.

    def load(path: str) -> np.ndarray:
        try:
            return np.load(path)
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")

    old, new = load(args.old), load(args.new)
    rows = load(args.rows) if args.rows else np.arange(len(new))
    labels = load(args.labels) if args.labels else None
    ids = np.arange(len(old))
    if rows.shape != (len(new),) or not np.isin(rows, ids).all():
        parser.error(f"--rows: one of 0..{len(old) - 1} for each of the {len(new)} rows of new")
    if labels is not None and labels.shape != ids.shape:
        parser.error(f"--labels: one for each of the {len(old)} rows of old")
    names = {"embedding_old": "old-model", "embedding_new": "new-model"}

    def table(name: str, chosen: np.ndarray, vectors: dict) -> fct_tf.Gallery:
        shown = None if labels is None else labels[chosen]
        model = {column: names[column] for column in vectors}
        path = args.output / name
        return fct_tf.Gallery.create(
            path, ids[chosen], vectors, shown, model=model, distance=args.distance
        )

    # The rows that both models have embedded: most to learn from, the others to be asked.
    order = np.random.default_rng(0).permutation(len(new))
    asked, learnt = np.split(order, [len(new) // 4])
    pairs, sample = (
        table(name, rows[part], {"embedding_old": old[rows[part]], "embedding_new": new[part]})
        for name, part in (("pairs.lance", learnt), ("sample.lance", asked))
    )
    gallery = table("gallery.lance", ids, {"embedding_old": old})

    transformation = fct_tf.Transformation.fit(
        pairs,
        "embedding_old",
        "embedding_new",
        method=args.method or ("affine" if len(pairs) < 5000 else "fct"),
    )
    gallery.upgrade(transformation, "embedding_upgraded")
    print(gallery.judge("embedding_old", "embedding_upgraded", "embedding_new", sample=sample))

    upgraded = gallery.read("embedding_upgraded").vectors["embedding_upgraded"]
    np.save(args.output / "upgraded.npy", upgraded)
    print("serve:", transformation.export(args.output / "model", warmup_rows=gallery))


if __name__ == "__main__":
    try:
        main()
    except fct_tf.InputError as error:
        sys.exit(f"error: {error}")
