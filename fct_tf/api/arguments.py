"""What the methods take for a path or a gallery, and how their errors name arguments."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Protocol

from fct_tf.common.errors import InputError, as_arguments

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


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Errors of the block, or of the decorated method, name arguments: a notebook has no flags."""
    try:
        yield
    except InputError as error:
        error.args = (as_arguments(str(error)),)
        raise
