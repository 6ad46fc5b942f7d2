"""Quickstart: one model change, start to finish, in minutes and without a download.

The data are rendered characters. The old model has learnt half of them, the new one all, as in
the closed setting of the FCT paper; both retrieve among further drawings of all characters. FCT
upgrades the old gallery. `configs/glyphs.py` compares all methods on the same data.

Command: make quickstart, which runs
  python -m fct_tf.study --config=configs/quickstart.py --workdir=runs/glyphs
Hardware: two CPU cores, under four minutes of their time together.
"""

from fct_tf import config as schema


def get_config():
    config = schema.experiment("quickstart")
    config.dataset.train = "glyphs:train[:70%]"
    config.dataset.gallery = "glyphs:train[70%:]"
    config.dataset.image_size = 32
    for version in ("old", "new"):
        model = schema.model(train_epochs=10, warmup_epochs=2, batch_size=64, width=0.25)
        model.augment = schema.augment("affine")
        model.optimizer = schema.sgd(0.05)
        config.models[version] = model
    config.models.old.classes.fraction = 0.5

    side_info = schema.side_info(
        "simclr", train_epochs=5, warmup_epochs=1, batch_size=128, width=0.25
    )
    side_info.classes.fraction = 0.5
    side_info.augment = schema.augment(
        "simclr", affine=True, flip=False, jitter=0.0, grayscale=0.0, min_area=0.4
    )
    config.side_info = side_info

    config.transformations.fct = schema.transformation(
        train_epochs=10, warmup_epochs=1, batch_size=256
    )
    config.transformations.fct_fused = schema.fused_transformation("fct")
    config.evaluation.more_cases = False  # Five rows of results, no more.
    return config
