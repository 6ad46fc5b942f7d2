"""Omniglot, open setting: retrieval among 659 characters that no model was trained on.

Protocol: old model on 482 of the 964 training classes, new model on all of them, evaluation on
the 13,180 images of the 659 `test` classes, each both query and gallery row. The recipe is the
FCT paper's (arXiv 2112.02805) shortened to 12 epochs of 32x32 images.

Command (add --config.dataset.data_dir=DIR where TFDS keeps its data elsewhere):
  python -m fct_tf.study --config=configs/omniglot.py --workdir=runs/omniglot
Expected (top-1 / top-5 / mAP, %): old/old about 71 / 90 / 45, new/new about 78 / 93 / 55. FCT is
below old/old without pairs from the gallery and above it with them; so are the compatible models.
With --config=configs/omniglot.py:transformations the compatible models are left out; :fused
compares the paper's maps alone with the same in a fused search, and nothing else.
Hardware: two CPU cores, an hour and a half a seed; half of it without the compatible models.
"""

import os

from fct_tf import config as schema

_OLD_CLASSES = os.path.join(os.path.dirname(__file__), "omniglot_old_classes.txt")


def get_config(methods="all"):
    if methods not in ("all", "transformations", "fused"):
        raise ValueError(f"{methods!r} after the colon; write all, transformations or fused")
    config = schema.experiment("omniglot")
    config.dataset.train = "tfds:omniglot:train"
    config.dataset.gallery = "tfds:omniglot:test"
    config.dataset.image_size = 32

    for name in ("old", "new"):
        model = schema.model(train_epochs=12, warmup_epochs=2, batch_size=128)
        model.num_outputs = 964
        model.augment = schema.augment("affine")
        model.optimizer = schema.sgd(0.1)
        config.models[name] = model
    config.models.old.classes.file = _OLD_CLASSES
    if methods == "all":
        config.models.update(schema.compatible_models(config.models.new))
        config.models.bct_centred = schema.compatible_models(config.models.new).bct
        config.models.bct_centred.compatibility.unseen = "centred"

    # Drawings have no colour and their reading direction matters; what teaches are hard crops.
    side_info = schema.side_info("simclr", train_epochs=40, warmup_epochs=2, batch_size=256)
    side_info.classes.file = _OLD_CLASSES
    side_info.backbone.width = 0.5
    side_info.augment = schema.augment(
        "simclr", affine=True, flip=False, jitter=0.0, grayscale=0.0, min_area=0.2
    )
    config.side_info = side_info
    recipe = {"train_epochs": 12, "warmup_epochs": 2, "batch_size": 256, "pairs_share": 0.2}
    if methods == "fused":
        config.transformations = schema.fused_comparison(**recipe)
        return config
    config.transformations = schema.transformations(fastfill=True, fused=True, **recipe)
    # FastFill's uncertainty without its discriminative term, which harms both on unseen classes.
    alone = config.transformations.fastfill_no_side_info.copy_and_resolve_references()
    alone.discriminative_weight = 0.0
    config.transformations.heteroscedastic_no_side_info = alone
    config.evaluation.backfilling.update(
        policies=("random", "uncertainty", "ranks", "distance"),
        transformations=(
            "fct",
            "fct_no_side_info",
            "fct_fused",
            "fastfill",
            "fastfill_no_side_info",
            "heteroscedastic_no_side_info",
        ),
        corrected=("ranks",),
    )
    return config
