"""Glyphs: all methods compared on rendered characters, which need no download.

Closed setting, as in the FCT paper: the old model learns half of the 300 characters, the new one
all of them, and both retrieve among further drawings of all characters. (Characters that no model
has seen are the split `glyphs:test`.) Networks and durations are small: this shows the whole way
in minutes, not the best accuracy.

configs/quickstart.py is one model change on the same data, in a quarter of the time.

Command:
  python -m fct_tf.study --config=configs/glyphs.py --workdir=runs/glyphs_all
Hardware: two CPU cores, 15 to 30 minutes of their time together.
"""

from fct_tf import config as schema


def get_config():
    config = schema.experiment("glyphs")
    config.dataset.train = "glyphs:train[:70%]"
    config.dataset.gallery = "glyphs:train[70%:]"
    config.dataset.image_size = 32
    for version in ("old", "new"):
        model = schema.model(train_epochs=10, warmup_epochs=1, batch_size=64, width=0.5)
        model.augment = schema.augment("affine")
        model.optimizer = schema.sgd(0.1)
        config.models[version] = model
    config.models.old.classes.fraction = 0.5
    config.models.bct_centred = schema.compatible_models(config.models.new).bct
    config.models.bct_centred.compatibility.unseen = "centred"

    side_info = schema.side_info(
        "simclr", train_epochs=10, warmup_epochs=1, batch_size=128, width=0.5
    )
    side_info.classes.fraction = 0.5
    side_info.augment = schema.augment(
        "simclr", affine=True, flip=False, jitter=0.0, grayscale=0.0, min_area=0.4
    )
    config.side_info = side_info

    config.transformations = schema.transformations(
        train_epochs=10, warmup_epochs=1, batch_size=256, pairs_share=0.2, fastfill=True, fused=True
    )
    config.evaluation.backfilling.update(
        policies=("random", "uncertainty", "distance"),
        transformations=("fct", "fct_no_side_info", "fastfill", "fastfill_no_side_info"),
        corrected=("random",),
    )
    return config
