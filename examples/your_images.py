"""A folder of images, an old and a new model: is the change of models worth it, and what comes out?

DIR/train/<class>/<file>   images that the models learn from, or learnt from
DIR/val/<class>/<file>     the gallery

    python examples/your_images.py DIR --output out
    python examples/your_images.py DIR --output out --old old.keras --new new.keras

Without models of your own it trains two small ones: the old on the first half of the classes, the
new on all. The gallery is then embedded by the old model alone, as in real life, and transformed;
a fifth of its images is embedded by the new model to ask whether new queries find more in the
transformed gallery than old queries found in the old one.

Leaves OUT/gallery.lance with the columns `embedding_old` and `embedding_upgraded`, OUT/model/1, the
transformation as a SavedModel for TensorFlow Serving, and OUT/query/1, which embeds new queries.
"""

import argparse
import logging
import sys
from pathlib import Path

import fct_tf
from fct_tf import config as schema
from fct_tf.ingest.embed_images import embed_gallery
from fct_tf.serving.exports import export_model
from fct_tf.training import backbone


def small_models(images: str, output: Path, size: int, epochs: int) -> tuple[Path, Path]:
    """Trains an old and a new model; for good ones see configs/image_folder.py."""
    config = schema.experiment("your_images")
    config.dataset.train = images
    config.dataset.image_size = size
    for name in ("old", "new"):
        model = schema.model(epochs, 1, batch_size=32, name="resnet10", width=0.25)
        model.augment = schema.augment("crop_flip", min_area=0.5)
        model.optimizer = schema.sgd(0.05)
        config.models[name] = model
    config.models.old.classes.fraction = 0.5
    old, new = (backbone.train(config, name, output / name) for name in ("old", "new"))
    return old, new


def main() -> None:
    """Trains where no models are given; embeds, fits, upgrades, judges, exports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="DIR, with train/<class>/ and val/<class>/ in it")
    parser.add_argument("--old", help="artifact, .keras file or SavedModel; needs --new")
    parser.add_argument("--new", help="artifact, .keras file or SavedModel; needs --old")
    parser.add_argument("--method", choices=["fct", "affine", "procrustes"], default="fct")
    parser.add_argument("--image-size", type=int, default=32, help="pixels, of the small models")
    parser.add_argument("--epochs", type=int, default=10, help="of the small models")
    parser.add_argument("--output", type=Path, required=True, help="a directory that is not there")
    args = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # What goes wrong is raised.
    if (args.old is None) != (args.new is None):
        parser.error("--old and --new go together; give both, or none to train small ones")

    train, gallery_images = (f"folder:{args.images}:{split}" for split in ("train", "val"))
    old, new = args.old, args.new
    if old is None:
        old, new = small_models(train, args.output, args.image_size, args.epochs)

    # What the transformation learns from: images that both models embed.
    rows, path = str(args.output / "train.lance"), str(args.output / "gallery.lance")
    embed_gallery(rows, train, str(old), "embedding_old")
    embed_gallery(rows, train, str(new), "embedding_new")
    embed_gallery(path, gallery_images, str(old), "embedding_old")  # The old gallery.

    gallery = fct_tf.Gallery.open(path)
    transformation = fct_tf.Transformation.fit(
        rows, "embedding_old", "embedding_new", method=args.method
    )
    gallery.upgrade(transformation, "embedding_upgraded")
    sample = gallery.sample(args.output / "sample.lance", 0.2, gallery_images, str(new))
    print(gallery.judge("embedding_old", "embedding_upgraded", "embedding_new", sample=sample))

    print("serve:", transformation.export(args.output / "model", warmup_rows=gallery))
    print("and its queries:", export_model(str(new), args.output / "query"))


if __name__ == "__main__":
    try:
        main()
    except fct_tf.InputError as error:
        sys.exit(f"error: {error}")
