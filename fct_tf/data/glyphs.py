"""Glyphs: a data set that is drawn, not downloaded, in well under a minute.

A class is a character; its images are drawings of it in the fonts that matplotlib brings
(DejaVu Sans, Mono and Serif in all their styles, STIX where it has the character), each bent,
sheared, rotated and with a stroke of its own. 300 classes are in the split `train`, 150 others in
`test`: what a model learns is tried on classes it never saw, as with Omniglot, whose place it
takes where nothing can be downloaded. Images are 64x64, three equal channels, dark on white.

Every glyph is scaled to the same box, so that no two classes differ by size or place alone, and
the characters below were chosen such that no two look the same in any two fonts: see
`similarity`, which is below 0.95 for all pairs. Letters of several scripts with one shape (Latin
A, Greek Alpha, Cyrillic A) are there once, accented letters not at all.
"""

import functools
import hashlib
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fct_tf.data import tfds_source

NUM_TRAIN_CLASSES = 300
DRAWINGS_PER_CLASS = 20
SIZE = 64
FONTS = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSans-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-BoldOblique",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBol",
)
_CANVAS = 128  # Glyphs are drawn at twice the size of the images, then bent and sampled.
_BOX = 88

# Code points, hexadecimal. The choice: letters, digits and symbols without decomposition that
# every DejaVu style has; of the most similar pair one was dropped until 450 were left.
_CODE_POINTS = """
    24 2B 32 34-37 39 3C-3E 43 47 48 4B-4E 52 54 57-5A 5E 60 61 64-66 69 6B 6D 71 72 74 79
    7E A2-A6 A9 AC AE B0 B1 C6 D7 D8 DE DF E6 F0 14A 152 181 184 186 187 18A 18E 190 191 193
    194 19B-19D 1A2-1A4 1A6 1A7 1A9-1AB 1B1 1B7 1B8 1BA 1BE 1BF 1C2 1C3 1F6 21C 221 224 234
    235 238-23B 23E 240 241 244 255 256 258 25A 25D 25E 260 267 26E 270-273 277-279 27B
    27D-27F 281-283 287 28B 28D 28E 290 291 294 295 299 29A 29D 29E 2A3 2A4 2A6-2AE 375 394
    39E 3A8 3B2 3B6 3BD 3BE 3C2 3D7 3D8 3DA 3DC 3DE-3E1 3F6 3FB 402 409-40B 40F 414 416 41B
    424 427 429 42B 42E 42F 446 462 463 490 495 496 498 49A 4A4 4AC 4B2 4C3 4C7 4CB 532
    534-539 53B 53D-541 543 546 547 549-54C 54E 550 552 554 556 559 568 569 56B 56D 56E 571
    573 574 576 579 57B 586 E3F 10D0 10D3 10D9 10DA 10DD 10DF-10E7 10E9 10EA 10EC 10ED
    10EF-10F5 10F7 10F9 20AC 20AF 20B4 20B8 20B9 2190-2193 2196-2199 219C 219D 21A2-21A7
    21A9-21AD 21AF-21B4 21B6-21C1 21C3 21C5-21CA 21CC 21D0 21D1 21D3 21D6-21DB 21DE 21E4
    21E5 21E8 21ED-21F3 21F5-21F7 21FA 21FF 2200 2202 2207 2208 2213 2215 2217 221A
    221D-2220 2238-223B 223D 2248 2250-2253 2261 2264 2265 2282 2283 2286 2287 228D
    228F-2291 2293-2295 2298 229E 22A0 22A2 22A3 22A5 22C4 2302 2310 2311 2318 2319 2320
    2325 2328 237D 239B 239D 239E 23A0 23A3 23A4 23A6 23A8 23AC 23CF 2423 2600 2638 263A
    263C 263F-2647 2660 2661 2664 2665 2667 2669-266F 27E0 29EB 2A6B 2B05-2B0B 2B12-2B1A
    2C64 2C6E 2C75 2C77 2C7E A790 A7AA
"""


def _characters() -> tuple[str, ...]:
    """The classes in label order: an order that mixes the scripts, so that both splits and
    both halves of `train` hold some of each."""
    points: list[int] = []
    for item in _CODE_POINTS.split():
        first, _, last = item.partition("-")
        points.extend(range(int(first, 16), int(last or first, 16) + 1))
    return tuple(sorted(map(chr, points), key=lambda c: hashlib.sha256(c.encode()).hexdigest()))


