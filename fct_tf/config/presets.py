"""What the experiments on large data sets share: the recipe of the FCT paper.

ResNet-50, 128-d embeddings, SGD at 1.024 for batches of 1024, 100 epochs; the transformation 80
epochs of Adam (arXiv 2112.02805, appendix, and the authors' published settings).
"""

from ml_collections import ConfigDict

from fct_tf import config as schema


def paper_experiment(
    name: str, *, train: str, gallery: str, old_classes: float, augment: str = "crop_flip"
) -> ConfigDict:
    """Old model on the first share of the classes, new model on all, both with the same recipe.

    Args:
      name: of the experiment.
      train, gallery: image sources (see `dataset` in `fct_tf.config`).
      old_classes: share of the classes that the old model and its side-information see.
      augment: augmentation of the backbones' training images.
    """
    config = schema.experiment(name)
    config.dataset.train = train
    config.dataset.gallery = gallery
    config.dataset.image_size = 224
    config.dataset.resize = "center_crop"
    config.dataset.preprocess = "imagenet"
    config.dataset.cache = "none"
    config.training.strategy = "mirrored"
    for version in ("old", "new"):
        model = schema.model(name="resnet50")
        model.augment = schema.augment(augment)
        config.models[version] = model
    config.models.old.classes.fraction = old_classes
    config.side_info = schema.side_info("simclr", name="resnet50")
    config.side_info.classes.fraction = old_classes
    config.transformations = schema.transformations()
    return config
