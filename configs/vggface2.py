"""VGGFace2, a folder of identities: DIR/train/<identity>/*.jpg and DIR/test/<identity>/*.jpg.

The identities of `test` are unseen in training. The paper (arXiv 2112.02805) reports FCT 8.3
points of top-1 above BCT. The data set is no longer offered by its authors: point the two folders
at your copy, or at any folder of identities.

Command:
  python -m fct_tf.study --config=configs/vggface2.py --workdir=runs/vggface2 \\
      --config.dataset.train=folder:DIR:train --config.dataset.gallery=folder:DIR:test
Random crops are taken from the central square at 224 pixels, not from the whole photograph as in
the paper.
Hardware: eight data-centre GPUs, a few days.
"""

from fct_tf.config.presets import paper_experiment


def get_config():
    config = paper_experiment(
        "vggface2",
        train="folder:vggface2:train",
        gallery="folder:vggface2:test",
        old_classes=0.5,
    )
    config.dataset.on_bad_image = "skip"
    return config
