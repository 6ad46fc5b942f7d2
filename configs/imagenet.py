"""ImageNet, closed setting: old model on 500 of the 1000 classes (arXiv 2112.02805, table 1).

Command (imagenet2012 must be prepared by hand, see its TFDS page):
  python -m fct_tf.study --config=configs/imagenet.py --workdir=runs/imagenet
Published (top-1 / top-5 / mAP, %): old/old 46.4 / 65.1 / 28.3, new/new 68.4 / 84.7 / 45.6,
FCT without side-information 61.8 / 80.5 / 39.9, with 65.1 / 82.7 / 44.0.
Random crops are taken from the central square at 224 pixels, not from the whole photograph as in
the paper.
Hardware: eight data-centre GPUs, a few days.
"""

from fct_tf.config.presets import paper_experiment


def get_config():
    return paper_experiment(
        "imagenet",
        train="tfds:imagenet2012:train",
        gallery="tfds:imagenet2012:validation",
        old_classes=0.5,
    )