CHARACTERS = _characters()


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """TFDS builder `glyphs`: importing this module makes its name known to TFDS."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "450 characters, 20 drawings of each."}

    def _info(self) -> Any:
        names = [unicodedata.name(character) for character in CHARACTERS]
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # Nothing is downloaded.
        return {
            "train": self._generate_examples(0, NUM_TRAIN_CLASSES),
            "test": self._generate_examples(NUM_TRAIN_CLASSES, len(CHARACTERS)),
        }

    def _generate_examples(self, first: int, last: int) -> Iterator[tuple[str, dict]]:
        for label in range(first, last):
            fonts = [font for font in FONTS if has(font, CHARACTERS[label])]
            for number in range(DRAWINGS_PER_CLASS):
                image = draw(CHARACTERS[label], fonts[number % len(fonts)], number)
                yield (
                    f"{label}_{number}",
                    {"image": np.repeat(image[:, :, None], 3, axis=2), "label": label},
                )


def builder(data_dir: str = "") -> Any:
    """The builder of `glyphs`, its images drawn if they are not yet there.

    Raises:
      InputError: they cannot be written to `data_dir` (TFDS_DATA_DIR, or TFDS' own default).
    """
    glyphs = Glyphs(data_dir=data_dir or os.environ.get("TFDS_DATA_DIR") or None)
    tfds_source.prepare(glyphs, "glyphs")
    return glyphs


def has(font: str, character: str) -> bool:
    """Whether a font has a character."""
    return ord(character) in _character_map(font)


def draw(character: str, font: str, number: int) -> np.ndarray:
    """One drawing of a character, distorted as (character, number) say: uint8 `[64, 64]`."""
    random = np.random.default_rng([ord(character), number])
    glyph = Image.fromarray(normalized(character, font, _CANVAS, _BOX))
    # A threshold on the blurred glyph thins or thickens its strokes; the slope keeps edges soft.
    blurred = np.asarray(glyph.filter(ImageFilter.GaussianBlur(random.uniform(1.5, 3))), np.float32)
    ink = np.clip((blurred / 255 - random.uniform(0.25, 0.55)) * 4 + 0.5, 0, 1)
    angle, shear = np.deg2rad(random.uniform(-12, 12)), random.uniform(-0.2, 0.2)
    scale_x, scale_y = random.uniform(0.8, 1.15, 2)
    shift = random.uniform(-8, 8, 2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag([1 / scale_x, 1 / scale_y])
    # Every image pixel's place in the canvas, both about their centres.
    axis = (np.arange(SIZE) + 0.5) * (_CANVAS / SIZE) - _CANVAS / 2
    grid = np.stack(np.meshgrid(axis, axis), axis=-1) + shift
    places = grid @ matrix.T + _CANVAS / 2 - 0.5 + _bend(random)
    return np.round(255 * (1 - _sample(ink, places))).astype(np.uint8)


def normalized(character: str, font: str, size: int, box: int) -> np.ndarray:
    """A glyph scaled to `box` pixels along its longer side and centred: uint8 `[size, size]`.

    Ink is 255, the ground 0.
    """
    face = _face(font)
    left, top, right, bottom = (int(side) for side in face.getbbox(character))
    image = Image.new("L", (right - left + 2, bottom - top + 2), 0)
    ImageDraw.Draw(image).text((1 - left, 1 - top), character, fill=255, font=face)
    image = image.crop(image.getbbox())
    width, height = (max(1, round(side * box / max(image.size))) for side in image.size)
    result = Image.new("L", (size, size), 0)
    result.paste(
        image.resize((width, height), Image.Resampling.LANCZOS),
        ((size - width) // 2, (size - height) // 2),
    )
    return np.asarray(result)


def similarity(characters: str) -> np.ndarray:
    """How alike characters look: float32 `[n, n]`, 1 for the same shape.

    The greatest cosine, over all pairs of fonts, of their normalized glyphs of 26 pixels,
    blurred by 1 pixel.
    """
    vectors = []
    for font in FONTS:
        rows = np.zeros([len(characters), 32 * 32], np.float32)
        for row, character in zip(rows, characters, strict=True):
            if has(font, character):
                glyph = Image.fromarray(normalized(character, font, 32, 26))
                row[:] = np.asarray(glyph.filter(ImageFilter.GaussianBlur(1.0))).ravel()
        vectors.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))
    best = np.zeros([len(characters), len(characters)], np.float32)
    for ours in vectors:
        for theirs in vectors:
            np.maximum(best, ours @ theirs.T, out=best)
    return best


def _bend(random: np.random.Generator) -> np.ndarray:
    """A smooth random displacement of every pixel, in canvas pixels: float32 `[64, 64, 2]`."""
    coarse = random.normal(scale=3.5, size=(2, 4, 4)).astype(np.float32)
    size = (SIZE, SIZE)
    fine = [Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(f) for f in fine], axis=-1)


def _sample(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear values of `[h, w]` at places (x, y) `[..., 2]`; 0 outside."""
    padded = np.pad(image, 1)
    limits = np.array([padded.shape[1], padded.shape[0]]) - 1.001
    places = np.clip(places + 1, 0, limits)
    corner = places.astype(np.int64)
    x, y = corner[..., 0], corner[..., 1]
    part_x, part_y = np.moveaxis(places - corner, -1, 0)
    upper = padded[y, x] * (1 - part_x) + padded[y, x + 1] * part_x
    lower = padded[y + 1, x] * (1 - part_x) + padded[y + 1, x + 1] * part_x
    return upper * (1 - part_y) + lower * part_y


@functools.cache
def _face(font: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_file(font), 96)


@functools.cache
def _character_map(font: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_file(font)).get_charmap())


def _file(font: str) -> str:
    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
