"""Augmentations: pure functions of a batch of images and of uniform random numbers.

`augmentation(config)` gives an `Augmentation`: call it with images float32 `[b, s, s, 3]` in
0..255 and numbers float32 `[b, num_uniforms]` drawn uniformly from [0, 1); it returns images of
the same shape and range. Nothing here draws numbers, so that an image's augmentation can be made
to depend on the seed, the epoch and the image alone (see `fct_tf.data.datasets.train_batches`).

All geometry of a kind (crop, flip, rotation, shift, scale) is composed into one matrix per image,
so that an image is resampled once, bilinearly. The colour changes are one matrix per image, too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from fct_tf.common.errors import InputError, nearest
from fct_tf.config import AUGMENTATIONS

# Luma of ITU-R BT.601, the gray of tf.image.rgb_to_grayscale and of PIL.
_LUMA = (0.299, 0.587, 0.114)
_MIN_LOG_RATIO, _MAX_LOG_RATIO = math.log(3 / 4), math.log(4 / 3)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation with its settings; `num_uniforms` random numbers per image drive it."""

    name: str
    settings: dict[str, Any]
    num_uniforms: int
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

    def __call__(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Images float32 `[b, s, s, 3]` and uniforms float32 `[b, num_uniforms]` -> images."""
        return self.function(images, uniforms)


def augmentation(config: str | Mapping[str, Any] | None) -> Augmentation:
    """The augmentation that a name, or a dictionary of a `name` and settings, asks for.

    - `none`: the images as they are.
    - `flip`: left-right with probability 1/2.
    - `affine`: rotation by up to `rotation_degrees` either way, shift by up to `shift` of the
      side along each axis, scale in `scale`, `fill` outside the image.
    - `crop_flip`: a crop of `min_area` to `max_area` of the image with an aspect ratio of 3/4
      to 4/3, scaled back to the image's size, then a flip where `flip` is set.
    - `simclr` (arXiv 2002.05709, appendix A, without blur): `crop_flip`, then with probability
      0.8 a change of brightness, contrast and saturation by up to `jitter` and of hue by up to
      `jitter`/4 (its colour strength 1 is jitter 0.8), then gray with probability `grayscale`.
      `affine` set: also rotated, shifted and scaled as `affine` does, for drawings and glyphs.

    Raises:
      InputError: unknown name or setting, or a value out of range.
    """
    given = {"name": "none"} if config is None else config
    given = {"name": given} if isinstance(given, str) else dict(given)
    name = given.pop("name", None)
    if name not in AUGMENTATIONS:
        raise InputError(f"augment: unknown name {name!r}, choose one of {list(AUGMENTATIONS)}")
    defaults = AUGMENTATIONS[name]
    for key in given:
        if key not in defaults:
            raise InputError(
                f"augment {name}: unknown setting {key!r}{nearest(key, list(defaults))}"
            )
    settings = {**defaults, **given}
    _check(name, settings)
    if name == "none":
        return Augmentation(name, settings, 0, lambda images, uniforms: images)
    count, geometry = _geometry(name, settings)
    fill = settings["fill"] if name == "affine" or settings.get("affine") else None
    colours = 6 if name == "simclr" and (settings["jitter"] or settings["grayscale"]) else 0

    @tf.autograph.experimental.do_not_convert
    def function(images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        images = tf.convert_to_tensor(images)
        if name == "flip":
            chosen = uniforms[:, 0] < 0.5
            return tf.where(chosen[:, None, None, None], tf.reverse(images, [2]), images)
        if count:
            size = tf.cast(tf.shape(images)[1], tf.float32)
            images = _warp(images, geometry(uniforms[:, :count], size), fill)
        if colours:
            images = _recolour(
                images, uniforms[:, count:], settings["jitter"], settings["grayscale"]
            )
        return images

    number = 1 if name == "flip" else count + colours
    return Augmentation(name, settings, number, function)


def _check(name: str, settings: Mapping[str, Any]) -> None:
    def refuse(key: str, expected: str) -> None:
        raise InputError(f"augment {name}: {key} must be {expected}, got {settings[key]!r}")

    if "min_area" in settings:
        if not 0 < settings["min_area"] <= settings["max_area"] <= 1:
            refuse("min_area", f"above 0 and up to max_area ({settings['max_area']}, at most 1)")
    if "scale" in settings:
        scale = tuple(settings["scale"])
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            refuse("scale", "two positive numbers, the smaller first")
        if not 0 <= settings["shift"] < 1:
            refuse("shift", "a fraction of the side, 0 to below 1")
        if not 0 <= settings["fill"] <= 255:
            refuse("fill", "a gray value, 0 to 255")
    for key, most in (("jitter", 1.0), ("grayscale", 1.0)):
        if key in settings and not 0 <= settings[key] <= most:
            refuse(key, f"0 to {most}")


def _geometry(
    name: str, settings: Mapping[str, Any]
) -> tuple[int, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """The number of uniforms, and the function from them and the size to matrices `[b, 3, 3]`.

    A matrix maps output to input coordinates, which are pixel centres: 0 to size - 1.
    """
    parts: list[tuple[int, Callable[..., tf.Tensor]]] = []
    if name in ("crop_flip", "simclr"):
        parts.append((5, _crop_flip_matrix))
    if name == "affine" or settings.get("affine"):
        parts.append((4, _affine_matrix))

    def matrices(uniforms: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        start, product = 0, None
        # The last change of the image is the first of the coordinates.
        for number, part in parts:
            matrix = part(uniforms[:, start : start + number], size, settings)
            product = matrix if product is None else tf.matmul(product, matrix)
            start += number
        return product

    return sum(number for number, _ in parts), matrices


def _affine_matrix(uniforms: tf.Tensor, size: tf.Tensor, settings: Mapping[str, Any]) -> tf.Tensor:
    """Rotation and scale about the centre, then the shift: output to input coordinates."""
    low, high = settings["scale"]
    angle = math.radians(settings["rotation_degrees"]) * (2 * uniforms[:, 0] - 1)
    shift_x = settings["shift"] * size * (2 * uniforms[:, 1] - 1)
    shift_y = settings["shift"] * size * (2 * uniforms[:, 2] - 1)
    scale = low + (high - low) * uniforms[:, 3]
    centre = (size - 1) / 2
    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    from_x, from_y = centre + shift_x, centre + shift_y
    return _matrix(
        cos, sin, centre - cos * from_x - sin * from_y,
        -sin, cos, centre + sin * from_x - cos * from_y,
    )  # fmt: skip


def _crop_flip_matrix(
    uniforms: tf.Tensor, size: tf.Tensor, settings: Mapping[str, Any]
) -> tf.Tensor:
    """A random resized crop and flip: output to input coordinates.

    The usual way draws ten times until a crop fits. Here the area is drawn, then the aspect
    ratio among those that fit: no loop, and every area that is asked for really occurs.
    """
    low, high = settings["min_area"], settings["max_area"]
    area = low + (high - low) * uniforms[:, 0]
    # width^2 = area * ratio and height^2 = area / ratio are at most 1.
    least = tf.maximum(_MIN_LOG_RATIO, tf.math.log(area))
    most = tf.minimum(_MAX_LOG_RATIO, -tf.math.log(area))
    ratio = tf.exp(least + (most - least) * uniforms[:, 1])
    width, height = tf.sqrt(area * ratio), tf.sqrt(area / ratio)
    left = (1 - width) * uniforms[:, 2] * size
    top = (1 - height) * uniforms[:, 3] * size
    # Pixel centres: the output's x + 0.5 is at left + width * (x + 0.5) of the input.
    offset_x, offset_y = left + 0.5 * width - 0.5, top + 0.5 * height - 0.5
    if settings["flip"]:
        flip = uniforms[:, 4] < 0.5
        offset_x = tf.where(flip, offset_x + width * (size - 1), offset_x)
        width = tf.where(flip, -width, width)
    zero = tf.zeros_like(width)
    return _matrix(width, zero, offset_x, zero, height, offset_y)


def _matrix(*rows: tf.Tensor) -> tf.Tensor:
    """Six vectors `[b]`, two rows of an affine map, as matrices `[b, 3, 3]`."""
    zero, one = tf.zeros_like(rows[0]), tf.ones_like(rows[0])
    return tf.reshape(tf.stack([*rows, zero, zero, one], axis=1), [-1, 3, 3])


def _warp(images: tf.Tensor, matrices: tf.Tensor, fill: float | None) -> tf.Tensor:
    """Resamples bilinearly; outside the image lies `fill`, or where None its nearest pixel."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.reshape(matrices, [-1, 9])[:, :8],
        output_shape=tf.shape(images)[1:3],
        fill_value=float(fill or 0),
        interpolation="BILINEAR",
        fill_mode="NEAREST" if fill is None else "CONSTANT",
    )


