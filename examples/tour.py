"""A directory to type the guides' commands in: the quickstart's images, vectors and models.

    make quickstart
    python examples/tour.py
    cd runs/tour

Every command of docs/guides runs there as it stands. It begins with what somebody has who is about
to change a model:

runs/old, runs/new, runs/side_info   the quickstart's models
photos/train/<class>/<file>          images that they were trained on
photos/gallery/<class>/<file>        images that are searched
photos/queries/<class>/<file>        images that are searched with
old.npy, new.npy                     float32 [n, d]: the gallery as each model embeds it
ids.txt, labels.txt                  of these rows, one a line
train_old.npy, train_new.npy, ..     the same of the training images
db/photos.lance                      the gallery as the old model embeds it, as a LanceDB table
"""

import argparse
import collections
import json
import logging
import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

import fct_tf
from fct_tf.data import datasets


def main() -> None:
    """Writes images, vectors and models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("runs/glyphs"), help="what was run")
    parser.add_argument("--output", type=Path, default=Path("runs/tour"), help="must not be there")
    args = parser.parse_args()
    if not (args.study / "run.json").exists():
        parser.error(f"{args.study}: no finished study there; first make quickstart")
    if args.output.exists():
        parser.error(f"{args.output} is there already; delete it to begin anew")

    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # TFDS calls what is deprecated.
    config = json.loads((args.study / "run.json").read_text())["config"]
    made = args.study / f"seed_{config['seeds'][0]}"
    for name in ("old", "new", "side_info"):
        shutil.copytree(made / name / "artifact", args.output / "runs" / name / "artifact")

    train = write_images(config["dataset"]["train"], args.output, lambda _: "train")
    # The first image of each class is somebody's query, the others are the gallery.
    seen: collections.Counter[str] = collections.Counter()

    def split(label: str) -> str:
        seen[label] += 1
        return "queries" if seen[label] == 1 else "gallery"

    searched = write_images(config["dataset"]["gallery"], args.output, split)
    for prefix, table, paths in (("train_", "train", train), ("", "gallery", searched)):
        rows = fct_tf.Gallery.open(made / "rows" / table / "gallery.lance")
        stored = rows.read(["embedding_old", "embedding_new"])
        kept = [not paths[i].startswith("queries/") for i in stored.ids]
        for model in ("old", "new"):
            np.save(
                args.output / f"{prefix}{model}.npy", stored.vectors[f"embedding_{model}"][kept]
            )
        ids = [paths[i] for i in stored.ids[kept]]
        write_lines(args.output / f"{prefix}ids.txt", ids)
        write_lines(args.output / f"{prefix}labels.txt", [i.split("/")[1] for i in ids])
    write_lancedb_table(args.output)
    print(f"{args.output}: {len(train) + len(searched)} images, 3 models; cd {args.output}")


def write_images(source: str, output: Path, split) -> dict[str, str]:
    """Writes photos/<split>/<class>/<file>; returns the path below photos/ of each id."""
    _, images = datasets.open_source(source, "", "")
    positions = np.arange(len(images.labels))
    paths = {}
    for image in images.encoded(positions, None):
        position = int(image["position"])
        label = images.label_names[images.labels[position]].lower().replace(" ", "_")
        path = f"{split(label)}/{label}/{position:04}.png"
        paths[image["id"].numpy().decode()] = path
        (output / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        (output / "photos" / path).write_bytes(images.content(image["encoded"]).numpy())
    return paths


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def write_lancedb_table(output: Path) -> None:
    """db/photos.lance: vectors, numbers and albums, as a LanceDB table would have them."""
    vectors = np.load(output / "old.npy")
    albums = (output / "labels.txt").read_text().split()
    table = pa.table(
        {
            "photo_id": np.arange(len(vectors)),
            "album": albums,
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
    )
    lance.write_dataset(table, output / "db" / "photos.lance")


if __name__ == "__main__":
    main()
