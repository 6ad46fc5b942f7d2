"""Quickstart: one model change, start to finish, in minutes and without a download.

The data are rendered characters. The old model has learnt a quarter of them, the new one all, as in
the closed setting of the FCT paper; both retrieve among further drawings of all characters. FCT
upgrades the old gallery. `configs/glyphs.py` compares all methods on the same data.

Short trainings end elsewhere with every seed. With 10 epochs over half of the characters and over
all, the standard deviation of top-1 over five seeds was 3.0 points for old/old, 2.7 for new/T(old),
2.3 for fused and 1.9 for new/new; with these longer ones it is 1.7, 1.4, 1.4 and 1.3.

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
        model = schema.model(train_epochs=16, warmup_epochs=4, batch_size=64, width=0.25)
        model.augment = schema.augment("affine")
        model.optimizer = schema.sgd(0.05)
        config.models[version] = model
    config.models.old.update(train_epochs=30, warmup_epochs=6)
    config.models.old.classes.fraction = 0.25

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
