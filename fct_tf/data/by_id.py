"""Images by id, in the order they are asked for; what cannot be read is marked, not an error.

`fct_tf.data.datasets.load(ids=...)` is for training and whole columns: it keeps the source's
order, and an image that is not there is an error. Here the rows are known, and their images may
be broken or gone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.image_size import Size, stored
from fct_tf.data import datasets, stores
from fct_tf.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a source that can be looked up.

    Attributes:
      name: the source with its split.
      image_size, resize, orientation: as `fct_tf.data.datasets.load`.
      source: what they are read from.
    """

    name: str
    image_size: int | list[int]
    resize: str
    source: Source
    orientation: str = "applied"

    @property
    def any_order(self) -> bool:
        """Whether images may be read in any order; else only in that of `find`'s places."""
        return self.source.random_access

    def find(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The places of images in the source: int64 `[n]`, -1 where there is no such image."""
        return self.source.find(list(ids))

    def num_bytes(self, places: np.ndarray) -> int | None:
        """Bytes of these images' files; None where the source does not say."""
        if self.source.sizes is None:
            return None
        return int(np.maximum(self.source.sizes[places], 0).sum())

    def batches(self, places: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """The images at `places`, in that order; no other one is opened.

        Args:
          places: int64 `[n]`, not negative; they must rise where not `any_order`.
          batch_size: images a batch; the last one may be smaller.

        Returns:
          batches {"image": uint8 `[b, h, w, 3]`, "ok": bool `[b]`}. Where "ok" is false the image
          is black, since its file is gone or cannot be decoded.
        """
        request = stores.Wanted(
            name=self.name,
            fingerprint="",
            source=dataclasses.replace(self.source, check=True),  # Broken ones are marked.
            positions=places,
            targets=np.zeros(len(places), np.int64),
            image_size=self.image_size,
            resize=self.resize,
            on_bad_image="skip",
            orientation=self.orientation,
            remedy="",  # Marked, not told.
        )
        dataset = stores.decoded(self.source.encoded(places), request)
        kept = dataset.map(lambda example: {key: example[key] for key in ("image", "ok")})
        return kept.batch(batch_size).prefetch(2)


def load(
    source: str,
    *,
    image_size: Size,
    resize: str,
    data_dir: str = "",
    orientation: str = "applied",
) -> Images:
    """Opens a source as `fct_tf.data.datasets.load` does; decodes nothing.

    Raises:
      InputError: no such source, or a split that must be chosen.
    """
    if resize not in datasets.RESIZES:
        raise InputError(f"resize: choose one of {', '.join(datasets.RESIZES)}, got {resize!r}")
    name, opened = datasets.open_source(source, "", data_dir)
    return Images(name, stored(image_size), resize, opened, orientation)
