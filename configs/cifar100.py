"""CIFAR-100, closed setting: old model on 50 of the 100 classes (arXiv 2112.02805, table 5).

The paper's recipe: images resized to 224, horizontal flips only, ImageNet's normalisation. The
paper takes its side-information from SimCLR trained on all of ImageNet; here it is SimCLR on the
old half of CIFAR-100, so expect the row with side-information to come out lower.

Command:
  python -m fct_tf.study --config=configs/cifar100.py --workdir=runs/cifar100
Published (top-1 / top-5 / mAP, %): old/old 34.2 / 60.6 / 16.5, new/new 56.5 / 77.0 / 36.3,
FCT without side-information 47.2 / 72.6 / 25.8, with 50.2 / 73.7 / 32.2.
Hardware: eight data-centre GPUs, a few hours.
"""

from fct_tf.config.presets import paper_experiment


def get_config():
    config = paper_experiment(
        "cifar100",
        train="tfds:cifar100:train",
        gallery="tfds:cifar100:test",
        old_classes=0.5,
        augment="flip",
    )
    config.dataset.resize = "bilinear_antialias"
    return config
