"""Images on the disk, and how tests read them."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fct_tf.data import datasets

COUNTS = {"cat": 5, "dog": 7, "emu": 11}  # 23 images in the split train


def write_images(folder, counts, seed=0):
    """JPEG and PNG, coloured, gray and with an alpha channel, of different sizes."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = (int(side) for side in random.integers(20, 60, 2))
            coarse = random.integers(0, 256, (5, 5, 3), np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image = image.convert(["RGB", "L", "RGBA"][number % 3])
            ending = "png" if number % 3 == 2 else ["png", "JPEG", "jpg"][number % 2]
            image.save(folder / name / f"{number:02d}.{ending}")


def load(source, **arguments):
    return datasets.load(source, **{"image_size": 16, **arguments})


def joined(batches):
    """All batches as arrays, one after the other."""
    batches = list(batches)
    return {key: np.concatenate([np.array(b[key]) for b in batches]) for key in batches[0]}


class Shards(tfds.core.GeneratorBasedBuilder):
    """37 images, some without a label: image k is all of gray value k."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(num_classes=50),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k in range(37):
            image = np.full([4, 5, 1], k, np.uint8)
            yield k, {"image": image, "label": -1 if k % 10 == 9 else 3 + k % 4}
