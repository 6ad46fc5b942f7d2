"""Augmentations against NumPy, SciPy and tf.image."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from scipy.ndimage import map_coordinates

from fct_tf import config as schema
from fct_tf.common.errors import InputError
from fct_tf.data.augment import augmentation

EVERY_KIND = ["none", "flip", "affine", "crop_flip", "simclr", {"name": "simclr", "affine": True}]


def random_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def random_numbers(count: int, kind, seed: int = 1) -> np.ndarray:
    shape = (count, augmentation(kind).num_uniforms)
    return np.random.default_rng(seed).random(shape, np.float32)


def sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray, mode: str, fill: float) -> np.ndarray:
    """Bilinear values of `image` at places (x, y) by SciPy."""
    channels = [
        map_coordinates(image[..., c].astype(np.float64), [y, x], order=1, mode=mode, cval=fill)
        for c in range(3)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("size", [1, 7, 32])
def test_shape_range_and_independence_of_rows(kind, size):
    augment = augmentation(kind)
    images, numbers = random_images(5, size), random_numbers(5, kind)
    result = augment(images, numbers)
    assert result.dtype == tf.float32
    assert result.shape == images.shape
    assert np.isfinite(result).all()
    # A tolerance for float32: interpolation weights need not add up to exactly 1.
    assert -1e-3 <= np.min(result) and np.max(result) <= 255 + 1e-3
    # Kernels differ by the place of a row in its batch, and by the size of the batch.
    for order in ([3, 0, 4, 2, 1], [2]):
        part = augment(images[order], numbers[order])
        np.testing.assert_allclose(part, np.array(result)[order], rtol=1e-5, atol=1e-3)


def test_none_needs_no_numbers_and_changes_nothing():
    images = random_images(3, 5)
    assert augmentation(None).num_uniforms == 0
    np.testing.assert_array_equal(augmentation("none")(images, np.zeros([3, 0])), images)


def test_flip_below_one_half():
    images = random_images(4, 5)
    result = augmentation("flip")(images, np.array([[0.0], [0.499], [0.5], [0.9]], np.float32))
    np.testing.assert_array_equal(result[:2], images[:2, :, ::-1])
    np.testing.assert_array_equal(result[2:], images[2:])


@pytest.mark.parametrize("size", [7, 32])
def test_affine_is_rotation_scale_and_shift_about_the_centre(size):
    settings = {"rotation_degrees": 25.0, "shift": 0.2, "scale": (0.7, 1.4), "fill": 200.0}
    images, numbers = random_images(6, size), random_numbers(6, "affine")
    result = augmentation({"name": "affine", **settings})(images, numbers).numpy()
    centre = (size - 1) / 2
    out_y, out_x = np.mgrid[:size, :size].astype(np.float64)
    for image, u, got in zip(images, numbers.astype(np.float64), result, strict=True):
        turn = complex(math.cos(t := math.radians(25 * (2 * u[0] - 1))), math.sin(t))
        shift = complex(2 * u[1] - 1, 2 * u[2] - 1) * 0.2 * size
        scale = 0.7 + 0.7 * u[3]
        # Forward: place -> turned and scaled about the centre, then shifted; here inverted.
        place = ((out_x - centre) + 1j * (out_y - centre) - shift) / (turn * scale)
        expected = sampled(image, place.real + centre, place.imag + centre, "grid-constant", 200)
        np.testing.assert_allclose(got, expected, atol=0.05)


def test_affine_in_the_middle_of_its_ranges_changes_nothing():
    images = random_images(2, 9)
    numbers = np.full([2, 4], 0.5, np.float32)
    np.testing.assert_allclose(augmentation("affine")(images, numbers), images, atol=1e-2)


def test_affine_fills_with_white_by_default():
    images = np.zeros([1, 32, 32, 3], np.float32)
    result = augmentation("affine")(images, np.array([[0.5, 1.0, 0.5, 0.5]], np.float32)).numpy()
    assert (result[0, :, :3] == 255).all()  # Shifted right by 3.2 pixels.
    assert (result[0, :, 4:] == 0).all()


@pytest.mark.parametrize("flip", [True, False])
def test_crop_flip_scales_a_crop_to_the_whole(flip):
    size, count = 11, 40
    images, numbers = random_images(count, size), random_numbers(count, "crop_flip")
    config = {"name": "crop_flip", "min_area": 0.2, "max_area": 0.9, "flip": flip}
    result = augmentation(config)(images, numbers).numpy()
    flipped = 0
    for image, u, got in zip(images, numbers.astype(np.float64), result, strict=True):
        area = 0.2 + 0.7 * u[0]
        # Aspect ratios between 3/4 and 4/3 at which neither side is above 1, evenly in the log.
        low, high = max(math.log(3 / 4), math.log(area)), min(math.log(4 / 3), -math.log(area))
        ratio = math.exp(low + (high - low) * u[1])
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        assert width <= 1 + 1e-9 and height <= 1 + 1e-9
        centres = (np.arange(size) + 0.5) / size
        x = ((1 - width) * u[2] + width * centres) * size - 0.5
        y = ((1 - height) * u[3] + height * centres) * size - 0.5
        grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
        expected = sampled(image, grid_x, grid_y, "nearest", 0)
        if flip and u[4] < 0.5:
            expected, flipped = expected[:, ::-1], flipped + 1
        np.testing.assert_allclose(got, expected, atol=0.05)
    assert (flipped > 0) == flip


def test_crop_of_everything_is_the_image():
    images = random_images(3, 8)
    config = {"name": "crop_flip", "min_area": 1.0, "max_area": 1.0, "flip": False}
    result = augmentation(config)(images, random_numbers(3, "crop_flip"))
    np.testing.assert_allclose(result, images, atol=0.01)


def colours_only(**settings):
    off = {"name": "simclr", "min_area": 1.0, "max_area": 1.0, "flip": False}
    return augmentation({**off, "jitter": 0.0, "grayscale": 0.0, **settings})


def test_grayscale_is_the_luma():
    images = random_images(5, 6)
    numbers = random_numbers(5, "simclr")
    numbers[:, -1] = [0.0, 0.29, 0.31, 0.5, 0.99]
    result = colours_only(grayscale=0.3)(images, numbers).numpy()
    gray = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images)).numpy()
    np.testing.assert_allclose(result[:2], gray[:2], atol=0.1)
    np.testing.assert_allclose(result[2:], images[2:], atol=0.1)


def test_jitter_against_its_steps_in_numpy():
    jitter, count = 0.4, 50
    images = random_images(count, 5) * 0.5 + 60
    numbers = random_numbers(count, "simclr")
    result = colours_only(jitter=jitter)(images, numbers).numpy()
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    changed = 0
    for image, u, got in zip(images, numbers[:, 5:].astype(np.float64), result, strict=True):
        expected = image.astype(np.float64)
        if u[0] < 0.8:
            changed += 1
            brightness, contrast, saturation = (1 + jitter * (2 * u[k] - 1) for k in (1, 2, 3))
            yiq = expected @ to_yiq.T
            chroma = (yiq[..., 1] + 1j * yiq[..., 2]) * saturation
            chroma = chroma * np.exp(2j * np.pi * jitter / 4 * (2 * u[4] - 1))
            yiq[..., 1], yiq[..., 2] = chroma.real, chroma.imag
            expected = yiq @ np.linalg.inv(to_yiq).T
            mean = (image.astype(np.float64) @ to_yiq[0]).mean()
            expected = brightness * (mean + contrast * (expected - mean))
        np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=0.2)
    assert 0 < changed < count


def test_jitter_leaves_gray_images_gray():
    images = np.repeat(random_images(7, 5)[..., :1], 3, axis=-1)
    result = augmentation("simclr")(images, random_numbers(7, "simclr")).numpy()
    np.testing.assert_allclose(result[..., 1:], result[..., :1].repeat(2, -1), atol=0.1)


def test_simclr_composes_the_crop_and_then_the_affine_change():
    size = 16
    images, numbers = random_images(4, size), random_numbers(4, EVERY_KIND[-1])
    both = augmentation({"name": "simclr", "affine": True, "jitter": 0.0, "grayscale": 0.0})
    assert both.num_uniforms == 9
    # A crop of everything leaves the affine change, and the middle of its ranges the crop.
    whole = {"min_area": 1.0, "max_area": 1.0, "flip": False, "jitter": 0.0, "grayscale": 0.0}
    affine_only = augmentation({"name": "simclr", "affine": True, **whole})
    np.testing.assert_allclose(
        affine_only(images, numbers[:, :9]), augmentation("affine")(images, numbers[:, 5:9]),
        atol=0.05,
    )  # fmt: skip
    numbers[:, 5:9] = 0.5
    inner = np.s_[:, 1:-1, 1:-1]  # The border may hold some of the fill.
    np.testing.assert_allclose(
        both(images, numbers[:, :9]).numpy()[inner],
        augmentation("crop_flip")(images, numbers[:, :5]).numpy()[inner],
        atol=0.05,
    )


@pytest.mark.parametrize("name", list(schema.AUGMENTATIONS))
def test_every_augmentation_of_the_schema_is_built(name):
    config = schema.augment(name)
    assert isinstance(config, ConfigDict)
    assert augmentation(config).settings == schema.AUGMENTATIONS[name]


@pytest.mark.parametrize(
    "config, message",
    [
        ("afine", "afine"),
        ({"name": "affine", "rotation": 3}, "rotation"),
        ({"name": "affine", "scale": (1.1, 0.9)}, "scale"),
        ({"name": "affine", "shift": 2.0}, "shift"),
        ({"name": "affine", "fill": 300}, "fill"),
        ({"name": "crop_flip", "min_area": 0.0}, "min_area"),
        ({"name": "crop_flip", "min_area": 0.9, "max_area": 0.5}, "min_area"),
        ({"name": "simclr", "jitter": -1.0}, "jitter"),
        ({"name": "simclr", "grayscale": 1.5}, "grayscale"),
        ({}, "unknown name"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(InputError, match=message):
        augmentation(config)
