"""Any folder of images: DIR/train/<class>/* and DIR/val/<class>/*.

The old model learns the first half of the classes, the new one all of them; both retrieve among
the images of `val`. Small images and a half-width ResNet-18, so that it trains without a GPU;
raise image_size, width and train_epochs on better hardware.

Command:
  python -m fct_tf.study --config=configs/image_folder.py --workdir=runs/image_folder \\
      --config.dataset.train=folder:DIR:train --config.dataset.gallery=folder:DIR:val
Hardware: two CPU cores, under two hours for 50,000 images.
"""

from fct_tf import config as schema


def get_config():
    config = schema.experiment("image_folder")
    config.dataset.train = "folder:images:train"
    config.dataset.gallery = "folder:images:val"
    config.dataset.image_size = 64
    config.dataset.preprocess = "imagenet"
    for version in ("old", "new"):
        model = schema.model(train_epochs=10, warmup_epochs=1, batch_size=128, width=0.5)
        model.augment = schema.augment("crop_flip", min_area=0.3)
        model.optimizer = schema.sgd(0.1)
        config.models[version] = model
    config.models.old.classes.fraction = 0.5

    side_info = schema.side_info(
        "simclr", train_epochs=10, warmup_epochs=1, batch_size=256, width=0.5
    )
    side_info.classes.fraction = 0.5
    side_info.augment = schema.augment("simclr", min_area=0.2, jitter=0.5)
    config.side_info = side_info

    config.transformations = schema.transformations(
        train_epochs=20, warmup_epochs=2, batch_size=512, pairs_share=0.2
    )
    return config
