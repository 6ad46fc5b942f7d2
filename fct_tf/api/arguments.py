"""What the methods take for a path or a gallery."""

import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from fct_tf.gallery import reader

EngineName = Literal["local", "spark"]
PathLike = str | os.PathLike[str]


@runtime_checkable
class OpenedGallery(Protocol):
    """An opened gallery."""

    @property
    def uri(self) -> str: ...


# An opened gallery, or what one is opened by: `photos.lance`, `photos.lance@7`.
GalleryLike = OpenedGallery | PathLike


def uri_of(gallery: GalleryLike | None) -> str:
    """By which the functions of the rooms open the version that is shown; empty for none."""
    uri: Any = "" if gallery is None else getattr(gallery, "uri", gallery)
    return os.fspath(uri)


def opened(gallery: GalleryLike | None) -> reader.Gallery | None:
    """As the functions of the rooms take it, at the version that is shown; None for none."""
    if gallery is None:
        return None
    existing: reader.Gallery | None = getattr(gallery, "_opened", None)
    return existing or reader.open_gallery(uri_of(gallery))


def names(columns: str | Sequence[str]) -> list[str]:
    """One name, or several."""
    return [columns] if isinstance(columns, str) else list(columns)
