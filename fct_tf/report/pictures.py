"""Example queries with their nearest images, as PNG files and HTML."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.report.parts import details
from fct_tf.report.tables import escape

# Smaller images are enlarged without smoothing, so that their pixels stay what they are.
_SMALL_PIXELS = 64
_SHOWN = 4  # queries; further ones unfold


@dataclasses.dataclass(frozen=True)
class Example:
    """A query and its nearest gallery images before and after the upgrade, nearest first.

    Images are uint8 [h, w, 3]; grayscale [h, w] and [h, w, 1] are drawn too. `case` names the
    search after the upgrade, such as `new/T(old) fct`.
    """

    query_image: np.ndarray
    query_label: str
    before: Sequence[tuple[np.ndarray, str]]
    after: Sequence[tuple[np.ndarray, str]]
    case: str = ""


def section(examples: Sequence[Example], directory: Path) -> str:
    """The examples as HTML; their images are written to `directory`/images.

    Raises:
      InputError: an image is no uint8 [h, w, 3], [h, w, 1] or [h, w].
    """
    if not examples:
        return ""
    (directory / "images").mkdir()
    cards = []
    for example in examples:
        query = _picture(example.query_image, example.query_label, None, directory)
        rows = "".join(
            f"<div><h3>{name} <span class='soft'>{_score(nearest, example.query_label)}</span></h3>"
            f'<div class="row">{_neighbours(nearest, example.query_label, directory)}</div></div>'
            for name, nearest in (("Before", example.before), ("After", example.after))
        )
        cards.append(
            f'<div class="card example"><div class="query"><h3>Query</h3>{query}</div>'
            f'<div class="ranks">{rows}</div></div>\n'
        )
    rest = "".join(cards[_SHOWN:])
    more = details("More queries", f'<div class="examples">\n{rest}</div>') if rest else ""
    return (
        '<section id="examples"><h2>Example queries</h2>\n'
        '<p class="note">The nearest gallery images of a query, nearest first, before and after '
        f"the upgrade{_by(examples)}. Solid green with ✓: the query's label; dashed red with ✗: "
        "another one.</p>\n"
        f'<div class="examples">\n{"".join(cards[:_SHOWN])}</div>{more}</section>'
    )


def _by(examples: Sequence[Example]) -> str:
    cases = dict.fromkeys(example.case for example in examples if example.case)
    return f" ({escape(', '.join(cases))})" if cases else ""


def _score(found: Sequence[tuple[np.ndarray, str]], label: str) -> str:
    return f"{sum(other == label for _, other in found)} of {len(found)} right" if found else ""


def _neighbours(found: Sequence[tuple[np.ndarray, str]], query_label: str, directory: Path) -> str:
    if not found:
        return '<span class="soft">none</span>'
    return "".join(
        _picture(image, label, label == query_label, directory) for image, label in found
    )


def _picture(image: np.ndarray, label: str, right: bool | None, directory: Path) -> str:
    pixels = _pixels(image, label)
    # Named by content: an image that is shown several times is one file.
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]
    path = directory / "images" / f"{digest}.png"
    if not path.exists():
        matplotlib.image.imsave(path, pixels)
    frame, mark, alt_text = "frame", "", "query"
    if right is not None:
        frame += " right" if right else " wrong"
        mark = f'<span class="mark" aria-hidden="true">{"✓" if right else "✗"}</span>'
        alt_text = "right" if right else "wrong"
    if max(pixels.shape[:2]) <= _SMALL_PIXELS:
        frame += " pixels"
    name = escape(label)
    return (
        f'<div class="tilepic" title="{name}"><span class="{frame}">'
        f'<img src="images/{path.name}" alt="{alt_text}: {name}" loading="lazy">{mark}</span>'
        f'<div class="label" aria-hidden="true">{name}</div></div>'
    )


def _pixels(image: np.ndarray, label: str) -> np.ndarray:
    """The image as uint8 [h, w, 3], in row order."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        raise InputError(
            f"example image of {label!r}: expected uint8 [h, w, 3], received {image.dtype} "
            f"{list(image.shape)}"
        )
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
