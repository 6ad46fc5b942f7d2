"""Tiny ImageNet-100, closed setting: natural images, the FCT paper's ImageNet 500 -> 1000 in small.

100 classes of Tiny ImageNet as a folder, `tiny_imagenet100/{train,val}/<class>/*.JPEG`, 500 and 50
images a class. The old model learns the first 50 classes, the new one all 100; both retrieve
among the 5,000 images of `val`. Half-width ResNet-18 on 32x32 images, 10 epochs.

Command:
  python -m fct_tf.study --config=configs/tiny_imagenet100.py --workdir=runs/tiny_imagenet100 \\
      --config.dataset.train=folder:DIR:train --config.dataset.gallery=folder:DIR:val
With --config=configs/tiny_imagenet100.py:transformations the compatible models are left out, and
FastFill's uncertainty without its discriminative term is compared too; :fused compares the paper's
maps alone with the same in a fused search, and nothing else.
Hardware: two CPU cores, an hour and a half a seed; half of it without the compatible models.
"""

from fct_tf import config as schema


def get_config(methods="all"):
    if methods not in ("all", "transformations", "fused"):
        raise ValueError(f"{methods!r} after the colon; write all, transformations or fused")
    config = schema.experiment("tiny_imagenet100")
    config.dataset.train = "folder:tiny_imagenet100:train"
    config.dataset.gallery = "folder:tiny_imagenet100:val"
    config.dataset.image_size = 32
    config.dataset.preprocess = "imagenet"
    for version in ("old", "new"):
        model = schema.model(train_epochs=10, warmup_epochs=1, batch_size=128, width=0.5)
        model.augment = schema.augment("crop_flip", min_area=0.3)
        model.optimizer = schema.sgd(0.1)
        config.models[version] = model
    config.models.old.classes.fraction = 0.5
    if methods == "all":
        config.models.update(schema.compatible_models(config.models.new))

    side_info = schema.side_info(
        "simclr", train_epochs=20, warmup_epochs=2, batch_size=256, width=0.5
    )
    side_info.classes.fraction = 0.5
    side_info.augment = schema.augment("simclr", min_area=0.2, jitter=0.5)
    config.side_info = side_info
    recipe = {"train_epochs": 6, "warmup_epochs": 1, "batch_size": 256, "pairs_share": 0.2}
    if methods == "fused":
        config.transformations = schema.fused_comparison(**recipe)
        return config
    config.transformations = schema.transformations(fastfill=True, fused=True, **recipe)
    curves = ["fct", "fct_no_side_info", "fct_fused", "fastfill", "fastfill_no_side_info"]
    if methods == "transformations":
        alone = config.transformations.fastfill_no_side_info.copy_and_resolve_references()
        alone.discriminative_weight = 0.0
        config.transformations.heteroscedastic_no_side_info = alone
        curves.append("heteroscedastic_no_side_info")
    config.evaluation.backfilling.update(
        policies=("random", "uncertainty", "ranks", "distance"),
        transformations=tuple(curves),
        corrected=("ranks",),
    )
    return config
