"""Sizes of images: one number of pixels for square ones, else height and width."""

import re
from collections.abc import Sequence

from fct_tf.common.errors import InputError

Size = int | Sequence[int]


def height_width(size: Size) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
      InputError: not one or two numbers above 0.
    """
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or not all(isinstance(side, int) and side > 0 for side in both):
        raise InputError(
            f"image_size: must be at least 1 pixel, as a number or as height and width, got {size}"
        )
    return both


def stored(size: Size) -> int | list[int]:
    """A size as JSON has it: one number for square images, so that one size is written one way."""
    height, width = height_width(size)
    return height if height == width else [height, width]


def text(size: Size) -> str:
    """`224`, or `160x96` for a height of 160 and a width of 96."""
    height, width = height_width(size)
    return str(height) if height == width else f"{height}x{width}"


def parse(given: str) -> int | list[int]:
    """What `text` writes.

    Raises:
      InputError: it is something else.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", given)
    if not match:
        raise InputError(
            f"``image_size={given}``: give pixels, 224, or height x width of images that are not "
            "square, 160x96"
        )
    return stored([int(match[1]), int(match[2] or match[1])])
