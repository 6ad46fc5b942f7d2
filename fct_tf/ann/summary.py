"""An index in one line: what it is, and what it would be."""

from collections.abc import Mapping
from typing import Any

from fct_tf.ann import store
from fct_tf.ann.index import Index
from fct_tf.ann.settings import Settings
from fct_tf.gallery.reader import open_gallery


def described(made: Index) -> str:
    """Its rows, its version and its settings."""
    column, version = made.column, made.version
    how = _how(Settings.from_json(made.manifest["settings"]))
    shards = len(store.shards(made.manifest))
    many = f"{shards} shards, the largest of " if shards else ""
    return f"{made.num_rows} rows of {column.name!r} at version {version}, {many}{how}"


def planned(
    uri: str, name: str, given: Mapping[str, Any], shards: int | None = None, *, known: bool = True
) -> str:
    """What building one would make and take.

    Args:
      uri: of the gallery. name: of the column.
      given: settings; the others are the defaults for the number of rows.
      shards: that it is to be built in, if any.
      known: False where the settings are yet to be found.

    Raises:
      InputError: no such gallery or column, settings that do not fit.
    """
    gallery = open_gallery(uri)
    column = gallery.column(name)
    gallery.check_rows()
    count, dim = gallery.num_rows, column.dim
    # Of the rows that are built at a time.
    part = -(-count // (shards or 1))
    settings = Settings.for_rows(part, dim, column.distance, **given)
    held = settings.nbytes(part, dim)
    how = _how(settings) if known else "settings found for the recall"
    many, each = (f"{shards} shards of about {part} rows, ", " each") if shards else ("", "")
    return (
        f"{gallery.path}@{gallery.version}: {count} rows x {dim}, {many}{how}; about "
        f"{(shards or 1) * held / 1e6:.0f} MB of memory and disk, "
        f"{(held + 4 * part * dim) / 1e6:.0f} MB{each} while it is built; nothing is written "
        "(--dry_run)"
    )


def _how(settings: Settings) -> str:
    if settings.is_exact:
        return "searched exactly"
    leaves = f"{settings.num_leaves} leaves, {settings.num_leaves_to_search} searched"
    searched = leaves if settings.num_leaves else "codes of all rows"
    return f"{searched}, {settings.reordering_num_neighbors} reordered"
