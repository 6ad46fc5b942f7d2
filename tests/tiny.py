"""Small experiments on small made images, for tests that train for real."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_tf import config as schema


def image_folder(directory: Path, *, classes: int = 4, per_class: int = 10, size: int = 20) -> Path:
    """A folder DIRECTORY/{train,val}/<class>/<n>.png; a class is a colour plus noise."""
    import tensorflow as tf

    rng = np.random.default_rng(7)
    for split, count in (("train", per_class), ("val", per_class // 2 + 1)):
        for label in range(classes):
            folder = directory / split / f"class{label}"
            folder.mkdir(parents=True)
            colour = np.random.default_rng(label).integers(40, 215, 3)
            for number in range(count):
                noise = rng.integers(-40, 40, (size, size, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                encoded = tf.io.encode_png(pixels).numpy()
                (folder / f"{number}.png").write_bytes(encoded)
    return directory


def experiment(images: Path, *, epochs: int = 2, batch_size: int = 8) -> ConfigDict:
    """Old and new model, SimCLR and two transformations, all tiny."""
    config = schema.experiment("tiny")
    config.dataset.train = f"folder:{images}:train"
    config.dataset.gallery = f"folder:{images}:val"
    config.dataset.image_size = 16
    config.training.steps_per_call = 2
    config.training.checkpoint_minutes = 0.0
    config.training.embed_batch_size = 4
    config.training.deterministic = True
    config.evaluation.bootstrap = 50
    network = {"name": "resnet10", "width": 0.0625, "embedding_dim": 8}
    for version in ("old", "new"):
        model = schema.model(epochs, 1, batch_size, **network)
        model.optimizer = schema.sgd(0.05)
        model.augment = schema.augment("affine")
        config.models[version] = model
    config.models.old.classes.first = 2
    config.side_info = schema.side_info("simclr", epochs, 1, batch_size, **network)
    config.side_info.optimizer = schema.sgd(0.05)
    for name in ("fct_no_side_info", "fct"):
        section = schema.transformation(train_epochs=epochs, warmup_epochs=1, batch_size=batch_size)
        section.side_info = name == "fct"
        section.hidden = 16
        config.transformations[name] = section
    return config


def one_layer(config: ConfigDict, image_size: int, seed: int = 0):
    """For `backbone.build`, where it matters what is around a network: a run takes a second."""
    import keras

    images = keras.Input((image_size, image_size, 3), name="image")
    start = keras.initializers.GlorotUniform(seed)
    settings = {"kernel_initializer": start, "dtype": config.dtype}
    dense = keras.layers.Dense(config.embedding_dim, **settings)
    return keras.Model(images, dense(keras.layers.GlobalAveragePooling2D()(images)))


# In an experiment file, of a program that trains a network of one layer.
ONE_LAYER = "from fct_tf.models import backbone\nbackbone.build = tiny.one_layer\n"


def experiment_file(path: Path, images: Path, *, more: str = "", **arguments) -> Path:
    """An experiment file that a door run as a program can read; `more` stands in it, too."""
    path.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from pathlib import Path\n"
        "from tests import tiny\n"
        f"{more}"
        "def get_config():\n"
        f"    return tiny.experiment(Path({str(images)!r}), **{arguments!r})\n"
    )
    return path
