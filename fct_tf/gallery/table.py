"""The gallery: a Lance dataset of id, label and embedding columns.

Every change is one atomic commit, so a reader sees all of it or nothing, and a tag such as
`live` stays where it is until it is set anew. Rows are matched by id, never by position.
"""

import os

from fct_tf.common.errors import InputError
from fct_tf.gallery.add_column import add_column
from fct_tf.gallery.columns import Column, Rows, check_spaces, imported_space
from fct_tf.gallery.create import (
    COMPANIONS,
    check_newest,
    check_output,
    check_replaced,
    create,
    new_schema,
)
from fct_tf.gallery.reader import Gallery, exists, open_gallery, split_uri
from fct_tf.gallery.verify import verify

__all__ = [
    "COMPANIONS",
    "Column",
    "Gallery",
    "Rows",
    "add_column",
    "check_newest",
    "check_output",
    "check_replaced",
    "check_spaces",
    "create",
    "exists",
    "imported_space",
    "new_schema",
    "open",
    "open_gallery",
    "split_uri",
    "tag",
    "verify",
]

open = open_gallery


def tag(uri: str | os.PathLike, name: str) -> int:
    """Lets the tag `name` point to the version that `uri` names; returns the version.

    A tag that is there already is moved, in one step: this is how a gallery goes live
    (`photos.lance`, "live") and how it goes back (`photos.lance@5`, "live").
    """
    gallery = open_gallery(uri)
    if not name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum() or name.isdecimal():
        raise InputError(
            f"tag {name!r}: use letters, digits, '_', '-' and '.', and not digits alone"
        )
    tags = gallery.dataset.tags
    if name in tags.list():
        tags.update(name, gallery.version)
    else:
        tags.create(name, gallery.version)
    return gallery.version
