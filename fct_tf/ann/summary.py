"""An index in one line: what it is, and what it would be."""

from collections.abc import Mapping
from typing import Any

from fct_tf.ann import manifests
from fct_tf.ann.index import Index
from fct_tf.ann.settings import Settings
from fct_tf.gallery.reader import open_gallery

EXACTLY = "searched exactly"


def described(made: Index) -> str:
    """Its rows, its version, its settings and the recall that was measured when it was built."""
    column, version = made.column, made.version
    how = _how(Settings.from_json(made.manifest["settings"]))
    shards = len(manifests.shards(made.manifest))
    many = f"{shards} shards, the largest of " if shards else ""
    measured = made.manifest.get("recall")
    recall = "" if measured is None or how == EXACTLY else f", recall@10 {measured:.3f}"
    return f"{made.num_rows} rows of {column.name!r} at version {version}, {many}{how}{recall}"


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
    if known and not given and not settings.is_exact:
        how += " (the build measures whether that is enough, and takes more if not)"
    many, each = (f"{shards} shards of about {part} rows, ", " each") if shards else ("", "")
    return (
        f"{gallery.path}@{gallery.version}: {count} rows x {dim}, {many}{how}; about "
        f"{(shards or 1) * held / 1e6:.0f} MB of memory and disk, "
        f"{(held + 4 * part * dim) / 1e6:.0f} MB{each} while it is built; nothing is written "
        "(--dry_run)"
    )


def _how(settings: Settings) -> str:
    if settings.is_exact:
        return EXACTLY
    leaves = f"{settings.num_leaves} leaves, {settings.num_leaves_to_search} searched"
    searched = leaves if settings.num_leaves else "codes of all rows"
    if settings.score != "ah":
        return f"{searched.replace('codes of all', 'all')}, compared as {settings.score_data}"
    return f"{searched}, {settings.reordering_num_neighbors} reordered"