def _recolour(images: tf.Tensor, uniforms: tf.Tensor, jitter: float, grayscale: float) -> tf.Tensor:
    """Brightness, contrast, saturation, hue and gray: one affine map of RGB per image.

    uniforms: float32 `[b, 6]`. Values are clipped to 0..255 once, at the end. Hue is rotated
    in the chroma plane about the gray axis, which keeps the luma, not through HSV.
    """
    luma = tf.constant(_LUMA)
    jittered = uniforms[:, 0] < 0.8

    def factor(column: int) -> tf.Tensor:
        return tf.where(jittered, 1 + jitter * (2 * uniforms[:, column] - 1), 1.0)

    brightness, contrast, saturation = factor(1), factor(2), factor(3)
    # `jitter`/4 of the full circle either way.
    angle = tf.where(jittered, math.pi * jitter / 2 * (2 * uniforms[:, 4] - 1), 0.0)
    saturation = tf.where(uniforms[:, 5] < grayscale, 0.0, saturation)
    to_gray = tf.ones([3, 1]) * luma  # Every row: the luma's weights.
    # gray + saturation * rotation(rgb - gray), the rotation in the plane of zero luma.
    cross = _chroma_rotation()
    cos, sin = tf.cos(angle)[:, None, None], tf.sin(angle)[:, None, None]
    chroma = tf.matmul(cos * tf.eye(3) + sin * cross, tf.eye(3) - to_gray)
    mix = to_gray + saturation[:, None, None] * chroma
    mean = tf.reduce_sum(tf.reduce_mean(images, [1, 2]) * luma, axis=1)
    shape = tf.shape(images)
    flat = tf.reshape(images, [shape[0], shape[1] * shape[2], 3])
    mixed = tf.matmul(flat, mix, transpose_b=True)
    # Contrast about the mean gray, which saturation and hue do not change.
    gain, bias = brightness * contrast, brightness * (1 - contrast) * mean
    mixed = mixed * gain[:, None, None] + bias[:, None, None]
    return tf.reshape(tf.clip_by_value(mixed, 0.0, 255.0), shape)


def _chroma_rotation() -> tf.Tensor:
    """The generator J of hue rotations: `[3, 3]`, a quarter turn of the plane of zero luma.

    In the basis (u, v) of that plane, orthogonal in YIQ's sense, J u = v and J v = -u.
    """
    luma = tf.constant(_LUMA, tf.float64)
    # I and Q of the NTSC standard; with the luma they are a basis of RGB.
    basis = tf.stack(
        [
            luma,
            tf.constant([0.5959, -0.2746, -0.3213], tf.float64),
            tf.constant([0.2115, -0.5227, 0.3112], tf.float64),
        ]
    )
    quarter = tf.constant([[0, 0, 0], [0, 0, -1], [0, 1, 0]], tf.float64)
    return tf.cast(tf.matmul(tf.linalg.inv(basis), tf.matmul(quarter, basis)), tf.float32)
