"""An index in one line: what it is, and what it would be."""

from collections.abc import Mapping
from typing import Any

from fct_tf.ann.index import Index
from fct_tf.ann.settings import Settings
from fct_tf.gallery.reader import open_gallery


def described(made: Index) -> str:
    """Its rows, its version and its settings."""
    column, version = made.column, made.version
    how = _how(made.searcher.settings)
    return f"{made.num_rows} rows of {column.name!r} at version {version}, {how}"


def planned(uri: str, name: str, given: Mapping[str, Any], *, known: bool = True) -> str:
    """What building one would make and take.

    Args:
      uri: of the gallery. name: of the column.
      given: settings; the others are the defaults for the number of rows.
      known: False where the settings are yet to be found.

    Raises:
      InputError: no such gallery or column, settings that do not fit.
    """
    gallery = open_gallery(uri)
    column = gallery.column(name)
    gallery.check_rows()
    count, dim = gallery.num_rows, column.dim
    settings = Settings.for_rows(count, dim, column.distance, **given)
    held = settings.nbytes(count, dim)
    how = _how(settings) if known else "settings found for the recall"
    return (
        f"{gallery.path}@{gallery.version}: {count} rows x {dim}, {how}; about {held / 1e6:.0f} MB "
        f"of memory and disk, {(held + 4 * count * dim) / 1e6:.0f} MB while it is built; nothing "
        "is written (--dry_run)"
    )


def _how(settings: Settings) -> str:
    if settings.is_exact:
        return "searched exactly"
    leaves = f"{settings.num_leaves} leaves, {settings.num_leaves_to_search} searched"
    searched = leaves if settings.num_leaves else "codes of all rows"
    return f"{searched}, {settings.reordering_num_neighbors} reordered"
