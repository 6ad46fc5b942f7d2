"""What the methods take for a path or a gallery."""

import os
from typing import Any, Protocol

PathLike = str | os.PathLike[str]


class HasUri(Protocol):
    """An opened gallery."""

    @property
    def uri(self) -> str: ...


# An opened gallery, or what one is opened by: `photos.lance`, `photos.lance@7`.
GalleryLike = HasUri | PathLike


def uri_of(gallery: GalleryLike | None) -> str:
    """By which the functions of the rooms open the version that is shown; empty for none."""
    found: Any = "" if gallery is None else getattr(gallery, "uri", gallery)
    return os.fspath(found)
